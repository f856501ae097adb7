"""Stick breaking that is accurate near the simplex's edges.

No digits are lost there.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import IndependentTransform, constraints
from torch.distributions.transforms import StickBreakingTransform, Transform
from torch.nn.functional import logsigmoid

__all__ = ["precise"]


class LogStickBreaking(Transform):
    r"""Torch's stick-breaking transform, computed in logarithms.

    It is $x_i = \sigma(y_i - o_i) \prod_{j<i} (1 - \sigma(y_j - o_j))$.

    Torch's own keeps $\sigma$ from 0 and 1 by the precision of floats and takes sums from 1, so
    that points nearer to an edge than that, where Dirichlet distributions of small concentration
    have their mass, coincide. Here entries are right to their last digit down to the smallest
    float.

    Example:
        >>> import torch
        >>> y = torch.tensor([80.0, -1.0], dtype=torch.float64)
        >>> torch.allclose(LogStickBreaking().inv(LogStickBreaking()(y)), y)
        True
        >>> torch.allclose(LogStickBreaking()(y / 80), StickBreakingTransform()(y / 80))
        True
    """

    domain = constraints.real_vector
    codomain = constraints.simplex
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogStickBreaking)

    def __hash__(self) -> int:
        return hash(LogStickBreaking)

    def _call(self, x: Tensor) -> Tensor:
        return self._logs(x).clamp_min(math.log(torch.finfo(x.dtype).tiny)).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        y = y.clamp_min(torch.finfo(y.dtype).tiny)
        rest = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return y[..., :-1].log() - rest.log() + self._offset(y[..., :-1])

    def _logs(self, x: Tensor) -> Tensor:
        """Logarithms of the entries of the simplex."""
        x = x - self._offset(x)
        left = logsigmoid(-x).cumsum(-1)
        none = x.new_zeros((*x.shape[:-1], 1))
        return torch.cat([logsigmoid(x), none], -1) + torch.cat([none, left], -1)

    def _offset(self, x: Tensor) -> Tensor:
        """Compute the log of how many entries follow each.

        With this offset, zero maps to equal entries.
        """
        return torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device).log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute log |dy / dx| `[*batch]` of the transform.

        Here x is unconstrained and y on the simplex. Each entry has the slope of its own sigmoid,
        times what is left.
        """
        z = x - self._offset(x)
        return (self._logs(x)[..., :-1] + logsigmoid(-z)).sum(-1)

    def forward_shape(self, shape: Any) -> torch.Size:
        """One entry more."""
        return torch.Size([*shape[:-1], shape[-1] + 1])

    def inverse_shape(self, shape: Any) -> torch.Size:
        """One entry fewer."""
        return torch.Size([*shape[:-1], shape[-1] - 1])


def precise(transform: Transform) -> Transform:
    """Replace torch's stick breaking by `LogStickBreaking`.

    It is replaced under plates and `to_event` too.
    """
    if isinstance(transform, StickBreakingTransform):
        return LogStickBreaking()
    if isinstance(transform, IndependentTransform):
        return IndependentTransform(
            precise(transform.base_transform), transform.reinterpreted_batch_ndims
        )
    return transform
