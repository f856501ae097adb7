"""Evidence bounds and bias corrections from log weights.

CUBO is an upper bound and IWELBO a lower one; the jackknife and Russian roulette correct the bias.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.compile import CompileMode
from ppl_dgm.evidence.base import BoundKind, Estimate, Estimator
from ppl_dgm.program import Bound
from ppl_dgm.sampling.importance import Proposal, all_weights, log_mean_exp, pareto_k
from ppl_dgm.sampling.memory import MEMORY
from ppl_dgm.validation import check_least

__all__ = ["CUBO", "IWELBO", "JVI", "SUMO"]

CERTAIN_TERMS = 80  # where SUMO's stopping changes from 1 / k to geometric
DECAY = 0.9
LARGEST_K = 0.7
BIASED = 3.0  # standard errors between the jackknife and all draws together
TOLERANCE = 0.001  # nats per datum that are no bias


@dataclass(frozen=True)
class WeightEstimator(Estimator):
    """Base class of estimators that use log weights.

    Latents are drawn from the guide or the prior.
    """

    num_particles: int = 1000
    proposal: Proposal = field(default="guide", kw_only=True)
    memory: int = field(default=MEMORY, repr=False, kw_only=True)
    compile: CompileMode = field(default="auto", kw_only=True)
    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_least(self, num_particles=self.least, memory=1)

    def kind(self, bound: Bound) -> BoundKind:
        return type(self).bound if bound.structure.latents else "exact"

    def draws_from(self, bound: Bound) -> Proposal | None:
        return self.proposal

    def weights(self, bound: Bound, num_particles: int) -> Tensor:
        """Log weights of the program, `[num_particles, *batch]`."""
        return all_weights(bound, num_particles, self.proposal, self.memory, self.compile)


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
    return (inside - log_mean_exp(outside)).exp().std(0) / math.sqrt(len(inside))


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


@checked
@dataclass(frozen=True)
class IWELBO(WeightEstimator):
    r"""Importance-weighted lower bound (IWELBO) of log Z.

    $E \log \frac1K \sum_k w_k \le \log Z$ is estimated by its mean over replicates.

    `ImportanceSampling` with the same draws estimates log Z; this stays a bound at any number K,
    one included, where it is the ELBO. `over_particles` shows how it closes in.

    Burda, Grosse and Salakhutdinov (2016), eq. 8. Costs `num_particles * num_replicates` runs.

    Args:
        num_particles: K.
        proposal: `"guide"` or `"prior"`.
        num_replicates: independent replicates, for the standard error.
        memory: bytes that one chunk of draws may allocate.

    Raises:
        ValueError: too few draws or replicates.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> result = IWELBO(num_particles=2)(ppl_dgm.Program(model), torch.ones(100))
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.ones(()))
        >>> result.bound, bool(result.log_z.mean() < truth)
        ('lower', True)
    """

    num_particles: int = 32
    num_replicates: int = 32
    bound: ClassVar[BoundKind] = "lower"
    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, num_replicates=2)

    def estimate(self, bound: Bound) -> Estimate:
        flat = self.weights(bound, self.num_particles * self.num_replicates)
        values = log_mean_exp(flat.unflatten(0, (self.num_replicates, self.num_particles)), 1)
        error = values.std(0) / math.sqrt(len(values))
        return Estimate(values.mean(0), error, {"num_particles": self.num_particles})


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
        mean, error = values.mean(0), values.std(0) / math.sqrt(len(values))
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


@checked
@dataclass(frozen=True)
class SUMO(WeightEstimator):
    r"""Unbiased estimate of log Z by Russian roulette (SUMO).

    The roulette is over the number of particles.

    With $\Delta_k = \mathcal{L}_{m+k} - \mathcal{L}_{m+k-1}$ the gains of the importance-weighted
    bound,

    $$\mathrm{SUMO} = \mathcal{L}_m + \sum_{k=1}^{T} \frac{\Delta_k}{\mathbb{P}(T \ge k)}, \qquad
      \mathbb{P}(T \ge k) = \tfrac1k \ (k \le 80), \text{ then falling by } 0.9,$$

    has expectation log Z. The mean over replicates is returned with the standard error of their
    spread, which can be heavy-tailed. Costs `num_replicates * (num_particles + max T)` runs, T
    about 100 at most.

    Luo, Beatson, Norouzi, Zhu, Duvenaud, Adams and Chen (2020), eqs. 8 and 11.

    Args:
        num_particles: m, particles that every replicate has.
        proposal: `"guide"` or `"prior"`.
        num_replicates: independent replicates.
        memory: bytes that one chunk of draws may allocate.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> result = SUMO()(ppl_dgm.Program(model), torch.zeros(1))
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(()))
        >>> bool((result.log_z - truth).abs() < 4 * result.std_error)
        True
    """

    num_particles: int = 8
    num_replicates: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, num_replicates=2)

    def estimate(self, bound: Bound) -> Estimate:
        shape = (self.num_replicates, *([bound.num_data or 1] if bound.structure.per_datum else []))
        stops = stopping_times(torch.rand(shape, dtype=torch.float64, device=bound.device))
        longest = self.num_particles + int(stops.max())
        flat = self.weights(bound, self.num_replicates * longest)
        values = roulette(
            flat.unflatten(0, (self.num_replicates, longest)),
            self.num_particles,
            stops.to(flat.device),
        )
        diagnostics: dict[str, Any] = {"pareto_k": pareto_k(flat), "num_particles": longest}
        return Estimate(values.mean(0), values.std(0) / math.sqrt(len(values)), diagnostics)


def reach(k: Tensor) -> Tensor:
    """P(T >= k)."""
    return torch.where(k <= CERTAIN_TERMS, 1 / k, DECAY ** (k - CERTAIN_TERMS) / CERTAIN_TERMS)


def stopping_times(uniform: Tensor) -> Tensor:
    """Compute stopping times from uniform draws.

    This inverts `reach`: the largest k with P(T >= k) >= u.
    """
    early = (1 / uniform).floor()
    late = CERTAIN_TERMS + ((uniform * CERTAIN_TERMS).log() / math.log(DECAY)).floor()
    return torch.where(uniform * CERTAIN_TERMS >= 1, early, late).clamp_min(1)


def roulette(log_weights: Tensor, num_certain: int, stops: Tensor) -> Tensor:
    """Compute the SUMO estimate of each replicate.

    Log weights are `[replicates, particles, *batch]`, the numbers at which they stop `[replicates,
    *batch]`.
    """
    position = torch.arange(
        1, log_weights.shape[1] + 1, dtype=log_weights.dtype, device=log_weights.device
    )
    position = position.reshape((-1,) + (1,) * (log_weights.dim() - 2))
    bounds = log_weights.logcumsumexp(1) - position.log()
    gains = bounds[:, num_certain:] - bounds[:, num_certain - 1 : -1]
    k = position[num_certain:] - num_certain
    kept = k <= stops.unsqueeze(1)
    return bounds[:, num_certain - 1] + torch.where(kept, gains / reach(k), 0.0).sum(1)
