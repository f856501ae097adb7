"""Estimators on programs of known evidence, over seeds.

Bias, coverage, alarms, silent misses and seconds of every estimator:

    python benchmarks/evidence_seeds.py [case ...] [--seeds 10] [--limit 60] [--only auto SMC]

Each run is a process of its own with a time limit. Its row goes to
`benchmarks/results/evidence_seeds.csv` as soon as it is there, and runs that have a row are not
made again; the table of all rows is `evidence_seeds.md` beside it.
"""

import argparse
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from evidence.case_programs import CASES, Case  # noqa: E402
from evidence.kind_programs import KINDS  # noqa: E402
from provenance import provenance  # noqa: E402
from rows import Row, Rows, markdown  # noqa: E402

from ppl_dgm.evidence import (  # noqa: E402
    AdaptiveImportanceSampling,
    BridgeSampling,
    Evidence,
    Laplace,
    LearnedHarmonicMean,
    PriorSampling,
    auto,
)
from ppl_dgm.evidence.nested import NestedSampling  # noqa: E402
from ppl_dgm.evidence.smc import SMC  # noqa: E402
from ppl_dgm.sampling.effort import limited_effort  # noqa: E402

ALL = CASES | {case.name: case for case in KINDS}
RESULTS = ROOT / "benchmarks" / "results" / "evidence_seeds.csv"
MISS = 0.02  # nats
DIGITS = 1e-5  # nats, to which truths and rows are known
MEMBERS: dict[str, Callable[..., Evidence]] = {
    "auto": auto,
    "AdaptiveImportanceSampling": AdaptiveImportanceSampling(),
    "PriorSampling": PriorSampling(num_particles=300_000),
    "Laplace": Laplace(num_starts=48, num_particles=50_000),
    "SMC": SMC(num_particles=200, num_groups=8),
    "BridgeSampling": BridgeSampling(),
    "LearnedHarmonicMean": LearnedHarmonicMean(),
    "NestedSampling": NestedSampling(num_live=150, remaining=0.1, max_calls=30_000),
}
TEXT = """# Estimators on programs of known evidence, over seeds

Nats. Bias is the mean error of the runs that gave a number, and its own standard error; coverage
the share of them within two standard errors of the truth; alarms the share of all runs that the
estimator itself calls unreliable, withholds or refuses; a silent miss is an error above 0.02 nat
and four standard errors without alarm. Seconds are the median of processor time, one thread;
densities, a gradient counted as three, are a median too. `late` runs were stopped at 60 seconds."""
HEAD = (
    "case", "estimator", "seeds", "bias", "mean s.e.", "coverage", "alarms", "silent misses",
    "late", "seconds", "thousand densities",
)  # fmt: skip


def run_once(case: Case, estimator: Callable[..., Evidence], seed: int) -> Row:
    """The row of one run, or of its error."""
    torch.set_num_threads(1)
    start = time.process_time()
    try:
        with limited_effort(math.inf) as effort:
            found = estimator(case.program(), *case.args, seed=seed)
    except Exception as error:  # whatever stops an estimator is what the row tells
        spent = time.process_time() - start
        return row_of("raised", math.nan, math.nan, spent, f"{type(error).__name__}: {error}")
    spent = time.process_time() - start
    status = "fine" if found.reliable else "alarm"
    text = found.estimator + "".join(f"; {warning}" for warning in found.warnings)
    numbers = float(found.total), float(found.total_std_error)
    return row_of(status, *numbers, spent, text, effort.spent)


def row_of(
    status: str, log_z: float, error: float, seconds: float, text: str, densities: float = math.nan
) -> Row:
    """What a run gave, but for its names."""
    numbers = {"log_z": f"{log_z:.6f}", "std_error": f"{error:.6f}", "seconds": f"{seconds:.2f}"}
    counts = {"densities": f"{densities:.0f}"}
    return {"status": status, **numbers, **counts, "text": " ".join(text.split())[:300]}


def send(pipe: Connection, run: Callable[[], Any], limit: int) -> None:
    """Run within a limit of processor time and send the row."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    pipe.send(run())


def limited(run: Callable[[], Row], limit: int) -> Row:
    """The row of a run in a process of its own."""
    receive, give = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("fork").Process(target=send, args=(give, run, limit))
    process.start()
    give.close()
    try:
        return receive.recv()
    except EOFError:
        return row_of("late", math.nan, math.nan, math.nan, "")
    finally:
        process.join()


@dataclass(frozen=True)
class Error:
    """The error of a run, and its standard error."""

    off: float
    scale: float
    silent: bool

    @classmethod
    def of(cls, row: Row, case: Case) -> "Error":
        """From a row."""
        scale = math.hypot(float(row["std_error"]), case.reference_error)
        return cls(float(row["log_z"]) - case.log_z, scale, row["status"] == "fine")

    @property
    def missed(self) -> bool:
        """Whether it is a silent miss."""
        return self.silent and not abs(self.off) <= max(MISS, 4 * self.scale)


def line_of(case: Case, name: str, rows: Sequence[Row]) -> list[str]:
    """One line of the table."""
    errors = [Error.of(row, case) for row in rows]
    known = [e for e in errors if math.isfinite(e.off)]
    count = len(rows)
    alarms = sum(row["status"] in ("alarm", "raised") for row in rows)
    late = sum(row["status"] == "late" for row in rows)
    times = [float(row["seconds"]) for row in rows if row["status"] != "late"]
    seconds = f"{median(times):.1f}" if times else "-"
    counts = [float(row["densities"]) for row in rows if row.get("densities", "nan") != "nan"]
    densities = f"{median(counts) / 1000:,.0f}" if counts else "-"
    misses = str(sum(e.missed for e in errors))
    ends = [f"{alarms}/{count}", misses, str(late), seconds, densities]
    if not known:
        return [case.name, name, str(count), "-", "-", "-", *ends]
    offs = [e.off for e in known]
    spread = f" +- {stdev(offs) / len(offs) ** 0.5:.4f}" if len(offs) > 1 else ""
    covered = sum(abs(e.off) <= 2 * e.scale + DIGITS for e in known)
    scale = mean(e.scale for e in known)
    middle = [f"{mean(offs):+.4f}{spread}", f"{scale:.4f}", f"{covered}/{len(known)}"]
    return [case.name, name, str(count), *middle, *ends]


def write_table(rows: Rows, note: str) -> None:
    """Write the table of all rows, cases in their order."""
    found = rows.read()
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        groups.setdefault((row["case"], row["estimator"]), []).append(row)
    lines = [
        line_of(ALL[case], name, groups[case, name])
        for case in ALL
        for name in MEMBERS
        if (case, name) in groups
    ]
    seeds = 1 + max((int(row["seed"]) for row in found), default=0)
    text = [TEXT, "", markdown(list(HEAD), lines), "", provenance(f"0 to {seeds - 1}")]
    rows.path.with_suffix(".md").write_text(
        "\n".join([*text, *([f"- {note}"] if note else [])]) + "\n"
    )


def wanted(
    cases: Iterable[str], names: Iterable[str], seeds: int
) -> Iterable[tuple[str, str, int]]:
    """The runs, all cases of one estimator and seed together."""
    return ((case, name, seed) for name in names for seed in range(seeds) for case in cases)


def main() -> None:
    """Make missing runs and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", default=[], help="names of cases; all by default")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each; 0 for the table")
    parser.add_argument("--only", nargs="+", default=list(MEMBERS), choices=list(MEMBERS))
    parser.add_argument("--limit", type=int, default=60, help="processor seconds for one run")
    parser.add_argument("--rows", type=Path, default=RESULTS, help="CSV file of the rows")
    parser.add_argument("--note", default="", help="a line that stands under the table")
    given = parser.parse_args()
    rows = Rows(given.rows, ("case", "estimator", "seed"))
    MEMBERS["PriorSampling"](CASES["tfp_ais_loggamma"].program())  # what a first use imports
    for case, name, seed in wanted(given.cases or ALL, given.only, given.seeds):
        if rows.find(case, name, seed) is None:
            once = lambda: run_once(ALL[case], MEMBERS[name], seed)  # noqa: B023, E731
            run = limited(once, given.limit)
            rows.add({"case": case, "estimator": name, "seed": seed, **run})
            print(case, name, seed, run, flush=True)
    write_table(rows, given.note)


if __name__ == "__main__":
    main()
