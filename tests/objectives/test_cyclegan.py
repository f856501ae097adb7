"""CycleGAN: its losses against their formulas, affine translations against their inverses."""

from functools import partial

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

from ppl_dgm import Program, fit
from ppl_dgm.nn import MLP
from ppl_dgm.objectives import CycleGAN
from ppl_dgm.sampling.discrepancies import energy_distance

X = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
Y = 3 + 2 * torch.randn(64, 2, generator=torch.Generator().manual_seed(1))


def way(net: nn.Module, taken: str, drawn: str) -> Program:
    def model(x: Tensor, y: Tensor) -> None:
        given = {"x": x, "y": y}[taken]
        pyro.module("net", net)
        with pyro.plate("data", len(given)):
            pyro.deterministic(drawn, net(given), event_dim=1)

    return Program(model, site=drawn)


def game_of(**settings) -> tuple[Program, Program, CycleGAN]:
    torch.manual_seed(3)
    forward, backward = way(nn.Linear(2, 2), "x", "y"), way(nn.Linear(2, 2), "y", "x")
    game = CycleGAN(backward, MLP(2, [6], 1), MLP(2, [6], 1), **settings)
    forward.initialise(x=X, y=Y)
    game.initialise((), {"x": X, "y": Y})
    return forward, backward, game


def net_of(program: Program) -> nn.Linear:
    return next(m for m in program.modules() if isinstance(m, nn.Linear))


def test_losses_are_their_formulas() -> None:
    forward, backward, game = game_of(cycle=7.0)
    f, g = net_of(forward), net_of(backward)
    d_x, d_y = game.of_x.critic, game.of_y.critic
    losses = {
        player.name: player.objective.differentiable_loss(forward.model, forward.guide, x=X, y=Y)
        for player in game.players(forward)
    }
    cycle = (g(f(X)) - X).abs().mean() + (f(g(Y)) - Y).abs().mean()
    deceive = ((d_y(f(X)) - 1) ** 2).mean() / 2 + ((d_x(g(Y)) - 1) ** 2).mean() / 2
    expected = {
        "forward": 64 * (deceive + 7 * cycle),
        "backward": 64 * (deceive + 7 * cycle),
        "critic_y": 64 * (((d_y(Y) - 1) ** 2).mean() + (d_y(f(X)) ** 2).mean()) / 2,
        "critic_x": 64 * (((d_x(X) - 1) ** 2).mean() + (d_x(g(Y)) ** 2).mean()) / 2,
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    apart = energy_distance(Y, f(X)) + energy_distance(X, g(Y))
    found = game.loss(forward.model, forward.guide, x=X, y=Y)
    assert found == pytest.approx(64 * (apart + 7 * cycle).item(), rel=1e-5)


def test_each_player_moves_its_own_parameters() -> None:
    forward, backward, game = game_of(num_steps=2)
    modules = (forward, backward, game.of_x.critic, game.of_y.critic)
    before = [p.clone() for m in modules for p in m.parameters()]
    found = fit(forward, {"x": X, "y": Y}, game, steps=2, progress=False, compile=False)
    after = [p for m in modules for p in m.parameters()]
    assert all(bool((b != a).any()) for b, a in zip(before, after, strict=True))
    assert {"forward", "backward", "critic_x", "critic_y"} <= found.history.keys()


def test_the_cycle_alone_makes_inverses() -> None:
    forward, backward, game = game_of(cycle=100.0)
    there, back = net_of(forward), net_of(backward)
    with torch.no_grad():  # a way from here on which no map is singular
        there.weight.copy_(torch.eye(2)), back.weight.copy_(2 * torch.eye(2))
    adam = partial(Adam, lr=0.02)
    fit(forward, {"x": X, "y": Y}, game, steps=100, optimizer=adam, progress=False, compile=False)
    assert (back(there(X)) - X).abs().mean() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
def test_a_shift_and_scale_is_found(compile: bool) -> None:
    """Unpaired draws of N(0, 1) and N(1, 2): slope 2 or -2, and the inverse."""
    torch.manual_seed(0)
    x, y = torch.randn(2000, 1), 1 + 2 * torch.randn(2000, 1)
    forward, backward = way(nn.Linear(1, 1), "x", "y"), way(nn.Linear(1, 1), "y", "x")
    critic = partial(MLP, 1, [16], 1)
    adam = partial(Adam, betas=(0.5, 0.99))
    slow, fast = partial(adam, lr=0.005), partial(adam, lr=0.01)
    settings = {"r1": 0.3, "cycle": 1.0, "optimizer": fast, "num_steps": 3}
    game = CycleGAN(backward, critic(), critic(), "hinge", **settings)
    settings = {"steps": 1000, "batch_size": 256, "optimizer": slow, "compile": compile}
    fit(forward, {"x": x, "y": y}, game, progress=False, **settings)
    there, back = net_of(forward), net_of(backward)
    slope, inverse = there.weight.item(), back.weight.item()
    assert abs(slope) == pytest.approx(2, abs=0.3)
    assert slope * inverse == pytest.approx(1, abs=0.1)
    assert there.bias.item() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": X}, "model failed|missing"),
        ({"x": X, "y": Y[:, :1]}, "expected a draw for each datum|shape"),
    ],
)
def test_bad_data_are_refused(data: dict, message: str) -> None:
    forward, _, game = game_of()
    with pytest.raises(ValueError, match=message):
        fit(forward, data, game, steps=1, progress=False, compile=False)


def test_validation_of_single_data_is_refused() -> None:
    """Twice the distance to unpaired data is least for translations that are all alike."""
    forward, _, game = game_of()
    data = {"x": X[:6], "y": Y[:6]}
    settings = {"steps": 1, "valid": data, "valid_every": 1, "progress": False, "compile": False}
    for batch_size in (1, 5):
        with pytest.raises(ValueError, match="batch_size of at least 2"):
            fit(forward, data, game, batch_size=batch_size, **settings)
    assert fit(forward, data, game, batch_size=3, **settings).steps == 1


def test_bad_settings_are_refused() -> None:
    backward = way(nn.Linear(2, 2), "y", "x")
    with pytest.raises(ValueError, match="cycle is -1"):
        CycleGAN(backward, MLP(2, [4], 1), MLP(2, [4], 1), cycle=-1.0)
    forward, backward, _ = game_of()
    game = CycleGAN(backward, MLP(2, [4], 3), MLP(2, [4], 1))
    with pytest.raises(ValueError, match="expected one score"):
        fit(forward, {"x": X, "y": Y}, game, steps=1, progress=False, compile=False)
    with pytest.raises(ValueError, match="both kinds by name"):
        fit(forward, (X, Y), game, steps=1, progress=False, compile=False)
