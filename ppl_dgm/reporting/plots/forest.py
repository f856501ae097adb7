"""Forest plots: numbers with their errors, row by row."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ppl_dgm.checked import checked
from ppl_dgm.reporting.plots.style import (
    ALARM,
    COLOURS,
    INK,
    NARROW_INCHES,
    NUM_ERRORS,
    new_axes,
    shown_name,
    style,
)

__all__ = ["ForestRow", "add_key", "forest_axes", "plot_forest"]

MARKERS = {"exact": "o", "lower": ">", "upper": "<", "estimate": "D", "unknown": "s"}
MEANINGS = {
    "exact": "exact",
    "lower": "lower bound",
    "upper": "upper bound",
    "estimate": "estimate",
    "unknown": "between bounds",
}
ROW_INCHES = 0.42


class ForestRow(NamedTuple):
    """One row of a forest plot.

    It has a name, a centre, a standard error, and a second, wider error. `bound` tells what the
    number is.
    """

    name: str
    centre: float
    error: float
    wide_error: float = 0.0
    bound: str = "exact"
    reliable: bool = True


def forest_axes(num_rows: int, titles: Sequence[str], across: int = 2) -> NDArray[Any]:
    """Create axes for forest plots over the same rows.

    They are `[len(titles)]`, at most `across` of them side by side.
    """
    across = min(across, len(titles))
    down = -(-len(titles) // across)
    width = 4.2 * across + 1.4 if across > 1 else NARROW_INCHES
    with style():
        size = (width, down * (0.9 + ROW_INCHES * num_rows) + 0.4)
        figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
        for ax, title in zip(axes.flat, titles, strict=True):
            ax.set_title(title)
        figure.get_layout_engine().set(wspace=0.04)  # type: ignore[union-attr]
    return axes.reshape(-1)


@checked
def plot_forest(rows: Sequence[ForestRow], xlabel: str, ax: Axes | None = None) -> Axes:
    """Plot 95 % intervals around the centre of each row.

    The first row is on top.

    A thick bar spans the error, a thin one the wide error. The marker says what the number is: a
    circle is exact, an arrow points to where the truth lies beyond a bound, a diamond is an
    estimate; rows not to be believed are red.

    Args:
        rows: from top to bottom; rows without a finite centre keep their line and stay empty.
        xlabel: quantity and unit.
        ax: where to draw; a new figure if None.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> rows = [ForestRow("a", -1.0, 0.1), ForestRow("b", -2.0, 0.2, bound="lower")]
        >>> ax = plot_forest(rows, "log p (nats)")
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['a', 'b']
        >>> plt.close(ax.figure)
    """
    ax = new_axes((6.0, 1.3 + ROW_INCHES * len(rows))) if ax is None else ax
    with style():
        for y, row in enumerate(rows):
            if math.isfinite(row.centre):
                draw_interval(ax, row, y)
        ax.set_yticks(range(len(rows)), [shown_name(row.name) for row in rows])
        for label, row in zip(ax.get_yticklabels(), rows, strict=True):
            label.set_color(INK if row.reliable else ALARM)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(xlabel)
        ax.margins(x=0.08)
    return ax


def draw_interval(ax: Axes, row: ForestRow, y: int) -> None:
    """One row of a forest."""
    colour = COLOURS[0] if row.reliable else ALARM
    for error, width, alpha in ((row.wide_error, 1.6, 0.45), (row.error, 4.0, 0.55)):
        if math.isfinite(error) and error > 0:
            half = NUM_ERRORS * error
            ax.plot(
                [row.centre - half, row.centre + half],
                [y, y],
                color=colour,
                lw=width,
                alpha=alpha,
                zorder=2,
            )
    face = colour if row.reliable else "white"
    ax.plot(row.centre, y, MARKERS[row.bound], color=colour, mfc=face, ms=6.5, mew=1.3, zorder=3)


def add_key(figure: Figure, bounds: Sequence[str], reliable: bool = True) -> None:
    """Add a legend of the markers below the figure."""
    keys = [
        Line2D([], [], color=COLOURS[0], marker=MARKERS[bound], ls="", label=MEANINGS[bound])
        for bound in MARKERS
        if bound in bounds
    ]
    if not reliable:
        keys.append(Line2D([], [], color=ALARM, mfc="white", marker="o", ls="", label="unreliable"))
    with style():
        figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=9)
