"""Evidence of programs of random structure against sums of multivariate normal densities."""

from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from scipy.stats import multivariate_normal
from torch import Tensor

from ppl_dgm import Program, evidence

NOISE = 0.6
LOC, SPREAD = 0.4, 1.2  # of normal latents
PROBS = (0.7, 0.3)


@dataclass(frozen=True)
class Spec:
    """Means of the data are a sum of latents: shared by all data, or of each datum."""

    plate: str
    seen: tuple[bool, ...]  # a masked datum, its own latents with it, counts for nothing
    width: int  # entries of a datum; 0 for a number
    shared: frozenset[str]  # of "normal", "discrete"
    local: frozenset[str]
    marked: bool  # discrete latents are to be enumerated
    masked_in: str  # "handler", "inside" or "outside" of the event
    double: bool
    slopes: tuple[float, float, float, float]  # of shared normal, discrete, local normal, discrete
    x: tuple[float, ...]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32

    @property
    def data(self) -> Tensor:
        shape = (len(self.seen), self.width) if self.width else (len(self.seen),)
        entries = torch.tensor(self.x[: int(np.prod(shape))], dtype=self.dtype)
        return entries.reshape(shape)


@st.composite
def specs(draw: Any) -> Spec:
    size, width = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    kinds = st.frozensets(st.sampled_from(["normal", "discrete"]))
    number = st.integers(-20, 20).map(lambda tenths: tenths / 8)  # exact in both dtypes
    return Spec(
        plate=draw(st.sampled_from(["data", "points"])),
        seen=tuple(draw(st.lists(st.booleans(), min_size=size, max_size=size))),
        width=width,
        shared=draw(kinds),
        local=draw(kinds),
        marked=draw(st.booleans()),
        masked_in=draw(st.sampled_from(["handler", "inside", "outside"])),
        double=draw(st.booleans()),
        slopes=tuple(draw(st.lists(number, min_size=4, max_size=4))),
        x=tuple(draw(st.lists(number, min_size=6, max_size=6))),
    )


def program_of(spec: Spec) -> Any:
    """The model of a specification."""
    a, b, c, d = spec.slopes
    infer = {"enumerate": "parallel"} if spec.marked else {}
    normal = dist.Normal(torch.tensor(LOC, dtype=spec.dtype), SPREAD)
    discrete = dist.Categorical(torch.tensor(PROBS, dtype=spec.dtype))
    seen = torch.tensor(spec.seen)

    def masked(fn: Any) -> Any:
        if not spec.width:
            return fn if spec.masked_in == "handler" else fn.mask(seen)
        if spec.masked_in == "inside":
            return fn.mask(seen.unsqueeze(-1)).to_event(1)
        return fn.to_event(1).mask(seen) if spec.masked_in == "outside" else fn.to_event(1)

    def model(x: Tensor) -> None:
        mean = torch.zeros((), dtype=spec.dtype)
        if "normal" in spec.shared:
            mean = mean + a * pyro.sample("g", normal)
        if "discrete" in spec.shared:
            mean = mean + b * pyro.sample("k", discrete, infer=infer)
        plate = pyro.plate(spec.plate, len(x))
        with plate, poutine.mask(mask=seen):
            if "normal" in spec.local:
                mean = mean + c * pyro.sample("z", normal)
            if "discrete" in spec.local:
                mean = mean + d * pyro.sample("c", discrete, infer=infer)
        loc = mean.unsqueeze(-1).expand(*mean.shape, spec.width) if spec.width else mean
        with plate, poutine.mask(mask=seen if spec.masked_in == "handler" else True):
            pyro.sample("x", masked(dist.Normal(loc, NOISE)), obs=x)

    return model


def truth_of(spec: Spec) -> float:
    """log p(x), summed over values of the discrete latents and integrated over the normal ones."""
    a, b, c, d = spec.slopes
    size, width = len(spec.seen), max(spec.width, 1)
    rows = np.repeat(np.arange(size), width)
    kept = np.repeat(np.array(spec.seen), width)
    x = spec.data.double().numpy().reshape(-1)
    covariance = NOISE**2 * np.eye(len(x))
    offset = 0.0
    if "normal" in spec.shared:
        covariance, offset = covariance + (a * SPREAD) ** 2, offset + a * LOC
    if "normal" in spec.local:
        same = rows[:, None] == rows
        covariance, offset = covariance + (c * SPREAD) ** 2 * same, offset + c * LOC
    if not kept.any():
        return 0.0
    terms = []
    ks = (0, 1) if "discrete" in spec.shared else (0,)
    cs = (0, 1) if "discrete" in spec.local else (0,)
    for k, *own in product(ks, *[cs] * size):
        weight = np.log(PROBS[k]) if len(ks) > 1 else 0.0
        weight += sum(np.log(PROBS[value]) for value in own) if len(cs) > 1 else 0.0
        mean = offset + b * k * (len(ks) > 1) + d * np.array(own)[rows] * (len(cs) > 1)
        law = multivariate_normal(mean[kept], covariance[np.ix_(kept, kept)])
        terms.append(weight + law.logpdf(x[kept]))
    return float(np.logaddexp.reduce(terms))


def check(spec: Spec, found: Any, truth: float) -> None:
    """An estimate without alarm is right to five standard errors, an exact one to seven digits."""
    if not found.reliable:
        return
    error = abs(found.total - truth)
    allowed = 1e-6 * (1 + abs(truth)) + 5 * found.total_std_error
    assert error <= allowed + (0.0 if found.bound == "exact" else 1e-3), (spec, found, truth)


def examine(spec: Spec, estimators: Any) -> None:
    model, truth = program_of(spec), truth_of(spec)
    for estimator in estimators:
        check(spec, estimator(Program(model), spec.data), truth)
    with suppress(ValueError):  # where there is no closed form
        check(spec, evidence.Exact()(Program(model), spec.data), truth)
    if spec.shared | spec.local == {"normal"}:
        guided = Program(model, AutoNormal(model, init_scale=1.5))
        check(spec, evidence.ImportanceSampling(4000)(guided, spec.data), truth)


QUIET = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "derandomize": True,
    "database": None,
}


@given(specs())
@settings(max_examples=12, **QUIET)
def test_random_programs_have_the_evidence_of_their_sums(spec: Spec) -> None:
    examine(spec, [evidence.PriorSampling(4000)])


@pytest.mark.slow
@given(specs())
@settings(max_examples=400, **QUIET)
def test_many_random_programs_by_every_estimator(spec: Spec) -> None:
    latents = spec.shared | spec.local
    continuous = [evidence.Laplace(), evidence.SMC(num_particles=200)]
    examine(spec, [evidence.auto, *(continuous if latents == {"normal"} else [])])
