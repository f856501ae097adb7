"""Convergence check of tempered estimates by more moves.

It tells whether the estimate still changes when the chains move more.
"""

from dataclasses import replace
from typing import Any, Protocol

import torch

from ppl_dgm.checked import checked
from ppl_dgm.evidence.result import Evidence
from ppl_dgm.program import Program

__all__ = ["check_moves"]


class Moving(Protocol):
    """Protocol of estimators whose number of moves can double.

    They are AIS, SMC, ThermodynamicIntegration and SteppingStone.
    """

    def with_twice_the_moves(self) -> "Moving":
        """The same with twice the moves."""
        ...

    def __call__(
        self, program: Program, *args: Any, seed: int | None = 0, **kwargs: Any
    ) -> Evidence:
        """Estimate the evidence."""
        ...


@checked
def check_moves(
    estimator: Moving, program: Program, *args: Any, seed: int = 0, **kwargs: Any
) -> Evidence:
    """Repeat an estimate with twice the moves and compare.

    Warns where the answer changes by more than the error bars allow.

    Groups or chains that agree with each other do not show that all of them move too little; a
    second estimate does. It costs three times the estimate.

    Args:
        estimator: AIS, SMC, ThermodynamicIntegration or SteppingStone.
        program: the program.
        *args: its data.
        seed: of the first run; the second takes the next one.
        **kwargs: further data.

    Returns:
        The estimate with twice the moves; `diagnostics["moved"]` is the change in standard errors
            of the difference,
        `[data]` or `[]`. The warning is given where the total changed by more than 3 of them, or
            more data than chance
        explains by more than 2.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> from ppl_dgm.evidence.smc import SMC
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> check_moves(SMC(num_particles=100), ppl_dgm.Program(model), torch.zeros(1)).reliable
        True
    """
    once = estimator(program, *args, seed=seed, **kwargs)
    twice = estimator.with_twice_the_moves()(program, *args, seed=seed + 1, **kwargs)
    error = torch.hypot(once.std_error, twice.std_error)
    total_error = float(torch.hypot(once.total_std_error, twice.total_std_error))
    moved = ((twice.log_z - once.log_z) / error.clamp_min(1e-12)).abs()
    change = abs(float(twice.total - once.total))
    total = change / max(total_error, 1e-12)
    count = moved.numel()
    many = (
        float((moved > 2).sum()) > 0.05 * count + 3 * (0.0475 * count) ** 0.5
    )  # of which one in twenty is chance
    found = twice.warnings
    if total > 3 or many:
        found += (
            (
                f"twice the moves moved the answer by {change:.3g} nats, {total:.3g} standard "
                "errors: it has not converged"
            ),
        )
    return replace(twice, diagnostics={**twice.diagnostics, "moved": moved}, warnings=found)
