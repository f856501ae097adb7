"""Exact inference in Bayes nets by variable elimination.

The tree-width decides the cost, not the size of the net.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import opt_einsum
import torch
from torch import Tensor

from ppl_dgm.conditionals.tables import NodeConditional
from ppl_dgm.families.bayesnet.graph import ancestors

__all__ = ["log_marginal_of", "prototype"]

LOG_SPACE: Any = "ppl_dgm.program.log_einsum"  # sums of products of exponentials, in log space


class Factor(NamedTuple):
    """Log probabilities of a node on a grid of states.

    log p(node | parents) is `[batch, *states of the scope]`, or `[*states of the scope]` for one
    datum.
    """

    scope: tuple[str, ...]
    log_prob: Tensor


def log_marginal_of(
    nodes: Mapping[str, NodeConditional], query: Sequence[str], evidence: Mapping[str, Tensor]
) -> Tensor:
    """Compute log p(query, evidence), other variables summed out.

    They are summed out in the order that opt_einsum finds cheapest.

    Nodes that are neither in query nor evidence nor ancestors of these sum to one and are left out
    (Shachter 1986).

    Args:
        nodes: the net's conditionals by name.
        query: names of discrete variables.
        evidence: values `[batch]` by name, of discrete or continuous variables.

    Returns:
        Nats in float64, `[batch, *states of the query]`.

    Raises:
        ValueError: where a continuous variable would have to be integrated out.
    """
    parents = {name: node.parents for name, node in nodes.items()}
    relevant = ancestors(parents, [*query, *evidence])
    if not relevant:
        return prototype(nodes).double().new_zeros(1)
    nodes = copy.deepcopy({name: node for name, node in nodes.items() if name in relevant})
    for node in nodes.values():
        node.double()
    evidence = {name: value.double() for name, value in evidence.items()}
    factors = [factor_of(nodes, name, evidence) for name in nodes]
    number = {name: i + 1 for i, name in enumerate(nodes)}  # 0 is the batch
    operands: list = []
    for factor in factors:
        batch = [0] * (factor.log_prob.dim() - len(factor.scope))
        operands += [factor.log_prob, [*batch, *(number[name] for name in factor.scope)]]
    batch = [0] if any(0 in dims for dims in operands[1::2]) else []
    joint = opt_einsum.contract(
        *operands, [*batch, *(number[name] for name in query)], backend=LOG_SPACE
    )
    return joint if batch else joint.unsqueeze(0)


def factor_of(
    nodes: Mapping[str, NodeConditional], name: str, evidence: Mapping[str, Tensor]
) -> Factor:
    """Compute the log probabilities of one node.

    Observed variables are at their values, the others on their grid of states.
    """
    names = (*nodes[name].parents, name)
    scope = tuple(variable for variable in names if variable not in evidence)
    check_discrete(nodes, scope)
    values = {variable: on_grid(nodes, variable, scope, evidence) for variable in names}
    log_prob = nodes[name](*(values[parent] for parent in nodes[name].parents)).log_prob(
        values[name]
    )
    shape = torch.broadcast_shapes(log_prob.shape, *(value.shape for value in values.values()))
    log_prob = log_prob.expand(shape)
    return Factor(scope, (log_prob.squeeze(0) if shape[0] == 1 else log_prob).double())


def check_discrete(nodes: Mapping[str, NodeConditional], scope: Sequence[str]) -> None:
    """Refuse to sum over continuous variables."""
    continuous = [variable for variable in scope if nodes[variable].num_states is None]
    if continuous:
        raise ValueError(
            f"the variables {continuous} are continuous and not observed, so that they cannot be "
            "summed out; observe them, or estimate by ImportanceSampling"
        )


def on_grid(
    nodes: Mapping[str, NodeConditional],
    variable: str,
    scope: Sequence[str],
    evidence: Mapping[str, Tensor],
) -> Tensor:
    """Return the value of a variable, or all its states.

    A value is `[batch, 1, ..., 1]`; states lie along the variable's dimension of the scope.
    """
    if variable in evidence:
        return evidence[variable].reshape(-1, *(1,) * len(scope))
    like = prototype(nodes)
    states = torch.arange(nodes[variable].num_states or 0, dtype=like.dtype, device=like.device)
    position = scope.index(variable)
    return states.reshape(1, *(1,) * position, -1, *(1,) * (len(scope) - position - 1))


def prototype(nodes: Mapping[str, NodeConditional]) -> Tensor:
    """Return a tensor with the parameters' dtype and device."""
    return next(
        (parameter for node in nodes.values() for parameter in node.parameters()), torch.empty(0)
    )
