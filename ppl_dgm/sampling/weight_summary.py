"""Summary of log weights that come in chunks."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.sampling.convergence import student_factor
from ppl_dgm.sampling.pareto import tail_shapes

__all__ = ["WeightSummary", "pareto_k"]

NEARLY_EQUAL = 1e-6  # relative variance of weights below which their skewness is rounding


@dataclass
class WeightSummary:
    r"""Streaming summary of log weights in float64.

    It gives mean, log-mean-exp, their standard errors, ESS and Pareto k.

    Feed it `[particles, ...]` chunks with `add`; it keeps a constant number of numbers for each
    datum, and the largest weights for the tail. $\mathrm{ESS} = (\sum w)^2 / \sum w^2$.
    """

    num_particles: int
    count: int = 0
    log_sum: Any = -math.inf
    log_square_sum: Any = -math.inf
    log_cube_sum: Any = -math.inf
    mean: Any = 0.0
    squares: Any = 0.0
    tail: Any = None

    def add(self, log_weights: Tensor) -> None:
        """Add a chunk of log weights `[particles, ...]`."""
        log_w = log_weights.detach().double()
        self.log_sum = log_add(self.log_sum, log_w)
        self.log_square_sum = log_add(self.log_square_sum, 2 * log_w)
        self.log_cube_sum = log_add(self.log_cube_sum, 3 * log_w)
        self._add_moments(log_w)
        tail = log_w if self.tail is None else torch.cat([self.tail, log_w])
        self.tail = tail.topk(min(self.tail_size + 1, tail.shape[0]), 0).values

    def _add_moments(self, log_w: Tensor) -> None:
        """Update the mean and the sum of squares.

        Means and sums of squares of two samples are combined as in Chan et al. (1979).
        """
        n, m = self.count, log_w.shape[0]
        mean = log_w.mean(0)
        delta = mean - self.mean
        self.squares = (
            self.squares + (log_w - mean).square().sum(0) + delta.square() * (n * m / (n + m))
        )
        self.mean = self.mean * (n / (n + m)) + mean * (m / (n + m))  # -inf once a weight is zero
        self.count = n + m

    @property
    def tail_size(self) -> int:
        """Number of largest weights for the Pareto fit.

        It is min(K / 5, 3 sqrt(K)), rounded up.
        """
        return math.ceil(min(self.num_particles / 5, 3 * math.sqrt(self.num_particles)))

    @property
    def log_mean_exp(self) -> Tensor:
        """Log of the mean weight, in nats.

        It is the importance sampling estimate of log Z.
        """
        return self.log_sum - math.log(self.count)

    @property
    def largest(self) -> Tensor:
        """Largest log weight, in nats."""
        return self.tail[0]

    @property
    def std_error(self) -> Tensor:
        r"""Standard error of `log_mean_exp`, by the jackknife.

        $\sqrt{\frac{K-1}{K} \sum_k (\ell_k - \bar\ell)^2}$ with $\ell_k = \log(1 - w_k / \sum w)$:
        that of the delta method where no weight has a large share, and honest where one has. Exact
        for the largest weights, to second order for the others. Efron and Stein (1981).
        """
        even, count = 1 / self.count, self.count
        if count == 1:
            return torch.full_like(self.log_sum, math.inf)
        share = (self.tail - self.log_sum).exp()
        largest = log_rest(self.tail, self.log_sum) - math.log1p(-even)
        left, rest = count - len(self.tail), 1 - share.sum(0)
        squares = (self.log_square_sum - 2 * self.log_sum).exp() - share.square().sum(0)
        spread = (squares - 2 * even * rest + left * even**2).clamp_min(0) / (1 - even) ** 2
        mean = largest.sum(0) - (rest - left * even) / (1 - even)
        variance = largest.square().sum(0) + spread - mean.square() * even
        return (variance.clamp_min(0) * (1 - even)).sqrt().nan_to_num(torch.inf)

    @property
    def skewness(self) -> Tensor:
        r"""Skewness of the mean weight, between 0 and 1.

        $\sum_k (w_k - \bar w)^3 / (\sum_k (w_k - \bar w)^2)^{3/2}$; 0 where weights are nearly
        equal or their skew is to the left.
        """
        even = 1 / self.count
        squares = (self.log_square_sum - 2 * self.log_sum).exp()
        cubes = (self.log_cube_sum - 3 * self.log_sum).exp()
        spread = squares - even
        skewness = (cubes - 3 * even * squares + 2 * even**2) / spread**1.5
        uneven = spread > NEARLY_EQUAL * even
        return torch.where(uneven, skewness, 0.0).nan_to_num(0.0).clamp(0.0, 1.0)

    @property
    def mean_std_error(self) -> Tensor:
        """Standard error of `mean`, widened where particles are few."""
        spread = (self.squares / (max(self.count - 1, 1) * self.count)).sqrt()
        return student_factor(max(self.count, 2)) * spread

    @property
    def ess(self) -> Tensor:
        """Effective sample size of the weights (Kong 1992).

        It is between 1 and the number of particles.
        """
        return (2 * self.log_sum - self.log_square_sum).exp()

    @property
    def pareto_k(self) -> Tensor:
        """Shape of the generalised Pareto tail of the weights.

        Above 0.7 the estimate is unreliable (Vehtari et al. 2024).
        """
        shape = self.tail.shape[1:]
        return tail_shapes(self.tail.reshape(self.tail.shape[0], -1).T).reshape(shape)


def log_add(log_sum: Any, log_terms: Tensor) -> Tensor:
    """Add terms `[n, ...]` to a sum, all in logs."""
    return torch.logaddexp(torch.as_tensor(log_sum).to(log_terms), log_terms.logsumexp(0))


def log_rest(largest: Tensor, log_sum: Tensor) -> Tensor:
    """Compute log(1 - w / sum) of the largest weights.

    Weights are `[n, *batch]`, sorted downwards. The result is exact where one weight is nearly all.
    """
    share = (largest - log_sum).exp()
    rest = torch.log1p(-share.clamp(max=1.0))
    if len(largest) > 1:
        rest[0] = torch.maximum(rest[0], largest[1:].logsumexp(0) - log_sum)
    return rest


@checked
def pareto_k(log_weights: Tensor) -> Tensor:
    """Estimate the Pareto shape of log weights `[particles, ...]`.

    It is along the first dimension. See `WeightSummary.pareto_k`.

    Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling". The fit
    is Pyro's.

    Example:
        >>> import torch
        >>> log_weights = 0.1 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
        >>> bool(pareto_k(log_weights) < 0.5)
        True
    """
    summary = WeightSummary(log_weights.shape[0])
    summary.add(log_weights)
    return summary.pareto_k
