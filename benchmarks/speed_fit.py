"""Speed of `fit` as users call it, beside Pyro's SVI.

    python benchmarks/speed_fit.py [--rounds 5] [--only "eight schools" VAE]

Milliseconds of a step are the difference of two calls of different length, divided by that of their
steps, so that what a call costs before its first step is told apart. Rounds go through all
contenders in turn; the table has medians over rounds, of times and of ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from provenance import provenance
from pyro.infer import SVI
from rows import markdown
from speed_programs import Problem, problems

from ppl_dgm import Program, fit

RATE = 1e-3
SHORT = 20  # steps of the shorter call, those that decide on compiling among them
STEPS = {"eight schools": 400, "mixture, enumerated": 150, "logistic regression": 200}
MORE = 40  # steps by which the longer call is longer, for the others
FASTER = 20  # times as many where compiled steps take microseconds
PAGE = Path(__file__).parent / "results" / "speed_fit.md"


def by_svi(problem: Problem, steps: int) -> float:
    """Seconds of so many steps of Pyro's own."""
    pyro.clear_param_store()
    svi = SVI(*problem.make(), pyro.optim.Adam({"lr": RATE}), problem.loss())  # type: ignore[attr-defined]
    start = time.perf_counter()
    for _ in range(steps):
        svi.step(*problem.data)
    return time.perf_counter() - start


def by_fit(problem: Problem, steps: int, compile: bool) -> float:
    """Seconds of a call of `fit`, less what compiling took."""
    pyro.clear_param_store()
    program = Program(*problem.make())
    start = time.perf_counter()
    found = fit(
        program,
        problem.data,
        steps=steps,
        optimizer=partial(torch.optim.Adam, lr=RATE),
        progress=False,
        compile=compile,
    )
    return time.perf_counter() - start - found.compile_seconds


def per_step(run: Callable[[int], float], more: int) -> tuple[float, float]:
    """Milliseconds of a step, and seconds before the first."""
    short, long = run(SHORT), run(SHORT + more)
    step = max(long - short, 0.0) / more
    return step * 1e3, short - SHORT * step


def measured(name: str, problem: Problem, rounds: int) -> list[str]:
    """The row of a problem."""
    more = STEPS.get(name, MORE)
    faster = more * (FASTER if name in STEPS else 1)
    contenders: dict[str, tuple[Callable[[int], float], int]] = {
        "SVI": (partial(by_svi, problem), more),
        "eager": (partial(by_fit, problem, compile=False), more),
        "compiled": (partial(by_fit, problem, compile=True), faster),
    }
    by_fit(problem, SHORT, True)  # fills the compiler's cache
    found: dict[str, list[tuple[float, float]]] = {one: [] for one in contenders}
    for _ in range(rounds):
        for one, (run, steps) in contenders.items():
            found[one].append(per_step(run, steps))
    cells = [name]
    for one, rows in found.items():
        step = statistics.median(row[0] for row in rows)
        pairs = zip(rows, found["SVI"], strict=True)
        ratio = statistics.median(row[0] / theirs[0] for row, theirs in pairs)
        cells.append(f"{step:.4f}" + ("" if one == "SVI" else f" ({ratio:.3f})"))
    return [*cells, *(f"{statistics.median(r[1] for r in found[c]):.2f}" for c in list(found)[1:])]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen: dict[str, Any] = {
        name: problem for name, problem in problems().items() if not args.only or name in args.only
    }
    rows = [measured(name, problem, args.rounds) for name, problem in chosen.items()]
    head = ["", "Pyro's SVI", "fit, eager", "fit, compiled", "before: eager, s", "compiled, s"]
    note = (
        "Median milliseconds of a step; in brackets, the median ratio to Pyro's. Compiling is left "
        "out; before the first step a fit examines the program, and captures it where it compiles."
    )
    page = [
        "# Speed of fits",
        note,
        markdown(head, rows),
        provenance(f"0, {args.rounds} rounds"),
    ]
    PAGE.write_text("\n\n".join(page) + "\n")
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
