"""Annealing along a model's own ladder of densities.

The chains move by the model's own moves.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_dgm.program.ladder import Ladder
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.smc.paths import sigmoid_temperatures
from ppl_dgm.sampling.smc.resampling import effective_size, resample

__all__ = ["Pilot", "advance", "begin"]

PILOT_TEMPERATURES = 100
STEP = 1e-4  # in inverse temperature, over which slopes are taken


class Climb(NamedTuple):
    """State of the chains on a ladder.

    Points are `[chains, *event]`, log weights `[groups, chains / groups]`. `log_z` is that of the
    groups.
    """

    step: int
    point: Tensor
    log_weights: Tensor
    log_z: Tensor
    overlap: Tensor

    @property
    def group_log_z(self) -> Tensor:
        """Estimate of log Z for each group, `[groups]`.

        It includes what the weights of the group hold.
        """
        count = torch.tensor(self.log_weights.shape[1], dtype=torch.float64)
        return self.log_z + self.log_weights.logsumexp(1) - count.log()


def begin(point: Tensor, num_groups: int, num_temperatures: int) -> Climb:
    """Chains `[chains, *event]` in groups, with weights of one."""
    weights = torch.zeros(
        num_groups, len(point) // num_groups, dtype=torch.float64, device=point.device
    )
    return Climb(0, point, weights, weights[:, 0], weights.new_ones(num_temperatures))


def advance(
    ladder: Ladder, climb: Climb, beta: Tensor, num_moves: int = 1, resample_below: float = 0.0
) -> Climb:
    """Advance the chains by one rung of the ladder.

    They are weighted, resampled in groups of few effective chains, and moved except at the end.
    """
    spend(climb.log_weights.numel(), 2.0 + num_moves)
    now, new = (beta[climb.step + i].to(climb.point.dtype) for i in (0, 1))
    increments = ladder.log_density(climb.point, new) - ladder.log_density(climb.point, now)
    increments = increments.double().reshape(climb.log_weights.shape)
    overlap = climb.overlap.clone()
    overlap[climb.step] = (effective_size(increments.T) / increments.shape[1]).mean()
    climb = climb._replace(
        step=climb.step + 1, log_weights=climb.log_weights + increments, overlap=overlap
    )
    climb = resampled(climb, resample_below)
    if climb.step + 1 == len(beta):
        return climb
    point = climb.point
    for _ in range(num_moves):
        point = ladder.move(point, new)
    return climb._replace(point=point)


def resampled(climb: Climb, below: float) -> Climb:
    """Resample the groups with few effective chains.

    Their effective share of chains is less than `below`. The other groups stay.
    """
    groups, chains = climb.log_weights.shape
    few = effective_size(climb.log_weights.T) < below * chains
    if not bool(few.any()):
        return climb
    stay = torch.arange(chains, device=few.device).unsqueeze(1)
    chosen = torch.where(few, resample(climb.log_weights.T), stay).T
    rows = (chosen + chains * torch.arange(groups, device=few.device).unsqueeze(1)).flatten()
    log_z = torch.where(few, climb.group_log_z, climb.log_z)
    log_weights = torch.where(few.unsqueeze(1), 0.0, climb.log_weights)
    return climb._replace(point=climb.point[rows], log_z=log_z, log_weights=log_weights)


class Pilot(NamedTuple):
    r"""Thermodynamic length of a ladder, from a first walk.

    It is measured from the foot of the ladder to each of its rungs.

    $L(\beta) = \int_0^\beta \mathrm{sd}(\partial \log f_b / \partial b)\, db$; rungs equally far
    apart in it spread the weights least (Grosse, Maddison and Salakhutdinov 2013, "Annealing
    between distributions by averaging moments").
    """

    beta: Tensor
    length: Tensor

    @classmethod
    def walk(cls, ladder: Ladder, num_chains: int) -> "Pilot":
        """Walk chains of their own up the ladder."""
        beta = sigmoid_temperatures(PILOT_TEMPERATURES)
        point, spreads = ladder.draw(num_chains), []
        beta = beta.to(point.device)
        for rung in beta.to(point.dtype):
            point = ladder.move(point, rung)
            low = (rung - STEP).clamp_min(0.0)
            rise = ladder.log_density(point, low + STEP) - ladder.log_density(point, low)
            spreads.append(rise.double().std() / STEP)
        spread = torch.stack(spreads)
        pieces = 0.5 * (spread[1:] + spread[:-1]) * beta.diff()
        return cls(beta, torch.cat([pieces.new_zeros(1), pieces.cumsum(0)]))

    def number(self, cess: float) -> int:
        """Choose the number of steps for a conditional ESS.

        Each step keeps a conditional ESS of at least `cess`, if increments are normal.
        """
        return max(1, math.ceil(float(self.length[-1]) / math.sqrt(-math.log(cess))))

    def temperatures(self, number: int) -> Tensor:
        """Place rungs at equal distances in thermodynamic length.

        They are `[number + 1]`, from 0 to 1.
        """
        floor = 1e-3 * self.length[-1].clamp_min(1e-9) * self.beta  # where nothing spreads, evenly
        length = self.length + floor
        wanted = torch.linspace(0, 1, number + 1, dtype=length.dtype, device=length.device)
        wanted = wanted * length[-1]
        right = torch.searchsorted(length, wanted).clamp(1, len(length) - 1)
        low, high = length[right - 1], length[right]
        share = ((wanted - low) / (high - low)).clamp(0, 1)
        beta = self.beta[right - 1] + share * (self.beta[right] - self.beta[right - 1])
        beta[0], beta[-1] = 0.0, 1.0
        return beta
