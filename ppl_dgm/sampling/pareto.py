"""Shape of the tail of weights, a generalised Pareto distribution."""

import math

import torch
from torch import Tensor

__all__ = ["tail_shapes"]

FEW_ATOMS = 4  # different weights in a tail that make no curve
ROWS_AT_ONCE = 10_000  # weights whose tails are fitted together


def tail_shapes(largest: Tensor) -> Tensor:
    """Estimate Pareto shapes from rows of the largest log weights.

    Rows are `[rows, n]`. The shape is that of the weights above the smallest one.

    Rows are sorted downwards. -inf where all are equal, inf where fewer than five differ from zero,
    and the growth of the weights with their rarity where they are a few atoms, as discrete latents
    make them.
    """
    log_w = largest - largest[:, :1]
    excess = (log_w[:, :-1].exp() - log_w[:, -1:].exp()).flip(1)
    smooth = (excess > 0).all(1) & (excess.diff(dim=1) > 0).all(1) & (excess.shape[1] > 4)
    shapes = log_w.new_full(log_w.shape[:1], math.inf)
    rows = torch.nonzero(smooth).squeeze(1)
    for part in rows.split(max(1, ROWS_AT_ONCE // max(1, excess.shape[1]))):
        shapes[part] = generalised_pareto_shape(excess[part])
    for row in torch.nonzero(~smooth).squeeze(1).tolist():
        shapes[row] = uneven_shape(log_w[row], excess[row])
    return shapes


def uneven_shape(log_w: Tensor, excess: Tensor) -> float:
    """Estimate the Pareto shape where weights coincide or vanish.

    `log_w` and `excess` are one row of `tail_shapes`.
    """
    excess = excess[excess > 0]
    if bool(log_w[-1] > -1e-9):
        return -math.inf  # all weights equal: no tail
    if len(excess.unique()) <= FEW_ATOMS:
        return atom_shape(log_w)
    return float(generalised_pareto_shape(excess.unsqueeze(0)))


def atom_shape(log_w: Tensor) -> float:
    r"""Estimate the Pareto shape of weights with few values.

    It is the growth of weights with their rarity, $\max \Delta \log w / \Delta \log n$, from the
    largest atom down.

    n counts the weights at least as large as an atom: a Pareto tail of shape k has the slope k
    everywhere.
    """
    atoms, counts = torch.unique_consecutive(log_w, return_counts=True)
    if len(atoms) == len(log_w):
        return math.inf  # too few to tell
    rarer = (counts.cumsum(0).double() / counts[0]).log()
    return float(((atoms[0] - atoms[1:]) / rarer[1:]).max())


def generalised_pareto_shape(excess: Tensor) -> Tensor:
    """Estimate the shapes of generalised Pareto distributions.

    Rows `[rows, n]` hold positive excesses, sorted upwards.

    Zhang and Stephens (2009), with the prior of Vehtari et al. (2024), appendix C; Pyro's
    `fit_generalized_pareto`, for many rows at once, and where the scale degenerates too.
    """
    count = excess.shape[1]
    excess = excess.double() / excess[:, -1:]
    grid = torch.arange(1, 31 + int(math.sqrt(count)), dtype=torch.float64, device=excess.device)
    quartile = excess[:, int(count / 4 - 0.5), None].clamp_min(torch.finfo(torch.float64).tiny)
    b = (1 - math.sqrt(len(grid)) / (grid - 0.5).sqrt()) / (3 * quartile) + 1
    shape = torch.log1p(-b.unsqueeze(-1) * excess.unsqueeze(1)).mean(-1)
    likelihood = count * ((-b / shape).log() - (shape + 1))
    weight = likelihood.nan_to_num(nan=-torch.inf, posinf=-torch.inf).softmax(-1)
    mean = (b * weight).sum(-1, keepdim=True)
    found = torch.log1p(-mean * excess).mean(-1)
    return ((found * count + 5) / (count + 10)).nan_to_num(nan=torch.inf)
