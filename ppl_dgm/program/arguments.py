"""A program's arguments: data in any of the forms that users have them in."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ppl_dgm.data.conversion import Arguments, as_argument, as_arguments, is_collection


def unpack_arguments(args: tuple, kwargs: Mapping[str, Any]) -> Arguments:
    """Arguments as called, with data sets and tables among the positional ones unpacked."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for arg in args:
        own = as_arguments(arg) if is_collection(arg) else ((as_argument(arg),), {})
        positional.extend(own[0])
        named |= own[1]
    given = {name: as_argument(value) for name, value in kwargs.items()}
    return tuple(positional), {**named, **given}


def move_data(arguments: Arguments, device: torch.device | str | None) -> Arguments:
    """The arguments with their tensors on a device; None leaves them."""
    if device is None:
        return arguments
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, arguments)


def tensors_of(args: tuple, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """All tensors among a program's arguments."""
    return [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]


def select_data(args: tuple, kwargs: Mapping[str, Any], size: int | None, index: Any) -> Arguments:
    """Index the tensors among the arguments whose first dimension is the data plate's; hand the rest on."""

    def pick(leaf: Any) -> Any:
        return (
            leaf[index]
            if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size
            else leaf
        )

    return (args, dict(kwargs)) if size is None else tree_map(pick, (args, dict(kwargs)))
