"""Modes of a posterior that an estimate has missed.

Chains and particles that all miss a mode agree with one another. What they miss shows where climbs
that start elsewhere find more than the estimate says there is in all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ppl_dgm.program import Bound, Program
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.chains import evaluate
from ppl_dgm.sampling.climbing import climb, distinct, find_modes, starts_at_once
from ppl_dgm.sampling.effort import OverBudgetError
from ppl_dgm.sampling.memory import MEMORY, some_of
from ppl_dgm.sampling.scouting import scouted_modes
from ppl_dgm.sampling.student_mixtures import StudentMixture, mode_mixture
from ppl_dgm.sampling.unconstrained import Unconstrained
from ppl_dgm.sampling.weight_summary import WeightSummary

__all__ = [
    "AROUND_MODES",
    "excess_alarm",
    "modes_alarm",
    "scouted_before",
    "sum_around_modes",
]

CLIMBS, MOST_DIMS = 40, 30  # steps, and dimensions at most
DRAWS = 1000  # around the modes
ERRORS = 4.0  # standard errors by which a sum is above chance
AROUND_MODES = 0.1  # nats by which a sum over draws is
OWN_DATA, OWN_NUMBERS = 256, 6000  # looked at where each datum has latents, and their numbers
OWN_STARTS = 16  # of each
SCOUTS = 512  # points at each level of the search for modes of a posterior
SEARCHED = 20_000  # observed numbers above which a posterior is not searched
SEEN = 3_000_000  # observed numbers at which all scouts are scored once
SCOUTED: ContextVar[Tensor | None] = ContextVar("scouted", default=None)
FOUND: WeakKeyDictionary[Program, tuple[tuple, Tensor]] = WeakKeyDictionary()


@contextmanager
def scouted_before(modes: Tensor | None) -> Iterator[None]:
    """Give the alarms inside what a search has found.

    They do not search themselves then.
    """
    token = SCOUTED.set(torch.empty(0) if modes is None else modes)
    try:
        yield
    finally:
        SCOUTED.reset(token)


def modes_alarm(
    program: Program, bound: Bound, log_z: Tensor, std_error: Tensor
) -> tuple[str, ...]:
    """Warn where modes of the posterior outweigh an estimate.

    Z is at least what importance sampling around a density's modes finds. They are searched for
    once for each program and data, in up to 30 dimensions and 20,000 observed numbers: where the
    data set has one evidence by `ppl_dgm.sampling.scouting`, where each datum has its own by climbs
    from draws of the prior, for up to 256 data with 6000 numbers, evenly spaced.

    Args:
        program: the program.
        bound: the same at its data.
        log_z: estimate or upper bound, nats, `[data]` or `[]`.
        std_error: of `log_z`, nats, same shape.
    """
    structure = bound.structure
    discrete = any(latent.discrete for latent in structure.model_latents)
    if discrete or structure.slow or not structure.model_latents:
        return ()
    each = bound.num_dims / (bound.num_data or 1)
    few, index = some_of(bound, min(OWN_DATA, max(1, int(OWN_NUMBERS / max(1.0, each)))))
    if each * (few.num_data or 1) > SEARCHED:
        return ()
    try:
        target = Unconstrained(few)
    except ValueError:  # a support without coordinates
        return ()
    known = None if target.batch else SCOUTED.get()  # searches before were of the data set
    try:
        found, error = sum_around_modes(
            target, lambda: modes_of(program, target) if known is None else known
        )
    except OverBudgetError:  # the estimate itself has kept to it
        return ()
    error = torch.hypot(error, std_error[index].double())
    return excess_alarm("modes", found - log_z[index], error, AROUND_MODES)


def modes_of(program: Program, target: Unconstrained) -> Tensor:
    """Search for modes `[found, *batch, dim]`, once for each data."""
    parts = (*program.parameters(), *program.buffers())
    key = (target.bound.digest, target.dim, *((id(part), part._version) for part in parts))
    known = FOUND.get(program)
    if known is None or known[0] != key:
        with seeded(0, target.bound.device):
            known = FOUND[program] = key, search(target)
    return known[1]


def search(target: Unconstrained) -> Tensor:
    """Climb to modes, from scouts or from the prior."""
    if target.batch:
        at_once = starts_at_once(target, MEMORY)
        return climb(target.log_joint, target.sample_prior(OWN_STARTS), CLIMBS, at_once)
    num_scouts = min(SCOUTS, SEEN // max(1, target.bound.num_dims))
    return scouted_modes(target, num_scouts, MEMORY)


def excess_alarm(what: str, excess: Tensor, error: Tensor, limit: float) -> tuple[str, ...]:
    """Warn of an excess in nats beyond chance.

    It is `[data]` or `[]`.
    """
    beyond = excess > limit + ERRORS * error
    if not bool(beyond.any()):
        return ()
    where = f" for {int(beyond.sum())} of {beyond.numel()} data looked at" if beyond.dim() else ""
    warning = (
        f"some {what} alone outweigh the estimate, by {float(excess[beyond].max()):.3g} nats"
        f"{where}: it misses a mode of the density; begin where all modes are reached (a wider "
        "base measure, prior or guide), or use more temperatures, chains or particles"
    )
    return (warning,)


def sum_around_modes(target: Unconstrained, starts: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Integrate a density around the modes that starts climb to.

    Returns the log of an unbiased estimate of what lies there, and its standard error, `[*batch]`;
    -inf where nothing is found.
    """
    nothing = torch.tensor(-torch.inf, device=target.device), torch.zeros((), device=target.device)
    try:
        mixture = mixture_from(target, starts()) if target.dim <= MOST_DIMS else None
        if mixture is None:
            return nothing
        draws = mixture.sample(DRAWS)
        log_joint = evaluate(target.log_joint, draws.to(target.dtype))
    except OverBudgetError:
        raise
    except Exception:  # whatever a density raises far out, or without derivatives
        return nothing
    summary = WeightSummary(DRAWS)
    summary.add((log_joint - mixture.log_prob(draws)).nan_to_num(nan=-torch.inf))
    return summary.log_mean_exp, summary.std_error


def mixture_from(target: Unconstrained, starts: Tensor) -> StudentMixture | None:
    """Build the mixture around the modes of starts.

    Starts are `[starts, *batch, dim]`.
    """
    if not len(starts):
        return None
    modes = find_modes(target, starts, CLIMBS, starts_at_once(target, MEMORY))
    new = distinct(modes)
    return mode_mixture(modes, new) if bool(new.any()) else None
