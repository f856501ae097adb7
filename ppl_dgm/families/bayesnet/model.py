"""Model of a Bayes net: each variable given its parents."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
from torch import Tensor, nn

from ppl_dgm.conditionals.tables import NodeConditional
from ppl_dgm.families.bayesnet.columns import (
    Data,
    columns_of,
    named_states,
)
from ppl_dgm.families.bayesnet.graph import topological_order

__all__ = ["BayesNetModel"]


class BayesNetModel(nn.Module):
    """Every variable given its parents, in topological order."""

    def __init__(
        self,
        nodes: Mapping[str, NodeConditional],
        states: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        others = [name for name, node in nodes.items() if not isinstance(node, NodeConditional)]
        if others or not nodes:
            raise TypeError(
                "expected a NodeConditional (Table, Logistic, ...) for every node; got others for "
                f"{others}"
            )
        self.order = topological_order({name: node.parents for name, node in nodes.items()})
        num_states = {name: node.num_states for name, node in nodes.items()}
        for node in nodes.values():
            node.check_parents(num_states)
        self.states = named_states(nodes, states or {})
        self._names = tuple(nodes)
        self._nodes = nn.ModuleList(nodes.values())

    @property
    def conditionals(self) -> dict[str, NodeConditional]:
        """The conditional distributions by name."""
        return dict(zip(self._names, self._nodes, strict=True))  # type: ignore[arg-type]

    def forward(self, x: Data | None = None) -> dict[str, Tensor]:
        """Score data, or draw one datum.

        Variables that the data lack are latent.
        """
        nodes, values = self.conditionals, {}
        given = {} if x is None else columns_of(nodes, x, self.states)
        with pyro.plate("data", len(next(iter(given.values()))) if given else 1, dim=-1):
            for name in self.order:
                conditional = nodes[name](*(values[parent] for parent in nodes[name].parents))
                infer: Any = {"enumerate": "parallel"} if nodes[name].num_states else {}
                values[name] = pyro.sample(name, conditional, obs=given.get(name), infer=infer)
        return values
