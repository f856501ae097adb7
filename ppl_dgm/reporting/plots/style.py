"""Colours, axes and names that all figures share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "ALARM",
    "COLOURS",
    "INK",
    "MUTED",
    "NARROW_INCHES",
    "NUM_ERRORS",
    "as_arrays",
    "cycled",
    "narrow_axes",
    "new_axes",
    "shown_name",
    "style",
]

LONGEST_NAME = 40  # characters of a name that a figure shows
INK, MUTED, GRID, ALARM = "#1f2933", "#7b8794", "#e4e7eb", "#c62828"
COLOURS = (
    "#2563a8",
    "#d1721b",
    "#2f8f5b",
    "#8a4fa3",
    "#b8325f",
    "#6b6f1d",
    "#1f8a9e",
    "#8c5a3c",
)  # one per program
NUM_ERRORS = 1.96  # standard errors on either side: 95 % intervals
NARROW_INCHES = 4.2  # of a figure for the width of a phone
STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 110,
}


@contextmanager
def style() -> Iterator[None]:
    """The settings under which all of these pictures are drawn.

    Unlike `plt.rc_context` it leaves all others alone: in a notebook the first figure turns
    interactive drawing on.
    """
    settings: Any = plt.rcParams
    before = {key: settings[key] for key in STYLE}
    settings.update(STYLE)
    try:
        yield
    finally:
        settings.update(before)


def narrow_axes() -> Axes:
    """Create axes on a new figure of phone width."""
    return new_axes((NARROW_INCHES, 3.4))


def new_axes(inches: tuple[float, float]) -> Axes:
    """The axes of a new figure."""
    with style():
        return plt.figure(figsize=inches, layout="constrained").add_subplot()


def shown_name(name: str) -> str:
    """Return a name as figures show it.

    It is on one line, shortened and without mathematics.

    Example:
        >>> shown_name("costs $5")
        'costs \\\\$5'
    """
    line = " ".join(name.split())
    short = line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…"
    return short.replace("$", r"\$")


def cycled(number: int) -> list[str]:
    """As many colours as asked for."""
    return [COLOURS[i % len(COLOURS)] for i in range(number)]


def as_arrays(*tensors: Tensor) -> tuple[NDArray[Any], ...]:
    """Tensors as float64 arrays."""
    return tuple(torch.as_tensor(tensor).detach().double().cpu().numpy() for tensor in tensors)
