"""Comparison of two runs of a program, operation by operation.

Results of two runs may agree at some latents and not at others: a mean of all data, say, that
counts only where a latent is positive. What enters the operations before is different at all of
them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "SameInParts",
    "SameShares",
    "UnlikeError",
    "check_same_operands",
    "disjoint_places",
    "record",
]

SCALAR = "NumberType", "TensorType"  # of arguments that are no sizes
# Operations that move numbers, and compute none: the next ones see what they return. Indices are
# not compared: those of a plate are places in the data, and may choose them all.
MOVES = {
    "_to_copy",
    "_unsafe_view",
    "clone",
    "copy_",
    "fill_",
    "index",
    "index_put",
    "index_put_",
    "index_select",
    "lift_fresh",
    "zero_",
}
PACKS = "aten::_pack_padded_sequence"  # in an order of the data as a whole
WINDOW = 2**26  # bytes of operands that a recording in windows keeps at a time
ROUNDING = 300  # units in the last place, of the largest number
ROUNDING_HALF = 4  # the same of numbers of 16 bits, which are few
Check = Callable[[Tensor, Any], None]
Results = Iterable[Tensor]


class UnlikeError(ValueError):
    """Error of runs that compute with other numbers."""


@dataclass(frozen=True)
class SameShares:
    """Check that parts of the data see their share.

    A part is `places` of `size` data. Operands have the data along an axis, alone or together
    with others, or are the same for the part and the whole.
    """

    size: int
    places: Tensor

    def __call__(self, whole: Tensor, few: Tensor) -> None:
        """Raise where an operand of the part is no share."""
        if whole is few:
            return
        if whole.dim() != few.dim():
            raise UnlikeError("operands of unlike dimensions")
        shares = [whole]
        for axis in range(whole.dim()):
            if whole.shape[axis] != few.shape[axis]:
                orders = self.orders(whole.shape[axis], whole.device)
                shares = [one.index_select(axis, order) for one in shares for order in orders]
        if not any(equal(one, few) for one in shares):
            raise UnlikeError("a part of the data sees another operand than the whole")

    def orders(self, length: int, device: torch.device) -> list[Tensor]:
        """Indices of the part along an axis of data."""
        times, places = length // self.size, self.places.to(device)
        other = torch.arange(times, device=device)
        major, minor = places[:, None] * times + other, other[:, None] * self.size + places
        return [major.flatten(), minor.flatten()] if times > 1 else [places]


@dataclass(frozen=True)
class SameAtPlaces(SameShares):
    """Check that some data see the same in two runs.

    Both are runs on all data.
    """

    def __call__(self, one: Tensor, kept: Tensor) -> None:
        """Raise where an operand differs at the places."""
        if not any(map(equal, self.choices(self.select(one)), self.choices(kept))):
            raise UnlikeError("an operand of some data changes with others")

    def select(self, operand: Tensor) -> Tensor:
        """Take the places along axes of data."""
        for axis in range(operand.dim()):
            if operand.shape[axis] == self.size:
                operand = operand.index_select(axis, self.places.to(operand.device))
        return operand

    def choices(self, operand: Tensor) -> Iterator[Tensor]:
        """Yield an operand whole, and at the places.

        An axis longer than the data may hold them together with others.
        """
        axes = [
            [None, *self.orders(length, operand.device)]
            if length > self.size and length % self.size == 0
            else [None]
            for length in operand.shape
        ]
        for orders in product(*axes):
            chosen = operand
            for axis, order in enumerate(orders):
                chosen = chosen if order is None else chosen.index_select(axis, order)
            yield chosen


class SameInParts:
    """Check of parts of the data, one at a time.

    All are kept of the same run.
    """

    def __init__(self, size: int, places: list[Tensor]) -> None:
        self.places = places
        self._parts = [SameAtPlaces(size, part) for part in places]

    def keep(self, operand: Tensor) -> list[Tensor]:
        """Keep the places of each part.

        What has no axis of data is kept once.
        """
        kept = [part.select(operand) for part in self._parts]
        return [snapshot(operand)] * len(kept) if kept[0] is operand else kept

    def check_of(self, number: int) -> Check:
        """Return the check of one part."""

        def check(operand: Tensor, kept: list[Tensor]) -> None:
            self._parts[number](operand, kept[number])

        return check


def disjoint_places(size: int, few: int, device: torch.device | None) -> list[Tensor]:
    """Choose two parts of the data at random.

    The second one is backwards. They have no datum in common, since what all data take from a
    single one, as from the last or the largest, is the same in parts that hold it. Neighbours are
    in unlike parts at times, and steps are unequal, since data may depend on every other place.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    starts = torch.arange(few + 1, device="cpu") * size // few
    lengths = starts.diff()
    shares = torch.rand(2, few, generator=generator, dtype=torch.float64, device="cpu")
    first = (shares[0] * lengths).long()
    second = (first + 1 + (shares[1] * (lengths - 1)).long()) % lengths
    parts = starts[:-1] + first, (starts[:-1] + second).flip(0)
    return [places.to(device or "cpu") for places in parts]


def equal(one: Tensor, other: Tensor) -> bool:
    """Return whether operands agree to rounding."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other):
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return False
    info = torch.finfo(one.dtype)
    relative = (ROUNDING if info.bits > 16 else ROUNDING_HALF) * info.eps
    largest = one.masked_fill(~one.isfinite(), 0.0).abs().max().item() if one.numel() else 0.0
    return torch.allclose(one, other, rtol=relative, atol=relative * largest, equal_nan=True)


def snapshot(operand: Tensor) -> Tensor:
    """Return an operand as it is now.

    Parameters do not change in a run.
    """
    return operand if isinstance(operand, nn.Parameter) else operand.clone()


@torch.no_grad()
def record(
    run: Callable[[], Results],
    keep: Callable[[Tensor], Any] = snapshot,
    window: int | None = None,
) -> "Recording":
    """Record the operands that lead to a run's results.

    `keep` takes what is to be kept of each; what only an assertion sees is left out. With a window,
    counted from zero, those outside of it are not kept, so that long runs fit into memory.
    """
    with Recording(keep, window) as recording:
        recording.results = list(run())
    recording.mark_leading()
    return recording


@torch.no_grad()
def check_same_operands(run: Callable[[], Results], *recorded: tuple["Recording", Check]) -> None:
    """Compare what a run's operations see with recorded ones.

    A check takes an operand of the run and the recorded one, and raises where they differ.

    Raises:
        UnlikeError: if the runs make different operations, or a check raises it.
    """
    with Comparison(recorded) as comparison:
        results = list(run())
    if comparison.is_short():
        raise UnlikeError("the runs make different operations")
    for recording, check in recorded:
        for one, other in zip(results, recording.results, strict=True):
            check(one, recording.keep(other))


@dataclass
class Step:
    """One operation, its operands, and the steps before it."""

    name: Any
    operands: list[Any]  # as they are kept, or None outside the window
    sources: set[int]
    leads: bool = False


class Recording(TorchDispatchMode):
    """Keep the operations of a run with their operands."""

    def __init__(self, keep: Callable[[Tensor], Any], window: int | None = None) -> None:
        super().__init__()
        self.keep, self.window = keep, window
        self.bytes = 0  # seen
        self.results: list[Tensor] = []
        self.packs = False  # and then cannot be compared datum by datum
        self.steps: list[Step] = []
        self.makers: dict[int, set[int]] = {}  # of what is in a memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.packs |= func._schema.name == PACKS
        read = memory(args, kwargs)
        step = Step(func, [self.kept(one) for one in operands(func, args, kwargs)], set())
        step.sources = self.makers_of(read)
        result = func(*args, **kwargs)
        for key in memory(result) | memory(written(func, args, kwargs)):
            earlier = self.makers_of({key}) if key in read else set()
            self.makers[key] = earlier | {len(self.steps)}
        self.steps.append(step)
        return result

    def kept(self, operand: Tensor) -> Any:
        """Keep an operand, if it is in the window."""
        window = self.bytes // WINDOW
        if not isinstance(operand, nn.Parameter):
            self.bytes += operand.numel() * operand.element_size()
        return self.keep(operand) if self.window in (None, window) else None

    def goes_on(self) -> bool:
        """Return whether the run has operands after the window."""
        return self.window is not None and self.bytes > (self.window + 1) * WINDOW

    def makers_of(self, read: set[int]) -> set[int]:
        """Steps that made what is in some memories."""
        return set[int]().union(*(self.makers.get(key, ()) for key in read))

    def mark_leading(self) -> None:
        """Mark the steps that lead to results.

        Those that only move numbers are dropped.
        """
        needed = self.makers_of(memory(self.results))
        for place, step in reversed(list(enumerate(self.steps))):
            if place in needed:
                step.leads = True
                needed |= step.sources
        self.steps = [step for step in self.steps if step.operands]


class Comparison(TorchDispatchMode):
    """Check the operands of a run against recorded ones."""

    def __init__(self, recorded: Iterable[tuple[Recording, Check]]) -> None:
        super().__init__()
        self.left = [(iter(recording.steps), check) for recording, check in recorded]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if given := operands(func, args, kwargs):
            for steps, check in self.left:
                step = next(steps, None)
                if step is None or step.name != func:
                    raise UnlikeError("the runs make different operations")
                for operand, kept in zip(given, step.operands, strict=True):
                    if step.leads and kept is not None:
                        check(operand, kept)
        return func(*args, **kwargs)

    def is_short(self) -> bool:
        """Return whether recorded steps are left."""
        return any(next(steps, None) for steps, _ in self.left)


@cache
def computes(func: Any) -> bool:
    """Return whether an operation makes new numbers."""
    name: str = func._schema.name.partition("::")[2]
    makes = name in MOVES or name.startswith("new_") or name.endswith("_like")
    returned = func._schema.returns
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in returned)
    return not (makes or view)


def operands(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """List the tensors and numbers that an operation computes with.

    Sizes are none of them. Of operations without tensors, others take what they return.
    """
    if not (computes(func) and memory(args, kwargs)):
        return []
    return [
        leaf if isinstance(leaf, Tensor) else torch.tensor(leaf, device="cpu")
        for own, value in arguments(func, args, kwargs)
        for leaf in leaves([value])
        if isinstance(leaf, (Tensor, float)) or (type(leaf) is int and own.type.kind() in SCALAR)
    ]


def arguments(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """Pair the arguments of an operation with their declarations."""
    declared = func._schema.arguments
    yield from zip(declared, args, strict=False)
    yield from ((own, kwargs[own.name]) for own in declared if own.name in kwargs)


def written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """List what an operation changes in place."""
    return [
        value
        for own, value in arguments(func, args, kwargs)
        if own.alias_info is not None and own.alias_info.is_write
    ]


def memory(values: Any, named: Any = None) -> set[int]:
    """Identify the memory of tensors, which views share."""
    return {
        leaf.untyped_storage()._cdata if leaf.layout == torch.strided else id(leaf)
        for leaf in leaves([values, *(named or {}).values()])
        if isinstance(leaf, Tensor)
    }


def leaves(values: Iterable[Any]) -> Iterator[Any]:
    """Yield what nested lists and tuples hold."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from leaves(value)
        else:
            yield value
