"""Problems of what counts in a density."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm.data.problems.problem import (
    ENUMERATION,
    FLOAT,
    QUADRATURE,
    STANDARD,
    Problem,
    integral,
    normal,
    scalar_problem,
    tensor,
)

__all__ = ["counted", "dependent", "digits", "locals_and_counts"]


# ---- what counts in a density --------------------------------------------------------------------


def counted() -> list[Problem]:
    """Guides with factors and observations, and masks."""

    def local(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", STANDARD)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def with_factor(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            pyro.factor("aux", torch.full_like(x, -0.7), has_rsample=False)

    def padded(x: Tensor, present: Tensor) -> None:
        z = pyro.sample("z", STANDARD)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.StudentT(4.0, z, 1.0).mask(present), obs=x)

    x, present = tensor([1.0, 0.0]), torch.tensor([True, True, False, False])
    long = tensor([1.0, 0.5, 99.0, -99.0])
    truth = float(dist.Normal(tensor(0.0), 2**0.5).log_prob(x).sum())
    seen = scalar_problem("", lambda z: dist.StudentT(tensor(4.0), z, 1.0), long[:2])
    return [
        Problem("guide_with_factor", local, (x,), truth, guide=with_factor),
        Problem("masked_padding", padded, (long, present), seen.log_z, known=QUADRATURE),
    ]


# ---- digits --------------------------------------------------------------------------------------


def digits() -> list[Problem]:
    """Scales, counts, piecewise means, probabilities of zero, and NaNs."""

    def count(x: Tensor) -> None:
        p = pyro.sample("p", dist.Uniform(torch.tensor(0.0), torch.tensor(1.0)))
        pyro.sample("x", dist.Binomial(torch.tensor(5e6), p), obs=x)

    def zeros(x: Tensor) -> None:
        k = pyro.sample(
            "k", dist.Categorical(tensor([0.5, 0.5, 0.0])), infer={"enumerate": "parallel"}
        )
        pyro.sample("x", dist.Normal(k.double(), 0.5), obs=x)

    def hand_written(k: Tensor) -> None:
        p = torch.sigmoid(pyro.sample("l", dist.Normal(torch.tensor(0.0), 20.0)))
        pyro.factor("loglik", k * p.log() + (6 - k) * (1 - p).log())

    def geometric(x: Tensor) -> None:
        z = pyro.sample("z", dist.Beta(tensor(2.0), tensor(2.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Geometric(z), obs=x)

    def scaled(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(tensor(0.0), 1e8))
        pyro.sample("x", dist.StudentT(tensor(3.0), z, 1e8), obs=x)

    two = math.log(0.5) + torch.stack(
        [dist.Normal(tensor(k), 0.5).log_prob(tensor(2.0)) for k in (0.0, 1.0)]
    )
    sigmoid = torch.nn.functional.logsigmoid
    nan = integral(
        lambda z: dist.Normal(tensor(0.0), 20.0).log_prob(z) + 6 * sigmoid(z), -240, 240, 200_001
    )
    heavy = integral(
        lambda z: STANDARD.log_prob(z) + dist.StudentT(tensor(3.0), z, 1.0).log_prob(tensor(2.0)),
        -12,
        12,
    )
    counts = math.lgamma(5) + math.lgamma(8) - math.lgamma(13) + math.log(6)
    return [
        Problem("large_count", count, (torch.tensor(2_500_321.0),), -math.log(5e6 + 1)),
        scalar_problem(
            "clamped_mean",
            lambda z: dist.Normal(z.clamp(min=0.0), 0.2),
            tensor([0.0]),
            dist.Normal(tensor(2.0), 0.7),
        ),
        scalar_problem(
            "quadratic_mean", lambda z: dist.Normal(z + 0.3 * z**2, 0.3), tensor([0.0, 0.2])
        ),
        Problem(
            "zero_probability", zeros, (tensor(2.0),), float(two.logsumexp(0)), known=ENUMERATION
        ),
        Problem("undefined_far_out", hand_written, (torch.tensor(6.0),), nan, known=QUADRATURE),
        Problem("small_integers", geometric, (torch.tensor([0, 1, 5], dtype=torch.uint8),), counts),
        Problem("scale_1e8", scaled, (tensor(2e8),), heavy - math.log(1e8), known=QUADRATURE),
        scalar_problem(
            "scale_1e-8", lambda z: dist.StudentT(tensor(3.0), 1e-8 * z, 1e-8), tensor([2e-8, 0.0])
        ),
    ]


# ---- dependence ----------------------------------------------------------------------------------


def dependent() -> list[Problem]:
    """Data whose latents depend on one another."""

    def gaussian_process(x: Tensor, factor: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", STANDARD)
        f = (factor * z.unsqueeze(-2)).sum(-1)
        with pyro.plate("seen", len(x)):
            pyro.sample("x", dist.LogNormal(f, 0.3), obs=x)

    def walk(x: Tensor) -> None:
        steps = pyro.sample("steps", normal(0.0, 0.5, 8))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.LogNormal(steps.cumsum(-1), 0.4), obs=x)

    t = torch.linspace(0, 1, 10, dtype=FLOAT)
    kernel = (-((t[:, None] - t) ** 2) / 0.1).exp() + 1e-6 * torch.eye(10, dtype=FLOAT)
    lower = torch.ones(8, 8, dtype=FLOAT).tril()
    y, v = (3 * t).sin(), tensor([0.2, 0.9, 1.0, 0.4, -0.3, 0.1, 0.5, 1.1])

    def log_normal(log_x: Tensor, covariance: Tensor) -> float:
        return float(
            dist.MultivariateNormal(torch.zeros_like(log_x), covariance).log_prob(log_x)
            - log_x.sum()
        )

    return [
        Problem(
            "gaussian_process",
            gaussian_process,
            (y.exp(), torch.linalg.cholesky(kernel)),
            log_normal(y, kernel + 0.09 * torch.eye(10)),
        ),
        Problem(
            "random_walk",
            walk,
            (v.exp(),),
            log_normal(v, 0.25 * lower @ lower.T + 0.16 * torch.eye(8)),
        ),
    ]


# ---- one evidence for each datum, and discrete latents -------------------------------------------


def local_student(x: Tensor) -> None:
    """A latent for each datum, seen with heavy-tailed noise."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", STANDARD)
        pyro.sample("x", dist.StudentT(tensor(3.0), z, 0.5), obs=x)


def narrow_guide(x: Tensor) -> None:
    """Right for most data, far off for outliers."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.7 * x.clamp(-3, 3), 0.45))


def local_log_z(likelihood: Callable[[Tensor], Any], x: Tensor) -> float:
    grid = torch.linspace(-12, 12, 20_001, dtype=FLOAT)[:, None]
    each = STANDARD.log_prob(grid) + likelihood(grid).log_prob(x)
    return float(each.logsumexp(0).sum()) + len(x) * math.log(24 / 20_000)


def local_square(x: Tensor) -> None:
    """Two modes for each datum."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", STANDARD)
        pyro.sample("x", dist.Normal(z**2, 0.2), obs=x)


def locals_and_counts() -> list[Problem]:
    """Latents of each datum, and latents that are counts."""

    def rare(x: Tensor) -> None:
        k = pyro.sample("k", dist.Poisson(tensor(0.01)))
        pyro.sample("x", dist.Normal(5.0 * k, 1.0), obs=x)

    def thinned(x: Tensor) -> None:
        n = pyro.sample("n", dist.Poisson(tensor(50.0)))
        pyro.sample("x", dist.Binomial(n, tensor(0.3), validate_args=False), obs=x)

    def binary(x: Tensor, weight: Tensor) -> None:
        s = pyro.sample("s", dist.Bernoulli(torch.full((10,), 0.3, dtype=FLOAT)).to_event(1))
        pyro.sample("x", dist.Normal((s * weight).sum(-1), 0.3), obs=x)

    student = torch.linspace(-2, 2, 20, dtype=FLOAT)
    outlier = student.clone()
    outlier[7] = 14.0
    k, weight = torch.arange(60.0, dtype=FLOAT), torch.arange(1.0, 11.0, dtype=FLOAT)
    counts = dist.Poisson(tensor(0.01)).log_prob(k) + dist.Normal(5 * k, 1.0).log_prob(tensor(15.0))
    states = torch.cartesian_prod(*10 * [tensor([0.0, 1.0])])
    each = dist.Bernoulli(tensor(0.3)).log_prob(states).sum(-1)
    total = each + dist.Normal((states * weight).sum(-1), 0.3).log_prob(tensor(30.0))

    def noise(z: Tensor) -> Any:
        return dist.StudentT(tensor(3.0), z, 0.5)

    squares = tensor([0.5, 1.0, 2.0, 4.0])
    return [
        Problem(
            "local_student",
            local_student,
            (student,),
            local_log_z(noise, student),
            known=QUADRATURE,
        ),
        Problem(
            "local_outlier",
            local_student,
            (outlier,),
            local_log_z(noise, outlier),
            guide=narrow_guide,
            known=QUADRATURE,
        ),
        Problem(
            "local_square",
            local_square,
            (squares,),
            local_log_z(lambda z: dist.Normal(z**2, 0.2), squares),
            known=QUADRATURE,
        ),
        Problem("rare_count", rare, (tensor(15.0),), float(counts.logsumexp(0)), known=ENUMERATION),
        Problem(
            "thinned_count",
            thinned,
            (tensor(20.0),),
            float(dist.Poisson(tensor(15.0)).log_prob(tensor(20.0))),
        ),
        Problem(
            "binary_sum",
            binary,
            (tensor(30.0), weight),
            float(total.logsumexp(0)),
            known=ENUMERATION,
        ),
    ]
