"""Whether draws of distributions follow their densities, by Stein's identity."""

import math
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import biject_to

from ppl_dgm.distributions import WithinCell
from ppl_dgm.program import Bound
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.seeding import seeded
from ppl_dgm.program.supports import innermost
from ppl_dgm.sampling.importance import Proposal
from ppl_dgm.sampling.kernels.adaptation import robust_scale
from ppl_dgm.sampling.simplex import precise
from ppl_dgm.sampling.unconstrained import ANGLES, ONE_TURN

__all__ = ["draws_alarm"]

NUM_DRAWS, LEAST_DRAWS = 4000, 200
MOST_TIES = 0.02  # share of draws that may coincide
MOST_NUMBERS = 2_000_000  # in all draws of one site
APART = 6.0  # standard errors from zero
MATERIAL = 0.02  # mean of an identity, in units of its terms, that matters
SOUND = (
    dist.Normal, dist.Uniform, dist.Exponential, dist.Laplace, dist.Cauchy, dist.LogNormal,
    dist.HalfNormal, dist.HalfCauchy, dist.MultivariateNormal, dist.LowRankMultivariateNormal,
    dist.Delta,
)  # fmt: skip


def draws_alarm(bound: Bound, proposal: Proposal) -> tuple[str, ...]:
    r"""Warn where draws of latents do not follow their density.

    Continuous latents are tested, with draws from the prior or the guide.

    With the unconstrained value y of a draw, u = (y - c) / s for any c and s, and the score
    $g = s\, \partial \log p / \partial y$,

    $$\mathbb{E}[g] = 0, \qquad \mathbb{E}[u\, g] = -1, \qquad
      \mathbb{E}[\tanh(u)\, g] = -\mathbb{E}[1 - \tanh^2 u], \qquad \mathbb{E}[u_i\, g_j] = 0,$$

    at one draw of what the distribution depends on. Stein (1972); Gorham and Mackey (2015),
    "Measuring sample quality with Stein's method".
    """
    guided = proposal == "guide" and bound.structure.has_guide
    latents = bound.structure.latents if guided else bound.structure.model_latents
    names = [latent.name for latent in latents if not latent.discrete]
    run: Any = bound.guide if guided else bound.model

    def distances() -> dict[str, tuple[str, float]]:
        sites = poutine.trace(run).get_trace(*bound.args, **bound.kwargs).nodes
        fns = {name: smooth_part(sites[name]["fn"]) for name in names if name in sites}
        return {name: (type(fn).__name__, stein_distance(fn)) for name, fn in fns.items()}

    with seeded(0, bound.device), undisturbed(run), torch.enable_grad():
        found = bound._evaluate(distances)
    return tuple(
        f"draws of latent {name!r} ({kind}) do not follow its density: they coincide at the "
        "smallest float, or Stein's identity fails"
        for name, (kind, distance) in found.items()
        if distance > APART
    )


def smooth_part(fn: Any) -> Any:
    """The distribution without steps of its density.

    Noise within a cell ends at its edges, where the identity does not hold: the noise is tested.
    """
    fn = innermost(fn)
    return fn.noise if isinstance(fn, WithinCell) else fn


def stein_distance(fn: Any) -> float:
    """Measure how far a distribution's draws violate Stein's identity.

    The result is the largest violation in standard errors. It is 0 where the distribution is not
    tested.
    """
    if isinstance(fn, SOUND) or LEAST_DRAWS * numbers_in(fn) > MOST_NUMBERS:
        return 0.0
    try:
        return max(largest_z(terms) for terms in stein_terms(fn))
    except (NotImplementedError, RuntimeError):  # no bijection, no density or no gradient
        return 0.0


def numbers_in(fn: Any) -> int:
    """Numbers in one draw."""
    return math.prod(fn.batch_shape + fn.event_shape)


def stein_terms(fn: Any) -> Iterator[Tensor]:
    """Yield terms of mean zero at draws of a distribution.

    They are `[draws, ...]`.
    """
    transform: Any = precise(biject_to(ONE_TURN if isinstance(fn, ANGLES) else fn.support))
    count = min(NUM_DRAWS, MOST_NUMBERS // numbers_in(fn))
    y = transform.inv(fn.sample(torch.Size([count]))).detach().requires_grad_()
    value = transform(y)
    log_prob = fn.log_prob(value)
    jacobian = transform.log_abs_det_jacobian(y, value)
    total = log_prob.sum() + jacobian.sum()
    (score,) = torch.autograd.grad(total, y)
    y = y.detach()
    scale = robust_scale(y)
    u, g = (y - y.median(0).values) / scale, score * scale
    yield distinct_terms(y)
    yield g
    yield u * g + 1
    yield u.tanh() * g + 1 - u.tanh().square()
    if transform.domain.event_dim:
        for shift in range(1, y.shape[-1]):
            yield u * g.roll(shift, -1)


def distinct_terms(y: Tensor) -> Tensor:
    """Return zero, or infinity where too many draws coincide.

    The result has one row fewer than the draws.
    """
    ordered = y.sort(0).values
    ties = (ordered[1:] == ordered[:-1]).to(y.dtype)
    return torch.where(ties.mean(0) > MOST_TIES, torch.inf, 0.0).expand_as(ties)


def largest_z(terms: Tensor) -> float:
    """Compute the largest distance of term means from zero.

    Terms are `[draws, ...]`, the distance is in standard errors. Means too small to matter count as
    zero.
    """
    if not terms.numel():
        return 0.0  # the simplex of one entry
    mean, spread = terms.mean(0), terms.std(0)
    z = mean / (spread / math.sqrt(len(terms)))
    negligible = mean.abs() <= MATERIAL * (1 + spread)
    return float(torch.where(negligible, 0.0, z.abs()).nan_to_num(nan=math.inf).max())
