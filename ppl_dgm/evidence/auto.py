"""auto: picks estimators by what the program allows, spends a stated budget, cross-checks, and says what it did."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.evidence.agreement import Attempts, check_part, telling, warned
from ppl_dgm.evidence.annealed import AIS
from ppl_dgm.evidence.base import Estimator, Evidence, check_evidence, evaluating
from ppl_dgm.evidence.bridge import BridgeSampling
from ppl_dgm.evidence.exact import Exact
from ppl_dgm.evidence.grid import GridSampling
from ppl_dgm.evidence.importance import ImportanceSampling, PriorSampling
from ppl_dgm.evidence.laplace import Laplace
from ppl_dgm.evidence.smc import SMC
from ppl_dgm.evidence.widened import WideSampling, has_counts
from ppl_dgm.program import Bound, Program
from ppl_dgm.sampling.memory import MEMORY

BUDGET = 2_000_000
SMC_COST = 1500  # densities for each particle: about 25 temperatures, 2 moves, 10 leapfrog steps, a gradient counted as 3
SMC_GROUPS = 4
BRIDGE_COST = 4000  # densities for each chain
PARTITION_CHAINS = 100
PRECISE = 0.05  # nats of standard error above which the third kind is run too
NUM_STARTS = 48
UNCHECKED = "nothing was cross-checked: one kind of estimator alone has given a number"


def auto(
    program: Program,
    *args: Any,
    seed: int | None = 0,
    budget: int = BUDGET,
    memory: int = MEMORY,
    **kwargs: Any,
) -> Evidence:
    """Estimate the evidence of any program, by two independent kinds of estimator that must agree.

    Exact where the program allows. Else

    - continuous latents, one evidence for the data set: importance sampling (from the guide, or around the modes where
      there is none) and bridge sampling from Markov chains; sequential Monte Carlo from the prior too where they disagree,
      raise an alarm or leave an error above 0.05 nat;
    - continuous latents of each datum: importance sampling for all data, checked by sequential Monte Carlo on as many
      data as the budget allows; where that is all of them, the better is returned;
    - an unnormalised density of the data: annealed importance sampling and sequential Monte Carlo of the partition
      function, from the base measure;
    - discrete latents that cannot be summed out: importance sampling from the guide, from the prior, and from a wider
      proposal (counts) or all values (finite ones).

    The most precise estimate without alarm that another one agrees with is returned; agreement counts only from estimates
    that have no alarm and are precise to half a nat. `estimator` says what was done, `diagnostics["estimates"]` has
    every number, and a disagreement, or that nothing was cross-checked, is a warning. An estimator that raises ends
    nothing: `diagnostics["failed"]` has its error.

    Args:
        program: the program.
        *args: its data.
        seed: makes the result repeatable.
        budget: evaluations of the joint density, over all data and estimators; a gradient counts as three. It is kept
            roughly, and each estimator has a minimum that it needs.
        memory: bytes that one chunk of work may allocate.
        **kwargs: further data.

    Raises:
        ValueError: if the program does not fit its data, the budget is less than 1000, or every estimator raises.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     pyro.sample("x", dist.Binomial(10, p), obs=x)
        >>> result = auto(ppl_dgm.Program(model), torch.tensor(2.0), budget=300_000)
        >>> bool((result.log_z.exp() - 1 / 11).abs() < 0.01), result.estimator
        (True, 'auto: Laplace agrees with BridgeSampling')
    """
    if budget < 1000:
        raise ValueError(f"budget is {budget} evaluations; expected at least 1000")
    start = time.perf_counter()
    with evaluating(program), torch.no_grad():
        bound = program.bind(*args, **kwargs)
        check_evidence(bound)
    found = exact(program, args, kwargs) or cross_checked(program, bound, seed, budget, memory)
    return replace(found, estimator=f"auto: {found.estimator}", seconds=time.perf_counter() - start)


def exact(program: Program, args: tuple, kwargs: dict[str, Any]) -> Evidence | None:
    """Exact evidence, or None where there is no closed form (or too many values to sum over)."""
    try:
        return Exact()(program, *args, **kwargs)
    except (ValueError, RuntimeError):
        return None


def cross_checked(
    program: Program, bound: Bound, seed: int | None, budget: int, memory: int
) -> Evidence:
    """The first kind of estimator on all data, the others on as many as the budget allows, and their verdict."""
    if bound.structure.energies:
        return unnormalised(program, bound, seed, budget, memory)
    attempts = Attempts()

    def attempt(estimator: Estimator, args: tuple, kwargs: Mapping[str, Any]) -> Evidence | None:
        return attempts.add(estimator.name, lambda: estimator(program, *args, seed=seed, **kwargs))

    first, *others = kinds(bound, budget, memory)
    data = checked_data(bound, others[-1], budget) if others else None
    main = attempt(first, bound.args, bound.kwargs)
    if data is not None and main is not None:
        check = attempt(others[-1], *bound.select(data))
        verdict = warned(main, UNCHECKED) if check is None else check_part(main, check, data)
        return telling(verdict, attempts.failed)
    for estimator in others:
        if not settled(attempts):
            attempt(estimator, bound.args, bound.kwargs)
    return attempts.verdict()


def settled(attempts: Attempts) -> bool:
    """Whether the estimates agree without alarm and are precise enough."""
    if len(attempts.found) < 2:
        return False
    verdict = attempts.verdict()
    return verdict.reliable and float(verdict.total_std_error) <= PRECISE


def unnormalised(
    program: Program, bound: Bound, seed: int | None, budget: int, memory: int
) -> Evidence:
    """The verdict of two kinds of estimator of a partition function, from the base measure."""
    temperatures = max(200, min(budget // (8 * PARTITION_CHAINS), 10_000))
    ais = AIS(num_temperatures=temperatures, num_chains=PARTITION_CHAINS, memory=memory)
    smc = SMC(num_particles=PARTITION_CHAINS, num_groups=8, memory=memory)
    attempts = Attempts()
    for estimator in (ais, smc):
        run = partial(estimator, program, *bound.args, seed=seed, **bound.kwargs)
        attempts.add(estimator.name, run)
    return attempts.verdict()


def kinds(bound: Bound, budget: int, memory: int) -> list[Estimator]:
    """Independent kinds of estimator, run one after the other until two agree."""
    structure, num_data = bound.structure, (bound.num_data or 1) if bound.structure.per_datum else 1
    share = budget // (4 * num_data)
    particles = max(200, min(share, 100_000))
    if any(latent.discrete for latent in structure.model_latents):
        return discrete_kinds(bound, particles, memory)
    smc = SMC(
        num_particles=max(32, min(2 * share // (SMC_COST * SMC_GROUPS), 1000)),
        num_groups=SMC_GROUPS,
        memory=memory,
    )
    guided = ImportanceSampling(particles, memory)
    if structure.per_datum:
        return [guided if structure.has_guide else Laplace(memory=memory), smc]
    first = guided if structure.has_guide else Laplace(NUM_STARTS, num_particles=particles)
    chains = max(16, min(share // BRIDGE_COST, 64))
    return [first, BridgeSampling(num_chains=chains, memory=memory), smc]


def discrete_kinds(bound: Bound, particles: int, memory: int) -> list[Estimator]:
    """Kinds for discrete latents that cannot be summed out: draws of the guide and the prior, and of all values.

    Without a guide, importance sampling is prior sampling: it is no second kind.
    """
    found: list[Estimator] = [PriorSampling(2 * particles, memory)]
    if bound.structure.has_guide:
        found.insert(0, ImportanceSampling(particles, memory))
    if has_counts(bound):
        found.append(WideSampling(2 * particles, memory))
    elif all(latent.discrete for latent in bound.structure.model_latents):
        found.append(GridSampling(particles, memory))
    return found


def checked_data(bound: Bound, check: Estimator, budget: int) -> Tensor | None:
    """Indices of the data that the second estimator runs on, evenly spaced; None for all of them."""
    num_data = bound.num_data or 1
    if not (bound.structure.per_datum and bound.structure.divisible and isinstance(check, SMC)):
        return None
    affordable = max(4, budget // (2 * check.num_particles * check.num_groups * SMC_COST))
    if affordable >= num_data:
        return None
    return torch.linspace(0, num_data - 1, affordable, device=bound.device).round().long()
