"""NADE's net: hidden units that all conditionals share."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.causal import CausalNet, Order, Step, flat_context, pick
from ppl_dgm.nn.mlp import Activation, check_widths

__all__ = ["NADENet"]

BLOCK = 32  # dimensions at once: more, and their hidden units leave the cache


class NADENet(CausalNet):
    r"""Neural autoregressive net with tied weights.

    (Larochelle and Murray 2011, equations 10 to 13.)

    $a_1 = c$, $a_{t + 1} = a_t + W_{:, d} x_d$ and $\theta_d = b_d + V_d\, \mathrm{act}(a_t)$ for
    the t-th dimension d: O(D H) for a draw. A density has the $a_t$ of a block of dimensions at
    once, by products with the block's earlier ones. The dimensions of a group share the $a_t$ of
    its first.

    Args:
        num_dims: number D of dimensions.
        hidden: number H of hidden units.
        num_outputs_per_dim: number P of parameters of each conditional.
        order: `[D]`, the dimensions in the order of generation; the natural one by default. An item
            may be a group of dimensions.
        seed: draws the orders after the first.
        num_context: size of a context vector that moves a_1 and b.
        activation: makes the activation.
        num_orders: number of orders.
        all_orders: whether training draws from all orders, not from these: then $a_t$ also has a
            learned column for each earlier dimension, whatever its value, which tells the net what
            it knows (Uria, Murray and Larochelle 2014, section 3.2).

    Shape:
        `[..., D]` to `[..., D, P]`.

    Raises:
        ValueError: a size below one, an order that is no permutation of 0, ..., D - 1.

    Example:
        >>> NADENet(5, 8)(torch.zeros(3, 5)).shape
        torch.Size([3, 5, 1])
    """

    takes_groups = True

    @checked
    def __init__(
        self,
        num_dims: int,
        hidden: int,
        num_outputs_per_dim: int = 1,
        order: Order = None,
        seed: int | None = None,
        num_context: int = 0,
        activation: Activation = nn.Sigmoid,
        num_orders: int = 1,
        all_orders: bool = False,
    ) -> None:
        super().__init__(num_dims, num_outputs_per_dim, order, num_orders, seed, num_context)
        check_widths([hidden])
        self.all_orders = all_orders
        self.columns = nn.Linear(num_dims, hidden)  # W and c
        self.known = nn.Parameter(torch.zeros(num_dims, hidden)) if all_orders else None
        self.rows = nn.Parameter(
            torch.empty(num_dims, num_outputs_per_dim, hidden).uniform_(-1, 1) / hidden**0.5
        )
        self.biases = nn.Parameter(torch.zeros(num_dims, num_outputs_per_dim))
        self.activation = activation()
        self.blocks = blocks_of(self.group_sizes)
        if num_context:
            self.context = nn.Linear(num_context, hidden, bias=False)
            self.context_biases = nn.Linear(num_context, num_dims * num_outputs_per_dim, bias=False)

    def starts(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute a_1, `[*, H]`, and b, `[*, D, P]`."""
        self.check_context(context)
        if context is None:
            return self.columns.bias, self.biases
        shifts = self.context_biases(context).unflatten(-1, self.biases.shape)
        return self.columns.bias + self.context(context), self.biases + shifts

    @property
    def learns_one_order(self) -> bool:
        """Whether training always scores the same order."""
        return super().learns_one_order and not self.all_orders

    def draw_member(self) -> Tensor:
        """Draw one of the orders, or of all."""
        if not self.all_orders:
            return super().draw_member()
        return torch.rand(self.num_dims, device=self.orders.device).argsort()

    def places_of(self, member: int | Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the dimensions of an order and their ranks.

        Both are None for the natural one.
        """
        if isinstance(member, Tensor) and member.dim() == 1:
            return member, member.argsort()
        if self.natural:
            return None, None
        return pick(self.orders, member), pick(self.ranks, member)

    def forward(self, x: Tensor, context: Tensor | None = None, member: int | Tensor = 0) -> Tensor:
        """`[..., D]` to `[..., D, P]`."""
        places, ranks = self.places_of(member)
        sums, biases = self.starts(flat_context(context, x))
        columns, rows, known = self.columns.weight.T, self.rows, self.known
        flat = x.reshape(-1, self.num_dims)
        if places is not None:
            columns, rows, flat = columns[places], rows[places], flat[:, places]
            known = None if known is None else known[places]
        params = []
        for block in self.blocks:
            later = self.steps[block] >= self.steps[block, None]
            moves = flat[:, None, block].masked_fill(later, 0.0) @ columns[block]
            total = flat[:, block] @ columns[block]
            if known is not None:
                moves = moves + (~later).to(known) @ known[block]
                total = total + known[block].sum(0)
            units = self.activation(sums.unsqueeze(-2) + moves)
            params.append(torch.einsum("bth,tph->btp", units, rows[block]))
            sums = sums + total
        joined = torch.cat(params, 1)
        if ranks is not None:
            joined = joined[:, ranks]
        return (joined + biases).reshape(*x.shape, -1)

    def stepper(self, x: Tensor, context: Tensor | None = None, member: int = 0) -> Step:
        """Add the columns of one step's dimensions."""
        order, places = self.sequences[member], self.orders[member].split(self.group_sizes)
        first, biases = self.starts(context)
        sums = first.expand(*x.shape[:-1], -1)

        def step(t: int, x: Tensor) -> Tensor:
            nonlocal sums
            if t:
                last = places[t - 1]
                sums = sums + x[..., last] @ self.columns.weight[:, last].T
                if self.known is not None:
                    sums = sums + self.known[last].sum(0)
            rows = self.rows[order[t]]
            params = F.linear(self.activation(sums), rows.flatten(0, -2))
            return params.unflatten(-1, rows.shape[:-1]) + biases[..., order[t], :]

        return step


def blocks_of(group_sizes: Sequence[int]) -> list[slice]:
    """Split dimensions into blocks of whole groups."""
    bounds, stop = [0], 0
    for size in group_sizes:
        stop += size
        if stop - bounds[-1] >= BLOCK:
            bounds.append(stop)
    return [slice(*pair) for pair in pairwise([*bounds, stop]) if pair[0] < pair[1]]
