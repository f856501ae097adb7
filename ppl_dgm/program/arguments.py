"""Arguments of a program, made of users' data.

The data may have any of the forms that users have them in.
"""

import inspect
from collections.abc import Callable, Collection, Hashable, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from ppl_dgm.arrays import as_argument
from ppl_dgm.data.conversion import Arguments, as_arguments, is_collection

__all__ = [
    "call_signature",
    "move_data",
    "names_of",
    "select_data",
    "tensors_of",
    "unpack_arguments",
]


def unpack_arguments(args: tuple, kwargs: Mapping[str, Any]) -> Arguments:
    """Unpack data sets and tables among positional arguments."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for arg in args:
        own = as_arguments(arg) if is_collection(arg) else ((as_argument(arg),), {})
        positional.extend(own[0])
        named |= own[1]
    given = {name: as_argument(value) for name, value in kwargs.items()}
    return tuple(positional), {**named, **given}


def move_data(arguments: Arguments, device: torch.device | str | None) -> Arguments:
    """Move the tensors among arguments to a device.

    With None they stay where they are.
    """
    if device is None:
        return arguments
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, arguments)


def tensors_of(args: tuple, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """All tensors among a program's arguments."""
    return [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]


def names_of(fn: Callable, args: tuple, kwargs: Mapping[str, Any]) -> list[str]:
    """Return the argument name of each tensor.

    Names are in the order of `tensors_of`.
    """
    try:
        own = list(inspect.signature(fn).bind_partial(*args).arguments)
    except (TypeError, ValueError):  # a callable without a signature that can be read
        own = []
    named = [(own[i] if i < len(own) else f"argument {i}", arg) for i, arg in enumerate(args)]
    named += list(kwargs.items())
    return [name for name, value in named for _ in tensors_of((value,), {})]


def call_signature(args: tuple, kwargs: Mapping[str, Any]) -> Hashable:
    """Summarise the kind of a call's arguments.

    Calls of one kind agree in nesting, types, dimensions and other leaves, whatever the size of
    their data.
    """
    leaves, nesting = tree_flatten((args, dict(kwargs)))
    return str(nesting), tuple(map(_kind, leaves))


def _kind(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return leaf.dim(), leaf.dtype
    return leaf if isinstance(leaf, (bool, int, float, str)) else type(leaf)


def select_data(
    args: tuple,
    kwargs: Mapping[str, Any],
    size: int | None,
    index: Any,
    held: Collection[int] = (),
) -> Arguments:
    """Index the arguments that hold data.

    They are the tensors whose first dimension is the data plate's. All others are returned as they
    are.

    `held` are the places, in the order of `tensors_of`, of tensors that all data share.
    """
    places = count()

    def pick(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or next(places) in held:
            return leaf
        return leaf[index] if leaf.dim() and leaf.shape[0] == size else leaf

    return (args, dict(kwargs)) if size is None else tree_map(pick, (args, dict(kwargs)))
