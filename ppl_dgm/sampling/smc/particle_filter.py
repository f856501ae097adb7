"""Particle filters along fixed temperatures.

They are free, or conditional on one trajectory.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.sampling.checkpoint import Checkpoint
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.kernels import State
from ppl_dgm.sampling.kernels.targets import power
from ppl_dgm.sampling.smc.annealing import Annealing, Walk
from ppl_dgm.sampling.smc.population import even_weights, move_groups, unfold
from ppl_dgm.sampling.smc.resampling import effective_size, resample

__all__ = ["ParticleFilter"]

RESAMPLE_BELOW = 0.5


class Filtered(NamedTuple):
    """State of the particles in a filter.

    States are `[particles * groups, *batch, ...]`, normalised log weights `[particles, groups,
    *batch]`, log Z so far `[groups, *batch]`.
    """

    step: int
    state: State
    log_weights: Tensor
    log_z: Tensor


@dataclass(frozen=True)
class ParticleFilter:
    r"""Sequential Monte Carlo at temperatures fixed beforehand.

    Step sizes and scales are fixed beforehand too.

    Free, $\mathbb{E}\,\hat Z = Z$. Conditional on a trajectory that was annealed backwards from a
    posterior draw, which takes the place of the first particle at every temperature,
    $\mathbb{E}\,\hat Z^{-1} = Z^{-1}$. Andrieu, Doucet and Holenstein (2010), "Particle Markov
    chain Monte Carlo methods", section 4.3; Grosse, Ancha and Roy (2016).

    Args:
        annealing: path, kernel, temperatures and settings.
        num_particles: particles in each group.
        num_groups: independent filters.
    """

    annealing: Annealing
    num_particles: int
    num_groups: int

    def run(self, checkpoint: Checkpoint, name: str, trajectory: Tensor | None = None) -> Tensor:
        """Estimate log Z of each group, `[groups, *batch]`.

        `trajectory` is `[temperatures, groups, *batch, dim]`.
        """
        last = len(self.annealing.beta) - 1
        found = checkpoint.loop(
            name,
            self._begin(trajectory),
            lambda now: self._advance(now, trajectory),
            lambda now: now.step == last,
        )
        return found.log_z

    def trajectory(self, checkpoint: Checkpoint, name: str, point: Tensor) -> Tensor:
        """Anneal posterior draws backwards and keep all points.

        Draws are `[groups, *batch, dim]`, points `[temperatures, groups, *batch, dim]`.
        """
        beta = self.annealing.beta.flip(0)
        start = self.annealing.begin(point, len(beta) - 1), point.unsqueeze(0)

        def advance(progress: tuple[Walk, Tensor]) -> tuple[Walk, Tensor]:
            walk = self.annealing.advance(progress[0], beta)
            return walk, torch.cat([progress[1], walk.state.point.unsqueeze(0)])

        points = checkpoint.loop(
            name, start, advance, lambda progress: progress[0].step == len(beta) - 1
        )[1]
        return points[: len(beta) - 1].flip(0)

    def _begin(self, trajectory: Tensor | None) -> Filtered:
        path, kernel = self.annealing.path, self.annealing.kernel
        point = path.draw(self.num_particles * self.num_groups)
        if trajectory is not None:
            point[: self.num_groups] = trajectory[0]
        state = path.target.evaluate(point, kernel.uses_gradient)
        shape = (self.num_particles, self.num_groups, *point.shape[1:-1])
        log_weights = torch.zeros(shape, dtype=torch.float64, device=point.device)
        return Filtered(0, state, even_weights(log_weights), torch.zeros_like(log_weights[0]))

    def _advance(self, now: Filtered, trajectory: Tensor | None) -> Filtered:
        beta, step = self.annealing.beta, now.step + 1
        tilt = unfold(now.state.tilt.double(), now.log_weights)
        raw = now.log_weights + power(tilt, beta[step] - beta[step - 1])
        total = raw.logsumexp(0)
        log_weights, log_z = raw - total, now.log_z + total
        if step == len(beta) - 1:
            return Filtered(step, now.state, log_weights, log_z)
        state, log_weights = self._resample(
            now.state, log_weights.nan_to_num(nan=-torch.inf), trajectory is not None
        )
        state = self._move(state, beta[step])
        return Filtered(step, self._retain(state, trajectory, step), log_weights, log_z)

    def _resample(self, state: State, log_weights: Tensor, retained: bool) -> tuple[State, Tensor]:
        uneven = effective_size(log_weights) < RESAMPLE_BELOW * self.num_particles
        count = torch.arange(self.num_particles, device=log_weights.device)
        same = count.reshape(-1, *(1,) * uneven.dim()).expand_as(log_weights)
        ancestors = torch.where(uneven, resample(log_weights, scheme="multinomial"), same)
        if retained:
            ancestors[0] = 0
        parts: Any = (None if part is None else unfold(part, log_weights) for part in state)
        chosen: Any = (
            None if part is None else part.flatten(0, 1) for part in State(*parts).gather(ancestors)
        )
        return State(*chosen), torch.where(uneven, even_weights(log_weights), log_weights)

    def _move(self, state: State, beta: Tensor) -> State:
        step_size, scale = self.annealing.plan.at(beta)
        spend(state.base.numel(), lambda: self.annealing.kernel.cost(step_size))
        groups = (
            part.expand(self.num_groups, *part.shape)
            for part in (beta.expand_as(step_size), step_size, scale)
        )
        return self.annealing.path.run(
            move_groups, self.annealing.kernel, self.num_particles, state, *groups
        )[0]

    def _retain(self, state: State, trajectory: Tensor | None, step: int) -> State:
        if trajectory is None:
            return state
        kept = self.annealing.path.target.evaluate(
            trajectory[step], self.annealing.kernel.uses_gradient
        )
        for part, new in zip(state, kept, strict=True):
            if part is not None and new is not None:
                part[: self.num_groups] = new
        return state
