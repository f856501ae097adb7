"""The tail of importance weights."""

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.reporting.plots.style import ALARM, COLOURS, INK, MUTED, as_arrays, new_axes, style
from ppl_dgm.sampling.convergence import UNRELIABLE_K
from ppl_dgm.sampling.weight_summary import WeightSummary

__all__ = ["plot_weights"]


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
        >>> import torch, matplotlib.pyplot as plt
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
