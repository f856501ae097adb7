"""Learning curves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.reporting.plots.style import (
    COLOURS,
    NUM_ERRORS,
    as_arrays,
    cycled,
    new_axes,
    shown_name,
    style,
)

__all__ = ["plot_bounds", "plot_curves"]

MAX_POINTS = 160  # of a curve, after averaging


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
        >>> import torch, matplotlib.pyplot as plt
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
        dashed = any("valid" in history for history in histories.values())
        ax.legend(
            loc="best",
            fontsize="small",
            title="training, validation dashed" if dashed else None,
            title_fontsize="small",
        )
    return ax


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
def plot_bounds(particles: Tensor, values: Tensor, errors: Tensor, ax: Axes | None = None) -> Axes:
    """Plot a bound against its number of particles.

    Args:
        particles: m, `[sizes]`, drawn on a logarithmic axis.
        values: mean bound in nats per datum, `[sizes]`.
        errors: their standard errors; bars span 95 %.
        ax: where to draw; a new figure if None.

    Example:
        >>> import torch, matplotlib.pyplot as plt
        >>> bounds = torch.tensor([-2.0, -1.5, -1.3])
        >>> ax = plot_bounds(torch.tensor([1, 10, 100]), bounds, torch.full((3,), 0.1))
        >>> ax.get_xscale(), plt.close(ax.figure)
        ('log', None)
    """
    m, centre, half = as_arrays(particles, values, NUM_ERRORS * errors)
    with style():
        ax = new_axes((5.2, 3.6)) if ax is None else ax
        ax.errorbar(m, centre, half, color=COLOURS[0], marker="o", ms=4, lw=1.2, capsize=2)
        ax.set_xscale("log")
        ax.set_xlabel("particles m")
        ax.set_ylabel("lower bound (nats per datum)")
    return ax
