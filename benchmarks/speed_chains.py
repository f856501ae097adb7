"""Chains of the speed table: Hamiltonian Monte Carlo with 64 chains at once.

`speed_numpyro.py` has them in NumPyro.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from speed_programs import Problem

from ppl_dgm import Program
from ppl_dgm.compile import Loop, Switch, compile_loop
from ppl_dgm.sampling.kernels import HMC, State, Target
from ppl_dgm.sampling.unconstrained import Unconstrained

CHAINS, LEAPFROG = 64, 10
STEP_SIZES = {"eight schools": 0.1, "logistic regression": 0.005}
KERNEL = HMC(num_leapfrog=LEAPFROG, trajectory=math.inf, jitter=0.0)


class Chains:
    """Chains at their posterior, moved one by one or many moves a call, as written or compiled."""

    def __init__(self, name: str, problem: Problem) -> None:
        space = Unconstrained(Program(problem.make()[0]).bind(*problem.data))
        self.target = Target(lambda point: only(space.raw_split(point).total))
        self.one, self.step_size = torch.ones(()), torch.tensor(STEP_SIZES[name])
        self.state = self.target.evaluate(0.1 * torch.randn(CHAINS, space.dim))

    def mover(self, compiled: bool) -> Callable[[], Any]:
        """A function that makes one move of all chains a call."""
        switch = Switch(compiled)

        def move() -> None:
            self.state = switch(
                KERNEL.move, self.target, self.state, self.one, self.step_size, self.one
            ).state

        return move

    def loop(self, length: int) -> Callable[[], Any]:
        """A function that makes `length` moves of all chains a call."""
        settings = self.step_size.repeat(length), self.one
        compiled: Loop = compile_loop(self._step, self.state, *settings)

        def run() -> None:
            self.state, _ = compiled(self.state, *settings)

        return run

    def _step(
        self, state: State, step_size: torch.Tensor, one: torch.Tensor
    ) -> tuple[State, torch.Tensor]:
        move = KERNEL.move(self.target, state, one, step_size, one)
        return move.state, move.acceptance.mean()


def only(log_density: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A density at one temperature, as NumPyro's potential: nothing is tempered."""
    return log_density, torch.zeros_like(log_density).detach()
