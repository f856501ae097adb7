"""Tensors and other leaves of nested arguments.

The other leaves tell one call from another.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = [
    "Rest",
    "dense",
    "fitted",
    "laid_out",
    "leaves_and_rest",
    "looks",
    "tensor_leaves",
    "with_tensors",
]

Rest = tuple[Hashable, ...]


def tensor_leaves(inputs: Any) -> list[torch.Tensor]:
    """Return the tensors among the leaves of a nested input.

    They are in the order of torch's pytrees, but are found several times faster.
    """
    return leaves_and_rest(inputs)[0]


def leaves_and_rest(inputs: Any) -> tuple[list[torch.Tensor], Rest]:
    """Split a nested input into tensors and everything else.

    The rest tells one input from another: lengths, names and other leaves.
    """
    found: list[torch.Tensor] = []
    rest: list[Any] = []
    _collect(inputs, found, rest)
    return found, tuple(rest)


def looks(leaves: Sequence[torch.Tensor]) -> Hashable:
    """Return a key of the properties that code depends on.

    These are the tensors' shapes, types and devices, and torch's default type.
    """
    return torch.get_default_dtype(), *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves)


def fitted(leaves: Sequence[torch.Tensor], examples: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return checked tensors in the examples' memory layout.

    Compiled code takes this layout for granted.

    Raises:
        ValueError: their number, shapes, types or devices differ.
    """
    if len(leaves) != len(examples):
        raise ValueError(
            f"expected {len(examples)} tensors, as at capture, got {len(leaves)}; capture again "
            "for others"
        )
    for leaf, example in zip(leaves, examples, strict=True):
        if (
            leaf.shape != example.shape
            or leaf.dtype != example.dtype
            or leaf.device != example.device
        ):
            expected, got = (f"{list(t.shape)} of {t.dtype} on {t.device}" for t in (example, leaf))
            raise ValueError(
                f"expected a tensor {expected}, as at capture, got {got}; convert it, or capture "
                "again for it"
            )
    return laid_out(leaves, examples)


def laid_out(
    leaves: Sequence[torch.Tensor], examples: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Return tensors in the memory layout of the examples.

    They have the examples' shapes, and are copied where their layout is another.
    """
    pairs = zip(leaves, examples, strict=False)
    return [
        leaf if leaf.stride() == example.stride() else _copy(leaf, example)
        for leaf, example in pairs
    ]


def _copy(leaf: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    layout = torch.empty_strided(
        example.shape, example.stride(), dtype=example.dtype, device=example.device
    )
    return layout.copy_(leaf.detach())


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """Return a dense tensor, copied only if necessary.

    It is copied where its entries do not fill its memory one by one, for example if it is expanded.
    """
    return (
        tensor
        if fills_memory(tensor)
        else tensor.detach().contiguous().requires_grad_(tensor.requires_grad)
    )


def fills_memory(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's entries fill its memory without gaps."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


@dataclass(frozen=True)
class Itself:
    """Leaf that cannot be hashed, compared by identity.

    It is held, so that no other object takes its place in memory.
    """

    value: Any

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _collect(value: Any, found: list[torch.Tensor], rest: list[Any]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif type(value) in (tuple, list) or hasattr(value, "_make"):
        rest += (type(value), len(value))
        for item in value:
            _collect(item, found, rest)
    elif type(value) is dict:
        rest.append(tuple(value))
        for item in value.values():
            _collect(item, found, rest)
    elif type(value) not in pytree.SUPPORTED_NODES:
        rest.append(_told_apart(value))
    else:
        leaves, structure = pytree.tree_flatten(value)
        found += [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        rest += [
            repr(structure),
            *(_told_apart(leaf) for leaf in leaves if not isinstance(leaf, torch.Tensor)),
        ]


def _told_apart(leaf: Any) -> Hashable:
    return (type(leaf), leaf) if isinstance(leaf, Hashable) else Itself(leaf)


def with_tensors(inputs: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """Replace the tensors of a nested input, in order.

    Its other leaves are kept.
    """
    leaves, structure = pytree.tree_flatten(inputs)
    rest = iter(tensors)
    return pytree.tree_unflatten(
        [next(rest) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], structure
    )
