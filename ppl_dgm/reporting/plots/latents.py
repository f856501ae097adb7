"""Plots of latents and of the data in them."""

from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.program import Program
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.seeding import seeded
from ppl_dgm.reporting.plots.images import plot_images
from ppl_dgm.reporting.plots.style import COLOURS, as_arrays, cycled, new_axes, style
from ppl_dgm.sampling.decoding import decode, latent_draws

__all__ = ["plot_clusters", "plot_codes", "plot_latent_grid"]

NUM_PRIOR = 2000  # draws whose quantiles make the grid
OUTERMOST = 0.025  # quantile at the edges of the grid
MOST_NAMED = 20  # groups that a legend names


@checked
def plot_latent_grid(
    program: Program,
    image_shape: tuple[int, ...],
    size: int = 12,
    dims: tuple[int, int] = (0, 1),
    seed: int = 0,
) -> Axes:
    """Plot images decoded on a grid of two latent dimensions.

    The grid is of quantiles of the prior, all other dimensions at their medians (Kingma and Welling
    2014, appendix A).

    Args:
        program: a program with one continuous latent vector.
        image_shape: `(height, width)` or `(channels, height, width)`.
        size: images along each side.
        dims: the dimensions that change across and upwards.
        seed: of the draws of the prior.

    Raises:
        ValueError: for several latents, fewer than two dimensions, or images of another shape.

    Example:
        >>> import torch, matplotlib.pyplot as plt
        >>> from ppl_dgm.families import VAE
        >>> ax = plot_latent_grid(VAE(16, 2, hidden=[8]), (4, 4), size=3)
        >>> ax.images[0].get_array().shape, plt.close(ax.figure)
        ((14, 14), None)
    """
    with undisturbed(program), seeded(seed, next((p.device for p in program.parameters()), None)):
        draws = latent_draws(program, NUM_PRIOR)
    if len(draws) > 1 or next(iter(draws.values()))[0].numel() < 2 or size < 2:
        raise ValueError(
            f"the latents are {list(draws)} and size is {size}; expected one latent vector of two "
            "dimensions or more, and at least 2 images along each side"
        )
    codes = quantile_grid(next(iter(draws.values())).flatten(1).double(), size, dims)
    images = decode(program, codes.to(next(iter(draws.values())).dtype))
    return plot_images({"decoded latents": images}, image_shape, size, size)[0]


def quantile_grid(draws: Tensor, size: int, dims: tuple[int, int]) -> Tensor:
    """Make codes `[size * size, L]` from quantiles of draws."""
    levels = torch.linspace(OUTERMOST, 1 - OUTERMOST, size, dtype=draws.dtype, device=draws.device)
    ways = draws.quantile(levels, 0)  # [size, L]
    codes = draws.median(0).values.expand(size, size, -1).clone()
    codes[..., dims[0]] = ways[:, dims[0]]
    codes[..., dims[1]] = ways[:, dims[1]].flip(0).unsqueeze(-1)
    return codes.flatten(0, 1)


@checked
def plot_codes(
    program: Program,
    x: Tensor,
    *args: Any,
    labels: Tensor | None = None,
    num_draws: int = 32,
    ax: Axes | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Axes:
    """Plot where data lie in the latent space.

    Each datum is a point at the guide's mean, in the colour of its label; of more than two
    dimensions the first two principal components are shown.

    Args:
        program: a program with one latent in the data plate.
        x: data `[N, *event]`.
        *args: further data.
        labels: `[N]`, a colour for each value.
        num_draws: draws of the guide of which the mean is taken.
        ax: where to draw; a new figure if None.
        seed: of the draws.
        **kwargs: further data.

    Raises:
        ValueError: for several latents, latents shared by all data, or labels of another number.

    Example:
        >>> import torch, matplotlib.pyplot as plt
        >>> from ppl_dgm.families import VAE
        >>> ax = plot_codes(VAE(6, 2, hidden=[8]), torch.ones(3, 6), labels=torch.arange(3))
        >>> len(ax.collections), plt.close(ax.figure)
        (3, None)
    """
    bound = program.bind(x, *args, **kwargs)
    if len(bound.structure.model_latents) != 1 or not bound.structure.per_datum:
        names = [latent.name for latent in bound.structure.model_latents]
        raise ValueError(f"the latents are {names}; expected one, in the data plate")
    with torch.no_grad(), undisturbed(program), seeded(seed, bound.device):
        (value,) = bound.draw(num_draws).values.values()
    return scatter(value.double().mean(0).reshape(len(x), -1), labels, "label", "latent", ax)


@checked
def plot_clusters(
    x: Tensor, clusters: Tensor, labels: Tensor | None = None, ax: Axes | None = None
) -> Axes:
    """Plot data in the colours of their clusters.

    Of more than two dimensions the first two principal components are shown.

    Args:
        x: data or codes, `[N, *event]`.
        clusters: number of the cluster of each, `[N]`, e.g. `Mixture.cluster(x)`.
        labels: `[N]`; the title then tells the share of data whose label is the most frequent one
            of their cluster (purity).
        ax: where to draw; a new figure if None.

    Raises:
        ValueError: for clusters or labels of another number.

    Example:
        >>> import torch, matplotlib.pyplot as plt
        >>> clusters, labels = torch.tensor([0, 0, 0, 1]), torch.tensor([5, 5, 3, 3])
        >>> ax = plot_clusters(torch.randn(4, 2), clusters, labels)
        >>> ax.get_title("left"), plt.close(ax.figure)
        ('2 clusters, purity 0.75', None)
    """
    ax = scatter(x.flatten(1).double(), clusters, "cluster", "x", ax)
    found = clusters.unique()
    title = f"{len(found)} clusters"
    if labels is not None:
        check_labels(labels, len(x))
        right = sum(int(labels[clusters == k].unique(return_counts=True)[1].max()) for k in found)
        title += f", purity {right / len(x):.2f}"
    ax.set_title(title, loc="left")
    return ax


def scatter(points: Tensor, groups: Tensor | None, kind: str, name: str, ax: Axes | None) -> Axes:
    """Draw points `[N, D]`, each group in its colour."""
    groups = torch.zeros(len(points), dtype=torch.long) if groups is None else groups
    check_labels(groups, len(points))
    found = groups.unique().tolist()
    (shown,) = as_arrays(flattened(points))
    with style():
        ax = new_axes((5.0, 4.2)) if ax is None else ax
        for colour, group in zip(shades(len(found)), found, strict=True):
            own = shown[(groups == group).cpu().numpy()]
            ax.scatter(own[:, 0], own[:, 1], s=9, color=colour, lw=0, label=f"{kind} {group}")
        words = ("first", "second") if points.shape[1] > 2 else ("1", "2")
        what = " component" if points.shape[1] > 2 else ""
        ax.set_xlabel(f"{name} {words[0]}{what}" if not what else f"{words[0]}{what}")
        ax.set_ylabel(f"{name} {words[1]}{what}" if not what else f"{words[1]}{what}")
        if 1 < len(found) <= MOST_NAMED:
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    return ax


def shades(number: int) -> list[Any]:
    """A colour for each group."""
    if number <= len(COLOURS):
        return cycled(number)
    # the pairs of light and dark of tab20 are hard to tell apart: only where ten colours don't do
    colours = colormaps["tab10" if number <= 10 else "tab20"]
    return [colours(i % colours.N) for i in range(number)]


def check_labels(labels: Tensor, size: int) -> None:
    """Refuse labels that are not one for each datum."""
    if labels.shape != (size,):
        raise ValueError(f"expected one label for each of {size} data, got {list(labels.shape)}")


def flattened(points: Tensor) -> Tensor:
    """Project points `[N, D]` on two principal components."""
    if points.shape[1] == 1:
        return torch.cat([points, torch.zeros_like(points)], 1)
    if points.shape[1] == 2:
        return points
    centred = points - points.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    return centred @ (directions * signs).T
