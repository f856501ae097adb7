"""PixelSNAIL: causal convolutions and attention."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.attention import CausalAttention
from ppl_dgm.nn.causal import Order
from ppl_dgm.nn.context import ContextSize
from ppl_dgm.nn.masked import CausalConv2d
from ppl_dgm.nn.mlp import ImageShape, check_widths
from ppl_dgm.nn.pixel_cnn import CausalBlock, Pixel, PixelwiseNet

__all__ = ["SnailNet"]


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
        num_context: size of a context vector, or the shape of a context image.

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
        num_context: ContextSize = 0,
    ) -> None:
        super().__init__(shape, width, num_outputs_per_dim, order, num_context)
        check_widths([width, num_blocks, num_layers, num_heads])
        self.first = CausalConv2d(shape[0], width, kernel_size + 2, sees_centre=False)
        self.blocks = nn.ModuleList(
            SnailBlock(shape, width, num_layers, num_heads, kernel_size, self.num_seen)
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
        self.places = nn.Parameter(torch.randn(num_places, width))
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
