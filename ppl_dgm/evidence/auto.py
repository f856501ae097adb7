"""Automatic choice of evidence estimators, with a cross-check.

`auto` picks estimators by what the program allows, spends a stated budget, cross-checks the result,
and says what it did.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.data import Stream
from ppl_dgm.evidence.agreement import Attempts, check_part, telling, warned
from ppl_dgm.evidence.annealed import AIS
from ppl_dgm.evidence.base import Estimator, check_evidence
from ppl_dgm.evidence.exact import Exact
from ppl_dgm.evidence.importance import ImportanceSampling, PriorSampling
from ppl_dgm.evidence.kinds import (
    MOST_BUDGETS,
    Allowance,
    affordable,
    checked_data,
    enlarged,
    kinds,
    next_kind,
    quick_check,
    scout,
    starting_from,
    typical_error,
)
from ppl_dgm.evidence.laplace import Laplace
from ppl_dgm.evidence.many_data import checked_on_few
from ppl_dgm.evidence.moving import failing_data, joined_evidence
from ppl_dgm.evidence.result import Evidence
from ppl_dgm.evidence.sharing import over_ranks
from ppl_dgm.evidence.smc import SMC
from ppl_dgm.evidence.streaming import over_stream, read_once
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.isolation import evaluating
from ppl_dgm.sampling.effort import limited_effort
from ppl_dgm.sampling.memory import MEMORY
from ppl_dgm.sampling.missed_modes import scouted_before
from ppl_dgm.sampling.reach import missed_mode_alarm
from ppl_dgm.watching import watched

__all__ = ["auto"]

BUDGET = 2_000_000
PARTITION_CHAINS = 100
TARGET = 0.02  # nats of standard error
PILOT = 4000  # draws that tell how many are needed
MARGIN = 1.3  # of draws over those that the pilot finds needed
UNCHECKED = "nothing was cross-checked: one kind of estimator alone has given a number"


@checked
def auto(
    program: Program,
    *args: Any,
    seed: int | None = 0,
    target: float = TARGET,
    budget: int = BUDGET,
    memory: int = MEMORY,
    progress: bool = True,
    **kwargs: Any,
) -> Evidence:
    """Estimate the evidence of any program, with a cross-check.

    Two independent kinds of estimator must agree.

    Exact where the program allows. Else

    - continuous latents, one evidence for the data set: points that climb through levels of
      likelihood look for narrow peaks (`ppl_dgm.sampling.scouting`, up to 30 dimensions; a peak
      whose basin is less than about 1 / n of the prior at all levels, for n about 800 points in
      each dimension, is missed without a word); a pilot of draws from the guide or the prior tells
      whether they reach these and the target, and then sequential Monte Carlo checks them;
      elsewhere importance sampling around the modes, adaptive importance sampling from mixtures, in
      up to fifty dimensions from a flow, sequential Monte Carlo, bridge sampling from Markov
      chains, and in up to ten dimensions nested sampling, one after the other until two agree and
      the better one reaches the target;
    - the same of 20,000 observed numbers that few rows cannot stand for, as in a regression:
      importance sampling around the modes, checked by two other kinds on 1000 of the data drawn at
      random, where parts of the data may stand alone; where these disagree, all of the above;
    - continuous latents of each datum: importance sampling for all data, those that it fails on
      (or all, where an alarm does not tell which fail) moved on to importance sampling around their
      modes (`diagnostics["moved"]`), checked by
      sequential Monte Carlo on as many data as the budget allows; where that is all of them, the
      better is returned;
    - an unnormalised density of the data: annealed importance sampling and sequential Monte Carlo
      of the partition function, from the base measure, or where no chains move (classes, counts)
      draws of that, which nothing checks;
    - discrete latents that cannot be summed out: importance sampling from the guide, from the
      prior, and from a wider proposal (counts) or all values (finite ones).

    The most precise estimate without alarm that another one agrees with is returned; agreement
    counts only from estimates that have no alarm and are precise to 0.1 nat (where each datum has
    its own, to half a nat). `estimator` says what was done, `diagnostics["estimates"]` has every
    number, and a disagreement, or that nothing was cross-checked, is a warning. An estimator that
    raises ends nothing: `diagnostics["failed"]` has its error.

    Args:
        program: the program.
        *args: its data.
        seed: makes the result repeatable.
        target: standard error at which to stop, in nats: of log Z, or where each datum has one, of
            these in root mean square.
        budget: evaluations of the joint density of up to 1000 observed numbers, over all data
            (or the few rows that stand for many: equal ones, those of one normal distribution); a
            gradient counts as three. For a data set all estimators keep to it together once two
            agree, and to twice of it before (one that does not is stopped, and told in
            `diagnostics["failed"]`); where each datum has its own evidence it limits the check.
            `diagnostics["densities"]` is how many there were.
        memory: bytes that one chunk of work may allocate.
        progress: show a bar of which estimator is running and the densities evaluated, where it
            takes over two seconds.
        **kwargs: further data.

    Raises:
        ValueError: if the program does not fit its data, the budget is less than 1000, the target
            is not positive, or every estimator raises.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     pyro.sample("x", dist.Binomial(10, p), obs=x)
        >>> result = auto(ppl_dgm.Program(model), torch.tensor(2.0), budget=300_000)
        >>> bool((result.log_z.exp() - 1 / 11).abs() < 0.01), result.estimator
        (True, 'auto: PriorSampling agrees with SMC')
    """
    if budget < 1000:
        raise ValueError(f"budget is {budget} evaluations; expected at least 1000")
    if not target > 0:
        raise ValueError(f"target is {target}; expected a positive number of nats, e.g. 0.01")
    given = {"target": target, "budget": budget, "memory": memory}
    with watched("auto", progress):
        data = read_once(args, kwargs)
        if isinstance(data, Stream):
            return over_stream(program, data, partial(auto, program, **given), seed)
    args, kwargs = data
    start = time.perf_counter()
    settings, run = Allowance(target, budget, memory), partial(settle, program)
    bound = bind(program, args, kwargs)
    with watched("auto", progress):
        found = over_ranks(bound, seed, settings, run) or run(settings, args, kwargs, seed, bound)
    return replace(found, estimator=f"auto: {found.estimator}", seconds=time.perf_counter() - start)


def bind(program: Program, args: tuple, kwargs: Mapping[str, Any]) -> Bound:
    """Bind a program to data, checked to have an evidence."""
    with evaluating(program), torch.no_grad():
        bound = program.bind(*args, **kwargs)
        check_evidence(bound)
    return bound


def settle(
    program: Program,
    settings: Allowance,
    args: tuple,
    kwargs: dict[str, Any],
    seed: int | None,
    bound: Bound | None = None,
) -> Evidence:
    """Find the evidence, exact where the program allows."""
    return exact(program, args, kwargs) or cross_checked(
        program, bound or bind(program, args, kwargs), seed, settings
    )


def exact(program: Program, args: tuple, kwargs: dict[str, Any]) -> Evidence | None:
    """Compute the exact evidence, if there is a closed form.

    Returns None where there is none, or too many values to sum over.
    """
    try:
        return Exact()(program, *args, **kwargs)
    except (ValueError, RuntimeError):
        return None


def cross_checked(
    program: Program, bound: Bound, seed: int | None, settings: Allowance
) -> Evidence:
    """Run several kinds of estimator and compare their results.

    They run one after the other, on as many data as the budget allows; their verdict is returned.
    """
    if bound.structure.energies:
        return unnormalised(program, bound, seed, settings.budget, settings.memory)
    settings = settings.at(program, bound)
    limit = math.inf if bound.structure.per_datum else settings.densities(bound)
    course = Course(program, bound, seed, settings, Attempts(budget=limit))
    estimators = kinds(bound, settings)
    return (
        checked_on_few(program, bound, seed, settings)
        or course.part_checked(estimators)
        or course.agreed(estimators)
    )


@dataclass(frozen=True)
class Course:
    """Run estimators of one program in turn."""

    program: Program
    bound: Bound
    seed: int | None
    settings: Allowance
    attempts: Attempts

    def attempt(self, estimator: Estimator, data: Tensor | None = None) -> Evidence | None:
        """Run an estimator on all or some data."""
        args, kwargs = self.bound.args, self.bound.kwargs
        if data is not None:
            args, kwargs = self.bound.select(data)
        return self.attempts.add(
            estimator.name, lambda: estimator(self.program, *args, seed=self.seed, **kwargs)
        )

    def moving(self, first: Estimator) -> Evidence | None:
        """Run the first estimator, failing data moved on."""
        bound = self.bound

        def run() -> Evidence:
            found = first(self.program, *bound.args, seed=self.seed, **bound.kwargs)
            return self.moved_on(found, first)

        return self.attempts.add(first.name, run)

    def moved_on(self, main: Evidence, first: Estimator) -> Evidence:
        """Move failing data on to the next kind of estimator.

        All are moved where an alarm does not tell which fail, as of modes that a guide misses.
        """
        if main.reliable or not main.log_z.dim():
            return main
        joined = self.failing_moved(main, first)
        if joined.reliable or isinstance(first, Laplace):
            return joined
        second = next_kind(first, len(main.log_z), self.settings)
        whole = second and replace(self, attempts=Attempts()).attempt(second)
        if not (whole and whole.reliable):
            return joined
        everything = torch.arange(len(whole.log_z), device=whole.log_z.device)
        return replace(whole, diagnostics={**whole.diagnostics, "moved": everything})

    def failing_moved(self, main: Evidence, first: Estimator) -> Evidence:
        """Move the data that diagnostics tell to fail."""
        places = failing_data(main)
        if places is None or not self.bound.structure.divisible:
            return main
        second = next_kind(first, len(places[1]), self.settings)
        if second is None:
            return main
        parts = replace(self, attempts=Attempts())
        for estimator, index in zip((first, second), places, strict=True):
            if len(index):
                parts.attempt(estimator, index)
        if parts.attempts.failed:
            return telling(main, parts.attempts.failed)
        found = parts.attempts.found
        return joined_evidence(main, found[0], found[-1], places)

    def part_checked(self, estimators: list[Estimator]) -> Evidence | None:
        """Check the first estimator on a part.

        Returns None where all data are few enough for both, or the first has raised.
        """
        first, *others = estimators
        data = checked_data(self.bound, others[-1], self.settings.budget) if others else None
        if data is None:
            return None
        main, check = self.moving(first), self.attempt(others[-1], data)
        if main is None:
            return None
        verdict = warned(main, UNCHECKED) if check is None else check_part(main, check, data)
        return telling(verdict, self.attempts.failed)

    def agreed(self, estimators: list[Estimator]) -> Evidence:
        """The verdict of estimators, run until two agree."""
        attempts, settings = self.attempts, self.settings
        with limited_effort(attempts.left) as effort:
            modes = scout(self.program, self.bound, self.seed, settings)
            with scouted_before(modes):
                sized = pilot(self.program, self.bound, self.seed, settings, modes)
        attempts.spent += effort.spent
        first, *others = estimators if modes is None else starting_from(estimators, modes)
        with scouted_before(modes):
            if sized is not None:
                attempts.found.append(sized)
                self.attempt(quick_check(settings))
            for estimator in (first, *others):
                if settled(attempts, settings.target) or attempts.allowed <= 0:
                    break
                estimator = affordable(estimator, attempts.allowed)
                found = self.moving(first) if estimator is first else self.attempt(estimator)
                self.enlarge(estimator, found)
        return attempts.verdict()

    def enlarge(self, estimator: Estimator, found: Evidence | None) -> None:
        """Let more particles take the place of a vague estimate."""
        attempts = self.attempts
        most = min(attempts.left, MOST_BUDGETS * self.settings.densities(self.bound))
        more = enlarged(estimator, found, most / max(1.0, attempts.last))
        if more is None or settled(attempts, self.settings.target):
            return
        vague = len(attempts.found) - 1
        if self.attempt(more) is not None:
            del attempts.found[vague]


def settled(attempts: Attempts, target: float) -> bool:
    """Whether the estimates agree without alarm and are precise enough."""
    if len(attempts.found) < 2:
        return False
    verdict = attempts.verdict()
    return verdict.reliable and typical_error(verdict) <= target


def pilot(
    program: Program,
    bound: Bound,
    seed: int | None,
    settings: Allowance,
    modes: Tensor | None = None,
) -> Evidence | None:
    """Estimate the evidence from draws of guide or prior.

    The prior is used where there is no guide, with as many draws as the target needs. Returns None
    if these are too many, or miss some of the modes.
    """
    discrete = any(latent.discrete for latent in bound.structure.model_latents)
    if bound.structure.per_datum or discrete:
        return None
    most = max(200, settings.share(bound))
    size, kind = (
        min(PILOT, most),
        ImportanceSampling if bound.structure.has_guide else PriorSampling,
    )
    for _ in range(2):
        estimator = kind(size, settings.memory)
        try:
            found = estimator(program, *bound.args, seed=seed, **bound.kwargs)
        except Exception:  # a proposal that cannot be drawn from is none
            return None
        error = typical_error(found)
        if error <= settings.target:
            break
        spread = float(1 / found.diagnostics["ess"] - 1 / size)  # the error's square, but for skew
        needed = MARGIN * size * spread / settings.target**2
        if not needed < most:  # nor where the estimate is withheld
            return None
        size = int(needed)
    return found if found.reliable and not misses(program, bound, found, estimator, modes) else None


def misses(
    program: Program, bound: Bound, found: Evidence, pilot: ImportanceSampling, modes: Tensor | None
) -> bool:
    """Whether modes lie far from all draws."""
    if modes is None:
        return False
    numbers = found.log_z, found.std_error, pilot.proposal, pilot.num_particles
    with evaluating(program):
        return bool(missed_mode_alarm(bound.in_double(), *numbers, modes))


def unnormalised(
    program: Program, bound: Bound, seed: int | None, budget: int, memory: int
) -> Evidence:
    """Estimate the evidence of an unnormalised program.

    Two kinds of estimator, AIS and SMC, find the partition function from the base measure; their
    verdict is returned. Where no chains move (classes, counts) draws of the base measure do.
    """
    temperatures = max(200, min(budget // (8 * PARTITION_CHAINS), 10_000))
    ais = AIS(num_temperatures=temperatures, num_chains=PARTITION_CHAINS, memory=memory)
    smc = SMC(num_particles=PARTITION_CHAINS, num_groups=8, memory=memory)
    attempts = Attempts()
    for estimator in (ais, smc):
        run = partial(estimator, program, *bound.args, seed=seed, **bound.kwargs)
        attempts.add(estimator.name, run)
    if not attempts.found:
        draws = PriorSampling(min(budget // 8, 100_000), memory)
        run = partial(draws, program, *bound.args, seed=seed, **bound.kwargs)
        attempts.add(draws.name, run)
    return attempts.verdict()
