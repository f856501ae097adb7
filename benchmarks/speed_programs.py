"""The five programs of the speed table, in Pyro and hand-written torch.

`speed_numpyro.py` has them in NumPyro.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.nn import functional as F

EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
ERRORS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


@dataclass(frozen=True)
class Problem:
    """One row of the table.

    `make()` gives a fresh model and guide, `data` their arguments, `loss` the class of Pyro's loss;
    `torch_loss()` gives parameters and a function of the data, the same loss written in torch
    alone.
    """

    make: Callable[[], tuple[Callable, Callable]]
    data: tuple[Tensor, ...]
    loss: Callable[[], ELBO]
    torch_loss: Callable[[], tuple[list[Tensor], Callable[..., Tensor]]]


def arrays(seed: int = 0) -> dict[str, tuple[np.ndarray, ...]]:
    """The data of all problems, float32, from numpy so that every library sees the same."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((10_000, 50)).astype("f")
    logits = features @ rng.standard_normal(50).astype("f")
    return {
        "eight schools": (),
        "mixture, enumerated": (
            (rng.standard_normal(1000) + 4.0 * rng.integers(0, 3, 1000)).astype("f"),
        ),
        "logistic regression": (
            features,
            (rng.random(10_000) < 1 / (1 + np.exp(-logits))).astype("f"),
        ),
        "VAE": ((rng.random((100, 784)) < 0.13).astype("f"),),
        "MADE": ((rng.random((100, 784)) < 0.13).astype("f"),),
    }


def problems(seed: int = 0) -> dict[str, Problem]:
    """All problems by name."""
    data = {name: tuple(map(torch.from_numpy, values)) for name, values in arrays(seed).items()}
    enum = partial(TraceEnum_ELBO, max_plate_nesting=1)
    rows = {
        "eight schools": (schools, Trace_ELBO, schools_torch),
        "mixture, enumerated": (mixture, enum, mixture_torch),
        "logistic regression": (regression, Trace_ELBO, regression_torch),
        "VAE": (vae, Trace_ELBO, vae_torch),
        "MADE": (made, Trace_ELBO, made_torch),
    }
    return {
        name: Problem(make, data[name], loss, by_hand)
        for name, (make, loss, by_hand) in rows.items()
    }


# ---- Pyro ----------------------------------------------------------------------------------------


def schools() -> tuple[Callable, Callable]:
    effects, errors = torch.tensor(EFFECTS), torch.tensor(ERRORS)

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.HalfCauchy(5.0))
        with pyro.plate("data", 8):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mean + scale * effect, errors), obs=effects)

    return model, AutoNormal(model)


def mixture() -> tuple[Callable, Callable]:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("components", 3):
            locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[z], scale), obs=x)

    return model, AutoNormal(poutine.block(model, hide=["z"]))


def regression() -> tuple[Callable, Callable]:
    def model(features: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(50), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", y.shape[0]):
            pyro.sample("x", dist.Bernoulli(logits=features @ w + b), obs=y)

    return model, AutoNormal(model)


class Encoder(nn.Module):
    """784-200-200 tanh, with heads for mean and scale of 50 latents."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(784, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())
        self.loc, self.log_scale = nn.Linear(200, 50), nn.Linear(200, 50)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(x)
        return self.loc(hidden), self.log_scale(hidden).exp()


def decoder() -> nn.Module:
    return nn.Sequential(
        nn.Linear(50, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 784)
    )


def vae() -> tuple[Callable, Callable]:
    encode, decode = Encoder(), decoder()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decode)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(50), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encode)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(*encode(x)).to_event(1))

    return model, guide


class MaskedNet(nn.Module):
    """MADE with one hidden layer of 500 units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(784, 500), nn.Linear(500, 784)
        hidden, inputs = torch.arange(500) % 783, torch.arange(784)
        self.register_buffer("mask1", (hidden[:, None] >= inputs).float())
        self.register_buffer("mask2", (inputs[:, None] > hidden).float())

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(F.linear(x, self.first.weight * self.mask1, self.first.bias))
        return F.linear(hidden, self.second.weight * self.mask2, self.second.bias)


def made() -> tuple[Callable, Callable]:
    net = MaskedNet()

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Bernoulli(logits=net(x)).to_event(1), obs=x)

    return model, lambda x: None


# ---- torch alone ---------------------------------------------------------------------------------

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def normal(x: Tensor, loc: Any, scale: Any) -> Tensor:
    log_scale = torch.log(scale) if isinstance(scale, Tensor) else math.log(scale)
    return -0.5 * ((x - loc) / scale) ** 2 - log_scale - HALF_LOG_2PI


def draw(parameters: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Draws of a diagonal normal guide and their log density.

    Parameters are locations and log scales by turns.
    """
    draws, total = [], torch.zeros(())
    for loc, log_scale in zip(parameters[::2], parameters[1::2], strict=True):
        noise = torch.randn_like(loc)
        draws.append(loc + log_scale.exp() * noise)
        total = total - (0.5 * noise**2 + log_scale + HALF_LOG_2PI).sum()
    return draws, total


def guide_parameters(*sizes: tuple[int, ...]) -> list[Tensor]:
    found = []
    for size in sizes:
        found += [torch.zeros(size, requires_grad=True), torch.full(size, -2.3, requires_grad=True)]
    return found


def schools_torch() -> tuple[list[Tensor], Callable[..., Tensor]]:
    effects, errors, parameters = (
        torch.tensor(EFFECTS),
        torch.tensor(ERRORS),
        guide_parameters((), (), (8,)),
    )

    def loss() -> Tensor:
        (mean, log_scale, effect), log_q = draw(parameters)
        scale = log_scale.exp()
        prior = (
            normal(mean, 0.0, 5.0)
            + math.log(2 / (5 * math.pi))
            - torch.log1p((scale / 5) ** 2)
            + log_scale
        )
        likelihood = normal(effects, mean + scale * effect, errors).sum()
        return log_q - prior - normal(effect, 0.0, 1.0).sum() - likelihood

    return parameters, loss


def mixture_torch() -> tuple[list[Tensor], Callable[..., Tensor]]:
    parameters = guide_parameters((2,), (3,), ())

    def loss(x: Tensor) -> Tensor:
        (sticks, locs, log_scale), log_q = draw(parameters)
        offset = torch.arange(2.0, 0.0, -1.0).log()
        log_stick, log_rest = F.logsigmoid(sticks - offset), F.logsigmoid(offset - sticks)
        rest = torch.cat([log_rest.new_zeros(1), log_rest.cumsum(0)])
        log_weights = torch.cat([log_stick, log_stick.new_zeros(1)]) + rest
        jacobian = (log_stick + log_rest + rest[:-1]).sum()
        prior = (
            math.log(2.0) + jacobian + normal(locs, 0.0, 5.0).sum() + normal(log_scale, 0.0, 1.0)
        )
        mixed = torch.logsumexp(log_weights + normal(x[:, None], locs, log_scale.exp()), -1).sum()
        return log_q - prior - mixed

    return parameters, loss


def regression_torch() -> tuple[list[Tensor], Callable[..., Tensor]]:
    parameters = guide_parameters((50,), ())

    def loss(features: Tensor, y: Tensor) -> Tensor:
        (w, b), log_q = draw(parameters)
        cross = F.binary_cross_entropy_with_logits(features @ w + b, y, reduction="sum")
        return log_q - normal(w, 0.0, 1.0).sum() - normal(b, 0.0, 1.0) + cross

    return parameters, loss


def vae_torch() -> tuple[list[Tensor], Callable[..., Tensor]]:
    encode, decode = Encoder(), decoder()

    def loss(x: Tensor) -> Tensor:
        loc, scale = encode(x)
        z = loc + scale * torch.randn_like(loc)
        log_ratio = normal(z, loc, scale).sum() - normal(z, 0.0, 1.0).sum()
        return log_ratio + F.binary_cross_entropy_with_logits(decode(z), x, reduction="sum")

    return [*encode.parameters(), *decode.parameters()], loss


def made_torch() -> tuple[list[Tensor], Callable[..., Tensor]]:
    net = MaskedNet()
    return list(net.parameters()), lambda x: F.binary_cross_entropy_with_logits(
        net(x), x, reduction="sum"
    )
