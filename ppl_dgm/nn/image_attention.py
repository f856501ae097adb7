"""Nets of convolutions and self-attention over whole images.

They are the nets of Flow++.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.conditioned import start_small
from ppl_dgm.nn.conv import over_images
from ppl_dgm.nn.mlp import ImageShape, check_widths
from ppl_dgm.nn.pixel_unet import both_signs
from ppl_dgm.validation import check_sizes

__all__ = ["AttentionImageNet"]


class AttentionImageNet(nn.Module):
    """Net of gated convolutions and gated self-attention in turn.

    Every pixel sees all others: Ho et al. (2019), Flow++, section 3.3.

    The last layer starts small, so that the net starts near zero.

    Args:
        image_shape: (channels, height, width) of the input.
        width: channels of the blocks.
        out_channels: of the output.
        num_blocks: number of blocks.
        num_heads: of each attention.
        num_context: size of a context vector that all pixels see; 0 for none.

    Shape:
        `[..., channels, height, width]` and `[..., num_context]` to `[..., out_channels, height,
        width]`.

    Raises:
        ValueError: a size below one, a width that the heads do not divide.

    Example:
        >>> AttentionImageNet((1, 4, 4), 8, 2)(torch.zeros(7, 5, 1, 4, 4)).shape
        torch.Size([7, 5, 2, 4, 4])
    """

    @checked
    def __init__(
        self,
        image_shape: ImageShape,
        width: int,
        out_channels: int,
        num_blocks: int = 2,
        num_heads: int = 4,
        num_context: int = 0,
    ) -> None:
        super().__init__()
        check_widths([*image_shape, width, out_channels, num_blocks, num_heads])
        check_sizes(0, num_context=num_context)
        if width % num_heads:
            raise ValueError(f"width is {width}; expected a multiple of {num_heads}, the heads")
        self.first = nn.Conv2d(image_shape[0], width, 3, padding=1)
        self.context = nn.Linear(num_context, width, bias=False) if num_context else None
        self.places = nn.Parameter(0.01 * torch.randn(width, *image_shape[1:]))
        self.blocks = nn.Sequential(
            *(
                part
                for _ in range(num_blocks)
                for part in (
                    *(GatedConv(width), ChannelNorm(width)),
                    *(GatedAttention(width, num_heads), ChannelNorm(width)),
                )
            )
        )
        self.last = nn.Conv2d(width, out_channels, 3, padding=1)
        start_small(self.last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """`[..., channels, height, width]` to `[..., out_channels, height, width]`."""
        h = over_images(self.first, x) + self.places
        if self.context is not None:
            h = h + self.context(context)[..., None, None]
        return over_images(self._deep, h)

    def _deep(self, h: Tensor) -> Tensor:
        return self.last(self.blocks(h))


class GatedConv(nn.Module):
    """Gated residual block of two convolutions.

    It computes h + a sigmoid(b), where a and b are the halves of their output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(2 * width, width, 3, padding=1)
        self.outer = nn.Conv2d(2 * width, 2 * width, 1)

    def forward(self, h: Tensor) -> Tensor:
        """`[B, width, H, W]` to the same."""
        return h + F.glu(self.outer(both_signs(self.inner(both_signs(h)))), 1)


class GatedAttention(nn.Module):
    """Gated residual block of self-attention over pixels.

    It computes h + a sigmoid(b), with a and b linear in what each pixel attends to.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projections = nn.Conv2d(width, 3 * width, 1)
        self.outer = nn.Conv2d(width, 2 * width, 1)

    def forward(self, h: Tensor) -> Tensor:
        """`[B, width, H, W]` to the same."""
        heads = self.projections(h).flatten(2).unflatten(1, (3, self.num_heads, -1)).mT
        query, key, value = heads.unbind(1)  # each [B, heads, pixels, size]
        seen = F.scaled_dot_product_attention(query, key, value)
        return h + F.glu(self.outer(seen.mT.reshape(h.shape)), 1)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel."""

    def forward(self, h: Tensor) -> Tensor:
        """`[B, width, H, W]` to the same."""
        return super().forward(h.movedim(1, -1)).movedim(-1, 1)
