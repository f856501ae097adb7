"""One optimisation step, run eagerly or compiled."""

from typing import Any

import torch
from torch.optim import Optimizer

from ppl_dgm.fit.batches import Batch
from ppl_dgm.fit.loss import BatchLoss


class Stepper:
    """Makes one step on a minibatch and returns its loss, nats per datum; parameters stay as they were on NaN."""

    def __init__(self, loss: BatchLoss, optimizer: Optimizer, clip_norm: float | None) -> None:
        self.loss, self.optimizer, self.clip_norm = loss, optimizer, clip_norm
        self.notes: list[str] = []
        self.compile_seconds = 0.0

    def __call__(self, size: int, batch: Batch) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        value = self._gradients(size, batch)
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        loss = float(value)
        if not bool(torch.isfinite(norm)):
            return float("nan") if torch.isfinite(value).all() else loss
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters(), self.clip_norm, norm)
        self.optimizer.step()
        return loss

    def _gradients(self, size: int, batch: Batch) -> torch.Tensor:
        if not self.loss.differentiable:
            return self.loss.backward(size, batch)
        value = self.loss(size, batch)
        value.backward()
        return value.detach()

    def _parameters(self) -> list[Any]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
