"""Argument that holds a program's data.

Other data can take its place, for their log densities.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_dgm.program.arguments import select_data
from ppl_dgm.program.bound_program import Bound
from ppl_dgm.program.supports import support_of

__all__ = ["DataArgument"]


@dataclass(frozen=True)
class DataArgument:
    """Place of the data among a program's arguments.

    The data are those of the only observed site.

    Args:
        site: name of the observed site.
        position: number of its argument among the leaves of positional and named arguments.
        support: of the site's distribution.
    """

    site: str
    position: int
    support: Constraint

    @classmethod
    def find(cls, bound: Bound) -> "DataArgument":
        """Find the argument that the program observes.

        The program must have exactly one observed site.

        Raises:
            ValueError: for several observed sites, or data that are no argument of the program.
        """
        names = bound.structure.observed
        if len(names) != 1:
            raise ValueError(
                f"the program observes the sites {list(names)}; expected exactly one, whose "
                "density is learnt. Observe one site, with the other variables in its event "
                "dimensions"
            )
        site = bound.model_trace().nodes[names[0]]
        leaves = tree_flatten((bound.args, dict(bound.kwargs)))[0]
        return cls(names[0], position_of(names[0], site["value"], leaves), support_of(site["fn"]))

    def value(self, bound: Bound) -> Tensor:
        """Return the data: `[data, *event]`."""
        return tree_flatten((bound.args, dict(bound.kwargs)))[0][self.position]

    def exchange(self, bound: Bound, value: Tensor, rows: Tensor | None = None) -> Bound:
        """Return the program with other data `[n, *event]`.

        With `rows` `[n]`, the covariates are those of the data of these numbers.
        """
        args, kwargs = bound.args, dict(bound.kwargs)
        if rows is not None:
            args, kwargs = select_data(args, kwargs, len(self.value(bound)), rows)
        leaves, spec = tree_flatten((args, kwargs))
        leaves[self.position] = value
        args, kwargs = tree_unflatten(leaves, spec)
        return replace(bound, args=args, kwargs=kwargs, num_data=len(value))


def position_of(name: str, value: Any, leaves: list[Any]) -> int:
    """Return the number of the argument that a site observes.

    Raises:
        ValueError: if it is none of them.
    """
    same = [i for i, leaf in enumerate(leaves) if leaf is value]
    if same:
        return same[0]
    tensors = [(i, leaf) for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    equal = [i for i, leaf in tensors if leaf.shape == value.shape and torch.equal(leaf, value)]
    if len(equal) == 1:
        return equal[0]
    if equal:
        raise ValueError(
            f"the value that site {name!r} observes is a copy that equals {len(equal)} of the "
            "program's arguments, so that nobody knows which of them holds the data; observe the "
            "argument as it is: pyro.sample(..., obs=x)"
        )
    raise ValueError(
        f"the value that site {name!r} observes is not among the program's arguments, so that "
        "other data cannot take its place; pass it as an argument and observe it as it is: "
        "pyro.sample(..., obs=x)"
    )
