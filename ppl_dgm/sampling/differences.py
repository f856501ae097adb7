"""Moves by differences of other points, which take their shape."""

import math

import torch
from torch import Tensor

from ppl_dgm.sampling.kernels.adaptation import robust_scale

__all__ = ["propose_by_differences"]

JITTER = 1e-3  # of the spread of the points, in all directions
JUMPS = 0.1  # share of moves by a whole difference, which lead from mode to mode


def propose_by_differences(points: Tensor, others: Tensor, step_size: Tensor | float) -> Tensor:
    r"""Add scaled differences of other points.

    $y' = y + \gamma (a - b) + \epsilon$ with a and b random among the others, so that proposals are
    as likely back as forth. $\gamma$ is $2.38 / \sqrt{2 D}$ times the step size times a log-normal
    number, or for a tenth of the points 1, and $\epsilon$ small. ter Braak (2006), "A Markov chain
    Monte Carlo version of the genetic algorithm differential evolution".

    Args:
        points: `[n, *batch, dim]`.
        others: `[m, *batch, dim]`, which do not depend on the points.
        step_size: `[*batch]`.

    Example:
        >>> import torch
        >>> propose_by_differences(torch.zeros(3, 2), torch.randn(5, 2), 1.0).shape
        torch.Size([3, 2])
    """
    first, second = torch.randint(len(others), (2, len(points)), device=points.device)
    length = torch.randn_like(points[..., 0]).exp() * step_size
    length = length * 2.38 / math.sqrt(2 * points.shape[-1])
    length = torch.where(torch.rand_like(length) < JUMPS, 1.0, length)
    jitter = JITTER * robust_scale(others) * torch.randn_like(points)
    return points + length.unsqueeze(-1) * (others[first] - others[second]) + jitter
