"""Importance sampling of counts from a wide proposal.

The proposal of these discrete latents is far wider than their prior.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from ppl_dgm.checked import checked
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.evidence.importance import ImportanceSampling
from ppl_dgm.program import Bound
from ppl_dgm.program.handlers import Prior, is_given_or_summed_out
from ppl_dgm.program.supports import innermost

__all__ = ["WideSampling", "has_counts", "innermost_support"]

MOST = 2**20  # one above the largest count that the wide part proposes
WIDE = 0.5  # share of the draws that come from it


class WideCount(dist.TorchDistribution):
    r"""Mixture of a count distribution and a wider one.

    Half of the draws are from the wider one.

    The wide part has $P(n) = \log\frac{n + 2}{n + 1} / \log(M + 1)$ for n < M, about equal mass for
    each factor of two. Values below zero and above M come from the base alone.

    Args:
        base: the distribution of the count.

    Example:
        >>> import torch
        >>> wide = WideCount(dist.Poisson(torch.tensor(0.01)))
        >>> n = torch.arange(50.0)
        >>> bool((wide.log_prob(n) >= wide.base.log_prob(n) + math.log(0.4999)).all())
        True
    """

    has_enumerate_support = False

    def __init__(self, base: Any) -> None:
        self.base = base
        super().__init__(base.batch_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """That of the base."""
        return self.base.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "WideCount":
        """The same for a larger batch."""
        return WideCount(self.base.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw from either part."""
        narrow = self.base.sample(torch.Size(sample_shape))
        u = torch.rand(narrow.shape, dtype=torch.float64, device=narrow.device)
        wide = ((u * math.log(MOST + 1)).exp().floor() - 1).clamp(0, MOST - 1)
        return torch.where(torch.rand_like(u) < WIDE, wide.to(narrow.dtype), narrow)

    def log_prob(self, value: Tensor) -> Tensor:
        """log of the mixture's probability."""
        count = value.double()
        wide = ((count + 2) / (count + 1)).log().log() - math.log(math.log(MOST + 1))
        wide = torch.where((count >= 0) & (count < MOST), wide, -torch.inf)
        narrow = self.base.log_prob(value).double()
        return torch.logaddexp(wide + math.log(WIDE), narrow + math.log1p(-WIDE))


class Widen(Messenger):
    """Pyro messenger that widens the proposals of counts.

    Counts without upper limit are proposed from `WideCount`; all other sites are left as they are.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and is_count(msg["fn"]):
            msg["fn"] = widened(msg["fn"])


def is_count(fn: Any) -> bool:
    """Check whether a distribution is of counts without limit.

    Each count must be its own event, apart from `to_event`.
    """
    inner = innermost(fn)  # of a plate's indices too, which have no support
    counts = getattr(inner, "support", None) is constraints.nonnegative_integer
    return counts and not inner.event_shape


def widened(fn: Any) -> Any:
    """`WideCount` of a distribution, under the same `to_event`.

    Masks are taken off: evidence counts all latents, and so do their proposals.
    """
    if isinstance(fn, dist.MaskedDistribution):
        return widened(fn.base_dist)
    if isinstance(fn, torch.distributions.Independent):
        return widened(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    return WideCount(fn)


class WideProposal:
    """The model's prior with widened counts, as a guide."""

    def __init__(self, model: Callable) -> None:
        self.prior = Prior(model, is_given_or_summed_out)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        with Widen():
            self.prior(*args, **kwargs)


@checked
@dataclass(frozen=True)
class WideSampling(ImportanceSampling):
    r"""Prior sampling with a wide proposal for counts.

    It is for data that are rare under the prior.

    $\log \hat Z = \log \frac1K \sum_k p(x, z_k) / q(z_k)$ with q the prior, but half of the draws
    of each Poisson, geometric or negative binomial latent from about equal mass on each factor of
    two (`WideCount`): no count is out of reach. The other latents come from the prior, and the
    guide is ignored.

    Hesterberg (1995), "Weighted average importance sampling and defensive mixture distributions".

    Args:
        num_particles: K, draws for each datum (or for the data set).
        memory: bytes that one chunk of draws may allocate.
        compile: whether chunks run compiled: True, False, or `"auto"`, where that pays.

    Raises:
        ValueError: where no latent is a count, or counts depend on what is summed out.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     k = pyro.sample("k", dist.Poisson(0.01))
        ...     pyro.sample("x", dist.Normal(5.0 * k, 1.0), obs=x)
        >>> result = WideSampling(num_particles=20_000)(ppl_dgm.Program(model), torch.tensor(15.0))
        >>> k = torch.arange(20.0)
        >>> likelihood = dist.Normal(5 * k, 1.0).log_prob(torch.tensor(15.0))
        >>> exact = (dist.Poisson(0.01).log_prob(k) + likelihood).logsumexp(0)
        >>> bool((result.log_z - exact).abs() < 4 * result.std_error)
        True
    """

    def check(self, bound: Bound) -> None:
        if not has_counts(bound):
            raise ValueError(
                "no latent is a count without upper limit, so that there is nothing to widen; use "
                "PriorSampling"
            )
        if bound.is_entangled():
            raise ValueError(
                "latents depend on others that are summed out, so that their density at a draw is "
                "unknown; use PriorSampling"
            )

    def estimate(self, bound: Bound) -> Estimate:
        latents, runs = bound.structure.model_latents, bound.structure.model_runs
        structure = replace(bound.structure, has_guide=True, latents=latents, guide_runs=runs)
        wide = replace(bound, guide=WideProposal(bound.model), structure=structure)
        return super().estimate(wide.proper())


def has_counts(bound: Bound) -> bool:
    """Whether any latent is a count without upper limit."""
    supports = [latent.support for latent in bound.structure.model_latents]
    return any(innermost_support(s) is constraints.nonnegative_integer for s in supports)


def innermost_support(support: Any) -> Any:
    """Strip the events that a constraint is repeated over."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support
