"""Population of particles that is tempered along a path.

It goes from the start of the path to its end, and records what is learnt on the way.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.sampling.checkpoint import Checkpoint
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.kernels import Kernel, State
from ppl_dgm.sampling.kernels.adaptation import nudge_step_size, robust_scale, weighted_scale
from ppl_dgm.sampling.kernels.targets import power
from ppl_dgm.sampling.smc.paths import Path
from ppl_dgm.sampling.smc.resampling import (
    Scheme,
    conditional_ess,
    effective_size,
    next_increment,
    resample,
)

__all__ = ["Plan", "Population", "Tempering", "even_weights", "fold", "move_groups", "unfold"]

WARM_UP = 15  # moves at the start of the path that find a step size
MAX_TEMPERATURES = 20_000
KNOTS = 64
ROUNDING = 1e-6  # temperatures aim at an ESS; rounding must not decide whether it is below that


class Record(NamedTuple):
    """Settings and statistics of a population at each temperature.

    They are `[temperatures, groups, *batch]`, scales with a last dimension `dim`.

    `overlap` is the conditional ESS on the way to the temperature, `acceptance` the mean over
    particles and moves.
    """

    beta: Tensor
    step_size: Tensor
    scale: Tensor
    acceptance: Tensor
    overlap: Tensor

    def add(self, *entries: Tensor) -> "Record":
        """One more temperature."""
        return Record(
            *(torch.cat([part, new.unsqueeze(0)]) for part, new in zip(self, entries, strict=True))
        )


class Population(NamedTuple):
    """Particles of independent groups at their temperatures.

    States are `[particles * groups, *batch, ...]`, particles first; `log_weights` are normalised,
    `[particles, groups, *batch]`, and `log_z` is `[groups, *batch]`, both float64.
    """

    state: State
    log_weights: Tensor
    log_z: Tensor
    record: Record

    @property
    def beta(self) -> Tensor:
        """Inverse temperature, `[groups, *batch]`."""
        return self.record.beta[-1]

    @property
    def tilt(self) -> Tensor:
        """log f_1 - log f_0 in float64: `[particles, groups, *batch]`."""
        return unfold(self.state.tilt.double(), self.log_weights)

    def reweighted(self, increments: Tensor) -> "Population":
        """Multiply the weights by exp(increments) and normalise them.

        Their mean goes into the normaliser.
        """
        raw = self.log_weights + increments
        total = raw.logsumexp(0)
        dead = (total == -torch.inf).unsqueeze(0)
        log_weights = torch.where(dead, self.log_weights, raw - total)
        return self._replace(log_weights=log_weights, log_z=self.log_z + total)


def unfold(values: Tensor, like: Tensor) -> Tensor:
    """`[particles * groups, ...]` -> `[particles, groups, ...]`."""
    return values.unflatten(0, like.shape[:2])


def fold(values: Tensor, num_particles: int, dtype: torch.dtype) -> Tensor:
    """Repeat `[groups, ...]` for all particles: `[particles * groups, ...]`."""
    return values.to(dtype).expand(num_particles, *values.shape).flatten(0, 1)


def even_weights(like: Tensor) -> Tensor:
    """Return equal, normalised log weights.

    Their shape is `[particles, ...]`.
    """
    return torch.full_like(like, -math.log(len(like)))


@dataclass(frozen=True)
class Tempering:
    """Sequential Monte Carlo with adaptive temperatures.

    It goes from the start of a path to its end, each group and datum at temperatures of its own.

    Temperatures are chosen so that the conditional ESS is `cess`; particles are resampled where
    their ESS falls below `resample_below` of their number; step sizes and scales follow the
    population.

    Args:
        path: the path of densities.
        kernel: how particles move.
        num_particles: particles in each group.
        num_groups: independent groups.
        num_moves: moves at each temperature.
        cess: conditional ESS from one temperature to the next, as a share.
        resample_below: ESS below which to resample, as a share.
        resampling: how to resample.
    """

    path: Path
    kernel: Kernel
    num_particles: int
    num_groups: int = 1
    num_moves: int = 2
    cess: float = 0.5
    resample_below: float = 0.5
    resampling: Scheme = "systematic"

    def run(self, checkpoint: Checkpoint, name: str) -> Population:
        """Temper a population to the end of the path."""
        return checkpoint.loop(
            name, self.begin(), self.advance, lambda population: bool((population.beta >= 1).all())
        )

    def begin(self) -> Population:
        """Draw particles and find step sizes for them.

        This is at the start of the path.
        """
        point = self.path.draw(self.num_particles * self.num_groups)
        state = self.path.target.evaluate(point, self.kernel.uses_gradient)
        shape = (self.num_particles, self.num_groups, *point.shape[1:-1])
        log_z = torch.zeros(shape[1:], dtype=torch.float64, device=point.device)
        scale = robust_scale(point.unflatten(0, shape[:2]))
        step_size = torch.full_like(log_z, self.kernel.first_step_size(point.shape[-1]))
        acceptance = torch.ones_like(log_z)
        for _ in range(WARM_UP):
            state, acceptance, _ = self._move(state, log_z, step_size, scale)
            step_size = nudge_step_size(step_size, acceptance, self.kernel.target_acceptance)
        first = (log_z, step_size, scale, acceptance, torch.ones_like(log_z))
        return Population(
            state,
            even_weights(log_z.new_zeros(shape)),
            log_z,
            Record(*(part.unsqueeze(0) for part in first)),
        )

    def advance(self, population: Population) -> Population:
        """One temperature further: reweight, resample, move."""
        beta, overlap, population = self._reweight(population)
        particles = unfold(population.state.point, population.log_weights)
        scale = weighted_scale(particles, population.log_weights, population.record.scale[-1])
        population = self._resample(population)
        step_size, accepted = population.record.step_size[-1], []
        for _ in range(self.num_moves):
            state, acceptance, correction = self._move(population.state, beta, step_size, scale)
            population = population._replace(state=state)
            if not self.kernel.adjusted:
                population = population.reweighted(unfold(correction, population.log_weights))
            step_size = nudge_step_size(step_size, acceptance, self.kernel.target_acceptance)
            accepted.append(acceptance)
        record = population.record.add(
            beta, step_size, scale, torch.stack(accepted).mean(0), overlap
        )
        return population._replace(record=record)

    def _reweight(self, population: Population) -> tuple[Tensor, Tensor, Population]:
        log_weights, tilt = population.log_weights, population.tilt
        step = next_increment(log_weights, tilt, 1 - population.beta, self.cess)
        if len(population.record.beta) > MAX_TEMPERATURES or not bool(
            (tilt > -torch.inf).any(0).all()
        ):
            raise ValueError(
                f"the likelihood is zero at all {self.num_particles} particles of a group, or so "
                f"uneven that {MAX_TEMPERATURES} temperatures do not reach the posterior; use more "
                "particles, a prior that the data do not contradict, or begin at a guide: "
                "start='guide'"
            )
        increments = power(tilt, step)
        beta = torch.where(
            step >= 1 - population.beta, torch.ones_like(step), population.beta + step
        )
        return beta, conditional_ess(log_weights, increments), population.reweighted(increments)

    def _resample(self, population: Population) -> Population:
        log_weights = population.log_weights
        uneven = (
            effective_size(log_weights) < self.resample_below * (1 - ROUNDING) * self.num_particles
        )
        count = torch.arange(self.num_particles, device=log_weights.device)
        same = count.reshape(-1, *(1,) * uneven.dim()).expand_as(log_weights)
        ancestors = torch.where(uneven, resample(log_weights, scheme=self.resampling), same)
        unfolded: Any = (
            None if part is None else unfold(part, log_weights) for part in population.state
        )
        gathered: Any = (
            None if part is None else part.flatten(0, 1)
            for part in State(*unfolded).gather(ancestors)
        )
        return population._replace(
            state=State(*gathered),
            log_weights=torch.where(uneven, even_weights(log_weights), log_weights),
        )

    def _move(
        self, state: State, beta: Tensor, step: Tensor, scale: Tensor
    ) -> tuple[State, Tensor, Tensor]:
        """Move all particles once: states, mean acceptance `[groups, *batch]`, corrections."""
        spend(state.base.numel(), lambda: self.kernel.cost(step))
        return self.path.run(move_groups, self.kernel, self.num_particles, state, beta, step, scale)


def move_groups(
    path: Path,
    kernel: Kernel,
    num_particles: int,
    state: State,
    beta: Tensor,
    step: Tensor,
    scale: Tensor,
) -> tuple[State, Tensor, Tensor]:
    """Move the particles of all groups once.

    Settings are `[groups, *batch]`. States, mean acceptance and corrections are returned.
    """
    settings = (fold(part, num_particles, state.point.dtype) for part in (beta, step, scale))
    move = kernel.move(path.target, state, *settings)
    return (
        move.state,
        move.acceptance.double().unflatten(0, (num_particles, -1)).mean(0),
        move.correction.double(),
    )


class Plan(NamedTuple):
    """Temperatures along a path with suitable step sizes and scales.

    A pilot population has learnt them.

    `beta` and `step_size` are `[knots, *batch]`, rising from 0 to 1, and `scale` `[knots, *batch,
    dim]`.
    """

    beta: Tensor
    step_size: Tensor
    scale: Tensor

    @classmethod
    def learn(cls, pilot: Population) -> "Plan":
        """Create a plan from what a pilot has found.

        The pilot has one group.
        """
        record = pilot.record
        return cls(*(padded(part[:, 0]) for part in (record.beta, record.step_size, record.scale)))

    def temperatures(self, num_temperatures: int) -> Tensor:
        """Interpolate between the inverse temperatures of the pilot.

        The result is `[num_temperatures + 1, *batch]` and divides each step of the pilot alike.
        """
        steps = (self.beta < 1).sum(0)
        share = torch.linspace(
            0, 1, num_temperatures + 1, dtype=self.beta.dtype, device=self.beta.device
        )
        place = share.reshape(-1, *(1,) * steps.dim()) * steps
        lower = place.floor().long().clamp(max=len(self.beta) - 2)
        low, high = self.beta.gather(0, lower), self.beta.gather(0, lower + 1)
        return torch.lerp(low, high, (place - lower).clamp(0, 1))

    def at(self, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Interpolate step sizes and scales at an inverse temperature.

        The temperature broadcasts to `[*batch]`. Step sizes are `[*batch]`, scales `[*batch, dim]`.
        """
        beta = beta.expand(self.beta.shape[1:])
        upper = (self.beta <= beta).sum(0).clamp(1, len(self.beta) - 1).unsqueeze(0)
        low, high = self.beta.gather(0, upper - 1)[0], self.beta.gather(0, upper)[0]
        share = ((beta - low) / (high - low)).nan_to_num(1.0).clamp(0, 1)
        return blend(self.step_size, upper, share), blend(self.scale, upper, share.unsqueeze(-1))


def padded(knots: Tensor) -> Tensor:
    """Repeat the last knot up to a multiple of `KNOTS`.

    Plans of one shape share compiled code.
    """
    return torch.cat([knots, knots[-1:].expand(-len(knots) % KNOTS, *knots.shape[1:])])


def blend(knots: Tensor, upper: Tensor, share: Tensor) -> Tensor:
    """Geometric interpolation between neighbouring knots."""
    index = upper if knots.dim() == upper.dim() else upper.unsqueeze(-1).expand(1, *knots.shape[1:])
    low, high = knots.gather(0, index - 1)[0], knots.gather(0, index)[0]
    return torch.lerp(low.log(), high.log(), share.to(low.dtype)).exp()
