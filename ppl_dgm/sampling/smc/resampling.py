"""Resampling and effective sample sizes of weighted particles.

Each column is treated on its own. Steps in inverse temperature are found here too.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "SCHEMES",
    "Scheme",
    "conditional_ess",
    "effective_size",
    "next_increment",
    "resample",
    "shuffle",
]

Scheme = Literal["systematic", "stratified", "multinomial", "residual"]


def resample(
    log_weights: Tensor, num_draws: int | None = None, scheme: Scheme = "systematic"
) -> Tensor:
    r"""Draw ancestors of particles according to their weights.

    In expectation particle i has $M w_i / \sum_j w_j$ copies, independently for each column.

    Douc, Cappé and Moulines (2005), "Comparison of resampling schemes for particle filtering".

    Args:
        log_weights: `[particles, *batch]`, of any normalisation.
        num_draws: number M of draws; as many as there are particles by default.
        scheme: `"systematic"` (one uniform), `"stratified"` (one in each of M strata), `"residual"`
            (whole copies, the rest multinomial) or `"multinomial"`.

    Returns:
        Indices of ancestors, `[draws, *batch]`, in the order of the particles where the scheme is
            systematic or
        stratified. Particles of weight zero are never drawn.

    Example:
        >>> import torch
        >>> resample(torch.tensor([0.0, -torch.inf, 0.0]), 6).tolist()
        [0, 0, 0, 2, 2, 2]
    """
    weights = log_weights.softmax(0).reshape(len(log_weights), -1).T.contiguous()
    num_draws = len(log_weights) if num_draws is None else num_draws
    return SCHEMES[scheme](weights, num_draws).T.reshape(num_draws, *log_weights.shape[1:])


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Find the particle at each level of the cumulative weights.

    Each row is treated on its own. Rounding never leads past the last particle of positive weight.
    """
    total = weights.cumsum(-1)
    last = weights.shape[-1] - 1 - weights.flip(-1).gt(0).int().argmax(-1, keepdim=True)
    return torch.searchsorted(total / total[..., -1:], uniforms, right=True).minimum(last)


def levels(weights: Tensor, num_draws: int, offset: Tensor) -> Tensor:
    """One level in each of equal strata."""
    return (
        torch.arange(num_draws, dtype=weights.dtype, device=weights.device) + offset
    ) / num_draws


def uniforms(weights: Tensor, count: int) -> Tensor:
    """Uniform numbers for each row."""
    return torch.rand(*weights.shape[:-1], count, dtype=weights.dtype, device=weights.device)


def systematic(weights: Tensor, num_draws: int) -> Tensor:
    """The same offset in all strata."""
    return inverse_cdf(weights, levels(weights, num_draws, uniforms(weights, 1)))


def stratified(weights: Tensor, num_draws: int) -> Tensor:
    """An offset in each stratum."""
    return inverse_cdf(weights, levels(weights, num_draws, uniforms(weights, num_draws)))


def multinomial(weights: Tensor, num_draws: int) -> Tensor:
    """Independent draws."""
    return inverse_cdf(weights, uniforms(weights, num_draws))


def residual(weights: Tensor, num_draws: int) -> Tensor:
    """Resample with at least floor(M w) copies of each particle.

    The remaining places are multinomial with the fractional parts.
    """
    copies = (num_draws * weights + 1e-12).floor()
    places = torch.arange(num_draws, dtype=weights.dtype, device=weights.device)
    places = places.expand(*weights.shape[:-1], num_draws).contiguous()
    whole = torch.searchsorted(copies.cumsum(-1), places, right=True).clamp_(
        max=weights.shape[-1] - 1
    )
    rest = (num_draws * weights - copies).clamp_min(0)
    return torch.where(places < copies.sum(-1, keepdim=True), whole, multinomial(rest, num_draws))


SCHEMES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "systematic": systematic,
    "stratified": stratified,
    "multinomial": multinomial,
    "residual": residual,
}


def shuffle(index: Tensor) -> Tensor:
    """The same draws `[draws, ...]` in random order."""
    return index[torch.randperm(len(index), device=index.device)]


def effective_size(log_weights: Tensor) -> Tensor:
    r"""Compute the effective sample size of weights `[particles, *batch]`.

    It is $(\sum w)^2 / \sum w^2$, `[*batch]`, and zero where all weights are zero.
    """
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp().nan_to_num(0.0)


def conditional_ess(log_weights: Tensor, increments: Tensor) -> Tensor:
    r"""Compute the conditional effective sample size as a share.

    It is $(\sum W v)^2 / \sum W v^2$ with $W$ normalised, `[*batch]`.

    How alike two neighbouring densities are: 1 when they are equal. Zhou, Johansen and Aston
    (2016), "Toward automatic model comparison", eq. 14.

    Args:
        log_weights: log W, `[particles, *batch]`.
        increments: log v, same shape.
    """
    normalised = log_weights - log_weights.logsumexp(0)
    log_share = 2 * (normalised + increments).logsumexp(0) - (
        normalised + 2 * increments
    ).logsumexp(0)
    return log_share.exp().nan_to_num(0.0)


def next_increment(
    log_weights: Tensor, tilt: Tensor, remaining: Tensor, cess: float, bisections: int = 50
) -> Tensor:
    """Find the largest step that keeps a conditional ESS.

    The step is in inverse temperature, at most `remaining`, and keeps a share of `cess`. The result
    is `[*batch]`.

    Particles of zero likelihood, which no step can keep, count neither before nor after.

    Args:
        log_weights: `[particles, *batch]`.
        tilt: log f_1 - log f_0 of the particles, `[particles, *batch]`.
        remaining: largest step, `[*batch]`.
        cess: share to keep, in (0, 1).
        bisections: halvings of the interval.
    """
    alive = (log_weights - log_weights.logsumexp(0)).exp().mul(tilt > -torch.inf).sum(0)
    aim = cess * alive

    def kept(step: Tensor) -> Tensor:
        return conditional_ess(log_weights, step * tilt) >= aim

    low, high = torch.zeros_like(remaining), remaining
    for _ in range(bisections):
        middle = 0.5 * (low + high)
        keeps = kept(middle)
        low, high = torch.where(keeps, middle, low), torch.where(keeps, high, middle)
    return torch.where(kept(remaining) | (remaining <= 0), remaining, low)
