"""Gated PixelCNN: two stacks, which leave no blind spot."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.causal import Memory, Order
from ppl_dgm.nn.context import ContextSize, window
from ppl_dgm.nn.mlp import ImageShape, check_widths
from ppl_dgm.nn.pixel import FeatureStep, ImageNet, gated

__all__ = ["GatedConvNet", "ShiftedConv2d", "shift_down", "shift_right"]


class GatedConvNet(ImageNet):
    """Gated PixelCNN's net: two stacks without blind spot.

    (van den Oord et al. 2016, Conditional PixelCNN, section 2.)

    The vertical stack sees all rows above, the horizontal one what is left in the row and the
    vertical stack's.

    Args:
        shape: (channels, height, width).
        width: of each stack.
        num_layers: L; all earlier pixels are seen from L * (kernel_size // 2) >= max(height, width)
            on.
        num_outputs_per_dim: number P of parameters of each conditional.
        order: `[D]`, the dimensions in the order of generation.
        kernel_size: odd.
        num_context: size of a context vector, or the shape of a context image.

    Raises:
        ValueError: a size below one, an even kernel, an order that is no permutation.

    Example:
        >>> GatedConvNet((1, 4, 4), 8, 2)(torch.zeros(3, 16)).shape
        torch.Size([3, 16, 1])
    """

    layers: Any

    @checked
    def __init__(
        self,
        shape: ImageShape,
        width: int = 32,
        num_layers: int = 7,
        num_outputs_per_dim: int = 1,
        order: Order = None,
        kernel_size: int = 3,
        num_context: ContextSize = 0,
    ) -> None:
        super().__init__(shape, width, num_outputs_per_dim, order, num_context)
        check_widths([width, num_layers, kernel_size])
        if kernel_size % 2 == 0:
            raise ValueError(f"expected an odd kernel size, got {kernel_size}")
        self.layers = nn.ModuleList(
            GatedLayer(width if depth else shape[0], width, kernel_size, self.num_seen)
            for depth in range(num_layers)
        )

    def features(self, image: Tensor, context: Tensor | None) -> Tensor:
        """`[B, C, H, W]` to `[B, F, H, W]`."""
        v, h = image, shift_right(image)
        for layer in self.layers:
            raw, v = layer.vertical(v, context)
            h = layer.horizontal(h, layer.link(shift_down(raw)), context)
        return h

    def feature_stepper(self, context: Tensor | None) -> FeatureStep:
        """Make a stepper that runs the two stacks.

        The vertical stack advances once a row, the horizontal one once a pixel.
        """
        above, left, links = Memory(), Memory(), []

        def step(image: Tensor, row: int, column: int) -> Tensor:
            nonlocal links
            if column == 0:
                links = self.next_links(image, row, context, above)
                left.clear()
            here = slice(column, column + 1)
            seen = window(context, slice(row, row + 1), here)
            h = shift_right(image[:, :, row : row + 1])[..., here]
            for layer, link in zip(self.layers, links, strict=True):
                h = layer.horizontal(h, link[..., here], seen, left)
            return h[:, :, 0, 0]

        return step

    def next_links(
        self, image: Tensor, row: int, context: Tensor | None, above: Memory
    ) -> list[Tensor]:
        """Compute each layer's link from the rows above.

        Each link is `[B, 2 F, 1, W]`.
        """
        if row == 0:
            zeros = image.new_zeros(len(image), self.layers[0].link.in_channels, 1, image.shape[3])
            return [layer.link(zeros) for layer in self.layers]
        v, links = image[:, :, row - 1 : row], []
        context = window(context, slice(row - 1, row))
        for layer in self.layers:
            raw, v = layer.vertical(v, context, above)
            links.append(layer.link(raw))
        return links


class GatedLayer(nn.Module):
    """One layer of both stacks; the first has no residual."""

    def __init__(self, in_width: int, width: int, kernel_size: int, num_context: int) -> None:
        super().__init__()
        half = kernel_size // 2
        self.down = ShiftedConv2d(in_width, 2 * width, (half + 1, kernel_size), centred=True)
        self.right = ShiftedConv2d(in_width, 2 * width, (1, half + 1), centred=False)
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.residual = nn.Conv2d(width, width, 1)
        self.contexts = nn.ModuleList(
            nn.Conv2d(num_context, 2 * width, 1, bias=False) for _ in range(2 if num_context else 0)
        )
        self.adds = in_width == width

    def vertical(
        self, v: Tensor, context: Tensor | None, memory: Memory | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the vertical stack: before and after its gate."""
        raw = self.down(v, memory) + self._shift(0, context)
        return raw, gated(raw)

    def horizontal(
        self, h: Tensor, link: Tensor, context: Tensor | None, memory: Memory | None = None
    ) -> Tensor:
        """Run the horizontal stack."""
        out = self.residual(gated(self.right(h, memory) + link + self._shift(1, context)))
        return h + out if self.adds else out

    def _shift(self, stack: int, context: Tensor | None) -> Tensor | float:
        return 0.0 if context is None else self.contexts[stack](context)


class ShiftedConv2d(nn.Conv2d):
    """Convolution that sees rows and columns up to a pixel's.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: (rows, columns); columns odd where centred.
        centred: whether it sees columns on both sides (then it must be shifted down), or up to the
            pixel's.
        stride: of the pixels at which it is taken: the last of each block of stride x stride is the
            last seen.

    Shape:
        `[B, in_channels, H, W]` to `[B, out_channels, H / stride, W / stride]`.
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        centred: bool,
        stride: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride)
        rows, columns = kernel_size
        right = columns // 2 if centred else 0
        self.margins = [columns - 1 - right, right, rows - 1, 0]

    def forward(self, input: Tensor, memory: Memory | None = None) -> Tensor:
        """Convolve images `[B, in, H, W]`.

        With a memory, the input is the next row, or the next column where the kernel is flat.
        """
        left, right, top, _ = self.margins
        if memory is None:
            padded = F.pad(input, self.margins)
        elif top:
            padded = recall(memory, self, F.pad(input, (left, right)), top, dim=2)
        else:
            padded = recall(memory, self, input, left, dim=3)
        return super().forward(padded)


def shift_down(h: Tensor) -> Tensor:
    """Move images down by a row, zeros above."""
    return F.pad(h, (0, 0, 1, 0))[:, :, :-1]


def shift_right(h: Tensor) -> Tensor:
    """Move images right by a column, zeros to the left."""
    return F.pad(h, (1, 0))[..., :-1]


def recall(memory: Memory, key: object, piece: Tensor, length: int, dim: int) -> Tensor:
    """Join a piece to the last `length` slices before it.

    The newest `length` slices are remembered for the next call.
    """
    if key not in memory:
        shape = list(piece.shape)
        shape[dim] = length
        memory[key] = piece.new_zeros(shape)
    joined = torch.cat([memory[key], piece], dim)
    memory[key] = joined.narrow(dim, piece.shape[dim], length)
    return joined
