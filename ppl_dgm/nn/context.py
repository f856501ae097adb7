"""Contexts of causal nets over images.

They are vectors, or small images that are spread out.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.mlp import ImageShape, check_widths

__all__ = ["ContextImage", "ContextSize", "ContextVectors", "context_size", "halved", "window"]

ContextSize = int | ImageShape


class ContextImage(nn.Module):
    """Features of each pixel of an image, of a context.

    A vector is the same at all pixels. A small image, or a large one, goes through two convolutions
    of its own pixels, which see three of them each way; then they are repeated, or left out, to the
    image's size, and learned vectors of the places added.

    Args:
        context: size of the vector, or the shape (channels, height, width) of the context image.
        size: (height, width) of the image.
        width: number E of features of a context image.

    Shape:
        `[B, num_context]` to `[B, E, height, width]`, or of vectors `[B, num_context, 1, 1]`.

    Raises:
        ValueError: a size below one.

    Example:
        >>> ContextImage((1, 2, 2), (4, 6), 8)(torch.zeros(3, 4)).shape
        torch.Size([3, 8, 4, 6])
    """

    rows: Tensor
    columns: Tensor

    @checked
    def __init__(self, context: ContextSize, size: tuple[int, int], width: int) -> None:
        super().__init__()
        self.shape = None if isinstance(context, int) else tuple(check_widths(list(context)))
        self.width: int = context if isinstance(context, int) else width
        if self.shape is None:
            return
        for name, many, few in zip(("rows", "columns"), size, self.shape[1:], strict=True):
            nearest = torch.arange(many) * few // many
            self.register_buffer(name, nearest, persistent=False)
        self.convolutions = nn.Sequential(
            nn.Conv2d(self.shape[0], width, 5, padding=2),
            nn.ELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.places = nn.Parameter(torch.randn(width, *size))

    def forward(self, context: Tensor) -> Tensor:
        """`[B, num_context]` to `[B, E, height, width]`."""
        if self.shape is None:
            return context[..., None, None]
        features = self.convolutions(context.unflatten(-1, self.shape))
        spread = features.index_select(2, self.rows).index_select(3, self.columns)
        return F.elu(spread + self.places)


class ContextVectors(ContextImage):
    """Features of a context for each dimension of an image.

    Args:
        context: as of `ContextImage`.
        shape: (channels, height, width) of the image.
        width: number E of features of a context image.

    Shape:
        `[B, num_context]` to `[B, channels * height * width, E]`.
    """

    @checked
    def __init__(self, context: ContextSize, shape: ImageShape, width: int) -> None:
        super().__init__(context, (shape[1], shape[2]), width)
        self.sizes = shape

    def forward(self, context: Tensor) -> Tensor:
        """`[B, num_context]` to `[B, D, E]`."""
        channels, height, width = self.sizes
        features = super().forward(context).expand(-1, -1, height, width)
        return features.flatten(2).mT.repeat(1, channels, 1)


def context_size(context: ContextSize) -> int:
    """Count the numbers of a context."""
    return context if isinstance(context, int) else math.prod(check_widths(list(context)))


def window(context: Tensor | None, rows: slice, columns: slice = slice(None)) -> Tensor | None:
    """Crop a context's features.

    Those of vectors are the same everywhere.
    """
    if context is None or context.shape[2:] == (1, 1):
        return context
    return context[:, :, rows, columns]


def halved(context: Tensor | None) -> Tensor | None:
    """A context's features at half the height and width."""
    if context is None or context.shape[2:] == (1, 1):
        return context
    return F.avg_pool2d(context, 2)
