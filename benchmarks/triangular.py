"""MADE with one wide hidden layer, learnt by the blocks of its triangular masks.

Units sorted by degree make the masks of both layers block-triangular: almost half of the products
is zero and never made, and the others are made in bfloat16, of parameters and gradients that stay
in float32: 450 Gflop/s of a core of AMD's Zen 5, where torch's in float32 have 110. The parameters
are those of `families.MADE`, which judges them.
"""

import math
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm import Program
from ppl_dgm.data import Dataset

__all__ = ["Schedule", "TriangularMADE", "learn"]

HALF = torch.bfloat16
PARTS = 8  # blocks of units
WARM = 200  # steps in which the rate rises


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    rate: float
    decay: float
    epochs: int
    batch: int
    seed: int


class TriangularMADE(nn.Module):
    """Blocks of units of `MADENet(D, [H])` in the natural order, with gradients by hand.

    Args:
        degrees: `[H]`, sorted, from 1 to D - 1.
        means: of the data, `[D]`, where the biases of the outputs start.
    """

    def __init__(self, degrees: Tensor, means: Tensor) -> None:
        super().__init__()
        ranks, size = torch.arange(1, len(means) + 1), len(degrees)
        below = torch.searchsorted(degrees, ranks).clamp(min=1)  # units that an output sees
        bounds = [size * k // PARTS for k in range(PARTS + 1)]
        self.units = [slice(*each) for each in pairwise(bounds)]
        self.spans: list[tuple[int, int]] = []  # lowest and highest degree of a block
        self.corners: list[tuple[Tensor, Tensor]] = []  # where masks of a block have zeros
        self.columns, self.rows = nn.ParameterList(), nn.ParameterList()
        self.shifts = nn.Parameter(torch.zeros(size))
        self.biases = nn.Parameter(torch.logit(means.clamp(1e-4, 1 - 1e-4)))
        for units in self.units:
            own = degrees[units, None]
            low, high = int(own.min()), int(own.max())
            enter = (own >= ranks[:high]).float()
            leave = (ranks[low:, None] > own.T).float()
            scales = 0.5 / (means.mean() * own).clamp(min=1).sqrt()
            self.columns.append(torch.randn_like(enter) * enter * scales)
            self.rows.append(torch.randn_like(leave) * leave * 0.1 / below[low:, None].sqrt())
            self.spans.append((low, high))
            self.corners.append((enter[:, low:].contiguous(), leave[: high - low].contiguous()))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of data, `[N, D]`."""
        logits = self.biases.repeat(len(x), 1)
        for units, (low, high), column, row in self.blocks():
            hidden = F.linear(x[:, :high], column, self.shifts[units]).relu()
            logits[:, low:] += hidden @ row.T
        return logits

    def blocks(self) -> Any:
        """What belongs to each block."""
        return zip(self.units, self.spans, self.columns, self.rows, strict=True)

    @torch.no_grad()
    def differentiate(self, x: Tensor) -> None:
        """Set the gradients of the mean negative log density of binary data, `[N, D]`."""
        x = x.to(HALF)
        logits, known = self.biases.repeat(len(x), 1), []
        for units, (low, high), column, row in self.blocks():
            row = row.to(HALF)
            hidden = F.linear(x[:, :high], column.to(HALF), self.shifts[units].to(HALF)).relu_()
            logits[:, low:] += hidden @ row.T
            known.append((hidden, row))
        moves = (logits.sigmoid() - x) / len(x)
        self.biases.grad, self.shifts.grad = moves.sum(0), torch.empty_like(self.shifts)
        moves = moves.to(HALF)
        for number, (units, (low, high), column, row) in enumerate(self.blocks()):
            (hidden, half), (enter, leave) = known[number], self.corners[number]
            fill(row, moves[:, low:].T @ hidden)[: high - low] *= leave
            back = (moves[:, low:] @ half).mul_(hidden > 0)
            self.shifts.grad[units] = back.float().sum(0)
            fill(column, back.T @ x[:, :high])[:, low:] *= enter

    def write(self, net: Any) -> None:
        """Give the parameters to a `MADENet`."""
        first, last = net.layers
        with torch.no_grad():
            first.bias.copy_(self.shifts)
            last.bias.copy_(self.biases)
            for weight in (first.weight, last.weight):
                weight.zero_()
            for units, (low, high), column, row in self.blocks():
                first.weight[units, :high] = column
                last.weight[low:, units] = row


def fill(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Set a gradient without new memory."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad.copy_(gradient)


@torch.no_grad()
def nats(net: TriangularMADE, x: Tensor) -> float:
    """Mean negative log density in float32."""
    total = 0.0
    for part in x.split(1000):
        total += F.binary_cross_entropy_with_logits(net(part), part, reduction="sum").item()
    return total / len(x)


def learn(program: Program, data: Dataset, how: Schedule, checkpoint: Path | None) -> int:
    """Adam, its rate falling along a cosine; the best parameters by validation, after each epoch.

    A checkpoint that is there goes on.

    Returns:
        The epoch that was kept, from 1 on.
    """
    model: Any = program.model
    torch.manual_seed(how.seed)
    x = data.train.x
    net = TriangularMADE(model.fn.net.degrees[0][1], x.mean(0))
    weights = [{"params": [*net.columns, *net.rows], "weight_decay": how.decay}]
    optimizer = torch.optim.Adam([*weights, {"params": [net.shifts, net.biases]}], fused=True)
    state: dict[str, Any] = {"epoch": 0, "best": math.inf, "kept": 0, "parameters": {}}
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
    per_epoch = len(x) // how.batch
    for epoch in range(state["epoch"], how.epochs):
        shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch + how.seed))
        for number, rows in enumerate(shuffled[: per_epoch * how.batch].split(how.batch)):
            done = epoch * per_epoch + number
            fall = 0.5 + 0.5 * math.cos(math.pi * done / (how.epochs * per_epoch))
            for group in optimizer.param_groups:
                group["lr"] = how.rate * fall * min(1, (done + 1) / WARM)
            net.differentiate(x[rows])
            optimizer.step()
        valid = nats(net, data.valid.x)
        print(f"epoch {epoch + 1}: validation {valid:.3f}", flush=True)
        if valid < state["best"]:
            parameters = {name: each.clone() for name, each in net.state_dict().items()}
            state |= {"best": valid, "kept": epoch + 1, "parameters": parameters}
        state |= {"epoch": epoch + 1}
        if checkpoint:
            parts = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | parts, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
    net.load_state_dict(state["parameters"])
    net.write(model.fn.net)
    return state["kept"]
