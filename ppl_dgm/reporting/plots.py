"""Plots of evidences, learning curves, images and weight tails.

Every function takes numbers and tensors, draws on the axes it is given or on a new figure, and
returns the axes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.sampling.convergence import UNRELIABLE_K
from ppl_dgm.sampling.importance import WeightSummary

__all__ = [
    "MUTED",
    "ForestRow",
    "add_key",
    "forest_axes",
    "narrow_axes",
    "plot_curves",
    "plot_forest",
    "plot_images",
    "plot_weights",
    "shown_name",
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
SHADES = plt.get_cmap("gray_r").with_extremes(bad="#d3dde8")
MARKERS = {"exact": "o", "lower": ">", "upper": "<", "estimate": "D", "unknown": "s"}
MEANINGS = {
    "exact": "exact",
    "lower": "lower bound",
    "upper": "upper bound",
    "estimate": "estimate",
    "unknown": "between bounds",
}
NUM_ERRORS = 1.96  # standard errors on either side: 95 % intervals
MAX_POINTS = 160  # of a curve, after averaging
ROW_INCHES = 0.42
NARROW_INCHES = 4.2  # of a figure for the width of a phone
MAX_ACROSS = 4  # grids of images
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


@checked
def plot_curves(histories: Mapping[str, Mapping[str, Tensor]], ax: Axes | None = None) -> Axes:
    """Plot the learning curves of several programs.

    They show the objective in nats per datum against steps, in one colour for each program.

    Args:
        histories: by program; each holds "step" and "objective", `[steps]`, and may hold
            "valid_step" and "valid", `[checks]`, which are dashed. Long curves are averaged over
            windows.
        ax: where to draw; a new figure if None.

    Example:
        >>> history = {"step": torch.arange(100), "objective": -1.0 / torch.arange(1.0, 101.0)}
        >>> ax = plot_curves({"vae": history})
        >>> ax.get_legend().get_texts()[0].get_text()
        'vae'
        >>> plt.close(ax.figure)
    """
    with style():
        ax = new_axes((6.4, 3.8)) if ax is None else ax
        for colour, (name, history) in zip(cycled(len(histories)), histories.items(), strict=True):
            ax.plot(
                *averaged(history["step"], history["objective"]),
                color=colour,
                lw=1.5,
                label=shown_name(name),
            )
            if "valid" in history:
                ax.plot(
                    *as_arrays(history["valid_step"], history["valid"]),
                    color=colour,
                    lw=1.2,
                    ls=(0, (3, 2)),
                )
        ax.set_xlabel("step")
        ax.set_ylabel("objective (nats per datum)")
        ax.set_ylim(*plateau_limits([history["objective"] for history in histories.values()]))
        ax.legend(
            loc="best",
            fontsize="small",
            title="training, validation dashed" if any_valid(histories) else None,
            title_fontsize="small",
        )
    return ax


def any_valid(histories: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Whether some history holds validation figures."""
    return any("valid" in history for history in histories.values())


def cycled(number: int) -> list[str]:
    """As many colours as asked for."""
    return [COLOURS[i % len(COLOURS)] for i in range(number)]


def as_arrays(*tensors: Tensor) -> tuple[NDArray[Any], ...]:
    """Tensors as float64 arrays."""
    return tuple(torch.as_tensor(tensor).detach().double().cpu().numpy() for tensor in tensors)


def averaged(step: Tensor, value: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Average a curve over windows to at most `MAX_POINTS` points.

    All windows but the last have the same size, so that the noise is the same.
    """
    x, y = as_arrays(step, value)
    size = max(1, math.ceil(len(x) / MAX_POINTS))
    windows = np.split(np.arange(len(x)), range(size, len(x), size))
    return np.array([x[w].mean() for w in windows]), np.array([y[w].mean() for w in windows])


def plateau_limits(objectives: Sequence[Tensor]) -> tuple[float | None, float | None]:
    """Choose axis limits that show where the curves end.

    The values from which the curves start may lie outside.
    """
    values = np.concatenate([*as_arrays(*objectives), np.zeros(0)])
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.quantile(values, [0.08, 1.0])
    margin = 0.08 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


@checked
def plot_images(
    groups: Mapping[str, Tensor],
    image_shape: tuple[int, ...],
    num_columns: int = 8,
    num_rows: int = 8,
    max_across: int = MAX_ACROSS,
) -> NDArray[Any]:
    """Plot grids of images side by side.

    Data stand next to samples, with one axes for each group.

    Args:
        groups: images by title, each `[images, *event]`; the first (the data) sets the range of
            grey.
        image_shape: `(height, width)` or `(channels, height, width)` with 1 or 3 channels.
        num_columns: images across one grid.
        num_rows: images down one grid.
        max_across: grids side by side.

    Raises:
        ValueError: no groups, or images that are not of that shape.

    Example:
        >>> images = {"data": torch.rand(8, 16), "samples": torch.rand(8, 16)}
        >>> axes = plot_images(images, (4, 4), 4, 2)
        >>> [ax.get_title("left") for ax in axes]
        ['data', 'samples']
        >>> plt.close(axes[0].figure)
    """
    if not groups:
        raise ValueError("no images to show; give at least one group, {title: images}")
    grids = [tile(images, image_shape, num_columns, num_rows) for images in groups.values()]
    low, high = np.nanmin(grids[0]), np.nanmax(grids[0])
    height = 2.15 * grids[0].shape[0] / grids[0].shape[1] + 0.35
    down = math.ceil(len(grids) / max_across)
    across = math.ceil(len(grids) / down)
    with style():
        _, axes = plt.subplots(
            down,
            across,
            figsize=(2.15 * across, height * down),
            squeeze=False,
            layout="constrained",
        )
        for ax in axes.flat[len(grids) :]:
            ax.remove()
        for ax, title, grid in zip(axes.flat, groups, grids, strict=False):
            scaled = (grid - low) / ((high - low) or 1.0)
            shown = scaled if grid.ndim == 2 else np.nan_to_num(scaled, nan=1.0).clip(0, 1)
            ax.imshow(shown, cmap=SHADES, vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(shown_name(title))
            ax.set_axis_off()
    return axes.flat[: len(grids)]


def tile(
    images: Tensor, image_shape: tuple[int, ...], num_columns: int, num_rows: int
) -> NDArray[Any]:
    """Arrange images in a grid with gaps between them.

    Gaps are NaN. The grid is `[rows, columns]` or `[rows, columns, 3]`.
    """
    channels, height, width = (1, *image_shape) if len(image_shape) == 2 else image_shape
    if channels not in (1, 3) or images[0].numel() != channels * height * width:
        raise ValueError(
            f"images of shape {list(images.shape[1:])} are not of image_shape "
            f"{tuple(image_shape)}; expected (height, width) or (channels, height, width) with 1 "
            "or 3 channels and as many pixels"
        )
    count, gap = min(len(images), num_columns * num_rows), max(1, height // 16)
    rows, columns = math.ceil(count / num_columns), min(count, num_columns)
    (pixels,) = as_arrays(images[:count].reshape(count, channels, height, width).movedim(1, -1))
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), np.nan)
    for i, image in enumerate(pixels):
        top, left = (i // num_columns) * (height + gap), (i % num_columns) * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid[..., 0] if channels == 1 else grid


@checked
def plot_weights(log_weights: Tensor, ax: Axes | None = None) -> Axes:
    """Plot the tail of importance weights.

    It is the share of weights above w against w / mean(w), both on logarithmic axes.

    A straight line of slope -1/k is a Pareto tail of shape k; the dashed line is the one that was
    fitted. Above k = 0.7 the estimate is not to be believed (Vehtari et al. 2024).

    Args:
        log_weights: nats, `[particles]`.
        ax: where to draw; a new figure if None.

    Raises:
        ValueError: more than one dimension, or fewer than 2 finite weights.

    Example:
        >>> ax = plot_weights(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
        >>> ax.get_ylabel()
        'share of weights above'
        >>> plt.close(ax.figure)
    """
    if log_weights.dim() != 1 or int(torch.isfinite(log_weights).sum()) < 2:
        raise ValueError(
            "expected the log weights of one datum or data set, [particles] with at least 2 "
            f"finite ones, got shape {list(log_weights.shape)}; select one column, e.g. "
            "log_weights[:, 0]"
        )
    summary = WeightSummary(len(log_weights))
    summary.add(log_weights)
    k = float(summary.pareto_k)
    relative = (
        (log_weights.detach().double().cpu() - summary.log_mean_exp.cpu())
        .exp()
        .sort(descending=True)
        .values
    )
    (weights,) = as_arrays(relative[relative > 0])
    with style():
        ax = new_axes((4.8, 3.6)) if ax is None else ax
        share = np.arange(1, len(weights) + 1) / len(relative)
        ax.loglog(
            weights,
            share,
            ".",
            ms=3.5,
            color=COLOURS[0] if k <= UNRELIABLE_K else ALARM,
            label="weights",
        )
        if math.isfinite(k):
            draw_pareto_tail(ax, relative, summary.tail_size)
        ax.set_ylim(0.5 / len(relative), 2)
        ax.axvline(1.0, color=MUTED, lw=0.8)
        ax.set_xlim(
            min(max(weights.min(), weights.max() * 1e-5) / 2, 0.05), max(weights.max() * 3, 20)
        )
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("weight / mean weight")
        ax.set_ylabel("share of weights above")
        ax.set_title(f"Pareto k = {k:.2f}, ESS = {float(summary.ess):.0f} of {len(relative)}")
        ax.legend(loc="lower left")
    return ax


def draw_pareto_tail(ax: Axes, relative: Tensor, tail_size: int) -> None:
    """Draw the Pareto tail fitted to the largest weights.

    It is a generalised Pareto distribution above a threshold. The weights are sorted downwards.
    """
    threshold = float(relative[tail_size])
    with torch.device("cpu"):  # where these weights are
        fitted = fit_generalized_pareto((relative[:tail_size] - threshold).flip(0))
    k, scale = map(float, fitted)
    x = np.geomspace(threshold, 2 * float(relative[0]), 100)
    share = np.clip(1 + k * (x - threshold) / scale, 1e-12, None) ** (-1 / k)
    ax.plot(
        x,
        share * tail_size / len(relative),
        color=INK,
        lw=1.3,
        ls=(0, (4, 2)),
        label="fitted Pareto tail",
    )
