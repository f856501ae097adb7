"""Optimisation steps that several processes make together.

Each takes the gradient on its share of the minibatch; one message averages them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_dgm.fitting.batches import Batches, Rows
from ppl_dgm.fitting.loss import TERMS, BatchLoss
from ppl_dgm.fitting.stepping import Stepper
from ppl_dgm.program import Program
from ppl_dgm.ranks import Ranks

__all__ = ["SharedStepper", "check_sharing"]


class SharedStepper(Stepper):
    """Optimisation step on a minibatch that all ranks share.

    With the mean loss :math:`L_r` of the :math:`n_r` data of rank r, the loss is
    :math:`\\sum_r n_r L_r / \\sum_r n_r`, that of the whole minibatch. Gradients, and the changes
    of floating buffers, are averaged with the same weights; a buffer that no rank changed stays
    as it is, to the last bit.
    """

    def __init__(
        self,
        loss: BatchLoss,
        optimizer: Optimizer,
        clip_norm: float | None,
        batches: Batches,
        ranks: Ranks,
    ) -> None:
        super().__init__(loss, optimizer, clip_norm, batches)
        self.ranks = ranks

    def _gradients(self, size: int, rows: Rows) -> Tensor:
        share = self.ranks.share(size)
        own = share.stop - share.start
        first, told = self._parameters[0], 1
        before = {name: buffer.clone() for name, buffer in self._buffers()}
        value = torch.zeros(1 + len(TERMS), dtype=first.dtype, device=first.device)
        if own:
            mine = rows[share] if isinstance(rows, Tensor) else share
            found = super()._gradients(own, mine)
            told = len(found)
            value[:told] = found
        parameters = [p for p in self._parameters if p.requires_grad]
        flags = [told > 1, *(p.grad is not None for p in parameters)]
        moved = torch.tensor(flags, device=value.device).to(value.dtype)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        buffers = dict(self._buffers())
        changes = {name: change(before[name], buffer) for name, buffer in buffers.items()}
        gradients = (p.grad for p in parameters if p.grad is not None)
        averages = [value, *gradients, *changes.values()]
        for tensor in averages:
            tensor.detach().mul_(own / size)
        self.ranks.sum_([*averages, moved])
        for name, by in changes.items():
            buffers[name].copy_(torch.where(by == 0, before[name], before[name] + by))
        has_terms, *counts = moved.tolist()
        for parameter, count in zip(parameters, counts, strict=True):
            if not count:  # as with one process, the optimiser leaves it alone
                parameter.grad = None
        return value if has_terms else value[:1]

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        named = self.loss.program.named_buffers()
        return ((name, buffer) for name, buffer in named if buffer.is_floating_point())


def change(before: Tensor, after: Tensor) -> Tensor:
    """Subtract what was before.

    Entries that stayed, infinite ones too, give 0.
    """
    return torch.where(before == after, 0.0, after - before)


def check_sharing(ranks: Ranks, program: Program, divisible: bool, num_data: int) -> None:
    """Refuse to share what cannot be divided.

    Raises ValueError.
    """
    if ranks.size == 1:
        return
    if not divisible or num_data < ranks.size:
        raise ValueError(
            f"{ranks.size} processes share this fit, but the program does not take a part of its "
            f"{num_data} data: its data plate has a fixed size, its data are not tensor arguments, "
            "or data have other densities in a part than among all. Open pyro.plate("
            f"{program.plate!r}, len(x)), or fit it in one process"
        )
