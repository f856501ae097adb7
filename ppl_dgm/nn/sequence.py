"""Causal nets over sequences: recurrent, and dilated convolutions."""

import math
from collections import deque
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.causal import Memory, Order, SequenceNet
from ppl_dgm.nn.mlp import check_widths

__all__ = ["Cell", "RecurrentSequenceNet", "Tokens", "WaveNetNet"]

Cell = Literal["gru", "lstm"]
CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


class Tokens(nn.Module):
    """Sum of what a net sees: values, places, context.

    Args:
        num_dims: number of places.
        width: size of the vectors.
        num_context: size of the context vector, or 0.
        placed: whether each place has a learned vector.
        spread: standard deviation of these vectors at first.

    Shape:
        `[B, T]`, places `[T]`, context `[B, num_context]`, or one for each dimension,
        `[B, D, num_context]`, to `[B, T, width]`.
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        width: int,
        num_context: int = 0,
        placed: bool = True,
        spread: float = 1.0,
    ) -> None:
        super().__init__()
        self.value = nn.Linear(1, width)
        # As large as those of values by default: nets that hardly tell places apart learn slowly
        self.places = nn.Parameter(spread * torch.randn(num_dims, width)) if placed else None
        self.context = nn.Linear(num_context, width, bias=False) if num_context else None

    def forward(self, tokens: Tensor, places: Tensor, context: Tensor | None) -> Tensor:
        """`[B, T]` to `[B, T, width]`."""
        h = self.value(tokens.unsqueeze(-1))
        if self.places is not None:
            h = h + self.places.index_select(0, places)
        if self.context is None or context is None:
            return h
        each = context.unsqueeze(1) if context.dim() == 2 else context.index_select(1, places)
        return h + self.context(each)


class RecurrentSequenceNet(SequenceNet):
    r"""GRU or LSTM over the dimensions in their order.

    $h_t = f(h_{t-1}, x_{t-1}, e_t)$ and $\theta_t = V h_t + b$.

    $e_t$ is a learned vector of the place that is predicted, so that on images the net knows row
    and column.

    Args:
        num_dims: number D of dimensions.
        hidden: size of the state.
        num_outputs_per_dim: number P of parameters of each conditional.
        order: `[D]`, the dimensions in the order of generation; the natural one by default.
        num_layers: of the recurrent net.
        cell: `"gru"` or `"lstm"`.
        num_context: size of a context vector.
        num_orders: number of orders.
        seed: draws those after the first.

    Raises:
        ValueError: a size below one, an order that is no permutation, another cell.

    Example:
        >>> RecurrentSequenceNet(5, 8)(torch.zeros(3, 5)).shape
        torch.Size([3, 5, 1])
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        hidden: int,
        num_outputs_per_dim: int = 1,
        order: Order = None,
        num_layers: int = 1,
        cell: Cell = "gru",
        num_context: int = 0,
        num_orders: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__(num_dims, num_outputs_per_dim, order, num_orders, seed, num_context)
        check_widths([hidden, num_layers])
        if cell not in CELLS:
            raise ValueError(f"cell is {cell!r}; expected one of {tuple(CELLS)}")
        # By large places recurrent nets lose a nat on digits of 17 levels
        self.tokens = Tokens(num_dims, hidden, num_context, spread=0.1)
        self.cells = CELLS[cell](hidden, hidden, num_layers, batch_first=True)
        self.last = nn.Linear(hidden, num_outputs_per_dim)

    def run(
        self, tokens: Tensor, places: Tensor, context: Tensor | None, memory: Memory | None
    ) -> Tensor:
        """`[B, T]` to `[B, T, P]`."""
        state = None if memory is None else memory.get(self.cells)
        h, state = self.cells(self.tokens(tokens, places, context), state)
        if memory is not None:
            memory[self.cells] = state
        return self.last(h)


class WaveNetNet(SequenceNet):
    r"""Dilated causal convolutions with gates, residuals and skips.

    (van den Oord et al. 2016, WaveNet, section 2.)

    Layer l sees $h_t$ and $h_{t - 2^l}$, l counted from zero and again from zero after `cycle`
    layers: the receptive field of L layers is $2^L$ inputs. Gates are $\tanh(u) \sigma(v)$; the
    skips of all layers are summed.

    Args:
        num_dims: number D of dimensions.
        width: of the residual stream and the gates.
        num_outputs_per_dim: number P of parameters of each conditional.
        order: `[D]`, the dimensions in the order of generation; the natural one by default.
        num_layers: L; by default just enough to see everything.
        cycle: dilations double up to 2^(cycle - 1) and begin again; never by default.
        skip_width: of the skips.
        num_context: size of a context vector, seen by every layer.
        num_orders: number of orders.
        seed: draws those after the first.

    Raises:
        ValueError: a size below one, an order that is no permutation.

    Example:
        >>> net = WaveNetNet(20, 8)
        >>> net(torch.zeros(3, 20)).shape, net.receptive_field
        (torch.Size([3, 20, 1]), 32)
    """

    layers: Any

    @checked
    def __init__(
        self,
        num_dims: int,
        width: int = 32,
        num_outputs_per_dim: int = 1,
        order: Order = None,
        num_layers: int | None = None,
        cycle: int | None = None,
        skip_width: int = 64,
        num_context: int = 0,
        num_orders: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__(num_dims, num_outputs_per_dim, order, num_orders, seed, num_context)
        if num_layers is None:
            num_layers = max(1, math.ceil(math.log2(num_dims)))
        cycle = num_layers if cycle is None else cycle
        check_widths([width, num_layers, cycle, skip_width])
        self.tokens = Tokens(num_dims, width)
        self.layers = nn.ModuleList(
            DilatedLayer(
                width, skip_width, 2 ** (depth % cycle), num_context, depth + 1 < num_layers
            )
            for depth in range(num_layers)
        )
        self.last = nn.Sequential(
            nn.ReLU(),
            nn.Linear(skip_width, skip_width),
            nn.ReLU(),
            nn.Linear(skip_width, num_outputs_per_dim),
        )

    @property
    def receptive_field(self) -> int:
        """Number of inputs that an output sees, itself included."""
        return 1 + sum(layer.dilation for layer in self.layers)

    def run(
        self, tokens: Tensor, places: Tensor, context: Tensor | None, memory: Memory | None
    ) -> Tensor:
        """`[B, T]` to `[B, T, P]`."""
        h, total = self.tokens(tokens, places, None), 0.0
        for layer in self.layers:
            h, skip = layer(h, context, memory)
            total = total + skip
        return self.last(total)


class DilatedLayer(nn.Module):
    """Gated layer that sees now and some steps ago."""

    def __init__(
        self, width: int, skip_width: int, dilation: int, num_context: int, goes_on: bool
    ) -> None:
        super().__init__()
        self.dilation = dilation
        self.gates = nn.Linear(2 * width, 2 * width)
        self.context = nn.Linear(num_context, 2 * width, bias=False) if num_context else None
        self.residual = nn.Linear(width, width) if goes_on else None
        self.skip = nn.Linear(width, skip_width)

    def forward(
        self, h: Tensor, context: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, Tensor]:
        """`[B, T, width]` to the same and `[B, T, skip_width]`."""
        gates = self.gates(torch.cat([self.past(h, memory), h], -1))
        if self.context is not None:
            gates = gates + self.context(context).unsqueeze(1)
        content, gate = gates.chunk(2, -1)
        out = content.tanh() * gate.sigmoid()
        return h if self.residual is None else h + self.residual(out), self.skip(out)

    def past(self, h: Tensor, memory: Memory | None) -> Tensor:
        """Look `dilation` steps back; zero at first.

        Where steps come one by one, a queue of so many remembers.
        """
        if memory is None:
            return F.pad(h, (0, 0, self.dilation, 0))[:, : h.shape[1]]
        if self not in memory:
            memory[self] = deque([torch.zeros_like(h)] * self.dilation)
        memory[self].append(h)
        return memory[self].popleft()
