"""Parser of the commands and their arguments.

It imports nothing heavy, so that `--help` answers at once.
"""

import argparse
from pathlib import Path
from typing import NoReturn

from ppl_dgm import __version__

__all__ = ["parser"]

STUDIES = ("binary", "grey")
ESTIMATORS = ("auto", "exact", "importance", "prior", "elbo", "laplace", "ais", "smc", "bridge")
COMPILE = ("auto", "always", "never")
DEFAULT_PARTICLES = 10_000
MAX_THREADS = 1024

DESCRIPTION = """Generative models as Pyro programs: fitted, and compared by their evidence in nats
with error bars."""
COMPARE = """Without programs: fit families of generative models to the handwritten digits bundled
with scikit-learn (8 x 8 pixels), ask each for its evidence on held-out digits, print one table for
each kind of data, and write a report to a folder. With programs: compare those on your own data."""
EVIDENCE = """Estimate the evidence log p(data) of a program of your own. PROGRAM is a Program, or a
function without arguments that makes one, in a Python file: path/to/file.py:name."""
EXAMPLES = """examples:
  ppl-dgm compare
  ppl-dgm compare --data binary --seed 1 --out results/seed-1
  ppl-dgm compare lines.py:straight lines.py:curved --data heights.csv --out results/lines
  ppl-dgm compare nets.py:small nets.py:large --data rows.npz --fit 2000 --seeds 5
  ppl-dgm evidence schools.py:program --data schools.npz --estimator importance --particles 1e4

exit status: 0 done; 1 a run failed; 2 the input was at fault; 3 done, but an alarm speaks against a
number; 130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def parser() -> Parser:
    """All commands and their arguments."""
    top = Parser(
        prog="ppl-dgm",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"ppl-dgm {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="{compare,evidence}")
    _add_compare(
        commands.add_parser(
            "compare",
            help="compare families on digits, or programs of your own",
            description=COMPARE,
        )
    )
    _add_evidence(
        commands.add_parser(
            "evidence", help="evidence of a program of your own", description=EVIDENCE
        )
    )
    return top


def _add_compare(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("programs", nargs="*", metavar="PROGRAM", help="path/to/file.py:name; none compares digits")
    add(
        "--data",
        default="both",
        metavar="DATA",
        help="of digits: binary, grey or both [both]; for programs: a .csv, .npy or .npz file, "
        "columns and arrays being named arguments",
    )
    add("--fit", type=positive, metavar="STEPS", help="fit the programs first, by so many steps")
    _add_estimator(command)
    add(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="fit everything from N seeds and tell the spread of log p over them [1]",
    )
    add("--epochs", type=positive, metavar="N", help="digits: at most N passes for every fit")
    add(
        "--temperatures",
        type=positive,
        default=28,
        metavar="T",
        help="digits: of annealed importance sampling, for the VAEs [28]",
    )
    add(
        "--compile",
        choices=COMPILE,
        default="auto",
        help="compile steps and moves: where that pays [auto], always, or never",
    )
    add("--quick", action="store_true", help="digits: few epochs, to see that everything works")
    _add_common(command)
    command.set_defaults(run="compare")


def _add_evidence(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("program", metavar="PROGRAM", help="path/to/file.py:name of the program, or its maker")
    add(
        "--data",
        type=Path,
        metavar="FILE",
        help=".csv, .npy or .npz; columns, and several arrays, are named arguments",
    )
    add("--state", type=Path, metavar="FILE", help="parameters written by program.save")
    _add_estimator(command)
    _add_common(command)
    command.set_defaults(run="evidence")


def _add_estimator(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--estimator",
        choices=ESTIMATORS,
        default="auto",
        help="auto is exact where that applies, and else two kinds that must agree [auto]",
    )
    command.add_argument(
        "--particles",
        type=positive,
        default=DEFAULT_PARTICLES,
        metavar="K",
        help=f"draws of importance, prior and elbo [{DEFAULT_PARTICLES}]",
    )


def _add_common(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--out",
        "--output",
        type=Path,
        metavar="DIR",
        help="write a report to this folder (digits: [results])",
    )
    add("--seed", type=seed, default=0, help="makes the result repeatable [0]")
    add(
        "--threads",
        type=threads,
        default=1,
        metavar="N",
        help="threads of torch; small models are fastest with [1]",
    )
    add("--traceback", action="store_true", help="show where an error came from")


def positive(text: str) -> int:
    """A positive integer, also as 1e4, or argparse's error."""
    value = float(text)
    if not 1 <= value < 1e18 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(value)


def seed(text: str) -> int:
    """A seed that every generator takes, or argparse's error."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is no seed; expected 0 to {2**32 - 1}")
    return value


def threads(text: str) -> int:
    """A number of threads, or argparse's error."""
    value = positive(text)
    if value > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text} threads; expected at most {MAX_THREADS}")
    return value


positive.__name__ = "positive integer"  # as argparse names them in errors
seed.__name__, threads.__name__ = "seed", "number of threads"
