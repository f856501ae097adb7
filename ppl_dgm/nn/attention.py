"""Masked self-attention over the dimensions of a datum."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.causal import Memory, Order, SequenceNet
from ppl_dgm.nn.context import ContextVectors
from ppl_dgm.nn.mlp import check_widths
from ppl_dgm.nn.sequence import Tokens
from ppl_dgm.validation import check_shares

__all__ = ["CausalAttention", "Positions", "TransformerNet"]

Positions = Literal["learned", "rotary"]


class CausalAttention(nn.Module):
    r"""Multi-head attention to the positions up to one's own.

    $\mathrm{softmax}_{s \le t}(q_t^\top k_s / \sqrt d)\, v_s$.

    Args:
        width: of the positions' vectors, divided among the heads.
        num_heads: number of heads.
        length: the longest sequence.
        rotary: whether queries and keys are turned by angles proportional to their place (Su et al.
            2021, equation 34).

    Shape:
        `[B, T, width]` and places `[T]` to `[B, T, width]`.

    Raises:
        ValueError: a width that the heads (with rotary places, twice the heads) do not divide.

    Example:
        >>> CausalAttention(8, 2, 5)(torch.zeros(3, 5, 8), torch.arange(5)).shape
        torch.Size([3, 5, 8])
    """

    @checked
    def __init__(self, width: int, num_heads: int, length: int, rotary: bool = False) -> None:
        super().__init__()
        check_widths([width, num_heads, length])
        parts = num_heads * (2 if rotary else 1)
        if width % parts:
            raise ValueError(f"width is {width}; expected a multiple of {parts}")
        self.num_heads, self.length, self.rotary = num_heads, length, rotary
        self.projections = nn.Linear(width, 3 * width)
        self.last = nn.Linear(width, width)

    def forward(self, h: Tensor, places: Tensor, memory: Memory | None = None) -> Tensor:
        """Apply causal attention to vectors `[B, T, width]`.

        The result has the same shape. With a memory, the input is one position, the next after
        those remembered.
        """
        heads = self.projections(h).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, heads, T, size]
        if self.rotary:
            query, key = turn(query, places), turn(key, places)
        if memory is not None:
            key, value = self.recall(key, value, memory)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=memory is None)
        return self.last(out.transpose(1, 2).flatten(2))

    def recall(self, key: Tensor, value: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Keep new keys and values; give all so far."""
        if self not in memory:
            memory[self] = [key.new_empty(2, *key.shape[:2], self.length, key.shape[3]), 0]
        kept, count = memory[self]
        kept[0, :, :, count], kept[1, :, :, count] = key[:, :, 0], value[:, :, 0]
        memory[self][1] = count + 1
        return kept[0, :, :, : count + 1], kept[1, :, :, : count + 1]


def turn(h: Tensor, places: Tensor) -> Tensor:
    """Rotate vectors by angles proportional to place.

    The vectors are `[..., T, 2 n]`. Each is rotated in n planes, in plane i by the angle
    place / 10000^(i / n).
    """
    half = h.shape[-1] // 2
    rates = 10000 ** (-torch.arange(half, dtype=h.dtype, device=h.device) / half)
    angles = places.to(h.dtype).unsqueeze(-1) * rates
    first, second = h.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class TransformerNet(SequenceNet):
    """Decoder-only transformer with layer normalisation before each part.

    Radford et al. (2019), section 2.3.

    Args:
        num_dims: number D of dimensions.
        width: of the residual stream.
        num_layers: number of blocks.
        num_heads: of each attention.
        num_outputs_per_dim: number P of parameters of each conditional.
        order: `[D]`, the dimensions in the order of generation; the natural one by default.
        positions: `"learned"` vectors, or `"rotary"` besides.
        dropout: share of the branches' outputs left out in training.
        num_context: size of a context vector.
        spread: makes vectors `[B, D, E]`, one for each dimension, of contexts `[B, num_context]`;
            by default the context is the same for all.
        num_orders: number of orders.
        seed: draws those after the first.

    Raises:
        ValueError: sizes below one, a width that the heads do not divide, an order that is no
            permutation.

    Example:
        >>> TransformerNet(5, 8, 2, 2)(torch.zeros(3, 5)).shape
        torch.Size([3, 5, 1])
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        width: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
        num_outputs_per_dim: int = 1,
        order: Order = None,
        positions: Positions = "learned",
        dropout: float = 0.0,
        num_context: int = 0,
        num_orders: int = 1,
        seed: int | None = None,
        spread: ContextVectors | None = None,
    ) -> None:
        super().__init__(num_dims, num_outputs_per_dim, order, num_orders, seed, num_context)
        check_shares(dropout=dropout)
        check_widths([width, num_layers, num_heads])
        if positions not in ("learned", "rotary"):
            raise ValueError(f"positions is {positions!r}; expected 'learned' or 'rotary'")
        self.vectors = spread
        self.tokens = Tokens(num_dims, width, num_context if spread is None else spread.width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, num_heads, num_dims, positions == "rotary", dropout)
            for _ in range(num_layers)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_outputs_per_dim))

    def spread(self, context: Tensor | None) -> Tensor | None:
        """Vectors of a context, `[B, D, E]`, or the context."""
        return context if context is None or self.vectors is None else self.vectors(context)

    def run(
        self, tokens: Tensor, places: Tensor, context: Tensor | None, memory: Memory | None
    ) -> Tensor:
        """`[B, T]` to `[B, T, P]`."""
        h = self.tokens(tokens, places, context)
        for block in self.blocks:
            h = block(h, places, memory)
        return self.last(h)


class TransformerBlock(nn.Module):
    """Transformer block of attention and a perceptron.

    Each of them acts on a normalised branch and is added to the stream.
    """

    def __init__(
        self, width: int, num_heads: int, length: int, rotary: bool, dropout: float
    ) -> None:
        super().__init__()
        self.attention = CausalAttention(width, num_heads, length, rotary)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, places: Tensor, memory: Memory | None) -> Tensor:
        """`[B, T, width]` to the same."""
        h = h + self.dropout(self.attention(self.norms[0](h), places, memory))
        return h + self.dropout(self.perceptron(self.norms[1](h)))
