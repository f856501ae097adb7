"""The Dirac-GAN, whose cycles and rest are known, and curves of known swings.

Mescheder et al. (2018), "Which training methods for GANs do actually converge?": data at 0, draws
at theta, the critic psi x. Unregularised steps circle around the equilibrium, R1 leads there.
"""

from functools import partial
from pathlib import Path

import pyro
import pytest
import torch
from torch import Tensor, nn

from ppl_dgm import Program, fit
from ppl_dgm.families import Generator
from ppl_dgm.fitting import Fit
from ppl_dgm.fitting.settling import restless, swings
from ppl_dgm.nn import MLP
from ppl_dgm.objectives import GAN

SGD = partial(torch.optim.SGD, lr=0.2)


class Point(nn.Module):
    """A generator of one point."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: Tensor | None = None) -> Tensor:
        size = 1 if x is None else len(x)
        with pyro.plate("data", size):
            return pyro.deterministic("x", self.theta.expand(size, 1), event_dim=1)


class Slope(nn.Module):
    """A linear critic."""

    def __init__(self) -> None:
        super().__init__()
        self.psi = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.psi


def dirac(r1: float, noise: float = 0.0, loss: str = "minimax", **settings: object) -> Fit:
    data = noise * torch.randn(8, 1, generator=torch.Generator().manual_seed(0))
    game = GAN(Slope(), loss, r1=r1, gradient_penalty=0.0)
    every = {"steps": 300, "optimizer": SGD, "compile": False, "progress": False} | settings
    return fit(Program(Point()), data, game, **every)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "noise"),
    [
        pytest.param("minimax", 0.0, marks=pytest.mark.slow),
        ("minimax", 0.1),
        pytest.param("wasserstein", 0.0, marks=pytest.mark.slow),
        pytest.param("wasserstein", 0.1, marks=pytest.mark.slow),
    ],
)
def test_a_game_that_cycles_is_told_of_and_one_that_rests_is_not(loss: str, noise: float) -> None:
    settings = {"loss": loss, "noise": noise, "batch_size": 4}
    circles, rests = dirac(0.0, **settings), dirac(1.0, **settings)  # type: ignore[arg-type]
    assert not circles.settled
    assert any("has not settled" in note and "critic" in note for note in circles.notes)
    assert rests.settled
    assert not any("settled" in note for note in rests.notes)
    assert abs(rests.program.model.fn.theta) < 0.1 + noise  # type: ignore[union-attr]


def test_the_verdict_is_kept_in_files_and_sees_validation(tmp_path: Path) -> None:
    settings = {"valid": torch.zeros(8, 1), "valid_every": 2}
    found = dirac(0.0, **settings)  # type: ignore[arg-type]
    assert restless(found.history) == ["critic", "generator", "valid"]
    found.save(tmp_path / "fit.safetensors")
    assert not Fit.load(tmp_path / "fit.safetensors", Program(Point())).settled


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_usual_game_settles(seed: int) -> None:
    torch.manual_seed(seed)
    game = GAN(MLP(1, [16], 1), r1=0.5)
    adam = partial(torch.optim.Adam, lr=0.002, betas=(0.5, 0.9))
    settings = {"batch_size": 100, "optimizer": adam, "compile": False, "progress": False}
    data = 3 + torch.randn(500, 1)
    found = fit(Generator(MLP(1, [16], 1), 1, 1), data, game, steps=800, **settings)  # type: ignore[arg-type]
    assert found.settled, found.notes


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (lambda t: (0.3 * t).sin(), True),
        (lambda t: (0.3 * t).sin() * (1 + t / 400), True),  # growing
        (lambda t: (0.3 * t).sin() + 0.3 * torch.randn(len(t)), True),
        (lambda t: (0.3 * t).sin() * (-t / 60).exp(), False),
        (lambda t: 0.2 * (0.3 * t).sin() + torch.randn(len(t)), False),  # below the noise
        (lambda t: torch.randn(len(t)), False),
        (lambda t: 10 * (-t / 50).exp() + 0.1 * (0.3 * t).sin(), False),  # small beside the descent
        (lambda t: -t, False),  # a drift: `improving` tells
        (lambda t: torch.zeros(len(t)), False),
        (lambda t: torch.where(t > 100, torch.nan, (0.3 * t).sin()), False),
        (lambda t: (0.3 * t[:50]).sin(), False),  # too short to tell
    ],
)
def test_curves(curve: object, expected: bool) -> None:
    torch.manual_seed(0)
    assert swings(curve(torch.arange(400.0))) is expected  # type: ignore[operator]


def test_fits_of_one_objective_have_no_game() -> None:
    assert restless({"step": torch.arange(400.0), "objective": torch.arange(400.0).sin()}) == []
