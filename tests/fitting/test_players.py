"""Fits of several players: each moves its own parameters, and all else is as for one."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from ppl_dgm import NonFiniteError, Program, fit
from ppl_dgm.fitting import CheckpointFile, EarlyStopping
from ppl_dgm.objectives import Game, Goal, Player

X = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 1.5 + 2
quietly = partial(fit, progress=False, compile=False)
sgd = partial(torch.optim.SGD, lr=0.05)


def located(x: Tensor | None = None) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


class Leader(nn.Module):
    """A number that goes where the data are."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.tensor(1.0))


class Chase(Game):
    """The leader minimises (place - x)^2; the program's loc, ahead of place^2 / 4, follows it."""

    def __init__(self, **leader: Any) -> None:
        super().__init__()
        self.ema = leader.pop("ema", None)
        self.leader, self.settings = Leader(), leader

    def players(self, module: nn.Module | None) -> tuple[Player, ...]:
        return (
            Player("follower", module, Goal(self.follow), ema=self.ema),
            Player("leader", self.leader, Goal(self.lead), **self.settings),
        )

    def follow(self, model: Callable, guide: Callable, x: Tensor) -> Tensor:
        loc = poutine.trace(model).get_trace(x).nodes["loc"]["value"]
        return len(x) * (loc - self.leader.place.square() / 4).square()

    def lead(self, model: Callable, guide: Callable, x: Tensor) -> Tensor:
        return (self.leader.place - x).square().sum()

    def loss(self, model: Callable, guide: Callable, x: Tensor) -> float:
        loc = poutine.trace(model).get_trace(x).nodes["loc"]["value"]
        return float((loc - x).square().sum())


def recursion(rounds: int, leads: int = 1, rate: float = 0.05) -> tuple[float, float]:
    """The same game by hand: loc and place after so many rounds on all data."""
    loc, place, mean = 0.0, 1.0, X.mean().item()
    for _ in range(rounds):
        for _ in range(leads):
            place -= rate * 2 * (place - mean)
        loc -= 0.05 * 2 * (loc - place**2 / 4)
    return loc, place


def places(program: Program, game: Chase) -> tuple[float, float]:
    return program.get_parameter("loc").item(), game.leader.place.item()


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_players_move_in_turn_the_last_one_first(compile: bool) -> None:
    program, game = Program(located), Chase(num_steps=3)
    result = quietly(program, X, game, steps=20, optimizer=sgd, compile=compile)
    assert places(program, game) == pytest.approx(recursion(20, leads=3), rel=1e-5)
    assert (result.compile_seconds > 0) is compile


def test_each_has_its_own_optimiser_and_schedule() -> None:
    schedule = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: float(step < 6))
    game = Chase(num_steps=2, optimizer=partial(torch.optim.SGD, lr=0.2), schedule=schedule)
    program = Program(located)
    quietly(program, X, game, steps=9, optimizer=sgd)
    place = recursion(3, leads=2, rate=0.2)[1]  # six steps, and then it stands
    loc = recursion(3, leads=2, rate=0.2)[0]
    for _ in range(6):
        loc -= 0.1 * (loc - place**2 / 4)
    assert places(program, game) == pytest.approx((loc, place), rel=1e-5)


def test_every_step_of_a_round_has_a_minibatch_of_its_own() -> None:
    """Four minibatches an epoch, three in a round.

    The leader sees them in the order of the deal.
    """
    seen: list[list[Tensor]] = [[], []]

    class Watched(Chase):
        def lead(self, model: Callable, guide: Callable, x: Tensor) -> Tensor:
            seen[0].append(x)
            return super().lead(model, guide, x)

        def follow(self, model: Callable, guide: Callable, x: Tensor) -> Tensor:
            seen[1].append(x)
            return super().follow(model, guide, x)

    result = quietly(Program(located), X, Watched(num_steps=3), epochs=3, batch_size=3)
    assert result.steps == 4  # three epochs of four minibatches, in rounds of three
    assert torch.equal(torch.cat(seen[0][:4]).sort().values, X.sort().values)
    assert len(seen[0]) == 12
    assert all(torch.equal(one, two) for one, two in zip(seen[0][::3], seen[1], strict=True))


def test_history_has_the_objective_of_each_player() -> None:
    program, game = Program(located), Chase(num_steps=2)
    history = quietly(program, X, game, steps=3, optimizer=sgd).history
    assert torch.equal(history["objective"], history["follower"])
    place, mean = 1.0, X.mean().item()
    steps = []
    for _ in range(6):
        steps.append(-(X - place).square().mean().item())
        place -= 0.1 * (place - mean)
    rounds = [sum(steps[k : k + 2]) / 2 for k in (0, 2, 4)]
    assert history["leader"].tolist() == pytest.approx(rounds, rel=1e-5)
    assert history["leader"].dtype == torch.float64


def test_a_fit_of_one_has_no_players_in_its_history() -> None:
    assert set(quietly(Program(located), X, steps=2).history) == {"step", "objective"}


# ---- validation and checkpoints ------------------------------------------------------------------


def test_early_stopping_restores_all_players() -> None:
    """The follower runs through the validation data's mean while the leader is on its way."""
    valid = torch.full((4,), 0.5)
    program, game = Program(located), Chase()
    result = quietly(
        program,
        X,
        game,
        steps=500,
        optimizer=sgd,
        valid=valid,
        valid_every=1,
        callbacks=[EarlyStopping(5)],
    )
    best = int(result.history["valid"].argmax()) + 1
    assert result.stopped == "early"
    assert result.steps == best + 5
    assert places(program, game) == pytest.approx(recursion(best), rel=1e-5)


def test_plateaus_lower_the_rates_of_all_players() -> None:
    made = []

    def plateau(optimizer: torch.optim.Optimizer) -> Any:
        made.append(optimizer)
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)

    settings = {"valid": torch.full((2,), -9.0), "valid_every": 1, "schedule": plateau}
    quietly(Program(located), X, Chase(), steps=3, optimizer=sgd, **settings)
    assert [optimizer.param_groups[0]["lr"] for optimizer in made] == [0.0125, 0.0125]


@pytest.mark.parametrize("interrupted_at", [1, 4])
def test_resuming_is_bit_exact(tmp_path: Path, interrupted_at: int) -> None:
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.5)
    settings = {"batch_size": 5, "schedule": halving}
    settings |= {"optimizer": partial(torch.optim.Adam, lr=0.05), "valid": X, "valid_every": 2}
    make = partial(Chase, num_steps=2, ema=0.5)
    ends = []
    for name, first in (("whole.pt", 7), ("half.pt", interrupted_at)):
        settings |= {"callbacks": [CheckpointFile(tmp_path / name, every=1)]}
        quietly(Program(located), X, make(), steps=first, **settings)
        program, game = Program(located), make()
        result = quietly(program, X, game, steps=7, **settings)
        average = result.averages["follower"].get_parameter("loc").item()
        ends.append((*places(program, game), average))
    assert ends[0] == ends[1]


def test_a_checkpoint_is_of_one_game(tmp_path: Path) -> None:
    quietly(Program(located), X, Chase(), steps=2, checkpoint=tmp_path / "c.pt")
    with pytest.raises(
        ValueError, match=r"of another fit: .*steps in a round of leader is 2, not 1"
    ):
        quietly(Program(located), X, Chase(num_steps=2), steps=4, checkpoint=tmp_path / "c.pt")


def test_an_average_is_kept_up_to_date() -> None:
    """Halfway between the old average and the new value, after every step but the first."""
    program, game = Program(located), Chase(ema=0.5)
    averages = quietly(program, X, game, steps=4, optimizer=sgd).averages
    locs = [recursion(step)[0] for step in (1, 2, 3, 4)]
    expected = locs[0]
    for loc in locs[1:]:
        expected = (expected + loc) / 2
    assert averages["follower"].get_parameter("loc").item() == pytest.approx(expected, rel=1e-5)
    assert averages["follower"].sample(3).shape == (3,)


# ---- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nan_names_the_player(compile: bool) -> None:
    class Falling(Chase):
        def lead(self, model: Callable, guide: Callable, x: Tensor) -> Tensor:
            return len(x) * (self.leader.place + 0.0 * (self.leader.place - 0.87).sqrt())

    program, game = Program(located), Falling()
    with pytest.raises(
        NonFiniteError, match=r"the player 'leader' .*at step 3 .*gradients of \['leader.place'\]"
    ) as caught:
        quietly(program, X, game, steps=9, optimizer=sgd, compile=compile)
    kept = caught.value.fit
    assert kept.steps == 3
    assert len(kept.history["objective"]) == len(kept.history["leader"]) == 3
    assert game.leader.place.item() == pytest.approx(0.85)
    assert math.isfinite(program.get_parameter("loc").item())


def test_players_that_share_parameters_are_refused() -> None:
    class Shared(Chase):
        def players(self, module: nn.Module | None) -> tuple[Player, ...]:
            follower, leader = super().players(module)
            both = nn.ModuleList([module, self.leader])
            return Player("follower", both, follower.objective), leader

    program, game = Program(located).initialise(X), Shared()
    with pytest.raises(ValueError, match=r"'follower' and 'leader' share .*shape \(\).*deepcopy"):
        quietly(program, X, game, steps=2)
    assert places(program, game) == (0.0, 1.0)
    game.leader.requires_grad_(False)
    with pytest.raises(ValueError, match="the player 'leader' has no parameters to fit"):
        quietly(program, X, game, steps=2)


@pytest.mark.parametrize("num_steps", [0, 1.5])
def test_numbers_of_steps_are_checked(num_steps: Any) -> None:
    with pytest.raises(ValueError, match="num_steps.* is .* (at least 1|a whole number)"):
        quietly(Program(located), X, Chase(num_steps=num_steps), steps=2)


def test_names_are_checked() -> None:
    class Twins(Chase):
        def players(self, module: nn.Module | None) -> tuple[Player, ...]:
            return tuple(Player("twin", p.module, p.objective) for p in super().players(module))

    with pytest.raises(ValueError, match=r"named \['twin', 'twin'\]; give each a name"):
        quietly(Program(located), X, Twins(), steps=2)


# ---- Pyro's SVI ----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_program", [False, True])
def test_svi_moves_all_players_at_once(as_program: bool) -> None:
    game = Chase()
    program = Program(located).initialise(X)
    model = program.model if as_program else located
    with pyro.get_param_store().scope():
        svi = pyro.infer.SVI(model, lambda x: None, pyro.optim.SGD({"lr": 0.05}), loss=game)
        losses = [svi.step(X) for _ in range(5)]
        loc = program.get_parameter("loc") if as_program else pyro.param("loc")
    hand, place, mean = 0.0, 1.0, X.mean().item()
    for loss in losses:
        assert loss == pytest.approx(12 * (hand - place**2 / 4) ** 2, rel=1e-4)
        hand, place = (
            hand - 0.05 * 24 * (hand - place**2 / 4),
            place - 0.05 * 24 * (place - mean),
        )
    assert loc.item() == pytest.approx(hand, rel=1e-4)
    assert game.leader.place.item() == pytest.approx(place, rel=1e-4)


def test_svi_keeps_no_average() -> None:
    with pyro.get_param_store().scope():
        svi = pyro.infer.SVI(located, lambda x: None, pyro.optim.SGD({"lr": 0.1}), Chase(ema=0.5))
        with pytest.raises(ValueError, match=r"use ppl_dgm\.fit, or leave out ema"):
            svi.step(X)


def test_decays_are_checked() -> None:
    with pytest.raises(ValueError, match="ema is 1.0; expected a decay"):
        quietly(Program(located), X, Chase(ema=1.0), steps=2)
