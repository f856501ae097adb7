"""Forest plot of a comparison.

The module is imported only when one is drawn.
"""

import math
from textwrap import fill
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ppl_dgm.comparison.rendering import others
from ppl_dgm.comparison.rows import Row
from ppl_dgm.reporting.plots import ForestRow, plot_forest
from ppl_dgm.reporting.plots.forest import add_key, forest_axes
from ppl_dgm.reporting.plots.style import MUTED

if TYPE_CHECKING:
    from ppl_dgm.comparison.comparison import Comparison

__all__ = ["plot_comparison"]

NARROW_LETTERS = 32  # of a title


def plot_comparison(comparison: "Comparison", across: int = 2) -> NDArray[Any]:
    """Draw forest plots of the evidences and their differences.

    Differences are taken to the reference. The plots lie side by side, or one above the other for
    `across=1`.
    """
    per_datum = comparison.target == "datum"
    scale = 1 / comparison.num_data if per_datum else 1.0
    unit = "nats per datum" if per_datum else "nats"
    what = "difference to" if per_datum else "log Bayes factor over"
    title = f"{what} {comparison.reference}"
    titles = ["log p", title if across > 1 else fill(title, NARROW_LETTERS)]
    axes = forest_axes(len(comparison.rows), titles, across)
    plot_forest([evidence_row(row, scale) for row in comparison.rows], unit, axes[0])
    plot_forest([difference_row(row, scale) for row in comparison.rows], unit, axes[1])
    if across > 1:
        axes[1].set_yticklabels([])
    axes[1].axvline(0.0, color=MUTED, lw=0.9, zorder=1)
    bounds = [row.bound for row in comparison.rows] + [
        row.difference_sense for row in others(comparison)
    ]
    add_key(axes[0].figure, bounds, all(row.reliable for row in comparison.rows))
    return axes


def evidence_row(row: Row, scale: float) -> ForestRow:
    """The line of a program in the forest of evidences."""
    wide = 0.0 if math.isnan(row.sampling_error) else math.hypot(row.sampling_error, row.std_error)
    return ForestRow(
        row.name, row.log_z * scale, row.std_error * scale, wide * scale, row.bound, row.reliable
    )


def difference_row(row: Row, scale: float) -> ForestRow:
    """The line of a program in the forest of differences."""
    error = row.difference_error * scale
    return ForestRow(
        row.name, row.difference * scale, 0.0, error, row.difference_sense, row.reliable
    )
