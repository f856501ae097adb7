"""NADE's net: hidden units that all conditionals share."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.causal import CausalNet, Order, Step, flat_context, pick
from ppl_dgm.nn.mlp import Activation, check_widths
from ppl_dgm.nn.nade_recurrence import BLOCK, by_blocks, recur

__all__ = ["NADENet"]

WIDE = 64  # hidden units, from which on the recurrence takes less time than blocks


class NADENet(CausalNet):
    r"""Neural autoregressive net with tied weights.

    (Larochelle and Murray 2011, equations 10 to 13.)

    $a_1 = c$, $a_{t + 1} = a_t + W_{:, d} x_d$ and $\theta_d = b_d + V_d\, \mathrm{act}(a_t)$ for
    the t-th dimension d: O(D H) for a draw. A density has the $a_t$ of a block of dimensions at
    once, by products with the block's earlier ones; that of a wide net on the CPU goes through them
    as a draw does, and its gradient back, with the square root of D of them in memory. The
    dimensions of a group share the $a_t$ of its first.

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
        if self.recurs(flat, columns, sums, rows, *([] if known is None else [known])):
            joined = self.recur(flat.T, columns, known, sums.expand(len(flat), -1), rows)
        else:
            moved = columns, known, sums, rows
            joined = by_blocks(flat, *moved, self.steps, self.group_sizes, self.activation)
        joined = joined if ranks is None else joined[:, ranks]
        return (joined + biases).reshape(*x.shape, -1)

    def recurs(self, *tensors: Tensor) -> bool:
        """Whether the recurrence can be done and pays."""
        return (
            not torch.compiler.is_compiling()
            and self.rows.shape[-1] >= WIDE  # not by the data: parts of them go the same way
            and self.num_dims > BLOCK
            and type(self.activation) in (nn.Sigmoid, nn.ReLU)
            and all(each.device.type == "cpu" for each in tensors)
            and len({each.dtype for each in tensors}) == 1
            and tensors[0].dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu")
            and not any(map(is_transformed, tensors))
            and getattr(forward_ad, "_current_level", -1) < 0
        )

    def recur(
        self, x: Tensor, columns: Tensor, known: Tensor | None, start: Tensor, rows: Tensor
    ) -> Tensor:
        """Parameters without their biases, one group after the other."""
        tensors = [x, columns, start, rows, *([] if known is None else [known])]
        keep = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
        relu = isinstance(self.activation, nn.ReLU)
        params, _ = recur(x, columns, known, start, rows, self.group_sizes, relu, keep)
        return params.transpose(0, 1)

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


def is_transformed(tensor: Tensor) -> bool:
    """Whether functorch holds a tensor, as far as torch tells."""
    tell = getattr(getattr(torch._C, "_functorch", None), "is_functorch_wrapped_tensor", None)
    return tell is None or tell(tensor)
