"""Columns and states of the data of a Bayes net."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ppl_dgm.arrays import as_argument
from ppl_dgm.conditionals.tables import NodeConditional

__all__ = ["Data", "check_lengths", "check_states", "columns_of", "named_states", "numbered"]

Data = Tensor | Mapping[str, Tensor]
YES, NO = ("1", "true", "t", "yes", "y", "on"), ("0", "false", "f", "no", "n", "off")


def columns_of(
    nodes: Collection[str], x: Data, states: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """Return columns `[N]` of data by name.

    The data are a tensor `[N, number of nodes]` or a mapping.
    """
    x = as_argument(x)
    if isinstance(x, Tensor):
        if x.dim() != 2 or x.shape[1] != len(nodes):
            raise ValueError(
                f"expected data [N, {len(nodes)}] with columns {list(nodes)}, got shape "
                f"{list(x.shape)}"
            )
        x = dict(zip(nodes, x.unbind(-1), strict=True))
    unknown = [name for name in x if name not in nodes]
    if unknown:
        raise ValueError(
            f"the data name the unknown variables {unknown}; the nodes are {list(nodes)}"
        )
    check_lengths(x)
    return {name: numbered(name, states[name], column) for name, column in x.items()}


def numbered(name: str, states: Sequence[str], value: Tensor) -> Tensor:
    """Convert values of a variable to state numbers.

    Truth values go to the states that mean yes and no.

    Raises:
        ValueError: for truth values where the states have other names.
    """
    if value.dtype is not torch.bool or not states:
        return value
    yes, no = ([state for state in states if state.lower() in words] for words in (YES, NO))
    if not (len(states) == 2 and yes and no):
        raise ValueError(
            f"variable {name!r} is given True or False, but its states are {list(states)}; give "
            "their names or numbers"
        )
    return torch.where(value, states.index(yes[0]), states.index(no[0]))


def check_lengths(columns: Mapping[str, Tensor]) -> None:
    """Refuse columns of different lengths."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"the columns have different lengths {lengths}; expected one value of each variable "
            "per datum"
        )


def named_states(
    nodes: Mapping[str, NodeConditional], states: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Return the state names of every discrete variable.

    They are the numbers of the states by default.
    """
    named = {name: tuple(map(str, range(node.num_states or 0))) for name, node in nodes.items()}
    for name, given in states.items():
        if (
            name not in nodes
            or len(given) != nodes[name].num_states
            or len(set(given)) < len(given)
        ):
            size = nodes[name].num_states if name in nodes else None
            raise ValueError(
                f"expected {size} different state names for {name!r}, got {list(given)}"
            )
        named[name] = tuple(given)
    return named


def check_states(name: str, num_states: int | None, values: Tensor) -> None:
    """Refuse labels outside the classes."""
    if num_states is None or not values.numel():
        return
    values = values.double()
    if bool((values != values.round()).any()) or values.min() < 0 or values.max() >= num_states:
        raise ValueError(
            f"variable {name!r} has values outside its classes 0, ..., {num_states - 1} (min "
            f"{values.min().item():.6g}, max {values.max().item():.6g}); expected whole numbers in "
            "that range"
        )
