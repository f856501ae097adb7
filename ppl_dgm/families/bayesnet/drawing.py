"""Drawings of a Bayes net's graph."""

from typing import Any

from ppl_dgm.checked import checked
from ppl_dgm.families.bayesnet.graph import Parents, layers
from ppl_dgm.families.bayesnet.net import BayesNet

__all__ = ["draw_graph"]


@checked
def draw_graph(net: BayesNet, axes: Any = None) -> Any:
    """Draw the graph of a net from the roots down.

    Every edge points downwards. Returns the matplotlib axes.

    Args:
        net: the net.
        axes: where to draw; new axes by default.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from ppl_dgm.families.bayesnet.networks import asia
        >>> axes = draw_graph(asia())
        >>> len([text for text in axes.texts if text.get_text()])
        8
        >>> plt.close(axes.figure)
    """
    import matplotlib.pyplot as plt  # noqa: PLC0415 - seconds of import, for few users

    axes = plt.subplots(figsize=(6, 4), layout="constrained")[1] if axes is None else axes
    places = positions(net.parents)
    for name, parents in net.parents.items():
        for parent in parents:
            arrow = {"arrowstyle": "-|>", "shrinkA": 14, "shrinkB": 14}
            axes.annotate("", places[name], places[parent], arrowprops=arrow).set_in_layout(False)
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "tab:blue"}
        axes.text(x, y, name, ha="center", va="center", bbox=box).set_in_layout(False)
    axes.set_axis_off()
    axes.margins(0.15)
    axes.plot(
        *zip(*places.values(), strict=True), linestyle="none"
    )  # so that the axes' limits hold all nodes
    return axes


def positions(parents: Parents) -> dict[str, tuple[float, float]]:
    """Compute the position of each node in a drawing.

    The layer of a node decides its height, the mean of its parents' places the order within the
    layer.
    """
    places: dict[str, tuple[float, float]] = {}
    for level, nodes in enumerate(layers(parents)):
        wished = {
            n: sum(places[p][0] for p in parents[n]) / len(parents[n]) if parents[n] else 0.5
            for n in nodes
        }
        ordered = sorted(nodes, key=lambda node: wished[node])
        for i, node in enumerate(ordered):
            places[node] = ((i + 0.5) / len(nodes), -float(level))
    return places
