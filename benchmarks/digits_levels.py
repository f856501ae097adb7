"""Flows and PixelCNNs on the bundled 8 x 8 digits of 17 levels: bits per dimension.

Flows are dequantised, so that theirs are bounds; a PixelCNN's are exact:

    python benchmarks/digits_levels.py [--seeds 0 1 2 3 4] [--steps 400] [--only FAMILY ...]

Every row is kept in `benchmarks/results/digits_levels.csv` and not made again; the table is
`benchmarks/results/digits_levels.md`.
"""

import argparse
import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from provenance import provenance
from rows import Row, Rows, markdown
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_dgm import Program, fit
from ppl_dgm.conditionals.likelihoods import DiscretisedLogistic
from ppl_dgm.data import Dataset, load_digits
from ppl_dgm.evidence import ELBO, IWELBO, Exact
from ppl_dgm.families import (
    MAF,
    Dequantised,
    FlowPlusPlus,
    Glow,
    PixelCNN,
    RealNVP,
    VariationalNoise,
)

ROWS = Rows(Path(__file__).parent / "results" / "digits_levels.csv", ("family", "seed", "steps"))
SHAPE, LEVELS, BATCH, RATE, DRAWS = (1, 8, 8), 17, 50, 3e-3, 10
BITS = 64 * math.log(2)
ORDER = ("Flow++", "Glow", "RealNVP")  # from the best to the worst, as published

FAMILIES: dict[str, Callable[[], Program]] = {
    "RealNVP": lambda: Dequantised(RealNVP(SHAPE, 4, [32, 32]), LEVELS),
    "MAF": lambda: Dequantised(MAF(64, 5, [128]), LEVELS),
    "Glow": lambda: Dequantised(Glow(SHAPE, 4, [32, 32]), LEVELS),
    "Flow++": lambda: Dequantised(
        FlowPlusPlus(SHAPE, 2, 16, 4, 1), LEVELS, VariationalNoise(SHAPE, LEVELS, 2, [16])
    ),
    "PixelCNN": lambda: PixelCNN(SHAPE, 32, 5, DiscretisedLogistic(LEVELS, 5)),
}


def learn(program: Program, data: Dataset, steps: int, seed: int) -> int:
    """Fit with a rate that falls to zero; the validation images choose among the steps.

    Returns the number of steps of the parameters that were kept.
    """
    found = fit(
        program,
        data.train.x,
        steps=steps,
        batch_size=BATCH,
        optimizer=lambda parameters: Adam(parameters, RATE),
        schedule=lambda optimizer: CosineAnnealingLR(optimizer, steps),
        clip_norm=1e3,
        valid=data.valid.x,
        valid_every=steps // 5,
        seed=seed,
        progress=False,
        compile=False,
    )
    return int(found.history["valid_step"][found.history["valid"].argmax()])


def bits(evidence: Any) -> float:
    """Bits per dimension of the test images."""
    return -evidence.log_z.mean().item() / BITS


def row(name: str, seed: int, steps: int, data: Dataset) -> dict:
    """Fit one family and measure it."""
    torch.manual_seed(seed)
    begun, program, test = time.process_time(), FAMILIES[name](), data.test.x
    kept = learn(program, data, steps, seed)
    learned = time.process_time() - begun
    if isinstance(program, Dequantised):
        bound = ELBO(DRAWS)(program, test, seed=seed)
        tight = IWELBO(DRAWS, num_replicates=2)(program, test, seed=seed)
    else:
        bound = tight = Exact()(program, test)
    return {
        "family": name,
        "seed": seed,
        "steps": steps,
        "kept": kept,
        "elbo": bits(bound),
        "iwelbo": bits(tight),
        "kind": bound.bound,
        "error": bound.log_z.std().item() / BITS / len(test) ** 0.5,
        "parameters": sum(parameter.numel() for parameter in program.parameters()),
        "seconds": learned,
    }


def column(found: list[Row], name: str, key: str) -> list[float]:
    """One quantity of a family, seed by seed."""
    return [float(row[key]) for row in found if row["family"] == name]


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def cells(found: list[Row], name: str) -> list[str]:
    """A family as the table shows it."""
    kind = next(row["kind"] for row in found if row["family"] == name)
    mark = "= " if kind == "exact" else "≤ "
    numbers = [mark + spread(column(found, name, key)) for key in ("elbo", "iwelbo")]
    counts = (mean(column(found, name, key)) for key in ("parameters", "kept", "seconds"))
    return [name, *numbers, *(f"{count:.0f}" for count in counts)]


def order(found: list[Row]) -> str:
    """Whether the families come in the published order, pair by pair."""
    lines = []
    for better, worse in pairwise(ORDER):
        one, other = (
            {row["seed"]: float(row["elbo"]) for row in found if row["family"] == name}
            for name in (worse, better)
        )
        gains = [one[seed] - other[seed] for seed in one if seed in other]
        if not gains:
            continue
        positive = sum(gain > 0 for gain in gains)
        lines.append(
            f"- {better} < {worse}: in {positive} of {len(gains)} seeds, by {spread(gains)} bits."
        )
    return "\n".join(lines)


def page(found: list[Row], steps: int, data: Dataset) -> str:
    """The table, and the order of the families."""
    note = (
        f"Bits per dimension of {len(data.test)} held-out images (lower is better), mean ± "
        f"standard deviation over seeds; the images themselves make a standard error of "
        f"{mean(float(row['error']) for row in found):.3f} of every number. Flows bound the "
        "probability of levels by dequantisation: ≤ marks upper bounds of the bits, with one and "
        f"with {DRAWS} draws of the noise a datum (uniform noise, but of Flow++ learned). = marks "
        f"exact numbers. At most {steps} Adam steps of {BATCH} of {len(data.train)} images at rate "
        f"{RATE} falling to zero; {len(data.valid)} validation images choose among every "
        f"{steps // 5}th. Where the last were kept, a fit had not "
        "converged, and the order is that of equal steps. Seconds of processor time, eager."
    )
    title = "# Flows and PixelCNNs on the digits of 17 levels"
    told = (
        "Glow and RealNVP differ by less than their seeds do, after 400 steps and after 1600, and "
        "neither has converged: on images of 8 x 8 pixels their order is not seen."
    )
    return "\n\n".join([title, note, table(found), "## The published order", order(found), told])


def table(found: list[Row]) -> str:
    """A line for each family."""
    head = ["", "ELBO", f"IWELBO({DRAWS})", "parameters", "steps kept", "seconds"]
    names = [name for name in FAMILIES if column(found, name, "elbo")]
    return markdown(head, [cells(found, name) for name in names])


def longer(rows: list[Row], steps: int) -> list[str]:
    """Tables of the other numbers of steps, for equal seeds."""
    others = sorted({int(made["steps"]) for made in rows} - {steps})
    parts = []
    for other in others:
        found = [made for made in rows if int(made["steps"]) == other]
        seeds = " ".join(sorted({made["seed"] for made in found}))
        parts += [f"## After {other} steps, seeds {seeds}", table(found), order(found)]
    return parts


def main() -> None:
    """Make the rows that are not there, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = load_digits(LEVELS)
    runs = ((name, seed, asked.steps) for seed in asked.seeds for name in asked.only)
    ROWS.fill(runs, lambda name, seed, steps: row(name, seed, steps, data))
    found = [made for made in ROWS.read() if int(made["steps"]) == asked.steps]
    seeds = " ".join(sorted({made["seed"] for made in found}))
    parts = [page(found, asked.steps, data), *longer(ROWS.read(), asked.steps)]
    text = "\n\n".join([*parts, provenance(seeds)])
    ROWS.path.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
