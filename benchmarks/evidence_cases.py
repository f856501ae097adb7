"""Every estimator on programs whose evidence is known.

Value, standard error, z-score and seconds, as a table.

    python benchmarks/evidence_cases.py [case ...]

Without names all cases are run; the table goes to `benchmarks/results/evidence_cases.md`, row by
row, and rows of cases that are not run again are kept. Cases whose data are not at hand are left
out. `evidence_seeds.py` makes the table over seeds.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from provenance import provenance

from ppl_dgm.data.problems import Problem as Case
from ppl_dgm.data.problems.published import published
from ppl_dgm.evidence import (
    BridgeSampling,
    Estimator,
    Laplace,
    LearnedHarmonicMean,
    PriorSampling,
)
from ppl_dgm.evidence.nested import NestedSampling, dynesty
from ppl_dgm.evidence.smc import SMC

ROOT = Path(__file__).resolve().parents[1]
CASES = {case.name: case for case in published()}
TABLE = ROOT / "benchmarks" / "results" / "evidence_cases.md"
HEAD = [
    "# Estimators on programs of known evidence",
    "",
    (
        "Nats. z is the error over the standard error (that of the reference value included). `!` "
        "marks a number that the estimator itself calls unreliable, `withheld` one that it does "
        "not give. Default settings but for the number of draws, seed 0, one thread of a shared "
        "machine."
    ),
    "",
    "| case | truth | estimator | log Z | s.e. | error | z | seconds | |",
    "|---|---|---|---|---|---|---|---|---|",
]
MANY_DRAWS = {
    "dynesty_eggbox": 4_000_000,
    "dynesty_shells_2": 2_000_000,
    "dynesty_gauss3d": 2_000_000,
}
NESTED = ("bs_betabinomial_tutorial", "dynesty_gauss3d")


def estimators(name: str) -> list[Estimator]:
    """What is run on a case."""
    found: list[Estimator] = [
        PriorSampling(num_particles=MANY_DRAWS.get(name, 300_000)),
        Laplace(num_starts=48, num_particles=50_000),
        BridgeSampling(),
        LearnedHarmonicMean(),
        SMC(num_particles=200, num_groups=8),
    ]
    return (
        [*found, NestedSampling(num_live=150, remaining=0.1)]
        if name in NESTED and dynesty is not None
        else found
    )


def row(case: Case, estimator: Estimator) -> str:
    """One line of the table."""
    result = estimator(case.program(), *case.args, seed=0)
    log_z, error = float(result.log_z), float(result.std_error)
    off = log_z - case.log_z
    z = off / math.hypot(error, case.reference_error) if error else math.nan
    mark = "" if result.reliable else "!"
    if math.isnan(log_z):
        return (
            f"| {case.name} | {case.log_z:.4f} | {estimator.name} | withheld | | | | "
            f"{result.seconds:.1f} | ! |"
        )
    return (
        f"| {case.name} | {case.log_z:.4f} | {estimator.name} | {log_z:.4f} | {error:.4f} | "
        f"{off:+.4f} | {z:+.1f} | {result.seconds:.1f} | {mark} |"
    )


def kept_rows(names: Sequence[str], table: Path) -> list[str]:
    """Rows of an earlier table whose cases are not run again."""
    lines = table.read_text().splitlines() if table.exists() else []
    return [
        line
        for line in lines
        if line.startswith("| ") and line.split(" | ")[0][2:] in set(CASES) - set(names)
    ]


def write(table: Path, head: Sequence[str], rows: list[str], seeds: str) -> None:
    """Write a table, rows in the order of the cases."""
    order = list(CASES)
    rows.sort(key=lambda line: order.index(line.split(" | ")[0][2:]))
    table.parent.mkdir(exist_ok=True)
    table.write_text("\n".join([*head, *rows, "", provenance(seeds)]) + "\n")


def once(names: Sequence[str]) -> None:
    """Run the cases once and write their table."""
    rows = kept_rows(names, TABLE)
    for name in names:
        for estimator in estimators(name):
            rows.append(row(CASES[name], estimator))
            print(rows[-1], flush=True)
        write(TABLE, HEAD, rows, "0")


def main() -> None:
    """Run the named cases, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help="names of cases; all by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    once(given.cases or list(CASES))


if __name__ == "__main__":
    main()
