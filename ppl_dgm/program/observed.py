"""Count and digest of what a program observes.

The digest tells it apart from other data.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_dgm.program.arguments import tensors_of
from ppl_dgm.program.log_densities import seen_entries
from ppl_dgm.program.plates import plate_frames
from ppl_dgm.program.sites import Site
from ppl_dgm.program.stretching import Stretch, stretches_of
from ppl_dgm.program.structure import Structure

__all__ = ["Observed", "same_data"]

MANY_COLUMNS = 4096  # of one site, above which it is told as a whole
Trace = Callable[[tuple, Mapping[str, Any]], Any]


class Observed:
    """Running count and digest of the observed values.

    Masked values are left out. The values come piece by piece.

    Data are told by their columns, each the values of one variable over the data: one site of
    vectors and several sites of scalars agree. Columns count in no order, their entries do.

    Args:
        trace: runs the model at arguments with new latents, and returns its trace.

    Attributes:
        stretched: names of sites whose values are data stretched by latents.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.num_dims = 0
        self.stretched: set[str] = set()
        self._columns: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._single = True

    def add(
        self, structure: Structure, model_trace: Any, args: tuple, kwargs: Mapping[str, Any]
    ) -> None:
        """Add the observed values of one trace.

        The trace is of a run at these arguments.
        """
        sites = {name: model_trace.nodes[name] for name in structure.observed}
        self.num_dims += sum(int(seen_entries(site).sum()) for site in sites.values())
        values, stretched = data_behind(sites, args, kwargs, self.trace)
        if structure.factors:  # one may be the Jacobian that the density lacks
            values |= {name: in_double(value) for name, value in stretched.items()}
        else:
            self.stretched |= set(stretched)
        for name, table in as_tables(sites, values, structure.plate).items():
            for column, entries in enumerate(table):
                self._add_column(name, column, entries)

    def _add_column(self, name: str, column: int, entries: Tensor) -> None:
        rounded = entries.float()
        self._single &= bool(torch.equal(rounded.double().nan_to_num(), entries.nan_to_num()))
        single, double = self._columns.setdefault(
            (name, column), (hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16))
        )
        single.update(rounded.numpy().tobytes())
        double.update(entries.numpy().tobytes())

    @property
    def digest(self) -> str:
        """Digest of the observed values in single precision.

        Where they need more, that in double follows after a `+`.
        """
        single, double = (joined(pair[i] for pair in self._columns.values()) for i in (0, 1))
        return single if self._single else f"{single}+{double}"


def joined(hashes: Any) -> str:
    """One digest of several, in no order."""
    parts = sorted(each.hexdigest() for each in hashes)
    return hashlib.blake2b("".join(parts).encode(), digest_size=8).hexdigest()


def same_data(one: str, other: str) -> bool:
    """Return whether two digests are of the same values.

    The values may be given in the same or in another precision.

    Example:
        >>> same_data("ab", "ab+cd"), same_data("ab+cd", "ab+ef")
        (True, False)
    """
    both = one.partition("+"), other.partition("+")
    fine = all(digits for _, _, digits in both)
    return one == other if fine else both[0][0] == both[1][0]


def as_tables(
    sites: Mapping[str, Site], values: Mapping[str, Tensor], plate: str
) -> dict[str, Tensor]:
    """Arrange observed values as columns `[columns, rows]` in double.

    Rows are data. Single numbers are the rows of one column.

    What masks take out is NaN, and so is what shorter rows of a loop lack.
    """
    tables: dict[str, Tensor] = {}
    loops: dict[int, list[Tensor]] = {}
    numbers: list[Tensor] = []
    for name, value in values.items():
        site, seen = sites[name], seen_entries(sites[name]).cpu()
        if value.shape != seen.shape:  # all arguments in a row
            tables[name] = columns_of(value)
            continue
        shown = torch.where(seen, value, torch.nan)
        frame = next(iter(plate_frames(site, plate)), None)
        if frame is not None and frame.dim is None:
            loops.setdefault(frame.counter, []).append(shown.reshape(-1))
        elif frame is None and shown.numel() == 1:
            numbers.append(shown.reshape(1))
        else:
            lead = 0 if frame is None else value.dim() - site["fn"].event_dim + frame.dim
            tables[name] = columns_of(shown, lead)
    if loops:
        rows = [torch.cat(row) for row in loops.values()]
        padded = pad_sequence(rows, batch_first=True, padding_value=torch.nan)
        tables["rows of a loop"] = columns_of(padded)
    if numbers:
        tables["single numbers"] = columns_of(torch.cat(numbers))
    return tables


def columns_of(value: Tensor, lead: int = 0) -> Tensor:
    """Reshape a value to `[columns, rows]`.

    Its dimension `lead` becomes the rows. Very many columns are joined into one.
    """
    rows = value.movedim(lead, 0) if value.dim() else value.reshape(1)
    flat = rows.reshape(len(rows), -1) if rows.numel() else rows.reshape(len(rows), 0)
    columns = flat.T if flat.shape[1] <= MANY_COLUMNS else flat.reshape(1, -1)
    return columns.contiguous() + 0.0  # no minus zero


def data_behind(
    sites: Mapping[str, Site], args: tuple, kwargs: Mapping[str, Any], trace: Trace
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the data behind the observed values.

    They are in double on the CPU. Second are the data that values stretch by latents.

    They are the values themselves, unless these move with the latents, as residuals `y -
    prediction` do. Those are densities of the argument whose unit they have, y; where there is none
    such, all arguments are the data.
    """
    found = {name: site["value"].detach() for name, site in sites.items()}
    made = [name for name, value in found.items() if not is_given(value, args, kwargs)]
    stretched: dict[str, Tensor] = {}
    if made:
        other = trace(args, kwargs).nodes
        moving = [
            name
            for name in made
            if name not in other or not torch.equal(found[name], other[name]["value"].detach())
        ]
        if moving:
            shifted, stretched = shifted_arguments(moving, args, kwargs, trace)
            found |= shifted
    return {name: in_double(value) for name, value in found.items()}, stretched


def is_given(value: Tensor, args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a value shares memory with an argument.

    It may be the argument itself, or a view of it.
    """
    place = value.untyped_storage().data_ptr()
    return any(leaf.untyped_storage().data_ptr() == place for leaf in tensors_of(args, kwargs))


def shifted_arguments(
    names: list[str], args: tuple, kwargs: Mapping[str, Any], trace: Trace
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Find the argument that each observed value is shifted from.

    It is the one in which the value has derivative one or minus one, or any whose volume it keeps.
    Second are the first arguments of values whose volume moves with the latents, whichever argument
    is the data.
    """
    leaves, spec = tree_flatten((args, dict(kwargs)))
    tensors = {i: x for i, x in enumerate(leaves) if isinstance(x, Tensor)}
    inputs = {i: x for i, x in tensors.items() if x.is_floating_point()}
    with torch.enable_grad():
        inputs = {i: x.detach().clone().requires_grad_() for i, x in inputs.items()}
        given: Any = tree_unflatten([inputs.get(i, x) for i, x in enumerate(leaves)], spec)
        runs = [trace(*given).nodes for _ in range(2)]
        one, other = [
            {
                name: stretches_of(run[name]["value"], seen_entries(run[name]), inputs)
                for name in names
                if name in run
            }
            for run in runs
        ]
    found, stretched = {}, {}
    for name in names:
        shape = runs[0][name]["value"].shape if name in runs[0] else torch.Size([0])
        every, again = one.get(name, {}), other.get(name, {})
        steady = {i: each for i, each in every.items() if each.agrees(again.get(i))}
        kept = [i for i, each in steady.items() if each.is_one]
        if kept:
            found[name] = tensors[kept[0]].detach().reshape(shape)
            continue
        found[name] = marked(list(tensors.values()), next(iter(steady.values()), None))
        whole = [x for i, x in tensors.items() if i not in inputs and x.numel() == shape.numel()]
        if every and not steady and not whole and all(each.is_known for each in every.values()):
            stretched[name] = tensors[min(every)].detach().reshape(shape)
    return found, stretched


def marked(everything: list[Tensor], stretch: Stretch | None) -> Tensor:
    """Join all arguments, in units of their own.

    Marks at its end tell it from data that are observed as they are.
    """
    unit = torch.nan if stretch is None else round(float(stretch.log_volume.mean()), 2)
    flat = [in_double(tensor).reshape(-1) for tensor in everything]
    return torch.cat([*flat, torch.tensor([torch.inf, unit], dtype=torch.float64)])


def in_double(value: Tensor) -> Tensor:
    """A tensor in double on the CPU."""
    real = torch.view_as_real(value) if value.is_complex() else value
    return real.detach().to("cpu", torch.float64)
