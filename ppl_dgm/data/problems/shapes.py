"""Problems of posteriors that samplers find hard."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm.data.problems.problem import (
    FLOAT,
    QUADRATURE,
    STANDARD,
    Model,
    Problem,
    box,
    integral,
    normal,
    product,
    scalar_problem,
    tensor,
)

__all__ = ["edges", "large", "modes", "shapes"]


# ---- shapes that samplers find hard --------------------------------------------------------------


def banana() -> None:
    """Rosenbrock's valley in two dimensions."""
    x = pyro.sample("x", dist.Uniform(tensor(-10.0), tensor(10.0)))
    y = pyro.sample("y", dist.Uniform(tensor(-5.0), tensor(15.0)))
    pyro.factor("likelihood", -(100 * (y - x**2) ** 2 + (1 - x) ** 2))


def funnel(x: Tensor) -> None:
    """Neal's funnel, its nine values measured with noise."""
    v = pyro.sample("v", dist.Normal(tensor(0.0), 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(tensor(0.0), (v / 2).exp()))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def bent(x: Tensor) -> None:
    """A parabola observed: the posterior is a thin arc."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=FLOAT), tensor([1.0, 2.0])).to_event(1))
    pyro.sample("x", dist.Normal(z[..., 1] - z[..., 0] ** 2, 0.3), obs=x)


def light_guide(x: Tensor) -> None:
    """A guide that covers a part of the arc."""
    pyro.sample("z", dist.Normal(torch.zeros(2, dtype=FLOAT), tensor([0.4, 0.4])).to_event(1))


def cross(x: Tensor) -> None:
    """A product observed: two ridges with long arms."""
    z = pyro.sample("z", normal(0.0, 3.0, 2))
    pyro.sample("x", dist.Normal(z.prod(-1), 0.1), obs=x)


def funnel_log_z(x: Tensor) -> float:
    def log_f(v: Tensor) -> Tensor:
        scale = (v.exp() + 1).sqrt()
        return dist.Normal(tensor(0.0), 3.0).log_prob(v) + dist.Normal(
            tensor(0.0), scale[:, None]
        ).log_prob(x).sum(-1)

    return integral(log_f, -40, 40)


def shapes() -> list[Problem]:
    """Valleys, funnels, arcs, ridges and rings."""
    x = tensor([0.3, -1.2, 2.0, 0.1, -0.4, 0.9, -0.2, 1.4, 0.0])
    prior = dist.Normal(tensor(0.0), 1.0)
    arc = integral(
        lambda a: prior.log_prob(a) + dist.Normal(-(a**2), 4.09**0.5).log_prob(tensor(0.0)), -12, 12
    )
    arms = integral(
        lambda a: (
            dist.Normal(tensor(0.0), 3.0).log_prob(a)
            + dist.Normal(tensor(0.0), (9 * a**2 + 0.01).sqrt()).log_prob(tensor(1.0))
        ),
        -40,
        40,
        400_001,
    )
    ring_3d = math.log(4 * math.pi) + integral(
        lambda r: -((r - 3) ** 2) / 0.02 + 2 * r.clamp_min(1e-9).log(), 1e-6, 10, 200_001
    )
    ring_5d = math.log(8 * math.pi**2 / 3) + integral(
        lambda r: -((r - 3) ** 2) / 0.02 + 4 * r.clamp_min(1e-9).log(), 1e-6, 10, 200_001
    )

    def ring(z: Tensor) -> Tensor:
        return -((z.square().sum(-1).sqrt() - 3) ** 2) / 0.02

    return [
        Problem("banana", banana, (), math.log(math.pi / 10 / 400)),
        Problem("funnel", funnel, (x,), funnel_log_z(x), known=QUADRATURE),
        Problem("arc", bent, (tensor(0.0),), arc, known=QUADRATURE),
        Problem("arc_light_guide", bent, (tensor(0.0),), arc, guide=light_guide, known=QUADRATURE),
        Problem("cross", cross, (tensor(1.0),), arms, known=QUADRATURE),
        box("ring_3d", 3, 6.0, ring, ring_3d, known=QUADRATURE),
        box("ring_5d", 5, 6.0, ring, ring_5d, known=QUADRATURE),
    ]


# ---- many modes ----------------------------------------------------------------------------------


def peaks(centres: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    """Log of a sum of normals at the centres."""

    def log_f(z: Tensor) -> Tensor:
        return dist.Normal(centres, scale).log_prob(z.unsqueeze(-2)).sum(-1).logsumexp(-1)

    return log_f


def label_switching(x: Tensor) -> None:
    """Two equal components, their means exchangeable."""
    mu = pyro.sample("mu", normal(0.0, 5.0, 2))
    with pyro.plate("data", len(x)):
        parts = dist.Normal(mu, 1.0)
        pyro.sample(
            "x",
            dist.MixtureSameFamily(dist.Categorical(torch.ones(2, dtype=FLOAT) / 2), parts),
            obs=x,
        )


def switching_log_z(x: Tensor) -> float:
    grid = torch.linspace(-15, 15, 1501, dtype=FLOAT)
    prior = dist.Normal(tensor(0.0), 5.0).log_prob(grid)
    each = dist.Normal(grid[:, None], 1.0).log_prob(x)
    pairs = sum(torch.logaddexp(e[:, None], e) - math.log(2) for e in each.T)
    total = prior[:, None] + prior + torch.as_tensor(pairs)
    return float(total.flatten().logsumexp(0)) + 2 * math.log(0.02)


def modes() -> list[Problem]:
    """Many peaks, a spike in a slab, signs and labels."""
    five = torch.cartesian_prod(*2 * [torch.linspace(-8, 8, 5, dtype=FLOAT)])
    corners = 3 * torch.cartesian_prod(*4 * [tensor([-1.0, 1.0])])
    spike = torch.stack([torch.zeros(2, dtype=FLOAT), torch.full((2,), 3.0, dtype=FLOAT)])
    apart = torch.zeros(2, 20, dtype=FLOAT)
    apart[1] += 1.5

    def spiked(z: Tensor) -> Tensor:
        wide = dist.Normal(spike[0], 1.0).log_prob(z).sum(-1)
        return torch.logaddexp(wide, math.log(9.0) + dist.Normal(spike[1], 0.1).log_prob(z).sum(-1))

    x = tensor([-3.0, -2.5, -3.4, 2.0, 2.8, 3.1, 2.2, -2.9])
    return [
        box("grid_of_25", 2, 10.0, peaks(five, 0.2), math.log(25)),
        box("corners_of_16", 4, 6.0, peaks(corners, 0.3), math.log(16)),
        box("spike_and_slab", 2, 10.0, spiked, math.log(10)),
        box("two_in_20d", 20, 5.0, peaks(apart, 0.5), math.log(2)),
        scalar_problem(
            "square", lambda z: dist.Normal(z**2, 0.1), tensor([4.0]), dist.Normal(tensor(0.5), 1.5)
        ),
        Problem("label_switching", label_switching, (x,), switching_log_z(x), known=QUADRATURE),
    ]


# ---- tails, edges and many dimensions ------------------------------------------------------------


def dirichlet(concentration: float, size: int) -> Model:
    """Draws of a category under a symmetric Dirichlet prior."""

    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Dirichlet(torch.full((size,), concentration, dtype=FLOAT)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p), obs=x)

    return model


def dirichlet_log_z(concentration: float, counts: list[int]) -> float:
    size, total = len(counts) * concentration, sum(counts)
    each = [math.lgamma(concentration + n) - math.lgamma(concentration) for n in counts]
    return math.lgamma(size) - math.lgamma(size + total) + sum(each)


def beta_binomial_log_z(a: float, b: float, successes: int, failures: int) -> float:
    def log_beta(p: float, q: float) -> float:
        return math.lgamma(p) + math.lgamma(q) - math.lgamma(p + q)

    return log_beta(a + successes, b + failures) - log_beta(a, b)


def edges() -> list[Problem]:
    """Mass at the edges of supports, and heavy tails."""

    def tosses(a: float, b: float) -> Model:
        def model(x: Tensor) -> None:
            p = pyro.sample("p", dist.Beta(tensor(a), tensor(b)))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Bernoulli(p), obs=x)

        return model

    def precision(x: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(tensor(0.01), tensor(0.01)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(tensor(0.0), tau.rsqrt()), obs=x)

    def cut(x: Tensor) -> None:
        top = pyro.sample("top", dist.Gamma(tensor(2.0), tensor(1.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Uniform(tensor(0.0), top, validate_args=False), obs=x)

    def far_copy(x: Tensor) -> None:
        z = pyro.sample("z", cauchy)
        pyro.sample("x", dist.Cauchy(z, tensor(1.0)), obs=x)

    x, cauchy = tensor([0.4, 1.1, -0.3, 2.0]), dist.Cauchy(tensor(0.0), tensor(1.0))
    shape, rate = 0.01 + len(x) / 2, 0.01 + float(x.square().sum()) / 2
    gamma = 0.01 * math.log(0.01) - math.lgamma(0.01) + math.lgamma(shape) - shape * math.log(rate)
    far, both = tensor(1e4), dist.Cauchy(tensor(0.0), tensor(2.0))
    tops = integral(lambda t: t.log() - t - 3 * t.log(), 1.5, 100, 400_001)
    return [
        Problem(
            "dirichlet_0.1",
            dirichlet(0.1, 3),
            (torch.zeros(5).long(),),
            dirichlet_log_z(0.1, [5, 0, 0]),
        ),
        Problem(
            "dirichlet_0.01",
            dirichlet(0.01, 3),
            (torch.tensor([0, 0, 1]),),
            dirichlet_log_z(0.01, [2, 1, 0]),
        ),
        Problem(
            "dirichlet_of_10",
            dirichlet(1.0, 10),
            (torch.arange(20) % 7,),
            dirichlet_log_z(1.0, [3] * 6 + [2] + [0] * 3),
        ),
        Problem(
            "beta_edge",
            tosses(0.5, 0.5),
            (torch.zeros(20, dtype=FLOAT),),
            beta_binomial_log_z(0.5, 0.5, 0, 20),
        ),
        Problem(
            "beta_far_edge",
            tosses(0.05, 0.05),
            (torch.ones(10, dtype=FLOAT),),
            beta_binomial_log_z(0.05, 0.05, 10, 0),
        ),
        Problem("vague_precision", precision, (x,), gamma - 2 * math.log(2 * math.pi)),
        Problem("cut_by_data", cut, (tensor([0.5, 1.5, 1.0]),), tops, known=QUADRATURE),
        Problem("far_copy", far_copy, (far,), float(both.log_prob(far))),
        scalar_problem(
            "two_cauchys",
            lambda z: dist.Cauchy(z, tensor(1.0)),
            tensor([-8.0, 9.0]),
            cauchy,
            (-4000.0, 4000.0),
            2_000_001,
        ),
    ]


def large() -> list[Problem]:
    """Many dimensions, many data, and narrow posteriors."""

    def many(x: Tensor) -> None:
        z = pyro.sample("z", STANDARD)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    def matrix() -> None:
        factor = pyro.sample("factor", dist.LKJCholesky(3, tensor(1.0)))
        pyro.factor(
            "ratio",
            dist.LKJCholesky(3, tensor(3.0)).log_prob(factor)
            - dist.LKJCholesky(3, tensor(1.0)).log_prob(factor),
        )

    ones = torch.cat([torch.ones(700, dtype=FLOAT), torch.zeros(300, dtype=FLOAT)])
    sigmoid = torch.nn.functional.logsigmoid
    coin = integral(
        lambda z: STANDARD.log_prob(z) + 700 * sigmoid(z) + 300 * sigmoid(-z), -6, 6, 200_001
    )
    return [
        product(20, lambda z: dist.StudentT(tensor(3.0), z, 0.5), 1.5, "student_20d"),
        product(50, lambda z: dist.StudentT(tensor(3.0), z, 0.5), 1.0, "student_50d"),
        product(8, lambda z: dist.Normal(z**2, 0.5), 1.0, "signs_in_8d"),
        product(5, lambda z: dist.Poisson(z.exp()), 12.0, "poisson_5d"),
        scalar_problem(
            "narrow",
            lambda z: dist.StudentT(tensor(5.0), z, 1e-5),
            tensor([1.3]),
            span=(1.29, 1.31),
            count=200_001,
        ),
        Problem("many_tosses", many, (ones,), coin, known=QUADRATURE),
        Problem("correlation_matrix", matrix, (), 0.0),
    ]
