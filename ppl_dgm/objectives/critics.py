"""Critics, their packs of data and their penalties."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.utils._pytree import tree_map_only

__all__ = ["Judge"]


@dataclass(frozen=True, eq=False)
class Judge:
    """Critic with its packing of data and its penalties.

    The penalties keep it smooth.

    Args:
        net: maps `[N, *event]`, and what else the program is given, to scores `[N]` or `[N, 1]`.
            Packs of m reach it as `[N / m, m * event[0], *event[1:]]`.
        pack: m, the data in a pack.
        gradient_penalty: weight of (|gradient| - 1)^2 between data and draws.
        one_sided: whether gradients below 1 go free.
        r1: weight gamma of |gradient|^2 / 2 at data.
    """

    net: nn.Module
    pack: int = 1
    gradient_penalty: float = 0.0
    one_sided: bool = False
    r1: float = 0.0

    def scores(self, x: Tensor, rest: Any) -> Tensor:
        """Compute the scores `[packs]` of packed data.

        `rest` are the program's other arguments, `(args, kwargs)`, packed too.
        """
        args, kwargs = rest
        scores = self.net(x, *args, **kwargs)
        if tuple(scores.shape) not in ((len(x),), (len(x), 1)):
            raise ValueError(
                f"the critic maps {tuple(x.shape)} to {tuple(scores.shape)}; expected one score "
                f"for each datum, ({len(x)},) or ({len(x)}, 1): end it in a layer of one output"
            )
        return scores.reshape(-1)

    def packed(self, tree: Any) -> Any:
        """Group tensors `[N, *event]` into packs.

        The last N mod m data are left out.
        """
        return tree if self.pack == 1 else tree_map_only(Tensor, self._packed, tree)

    def _packed(self, x: Tensor) -> Tensor:
        packs = len(x) // self.pack
        if packs == 0:
            raise ValueError(
                f"a minibatch has {len(x)} data, fewer than a pack of {self.pack}; expected "
                "batch_size to be at least pack"
            )
        x = x[: packs * self.pack]
        return x.reshape(packs, -1, *x.shape[2:])

    def penalty(self, real: Tensor, fake: Tensor, rest: Any) -> Tensor | float:
        """What keeps the critic smooth, mean over packs."""
        total: Tensor | float = 0.0
        if self.gradient_penalty:
            shape = (len(real),) + (1,) * (real.dim() - 1)
            share = torch.rand(shape, dtype=real.dtype, device=real.device)
            between = self._squared_gradients(real + share * (fake - real), rest)
            excess = (between + 1e-12).sqrt() - 1
            if self.one_sided:
                excess = relu(excess)
            total = total + self.gradient_penalty * excess.square().mean()
        if self.r1:
            total = total + self.r1 / 2 * self._squared_gradients(real, rest).mean()
        return total

    def _squared_gradients(self, x: Tensor, rest: Any) -> Tensor:
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.scores(x, rest).sum(), x, create_graph=True)
        return gradient.reshape(len(x), -1).square().sum(1)
