"""Causal convolutional nets over images: PixelCNN, gated PixelCNN, PixelSNAIL.

An image net sees an image `[B, C, H, W]` whose slots, pixel by pixel in raster order and the
channels of a pixel one after the other, hold the dimensions in their order. Its features `[B, F, H,
W]` of a pixel depend on the pixels before it alone; a head lets each channel depend on the earlier
channels of its pixel too.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.attention import CausalAttention
from ppl_dgm.nn.causal import CausalNet, Memory, Order, Step, flat_context, pick
from ppl_dgm.nn.masked import CausalConv2d, MaskedLinear
from ppl_dgm.nn.mlp import ImageShape, check_widths

__all__ = [
    "FeatureStep",
    "GatedConvNet",
    "ImageNet",
    "PixelConvNet",
    "ShiftedConv2d",
    "SnailNet",
    "raster_order",
    "shift_down",
    "shift_right",
]

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
        num_context: size of a context vector.

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
        num_context: int = 0,
    ) -> None:
        order = raster_order(shape) if order is None else order
        super().__init__(_num_pixels(shape), num_outputs_per_dim, order, num_context=num_context)
        self.shape = tuple(shape)
        self.head = ChannelHead(shape[0], num_features, num_outputs_per_dim)

    @abstractmethod
    def features(self, image: Tensor, context: Tensor | None) -> Tensor:
        """Compute features of images, so many for each pixel.

        Images `[B, C, H, W]` with context `[B, num_context]` give `[B, F, H, W]`.
        """

    def forward(self, x: Tensor, context: Tensor | None = None, member: int | Tensor = 0) -> Tensor:
        """`[..., D]` to `[..., D, P]`."""
        self.check_context(context)
        image = self.image(x)
        features = self.features(image, flat_context(context, x))
        # A copy: convolutions lay out their results by the processor, which a capture cannot know.
        features = features.movedim(1, -1).clone(memory_format=torch.contiguous_format)
        params = self.head(features, image.movedim(1, -1))  # [B, H, W, C, P]
        params = params.flatten(1, 3)
        params = params if self.natural else params.index_select(-2, pick(self.ranks, member))
        return params.reshape(*x.shape, -1)

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
        channels, _, width = self.shape
        extend, features = self.feature_stepper(flat_context(context, x)), x

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
            return self.features(image[:, :, : row + 1], context)[:, :, row, column]

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
            return self.features(image, context, at)[:, :, 0, 0]

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
        num_context: size of a context vector.

    Raises:
        ValueError: a size below one, an even kernel, an order that is no permutation.

    Example:
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
        num_context: int = 0,
    ) -> None:
        super().__init__(shape, width, num_outputs_per_dim, order, num_context)
        check_widths([width, num_layers])
        self.first = CausalConv2d(shape[0], width, kernel_size + 4, sees_centre=False)
        self.blocks = nn.ModuleList(
            CausalBlock(width, kernel_size, num_context) for _ in range(num_layers)
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
        self.context = nn.Linear(num_context, half, bias=False) if num_context else None

    def forward(self, h: Tensor, context: Tensor | None, at: Pixel | None) -> Tensor:
        """`[B, width, H, W]` to the same."""
        inner = self.narrow(h.relu()).relu()
        inner = self.causal(inner) if at is None else at.extend(self.causal, inner)
        if self.context is not None:
            inner = inner + self.context(context)[..., None, None]
        return h + self.widen(inner.relu())


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
        num_context: size of a context vector.

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
        num_context: int = 0,
    ) -> None:
        super().__init__(shape, width, num_outputs_per_dim, order, num_context)
        check_widths([width, num_layers, kernel_size])
        if kernel_size % 2 == 0:
            raise ValueError(f"expected an odd kernel size, got {kernel_size}")
        self.layers = nn.ModuleList(
            GatedLayer(width if depth else shape[0], width, kernel_size, num_context)
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
            h = shift_right(image[:, :, row : row + 1])[..., column : column + 1]
            for layer, link in zip(self.layers, links, strict=True):
                h = layer.horizontal(h, link[..., column : column + 1], context, left)
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
            nn.Linear(num_context, 2 * width, bias=False) for _ in range(2 if num_context else 0)
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
        return 0.0 if context is None else self.contexts[stack](context)[..., None, None]


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


class SnailNet(PixelwiseNet):
    """Net of PixelSNAIL: causal convolutions and attention in turn.

    Chen et al. (2018).

    Attention sees the features of all earlier pixels and the values before them, so that nothing is
    out of reach.

    Args:
        shape: (channels, height, width).
        width: of the residual stream.
        num_blocks: number of blocks, each some convolutions and one attention.
        num_layers: convolutions of a block.
        num_heads: of each attention.
        num_outputs_per_dim: number P of parameters of each conditional.
        order: `[D]`, the dimensions in the order of generation.
        kernel_size: of the convolutions, odd; the first layer's has two more.
        num_context: size of a context vector.

    Raises:
        ValueError: a size below one, an even kernel, a width that the heads do not divide, an order
            that is no permutation.

    Example:
        >>> SnailNet((1, 4, 4), 8, 1, 2, 2)(torch.zeros(3, 16)).shape
        torch.Size([3, 16, 1])
    """

    @checked
    def __init__(
        self,
        shape: ImageShape,
        width: int = 64,
        num_blocks: int = 2,
        num_layers: int = 2,
        num_heads: int = 4,
        num_outputs_per_dim: int = 1,
        order: Order = None,
        kernel_size: int = 3,
        num_context: int = 0,
    ) -> None:
        super().__init__(shape, width, num_outputs_per_dim, order, num_context)
        check_widths([width, num_blocks, num_layers, num_heads])
        self.first = CausalConv2d(shape[0], width, kernel_size + 2, sees_centre=False)
        self.blocks = nn.ModuleList(
            SnailBlock(shape, width, num_layers, num_heads, kernel_size, num_context)
            for _ in range(num_blocks)
        )

    def features(self, image: Tensor, context: Tensor | None, at: Pixel | None = None) -> Tensor:
        """Compute features of whole images or of one pixel.

        Images `[B, C, H, W]` give `[B, F, H, W]`, one pixel gives `[B, F, 1, 1]`.
        """
        tokens = F.pad(image.flatten(2).mT, (0, 0, 1, 0))[
            :, :-1
        ]  # the pixel before each, [B, T, C]
        places = torch.arange(tokens.shape[1], device=image.device)
        if at is not None:
            pixel = at.row * at.size[1] + at.column
            tokens, places = tokens[:, pixel : pixel + 1], places[pixel : pixel + 1]
        h = self.first(image) if at is None else at.window(self.first, image)
        for block in self.blocks:
            h = block(h, tokens, places, context, at)
        return h


class SnailBlock(nn.Module):
    """Residual convolutions, then gated attention."""

    def __init__(
        self,
        shape: ImageShape,
        width: int,
        num_layers: int,
        num_heads: int,
        kernel_size: int,
        num_context: int,
    ) -> None:
        super().__init__()
        num_places = shape[1] * shape[2]
        self.convolutions = nn.ModuleList(
            CausalBlock(width, kernel_size, num_context) for _ in range(num_layers)
        )
        self.places = nn.Parameter(0.1 * torch.randn(num_places, width))
        self.join = nn.Linear(width + shape[0], width)
        self.attention = CausalAttention(width, num_heads, num_places)
        self.gate = nn.Linear(width, 2 * width)

    def forward(
        self,
        h: Tensor,
        tokens: Tensor,
        places: Tensor,
        context: Tensor | None,
        at: Pixel | None,
    ) -> Tensor:
        """`[B, width, H, W]` to the same."""
        for convolution in self.convolutions:
            h = convolution(h, context, at)
        seen = self.join(torch.cat([F.elu(h).flatten(2).mT, tokens], -1))
        seen = seen + self.places.index_select(0, places)
        found = self.attention(seen, places, None if at is None else at.memory)
        content, gate = self.gate(F.elu(found)).chunk(2, -1)
        return h + (content * gate.sigmoid()).mT.unflatten(2, h.shape[2:])


def gated(h: Tensor) -> Tensor:
    """Gate one half of the channels by the other.

    The result is tanh(u) sigmoid(v).
    """
    content, gate = h.chunk(2, 1)
    return content.tanh() * gate.sigmoid()


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
