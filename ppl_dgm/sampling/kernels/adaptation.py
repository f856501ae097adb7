"""Adaptation of step sizes and of the scales of coordinates."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DualAveraging", "nudge_step_size", "robust_scale", "weighted_scale"]


class DualAveraging(NamedTuple):
    r"""Dual averaging of step sizes at a fixed density.

    Each entry of any batch has a step size of its own.

    $\log \epsilon_{t+1} = \mu - \frac{\sqrt t}{\gamma} \bar H_t$ with $\bar H$ the running mean of
    (target - acceptance); the average $\bar\epsilon$ is used when adaptation has ended. Hoffman and
    Gelman (2014), "The No-U-Turn sampler", equation 6, with their $\gamma = 0.05$, $t_0 = 10$,
    $\kappa = 0.75$.

    Example:
        >>> import torch
        >>> steps = DualAveraging.start(torch.ones(2))
        >>> for _ in range(200):
        ...     steps = steps.update((-steps.step_size).exp(), 0.65)
        >>> [round(float(s), 2) for s in steps.final]  # exp(-s) = 0.65
        [0.44, 0.44]
    """

    log_step: Tensor
    average: Tensor
    error: Tensor
    centre: Tensor
    count: int

    @classmethod
    def start(cls, step_size: Tensor) -> "DualAveraging":
        """Start adaptation from the given step sizes.

        Adaptation is drawn towards ten times as much.
        """
        log_step, zero = step_size.log(), torch.zeros_like(step_size)
        return cls(log_step, zero, zero, log_step + 2.302585093, 0)

    def update(self, acceptance: Tensor, target: float) -> "DualAveraging":
        """Learn from acceptance probabilities of the batch's shape."""
        count = self.count + 1
        weight = 1 / (count + 10)
        error = (1 - weight) * self.error + weight * (target - acceptance)
        log_step = self.centre - count**0.5 / 0.05 * error
        share = count**-0.75
        return DualAveraging(
            log_step, share * log_step + (1 - share) * self.average, error, self.centre, count
        )

    @property
    def step_size(self) -> Tensor:
        """What to use for the next move while adapting."""
        return self.log_step.exp()

    @property
    def final(self) -> Tensor:
        """What to use once adaptation has ended."""
        return self.average.exp()


def nudge_step_size(
    step_size: Tensor, acceptance: Tensor, target: float, gain: float = 1.0
) -> Tensor:
    r"""Adjust step sizes for the next temperature.

    $\log \epsilon \leftarrow \log \epsilon + g (a - a^*)$.

    A constant gain follows a density that changes from move to move, as Wu et al. (2017), "On the
    quantitative analysis of decoder-based generative models", adapt along the temperatures to an
    acceptance of 0.65.

    Example:
        >>> import torch
        >>> bool(nudge_step_size(torch.tensor(1.0), torch.tensor(0.9), 0.65) > 1)
        True
    """
    return step_size * (gain * (acceptance - target)).exp()


def weighted_scale(point: Tensor, log_weights: Tensor, previous: Tensor) -> Tensor:
    """Compute weighted standard deviations for a diagonal mass.

    They are taken over the first dimension, for each coordinate.

    Their logarithms are drawn towards those of `previous` with the weight of 5 draws: few effective
    draws must not make them collapse.

    Args:
        point: `[particles, *batch, dim]`.
        log_weights: `[particles, *batch]`, of any normalisation.
        previous: `[*batch, dim]`, returned where draws are not finite or do not vary.

    Returns:
        `[*batch, dim]`.
    """
    weights = log_weights.softmax(0).to(point.dtype)
    share = weights.unsqueeze(-1)
    mean = (share * point).sum(0)
    variance = (share * (point - mean).square()).sum(0)
    draws = (1 / weights.square().sum(0)).unsqueeze(-1)
    rounding = 10 * torch.finfo(point.dtype).eps * mean.abs()
    usable = torch.isfinite(variance) & (variance > rounding.square())
    previous = previous.to(point.dtype)
    learnt = torch.where(usable, variance, previous.square()).log()
    return torch.lerp(learnt, 2 * previous.log(), 5 / (draws + 5)).mul(0.5).exp()


def robust_scale(point: Tensor) -> Tensor:
    """Estimate the spread of coordinates by quartiles.

    Quartiles are taken over the first dimension, and heavy tails do not move them. The result is
    `[*batch, dim]`.

    Example:
        >>> import torch
        >>> robust_scale(torch.tensor([[-1e9], [-1.0], [0.0], [1.0], [1e9]]))
        tensor([1.4826])
    """
    ordered = point.sort(0).values
    last = len(ordered) - 1
    spread = (ordered[round(0.75 * last)] - ordered[round(0.25 * last)]) * 0.7413
    return torch.where(torch.isfinite(spread) & (spread > 0), spread, torch.ones_like(spread))
