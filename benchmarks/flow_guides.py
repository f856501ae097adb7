"""Flows as guides and as proposals, on curved and funnel-shaped posteriors of known evidence.

How far the bound of a fitted guide is below the evidence, diagonal normal and flow, and what
`FlowImportanceSampling` finds:

    python benchmarks/flow_guides.py [case ...] [--steps 1000] [--seeds 3]

The table goes to `benchmarks/results/flow_guides.md`, where rows of other cases are kept.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormalizingFlow

from ppl_dgm import Program, evidence, fit
from ppl_dgm.data.problems import Problem, load_all
from ppl_dgm.objectives import ELBO
from ppl_dgm.transforms import Affine, MaskedAutoregressive

TABLE = Path(__file__).resolve().parent / "results" / "flow_guides.md"
CASES = ("banana", "funnel", "eight_schools_posteriordb")
TEXT = """# Flows as guides and as proposals

Nats. A gap is the log evidence less the bound of a guide after so many steps (5000 draws); quarter
tells whether the flow's is at most a quarter of the diagonal's. The flow is of four inverse
autoregressive layers. Errors of `FlowImportanceSampling(20000)` are estimate less truth, its
standard error beside them, `!` where it raises an alarm itself."""


def layers(size: int) -> ComposeTransformModule:
    """Affine autoregressive layers, every other one backwards."""
    orders = (range(size)[:: (-1) ** place] for place in range(4))
    return ComposeTransformModule(
        [MaskedAutoregressive(size, Affine(2.0), [32, 32], order) for order in orders]
    )


GUIDES: dict[str, Callable[[Any], Any]] = {
    "diagonal": lambda model: AutoDiagonalNormal(model, init_scale=0.1),
    "flow": lambda model: AutoNormalizingFlow(model, layers),
}


def gap(problem: Problem, kind: str, steps: int) -> tuple[float, float]:
    """How far the bound of a fitted guide is below the evidence, and its standard error."""
    torch.manual_seed(0)
    program = Program(problem.model, GUIDES[kind](problem.model))
    fit(
        program,
        problem.args,
        ELBO(num_particles=16),
        steps=steps,
        optimizer=lambda parameters: torch.optim.Adam(parameters, 2e-2),
        schedule=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps),
        progress=False,
        seed=0,
        compile=False,  # the compiler takes longer than these steps
    )
    bound = evidence.ELBO(5000)(program, *problem.args, progress=False)
    return problem.log_z - float(bound.log_z), float(bound.std_error)


def found(problem: Problem, seed: int) -> str:
    """Error and standard error of the flow proposal."""
    estimator = evidence.FlowImportanceSampling(20_000)
    result = estimator(problem.program(), *problem.args, seed=seed, progress=False)
    error = float(result.log_z) - problem.log_z
    return f"{error:+.4f} +- {float(result.std_error):.4f}{'' if result.reliable else ' !'}"


def kept(names: Sequence[str]) -> list[str]:
    """Rows of an earlier table whose cases are not run again."""
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    others = [f"| {name} |" for name in CASES if name not in names]
    return [line for line in lines if line.startswith(tuple(others))]


def main() -> None:
    """Fit the guides, run the estimator and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", default=CASES, help="all by default")
    parser.add_argument("--steps", type=int, default=1000, help="of each fit")
    parser.add_argument("--seeds", type=int, default=3, help="runs of the estimator")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    seeds = range(given.seeds)
    head = [
        "case",
        "steps",
        "diagonal's gap",
        "flow's gap",
        "quarter",
        *(f"seed {seed}" for seed in seeds),
    ]
    lines = [TEXT, "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += kept(given.cases)
    for name in given.cases:
        problem = load_all()[name]
        gaps = [gap(problem, kind, given.steps) for kind in GUIDES]
        (diagonal, _), (flow, _) = gaps
        cells = [name, str(given.steps), *(f"{value:.4f} +- {error:.4f}" for value, error in gaps)]
        cells += ["yes" if flow <= diagonal / 4 else "no", *(found(problem, s) for s in seeds)]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    TABLE.write_text("\n".join([*lines, "", provenance(f"0 to {given.seeds - 1}")]) + "\n")


if __name__ == "__main__":
    main()
