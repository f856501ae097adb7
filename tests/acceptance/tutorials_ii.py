"""Programs of further tutorials: boosting, easy guides, handlers, modules, shapes."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn

from acceptance.registry import (
    Example,
    example,
    grid_log_integral,
    randn,
)

positive, unit = dist.constraints.positive, dist.constraints.unit_interval


@example("tutorial boosting_bbvi: a mixture of approximations")
def boosting() -> Example:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(z * z, 0.5), obs=data)

    def guide(data: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor([0.6, 0.4]), dist.constraints.simplex)
        locs = pyro.param("locs", torch.tensor([-1.8, 1.8]))
        scales = pyro.param("scales", torch.tensor([0.3, 0.3]), positive)
        mixed = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, scales))
        pyro.sample("z", mixed)

    data = 4.0 + 0.5 * randn(6)

    def truth() -> float:
        def density(z: Tensor) -> Tensor:
            seen = dist.Normal((z * z)[:, None], 0.5).log_prob(data.double()).sum(-1)
            return dist.Normal(0.0, 5.0).log_prob(z) + seen

        return grid_log_integral(density, (-6.0, 6.0, 20_000))

    return Example(model, guide, (data,), truth=truth, given=True)


class HalfByHand(EasyGuide):
    """One latent by hand, the others by point mass and a joint normal."""

    def guide(self, data: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("mean", dist.Normal(loc, pyro.param("spread", torch.tensor(0.3), positive)))
        self.map_estimate("scale")
        with self.plate("data", len(data), dim=-1):
            group = self.group(match="effect.*")
            locs = pyro.param("locs", torch.zeros(len(data), 1))
            group.sample("effects", dist.Normal(locs, 0.5).to_event(1))


@example("easyguide.py")
def easy_guide() -> Example:
    def model(data: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(data), dim=-1):
            effect = pyro.sample("effect", dist.Normal(mean, scale))
            pyro.sample("obs", dist.Normal(effect, 0.5), obs=data)

    return Example(model, HalfByHand(model), (randn(6),))


@example("minipyro.py")
def minipyro() -> Example:
    def model(data: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("obs", dist.Normal(loc, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        loc_loc = pyro.param("guide_loc", torch.tensor(0.0))
        loc_scale = pyro.param("guide_scale_log", torch.tensor(0.0)).exp()
        pyro.sample("loc", dist.Normal(loc_loc, loc_scale))

    data = 0.5 + randn(10)
    return Example(model, guide, (data,), truth=lambda: shared_mean_evidence(data, 1.0, 1.0))


def shared_mean_evidence(data: Tensor, variance: float, noise: float) -> float:
    """Log evidence of normal data around a normal mean."""
    size = len(data)
    covariance = noise * torch.eye(size).double() + variance
    at = dist.MultivariateNormal(torch.zeros(size).double(), covariance)
    return at.log_prob(data.double()).item()


@example("tutorial effect_handlers: conditioned and replayed")
def effect_handlers() -> Example:
    def scale(guess: Tensor) -> Tensor:
        weight = pyro.sample("weight", dist.Normal(guess, 1.0))
        return pyro.sample("measurement", dist.Normal(weight, 0.75))

    def guide(guess: Tensor) -> None:
        a, b = pyro.param("a", guess.clone()), pyro.param("b", torch.tensor(1.0), positive)
        pyro.sample("weight", dist.Normal(a, b))

    seen = torch.tensor(9.5)
    model = pyro.condition(scale, data={"measurement": seen})
    at = dist.Normal(torch.tensor(8.5).double(), (1 + 0.75**2) ** 0.5)
    return Example(
        model, guide, (torch.tensor(8.5),), truth=lambda: at.log_prob(seen.double()).item()
    )


@example("tutorial csis: amortised proposal of a compiled inference")
def compiled_inference() -> Example:
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))

    def model(x1: Tensor, x2: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(10.0, 5.0**0.5))
        pyro.sample("x1", dist.Normal(z, 2.0**0.5), obs=x1)
        pyro.sample("x2", dist.Normal(z, 2.0**0.5), obs=x2)

    def guide(x1: Tensor, x2: Tensor) -> None:
        pyro.module("net", net)
        loc, log_scale = net(torch.stack([x1, x2]) / 10).unbind(-1)
        pyro.sample("z", dist.Normal(9.0 + loc, (0.5 + log_scale).exp()))

    def truth() -> float:
        covariance = torch.tensor([[7.0, 5.0], [5.0, 7.0]]).double()
        at = dist.MultivariateNormal(torch.full((2,), 10.0).double(), covariance)
        return at.log_prob(torch.tensor([8.0, 9.0]).double()).item()

    return Example(model, guide, (torch.tensor(8.0), torch.tensor(9.0)), truth=truth)


@example("inclined_plane.py")
def inclined_plane() -> Example:
    angle, height, gravity = math.pi / 6, 2.0, 9.81

    def slide(mu: Tensor) -> Tensor:
        force = gravity * (math.sin(angle) - mu * math.cos(angle))
        return (2 * (height / math.sin(angle)) / force.clamp(min=0.1)).sqrt()

    def model(times: Tensor) -> None:
        mu = pyro.sample("mu", dist.Uniform(0.0, 1.0))
        expected = slide(mu)
        for i in range(len(times)):
            pyro.sample(f"obs_{i}", dist.Normal(expected, 0.1), obs=times[i])

    times = slide(torch.tensor(0.12)) + 0.1 * randn(5)

    def truth() -> float:
        def density(mu: Tensor) -> Tensor:
            return dist.Normal(slide(mu)[:, None], 0.1).log_prob(times.double()).sum(-1)

        return grid_log_integral(density, (0.0, 1.0, 20_000))

    return Example(model, AutoNormal(model), (times,), truth=truth)


class Workflow(PyroModule):
    """A learned scale and a latent location in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroSample(dist.Normal(0.0, 2.0))
        self.scale = PyroParam(torch.tensor(1.0), constraint=positive)

    def forward(self, data: Tensor) -> None:
        loc = self.loc  # one for all data: in the plate each datum would draw its own
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(loc, self.scale), obs=data)


@example("tutorial modules: PyroSample and PyroParam")
def modules() -> Example:
    model, data = Workflow(), 1.0 + randn(7)
    return Example(
        model,
        AutoLaplaceApproximation(model),
        (data,),
        truth=lambda: shared_mean_evidence(data, 4.0, 1.0),
    )


@example("tutorial tensor_shapes: nested plates, subsampled")
def tensor_shapes() -> Example:
    def model(data: Tensor) -> None:
        rows, columns = data.shape
        with pyro.plate("y_plate", columns, dim=-1):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
            with pyro.plate("x_plate", rows, subsample_size=3, dim=-2) as chosen:
                pyro.sample("obs", dist.Normal(offset, 1.0), obs=data[chosen])

    return Example(
        model, AutoNormal(model), (randn(6, 4),), options={"plate": "y_plate"}, given=True
    )


@example("neutra.py: dual moon")
def dual_moon() -> Example:
    def potential(z: Tensor) -> Tensor:
        ring = -0.5 * ((z.norm(dim=-1) - 2.0) / 0.4) ** 2
        pair = torch.stack([z[..., 0] + 2, z[..., 0] - 2], -1) / 0.6
        return ring + torch.logsumexp(-0.5 * pair**2, -1)

    def model() -> None:
        z = pyro.sample("z", dist.Uniform(-4.0, 4.0).expand([2]).to_event(1))
        pyro.factor("moons", potential(z))

    def truth() -> float:
        density = lambda a, b: potential(torch.stack([a, b], -1)) - math.log(64)  # noqa: E731
        return grid_log_integral(density, (-4.0, 4.0, 800), (-4.0, 4.0, 800))

    guide = AutoIAFNormal(model, hidden_dim=[6], num_transforms=1)
    return Example(model, guide, (), Trace_ELBO, truth)


@example("tutorial logistic growth: saturating counts")
def logistic_growth() -> Example:
    def model(days: Tensor, counts: Tensor) -> None:
        capacity = pyro.sample("capacity", dist.LogNormal(4.0, 1.0))
        rate = pyro.sample("rate", dist.LogNormal(-1.0, 0.5))
        middle = pyro.sample("middle", dist.Normal(5.0, 3.0))
        with pyro.plate("days", len(days)):
            mean = capacity * torch.sigmoid(rate * (days - middle)) + 1e-3
            pyro.sample("counts", dist.Poisson(mean), obs=counts)

    days = torch.arange(10.0)
    counts = (50 * torch.sigmoid(0.6 * (days - 5.0))).round()
    return Example(model, AutoNormal(model), (days, counts), options={"plate": "days"})
