"""Nested sampling by dynesty.

The prior transform is read from the program.
"""

import math
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import pyro.poutine as poutine
import scipy  # loads its parts when they are used
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent

from ppl_dgm.checked import checked
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.program import Bound
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.importance import Proposal
from ppl_dgm.sampling.memory import MEMORY, allocated_bytes
from ppl_dgm.sampling.unconstrained import check_continuous
from ppl_dgm.validation import check_least

__all__ = ["NestedSampling"]

EDGE = 1e-15  # of the unit cube, kept away from

# quantile functions of the distributions whose `icdf` torch lacks, as functions of (quantile,
# distribution)
QUANTILES: dict[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "Gamma": lambda u, d: scipy.special.gammaincinv(d.concentration, u) / d.rate,
    "InverseGamma": lambda u, d: d.rate / scipy.special.gammainccinv(d.concentration, u),
    "Beta": lambda u, d: scipy.special.betaincinv(d.concentration1, d.concentration0, u),
    "StudentT": lambda u, d: d.loc + d.scale * scipy.special.stdtrit(d.df, u),
    "Chi2": lambda u, d: 2 * scipy.special.gammaincinv(d.df / 2, u),
}


@checked
@dataclass(frozen=True)
class NestedSampling(Estimator):
    r"""Nested sampling of the evidence by dynesty.

    The likelihood is integrated over shells of prior volume.

    $Z = \int_0^1 L(X)\, \mathrm{d}X$ with X the prior volume above a likelihood, which shrinks by a
    factor $e^{-1/n}$ with each of the live points that is replaced. It finds all modes that a live
    point starts in, and needs no guide. The prior transform from the unit cube is read from the
    program: quantile functions of its latents, one given those before. One run of the program at a
    time, thousands of them: for data-set evidence of up to about twenty dimensions. Needs `pip
    install ppl-dgm[nested]`.

    Skilling (2006); Speagle (2020), "dynesty".

    Args:
        num_live: live points.
        sample: dynesty's way to propose: `"auto"`, `"unif"`, `"rwalk"`, `"slice"` or `"rslice"`.
        remaining: stop when at most this much of log Z can be left, in nats.
        max_calls: evaluations of the likelihood at most.
        memory: bytes that evaluating the first live points together may allocate; the later ones
            are evaluated one at a time.

    Raises:
        ValueError: where dynesty is absent, for one evidence for each datum, discrete latents, or a
            prior without a quantile function.

    Example:
        >>> from importlib.util import find_spec
        >>> find_spec("dynesty") is None or NestedSampling(num_live=50).num_live == 50
        True
    """

    num_live: int = 250
    sample: Literal["auto", "unif", "rwalk", "slice", "rslice"] = "auto"
    remaining: float = 0.01
    max_calls: int = 1_000_000
    memory: int = field(default=MEMORY, repr=False)

    def __post_init__(self) -> None:
        check_least(self, num_live=10, max_calls=100, memory=1)
        if self.remaining <= 0:
            raise ValueError(
                f"remaining is {self.remaining}; expected a positive number of nats, e.g. 0.01"
            )
        if find_spec("dynesty") is None:
            raise ValueError(
                "nested sampling runs on dynesty, which is not installed: pip install "
                "ppl-dgm[nested]"
            )

    def draws_from(self, bound: Bound) -> Proposal | None:
        return "prior"

    def check(self, bound: Bound) -> None:
        check_continuous(bound)
        if bound.structure.per_datum:
            raise ValueError(
                "nested sampling runs one integral at a time, and this program has one for each "
                "datum; use AIS, SMC or BridgeSampling, which run all data at once"
            )
        cube_dim(bound)

    def estimate(self, bound: Bound) -> Estimate:
        likelihood = Likelihood(bound)
        try:
            estimate = self._run(likelihood, cube_dim(bound))
        except RuntimeError:
            if likelihood.finite:
                raise
            estimate = Estimate(torch.tensor(-math.inf), torch.tensor(math.nan))
        return estimate._replace(warnings=estimate.warnings + likelihood.warnings)

    def _run(self, likelihood: "Likelihood", dim: int) -> Estimate:
        dynesty: Any = import_module("dynesty")  # seconds of import

        generator = np.random.default_rng(int(torch.randint(2**31, ())))
        cubes = generator.random((self.num_live, dim))
        live = [cubes, cubes.copy(), likelihood.together(cubes, self.memory)]
        sampler = dynesty.NestedSampler(
            likelihood, lambda cube: cube, dim, nlive=self.num_live, sample=self.sample,
            rstate=generator, live_points=live,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of a run stopped short, which is told below
            sampler.run_nested(dlogz=self.remaining, maxcall=self.max_calls, print_progress=False)
        found: Any = sampler.results
        log_z, error = torch.tensor([found.logz[-1], found.logzerr[-1]], dtype=torch.float64)
        diagnostics = {
            "calls": int(np.sum(found.ncall)),
            "iterations": int(found.niter),
            "num_live": self.num_live,
        }
        return Estimate(log_z, error, diagnostics, self._warnings(int(np.sum(found.ncall))))

    def _warnings(self, calls: int) -> tuple[str, ...]:
        if calls < self.max_calls:
            return ()
        return (
            (
                f"stopped after {calls} evaluations, before the remaining evidence was small; "
                "raise max_calls"
            ),
        )


class Likelihood:
    """Log likelihood at points of the unit cube.

    It is -inf where the likelihood is zero, NaN or infinite.
    """

    def __init__(self, bound: Bound) -> None:
        self.bound, self.finite, self.undefined = bound, 0, 0

    def __call__(self, cube: np.ndarray) -> float:
        spend(1)
        return self._known(float(self.bound.log_joint(from_cube(self.bound, cube)).likelihood))

    def together(self, cubes: np.ndarray, memory: int) -> np.ndarray:
        """Evaluate many points, as many at once as memory allows."""
        each = [from_cube(self.bound, cube) for cube in cubes]
        values = {name: torch.cat([one[name] for one in each]) for name in each[0]}
        row = allocated_bytes(lambda: self.bound.log_joint(each[0]))
        parts = zip(*(v.split(max(1, memory // (row + 1))) for v in values.values()), strict=True)
        found = [
            self.bound.log_joint(dict(zip(values, part, strict=True))).likelihood for part in parts
        ]
        return np.array([self._known(float(value)) for value in torch.cat(found)])

    def _known(self, value: float) -> float:
        """Count a value, and take it for zero where undefined."""
        self.finite += math.isfinite(value)
        self.undefined += math.isnan(value) or value == math.inf
        return value if math.isfinite(value) else -math.inf

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the values seen speak against."""
        if not self.undefined:
            return ()
        return (
            (
                f"the likelihood was NaN or infinite at {self.undefined} points, which count as "
                "impossible"
            ),
        )


class FromCube(Messenger):
    """Pyro messenger that maps unit-cube points to latents.

    Each latent gets the value at its quantile, which is the prior transform of the program.
    """

    def __init__(self, cube: np.ndarray, names: Collection[str]) -> None:
        super().__init__()
        self.cube, self.names, self.used = cube, names, 0
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.names:
            return
        shape = msg["fn"].shape()
        size = cube_size(msg["fn"], shape)
        u = self.cube[self.used : self.used + size].clip(EDGE, 1 - EDGE)
        self.used += size
        msg["value"] = quantile(msg["name"], msg["fn"], u, shape)
        msg["done"] = True
        self.values[msg["name"]] = msg["value"].unsqueeze(0)


def from_cube(bound: Bound, cube: np.ndarray) -> dict[str, Tensor]:
    """Compute latent values at a point of the unit cube.

    They are `[1, *shape]` by name.
    """
    with FromCube(cube, [latent.name for latent in bound.structure.model_latents]) as messenger:
        bound._evaluate(lambda: bound.model(*bound.args, **bound.kwargs))
    return messenger.values


def cube_size(fn: Any, shape: torch.Size) -> int:
    """Count the quantiles that a site takes.

    On a simplex they are one fewer than the entries.
    """
    return (
        shape.numel() // shape[-1] * (shape[-1] - 1)
        if type(unwrapped(fn)).__name__ == "Dirichlet"
        else shape.numel()
    )


def cube_dim(bound: Bound) -> int:
    """Dimension of the program's unit cube."""
    run: Any = poutine.trace(bound.model)
    trace = bound._evaluate(lambda: run.get_trace(*bound.args, **bound.kwargs))
    sizes = []
    for latent in bound.structure.model_latents:
        fn, shape = trace.nodes[latent.name]["fn"], trace.nodes[latent.name]["value"].shape
        sizes.append(cube_size(fn, shape))
        quantile(latent.name, fn, np.full(sizes[-1], 0.5), shape)
    return sum(sizes)


def unwrapped(fn: Any) -> Any:
    """Strip `to_event`, `expand` and `mask`, but no transform."""
    while isinstance(fn, (Independent, ExpandedDistribution, MaskedDistribution)):
        fn = fn.base_dist
    return fn


def quantile(name: str, fn: Any, u: np.ndarray, shape: torch.Size) -> Tensor:
    """Compute the value of a site at quantiles `u`.

    It has the shape of the site.
    """
    base = unwrapped(fn)
    kind = type(base).__name__
    if kind == "Dirichlet":
        return stick_breaking(base.concentration.expand(shape), u)
    like = base.sample()
    if kind in QUANTILES:
        value = QUANTILES[kind](u.reshape(shape), Numbers(base, shape))
        return torch.as_tensor(np.asarray(value), dtype=like.dtype, device=like.device).reshape(
            shape
        )
    try:
        return base.expand(shape).icdf(
            torch.as_tensor(u, dtype=like.dtype, device=like.device).reshape(shape)
        )
    except NotImplementedError as error:
        raise ValueError(
            f"the prior {kind} of latent {name!r} has no quantile function, which nested sampling "
            "needs; write it as a transform of Normal or Uniform variables, or use SMC, AIS or "
            "BridgeSampling"
        ) from error


class Numbers:
    """A distribution's parameters as numpy arrays."""

    def __init__(self, fn: Any, shape: torch.Size) -> None:
        self.fn, self.shape = fn, shape

    def __getattr__(self, name: str) -> np.ndarray:
        return (
            torch.as_tensor(getattr(self.fn, name))
            .expand(self.shape)
            .detach()
            .cpu()
            .double()
            .numpy()
        )


def stick_breaking(concentration: Tensor, u: np.ndarray) -> Tensor:
    """Dirichlet values from quantiles of its beta-distributed sticks."""
    total = concentration.flip(-1).cumsum(-1).flip(-1)
    first, rest = concentration[..., :-1].numpy(), total[..., 1:].numpy()
    sticks = torch.as_tensor(scipy.special.betaincinv(first, rest, u.reshape(first.shape))).to(
        concentration
    )
    left = torch.cat([torch.ones_like(sticks[..., :1]), (1 - sticks).cumprod(-1)], -1)
    return torch.cat([sticks * left[..., :-1], left[..., -1:]], -1)
