"""Data that repeat each other, evaluated once.

In a data set of independent data, such as a million tosses of a coin, equal rows have equal
densities: log p(x | z) is a sum over the distinct rows, each times its count.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_dgm.generators import unmoved_generators
from ppl_dgm.program.arguments import tensors_of

if TYPE_CHECKING:
    from ppl_dgm.program.bound_program import Bound

__all__ = ["DistinctData", "distinct_data"]

LEAST = 1000  # data, from which it pays to look for equal ones
FEWER = 4  # times that distinct rows must be fewer than data
MOST_COLUMNS = 64
DRAWS = 4  # of latents, at which the sum over distinct rows must be the sum over all
ROUNDING = 1e-9  # relative


@dataclass(frozen=True)
class DistinctData:
    """Distinct rows of data, and how often each occurs.

    `args` and `kwargs` are those of a program, with `counts` `[distinct]` data; `of` are the ones
    that they stand for.
    """

    args: tuple
    kwargs: Mapping[str, Any]
    counts: Tensor
    of: tuple[tuple, Mapping[str, Any]]

    @property
    def share(self) -> float:
        """Number of distinct rows as a share of all."""
        return len(self.counts) / float(self.counts.sum())

    def stands_for(self, args: tuple, kwargs: Mapping[str, Any]) -> bool:
        """Return whether they are made of these arguments."""
        given, own = tensors_of(args, kwargs), tensors_of(*self.of)
        return len(given) == len(own) and all(map(is_, given, own))


def distinct_data(bound: "Bound") -> DistinctData | None:
    """Find the distinct rows of a data set.

    Returns None where these are many, or the program is not seen to be a sum over rows: parts of
    the data must have the densities that they have in the whole, no latent its own datum, and the
    sum must be right at a few draws of the latents.
    """
    structure, size = bound.structure, bound.num_data or 0
    rowwise = not (structure.per_datum or structure.enumerated or structure.subsampled)
    if not rowwise or size < LEAST or any(latent.local for latent in structure.latents):
        return None
    tensors = [t for t in tensors_of(bound.args, bound.kwargs) if t.dim() and len(t) == size]
    if not tensors or first_places([t[:LEAST] for t in tensors]) is None:
        return None
    found = first_places(tensors) if structure.divisible else None
    if found is None:
        return None
    args, kwargs = bound.select(found[0])
    counts = found[1].to(torch.float64)
    distinct = DistinctData(args, kwargs, counts, (bound.args, bound.kwargs))
    return distinct if is_right(bound, replace(bound, distinct=distinct)) else None


def first_places(tensors: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Find a place of each distinct row, and its count.

    Tensors are `[data, ...]`; rows are those of all together. The result is None where they are
    not fewer than a quarter of the data, or have many columns.
    """
    size, number = len(tensors[0]), 1
    columns = [column for t in tensors for column in t.reshape(size, -1).unbind(1)]
    if len(columns) > MOST_COLUMNS or any(t.requires_grad or t.is_complex() for t in tensors):
        return None
    row = torch.zeros(size, dtype=torch.long, device=tensors[0].device)
    for column in columns:
        values, own = column.unique(return_inverse=True)
        values, row = (row * len(values) + own).unique(return_inverse=True)
        number = len(values)
        if number * FEWER > size:
            return None
    places = torch.arange(size, device=row.device)
    return row.new_zeros(number).scatter(0, row, places), row.bincount(minlength=number)


@torch.no_grad()
def is_right(whole: "Bound", distinct: "Bound") -> bool:
    """Compare the sum over distinct rows with that over all."""
    try:
        with unmoved_generators(whole.device):
            values = whole.draw_prior(DRAWS).values
            one, other = (bound.log_joint(values).likelihood for bound in (whole, distinct))
    except Exception:  # whatever the program raises at its prior's draws
        return False
    return bool(one.isfinite().any()) and torch.allclose(one, other, rtol=ROUNDING, atol=0.0)
