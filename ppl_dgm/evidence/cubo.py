"""CUBO: an upper bound from powers of the weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.estimate import BoundKind, Estimate
from ppl_dgm.evidence.weight_estimator import WeightEstimator
from ppl_dgm.program import Bound
from ppl_dgm.sampling.convergence import mean_std_error
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.sampling.weight_summary import pareto_k
from ppl_dgm.validation import check_least

__all__ = ["CUBO"]

LARGEST_K = 0.7


@checked
@dataclass(frozen=True)
class CUBO(WeightEstimator):
    r"""Chi upper bound (CUBO) of log Z.

    Its estimate is an upper bound too, in expectation.

    $$\mathrm{CUBO}_n = \tfrac1n \log \mathbb{E}_q[w^n] \ge \log Z \quad (n \ge 1),$$

    which is also the Rényi bound of order $\alpha = 1 - n < 0$. The log of an average is too low on
    average, so the tangent at a value a from the other half of the draws is used, $\log y \le \log
    a + y / a - 1$:

    $$\widehat{U} = \tfrac1n \bigl(\log a - 1 + \tfrac1K \textstyle\sum_k w_k^n / a\bigr), \qquad
      \mathbb{E}[\widehat{U}] \ge \mathrm{CUBO}_n \ge \log Z.$$

    It is finite only where the guide is wider than the posterior: `pareto_k` is that of $w^n$, and
    above 0.7 the bound is marked: the estimate then means nothing. `diagnostics["cubo"]` has the
    plain estimate. Costs `num_particles` runs of guide and model.

    Dieng, Tran, Ranganath, Paisley and Blei (2017), eq. 3; Li and Turner (2016).

    Args:
        num_particles: draws for each datum (or for the data set), both halves together.
        proposal: `"guide"` or `"prior"`.
        order: n, at least 1; smaller is tighter, and 1 is log Z itself.
        memory: bytes that one chunk of draws may allocate.

    Raises:
        ValueError: for an order below 1 or too few draws.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> result = CUBO(num_particles=4000)(ppl_dgm.Program(model), torch.zeros(1))
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(()))
        >>> result.bound, bool(result.log_z > truth)
        ('upper', True)
    """

    order: float = 2.0
    bound: ClassVar[BoundKind] = "upper"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, num_particles=4)
        if self.order < 1:
            raise ValueError(
                f"order is {self.order}; expected at least 1 (2 is usual), for an upper bound"
            )

    def estimate(self, bound: Bound) -> Estimate:
        powers = self.order * self.weights(bound, self.num_particles)
        half = len(powers) // 2
        first, second = powers[:half], powers[half:]
        upper = (tangent(first, second) + tangent(second, first)) / (2 * self.order)
        error = torch.hypot(tangent_error(first, second), tangent_error(second, first)) / (
            2 * self.order
        )
        k = pareto_k(powers)
        diagnostics = {
            "pareto_k": k,
            "cubo": log_mean_exp(powers) / self.order,
            "num_particles": self.num_particles,
        }
        return Estimate(upper, error, diagnostics, narrow_guide(k))


def tangent(inside: Tensor, outside: Tensor) -> Tensor:
    """Bound a log mean from above by a tangent.

    The tangent of the log at the mean of `exp(outside)` is taken at the mean of `exp(inside)`: on
    average it is at least the log of that mean.
    """
    point = log_mean_exp(outside)
    return point - 1 + (log_mean_exp(inside) - point).exp()


def tangent_error(inside: Tensor, outside: Tensor) -> Tensor:
    """Standard error of `tangent` over the draws inside."""
    return mean_std_error((inside - log_mean_exp(outside)).exp())


def narrow_guide(k: Tensor) -> tuple[str, ...]:
    """Warn where powers of the weights have no finite mean."""
    if not bool((k > LARGEST_K).any()):
        return ()
    return (
        (
            "the guide is narrower than the posterior: the upper bound is infinite, and its "
            "estimate means nothing"
        ),
    )
