"""Grids of images."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.reporting.plots.style import as_arrays, shown_name, style

__all__ = ["plot_images"]

SHADES = plt.get_cmap("gray_r").with_extremes(bad="#d3dde8")
MAX_ACROSS = 4  # grids of images


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
        >>> import torch, matplotlib.pyplot as plt
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
