"""Unconstrained coordinates of positive definite matrices."""

import math

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

__all__ = ["LogCholesky"]


@biject_to.register(constraints.positive_definite)
class LogCholesky(Transform):
    r"""Turn vectors to positive definite matrices by Cholesky factors.

    $X = L L^\top$, the vector being the lower triangle of L with the logarithms of its diagonal.
    The Jacobian has $\log |J| = d \log 2 + \sum_i (d - i + 2) \log L_{ii}$ for i from 1 to d
    (Muirhead 1982, theorem 2.1.9). What is not positive definite has NaN for its vector.

    Example:
        >>> LogCholesky()(torch.tensor([0.0, 2.0, 0.0]))
        tensor([[1., 2.],
                [2., 5.]])
    """

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def __init__(self, support: object = None, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogCholesky)

    def __hash__(self) -> int:
        return hash(LogCholesky)

    def _call(self, y: Tensor) -> Tensor:
        size = _size_of(y.shape[-1])
        row, column = torch.tril_indices(size, size, device=y.device)
        entries = torch.where(row == column, y.exp(), y)
        factor = y.new_zeros(*y.shape[:-1], size * size)
        factor = factor.index_copy(-1, row * size + column, entries).unflatten(-1, (size, size))
        return factor @ factor.mT

    def _inverse(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        row, column = torch.tril_indices(size, size, device=x.device)
        factor, failed = torch.linalg.cholesky_ex(x)
        entries = factor[..., row, column]
        entries = torch.where(row == column, entries.log(), entries)
        return torch.where((failed == 0).unsqueeze(-1), entries, torch.nan)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute log Jacobians at vectors x: `[*batch]`."""
        size = y.shape[-1]
        row, column = torch.tril_indices(size, size, device=x.device)
        weight = torch.where(row == column, size + 1 - row, 0).to(x)
        return size * math.log(2) + (weight * x).sum(-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of matrices `[*batch, d, d]`."""
        size = _size_of(shape[-1])
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of vectors."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


def _size_of(entries: int) -> int:
    """Return the size of matrices by their triangles' entries."""
    return (math.isqrt(8 * entries + 1) - 1) // 2
