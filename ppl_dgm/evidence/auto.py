"""auto: picks estimators by what the program allows, spends a stated budget, cross-checks, and says what it did."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.evidence.annealed import AIS
from ppl_dgm.evidence.base import Estimator, Evidence, check_evidence, evaluating
from ppl_dgm.evidence.bridge import BridgeSampling
from ppl_dgm.evidence.exact import Exact
from ppl_dgm.evidence.importance import ImportanceSampling, PriorSampling
from ppl_dgm.evidence.laplace import Laplace
from ppl_dgm.evidence.smc import SMC
from ppl_dgm.program import Bound, Program
from ppl_dgm.sampling.memory import MEMORY

BUDGET = 2_000_000
SMC_COST = 1500  # densities for each particle: about 25 temperatures, 2 moves, 10 leapfrog steps, a gradient counted as 3
SMC_GROUPS = 4
BRIDGE_COST = 4000  # densities for each chain
PARTITION_CHAINS = 100
AGREE = 3.0  # standard errors between two estimates that agree
PRECISE = 0.05  # nats of standard error above which the third kind is run too
NUM_STARTS = 48
TOLERANCE = 0.005  # nats that are no disagreement


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
    - discrete latents that cannot be summed out: importance sampling from the guide and from the prior.

    The most precise estimate without alarm is returned. `estimator` says what was done, `diagnostics["estimates"]` has
    every number, and a disagreement is a warning.

    Args:
        program: the program.
        *args: its data.
        seed: makes the result repeatable.
        budget: evaluations of the joint density, over all data and estimators; a gradient counts as three. It is kept
            roughly, and each estimator has a minimum that it needs.
        memory: bytes that one chunk of work may allocate.
        **kwargs: further data.

    Raises:
        ValueError: if the program does not fit its data, or the budget is less than 1000.

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
    """The first kind of estimator on all data, the second on as many as the budget allows, and their verdict."""
    if bound.structure.energies:
        return unnormalised(program, bound, seed, budget, memory)
    first, second, third = kinds(bound, budget, memory)
    data = checked_data(bound, second, budget)
    main = first(program, *bound.args, seed=seed, **bound.kwargs)
    if data is None:
        check = second(program, *bound.args, seed=seed, **bound.kwargs)
        verdict = choose([main, check])
        if third is not None and (not verdict.reliable or float(verdict.total_std_error) > PRECISE):
            verdict = choose([main, check, third(program, *bound.args, seed=seed, **bound.kwargs)])
        return verdict
    args, kwargs = bound.select(data)
    return check_part(main, second(program, *args, seed=seed, **kwargs), data)


def unnormalised(
    program: Program, bound: Bound, seed: int | None, budget: int, memory: int
) -> Evidence:
    """The verdict of two kinds of estimator of a partition function, from the base measure."""
    temperatures = max(200, min(budget // (8 * PARTITION_CHAINS), 10_000))
    ais = AIS(num_temperatures=temperatures, num_chains=PARTITION_CHAINS, memory=memory)
    smc = SMC(num_particles=PARTITION_CHAINS, num_groups=8, memory=memory)
    return choose(
        [estimator(program, *bound.args, seed=seed, **bound.kwargs) for estimator in (ais, smc)]
    )


def kinds(bound: Bound, budget: int, memory: int) -> tuple[Estimator, Estimator, Estimator | None]:
    """Two independent kinds of estimator, and a third where those disagree."""
    structure, num_data = bound.structure, (bound.num_data or 1) if bound.structure.per_datum else 1
    share = budget // (4 * num_data)
    particles = max(200, min(share, 100_000))
    if any(latent.discrete for latent in structure.model_latents):
        return ImportanceSampling(particles, memory), PriorSampling(2 * particles, memory), None
    smc = SMC(
        num_particles=max(32, min(2 * share // (SMC_COST * SMC_GROUPS), 1000)),
        num_groups=SMC_GROUPS,
        memory=memory,
    )
    if structure.per_datum:
        return (
            (
                ImportanceSampling(particles, memory)
                if structure.has_guide
                else Laplace(memory=memory)
            ),
            smc,
            None,
        )
    first = (
        ImportanceSampling(particles, memory)
        if structure.has_guide
        else Laplace(NUM_STARTS, num_particles=particles)
    )
    return (
        first,
        BridgeSampling(num_chains=max(16, min(share // BRIDGE_COST, 64)), memory=memory),
        smc,
    )


def checked_data(bound: Bound, check: Estimator, budget: int) -> Tensor | None:
    """Indices of the data that the second estimator runs on, evenly spaced; None for all of them."""
    num_data = bound.num_data or 1
    if not (bound.structure.per_datum and bound.structure.divisible and isinstance(check, SMC)):
        return None
    affordable = max(4, budget // (2 * check.num_particles * check.num_groups * SMC_COST))
    if affordable >= num_data:
        return None
    return torch.linspace(0, num_data - 1, affordable, device=bound.device).round().long()


@dataclass(frozen=True)
class Agreement:
    """Difference of two estimates, summed over data, and its standard error, in nats; whether it is within bounds."""

    difference: float
    std_error: float
    agrees: bool


def compare_two(first: Evidence, second: Evidence) -> Agreement:
    """Whether two estimates of the same data agree, in total and in nearly every datum."""
    difference = (first.log_z - second.log_z).nan_to_num(torch.inf)
    error = torch.hypot(first.std_error, second.std_error).nan_to_num(0.0)
    total_error = float(torch.hypot(first.total_std_error, second.total_std_error).nan_to_num(0.0))
    total = float(difference.sum())
    slack = TOLERANCE * difference.numel()
    apart = (difference.abs() > 5 * error + TOLERANCE).double().mean()
    return Agreement(
        total, total_error, abs(total) <= AGREE * total_error + slack and float(apart) <= 0.05
    )


def choose(found: Sequence[Evidence]) -> Evidence:
    """The most precise estimate without alarm that another one agrees with, telling which."""
    ranked = sorted(
        found, key=lambda e: (not e.reliable, bool(e.log_z.isnan().any()), float(e.total_std_error))
    )
    for estimate in ranked:
        partners = [e for e in found if e is not estimate and compare_two(estimate, e).agrees]
        partners = [e for e in partners if bool(torch.isfinite(e.log_z).all())]
        if partners and bool(torch.isfinite(estimate.log_z).all()):
            names = " and ".join(partner.estimator for partner in partners)
            return described(estimate, found, f"{estimate.estimator} agrees with {names}")
    others = ", ".join(
        f"{e.estimator} {float(e.total):.3f} +- {float(e.total_std_error):.2g}" for e in found
    )
    best = described(ranked[0], found, f"{ranked[0].estimator}, cross-check failed")
    return replace(best, warnings=(*best.warnings, f"the estimators disagree: {others} nats"))


def described(estimate: Evidence, found: Sequence[Evidence], text: str) -> Evidence:
    """The estimate with all the numbers and the text of what was done."""
    numbers = {e.estimator: e.log_z for e in found}
    errors = {e.estimator: e.std_error for e in found}
    diagnostics = {**estimate.diagnostics, "estimates": numbers, "std_errors": errors}
    return replace(estimate, estimator=text, diagnostics=diagnostics)


def check_part(main: Evidence, check: Evidence, data: Tensor) -> Evidence:
    """The estimate of all data, with what the other kind says of some of them."""
    part = replace(main, log_z=main.log_z[data], std_error=main.std_error[data])
    verdict = compare_two(part, check)
    diagnostics = {**main.diagnostics, "checked": data, "estimates": {check.estimator: check.log_z}}
    text = f"{main.estimator}, {len(data)} data checked by {check.estimator}"
    found = replace(
        main,
        estimator=text,
        diagnostics={**diagnostics, "std_errors": {check.estimator: check.std_error}},
    )
    if verdict.agrees:
        return found
    warning = (
        f"on {len(data)} data {check.estimator} gives {-verdict.difference / len(data):+.3g} +- "
        f"{verdict.std_error / len(data):.2g} nats per datum more; use {check.estimator} for all data"
    )
    return replace(found, warnings=(*found.warnings, warning))
