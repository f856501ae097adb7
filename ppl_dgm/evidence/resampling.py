"""Resampling of weighted particles, column by column, and their effective numbers."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Scheme = Literal["systematic", "stratified", "multinomial", "residual"]


def resample(log_weights: Tensor, scheme: Scheme = "systematic") -> Tensor:
    r"""Draw ancestors so that particle i has $N w_i / \sum_j w_j$ copies in expectation, independently for each column.

    Douc, Cappé and Moulines (2005), "Comparison of resampling schemes for particle filtering".

    Args:
        log_weights: `[particles, *batch]`, of any normalisation.
        scheme: `"systematic"` (one uniform), `"stratified"` (one in each of N strata), `"residual"` (whole copies, the
            rest multinomial) or `"multinomial"`.

    Returns:
        Indices of ancestors, `[particles, *batch]`.

    Example:
        >>> import torch
        >>> resample(torch.tensor([0.0, -torch.inf, 0.0])).unique().tolist()
        [0, 2]
    """
    weights = log_weights.softmax(0).reshape(len(log_weights), -1).T.contiguous()
    return SCHEMES[scheme](weights).T.reshape(log_weights.shape)


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The particle at each level of the cumulative weights, row by row."""
    total = weights.cumsum(-1)
    return torch.searchsorted(total / total[..., -1:], uniforms).clamp_(max=weights.shape[-1] - 1)


def grid(weights: Tensor, offset: Tensor) -> Tensor:
    """One level in each of N equal strata."""
    count = weights.shape[-1]
    return (torch.arange(count, dtype=weights.dtype, device=weights.device) + offset) / count


def systematic(weights: Tensor) -> Tensor:
    """The same offset in all strata."""
    return inverse_cdf(weights, grid(weights, torch.rand_like(weights[..., :1])))


def stratified(weights: Tensor) -> Tensor:
    """An offset in each stratum."""
    return inverse_cdf(weights, grid(weights, torch.rand_like(weights)))


def multinomial(weights: Tensor) -> Tensor:
    """Independent draws."""
    return inverse_cdf(weights, torch.rand_like(weights))


def residual(weights: Tensor) -> Tensor:
    """floor(N w) copies of each, the remaining places multinomial with the fractional parts."""
    count = weights.shape[-1]
    copies = (count * weights + 1e-12).floor()
    places = torch.arange(count, dtype=weights.dtype, device=weights.device).expand_as(weights).contiguous()
    whole = torch.searchsorted(copies.cumsum(-1), places, right=True).clamp_(max=count - 1)
    rest = (count * weights - copies).clamp_min(0) + torch.finfo(weights.dtype).tiny
    return torch.where(places < copies.sum(-1, keepdim=True), whole, multinomial(rest))


SCHEMES: dict[str, Callable[[Tensor], Tensor]] = {
    "systematic": systematic,
    "stratified": stratified,
    "multinomial": multinomial,
    "residual": residual,
}


def ess_share(log_weights: Tensor) -> Tensor:
    """Effective sample size of weights `[particles, *batch]` as a share of their number, in (0, 1]."""
    log_ess = 2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)
    return (log_ess.exp() / len(log_weights)).nan_to_num(0.0)


def conditional_ess(log_weights: Tensor, increments: Tensor) -> Tensor:
    r"""Conditional effective sample size as a share, $(\sum W v)^2 / \sum W v^2$ with $W$ normalised: `[*batch]`.

    How alike two neighbouring densities are: 1 when they are equal. Zhou, Johansen and Aston (2016), "Toward automatic
    model comparison", eq. 14.

    Args:
        log_weights: log W, `[particles, *batch]`.
        increments: log v, same shape.
    """
    normalised = log_weights - log_weights.logsumexp(0)
    log_share = 2 * (normalised + increments).logsumexp(0) - (normalised + 2 * increments).logsumexp(0)
    return log_share.exp().nan_to_num(0.0)


def next_increment(log_weights: Tensor, tilt: Tensor, remaining: Tensor, cess: float, bisections: int = 50) -> Tensor:
    """The largest step in inverse temperature up to `remaining` that keeps a conditional ESS of `cess`: `[*batch]`.

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
