"""Causal nets, evaluated in one pass or step by step.

A causal net has an order of the dimensions (or several) and maps data `[..., D]` to parameters
`[..., D, P]`; those of a dimension depend only on the dimensions before it in the order. Where the
order has groups, those of a group depend on earlier groups alone. `CausalNet.stepper` gives them
one dimension, or group, after the other, for draws: by whole passes unless a net knows better. To
add a net, subclass `CausalNet` (or `SequenceNet`, which sorts and flattens) and write `forward`
(or `run`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.mlp import check_widths
from ppl_dgm.validation import check_sizes

__all__ = [
    "CausalNet",
    "Groups",
    "Memory",
    "Order",
    "SequenceNet",
    "Step",
    "check_order",
    "flat_context",
    "pick",
    "step_ranks",
]

Groups = Sequence[int | Sequence[int]]  # dimensions, or groups that are drawn together
Order = Tensor | Groups | None
Step = Callable[[int, Tensor], Tensor]
Memory = dict[Any, Any]  # what layers remember from one step to the next, by layer


class CausalNet(nn.Module, ABC):
    """Net for the parameters of all conditionals at once.

    Args:
        num_dims: number D of dimensions.
        num_outputs_per_dim: number P of parameters of each conditional.
        order: `[D]`, the dimensions in the order of generation; the natural one by default. Where
            the net takes groups, an item may be a group of dimensions.
        num_orders: number K of orders; all after the first are drawn, with groups of its sizes.
        seed: draws them.
        num_context: size of a context vector that all conditionals may depend on.

    Raises:
        ValueError: a size below one, an order that is no permutation of 0, ..., D - 1, or one with
            groups that the net does not take.
    """

    takes_groups: ClassVar[bool] = False
    orders: Tensor
    ranks: Tensor
    steps: Tensor  # [D], of the t-th dimension in an order: which group is its own

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
        first, steps = split_order(order, num_dims)
        self.grouped = int(steps[-1]) + 1 < num_dims
        if self.grouped and not self.takes_groups:
            raise ValueError(
                f"{type(self).__name__} draws one dimension after the other, but the order has "
                "groups; expected single dimensions, or a net of masks or of NADE"
            )
        orders = draw_orders(first, num_orders, seed)
        self.register_buffer("orders", orders)
        self.register_buffer("ranks", orders.argsort(-1), persistent=False)
        self.register_buffer("steps", steps)
        self.group_sizes: list[int] = steps.bincount().tolist()
        self.sequences = [in_groups(each, self.group_sizes) for each in orders.tolist()]
        self.natural = bool((orders == torch.arange(num_dims)).all())

    @property
    def num_orders(self) -> int:
        """Number of orders."""
        return len(self.orders)

    @property
    def learns_one_order(self) -> bool:
        """Whether training always scores the same order."""
        return self.num_orders == 1

    def draw_member(self) -> Tensor:
        """Draw what training scores next.

        It is the number of an order, `[]`, or an order, `[D]`.
        """
        return torch.randint(self.num_orders, (), device=self.orders.device)

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None, member: int | Tensor = 0) -> Tensor:
        """Compute the parameters of every conditional.

        Args:
            x: data `[..., D]`.
            context: `[..., num_context]`, where the net has one.
            member: the number of the order, or what `draw_member` gave.

        Returns:
            Parameters `[..., D, P]`.
        """

    def stepper(self, x: Tensor, context: Tensor | None = None, member: int = 0) -> Step:
        """Make a function that gives one conditional's parameters per call.

        Its arguments are (t, x).

        It is to be called for t = 0, 1, ... with data `[..., D]` whose first t dimensions in the
        order are filled in, and gives `[..., P]`; or first t groups, and of one of n dimensions it
        gives `[..., n, P]`.
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
        for name, own in (("orders", self.orders), ("steps", self.steps)):
            saved = state_dict.get(f"{prefix}{name}")
            if saved is not None and not torch.equal(saved.cpu(), own.cpu()):
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
        params = self.run(tokens, places, self.spread(flat_context(context, x)), None)
        params = params.reshape(*x.shape, -1)
        return params if self.natural else params.index_select(-2, pick(self.ranks, member))

    def spread(self, context: Tensor | None) -> Tensor | None:
        """Turn contexts `[B, num_context]` into what `run` takes."""
        return context

    @abstractmethod
    def run(
        self, tokens: Tensor, places: Tensor, context: Tensor | None, memory: Memory | None
    ) -> Tensor:
        """Compute parameters `[B, T, P]` of tokens `[B, T]`.

        With a memory, there is one new token.

        Args:
            tokens: `[B, T]`, the value before each place.
            places: `[T]`, the dimensions they lead to.
            context: as `spread` gives it, where the net has one.
            memory: what the layers remember of earlier tokens; None for a whole pass.
        """

    def stepper(self, x: Tensor, context: Tensor | None = None, member: int = 0) -> Step:
        """Make a stepper that runs one new token per step.

        Layers remember the earlier tokens.
        """
        self.check_context(context)
        order, places = self.orders[member].tolist(), self.orders[member]
        flat, memory = self.spread(flat_context(context, x)), Memory()

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


def split_order(order: Order, num_dims: int) -> tuple[Tensor, Tensor]:
    """Check an order with groups and take it apart.

    Returns:
        The dimensions one after the other, and the number of the group of each, both `[D]`.
    """
    if order is None or isinstance(order, Tensor):
        return check_order(order, num_dims), torch.arange(num_dims)
    groups = [list(item) if isinstance(item, Iterable) else [item] for item in order]
    if not all(groups):
        raise ValueError("the order has an empty group; leave it out")
    sizes = torch.tensor([len(group) for group in groups], dtype=torch.long)
    dims = check_order([dim for group in groups for dim in group], num_dims)
    return dims, torch.arange(len(groups)).repeat_interleave(sizes)


def step_ranks(order: Order, num_dims: int) -> Tensor:
    """Number the step at which each dimension is drawn, `[D]`.

    Example:
        >>> step_ranks([2, [0, 3], 1], 4)
        tensor([1, 2, 0, 1])
    """
    dims, steps = split_order(order, num_dims)
    return steps[dims.argsort()]


def in_groups(dims: list[int], sizes: list[int]) -> list[int | list[int]]:
    """Split dimensions into groups; those of one are numbers."""
    bounds = pairwise([0, *accumulate(sizes)])
    return [dims[start] if stop == start + 1 else dims[start:stop] for start, stop in bounds]


def draw_orders(first: Tensor, num_orders: int, seed: int | None) -> Tensor:
    """Draw orders uniformly, after a given first one: `[K, D]`."""
    generator = torch.Generator("cpu").manual_seed(seed or 0)
    drawn = [
        torch.randperm(len(first), generator=generator, device="cpu").to(first.device)
        for _ in range(num_orders - 1)
    ]
    return torch.stack([first, *drawn])
