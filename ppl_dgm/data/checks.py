"""Validation checks of data sets and their error messages."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.distributions import constraints

__all__ = ["as_constraint", "check_rows", "check_splits", "check_support", "collect", "items"]


def collect(tensors: Any) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Return the tensors as a tuple or a dict.

    A tuple holds positional arguments, a dict named ones.

    Raises:
        TypeError: something that is not a tensor.
        ValueError: nothing.
    """
    collected = _normalise(tensors)
    if not collected:
        raise ValueError("a data set needs at least one tensor, got none")
    for name, value in items(collected):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"expected tensors, got {type(value).__name__} for {name}; convert it by "
                "torch.as_tensor"
            )
    return collected


def items(tensors: tuple[Tensor, ...] | dict[str, Tensor]) -> list[tuple[str | int, Tensor]]:
    """Pairs of name, or position, and tensor."""
    return list(tensors.items()) if isinstance(tensors, dict) else list(enumerate(tensors))


def as_constraint(support: constraints.Constraint | int | None) -> constraints.Constraint | None:
    """Convert a support to a constraint.

    A constraint is returned as it is. A number of levels L gives that of the values 0, ..., L - 1.

    Raises:
        ValueError: neither a constraint nor a number of at least 2.
    """
    if support is None or isinstance(support, constraints.Constraint):
        return support
    if not isinstance(support, int) or support < 2:
        raise ValueError(
            "expected support to be a constraint or a number of levels of at least 2, got "
            f"{support!r}"
        )
    return constraints.boolean if support == 2 else constraints.integer_interval(0, support - 1)


def check_rows(values: Mapping[str | int, Any], name: str) -> None:
    """Check that all tensors have equally many rows.

    ValueError is raised unless the tensors among `values` have the same, positive number of rows.
    """
    shapes = {key: list(value.shape) for key, value in values.items() if isinstance(value, Tensor)}
    if len({tuple(shape[:1]) for shape in shapes.values()}) != 1 or [] in shapes.values():
        raise ValueError(
            "the first dimension counts the data and must be the same for all tensors, got "
            f"{shapes}"
        )
    if any(shape[0] == 0 for shape in shapes.values()):
        raise ValueError(f"data set {name!r} has no rows: its shapes are {shapes}")


def check_splits(sizes: tuple[int, int, int] | None, num_rows: int) -> None:
    """Check that the split sizes add up.

    ValueError is raised unless their sum is the number of rows.
    """
    if sizes is not None and (len(sizes) != 3 or min(sizes) < 0 or sum(sizes) != num_rows):
        raise ValueError(
            f"expected three split sizes (train, valid, test) adding up to {num_rows} rows, got "
            f"{sizes}"
        )


def check_support(x: Tensor, support: Any, name: str) -> None:
    """Check that all values satisfy the constraint.

    ValueError is raised otherwise. Without a constraint nothing is checked.
    """
    if support is None:
        return
    inside = support.check(x)
    if not bool(inside.all()):
        raise ValueError(
            f"{int((~inside).sum())} values of data set {name!r} lie outside its support "
            f"{support}; they range from {x.min().item()} to {x.max().item()}, "
            f"{int(x.isnan().sum())} of them NaN"
        )


def _normalise(tensors: Any) -> tuple[Tensor, ...] | dict[str, Tensor]:
    if isinstance(tensors, Tensor):
        return (tensors,)
    if isinstance(tensors, Mapping):
        return dict(tensors)
    if isinstance(tensors, Sequence) and not isinstance(tensors, str):
        return tuple(tensors)
    raise TypeError(
        f"expected a Tensor, or a tuple or dict of Tensors, got {type(tensors).__name__}"
    )
