"""Directed acyclic graphs as mappings from nodes to parents.

With topological order, ancestors, d-separation and layers.
"""

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Parents", "ancestors", "d_separated", "layers", "topological_order"]

Parents = Mapping[str, Sequence[str]]


def topological_order(parents: Parents) -> tuple[str, ...]:
    """Sort nodes so that each follows its parents.

    Otherwise the given order is kept (Kahn 1962).

    Raises:
        ValueError: for a parent that is no node, or a directed cycle.

    Example:
        >>> topological_order({"c": ["a", "b"], "a": [], "b": ["a"]})
        ('a', 'b', 'c')
    """
    check_parents(parents)
    placed: dict[str, None] = {}
    while len(placed) < len(parents):
        ready = [n for n in parents if n not in placed and all(p in placed for p in parents[n])]
        if not ready:
            cycle = sorted(n for n in parents if n not in placed)
            raise ValueError(
                f"the graph has a directed cycle among {cycle}; a Bayes net needs an acyclic graph"
            )
        placed[ready[0]] = None
    return tuple(placed)


def check_parents(parents: Parents) -> None:
    """Refuse parents that are no nodes, and repeated ones."""
    for node, given in parents.items():
        unknown = [parent for parent in given if parent not in parents]
        if unknown:
            raise ValueError(
                f"node {node!r} has the unknown parents {unknown}; the nodes are {list(parents)}"
            )
        if len(set(given)) < len(given):
            raise ValueError(f"node {node!r} names a parent twice: {list(given)}")


def ancestors(parents: Parents, nodes: Iterable[str]) -> set[str]:
    """Find nodes and all of their ancestors.

    A directed path leads from an ancestor to one of the nodes.

    Example:
        >>> sorted(ancestors({"a": [], "b": ["a"], "c": ["b"]}, ["b"]))
        ['a', 'b']
    """
    found, waiting = set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(parents[node])
    return found


def children_of(parents: Parents) -> dict[str, list[str]]:
    """Mapping from each node to its children."""
    return {node: [child for child in parents if node in parents[child]] for node in parents}


def d_separated(
    parents: Parents,
    first: str | Iterable[str],
    second: str | Iterable[str],
    given: str | Iterable[str] = (),
) -> bool:
    """Check whether two sets of nodes are d-separated.

    No path between them is active given a third set (Pearl 1988, definition 3.3.1).

    Then they are independent given the third set in every distribution that factorises along the
    graph. The active paths are followed by Bayes ball (Shachter 1998), in time linear in the edges.

    Raises:
        ValueError: for unknown nodes.

    Example:
        >>> collider = {"rain": [], "sprinkler": [], "wet": ["rain", "sprinkler"]}
        >>> d_separated(collider, ["rain"], ["sprinkler"])
        True
        >>> d_separated(collider, ["rain"], ["sprinkler"], ["wet"])
        False
    """
    first, second, given = map(named, (first, second, given))
    unknown = (first | second | given) - parents.keys()
    if unknown:
        raise ValueError(f"there are no nodes {sorted(unknown)}; the nodes are {list(parents)}")
    return not (reachable(parents, first - given, given) & second)


def named(nodes: str | Iterable[str]) -> set[str]:
    """Return nodes, or one node, as a set."""
    return {nodes} if isinstance(nodes, str) else set(nodes)


def reachable(parents: Parents, sources: set[str], given: set[str]) -> set[str]:
    """Find nodes with an active path from the sources.

    Paths are active given some nodes.
    """
    children, above = children_of(parents), ancestors(parents, given)
    visited: set[tuple[str, bool]] = set()
    waiting = [
        (node, True) for node in sources
    ]  # True: arrived from a child, that is, travelling up
    while waiting:
        node, upwards = waiting.pop()
        if (node, upwards) in visited:
            continue
        visited.add((node, upwards))
        if node not in given:
            waiting += [(child, False) for child in children[node]]
        if (upwards and node not in given) or (not upwards and node in above):
            waiting += [(parent, True) for parent in parents[node]]
    return {node for node, _ in visited} - given


def layers(parents: Parents) -> list[list[str]]:
    """Group nodes into layers by their depth.

    The depth is the length of the longest path that leads to a node.

    Example:
        >>> layers({"a": [], "b": ["a"], "c": ["a", "b"]})
        [['a'], ['b'], ['c']]
    """
    depth: dict[str, int] = {}
    for node in topological_order(parents):
        depth[node] = 1 + max((depth[parent] for parent in parents[node]), default=-1)
    return [
        [n for n in parents if depth[n] == level]
        for level in range(1 + max(depth.values(), default=-1))
    ]
