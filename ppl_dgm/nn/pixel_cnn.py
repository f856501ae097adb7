"""PixelCNN: masked convolutions, one after the other."""

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.causal import Memory, Order
from ppl_dgm.nn.context import ContextSize, window
from ppl_dgm.nn.masked import CausalConv2d
from ppl_dgm.nn.mlp import ImageShape, check_widths
from ppl_dgm.nn.pixel import FeatureStep, ImageNet

__all__ = ["CausalBlock", "Pixel", "PixelConvNet", "PixelwiseNet"]


class Pixel(NamedTuple):
    """Current pixel of a net, with its layers' memory."""

    row: int
    column: int
    size: tuple[int, ...]
    memory: Memory

    def window(self, layer: CausalConv2d, image: Tensor) -> Tensor:
        """Convolve images `[B, F, H, W]` at this pixel alone.

        The result is `[B, F', 1, 1]`.
        """
        return self._convolve(layer, F.pad(image, _margins(layer)))

    def extend(self, layer: CausalConv2d, value: Tensor) -> Tensor:
        """Convolve the values so far, including this pixel's.

        Its value, `[B, F, 1, 1]`, is the newest and is remembered.
        """
        left, _, top, _ = _margins(layer)
        if layer not in self.memory:
            height, width = self.size[0] + 2 * top, self.size[1] + 2 * left
            self.memory[layer] = value.new_zeros(*value.shape[:2], height, width)
        kept = self.memory[layer]
        kept[:, :, self.row + top, self.column + left] = value[:, :, 0, 0]
        return self._convolve(layer, kept)

    def _convolve(self, layer: CausalConv2d, padded: Tensor) -> Tensor:
        left, _, top, _ = _margins(layer)
        rows = slice(self.row, self.row + 2 * top + 1)
        part = padded[:, :, rows, self.column : self.column + 2 * left + 1]
        return F.conv2d(part, layer.mask * layer.weight, layer.bias, dilation=layer.dilation)


def _margins(layer: CausalConv2d) -> list[int]:
    """Count what a layer sees left, right, above and below."""
    size = int(layer.dilation[0]) * (layer.kernel_size[0] // 2)
    return [size] * 4


class PixelwiseNet(ImageNet):
    """Image net that can be run pixel by pixel."""

    @abstractmethod
    def features(self, image: Tensor, context: Tensor | None, at: Pixel | None = None) -> Tensor:
        """Compute features of whole images or of one pixel.

        Images `[B, C, H, W]` give `[B, F, H, W]`, one pixel gives `[B, F, 1, 1]`.
        """

    def feature_stepper(self, context: Tensor | None) -> FeatureStep:
        """Make a stepper that computes one pixel per layer.

        Layers remember the values of earlier pixels.
        """
        memory = Memory()

        def step(image: Tensor, row: int, column: int) -> Tensor:
            at = Pixel(row, column, self.shape[1:], memory)
            here = window(context, slice(row, row + 1), slice(column, column + 1))
            return self.features(image, here, at)[:, :, 0, 0]

        return step


class PixelConvNet(PixelwiseNet):
    """Net of PixelCNN, made of masked convolutions.

    A layer with mask A is followed by layers with mask B: van den Oord et al. (2016), Pixel RNN,
    section 3.3.

    Above and to the right its reach is bounded by a diagonal, whatever its depth: the blind spot.

    Args:
        shape: (channels, height, width).
        width: of the residual stream.
        num_layers: number of residual blocks.
        num_outputs_per_dim: number P of parameters of each conditional.
        order: `[D]`, the dimensions in the order of generation.
        kernel_size: of the blocks, odd; the first layer's has four more.
        num_context: size of a context vector, or the shape of a context image.

    Raises:
        ValueError: a size below one, an even kernel, an order that is no permutation.

    Example:
        >>> import torch
        >>> PixelConvNet((1, 4, 4), 8, 2)(torch.zeros(3, 16)).shape
        torch.Size([3, 16, 1])
    """

    @checked
    def __init__(
        self,
        shape: ImageShape,
        width: int = 64,
        num_layers: int = 7,
        num_outputs_per_dim: int = 1,
        order: Order = None,
        kernel_size: int = 3,
        num_context: ContextSize = 0,
    ) -> None:
        super().__init__(shape, width, num_outputs_per_dim, order, num_context)
        check_widths([width, num_layers])
        self.first = CausalConv2d(shape[0], width, kernel_size + 4, sees_centre=False)
        self.blocks = nn.ModuleList(
            CausalBlock(width, kernel_size, self.num_seen) for _ in range(num_layers)
        )

    def features(self, image: Tensor, context: Tensor | None, at: Pixel | None = None) -> Tensor:
        """Compute features of whole images or of one pixel.

        Images `[B, C, H, W]` give `[B, F, H, W]`, one pixel gives `[B, F, 1, 1]`.
        """
        h = self.first(image) if at is None else at.window(self.first, image)
        for block in self.blocks:
            h = block(h, context, at)
        return h


class CausalBlock(nn.Module):
    """Residual block with a masked convolution.

    It has a 1 x 1, a masked and a 1 x 1 convolution: van den Oord et al. (2016), Pixel RNN, figure
    5.
    """

    def __init__(self, width: int, kernel_size: int, num_context: int) -> None:
        super().__init__()
        half = max(1, width // 2)
        self.narrow = nn.Conv2d(width, half, 1)
        self.causal = CausalConv2d(half, half, kernel_size, sees_centre=True)
        self.widen = nn.Conv2d(half, width, 1)
        self.context = nn.Conv2d(num_context, half, 1, bias=False) if num_context else None

    def forward(self, h: Tensor, context: Tensor | None, at: Pixel | None) -> Tensor:
        """`[B, width, H, W]` to the same."""
        inner = self.narrow(h.relu()).relu()
        inner = self.causal(inner) if at is None else at.extend(self.causal, inner)
        if self.context is not None:
            inner = inner + self.context(context)
        return h + self.widen(inner.relu())
