"""Chains at a ladder of temperatures that exchange states."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_dgm.sampling.checkpoint import Checkpoint
from ppl_dgm.sampling.convergence import is_divergent
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.kernels import DualAveraging, Kernel, Move, State
from ppl_dgm.sampling.smc.paths import Path
from ppl_dgm.sampling.smc.population import Plan, fold

__all__ = ["Ladders", "Rungs"]


class Ladders(NamedTuple):
    """State of the chains at every temperature.

    States are `[chains * rungs, *batch, ...]`, chains first. Scales are `[rungs, *batch, dim]`.

    `tilts` are log f_1 - log f_0 so far, `[draws, chains, rungs, *batch]` in float64; `acceptance`
    and `swaps` are sums over the draws, `[rungs, *batch]` and `[rungs - 1, *batch]`, `divergent`
    those of moves that lost their energy.
    """

    step: int
    state: State
    steps: DualAveraging
    scale: Tensor
    tilts: Tensor
    acceptance: Tensor
    swaps: Tensor
    divergent: Tensor


@dataclass(frozen=True)
class Rungs:
    """Markov chains at fixed temperatures that exchange points.

    All run at once, neighbours exchange their points, and the lowest rung is drawn exactly.

    Args:
        path: the path of densities.
        kernel: how chains move.
        plan: scales, and step sizes to begin with.
        beta: inverse temperatures, `[rungs, *batch]`.
        num_chains: independent sets of chains.
        num_warmup: moves that adapt step sizes, not kept.
        num_draws: moves kept.
    """

    path: Path
    kernel: Kernel
    plan: Plan
    beta: Tensor
    num_chains: int
    num_warmup: int
    num_draws: int

    def run(self, checkpoint: Checkpoint, name: str, start: Tensor) -> Ladders:
        """Run all chains from points `[chains * rungs, *batch, dim]`."""
        total = self.num_warmup + self.num_draws
        return checkpoint.loop(
            name, self._begin(start), self._advance, lambda ladders: ladders.step == total
        )

    def _begin(self, start: Tensor) -> Ladders:
        state = self.path.target.evaluate(start, self.kernel.uses_gradient)
        tilts = self.beta.new_zeros((self.num_draws, self.num_chains, *self.beta.shape))
        step_size, scale = (
            torch.stack(part) for part in zip(*map(self.plan.at, self.beta), strict=True)
        )
        zero = torch.zeros_like(self.beta)
        return Ladders(0, state, DualAveraging.start(step_size), scale, tilts, zero, zero[1:], zero)

    def _advance(self, ladders: Ladders) -> Ladders:
        warm = ladders.step >= self.num_warmup
        step_size = ladders.steps.final if warm else ladders.steps.step_size
        spend(ladders.state.base.numel(), lambda: self.kernel.cost(step_size))
        given = self.kernel, self.num_chains, ladders.state, self.beta, step_size, ladders.scale
        total = self.num_warmup + self.num_draws
        move = self.path.run(move_ladders, *given, step=ladders.step, last=total)
        acceptance = self._unfold(move.acceptance.double()).mean(0)
        diverged = self._unfold(is_divergent(move.log_ratio).double()).mean(0)
        state, swapped = self._swap(move.state, ladders.step % 2)
        state = self._refresh(state)
        if not warm:
            steps = ladders.steps.update(acceptance, self.kernel.target_acceptance)
            return ladders._replace(step=ladders.step + 1, state=state, steps=steps)
        ladders.tilts[ladders.step - self.num_warmup] = self._unfold(state.tilt.double())
        return ladders._replace(
            step=ladders.step + 1,
            state=state,
            acceptance=ladders.acceptance + acceptance,
            swaps=ladders.swaps + swapped,
            divergent=ladders.divergent + diverged,
        )

    def _refresh(self, state: State) -> State:
        """Draw the points of the lowest rung anew.

        These draws are exact. What the other rungs forget slowly comes in from there.
        """
        fresh = self.path.target.evaluate(
            self.path.draw(self.num_chains), self.kernel.uses_gradient
        )
        for part, new in zip(state, fresh, strict=True):
            if part is not None and new is not None:
                self._unfold(part)[:, 0] = new
        return state

    def _unfold(self, values: Tensor) -> Tensor:
        return values.unflatten(0, (self.num_chains, len(self.beta)))

    def _swap(self, state: State, parity: int) -> tuple[State, Tensor]:
        r"""Exchange points of neighbouring rungs at random.

        The probability is $\min(1, e^{(\beta_i - \beta_j)(t_j - t_i)})$. Even and odd pairs take
        turns.

        Geyer (1991), "Markov chain Monte Carlo maximum likelihood".
        """
        tilt = self._unfold(state.tilt.double())
        log_ratio = (self.beta[1:] - self.beta[:-1]) * (tilt[:, :-1] - tilt[:, 1:])
        chosen = torch.arange(len(self.beta) - 1, device=tilt.device) % 2 == parity
        chosen = chosen.reshape(-1, *(1,) * (tilt.dim() - 2))
        accepted = chosen & (
            torch.rand_like(log_ratio).log() < log_ratio.nan_to_num(nan=-torch.inf)
        )
        none = torch.zeros_like(accepted[:, :1])
        shift = torch.cat([accepted, none], 1).long() - torch.cat([none, accepted], 1).long()
        rung = torch.arange(len(shift) * shift.shape[1], device=tilt.device).reshape(
            *shift.shape[:2], *chosen.shape[1:]
        )
        return state.gather((rung + shift).flatten(0, 1)), accepted.double().mean(0)


def move_ladders(
    path: Path, kernel: Kernel, num_chains: int, state: State, *settings: Tensor
) -> Move:
    """Move the chains of all rungs once.

    Inverse temperatures and step sizes are `[rungs, *batch]`, scales `[rungs, *batch, dim]`.
    """
    return kernel.move(
        path.target, state, *(fold(part, num_chains, state.point.dtype) for part in settings)
    )
