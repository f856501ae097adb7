"""NADE's recurrence on the CPU, forward and back.

Each is one operation of torch: the sums that hidden units see change by a column a step, O(D H) for
a datum. The gradient needs the square root of D of them, and goes through each stretch between two
once more.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad
from torch.library import custom_op, register_autograd

__all__ = ["BLOCK", "by_blocks", "recur"]

PART = 256  # data at once, whose hidden units stay in the cache
BLOCK = 32  # dimensions at once: more, and their hidden units leave the cache
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@custom_op("ppl_dgm::nade_recur", mutates_args=())
def recur(
    values: Tensor,
    columns: Tensor,
    shifts: Tensor | None,
    start: Tensor,
    rows: Tensor,
    sizes: Sequence[int],
    relu: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    r"""Go through the groups of dimensions.

    $a_1$ is the start, $a_{t + 1} = a_t + \sum_{d \in t} (W_d x_d + s_d)$, and the parameters of
    the dimensions of group t are $V_d\, \mathrm{act}(a_t)$.

    Args:
        values: x, `[D, N]`, in the order of generation, as all else.
        columns: W, `[D, H]`.
        shifts: s, `[D, H]`, or None.
        start: `[N, H]`.
        rows: V, `[D, P, H]`.
        sizes: of the groups.
        relu: whether units are rectified; else they are sigmoid.
        keep: whether to keep what the gradient needs.

    Returns:
        Parameters without their biases, `[D, N, P]`, and some of the sums, `[C, N, H]`.
    """
    kept = start.new_empty(num_kept(sizes) if keep else 0, *start.shape)
    params = values.new_empty(*values.shape, rows.shape[1])
    length = stretch_of(sizes)
    for data in parts(start):
        sums = start[data].clone()
        units = torch.empty_like(sums)
        found = params[:, data].split(sizes)
        for t, (x, column, shift, row) in enumerate(
            zip(*pieces(values[:, data], columns, shifts, rows, sizes), strict=True)
        ):
            if keep and t % length == 0:
                kept[t // length, data] = sums
            activate(sums, units, relu)
            if len(row) == 1:
                torch.mm(units, row[0].T, out=found[t][0])
            else:
                found[t].copy_(torch.einsum("bh,nph->nbp", units, row))
            move(sums, x, column, shift)
    return params, kept


@custom_op("ppl_dgm::nade_recur_back", mutates_args=())
def recur_back(
    slopes: Tensor,
    values: Tensor,
    columns: Tensor,
    shifts: Tensor | None,
    kept: Tensor,
    rows: Tensor,
    sizes: Sequence[int],
    relu: bool,
    of_data: bool,
) -> Gradients:
    """Go back, from gradients of the parameters, `[D, N, P]`.

    Returns:
        Gradients of values (if `of_data`), columns, shifts (if there are any), start and rows.
    """
    found = empty_gradients(values, columns, shifts, kept, rows, of_data)
    for each in found:
        each.zero_()
    length = stretch_of(sizes)
    for data in parts(kept[0]):
        given = [*zip(*pieces(values[:, data], columns, shifts, rows, sizes), strict=True)]
        moves = slopes[:, data].split(sizes)
        of_values = found[0][:, data].split(sizes) if of_data else None
        of_shifts = None if shifts is None else found[2].split(sizes)
        of_columns, of_rows = found[1].split(sizes), found[4].split(sizes)
        of_sums = found[3][data]
        stretch = kept.new_empty(length, *of_sums.shape)
        for number in reversed(range(len(kept))):
            sums, first = kept[number, data].clone(), number * length
            inside = range(first, min(first + length, len(sizes)))
            for t, place in zip(inside, stretch, strict=False):
                x, column, shift, _ = given[t]
                activate(sums, place, relu)
                move(sums, x, column, shift)
            for t in reversed(inside):
                x, column, shift, row = given[t]
                units, slope = stretch[t - first], moves[t].transpose(0, 1).flatten(1)
                if of_values is not None:
                    torch.mm(column, of_sums.T, out=of_values[t])
                of_columns[t].addmm_(x, of_sums)
                if of_shifts is not None:
                    of_shifts[t].add_(of_sums.sum(0))
                of_rows[t].flatten(0, 1).addmm_(slope.T, units)
                if relu:
                    units.sign_()
                else:
                    torch.addcmul(units, units, units, value=-1, out=units)
                of_sums.addcmul_(slope @ row.flatten(0, 1), units)
    return found


@recur.register_fake
def _(
    values: Tensor,
    columns: Tensor,
    shifts: Tensor | None,
    start: Tensor,
    rows: Tensor,
    sizes: Sequence[int],
    relu: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Shapes of `recur`."""
    count = num_kept(sizes) if keep else 0
    return values.new_empty(*values.shape, rows.shape[1]), start.new_empty(count, *start.shape)


@recur_back.register_fake
def _(
    slopes: Tensor,
    values: Tensor,
    columns: Tensor,
    shifts: Tensor | None,
    kept: Tensor,
    rows: Tensor,
    sizes: Sequence[int],
    relu: bool,
    of_data: bool,
) -> Gradients:
    """Shapes of `recur_back`."""
    return empty_gradients(values, columns, shifts, kept, rows, of_data)


def empty_gradients(
    values: Tensor,
    columns: Tensor,
    shifts: Tensor | None,
    kept: Tensor,
    rows: Tensor,
    of_data: bool,
) -> Gradients:
    """Make empty gradients, `[0]` of what has none."""
    none = columns.new_empty(0)
    return (
        torch.empty_like(values) if of_data else none,
        torch.empty_like(columns),
        torch.empty_like(columns) if shifts is not None else none.clone(),
        torch.empty_like(kept[0]),
        torch.empty_like(rows),
    )


def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what the way back needs."""
    *tensors, ctx.sizes, ctx.relu, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def go_back(ctx: Any, slopes: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of all tensors."""
    values, columns, shifts, start, rows, kept = ctx.saved_tensors
    settings = ctx.sizes, ctx.relu
    if torch.is_grad_enabled():  # the gradient is to have one itself
        given = (values, columns, shifts, start, rows)
        wanted = [each for each in given if each is not None and each.requires_grad]
        params = plainly(*given, *settings)
        found = grad(params, wanted, slopes, create_graph=True, allow_unused=True)
        of = dict(zip(map(id, wanted), found, strict=True))
        return *(of.get(id(each)) for each in given), None, None, None
    if not len(kept):
        _, kept = recur(values, columns, shifts, start, rows, *settings, True)
    of_data = ctx.needs_input_grad[0]
    found = recur_back(slopes, values, columns, shifts, kept, rows, *settings, of_data)
    of_values, of_columns, of_shifts, of_start, of_rows = found
    return (
        of_values if of_data else None,
        of_columns,
        None if shifts is None else of_shifts,
        of_start,
        of_rows,
        None,
        None,
        None,
    )


def plainly(
    values: Tensor,
    columns: Tensor,
    shifts: Tensor | None,
    start: Tensor,
    rows: Tensor,
    sizes: Sequence[int],
    relu: bool,
) -> Tensor:
    """What `recur` gives, with gradients of any order."""
    sums, params = start, []
    for x, column, shift, row in zip(*pieces(values, columns, shifts, rows, sizes), strict=True):
        units = sums.relu() if relu else sums.sigmoid()
        params.append(torch.einsum("bh,nph->nbp", units, row))
        sums = sums + x.T @ column
        sums = sums if shift is None else sums + shift.sum(0)
    return torch.cat(params)


def by_blocks(
    x: Tensor,
    columns: Tensor,
    shifts: Tensor | None,
    sums: Tensor,
    rows: Tensor,
    steps: Tensor,
    sizes: Sequence[int],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """Give the same for blocks of dimensions at once.

    It takes `[N, D]`, the start `[*, H]` and the groups of the dimensions to `[N, D, P]`.
    """
    params = []
    for block in blocks_of(sizes):
        later = steps[block] >= steps[block, None]
        moves = x[:, None, block].masked_fill(later, 0.0) @ columns[block]
        total = x[:, block] @ columns[block]
        if shifts is not None:
            moves = moves + (~later).to(shifts) @ shifts[block]
            total = total + shifts[block].sum(0)
        units = activation(sums.unsqueeze(-2) + moves)
        params.append(torch.einsum("bth,tph->btp", units, rows[block]))
        sums = sums + total
    return torch.cat(params, 1)


register_autograd(recur, go_back, setup_context=remember)


def move(sums: Tensor, x: Tensor, column: Tensor, shift: Tensor | None) -> None:
    """Add a group's columns to the sums."""
    if len(x) == 1:
        sums.addr_(x[0], column[0])
    else:
        sums.addmm_(x.T, column)
    if shift is not None:
        sums += shift.sum(0)


def activate(sums: Tensor, units: Tensor, relu: bool) -> Tensor:
    """Fill the units."""
    return torch.clamp_min(sums, 0.0, out=units) if relu else torch.sigmoid(sums, out=units)


def parts(start: Tensor) -> Iterator[slice]:
    """Split data."""
    return (slice(first, first + PART) for first in range(0, len(start), PART))


def pieces(
    values: Tensor, columns: Tensor, shifts: Tensor | None, rows: Tensor, sizes: Sequence[int]
) -> tuple[Sequence[Any], ...]:
    """What belongs to each group."""
    sizes = list(sizes)
    own: Sequence[Any] = [None] * len(sizes) if shifts is None else shifts.split(sizes)
    return values.split(sizes), columns.split(sizes), own, rows.split(sizes)


def stretch_of(sizes: Sequence[int]) -> int:
    """How many groups lie between sums that are kept."""
    return max(1, round(len(sizes) ** 0.5))


def num_kept(sizes: Sequence[int]) -> int:
    """How many sums are kept."""
    return -(-len(sizes) // stretch_of(sizes))


def blocks_of(sizes: Sequence[int]) -> list[slice]:
    """Split dimensions into blocks of whole groups."""
    bounds, stop = [0], 0
    for size in sizes:
        stop += size
        if stop - bounds[-1] >= BLOCK:
            bounds.append(stop)
    return [slice(*pair) for pair in pairwise([*bounds, stop]) if pair[0] < pair[1]]
