"""Energy distance between two samples, which needs no density."""

import torch
from torch import Tensor

__all__ = ["distances", "energy_distance"]


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Compute the energy distance between two samples.

    It is $2 E|x - y| - E|x - x'| - E|y - y'|$ (Szekely and Rizzo 2013).

    Zero only for equal distributions. Unbiased: pairs of one datum with itself are left out, so
    that the value may fall below zero.

    Args:
        x: data `[n, *event]`.
        y: data `[m, *event]`.

    Returns:
        A scalar, in the units of the data.

    Example:
        >>> energy_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [2.0]]))
        tensor(-2.)
    """
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    return (
        2 * distances(x, y).mean() - mean_of_pairs(distances(x, x)) - mean_of_pairs(distances(y, y))
    )


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute Euclidean distances `[n, m]` between two sets of vectors.

    Vectors are `[n, D]` and `[m, D]`.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def mean_of_pairs(values: Tensor) -> Tensor:
    """Average a matrix `[n, n]` without its diagonal.

    This is the mean over pairs of different data.
    """
    n = len(values)
    return (values.sum() - values.diagonal().sum()) / max(n * (n - 1), 1)
