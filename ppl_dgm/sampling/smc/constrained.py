"""Prior particles above a level of likelihood."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_dgm.sampling.differences import propose_by_differences
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.memory import allocated_bytes
from ppl_dgm.sampling.unconstrained import Unconstrained

__all__ = ["Density", "Particles", "move"]


class Particles(NamedTuple):
    """Points `[particles, groups, *batch, dim]` and their log densities."""

    point: Tensor
    prior: Tensor
    likelihood: Tensor

    def where(self, chosen: Tensor, other: "Particles") -> "Particles":
        """The other particles where they are chosen, `[particles, groups, *batch]`."""
        point = torch.where(chosen.unsqueeze(-1), other.point, self.point)
        prior = torch.where(chosen, other.prior, self.prior)
        return Particles(point, prior, torch.where(chosen, other.likelihood, self.likelihood))

    def take(self, index: Tensor) -> "Particles":
        """Particles at indices `[particles, groups, *batch]`."""
        rows = index.unsqueeze(-1).expand(*index.shape, self.point.shape[-1])
        point = self.point.gather(0, rows)
        return Particles(point, self.prior.gather(0, index), self.likelihood.gather(0, index))


@dataclass(frozen=True)
class Density:
    """Log densities of points, `rows` of them at a time."""

    target: Unconstrained
    rows: int

    @classmethod
    def of(cls, target: Unconstrained, memory: int) -> "Density":
        """As many rows as fit into memory."""
        one = target.origin(1)
        return cls(target, max(1, memory // (allocated_bytes(lambda: target.split(one)) + 1)))

    def __call__(self, point: Tensor) -> Particles:
        """The particles at points `[particles, groups, *batch, dim]`."""
        spend(point.shape[:-1].numel())
        parts = [self.target.split(part) for part in point.flatten(0, 1).split(self.rows)]
        prior, likelihood = (
            torch.cat(part).double().unflatten(0, point.shape[:2])
            for part in zip(*parts, strict=True)
        )
        return Particles(point, prior, likelihood)


def move(
    density: Density, here: Particles, others: Tensor, level: Tensor, step_size: Tensor
) -> tuple[Particles, Tensor]:
    """Move by differences of other particles, above a level.

    Returns the particles and the share of accepted moves, `[groups, *batch]`.
    """
    there = density(propose_by_differences(here.point, others, step_size).to(here.point.dtype))
    ratio = (there.prior - here.prior).nan_to_num(nan=-torch.inf)
    accepted = (torch.rand_like(ratio).log() < ratio) & (there.likelihood > level)
    return here.where(accepted, there), accepted.to(ratio).mean(0)
