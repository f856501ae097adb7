"""Chow-Liu trees: Bayes nets learnt from data.

Each variable but the root has one parent, chosen by mutual information.
"""

import numpy as np
import scipy  # loads its parts when they are used
import torch
from torch import Tensor
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.families.bayesnet.columns import Data, check_lengths, check_states
from ppl_dgm.families.bayesnet.net import BayesNet

__all__ = ["chow_liu"]


@checked
def chow_liu(
    x: Data, num_states: int | None = None, smoothing: float = 1.0, root: int = 0
) -> BayesNet:
    r"""Learn the most likely tree, structure and tables.

    Chow and Liu (1968).

    Of all trees the one whose edges have the largest sum of mutual informations $\sum_{a,b} p(a, b)
    \log \frac{p(a, b)}{p(a)\, p(b)}$ has the largest likelihood; a maximum spanning tree finds it,
    in $O(N D^2 + D^2 \log D)$. Which node is the root changes no density at smoothing 0.

    Args:
        x: data of discrete variables, `[N, D]`, or columns `[N]` by name.
        num_states: number of states of every variable, 0 to num_states - 1; by default the largest
            value and one.
        smoothing: pseudo-count of each entry of the tables, and of each pair of states in the
            mutual informations.
        root: number of the variable without parent.

    Returns:
        A fitted net; its variables are called x1, x2, ... unless they have names.

    Raises:
        ValueError: for data of another shape, values that are no whole numbers from 0 to num_states
            - 1, no data, a negative smoothing, or a root out of range.

    Example:
        >>> x = torch.tensor([[0.0, 0, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]])
        >>> chow_liu(x).parents
        {'x1': (), 'x2': ('x1',), 'x3': ('x1',)}
    """
    columns = named_columns(x)
    if smoothing < 0 or not 0 <= root < len(columns):
        raise ValueError(
            f"smoothing is {smoothing} and root {root}; expected at least 0, and a number of one "
            f"of {len(columns)} variables"
        )
    size = num_states or 1 + int(max(column.max() for column in columns.values()))
    for name, column in columns.items():
        check_states(name, size, column)
    values = torch.stack([column.long() for column in columns.values()], -1)
    names, parents = list(columns), tree(mutual_information(values, size, smoothing), root)
    edges = [(names[p], names[child]) for child, p in enumerate(parents) if p >= 0]
    net = BayesNet.from_edges(dict.fromkeys(names, size), edges)
    return net.to(next(iter(columns.values())).device).fit_counts(columns, smoothing)


def named_columns(x: Data) -> dict[str, Tensor]:
    """Return the columns of data by name.

    They are numbered from x1 on where they have no names.
    """
    if isinstance(x, Tensor):
        if x.dim() != 2 or 0 in x.shape:
            raise ValueError(f"expected data [N, D] of at least one each, got {list(x.shape)}")
        return {f"x{i + 1}": column for i, column in enumerate(x.unbind(-1))}
    check_lengths(x)
    if not x or not len(next(iter(x.values()))):
        raise ValueError("expected columns by name with at least one datum, got none")
    return dict(x)


def mutual_information(x: Tensor, num_states: int, smoothing: float = 0.0) -> Tensor:
    """Estimate the mutual information of all pairs of variables.

    It is in nats, from frequencies.

    Args:
        x: states `[N, D]`, whole numbers.
        num_states: of every variable.
        smoothing: pseudo-count of each pair of states.

    Returns:
        `[D, D]`, float64.

    Example:
        >>> mutual_information(torch.tensor([[0, 0, 0], [1, 1, 0]]), 2)[0]
        tensor([0.6931, 0.6931, 0.0000], dtype=torch.float64)
    """
    each = F.one_hot(x, num_states).double().flatten(1)
    pairs = (each.T @ each).unflatten(0, (-1, num_states)).unflatten(-1, (-1, num_states))
    joint = (pairs + smoothing) / (len(x) + num_states**2 * smoothing)  # [D, K, D, K]
    first, second = joint.sum(-1, keepdim=True), joint.sum(1, keepdim=True)
    return (torch.xlogy(joint, joint) - torch.xlogy(joint, first * second)).sum((1, 3))


def tree(weights: Tensor, root: int) -> list[int]:
    """Find the spanning tree of largest weight.

    Returns the parent of each node, -1 for the root.

    Example:
        >>> tree(torch.tensor([[0.0, 3, 1], [3, 0, 2], [1, 2, 0]]), root=2)
        [1, 2, -1]
    """
    distances = (1 + weights.max() - weights).cpu().numpy()  # positive: zeros would be no edges
    edges = scipy.sparse.csgraph.minimum_spanning_tree(np.triu(distances, 1))
    parents = scipy.sparse.csgraph.breadth_first_order(edges, root, directed=False)[1]
    return [int(parent) if parent >= 0 else -1 for parent in parents]
