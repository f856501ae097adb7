"""Few weighted rows that stand for many data.

In a data set of independent data log p(x | z) is a sum over rows. Equal rows have equal densities,
so that a million tosses of a coin are two rows, each times its count. The sum of densities that are
quadratic in the rows, as of normal data, is told by mean and covariance: two rows in each dimension
have the same ones (the sigma points of Julier and Uhlmann 1997, equation 12).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_dgm.generators import unmoved_generators
from ppl_dgm.program.arguments import tensors_of
from ppl_dgm.program.log_densities import is_masked
from ppl_dgm.program.operands import check_same_operands, record
from ppl_dgm.program.plates import in_plate
from ppl_dgm.program.sites import Site, random_sites

if TYPE_CHECKING:
    from ppl_dgm.program.bound_program import Bound

__all__ = ["WeightedRows", "weighted_rows"]

LEAST = 1000  # data, from which it pays to look for rows that stand for them
FEWER = 4  # times that they must be fewer
MOST_COLUMNS = 64
DRAWS = 4  # of latents, at which the weighted sum must be the sum over all
ROUNDING = 1e-9  # relative
ERROR = 1e-3  # of a log likelihood, in nats, by the rounding of moments
CANCELLED = 1e-12  # what rounding leaves of numbers about 1
# Distributions whose log density is quadratic in the value: parameters, and their event dimensions.
QUADRATIC = {
    dist.Normal: {"loc": 0, "scale": 0},
    dist.MultivariateNormal: {"loc": 1, "_unbroadcasted_scale_tril": 2},
}


@dataclass(frozen=True)
class WeightedRows:
    """Rows whose weighted sum is that of all data.

    `args` and `kwargs` are those of a program, with `weights` `[rows]` data; `of` are the ones that
    they stand for. `row` tells each datum's row, where the rows are some of the data.
    """

    args: tuple
    kwargs: Mapping[str, Any]
    weights: Tensor
    of: tuple[tuple, Mapping[str, Any]]
    row: Tensor | None = None

    @property
    def share(self) -> float:
        """Number of rows as a share of all data."""
        return len(self.weights) / float(self.weights.sum())

    def stands_for(self, args: tuple, kwargs: Mapping[str, Any]) -> bool:
        """Return whether they are made of these arguments."""
        given, own = tensors_of(args, kwargs), tensors_of(*self.of)
        return len(given) == len(own) and all(map(is_, given, own))


def weighted_rows(bound: "Bound") -> WeightedRows | None:
    """Find few rows that stand for a data set.

    Returns None where there are none, or the program is not seen to be a sum over rows: parts of
    the data must have the densities that they have in the whole, no latent its own datum, the
    program must compute the same of the rows, and the weighted sum must be right at a few draws of
    the latents.
    """
    structure, size = bound.structure, bound.num_data or 0
    rowwise = not (structure.per_datum or structure.enumerated or structure.subsampled)
    seen = structure.model_runs != "loop"  # else it may branch on latents as no draw shows
    if not (rowwise and seen) or size < LEAST or any(latent.local for latent in structure.latents):
        return None
    tensors = [t for t in tensors_of(bound.args, bound.kwargs) if t.dim() and len(t) == size]
    columns = sum(t[0].numel() for t in tensors)
    odd = any(t.requires_grad or t.is_complex() for t in tensors)
    if not 1 <= columns <= MOST_COLUMNS or odd or not structure.divisible:
        return None
    rows = distinct_rows(bound, tensors) or sigma_points(bound, tensors)
    return rows if rows and computes_the_same(bound, rows) and is_right(bound, rows) else None


def distinct_rows(bound: "Bound", tensors: list[Tensor]) -> WeightedRows | None:
    """Take every distinct row once, times its count."""
    few = first_places([t[:LEAST] for t in tensors]) is not None
    found = first_places(tensors) if few else None
    if found is None:
        return None
    args, kwargs = bound.select(found[0])
    weights = found[1].bincount().to(torch.float64)
    return WeightedRows(args, kwargs, weights, (bound.args, bound.kwargs), found[1])


def first_places(tensors: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Find a place of each distinct row.

    Returns those, and the row of each datum.

    Tensors are `[data, ...]`; rows are those of all together. The result is None where they are
    not fewer than a quarter of the data.
    """
    size, number = len(tensors[0]), 1
    row = torch.zeros(size, dtype=torch.long, device=tensors[0].device)
    for column in (column for t in tensors for column in t.reshape(size, -1).unbind(1)):
        values, own = column.unique(return_inverse=True)
        values, row = (row * len(values) + own).unique(return_inverse=True)
        number = len(values)
        if number * FEWER > size:
            return None
    places = torch.arange(size, device=row.device)
    return row.new_zeros(number).scatter(0, row, places), row


def sigma_points(bound: "Bound", tensors: list[Tensor]) -> WeightedRows | None:
    """Take rows with the mean and covariance of the data.

    The densities must be quadratic in the only tensor of data.
    """
    data, size = tensors[0], len(tensors[0])
    if len(tensors) > 1 or not data.is_floating_point() or not is_quadratic(bound, data):
        return None
    table = data.reshape(size, -1)
    mean = table.mean(0)
    # A factor of the covariance. QR keeps the digits of narrow columns beside wide ones.
    steps = torch.linalg.qr(table - mean, mode="r").R * (len(mean) / size) ** 0.5
    rows = torch.cat([mean + steps, mean - steps])
    lost = rows.var(0, correction=0) - table.var(0, correction=0)
    if bool((size * lost.abs() > ERROR * table.var(0, correction=0)).any()):
        return None  # far from zero, rows are as coarse as their digits
    rows = rows.reshape(-1, *data.shape[1:])
    weights = rows.new_full((len(rows),), size / len(rows))
    given = bound.args, dict(bound.kwargs)
    args, kwargs = tree_map(lambda leaf: rows if leaf is data else leaf, given)
    return WeightedRows(args, kwargs, weights, (bound.args, bound.kwargs))


def is_quadratic(bound: "Bound", data: Tensor) -> bool:
    """Return whether all sites of data have one normal distribution."""
    with torch.no_grad(), unmoved_generators(bound.device):
        sites = dict(random_sites(bound.model_trace())).values()
    plate = bound.structure.plate
    return all(one_normal(site, data) for site in sites if in_plate(site, plate))


def one_normal(site: Site, data: Tensor) -> bool:
    """Return whether a site gives all data one normal distribution.

    Its parameters must be the same for all of them by their making, not by their values.
    """
    fn, inner = site["fn"], 0
    while isinstance(fn, dist.Independent):
        fn, inner = fn.base_dist, inner + fn.reinterpreted_batch_ndims
    alike = not (is_masked(site) or isinstance(site["scale"], Tensor))
    if site["value"] is not data or not alike or type(fn) not in QUADRATIC:
        return False
    parameters = ((getattr(fn, n), -1 - inner - dim) for n, dim in QUADRATIC[type(fn)].items())
    return all(
        value.dim() < -axis or value.shape[axis] == 1 or value.stride(axis) == 0
        for value, axis in parameters
    )


@torch.no_grad()
def computes_the_same(bound: "Bound", rows: WeightedRows) -> bool:
    """Return whether all data's operations see what rows' see.

    What depends on places in the data, or on statistics of them, may count nowhere at a few draws
    of the latents and yet at others: a slope that is zero most of the time, as of
    `relu(slope) * torch.arange(len(x))`.
    """
    few = replace(bound, args=rows.args, kwargs=rows.kwargs)
    try:
        with unmoved_generators(bound.device):
            values = {name: value[0] for name, value in bound.draw_prior(1).values.items()}
            recorded = record(partial(few.log_densities_by_site, values))
            check_same_operands(
                partial(bound.log_densities_by_site, values),
                (recorded, partial(check_same, row=rows.row)),
            )
    except Exception:  # of the comparison, or whatever the program raises at its prior's draws
        return False
    return True


def check_same(whole: Tensor, few: Tensor, row: Tensor | None) -> None:
    """Refuse an operand that rows do not share.

    Rows that are no data have their own values, but the same of all that they have in common.
    """
    for axis in [axis for axis in range(whole.dim()) if whole.shape[axis] != few.shape[axis]]:
        if row is None:
            return
        few = few.index_select(axis, row)
    torch.testing.assert_close(
        whole, few, rtol=ROUNDING, atol=CANCELLED, equal_nan=True, check_stride=False
    )


@torch.no_grad()
def is_right(bound: "Bound", rows: WeightedRows) -> bool:
    """Compare the weighted sum with that over all data."""
    try:
        with unmoved_generators(bound.device):
            values = bound.draw_prior(DRAWS).values
            one, other = (likelihoods(each, values) for each in (bound, replace(bound, rows=rows)))
    except Exception:  # whatever the program raises at its prior's draws
        return False
    return bool(one.isfinite().any()) and torch.allclose(one, other, rtol=ROUNDING, atol=0.0)


def likelihoods(bound: "Bound", values: dict[str, Tensor]) -> Tensor:
    """Log likelihoods of draws one by one, which saves memory."""
    draws = ({name: value[i : i + 1] for name, value in values.items()} for i in range(DRAWS))
    return torch.cat([bound.log_joint(draw).likelihood for draw in draws])
