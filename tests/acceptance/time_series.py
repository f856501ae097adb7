"""Time series: filters, epidemics, volatility, forecasts."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.forecast import ForecastingModel
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.infer.reparam import LinearHMMReparam, StableReparam, StudentTReparam
from pyro.ops.indexing import Vindex
from torch import Tensor

from acceptance.registry import (
    Example,
    enumerating,
    example,
    grid_log_integral,
    nothing,
    over,
    randn,
    uniform,
)

positive = dist.constraints.positive


def linear_evidence(y: Tensor, design: Tensor, noise: float) -> float:
    """Log evidence of y = design @ standard normal + noise."""
    design = design.double()
    covariance = design @ design.T + noise**2 * torch.eye(len(y)).double()
    at = dist.MultivariateNormal(torch.zeros(len(y)).double(), covariance)
    return at.log_prob(y.double()).item()


def walk(size: int) -> Tensor:
    """The design of a random walk: sums of the increments up to now."""
    return torch.ones(size, size).tril()


@example("ekf.py: a constant-velocity track, parameters by point mass")
def kalman() -> Example:
    def model(data: Tensor) -> None:
        noise = pyro.sample("measurement_noise", dist.LogNormal(-1.0, 0.3))
        assert data.shape == (6, 2)
        mean = torch.zeros(4)
        covariance = torch.eye(4)
        transition = torch.eye(4)
        transition[0, 2] = transition[1, 3] = 1.0
        observe = torch.eye(4)[:2]
        for t in range(6):
            mean = transition @ mean
            covariance = transition @ covariance @ transition.T + 0.1 * torch.eye(4)
            spread = observe @ covariance @ observe.T + noise**2 * torch.eye(2)
            at = dist.MultivariateNormal(observe @ mean, spread)
            pyro.sample(f"measurement_{t}", at, obs=data[t])
            gain = torch.linalg.solve(spread, observe @ covariance).T
            mean = mean + gain @ (data[t] - observe @ mean)
            covariance = covariance - gain @ observe @ covariance

    steps = torch.arange(1.0, 7.0)
    data = torch.stack([steps, 0.5 * steps], -1) + 0.3 * randn(6, 2)
    return Example(model, AutoDelta(model), (data,))


@example("smcfilter.py: a walk from a known start")
def filtered_walk() -> Example:
    def model(y: Tensor) -> None:
        z = pyro.sample("z_0", dist.Normal(0.0, 1.0))
        for t in range(1, len(y) + 1):
            z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
            pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=y[t - 1])

    y = randn(4).cumsum(0)
    design = torch.cat([torch.ones(4, 1), walk(4)], -1)
    return Example(
        model, AutoMultivariateNormal(model), (y,), truth=lambda: linear_evidence(y, design, 0.5)
    )


def caught_pmf(rate: Tensor) -> Tensor:
    """Log probabilities `[..., susceptible, susceptible after]` of a step among five people."""
    before, after = torch.arange(6.0)[:, None].to(rate), torch.arange(6.0).to(rate)
    chance = 1 - torch.exp(-rate[..., None, None] * (5 - before) / 5 - 0.05)
    caught = (before - after).clamp(min=0)
    ways = (before + 1).lgamma() - (caught + 1).lgamma() - (after + 1).lgamma()
    found = ways + caught * chance.log() + after * (1 - chance).log()
    return torch.where(after <= before, found, torch.full_like(found, -1e4))


SEEN = torch.tensor([1.0, 1.0, 0.0, 2.0])


@example("sir_hmc.py: an epidemic, its states enumerated")
def epidemic() -> Example:
    def model(seen: Tensor) -> None:
        rate = pyro.sample("rate", dist.LogNormal(-0.5, 0.5))
        moves, s = caught_pmf(rate), torch.tensor(4)
        for t in pyro.markov(range(len(seen))):
            row = Vindex(moves)[..., s, :]
            after = pyro.sample(
                f"S_{t}", dist.Categorical(logits=row), infer={"enumerate": "parallel"}
            )
            ill = (5 - after).to(seen)
            pyro.sample(f"obs_{t}", dist.Poisson(0.5 * ill), obs=seen[t])
            s = after

    def truth() -> float:
        def density(u: Tensor) -> Tensor:
            moves = caught_pmf(u.exp())
            alpha = torch.full((len(u), 6), -1e4).double()
            alpha[:, 4] = 0.0
            rates = 0.5 * (5 - torch.arange(6.0).double()).clamp(min=1e-7)
            for value in SEEN.double():
                alpha = torch.logsumexp(alpha.unsqueeze(-1) + moves, -2)
                alpha = alpha + dist.Poisson(rates).log_prob(value)
            return torch.logsumexp(alpha, -1) + dist.Normal(-0.5, 0.5).log_prob(u)

        return grid_log_integral(density, (-4.0, 3.0, 4000))

    data = SEEN.to(torch.get_default_dtype())
    return Example(model, over(model, "rate"), (data,), enumerating(0), truth)


@example("tutorial epi: continuous relaxation of an epidemic")
def relaxed_epidemic() -> Example:
    def model(seen: Tensor) -> None:
        r0 = pyro.sample("R0", dist.LogNormal(0.5, 0.5))
        report = pyro.sample("rho", dist.Beta(10.0, 10.0))
        with pyro.plate("time", len(seen)):
            excess = pyro.sample("excess", dist.Normal(0.0, 0.3))
        s, i = torch.tensor(99.0), torch.tensor(1.0)
        expected = []
        for t in range(len(seen)):
            caught = s * (1 - torch.exp(-r0 * i / 500.0)) * excess[..., t].exp()
            s, i = s - caught, 0.8 * i + caught
            expected.append(report * caught)
        with pyro.plate("weeks", len(seen)):
            pyro.sample("obs", dist.Poisson(torch.stack(expected, -1).clamp(min=1e-3)), obs=seen)

    return Example(
        model, AutoNormal(model), (torch.tensor([0.0, 1, 1, 2, 4]),), options={"plate": "weeks"}
    )


@example("NumPyro: stochastic volatility")
def stochastic_volatility() -> Example:
    def model(returns: Tensor) -> None:
        step = pyro.sample("sigma", dist.Exponential(20.0))
        nu = pyro.sample("nu", dist.Exponential(0.1))
        size = len(returns)
        moves = pyro.sample("moves", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        level = pyro.deterministic("s", (step.unsqueeze(-1) * moves).cumsum(-1))
        with pyro.plate("data", size):
            pyro.sample(
                "r",
                dist.StudentT(nu.unsqueeze(-1) if nu.dim() else nu, 0.0, level.exp()),
                obs=returns,
            )

    return Example(model, AutoNormal(model), (0.9 * randn(8),))


@example("tutorial stable: log returns with heavy tails")
def stable_returns() -> Example:
    def plain(data: Tensor) -> None:
        stability = pyro.sample("alpha", dist.Uniform(1.2, 1.95))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Stable(stability, 0.0, scale), obs=data)

    model = poutine.reparam(plain, config={"x": StableReparam()})
    return Example(model, AutoNormal(model), (randn(6),))


@example("distribution Levy: first passage times")
def levy() -> Example:
    def model(data: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            gap = dist.InverseGamma(0.5, scale / 2)
            pyro.sample("x", gap, obs=data)

    data = 1.0 / randn(6) ** 2

    def truth() -> float:
        def density(u: Tensor) -> Tensor:
            x = data.double()
            rate = u.exp()[:, None] / 2
            seen = 0.5 * rate.log() - math.lgamma(0.5) - 1.5 * x.log() - rate / x
            return dist.Normal(0.0, 1.0).log_prob(u) + seen.sum(-1)

        return grid_log_integral(density, (-7.0, 7.0, 4000))

    return Example(model, AutoNormal(model), (data,), truth=truth)


@example("NumPyro: AR(2)")
def autoregression() -> Example:
    def model(y: Tensor) -> None:
        a = pyro.sample("alpha_1", dist.Normal(0.0, 1.0))
        b = pyro.sample("alpha_2", dist.Normal(0.0, 1.0))
        const = pyro.sample("const", dist.Normal(0.0, 1.0))
        sigma = pyro.param("sigma", torch.tensor(0.5), constraint=positive)
        with pyro.plate("data", len(y) - 2):
            pyro.sample("y", dist.Normal(const + a * y[1:-1] + b * y[:-2], sigma), obs=y[2:])

    y = 0.5 * randn(10).cumsum(0)
    design = torch.stack([y[1:-1], y[:-2], torch.ones(8)], -1)
    return Example(
        model, AutoNormal(model), (y,), truth=lambda: linear_evidence(y[2:], design, 0.5)
    )


@example("NumPyro: predator and prey by Euler steps")
def predator_prey() -> Example:
    def model(hares: Tensor, lynxes: Tensor) -> None:
        theta = pyro.sample("theta", dist.LogNormal(-1.0, torch.full((4,), 0.3)).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0))
        u, v = torch.tensor(3.0), torch.tensor(1.0)
        prey, hunters = [], []
        for _ in range(len(hares)):
            du = (theta[..., 0] - theta[..., 1] * v) * u
            dv = (theta[..., 2] * u - 2 * theta[..., 3]) * v
            u, v = (u + 0.3 * du).clamp(min=1e-2), (v + 0.3 * dv).clamp(min=1e-2)
            prey.append(u)
            hunters.append(v)
        with pyro.plate("data", len(hares)):
            pyro.sample("hares", dist.LogNormal(torch.stack(prey, -1).log(), sigma), obs=hares)
            pyro.sample("lynxes", dist.LogNormal(torch.stack(hunters, -1).log(), sigma), obs=lynxes)

    hares, lynxes = 3.0 + 0.3 * randn(6), 1.0 + 0.1 * randn(6, seed=1)
    return Example(model, AutoNormal(model, init_scale=0.05), (hares, lynxes))


class LocalLevel(ForecastingModel):
    """A random walk seen with noise, as the forecasting tutorials write it."""

    def model(self, zero_data: Tensor, covariates: Tensor) -> None:
        scale = pyro.sample("noise_scale", dist.LogNormal(-1.0, 1.0).expand([1]).to_event(1))
        bias = pyro.sample("bias", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        with self.time_plate:
            drift = pyro.sample("drift", dist.Normal(zero_data, 1.0).to_event(1))
        self.predict(dist.Normal(0, scale), bias + drift.cumsum(-2))


@example("tutorial forecasting_i: local level")
def local_level() -> Example:
    model = LocalLevel()
    return Example(
        model, AutoNormal(model), (randn(6, 1), torch.zeros(6, 0)), options={"plate": "time"}
    )


@example("contrib/forecast/bart.py: riders by hour")
def riders() -> Example:
    def model(counts: Tensor, hours: Tensor) -> None:
        assert counts.shape == (2, 8)
        period = 4
        with pyro.plate("stations", 2, dim=-2):
            with pyro.plate("hours", period, dim=-1):
                season = pyro.sample("season", dist.Normal(0.0, 1.0))
            level = pyro.sample("level", dist.Normal(0.0, 2.0))
            scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
            with pyro.plate("time", counts.shape[-1], dim=-1):
                mean = level + season[..., hours]
                pyro.sample("obs", dist.Normal(mean, scale), obs=counts)

    return Example(
        model, AutoNormal(model), (randn(2, 8), torch.arange(8) % 4), options={"plate": "time"}
    )


@example("tutorial forecasting_ii: a homogeneous Gaussian state space")
def state_space() -> Example:
    def model(y: Tensor) -> None:
        decay = pyro.param("decay", torch.tensor(0.9), constraint=dist.constraints.unit_interval)
        one = torch.eye(1)
        noise = dist.MultivariateNormal(torch.zeros(1), one)
        chain = dist.GaussianHMM(noise, decay * one, noise, one, noise, duration=len(y))
        pyro.sample("y", chain, obs=y)

    y = randn(5, 1).cumsum(0)

    def truth() -> float:
        lag = torch.arange(6)
        powers = 0.9 ** (lag[1:, None] - lag).clamp(min=0) * (lag[1:, None] >= lag)
        return linear_evidence(y[:, 0], powers, 1.0)

    return Example(model, nothing, (y,), truth=truth, options={"site": "y"})


@example("tutorial forecasting_iii: heavy-tailed states, reparameterised")
def heavy_states() -> Example:
    def plain(y: Tensor) -> None:
        one = torch.eye(1)
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        init = dist.Normal(0.0, 1.0).expand([1]).to_event(1)
        step = dist.StudentT(4.0, 0.0, scale).expand([1]).to_event(1)
        seen = dist.Normal(0.0, 1.0).expand([1]).to_event(1)
        pyro.sample("y", dist.LinearHMM(init, one, step, one, seen, duration=len(y)), obs=y)

    from_students = {"y": LinearHMMReparam(trans=StudentTReparam())}
    model = poutine.reparam(plain, config=from_students)
    return Example(model, AutoNormal(model), (randn(5, 1),), options={"site": "y"})


@example("contrib/timeseries: Markov chain of regimes with a sticky prior")
def regimes() -> Example:
    def model(y: Tensor) -> None:
        stay = pyro.sample("stay", dist.Beta(5.0, 1.0))
        x = torch.tensor(0)
        for t in pyro.markov(range(len(y))):
            table = torch.stack(
                [torch.stack([stay, 1 - stay], -1), torch.stack([1 - stay, stay], -1)], -2
            )
            row = (
                table[..., x, :]
                if t == 0
                else torch.where((x == 0).unsqueeze(-1), table[..., 0, :], table[..., 1, :])
            )
            x = pyro.sample(f"x_{t}", dist.Categorical(row), infer={"enumerate": "parallel"})
            pyro.sample(f"y_{t}", dist.Normal(0.0, 0.5 + 2.0 * x), obs=y[t])

    y = torch.tensor([0.3, -0.4, 2.5, -3.0])

    def truth() -> float:
        def density(stay: Tensor) -> Tensor:
            move = torch.stack(
                [torch.stack([stay, 1 - stay], -1), torch.stack([1 - stay, stay], -1)], -2
            ).log()
            alpha = torch.stack([torch.zeros_like(stay), torch.full_like(stay, -torch.inf)], -1)
            for value in y.double():
                seen = dist.Normal(0.0, torch.tensor([0.5, 2.5]).double()).log_prob(value)
                alpha = torch.logsumexp(alpha.unsqueeze(-1) + move, -2) + seen
            return torch.logsumexp(alpha, -1) + dist.Beta(5.0, 1.0).log_prob(stay)

        return grid_log_integral(density, (0.0, 1.0, 20_000))

    return Example(model, over(model, "stay"), (y,), enumerating(0), truth)


@example("NumPyro: Holt-Winters smoothing")
def holt_winters() -> Example:
    def model(y: Tensor) -> None:
        alpha = pyro.sample("level_smoothing", dist.Beta(1.0, 1.0))
        beta = pyro.sample("trend_smoothing", dist.Beta(1.0, 1.0))
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        level, trend = y[0], torch.zeros(())
        for t in range(1, len(y)):
            mean = level + trend
            pyro.sample(f"y_{t}", dist.Normal(mean, noise), obs=y[t])
            level, before = alpha * y[t] + (1 - alpha) * mean, level
            trend = beta * (level - before) + (1 - beta) * trend

    return Example(model, AutoNormal(model), (0.3 * torch.arange(6.0) + 0.2 * randn(6),))


@example("NumPyro: Markov switching of seasons in a Poisson count")
def seasonal_counts() -> Example:
    def model(counts: Tensor) -> None:
        size = len(counts)
        base = pyro.sample("base", dist.Normal(1.0, 1.0))
        size_of = pyro.sample("amplitude", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        angle = 2 * math.pi * torch.arange(size) / 6
        waves = torch.stack([angle.sin(), angle.cos()], -1)
        rate = (base.unsqueeze(-1) + (size_of.unsqueeze(-2) * waves).sum(-1)).exp()
        with pyro.plate("data", size):
            pyro.sample("x", dist.Poisson(rate), obs=counts)

    counts = torch.poisson(2 + 4 * uniform(8), generator=torch.Generator().manual_seed(2))
    return Example(model, AutoNormal(model), (counts,))
