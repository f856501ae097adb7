"""Causal nets over images.

An image net sees an image `[B, C, H, W]` whose slots, pixel by pixel in raster order and the
channels of a pixel one after the other, hold the dimensions in their order. Its features `[B, F, H,
W]` of a pixel depend on the pixels before it alone; a head lets each channel depend on the earlier
channels of its pixel too.
"""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.causal import CausalNet, Order, Step, flat_context
from ppl_dgm.nn.context import ContextImage, ContextSize, context_size, window
from ppl_dgm.nn.masked import MaskedLinear
from ppl_dgm.nn.mlp import ImageShape, check_widths

__all__ = ["ChannelHead", "FeatureStep", "ImageNet", "gated", "raster_order"]

FeatureStep = Callable[[Tensor, int, int], Tensor]


class ImageNet(CausalNet):
    """Causal net over flattened images.

    Images are `[..., C * H * W]`.

    Args:
        shape: (channels C, height H, width W).
        num_features: F, of each pixel, for the head.
        num_outputs_per_dim: number P of parameters of each conditional.
        order: `[C * H * W]`, the dimensions in the order of generation; by default pixels in raster
            order and the channels of each one after the other.
        num_context: size of a context vector, or the shape (channels, height, width) of a context
            image (see `ContextImage`).

    Raises:
        ValueError: a size below one, an order that is no permutation.
    """

    @checked
    def __init__(
        self,
        shape: ImageShape,
        num_features: int,
        num_outputs_per_dim: int = 1,
        order: Order = None,
        num_context: ContextSize = 0,
    ) -> None:
        order = raster_order(shape) if order is None else order
        size = context_size(num_context)
        super().__init__(_num_pixels(shape), num_outputs_per_dim, order, num_context=size)
        self.shape = tuple(shape)
        self.spread = ContextImage(num_context, shape[1:], num_features) if size else None
        self.num_seen = 0 if self.spread is None else self.spread.width  # E
        self.head = ChannelHead(shape[0], num_features, num_outputs_per_dim)

    @abstractmethod
    def features(self, image: Tensor, context: Tensor | None) -> Tensor:
        """Compute features of images, so many for each pixel.

        Images `[B, C, H, W]` with a context's features `[B, E, H, W]`, or `[B, E, 1, 1]`, give
        `[B, F, H, W]`.
        """

    def forward(self, x: Tensor, context: Tensor | None = None, member: int | Tensor = 0) -> Tensor:
        """`[..., D]` to `[..., D, P]`."""
        self.check_context(context)
        return self.given(x, self.seen(context, x))

    def given(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """Compute the same, given features of the context."""
        image = self.image(x)
        features = self.features(image, seen)
        # A copy: convolutions lay out their results by the processor, which a capture cannot know.
        features = features.movedim(1, -1).clone(memory_format=torch.contiguous_format)
        params = self.head(features, image.movedim(1, -1))  # [B, H, W, C, P]
        params = params.flatten(1, 3)
        params = params if self.natural else params.index_select(-2, self.ranks[0])
        return params.reshape(*x.shape, -1)

    def seen(self, context: Tensor | None, x: Tensor) -> Tensor | None:
        """Make features of a context for data `[..., D]`."""
        flat = flat_context(context, x)
        return flat if flat is None or self.spread is None else self.spread(flat)

    def image(self, x: Tensor) -> Tensor:
        """Arrange data `[..., D]` as images `[B, C, H, W]`.

        Each dimension goes to its slot.
        """
        values = x if self.natural else x.index_select(-1, self.orders[0])
        channels, height, width = self.shape
        return values.reshape(-1, height, width, channels).movedim(-1, 1)

    def stepper(self, x: Tensor, context: Tensor | None = None, member: int = 0) -> Step:
        """Compute features once a pixel, the head once a channel."""
        self.check_context(context)
        return self.stepper_given(x, self.seen(context, x))

    def stepper_given(self, x: Tensor, seen: Tensor | None) -> Step:
        """Make the same, given features of the context."""
        channels, _, width = self.shape
        extend, features = self.feature_stepper(seen), x

        def step(t: int, x: Tensor) -> Tensor:
            nonlocal features
            pixel, channel = divmod(t, channels)
            image, (row, column) = self.image(x), divmod(pixel, width)
            if channel == 0:
                features = extend(image, row, column)
            params = self.head(features, image[:, :, row, column])[:, channel]
            return params.reshape(*x.shape[:-1], -1)

        return step

    def feature_stepper(self, context: Tensor | None) -> FeatureStep:
        """Make a function that gives features of a pixel.

        Its arguments are (image, row, column), the features `[B, F]`. It is to be called
        in raster order; here it runs the net on the rows so far.
        """

        def step(image: Tensor, row: int, column: int) -> Tensor:
            rows = slice(row + 1)
            return self.features(image[:, :, rows], window(context, rows))[:, :, row, column]

        return step


class ChannelHead(nn.Module):
    r"""Parameters of each channel, of features and earlier channels.

    $\theta_c = V\, \mathrm{elu}(f + U_{c, <c} x_{<c} + a_c) + b$.

    Args:
        channels: number C of channels.
        num_features: size F of f.
        num_outputs: number P of parameters.

    Shape:
        `[..., F]` and `[..., C]` to `[..., C, P]`.
    """

    def __init__(self, channels: int, num_features: int, num_outputs: int) -> None:
        super().__init__()
        check_widths([channels, num_features, num_outputs])
        earlier = torch.ones(channels, channels).tril(-1).repeat_interleave(num_features, 0)
        self.channels = MaskedLinear(earlier) if channels > 1 else None
        self.last = nn.Linear(num_features, num_outputs)

    def forward(self, features: Tensor, pixel: Tensor) -> Tensor:
        """`[..., F]` and `[..., C]` to `[..., C, P]`."""
        h = features.unsqueeze(-2)
        if self.channels is not None:
            h = h + self.channels(pixel).unflatten(-1, (pixel.shape[-1], -1))
        return self.last(F.elu(h))


def gated(h: Tensor) -> Tensor:
    """Gate one half of the channels by the other.

    The result is tanh(u) sigmoid(v).
    """
    content, gate = h.chunk(2, 1)
    return content.tanh() * gate.sigmoid()


def raster_order(shape: ImageShape) -> Tensor:
    """Order dimensions by pixels in raster order, then by channels.

    Example:
        >>> raster_order((2, 1, 3))
        tensor([0, 3, 1, 4, 2, 5])
    """
    return torch.arange(_num_pixels(shape)).reshape(*shape).movedim(0, -1).flatten()


def _num_pixels(shape: ImageShape) -> int:
    if len(shape) != 3:
        raise ValueError(f"shape is {shape}; expected (channels, height, width)")
    return math.prod(check_widths(list(shape)))
