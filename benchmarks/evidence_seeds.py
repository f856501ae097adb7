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
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from rows import Row, Rows, markdown

from ppl_dgm.data.problems import Outcome, Problem, load_all, run_problem, summarise
from ppl_dgm.evidence import (
    AdaptiveImportanceSampling,
    BridgeSampling,
    Evidence,
    Laplace,
    LearnedHarmonicMean,
    PriorSampling,
    auto,
)
from ppl_dgm.evidence.nested import NestedSampling
from ppl_dgm.evidence.smc import SMC

ROOT = Path(__file__).resolve().parents[1]
ALL = load_all()
RESULTS = ROOT / "benchmarks" / "results" / "evidence_seeds.csv"
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


def run_once(problem: Problem, estimator: Callable[..., Evidence], seed: int) -> Row:
    """The row of one run, or of its error."""
    torch.set_num_threads(1)
    found = run_problem(problem, estimator, seed)
    numbers = found.log_z, found.std_error, found.seconds
    return row_of(found.status, *numbers, found.text, found.densities)


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


def outcome_of(row: Row) -> Outcome:
    """What a row tells."""
    problem = ALL[row["case"]]
    numbers = (float(row[name]) for name in ("log_z", "std_error", "seconds"))
    log_z, std_error, seconds = numbers
    return Outcome(
        row["case"],
        row["estimator"],
        int(row["seed"]),
        row["status"],
        log_z,
        std_error,
        seconds,
        row["text"],
        problem.log_z,
        problem.reference_error,
        float(row.get("densities") or "nan"),
    )


def line_of(names: tuple[str, str], found: Any) -> list[str]:
    """One line of the table."""
    count, seconds = int(found.seeds), found.seconds
    ends = [f"{int(found.alarms)}/{count}", str(int(found.missed)), str(int(found.late))]
    ends.append(f"{seconds:.1f}" if math.isfinite(seconds) else "-")
    thousands = found.densities / 1000
    ends.append(f"{thousands:,.0f}" if math.isfinite(thousands) else "-")
    if not found.numbers:
        return [*names, str(count), "-", "-", "-", *ends]
    spread = f" +- {found.bias_error:.4f}" if math.isfinite(found.bias_error) else ""
    covered = f"{int(found.covered)}/{int(found.numbers)}"
    middle = [f"{found.bias:+.4f}{spread}", f"{found.std_error:.4f}", covered]
    return [*names, str(count), *middle, *ends]


def write_table(rows: Rows, note: str) -> None:
    """Write the table of all rows, cases in their order."""
    found = rows.read()
    table = summarise(map(outcome_of, found))
    wanted = [(case, name) for case in ALL for name in MEMBERS if (case, name) in table.index]
    lines = [line_of(names, table.loc[names]) for names in wanted]
    seeds = 1 + max((int(row["seed"]) for row in found), default=0)
    text = [TEXT, "", markdown(list(HEAD), lines), "", provenance(f"0 to {seeds - 1}")]
    rows.path.with_suffix(".md").write_text(
        "\n".join([*text, *([f"- {note}"] if note else [])]) + "\n"
    )


def runs(cases: Iterable[str], names: Iterable[str], seeds: int) -> Iterable[tuple[str, str, int]]:
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
    MEMBERS["PriorSampling"](ALL["tfp_ais_loggamma"].program())  # what a first use imports
    for case, name, seed in runs(given.cases or ALL, given.only, given.seeds):
        if rows.find(case, name, seed) is None:
            once = lambda: run_once(ALL[case], MEMBERS[name], seed)  # noqa: B023, E731
            run = limited(once, given.limit)
            rows.add({"case": case, "estimator": name, "seed": seed, **run})
            print(case, name, seed, run, flush=True)
    write_table(rows, given.note)


if __name__ == "__main__":
    main()
