"""JVI: importance-weighted bounds, corrected by the jackknife."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.evidence.weight_estimator import WeightEstimator
from ppl_dgm.program import Bound
from ppl_dgm.sampling.convergence import mean_std_error
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.sampling.weight_summary import pareto_k
from ppl_dgm.validation import check_least

__all__ = ["JVI", "jackknife", "leave_one_out", "leave_two_out"]

BIASED = 3.0  # standard errors between the jackknife and all draws together
TOLERANCE = 0.001  # nats per datum that are no bias


@checked
@dataclass(frozen=True)
class JVI(WeightEstimator):
    r"""Importance-weighted bound with bias corrected by the jackknife.

    With $\mathcal{L}_K = \log \frac1K \sum_k w_k$ and $\bar{\mathcal L}_{K-j}$ its mean over all
    ways to leave out j draws,

    $$\mathrm{JVI}_m = \sum_{j=0}^m (-1)^j \frac{(K - j)^m}{(m - j)!\, j!} \bar{\mathcal L}_{K -
    j},$$

    whose bias is $O(K^{-(m+1)})$ in place of $O(K^{-1})$. The mean over independent replicates is
    returned with the standard error of their spread; no longer a bound. Costs `num_particles *
    num_replicates` runs.

    Nowozin (2018), "Debiasing evidence approximations", eq. 12.

    Args:
        num_particles: K, draws in each replicate.
        proposal: `"guide"` or `"prior"`.
        order: m, 1 or 2.
        num_replicates: independent replicates, for the standard error.
        memory: bytes that one chunk of draws may allocate.

    Raises:
        ValueError: for orders other than 1 and 2.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> result = JVI(num_replicates=200)(ppl_dgm.Program(model), torch.zeros(1))
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(()))
        >>> bool((result.log_z - truth).abs() < 4 * result.std_error)
        True
    """

    num_particles: int = 32
    order: int = 1
    num_replicates: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, num_particles=4, num_replicates=2)
        if self.order not in (1, 2):
            raise ValueError(f"order is {self.order}; expected 1 or 2")

    def estimate(self, bound: Bound) -> Estimate:
        flat = self.weights(bound, self.num_particles * self.num_replicates)
        groups = flat.unflatten(0, (self.num_replicates, self.num_particles))
        values = torch.stack([jackknife(group, self.order) for group in groups])
        diagnostics = {
            "pareto_k": pareto_k(flat),
            "iwelbo": log_mean_exp(groups, 1).mean(0),
            "num_particles": self.num_particles,
        }
        mean, error = values.mean(0), mean_std_error(values)
        return Estimate(mean, error, diagnostics, remaining_bias(mean, error, log_mean_exp(flat)))


def remaining_bias(log_z: Tensor, std_error: Tensor, pooled: Tensor) -> tuple[str, ...]:
    """Warn of the bias that the jackknife leaves.

    The warning is for a bias that adds up over data.

    Args:
        log_z: jackknifed values, `[data]` or `[]`, and their standard errors.
        std_error: nats, same shape.
        pooled: log of the mean of all replicates' weights, of a bias that many times smaller.
    """
    bias, error = float((log_z - pooled).sum()), float(std_error.square().sum().sqrt())
    if not abs(bias) > BIASED * error + TOLERANCE * log_z.numel():
        return ()
    warning = (
        f"the jackknife differs by {bias:+.3g} +- {error:.2g} nats in all from importance sampling "
        "with all replicates together: a bias remains; raise num_particles"
    )
    return (warning,)


def jackknife(log_weights: Tensor, order: int) -> Tensor:
    """Jackknifed log-mean-exp of `[K, *batch]` log weights."""
    count = len(log_weights)
    levels = [log_mean_exp(log_weights), leave_one_out(log_weights)]
    if order == 2:
        levels.append(leave_two_out(log_weights))
    shares = [
        (-1) ** j * (count - j) ** order / (math.factorial(order - j) * math.factorial(j))
        for j in range(order + 1)
    ]
    return sum(
        (share * level for share, level in zip(shares, levels, strict=True)),
        torch.zeros_like(levels[0]),
    )


def leave_one_out(log_weights: Tensor) -> Tensor:
    """Mean over draws of the log-mean-exp of all the others."""
    nothing = torch.full_like(log_weights[:1], -math.inf)
    before = torch.cat([nothing, log_weights.logcumsumexp(0)[:-1]])
    after = torch.cat([log_weights.flip(0).logcumsumexp(0).flip(0)[1:], nothing])
    return torch.logaddexp(before, after).mean(0) - math.log(len(log_weights) - 1)


def leave_two_out(log_weights: Tensor) -> Tensor:
    """Average the log-mean-exp over all ways to omit two draws."""
    share = log_weights.softmax(0)
    first, second = torch.triu_indices(len(share), len(share), 1, device=share.device)
    left = (1 - share[first] - share[second]).clamp_min(torch.finfo(share.dtype).eps)
    return log_weights.logsumexp(0) + left.log().mean(0) - math.log(len(share) - 2)
