"""A fast student distilled from a slow teacher, on series of 64 steps.

The series are an oscillator whose noise grows with its state. The teacher is a masked
autoregressive flow fitted to them, the student an inverse one fitted to the teacher alone:

    python benchmarks/distillation.py [--steps 3000]

The table goes to `benchmarks/results/distillation.md`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from provenance import provenance
from torch import Tensor, nn
from torch.distributions import Normal

from ppl_dgm import fit
from ppl_dgm.families import IAF, MAF, Flow
from ppl_dgm.objectives import ReverseKL

TABLE = Path(__file__).resolve().parent / "results" / "distillation.md"
DIMS, DRAWS, REPEATS = 64, 256, 5


def series(num: int) -> tuple[Tensor, Tensor]:
    """Series `[num, 64]` and their true log density, nats per dimension."""
    before, now = torch.zeros(num), torch.zeros(num)
    steps, scores = [], []
    for _ in range(DIMS):
        law = Normal(1.6 * now - 0.9 * before, 0.3 + 0.3 * now.tanh().abs())
        before, now = now, law.sample()
        steps.append(now)
        scores.append(law.log_prob(now))
    return torch.stack(steps, -1), torch.stack(scores, -1).sum(-1) / DIMS


def adam(rate: float, steps: int) -> dict[str, Callable]:
    """Adam whose rate falls to zero."""
    return {
        "optimizer": lambda parameters: torch.optim.Adam(parameters, rate),
        "schedule": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps),
    }


@torch.no_grad()
def seconds(flow: Flow) -> float:
    """The least time of drawing `DRAWS` data."""
    times, law = [], flow.eval().distribution()
    for _ in range(REPEATS):
        start = time.perf_counter()
        law.sample((DRAWS,))
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
    parser.add_argument("--steps", type=int, default=3000, help="of distillation")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train, test = series(20_000)[0], series(2000)
    teacher, student = MAF(DIMS, 5, [128], 0, nn.Tanh), IAF(DIMS, 5, [128], 0, nn.Tanh)
    quick = {"batch_size": 128, "progress": False, "seed": 0}
    fit(teacher, train, steps=1500, **adam(2e-3, 1500), **quick)
    start = teacher.sample(2000)
    fit(student, start, ReverseKL(teacher), steps=given.steps, **adam(2e-3, given.steps), **quick)
    gap, error = divergence(student, teacher)
    truth = float(test[1].mean())
    new, old = ([score(flow, x) for flow in (teacher, student)] for x in (test[0], start))
    slow, fast = seconds(teacher), seconds(student)
    lines = [
        "# Density distillation, 64 dimensions",
        "",
        "Nats per dimension. Seconds are the least of five draws of 256 series, one thread.",
        "",
        "| | teacher, MAF | student, IAF |",
        "|---|---|---|",
        f"| log p of new series, {truth:.3f} in truth | {new[0]:.3f} | {new[1]:.3f} |",
        f"| log p of the teacher's draws | {old[0]:.3f} | {old[1]:.3f} |",
        f"| KL(student, teacher) | 0 | {gap:.4f} +- {error:.4f} |",
        f"| seconds for 256 draws | {slow:.4f} | {fast:.5f} |",
        f"| times as fast | 1 | {slow / fast:.0f} |",
        "",
        provenance("0"),
    ]
    TABLE.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
