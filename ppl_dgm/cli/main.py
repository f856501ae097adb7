"""Commands, their arguments, and errors in one line."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from ppl_dgm import __version__
from ppl_dgm.cli.estimating import DEFAULT_PARTICLES, ESTIMATORS, estimate
from ppl_dgm.cli.loading import arguments, load_data, load_program, load_state, program_name
from ppl_dgm.cli.studies import STUDIES, Budget, run_study
from ppl_dgm.comparison import compare
from ppl_dgm.compile import CompileMode
from ppl_dgm.fitting import NonFiniteError
from ppl_dgm.report import Section, make_folder, write_report

DESCRIPTION = "Generative models as Pyro programs: fitted, and compared by their evidence in nats with error bars."
COMPARE = """Fit families of generative models to the handwritten digits bundled with scikit-learn (8 x 8 pixels), ask each
for its evidence on held-out digits, print one table for each kind of data, and write a report to a folder."""
EVIDENCE = """Estimate the evidence log p(data) of a program of your own. PROGRAM is a Program, or a function without
arguments that makes one, in a Python file: path/to/file.py:name."""
EXAMPLES = """examples:
  ppl-dgm compare
  ppl-dgm compare --data binary --seed 1 --out results/seed-1
  ppl-dgm evidence schools.py:program --data schools.npz --estimator importance --particles 10000
"""
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, NonFiniteError)
COMPILE: dict[str, CompileMode] = {"auto": "auto", "always": True, "never": False}
INTERRUPTED = 130  # the exit status of a program ended by Ctrl-C


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 where the input was at fault, said in one line on stderr.

    Example:
        >>> main(["evidence", "absent.py:program", "--data", "x.npz"])
        2
    """
    args = parser().parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        return args.run(args)
    except BrokenPipeError:  # whoever read the output has seen enough
        return 0
    except KeyboardInterrupt:
        print("ppl-dgm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except USER_ERRORS as error:
        print(f"ppl-dgm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)


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
    add_compare(
        commands.add_parser(
            "compare", help="fit and compare families on digits", description=COMPARE
        )
    )
    add_evidence(
        commands.add_parser(
            "evidence", help="evidence of a program of your own", description=EVIDENCE
        )
    )
    return top


def add_compare(command: argparse.ArgumentParser) -> None:
    """Arguments of `compare`."""
    command.add_argument(
        "--data",
        choices=["both", *STUDIES],
        default="both",
        help="pixels on or off, in 17 shades of grey, or both",
    )
    command.add_argument(
        "--epochs", type=positive, metavar="N", help="at most N passes over the data for every fit"
    )
    command.add_argument(
        "--temperatures",
        type=positive,
        default=80,
        metavar="T",
        help="of annealed importance sampling, for the VAEs [80]",
    )
    command.add_argument(
        "--compile",
        choices=list(COMPILE),
        default="auto",
        help="compile steps and moves: where that pays [auto], always, or never",
    )
    command.add_argument(
        "--quick",
        action="store_true",
        help="few epochs and temperatures: to see that everything works",
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder of the report [results]",
    )
    add_common(command)
    command.set_defaults(run=run_compare)


def add_evidence(command: argparse.ArgumentParser) -> None:
    """Arguments of `evidence`."""
    command.add_argument(
        "program",
        metavar="PROGRAM",
        help="path/to/file.py:name of the program, or of what makes it",
    )
    command.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help=".npy, .npz or .csv; several arrays in an .npz are named arguments",
    )
    command.add_argument(
        "--state", type=Path, metavar="FILE", help="parameters written by program.save"
    )
    command.add_argument(
        "--estimator",
        choices=list(ESTIMATORS),
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
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="also write a report to this folder"
    )
    add_common(command)
    command.set_defaults(run=run_evidence)


def add_common(command: argparse.ArgumentParser) -> None:
    """Arguments of every command."""
    command.add_argument("--seed", type=int, default=0, help="makes the result repeatable [0]")
    command.add_argument(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="threads of torch; small models are fastest with [1]",
    )


def positive(text: str) -> int:
    """A positive integer, or argparse's error."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


positive.__name__ = "positive integer"  # as argparse names it in errors


def run_compare(args: Any) -> int:
    """Fit, compare, print, write."""
    start = time.perf_counter()
    folder = make_folder(args.out)
    budget = Budget(args.temperatures, args.epochs, COMPILE[args.compile])
    names = list(STUDIES) if args.data == "both" else [args.data]
    sections = [
        run_study(STUDIES[name], budget.quick() if args.quick else budget, args.seed)
        for name in names
    ]
    for section in sections:
        print(f"\n{section.title}: {section.note}\n\n{section.comparison}")
    page = write_report(
        folder, sections, heading="Generative models of handwritten digits", seed=args.seed
    )
    print(f"\nreport: {page} ({time.perf_counter() - start:.0f} s)")
    return 0


def run_evidence(args: Any) -> int:
    """Load, estimate, print."""
    folder = None if args.out is None else make_folder(args.out)
    data = load_data(args.data)
    program = load_program(args.program)
    load_state(program, args.state, data)
    result = estimate(program, *arguments(data), args.estimator, args.particles, args.seed)
    table = compare({program_name(args.program): result})
    print(f"{result}\n\n{table}")
    if folder is not None:
        print(
            f"\nreport: {write_report(folder, Section(program_name(args.program), table), seed=args.seed)}"
        )
    return 0
