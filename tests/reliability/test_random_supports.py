"""Evidence of programs with latents of random supports, at random levels, against quadrature."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from scipy import stats
from scipy.special import expit, logsumexp
from test_random_programs import QUIET, check
from torch import Tensor

from ppl_dgm import Program, evidence

LEVELS = ("shared", "row", "cell")
NODES, WEIGHTS = np.polynomial.legendre.leggauss(400)
_S = (NODES + 1) / 2
UNIT, UNIT_WEIGHTS = _S**2 * (3 - 2 * _S), WEIGHTS * 3 * _S * (1 - _S)  # closer at the ends

# support: the prior in Pyro and in scipy, and a map to the real line
PRIORS: dict[str, tuple[Any, Any, Any]] = {
    "real": (lambda of: dist.Normal(of(0.4), of(1.2)), stats.norm(0.4, 1.2), lambda z: z),
    "heavy": (lambda of: dist.StudentT(of(4.0)), stats.t(4), lambda z: z / (1 + z * z) ** 0.5),
    "positive": (lambda of: dist.Gamma(of(2.0), of(1.5)), stats.gamma(2, scale=1 / 1.5), "log"),
    "unit": (lambda of: dist.Beta(of(2.0), of(3.0)), stats.beta(2, 3), lambda z: 3 * z - 1),
    "interval": (
        lambda of: dist.Uniform(of(-1.0), of(2.0)),
        stats.uniform(-1, 3),
        lambda z: z,
    ),
    "half": (lambda of: dist.HalfNormal(of(1.5)), stats.halfnorm(scale=1.5), lambda z: z - 1),
    "simplex": (lambda of: dist.Dirichlet(of((2.0, 3.0))), stats.beta(2, 3), lambda z: 3 * z - 1),
}
COUNTS = (0.7, 0.3)


@dataclass(frozen=True)
class Spec:
    """A latent and a discrete one, each at a level; data in a plate, or in two nested ones."""

    support: str
    level: str
    discrete: str  # the level of the discrete latent, or ""
    marked: bool  # it is to be enumerated
    data: str  # "real", "count", "binary" or "positive"
    seen: tuple[tuple[bool, ...], ...]  # rows and cells
    hidden_too: bool  # the mask is on the latents of cells too
    slopes: tuple[float, float]
    x: tuple[int, ...]
    double: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32

    @property
    def values(self) -> np.ndarray:
        """The data, in the support of their law."""
        x = np.array(self.x[: len(self.seen) * len(self.seen[0])], dtype=float)
        laws = {"real": x - 1.5, "count": x, "binary": x % 2, "positive": (x + 1) / 2}
        return laws[self.data].reshape(len(self.seen), -1)


@st.composite
def specs(draw: Any) -> Spec:
    rows, cells = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    cell_masks = st.lists(st.booleans(), min_size=cells, max_size=cells).map(tuple)
    eighths = st.integers(-12, 12).map(lambda number: number / 8)
    return Spec(
        support=draw(st.sampled_from(sorted(PRIORS))),
        level=draw(st.sampled_from(LEVELS)),
        discrete=draw(st.sampled_from(["", *LEVELS])),
        marked=draw(st.booleans()),
        data=draw(st.sampled_from(["real", "count", "binary", "positive"])),
        seen=tuple(draw(st.lists(cell_masks, min_size=rows, max_size=rows))),
        hidden_too=draw(st.booleans()),
        slopes=(draw(eighths), draw(eighths)),
        x=tuple(draw(st.lists(st.integers(0, 4), min_size=6, max_size=6))),
        double=draw(st.booleans()),
    )


def program_of(spec: Spec) -> Any:
    """The model of a specification."""
    slope, step = spec.slopes
    seen = torch.tensor(spec.seen)
    prior, _, link = PRIORS[spec.support]

    def of(value: Any) -> Tensor:
        return torch.tensor(value, dtype=spec.dtype)

    def location(level: str) -> Any:
        """What the latents of a level add to that of the data."""
        found = torch.zeros((), dtype=spec.dtype)
        if spec.level == level:
            z = pyro.sample("z", prior(of))
            z = z[..., 0] if spec.support == "simplex" else z
            found = found + slope * (z.log() if link == "log" else link(z))
        if spec.discrete == level:
            infer = {"enumerate": "parallel"} if spec.marked else {}
            found = found + step * pyro.sample("k", dist.Categorical(of(COUNTS)), infer=infer)
        return found

    def law(eta: Tensor) -> Any:
        if spec.data == "real":
            return dist.Normal(eta, of(0.8))
        if spec.data == "count":
            return dist.Poisson((eta / 2).exp())
        return dist.Bernoulli(logits=eta) if spec.data == "binary" else dist.Exponential(eta.exp())

    def model(x: Tensor) -> None:
        eta = location("shared")
        with pyro.plate("rows", x.shape[0], dim=-2):
            eta = eta + location("row")
            with pyro.plate("cells", x.shape[1], dim=-1):
                with poutine.mask(mask=seen if spec.hidden_too else True):
                    eta = eta + location("cell")
                with poutine.mask(mask=seen):
                    pyro.sample("x", law(eta), obs=x)

    return model


def truth_of(spec: Spec) -> float:
    """log p(x): sums and integrals from the cells up; axes: values of k, nodes, rows, cells."""
    slope, step = spec.slopes
    _, prior, link = PRIORS[spec.support]
    z = prior.ppf(UNIT)
    eta = slope * (np.log(z) if link == "log" else link(z)) + step * np.arange(2)[:, None]
    eta = eta[:, :, None, None]
    laws = {
        "real": lambda x: stats.norm(eta, 0.8).logpdf(x),
        "count": lambda x: stats.poisson(np.exp(eta / 2)).logpmf(x),
        "binary": lambda x: stats.bernoulli(expit(eta)).logpmf(x),
        "positive": lambda x: stats.expon(scale=np.exp(-eta)).logpdf(x),
    }
    terms = laws[spec.data](spec.values) * np.array(spec.seen)
    log_k = np.log([1.0, 1e-300] if not spec.discrete else COUNTS).reshape(2, 1, 1, 1)
    log_z = np.log(UNIT_WEIGHTS).reshape(1, -1, 1, 1)
    for level, axis in (("cell", 3), ("row", 2), ("shared", None)):
        if spec.level == level:
            terms = logsumexp(terms + log_z, axis=1, keepdims=True)
        if spec.discrete == level or (level == "shared" and not spec.discrete):
            terms = logsumexp(terms + log_k, axis=0, keepdims=True)
        terms = terms if axis is None else terms.sum(axis, keepdims=True)
    return float(terms.squeeze())


def examine(spec: Spec, estimators: Any) -> None:
    data, truth = torch.tensor(spec.values, dtype=spec.dtype), truth_of(spec)
    for estimator in estimators:
        check(spec, estimator(Program(program_of(spec)), data), truth)
    with suppress(ValueError):  # where there is no closed form
        check(spec, evidence.Exact()(Program(program_of(spec)), data), truth)


@given(specs())
@settings(max_examples=4, **QUIET)
def test_latents_of_random_supports_have_the_evidence_of_quadrature(spec: Spec) -> None:
    examine(spec, [evidence.PriorSampling(4000)])


@pytest.mark.slow
@given(specs())
@settings(max_examples=400, **QUIET)
def test_many_random_supports_by_every_estimator(spec: Spec) -> None:
    moving = [] if spec.discrete else [evidence.SMC(num_particles=200)]
    examine(spec, [evidence.auto, *moving])
