"""Programs of known evidence, one or more for each kind of fault that evidence can have: `KINDS`.

Truths are closed forms, sums over all values, or integrals of one or two dimensions by the
trapezoid rule.
"""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from evidence.case_programs import FLOAT, Case, normal, tensor, uniform
from torch import Tensor

Model = Callable[..., None]
STANDARD = dist.Normal(torch.zeros((), dtype=FLOAT), 1.0)


def integral(
    log_f: Callable[[Tensor], Tensor], low: float, high: float, count: int = 20_001
) -> float:
    """log of the integral of exp(log_f) over an interval."""
    grid = torch.linspace(low, high, count, dtype=FLOAT)
    return float(log_f(grid).logsumexp(0)) + math.log((high - low) / (count - 1))


def scalar(
    likelihood: Callable[[Tensor], dist.Distribution], prior: dist.Distribution = STANDARD
) -> Model:
    """One latent z and data from a likelihood given it."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(z), obs=x)

    return model


def scalar_case(
    name: str,
    likelihood: Callable[[Tensor], dist.Distribution],
    x: Tensor,
    prior: dist.Distribution = STANDARD,
    span: tuple[float, float] = (-12.0, 12.0),
    count: int = 20_001,
) -> Case:
    """A case of one latent, its truth by quadrature over the span."""

    def log_f(z: Tensor) -> Tensor:
        return prior.log_prob(z) + likelihood(z[:, None]).log_prob(x).sum(-1)

    return Case(name, scalar(likelihood, prior), (x,), integral(log_f, *span, count))


def product(
    dims: int, likelihood: Callable[[Tensor], dist.Distribution], x: float, name: str
) -> Case:
    """The same integral in each of many dimensions."""

    def model(data: Tensor) -> None:
        z = pyro.sample("z", normal(0.0, 1.0, dims))
        pyro.sample("x", likelihood(z).to_event(1), obs=data)

    one = integral(lambda z: STANDARD.log_prob(z) + likelihood(z).log_prob(tensor(x)), -12, 12)
    return Case(name, model, (torch.full((dims,), x, dtype=FLOAT),), dims * one)


def box(name: str, dims: int, half: float, log_f: Callable[[Tensor], Tensor], log_z: float) -> Case:
    """A factor over a uniform box around zero.

    `log_z` is the integral of its exponential over all space.
    """

    def model() -> None:
        z = pyro.sample("z", uniform(-half, half, dims))
        pyro.factor("likelihood", log_f(z))

    return Case(name, model, (), log_z - dims * math.log(2 * half))


# ---- what counts in a density --------------------------------------------------------------------


def counted() -> list[Case]:
    """Guides with factors and observations, masks, and points of no mass."""

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
    seen = scalar_case("", lambda z: dist.StudentT(tensor(4.0), z, 1.0), long[:2])
    return [
        Case("guide_with_factor", local, (x,), truth, guide=with_factor),
        Case("masked_padding", padded, (long, present), seen.log_z),
    ]


# ---- digits --------------------------------------------------------------------------------------


def digits() -> list[Case]:
    """float32 data, counts, piecewise and quadratic means, probabilities of zero, NaNs far out."""

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
        Case("large_count", count, (torch.tensor(2_500_321.0),), -math.log(5e6 + 1)),
        scalar_case(
            "clamped_mean",
            lambda z: dist.Normal(z.clamp(min=0.0), 0.2),
            tensor([0.0]),
            dist.Normal(tensor(2.0), 0.7),
        ),
        scalar_case(
            "quadratic_mean", lambda z: dist.Normal(z + 0.3 * z**2, 0.3), tensor([0.0, 0.2])
        ),
        Case("zero_probability", zeros, (tensor(2.0),), float(two.logsumexp(0))),
        Case("undefined_far_out", hand_written, (torch.tensor(6.0),), nan),
        Case("small_integers", geometric, (torch.tensor([0, 1, 5], dtype=torch.uint8),), counts),
        Case("scale_1e8", scaled, (tensor(2e8),), heavy - math.log(1e8)),
        scalar_case(
            "scale_1e-8", lambda z: dist.StudentT(tensor(3.0), 1e-8 * z, 1e-8), tensor([2e-8, 0.0])
        ),
    ]


# ---- dependence ----------------------------------------------------------------------------------


def dependent() -> list[Case]:
    """Latents and data that are one data set, whatever their plate is called."""

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
        Case(
            "gaussian_process",
            gaussian_process,
            (y.exp(), torch.linalg.cholesky(kernel)),
            log_normal(y, kernel + 0.09 * torch.eye(10)),
        ),
        Case(
            "random_walk",
            walk,
            (v.exp(),),
            log_normal(v, 0.25 * lower @ lower.T + 0.16 * torch.eye(8)),
        ),
    ]


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


def shapes() -> list[Case]:
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
        Case("banana", banana, (), math.log(math.pi / 10 / 400)),
        Case("funnel", funnel, (x,), funnel_log_z(x)),
        Case("arc", bent, (tensor(0.0),), arc),
        Case("arc_light_guide", bent, (tensor(0.0),), arc, guide=light_guide),
        Case("cross", cross, (tensor(1.0),), arms),
        box("ring_3d", 3, 6.0, ring, ring_3d),
        box("ring_5d", 5, 6.0, ring, ring_5d),
    ]


# ---- many modes ----------------------------------------------------------------------------------


def peaks(centres: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    """log of the sum of normals of unit mass at the centres."""

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


def modes() -> list[Case]:
    """Peaks on a grid, corners of a cube, a spike in a slab, signs and labels."""
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
        scalar_case(
            "square", lambda z: dist.Normal(z**2, 0.1), tensor([4.0]), dist.Normal(tensor(0.5), 1.5)
        ),
        Case("label_switching", label_switching, (x,), switching_log_z(x)),
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


def edges() -> list[Case]:
    """Mass at the edges of supports and of floats, supports that data cut off, heavy tails."""

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

    x, cauchy = tensor([0.4, 1.1, -0.3, 2.0]), dist.Cauchy(tensor(0.0), tensor(1.0))
    shape, rate = 0.01 + len(x) / 2, 0.01 + float(x.square().sum()) / 2
    gamma = 0.01 * math.log(0.01) - math.lgamma(0.01) + math.lgamma(shape) - shape * math.log(rate)
    tops = integral(lambda t: t.log() - t - 3 * t.log(), 1.5, 100, 400_001)
    return [
        Case(
            "dirichlet_0.1",
            dirichlet(0.1, 3),
            (torch.zeros(5).long(),),
            dirichlet_log_z(0.1, [5, 0, 0]),
        ),
        Case(
            "dirichlet_0.01",
            dirichlet(0.01, 3),
            (torch.tensor([0, 0, 1]),),
            dirichlet_log_z(0.01, [2, 1, 0]),
        ),
        Case(
            "dirichlet_of_10",
            dirichlet(1.0, 10),
            (torch.arange(20) % 7,),
            dirichlet_log_z(1.0, [3] * 6 + [2] + [0] * 3),
        ),
        Case(
            "beta_edge",
            tosses(0.5, 0.5),
            (torch.zeros(20, dtype=FLOAT),),
            beta_binomial_log_z(0.5, 0.5, 0, 20),
        ),
        Case(
            "beta_far_edge",
            tosses(0.05, 0.05),
            (torch.ones(10, dtype=FLOAT),),
            beta_binomial_log_z(0.05, 0.05, 10, 0),
        ),
        Case("vague_precision", precision, (x,), gamma - 2 * math.log(2 * math.pi)),
        Case("cut_by_data", cut, (tensor([0.5, 1.5, 1.0]),), tops),
        scalar_case(
            "two_cauchys",
            lambda z: dist.Cauchy(z, tensor(1.0)),
            tensor([-8.0, 9.0]),
            cauchy,
            (-4000.0, 4000.0),
            2_000_001,
        ),
    ]


def large() -> list[Case]:
    """Many dimensions, many data, and posteriors far narrower than their priors."""

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
        scalar_case(
            "narrow",
            lambda z: dist.StudentT(tensor(5.0), z, 1e-5),
            tensor([1.3]),
            span=(1.29, 1.31),
            count=200_001,
        ),
        Case("many_tosses", many, (ones,), coin),
        Case("correlation_matrix", matrix, (), 0.0),
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


def local_log_z(likelihood: Callable[[Tensor], dist.Distribution], x: Tensor) -> float:
    grid = torch.linspace(-12, 12, 20_001, dtype=FLOAT)[:, None]
    each = STANDARD.log_prob(grid) + likelihood(grid).log_prob(x)
    return float(each.logsumexp(0).sum()) + len(x) * math.log(24 / 20_000)


def local_square(x: Tensor) -> None:
    """Two modes for each datum."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", STANDARD)
        pyro.sample("x", dist.Normal(z**2, 0.2), obs=x)


def locals_and_counts() -> list[Case]:
    """Outliers under guides, two modes each; rare, thinned and binary latents."""

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

    def noise(z: Tensor) -> dist.Distribution:
        return dist.StudentT(tensor(3.0), z, 0.5)

    squares = tensor([0.5, 1.0, 2.0, 4.0])
    return [
        Case("local_student", local_student, (student,), local_log_z(noise, student)),
        Case(
            "local_outlier",
            local_student,
            (outlier,),
            local_log_z(noise, outlier),
            guide=narrow_guide,
        ),
        Case(
            "local_square",
            local_square,
            (squares,),
            local_log_z(lambda z: dist.Normal(z**2, 0.2), squares),
        ),
        Case("rare_count", rare, (tensor(15.0),), float(counts.logsumexp(0))),
        Case(
            "thinned_count",
            thinned,
            (tensor(20.0),),
            float(dist.Poisson(tensor(15.0)).log_prob(tensor(20.0))),
        ),
        Case("binary_sum", binary, (tensor(30.0), weight), float(total.logsumexp(0))),
    ]


KINDS = [
    *counted(), *digits(), *dependent(), *shapes(), *modes(), *edges(), *large(),
    *locals_and_counts(),
]  # fmt: skip
