"""Causal nets, evaluated in one pass or step by step.

A causal net has an order of the dimensions (or several) and maps data `[..., D]` to parameters
`[..., D, P]`; those of a dimension depend only on the dimensions before it in the order.
`CausalNet.stepper` gives them one dimension after
the other, for draws: by whole passes unless a net knows better. To add a net, subclass `CausalNet`
    (or `SequenceNet`, which sorts and
flattens) and write `forward` (or `run`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.mlp import check_widths
from ppl_dgm.validation import check_sizes

__all__ = [
    "CausalNet",
    "Memory",
    "Order",
    "SequenceNet",
    "Step",
    "check_order",
    "flat_context",
    "pick",
]

Order = Tensor | Sequence[int] | None
Step = Callable[[int, Tensor], Tensor]
Memory = dict[Any, Any]  # what layers remember from one step to the next, by layer


class CausalNet(nn.Module, ABC):
    """Net for the parameters of all conditionals at once.

    Args:
        num_dims: number D of dimensions.
        num_outputs_per_dim: number P of parameters of each conditional.
        order: `[D]`, the dimensions in the order of generation; the natural one by default.
        num_orders: number K of orders; all after the first are drawn.
        seed: draws them.
        num_context: size of a context vector that all conditionals may depend on.

    Raises:
        ValueError: a size below one, an order that is no permutation of 0, ..., D - 1.
    """

    orders: Tensor
    ranks: Tensor

    @checked
    def __init__(
        self,
        num_dims: int,
        num_outputs_per_dim: int = 1,
        order: Order = None,
        num_orders: int = 1,
        seed: int | None = None,
        num_context: int = 0,
    ) -> None:
        super().__init__()
        check_widths([num_dims, num_outputs_per_dim, num_orders])
        check_sizes(0, num_context=num_context)
        self.num_dims, self.num_outputs_per_dim = num_dims, num_outputs_per_dim
        self.num_context = num_context
        orders = draw_orders(check_order(order, num_dims), num_orders, seed)
        self.register_buffer("orders", orders)
        self.register_buffer("ranks", orders.argsort(-1), persistent=False)
        self.sequences: list[list[int]] = orders.tolist()
        self.natural = bool((orders == torch.arange(num_dims)).all())

    @property
    def num_orders(self) -> int:
        """Number of orders."""
        return len(self.orders)

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None, member: int | Tensor = 0) -> Tensor:
        """Compute the parameters of every conditional.

        Args:
            x: data `[..., D]`.
            context: `[..., num_context]`, where the net has one.
            member: the number of the order.

        Returns:
            Parameters `[..., D, P]`.
        """

    def stepper(self, x: Tensor, context: Tensor | None = None, member: int = 0) -> Step:
        """Make a function that gives one conditional's parameters per call.

        Its arguments are (t, x).

        It is to be called for t = 0, 1, ... with data `[..., D]` whose first t dimensions in the
        order are filled in.
        """
        return self.naive_stepper(context, member)

    def naive_stepper(self, context: Tensor | None = None, member: int = 0) -> Step:
        """Make the same, by a whole pass for each dimension."""
        order = self.sequences[member]
        return lambda t, x: self(x, context, member)[..., order[t], :]

    def check_context(self, context: Tensor | None) -> None:
        """Check that a context is given exactly when needed."""
        if (context is None) != (self.num_context == 0):
            raise ValueError(
                f"the net was made with num_context {'> 0' if self.num_context else '= 0'} but "
                f"was called {'without' if context is None else 'with'} a context"
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load parameters, unless they were learned in other orders."""
        saved = state_dict.get(f"{prefix}orders")
        if saved is not None and not torch.equal(saved.cpu(), self.orders.cpu()):
            raise RuntimeError("its parameters were learned in another order of the dimensions")
        super()._load_from_state_dict(state_dict, prefix, *args)


class SequenceNet(CausalNet):
    """Causal net over the dimensions sorted into their order.

    Inputs are `tokens[t] = x[order[t - 1]]`, zero for t = 0, and the places `order[t]` they lead
    to.
    """

    def forward(self, x: Tensor, context: Tensor | None = None, member: int | Tensor = 0) -> Tensor:
        """`[..., D]` to `[..., D, P]`."""
        self.check_context(context)
        places = pick(self.orders, member)
        values = x if self.natural else x.index_select(-1, places)
        tokens = F.pad(values[..., :-1], (1, 0)).reshape(-1, self.num_dims)
        params = self.run(tokens, places, flat_context(context, x), None)
        params = params.reshape(*x.shape, -1)
        return params if self.natural else params.index_select(-2, pick(self.ranks, member))

    @abstractmethod
    def run(
        self, tokens: Tensor, places: Tensor, context: Tensor | None, memory: Memory | None
    ) -> Tensor:
        """Compute parameters `[B, T, P]` of tokens `[B, T]`.

        With a memory, there is one new token.

        Args:
            tokens: `[B, T]`, the value before each place.
            places: `[T]`, the dimensions they lead to.
            context: `[B, num_context]`, where the net has one.
            memory: what the layers remember of earlier tokens; None for a whole pass.
        """

    def stepper(self, x: Tensor, context: Tensor | None = None, member: int = 0) -> Step:
        """Make a stepper that runs one new token per step.

        Layers remember the earlier tokens.
        """
        self.check_context(context)
        order, places, memory = self.sequences[member], self.orders[member], Memory()
        flat = flat_context(context, x)

        def step(t: int, x: Tensor) -> Tensor:
            token = x[..., order[t - 1]] if t else torch.zeros_like(x[..., 0])
            params = self.run(token.reshape(-1, 1), places[t : t + 1], flat, memory)
            return params.reshape(*x.shape[:-1], -1)

        return step


def pick(table: Tensor, member: int | Tensor) -> Tensor:
    """Pick one row of a table.

    The row is given by number, or by a tensor `[]` that the host never reads.
    """
    if isinstance(member, Tensor):
        return table.index_select(0, member.reshape(1)).squeeze(0)
    return table[member]


def flat_context(context: Tensor | None, x: Tensor) -> Tensor | None:
    """Expand a context to data `[..., D]` and flatten it.

    The result is `[B, C]`.
    """
    if context is None:
        return None
    return context.expand(*x.shape[:-1], -1).reshape(-1, context.shape[-1])


def check_order(order: Order, num_dims: int) -> Tensor:
    """Check that an order is a permutation.

    None stands for the natural order.
    """
    if order is None:
        return torch.arange(num_dims)
    order = torch.as_tensor(order).to(torch.get_default_device())
    if order.shape != (num_dims,) or not torch.equal(order.sort().values, torch.arange(num_dims)):
        raise ValueError(
            f"expected the order to be a permutation of 0, ..., {num_dims - 1}, "
            f"got {order.tolist()}"
        )
    return order.long()


def draw_orders(first: Tensor, num_orders: int, seed: int | None) -> Tensor:
    """Draw orders uniformly, after a given first one: `[K, D]`."""
    generator = torch.Generator("cpu").manual_seed(seed or 0)
    drawn = [
        torch.randperm(len(first), generator=generator, device="cpu").to(first.device)
        for _ in range(num_orders - 1)
    ]
    return torch.stack([first, *drawn])
