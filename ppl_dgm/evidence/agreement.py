"""Agreement of several estimates of one evidence.

It decides which estimate to return, and what speaks against it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ppl_dgm.evidence.result import Evidence
from ppl_dgm.sampling.effort import limited_effort

__all__ = [
    "DECISIVE",
    "Attempts",
    "check_part",
    "compare_two",
    "is_decisive",
    "telling",
    "warned",
]

AGREE = 3.0  # standard errors between two estimates that agree
TOLERANCE = 0.005  # nats that are no disagreement
FAR, FAR_ERRORS = 0.1, 5.0  # nats and standard errors by which an estimate is far above another
# nats of standard error, of a data set or of each datum, above which agreement tells nothing
DECISIVE = {"dataset": 0.1, "datum": 0.5}


@dataclass
class Attempts:
    """What several estimators gave, and why others gave nothing.

    One that raises is told of in the verdict and ends nothing; only where all raise there is no
    number. `budget` is how many densities they may evaluate together, `spent` and `last` how many
    all of them and the last one have.
    """

    found: list[Evidence] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    error: Exception | None = None
    budget: float = math.inf
    spent: float = 0.0
    last: float = 0.0

    @property
    def left(self) -> float:
        """Densities that are left of the budget."""
        return self.budget - self.spent

    @property
    def allowed(self) -> float:
        """Densities that the next estimator may evaluate.

        It may spend the whole budget alone as long as none has given a number, and all together
        spend twice as much as long as no two agree without alarm.
        """
        if not self.found:
            return self.budget
        agreed = len(self.found) > 1 and self.verdict().reliable
        return self.left if agreed else self.left + self.budget

    def add(self, name: str, run: Callable[[], Evidence]) -> Evidence | None:
        """Run an estimator and record its result or error."""
        with limited_effort(self.allowed) as effort:
            evidence = self._try(name, run)
        self.last = effort.spent
        self.spent += effort.spent
        return evidence

    def _try(self, name: str, run: Callable[[], Evidence]) -> Evidence | None:
        try:
            self.found.append(run())
        except Exception as error:  # whatever the user's program or a solver raises
            self.failed[name] = f"{type(error).__name__}: {error}"
            self.error = self.error or error
            return None
        return self.found[-1]

    def verdict(self) -> Evidence:
        """Return the most precise estimate confirmed by another.

        It is without alarm, and its name tells which other estimate agrees. If none is confirmed,
        the best one has a warning.

        Raises:
            ValueError: if all estimators have raised.
        """
        if not self.found:
            reasons = "; ".join(f"{name} {text}" for name, text in self.failed.items())
            raise ValueError(f"no estimator gives the evidence: {reasons}") from self.error
        found = telling(choose(self.found), self.failed)
        return replace(found, diagnostics={**found.diagnostics, "densities": self.spent})


def telling(evidence: Evidence, failed: Mapping[str, str]) -> Evidence:
    """Add failed estimators to the evidence's name and diagnostics."""
    if not failed:
        return evidence
    return replace(
        evidence,
        estimator=f"{evidence.estimator}; {' and '.join(failed)} failed",
        diagnostics={**evidence.diagnostics, "failed": dict(failed)},
    )


@dataclass(frozen=True)
class Agreement:
    """Difference of two estimates and whether they agree.

    The difference is summed over data and has a standard error, both in nats. `agrees` tells
    whether it is within bounds.
    """

    difference: float
    std_error: float
    agrees: bool


def compare_two(first: Evidence, second: Evidence) -> Agreement:
    """Compare two estimates of the same data.

    They agree if they do so in total and in nearly every datum.
    """
    difference = (first.log_z - second.log_z).nan_to_num(torch.inf)
    error = torch.hypot(first.std_error, second.std_error).nan_to_num(0.0)
    total_error = float(torch.hypot(first.total_std_error, second.total_std_error).nan_to_num(0.0))
    total = float(difference.sum())
    slack = TOLERANCE * difference.numel()
    apart = (difference.abs() > 5 * error + TOLERANCE).double().mean()
    return Agreement(
        total, total_error, abs(total) <= AGREE * total_error + slack and float(apart) <= 0.05
    )


def is_decisive(evidence: Evidence) -> bool:
    """Return whether agreement with an estimate is meaningful.

    The estimate must have no alarm, and be finite and precise.
    """
    return evidence.reliable and is_precise(evidence)


def is_precise(evidence: Evidence) -> bool:
    """Return whether an estimate is finite and precise to `DECISIVE`."""
    worst = DECISIVE[evidence.target] * math.sqrt(evidence.log_z.numel())
    finite = bool(torch.isfinite(evidence.log_z).all())
    return finite and float(evidence.total_std_error) <= worst


def choose(found: Sequence[Evidence]) -> Evidence:
    """Choose the most precise estimate confirmed by another.

    It is without alarm, and its name tells which other estimate agrees. If none is confirmed, the
    best one has a warning: the highest, where estimates are apart.

    Only estimates that are themselves without alarm, finite and precise to `DECISIVE` nats
    count as agreement; those among them that disagree with the chosen one are a warning. One of
    them far above estimates that agree is given in their place, with the warning: they miss what it
    has found (`far_above`).
    """
    ranked = sorted(
        found, key=lambda e: (not e.reliable, bool(e.log_z.isnan().any()), float(e.total_std_error))
    )
    usable = [e for e in ranked if is_decisive(e)]
    for estimate in usable:
        others = [e for e in usable if e is not estimate]
        partners = [e for e in others if compare_two(estimate, e).agrees]
        above = far_above(estimate, found)
        if partners and not any(is_decisive(e) for e in above):
            names = " and ".join(partner.estimator for partner in partners)
            chosen = described(estimate, found, f"{estimate.estimator} agrees with {names}")
            apart = [e for e in others if e not in partners]
            apart += [e for e in above if not e.reliable]
            return warned(chosen, f"{numbers_of(apart)} nats disagrees") if apart else chosen
    best = highest(ranked[0], found)
    best = described(best, found, f"{best.estimator}, cross-check failed")
    return warned(best, complaint(found, usable))


def far_above(estimate: Evidence, found: Sequence[Evidence]) -> list[Evidence]:
    """Precise estimates too far above one for chance.

    That one then misses a part of the posterior: an unbiased estimate of Z exceeds it c times with
    a probability of at most 1 / c (Markov).
    """
    pairs = ((e, compare_two(e, estimate)) for e in found if is_precise(e))
    return [e for e, two in pairs if two.difference > max(FAR, FAR_ERRORS * two.std_error)]


def highest(best: Evidence, found: Sequence[Evidence]) -> Evidence:
    """Choose the best, or the one farthest above it."""
    return max([best, *far_above(best, found)], key=lambda e: float(e.total.nan_to_num(-torch.inf)))


def complaint(found: Sequence[Evidence], usable: Sequence[Evidence]) -> str:
    """Say why no two estimates agree."""
    if len(found) == 1:
        return "nothing was cross-checked: one kind of estimator alone has given a number"
    if len(usable) > 1:
        return f"the estimators disagree: {numbers_of(found)} nats"
    return (
        f"nothing was cross-checked, as of {numbers_of(found)} nats at most one is without alarm "
        f"and precise to {DECISIVE[found[0].target]} nat"
    )


def numbers_of(found: Sequence[Evidence]) -> str:
    """Each estimator's number and error."""
    return ", ".join(
        f"{e.estimator} {float(e.total):.3f} +- {float(e.total_std_error):.2g}" for e in found
    )


def warned(evidence: Evidence, warning: str) -> Evidence:
    """The evidence with one more warning."""
    return replace(evidence, warnings=(*evidence.warnings, warning))


def described(estimate: Evidence, found: Sequence[Evidence], text: str) -> Evidence:
    """Add all estimates and a description to the chosen one."""
    numbers = {e.estimator: e.log_z for e in found}
    errors = {e.estimator: e.std_error for e in found}
    diagnostics = {**estimate.diagnostics, "estimates": numbers, "std_errors": errors}
    return replace(estimate, estimator=text, diagnostics=diagnostics)


def check_part(main: Evidence, check: Evidence, data: Tensor) -> Evidence:
    """Compare an estimate with another kind on some data.

    Returns the estimate of all data, with what the other kind says of these.
    """
    part = replace(main, log_z=main.log_z[data], std_error=main.std_error[data])
    verdict = compare_two(part, check)
    found = replace(
        main,
        estimator=f"{main.estimator}, {len(data)} data checked by {check.estimator}",
        diagnostics={
            **main.diagnostics,
            "checked": data,
            "estimates": {check.estimator: check.log_z},
            "std_errors": {check.estimator: check.std_error},
        },
    )
    if not is_decisive(check):
        text = f"nothing was cross-checked: {check.estimator} raised an alarm or is imprecise"
        return warned(found, f"{text} ({'; '.join(check.warnings) or numbers_of([check])})")
    if verdict.agrees:
        return found
    return warned(
        found,
        f"on {len(data)} data {check.estimator} gives {-verdict.difference / len(data):+.3g} +- "
        f"{verdict.std_error / len(data):.2g} nats per datum more; use {check.estimator} for all "
        "data",
    )
