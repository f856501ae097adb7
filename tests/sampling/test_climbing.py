"""Climbs to modes: steps as long as Armijo's rule allows, in few runs of the program."""

import torch
from torch import Tensor

from ppl_dgm.sampling.climbing import climb
from ppl_dgm.sampling.line_search import ENOUGH, backtrack, double

FLOAT = torch.float64


def quartic(point: Tensor) -> Tensor:
    return -(point**4).sum(-1) - 0.5 * (point * torch.arange(1.0, 4.0).to(point)).square().sum(-1)


def test_each_start_takes_the_longest_step_that_climbs_enough() -> None:
    generator = torch.Generator().manual_seed(0)
    point = 3 * torch.randn(50, 3, generator=generator, dtype=FLOAT)
    direction = -(4 * point**3) * torch.logspace(-3, 4, 50, dtype=FLOAT).unsqueeze(-1)
    promise = (direction * -(4 * point**3)).sum(-1)
    ones, value = torch.ones(50, dtype=FLOAT), quartic(point)
    best, found = backtrack(quartic, point, value, direction, ones, promise, 25)
    for row in range(50):
        lengths = (2.0**-power for power in range(25))
        enough = (
            point[row] + length * direction[row]
            for length in lengths
            if quartic(point[row] + length * direction[row])
            >= value[row] + ENOUGH * length * promise[row]
        )
        assert torch.equal(best[row], next(enough))
    assert torch.equal(found, quartic(best))


def test_a_start_stays_where_no_step_climbs() -> None:
    point, ones = torch.ones(2, 3, dtype=FLOAT), torch.ones(2, dtype=FLOAT)
    up = torch.stack([torch.ones(3), -torch.ones(3)]).to(FLOAT)  # away from the mode, and to it
    best, _ = backtrack(quartic, point, quartic(point), up, ones, 1e-9 * ones, 25)
    assert torch.equal(best[0], point[0])
    assert not torch.equal(best[1], point[1])


def test_steps_are_doubled_as_long_as_they_climb() -> None:
    start = torch.tensor([[1e-4], [0.3], [200.0]], dtype=FLOAT)
    far = lambda point: -(point - 100).abs().sum(-1)  # noqa: E731
    end, value = double(far, torch.zeros_like(start), start, far(start))
    assert torch.allclose(end[:, 0], torch.tensor([1e-4 * 2**20, 0.3 * 2**8, 200.0], dtype=FLOAT))
    assert torch.equal(value, far(end))


def test_a_climb_takes_few_runs() -> None:
    runs = []

    def banana(point: Tensor) -> Tensor:
        runs.append(len(point))
        return -((1 - point[..., 0]) ** 2) - 100 * (point[..., 1] - point[..., 0] ** 2) ** 2

    starts = torch.randn(24, 2, generator=torch.Generator().manual_seed(1), dtype=FLOAT)
    end = climb(banana, starts, 200)
    assert torch.allclose(end, torch.ones(24, 2, dtype=FLOAT), atol=1e-4)
    assert len(runs) < 140  # 172 with one length a run
    assert sum(runs) < 2000  # 3053
