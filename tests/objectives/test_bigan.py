"""BiGAN: the best critic against the ratio of joint masses, an encoder against its closed form."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_dgm import Program, fit
from ppl_dgm.families import VAE
from ppl_dgm.nn import MLP
from ppl_dgm.objectives import BiGAN

DATA = torch.tensor([0.0] * 4 + [1.0] * 6).unsqueeze(-1)
CODES = torch.tensor([0.0, 0, 0, 1, 0, 1, 1, 1, 1, 1])
LATENTS = torch.tensor([0.0] * 5 + [1.0] * 5)
DRAWS = torch.tensor([0.0, 0, 0, 0, 1, 0, 1, 1, 1, 1]).unsqueeze(-1)


def fixed(values: Tensor) -> Any:
    return dist.Delta(values).mask(False)


def model(x: Tensor | None = None) -> None:
    offset = pyro.param("offset", torch.tensor(0.0))
    with pyro.plate("data", 10):
        pyro.sample("z", fixed(LATENTS))
        pyro.deterministic("x", DRAWS + offset, event_dim=1)


def guide(x: Tensor | None = None) -> None:
    shift = pyro.param("shift", torch.tensor(0.0))
    with pyro.plate("data", 10):
        pyro.sample("z", fixed(CODES + shift))


class Table(nn.Module):
    """A free score for each of the four pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(2, 2))

    def forward(self, pairs: Tensor) -> Tensor:
        x, z = pairs.long().unbind(-1)
        return self.scores[x, z]


def masses(x: Tensor, z: Tensor) -> Tensor:
    return torch.stack(
        [((x.squeeze() == a) & (z == b)).float().mean() for a in (0, 1) for b in (0, 1)]
    )


def test_the_best_critic_is_the_ratio_of_joint_masses() -> None:
    table = Table()
    game, program = BiGAN(table), Program(model, guide).initialise(DATA)
    optimizer = torch.optim.LBFGS(table.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = game.critic_loss(program.model, program.guide, DATA)
        loss.backward()
        return loss

    optimizer.step(closure)
    p, q = masses(DATA, CODES), masses(DRAWS, LATENTS)
    judged = table.scores.sigmoid().flatten()
    assert torch.allclose(judged, p / (p + q), atol=1e-4)


def test_both_maps_are_taught_by_their_own_pairs() -> None:
    """With scores w (x, z): d/d offset of E softplus(-w_x x) and d/d shift of E softplus(w_z z)."""
    critic = nn.Linear(2, 1, bias=False)
    critic.weight.data.copy_(torch.tensor([[0.7, -0.4]]))
    program = Program(model, guide).initialise(DATA)
    BiGAN(critic).generator_loss(program.model, program.guide, DATA).backward()
    with torch.no_grad():
        on_draws = critic(torch.cat([DRAWS, LATENTS.unsqueeze(-1)], 1))
        on_data = critic(torch.cat([DATA, CODES.unsqueeze(-1)], 1))
        expected = {
            "offset": -0.7 * (-on_draws).sigmoid().sum(),
            "shift": -0.4 * on_data.sigmoid().sum(),
        }
    for name, value in expected.items():
        assert torch.allclose(program.get_parameter(name).grad, value, atol=1e-5)


class Gaussian(nn.Module):
    """One latent and one datum, the second normal around an affine map of the first, or back."""

    def __init__(self, decodes: bool) -> None:
        super().__init__()
        self.map, self.decodes = nn.Linear(1, 1), decodes

    def forward(self, x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            if self.decodes:
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.map(z), 0.3).to_event(1), obs=x)
            else:
                pyro.sample("z", dist.Normal(self.map(x - 3), 0.6).to_event(1))


class BestCritic(nn.Module):
    """The log ratio of the joint densities, as the two maps are now."""

    def __init__(self, decode: nn.Linear, encode: nn.Linear) -> None:
        super().__init__()
        self.maps = ((decode, 0.3), (encode, 0.6))

    def forward(self, pairs: Tensor) -> Tensor:
        x, z = pairs.split(1, -1)
        drawn, coded = (
            dist.Normal(given * map.weight[0].detach() + map.bias.detach(), scale)
            for given, (map, scale) in zip((z, x - 3), self.maps, strict=True)
        )
        data = dist.Normal(3.0, 0.5).log_prob(x) + coded.log_prob(z)
        return (data - dist.Normal(0.0, 1.0).log_prob(z) - drawn.log_prob(x)).squeeze(-1)


def test_the_best_critic_teaches_the_posterior() -> None:
    """Of x = 3 + 0.4 z + 0.3 e it is z | x ~ N(1.6 (x - 3), 0.6^2), or both signs turned.

    Independent pairs are a saddle between the two, so that both maps begin on one side of it.
    """
    torch.manual_seed(0)
    decoder, encoder = Gaussian(True), Gaussian(False)
    decoder.map.weight.data.fill_(0.2)
    decoder.map.bias.data.fill_(2.7)
    encoder.map.weight.data.fill_(0.5)
    program = Program(decoder, encoder)
    game = BiGAN(BestCritic(decoder.map, encoder.map))
    optimizer = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.993)
    for _ in range(500):
        x = 3 + 0.5 * torch.randn(500, 1)
        optimizer.zero_grad()
        game.generator_loss(program.model, program.guide, x).backward()
        optimizer.step()
        schedule.step()
    assert decoder.map.weight.item() == pytest.approx(0.4, abs=0.03)
    assert decoder.map.bias.item() == pytest.approx(3.0, abs=0.05)
    assert encoder.map.weight.item() == pytest.approx(1.6, abs=0.1)
    assert encoder.map.bias.item() == pytest.approx(0.0, abs=0.1)


def no_guide(x: Tensor | None = None) -> None:
    with pyro.plate("data", 10):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.deterministic("x", z * pyro.param("scale", torch.tensor(1.0)), event_dim=1)


def coins(x: Tensor | None = None) -> None:
    with pyro.plate("data", 10):
        pyro.sample("z", dist.Bernoulli(pyro.param("rate", torch.tensor(0.5))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (Program(no_guide), BiGAN(MLP(2, [4], 1))), "has no guide.*is the encoder"),
        (lambda: (Program(model, guide), BiGAN(MLP(2, [4], 1), latent="h")), "draws no .*'h'"),
        (lambda: (Program(model, guide), BiGAN(MLP(2, [4], 2))), "expected one score"),
        (lambda: (Program(model, coins), BiGAN(MLP(2, [4], 1))), "Bernoulli without a path"),
    ],
)  # fmt: skip
def test_bad_input(make: Any, message: str) -> None:
    program, game = make()
    with pytest.raises(ValueError, match=message):
        fit(program, DATA, game, steps=2, progress=False, compile=False)


def test_a_vae_is_taught_by_it() -> None:
    torch.manual_seed(0)
    vae = VAE(3, 2, (8,), likelihood="gaussian")
    before = [p.clone() for p in vae.parameters()]
    fit(vae, torch.randn(50, 3), BiGAN(MLP(5, [8], 1)), steps=2, progress=False, compile=False)
    moved = [not torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True)]
    assert all(moved)
