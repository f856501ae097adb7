"""Markov chains over data of an unnormalised density.

Some of their entries are known, or all of them with noise.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from ppl_dgm.compile import Switch
from ppl_dgm.objectives.energies import DataDensity, value_kind
from ppl_dgm.program import Bound
from ppl_dgm.program.data_argument import DataArgument
from ppl_dgm.program.ladder import ladder_of
from ppl_dgm.program.sampling import draw_sites
from ppl_dgm.sampling.chains import POINTS_AT_ONCE, tempered_points
from ppl_dgm.sampling.convergence import r_hat_warnings, split_r_hat
from ppl_dgm.sampling.kernels import HMC
from ppl_dgm.sampling.kernels.adaptation import robust_scale
from ppl_dgm.sampling.kernels.flips import BitFlips
from ppl_dgm.sampling.memory import part_of, spans
from ppl_dgm.sampling.unconstrained import SplitDensity
from ppl_dgm.tasks.chains import LEAST_CHAINS, move_points, verdict_on

__all__ = ["HeldEntries", "NoisyData", "draw_data"]

BASE_DRAWS = 256


class Known(ABC):
    """What is known of data `[data, *event]`.

    Points z are `[chains, data, *event]`.
    """

    @abstractmethod
    def part(self, start: int, stop: int) -> "Known":
        """What is known of some of the data."""

    @abstractmethod
    def compose(self, z: Tensor) -> Tensor:
        """Return the data that points stand for."""

    @abstractmethod
    def reference(self, base: Tensor) -> Normal:
        """Return where real chains start, a density of each entry.

        `base` are draws of the base measure, `[draws, data, *event]`.
        """

    @abstractmethod
    def counted(self, each: Tensor) -> Tensor:
        """Keep the reference's log densities that the target has.

        They are of each entry, `[chains, data, *event]`.
        """

    @abstractmethod
    def bits(self, base: Tensor) -> Tensor:
        """Return where binary chains start.

        `base` are draws of the base measure, `[chains, data, *event]`.
        """

    @abstractmethod
    def log_prob_of_bits(self, x: Tensor) -> Tensor:
        """Compute the log likelihood of binary data: `[chains, data]`."""


@dataclass(frozen=True)
class HeldEntries(Known):
    """Entries that are known where `observed` is True."""

    x: Tensor
    observed: Tensor

    def part(self, start: int, stop: int) -> "HeldEntries":
        return HeldEntries(self.x[start:stop], self.observed[start:stop])

    def compose(self, z: Tensor) -> Tensor:
        return torch.where(self.observed, self.x, z)

    def reference(self, base: Tensor) -> Normal:
        scale = robust_scale(base.flatten(2)).reshape(self.x.shape)
        return Normal(base.median(0).values, scale)

    def counted(self, each: Tensor) -> Tensor:
        return torch.where(self.observed, each, 0.0)  # held entries do not matter to the target

    def bits(self, base: Tensor) -> Tensor:
        return self.compose(base)

    def log_prob_of_bits(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:2])


@dataclass(frozen=True)
class NoisyData(Known):
    """Data with noise: a normal deviation, or a flip rate."""

    y: Tensor
    noise: float

    def part(self, start: int, stop: int) -> "NoisyData":
        return NoisyData(self.y[start:stop], self.noise)

    def compose(self, z: Tensor) -> Tensor:
        return z

    def reference(self, base: Tensor) -> Normal:
        return Normal(self.y, torch.full_like(self.y, self.noise))

    def counted(self, each: Tensor) -> Tensor:
        return each  # the likelihood of what was seen

    def bits(self, base: Tensor) -> Tensor:
        return self.y.expand_as(base).clone()

    def log_prob_of_bits(self, x: Tensor) -> Tensor:
        rates = (self.noise - x).abs()  # of ones at what was seen
        return Bernoulli(rates).log_prob(self.y.expand_as(x)).flatten(2).sum(2)


@dataclass(frozen=True)
class DataSpace:
    r"""Data as real vectors, on a path to their density.

    The path is $r(z)\, (f(x)\, c(z) / r(z))^\beta$ with x the data that z stands for, and c the
    part of r that belongs to the target.
    """

    density: DataDensity
    known: Known
    base: Tensor

    @cached_property
    def reference(self) -> Normal:
        return self.known.reference(self.base)

    @property
    def dim(self) -> int:
        """Number of coordinates of a point."""
        return self.base[0, 0].numel()

    @property
    def device(self) -> torch.device:
        """Where points are."""
        return self.base.device

    def raw_split(self, point: Tensor) -> SplitDensity:
        """Evaluate both parts at points `[chains, data, dim]`."""
        z = self.shaped(point)
        each = self.reference.log_prob(z)
        prior, counted = each.flatten(2).sum(2), self.known.counted(each).flatten(2).sum(2)
        log_f = self.density.repeated(self.known.compose(z))
        return SplitDensity(prior, log_f + counted - prior)

    def sample_prior(self, num_chains: int) -> Tensor:
        """Draw points from the reference: `[num_chains, data, dim]`."""
        return self.reference.sample((num_chains,)).flatten(2)

    def shaped(self, point: Tensor) -> Tensor:
        """Return points `[chains, data, dim]` in the shape of data."""
        return point.reshape(*point.shape[:2], *self.base.shape[2:])


class Drawn(NamedTuple):
    """Draws of data `[draws, data, *event]`, with diagnostics."""

    draws: Tensor
    diagnostics: Mapping[str, Tensor]
    warnings: tuple[str, ...]


def draw_data(
    bound: Bound, known: Known, num_draws: int, num_moves: int, num_leapfrog: int, memory: int
) -> Drawn:
    """Draw data given what is known of them.

    There is one chain for each draw. Real data are tempered from the reference and then moved by
    Hamiltonian Monte Carlo; bits by Gibbs sampling.

    Raises:
        ValueError: for data that are neither real nor binary.
    """
    argument = DataArgument.find(bound)
    kind, chains = value_kind(argument.support), max(num_draws, LEAST_CHAINS)
    if kind == "other":
        raise ValueError(
            f"chains move real and binary data, but site {argument.site!r} has the support "
            f"{argument.support}; transform the data"
        )
    parts = []
    for start, stop in spans(bound, POINTS_AT_ONCE * chains, memory):
        part = part_of(bound, start, stop)
        count = max(chains, BASE_DRAWS)
        base = draw_sites(part.model, part.structure, count, part.args, part.kwargs)[argument.site]
        space = DataSpace(DataDensity(part, argument), known.part(start, stop), base)
        if kind == "real":
            parts.append(move_reals(space, chains, num_moves, num_leapfrog))
        else:
            parts.append(move_bits(space, chains, num_moves))
    draws = torch.cat([part.draws for part in parts], 1)[:num_draws]
    named = {
        name: torch.cat([part.diagnostics[name] for part in parts]) for name in parts[0].diagnostics
    }
    return Drawn(draws, named, tuple(dict.fromkeys(w for part in parts for w in part.warnings)))


def move_reals(space: DataSpace, num_chains: int, num_moves: int, num_leapfrog: int) -> Drawn:
    """Move real data by Hamiltonian chains from tempered draws."""
    start = tempered_points(HMC(num_leapfrog=num_leapfrog), space, num_chains, Switch(False))
    moved = move_points(space, start, num_moves, num_leapfrog)
    return Drawn(space.known.compose(space.shaped(moved.points)), *verdict_on([moved]))


def move_bits(space: DataSpace, num_chains: int, num_moves: int) -> Drawn:
    """Move bits by Gibbs sampling.

    It is the model's own where that draws them in one block.
    """
    known, ladder = space.known, ladder_of(space.density.bound.model)
    x, looks = known.bits(space.base[:num_chains]), []
    if ladder is not None and not (ladder.blockwise and isinstance(known, HeldEntries)):
        ladder = None

    def log_density(x: Tensor) -> Tensor:
        return space.density.repeated(known.compose(x)) + known.log_prob_of_bits(x)

    def move(x: Tensor) -> Tensor:
        flat, shape = x.flatten(0, 1), x.shape
        if ladder is not None:
            return known.compose(ladder.move(flat).reshape(shape))
        gibbs = BitFlips(lambda flat: log_density(flat.reshape(shape)).flatten())
        return known.compose(gibbs.move(flat).reshape(shape))

    for turn in range(num_moves):
        x = move(x)
        if turn >= num_moves // 2:
            looks.append(log_density(x))
    r_hat = split_r_hat(torch.stack(looks, 1))
    return Drawn(x, {"r_hat": r_hat}, r_hat_warnings(r_hat))
