"""Net of PixelCNN++, a causal U-Net.

Its two streams are down-sampled and up-sampled again, with skips between.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.causal import Order
from ppl_dgm.nn.context import ContextSize, halved, window
from ppl_dgm.nn.mlp import ImageShape, check_widths
from ppl_dgm.nn.pixel import FeatureStep, ImageNet
from ppl_dgm.nn.pixel_gated import ShiftedConv2d, shift_down, shift_right
from ppl_dgm.validation import check_shares

__all__ = ["PixelUNet", "both_signs"]

Streams = tuple[Tensor, Tensor]


class PixelUNet(ImageNet):
    """Net of PixelCNN++, a U-Net of two causal streams.

    Salimans, Karpathy, Chen and Kingma (2017), section 2.3 and figure 2.

    One stream sees the rows above, the other the row so far and the first. Each scale has some
    residual blocks of both on the way down and up, those up fed by skips from those down; strides
    halve the sides in between.

    Args:
        shape: (channels, height, width), the sides divisible by 2^(num_scales - 1).
        width: of each stream.
        num_scales: S; by default three, or two where the sides can be halved only once.
        num_blocks: residual blocks of each scale, each way.
        num_outputs_per_dim: number P of parameters of each conditional.
        order: `[D]`, the dimensions in the order of generation.
        dropout: share of the blocks' inner values left out in training.
        num_context: size of a context vector, or the shape of a context image.

    Raises:
        ValueError: a side that cannot be halved so often, a size below one, an order that is no
            permutation.

    Example:
        >>> PixelUNet((1, 4, 4), 8, 2, 1)(torch.zeros(3, 16)).shape
        torch.Size([3, 16, 1])
    """

    down: Any
    up: Any

    @checked
    def __init__(
        self,
        shape: ImageShape,
        width: int = 32,
        num_scales: int | None = None,
        num_blocks: int = 2,
        num_outputs_per_dim: int = 1,
        order: Order = None,
        dropout: float = 0.5,
        num_context: ContextSize = 0,
    ) -> None:
        super().__init__(shape, width, num_outputs_per_dim, order, num_context)
        check_shares(dropout=dropout)
        if num_scales is None:
            num_scales = 2 if shape[1] % 4 or shape[2] % 4 else 3
        check_widths([width, num_scales, num_blocks])
        self.stride = 2 ** (num_scales - 1)
        if shape[1] % self.stride or shape[2] % self.stride:
            raise ValueError(
                f"the sides {shape[1]} and {shape[2]} cannot be halved {num_scales - 1} times; "
                f"pad the images to multiples of {self.stride}, or give fewer num_scales"
            )
        settings: Any = (width, dropout, self.num_seen)
        self.first = FirstLayer(shape[0], width)
        self.down = nn.ModuleList(
            nn.ModuleList(TwoStreamBlock(*settings, num_skips=0) for _ in range(num_blocks))
            for _ in range(num_scales)
        )
        self.up = nn.ModuleList(
            nn.ModuleList(TwoStreamBlock(*settings, num_skips=1) for _ in range(num_blocks + 1))
            for _ in range(num_scales)
        )
        self.halvings = nn.ModuleList(TwoStreamHalving(width) for _ in range(num_scales - 1))
        self.doublings = nn.ModuleList(TwoStreamDoubling(width) for _ in range(num_scales - 1))

    def features(self, image: Tensor, context: Tensor | None) -> Tensor:
        """`[B, C, H, W]` to `[B, F, H, W]`."""
        streams, contexts = self.first(image), [context]
        skips = [streams]
        for scale, blocks in enumerate(self.down):
            if scale:
                streams = self.halvings[scale - 1](streams)
                skips.append(streams)
                contexts.append(halved(contexts[-1]))
            for block in blocks:
                streams = block(streams, contexts[-1])
                skips.append(streams)
        for scale, blocks in enumerate(self.up):
            streams = self.doublings[scale - 1](streams) if scale else streams
            context = contexts.pop()
            for block in blocks:
                streams = block(streams, context, skips.pop())
        return F.elu(streams[1])

    def feature_stepper(self, context: Tensor | None) -> FeatureStep:
        """Make a stepper that reruns the net at each pixel.

        It runs on the rows so far, filled up to a number that can be halved.
        """

        def step(image: Tensor, row: int, column: int) -> Tensor:
            rows = slice((row // self.stride + 1) * self.stride)
            return self.features(image[:, :, rows], window(context, rows))[:, :, row, column]

        return step


class FirstLayer(nn.Module):
    """First layer, from the image to two streams.

    One stream sees what is above a pixel, the other what is above or to the left.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.above = ShiftedConv2d(channels, width, (2, 3), centred=True)
        self.around = ShiftedConv2d(channels, width, (1, 3), centred=True)
        self.left = ShiftedConv2d(channels, width, (2, 1), centred=False)

    def forward(self, image: Tensor) -> Streams:
        """`[B, C, H, W]` to both streams."""
        left = shift_down(self.around(image)) + shift_right(self.left(image))
        return shift_down(self.above(image)), left


class TwoStreamBlock(nn.Module):
    """Residual block of each of the two streams.

    The second stream sees the first, and both see their skips.
    """

    def __init__(self, width: int, dropout: float, num_context: int, num_skips: int) -> None:
        super().__init__()
        self.above = GatedResidual(width, (2, 3), True, num_skips, dropout, num_context)
        self.left = GatedResidual(width, (2, 2), False, 1 + num_skips, dropout, num_context)

    def forward(
        self, streams: Streams, context: Tensor | None, skips: Streams | None = None
    ) -> Streams:
        """Both streams to both streams."""
        above = self.above(streams[0], context, [] if skips is None else [skips[0]])
        beside = [above] if skips is None else [above, skips[1]]
        return above, self.left(streams[1], context, beside)


class GatedResidual(nn.Module):
    """Gated residual block of two convolutions.

    It computes h + a sigmoid(b), where a and b are made of h and of what is beside it.
    """

    def __init__(
        self,
        width: int,
        kernel_size: tuple[int, int],
        centred: bool,
        num_beside: int,
        dropout: float,
        num_context: int,
    ) -> None:
        super().__init__()
        self.inner = ShiftedConv2d(2 * width, width, kernel_size, centred)
        self.beside = nn.Conv2d(2 * width * num_beside, width, 1) if num_beside else None
        self.dropout = nn.Dropout(dropout)
        self.outer = ShiftedConv2d(2 * width, 2 * width, kernel_size, centred)
        self.context = nn.Conv2d(num_context, 2 * width, 1, bias=False) if num_context else None

    def forward(self, h: Tensor, context: Tensor | None, beside: list[Tensor]) -> Tensor:
        """`[B, width, H, W]` to the same."""
        inner = self.inner(both_signs(h))
        if self.beside is not None:
            inner = inner + self.beside(torch.cat([both_signs(other) for other in beside], 1))
        outer = self.outer(self.dropout(both_signs(inner)))
        if self.context is not None:
            outer = outer + self.context(context)
        content, gate = outer.chunk(2, 1)
        return h + content * gate.sigmoid()


class TwoStreamHalving(nn.Module):
    """Both streams at half the height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.above = ShiftedConv2d(width, width, (2, 3), centred=True, stride=2)
        self.left = ShiftedConv2d(width, width, (2, 2), centred=False, stride=2)

    def forward(self, streams: Streams) -> Streams:
        """Both streams to both streams."""
        return self.above(streams[0]), self.left(streams[1])


class TwoStreamDoubling(nn.Module):
    """Both streams at twice the height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.above = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.left = nn.ConvTranspose2d(width, width, 2, stride=2)

    def forward(self, streams: Streams) -> Streams:
        """Both streams to both streams."""
        return self.above(streams[0]), self.left(streams[1])


def both_signs(h: Tensor) -> Tensor:
    """ELU of h and of -h, along the channels."""
    return F.elu(torch.cat([h, -h], 1))
