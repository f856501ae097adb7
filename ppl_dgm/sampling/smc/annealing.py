"""Annealed chains and their weights."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_dgm.sampling.checkpoint import Checkpoint
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.kernels import Kernel, State
from ppl_dgm.sampling.kernels.targets import power
from ppl_dgm.sampling.smc.paths import Path
from ppl_dgm.sampling.smc.population import Plan
from ppl_dgm.sampling.smc.resampling import effective_size

__all__ = ["Annealing", "Walk"]


class Walk(NamedTuple):
    """Chains on their way along a path.

    `log_weights` are `[chains, *batch]`, `acceptance` sums over the moves for each chain and datum,
    both float64; `by_temperature` and `overlap` are `[temperatures]`, means over chains and data.
    """

    step: int
    state: State
    log_weights: Tensor
    acceptance: Tensor
    by_temperature: Tensor
    overlap: Tensor


@dataclass(frozen=True)
class Annealing:
    r"""Chains along a fixed sequence of temperatures, either way.

    Forwards, $\log w = \sum_t (\beta_t - \beta_{t-1})\,[\log f_1 - \log f_0](y_{t-1})$ with $y_t
    \sim K_t(\cdot \mid y_{t-1})$; backwards the negative of that, with the same transitions in the
    opposite order. The temperatures, step sizes and scales are fixed beforehand, so that
    $\mathbb{E}\, w = Z$ forwards from $f_0$ and $\mathbb{E}\, w = 1/Z$ backwards from the
    posterior, for any number of temperatures.

    Args:
        path: the path of densities.
        kernel: transitions.
        plan: step sizes and scales along the path.
        beta: inverse temperatures, `[T + 1]` or `[T + 1, *batch]`, from 0 to 1.
    """

    path: Path
    kernel: Kernel
    plan: Plan
    beta: Tensor

    def forwards(self, checkpoint: Checkpoint, name: str, num_chains: int) -> Walk:
        """Anneal chains from fresh draws at the path's start."""
        return self._run(checkpoint, name, self.path.draw(num_chains), self.beta)

    def backwards(self, checkpoint: Checkpoint, name: str, point: Tensor) -> Walk:
        """Anneal chains from posterior draws to the path's start.

        `point` is `[chains, *batch, dim]`.
        """
        return self._run(checkpoint, name, point, self.beta.flip(0))

    def _run(self, checkpoint: Checkpoint, name: str, point: Tensor, beta: Tensor) -> Walk:
        last = len(beta) - 1
        start = self.begin(point, last)
        return checkpoint.loop(
            name, start, lambda walk: self.advance(walk, beta), lambda walk: walk.step == last
        )

    def begin(self, point: Tensor, num_temperatures: int) -> Walk:
        """Chains at their first points, with weights of one."""
        state = self.path.target.evaluate(point, self.kernel.uses_gradient)
        zero = torch.zeros_like(state.base, dtype=torch.float64)
        return Walk(
            0, state, zero, zero, zero.new_ones(num_temperatures), zero.new_ones(num_temperatures)
        )

    def advance(self, walk: Walk, beta: Tensor) -> Walk:
        """Advance the chains by one temperature.

        They are weighted, then moved, but not at the end, where no weight depends on it.
        """
        step = walk.step
        if step + 2 == len(beta):
            increments, walk.overlap[step] = reweigh(walk.state, beta[step], beta[step + 1])
            return walk._replace(step=step + 1, log_weights=walk.log_weights + increments)
        now = walk.state, walk.log_weights, walk.acceptance
        given = self.kernel, self.plan, *now, beta[step], beta[step + 1]
        spend(walk.state.base.numel(), lambda: self.kernel.cost(self.plan.at(beta[step + 1])[0]))
        moved = self.path.run(temperature, *given, step=step, last=len(beta) - 2)
        state, log_weights, acceptance, walk.overlap[step], walk.by_temperature[step + 1] = moved
        return walk._replace(
            step=step + 1, state=state, log_weights=log_weights, acceptance=acceptance
        )


def temperature(
    path: Path,
    kernel: Kernel,
    plan: Plan,
    state: State,
    log_weights: Tensor,
    acceptance: Tensor,
    beta: Tensor,
    new_beta: Tensor,
) -> tuple[State, Tensor, Tensor, Tensor, Tensor]:
    """Weight and move the chains at one temperature.

    Returned are new states, weights and sums of acceptances, and the means of overlap and
    acceptance.
    """
    increments, overlap = reweigh(state, beta, new_beta)
    step_size, scale = (part.to(state.point.dtype) for part in plan.at(new_beta))
    move = kernel.move(path.target, state, new_beta.to(state.point.dtype), step_size, scale)
    accepted = move.acceptance.double()
    return (
        move.state,
        log_weights + increments + move.correction,
        acceptance + accepted,
        overlap,
        accepted.mean(),
    )


def reweigh(state: State, beta: Tensor, new_beta: Tensor) -> tuple[Tensor, Tensor]:
    """Compute weight increments between two temperatures.

    Increments of the log weights are `[chains, *batch]`, their evenness is `[]`.
    """
    increments = power(state.tilt.double(), new_beta - beta)
    return increments, evenness(increments)


def evenness(increments: Tensor) -> Tensor:
    """Compute the effective share of chains after one increment.

    Increments of the log weights are `[chains, *batch]`. The share is averaged over the data.
    """
    return (effective_size(increments) / len(increments)).mean()
