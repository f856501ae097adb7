"""A fast student distilled from a slow teacher, on the 64 pixels of the bundled digits.

The teacher is a masked autoregressive flow fitted to data, the student an inverse one fitted to the
teacher alone:

    python benchmarks/distillation.py [--steps 4000]

The table goes to `benchmarks/results/distillation.md`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from provenance import provenance
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ppl_dgm import fit
from ppl_dgm.families import IAF, MAF, Flow
from ppl_dgm.objectives import ReverseKL

TABLE = Path(__file__).resolve().parent / "results" / "distillation.md"
DIMS, DRAWS, REPEATS = 64, 64, 5


def digits() -> tuple[Tensor, Tensor]:
    """Train and test images `[N, 64]` with uniform noise, in units of sixteen levels."""
    levels = torch.from_numpy(load_digits().data).float()
    generator = torch.Generator().manual_seed(0)
    levels = levels[torch.randperm(len(levels), generator=generator)]
    data = (levels + torch.rand(levels.shape, generator=generator)) / 16
    return data[:1400], data[1400:]


def adam(rate: float, steps: int) -> dict[str, Callable]:
    """Adam whose rate falls to zero."""
    return {
        "optimizer": lambda parameters: torch.optim.Adam(parameters, rate),
        "schedule": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps),
    }


def seconds(flow: Flow) -> float:
    """The least time of drawing `DRAWS` data."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        flow.sample(DRAWS)
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def divergence(student: Flow, teacher: Flow, num: int = 4000) -> tuple[float, float]:
    """KL(student || teacher) and its standard error, nats per dimension."""
    x, log_q = student.eval().distribution().rsample_and_log_prob((num,))
    gap = (log_q - teacher.eval().distribution().log_prob(x)) / DIMS
    return float(gap.mean()), float(gap.std() / num**0.5)


@torch.no_grad()
def score(flow: Flow, x: Tensor) -> float:
    """Mean log density, nats per dimension."""
    return float(flow.eval().distribution().log_prob(x).mean()) / DIMS


def main() -> None:
    """Fit both and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000, help="of distillation")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train, test = digits()
    teacher, student = MAF(DIMS, 5, [128], 0, nn.Tanh), IAF(DIMS, 5, [128], 0, nn.Tanh)
    quick = {"batch_size": 128, "progress": False, "seed": 0}
    fit(teacher, train, steps=1000, **adam(2e-3, 1000), **quick)
    start = teacher.sample(2000)
    fit(student, start, ReverseKL(teacher), steps=given.steps, **adam(2e-3, given.steps), **quick)
    gap, error = divergence(student, teacher)
    slow, fast = seconds(teacher), seconds(student)
    lines = [
        "# Density distillation, 64 dimensions",
        "",
        "Nats per dimension. Seconds are the least of five draws of 64 data, one thread.",
        "",
        "| | teacher, MAF | student, IAF |",
        "|---|---|---|",
        f"| log p of test images | {score(teacher, test):.3f} | {score(student, test):.3f} |",
        f"| log p of its draws | {score(teacher, start):.3f} | {score(student, start):.3f} |",
        f"| KL(student, teacher) | 0 | {gap:.4f} +- {error:.4f} |",
        f"| seconds for 64 draws | {slow:.4f} | {fast:.5f} |",
        f"| times as fast | 1 | {slow / fast:.0f} |",
        "",
        provenance("0"),
    ]
    TABLE.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
