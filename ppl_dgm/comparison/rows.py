"""Figures of one program in a comparison.

These are errors, paired differences, probabilities and stacking weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.evidence import Evidence
from ppl_dgm.markup import SIGNS, error_text, minus

__all__ = [
    "NAN",
    "SENSES",
    "BayesFactor",
    "Row",
    "is_ranked",
    "make_row",
    "probabilities",
    "sense_of",
    "stack",
]

Sense = Literal["exact", "lower", "upper", "estimate", "unknown"]
SENSES: dict[str, str] = {
    "exact": "exact",
    "lower": "lower bound",
    "upper": "upper bound",
    "estimate": "estimate",
    "unknown": "bounds on both sides: the sign of the difference is open",
}
LITTLE = 1.0  # nats, which say nothing
STRENGTHS = (
    (LITTLE, "not worth more than a bare mention"),
    (3.0, "positive"),
    (5.0, "strong"),
    (math.inf, "very strong"),
)
NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """One program in a comparison, with all its figures.

    All figures are totals over the data, in nats.

    Attributes:
        name: of the program.
        estimator: the method that gave its evidence.
        bound: what the evidence is: `"exact"`, `"lower"`, `"upper"` or `"estimate"`.
        log_z: log p of all the data.
        std_error: Monte Carlo standard error of `log_z`: what more particles would make smaller.
        sampling_error: standard error of `log_z` as an average over data: what more data would make
            smaller; NaN for the evidence of a data set.
        training_spread: standard deviation of `log_z` over trainings from different seeds; NaN
            where there was one.
        bits_per_dim: -log_z / (observed numbers x log 2); NaN where nothing is observed.
        difference: log_z minus that of the reference; a log Bayes factor where the target is the
            data set.
        difference_error: its standard error: over paired data where there is one evidence per datum
            (it contains the Monte Carlo error, also what all data share of it), else from both
            Monte Carlo errors.
        difference_sense: how the true difference lies to that number, given both bounds.
        weight: stacking weight (target `"datum"`) or posterior probability of the program (target
            `"dataset"`), among the ranked rows; NaN where fewer than two are.
        weight_error: Monte Carlo standard error of that probability, whether or not the others err
            alike, as estimates from one seed may; NaN for stacking weights.
        warnings: why the row should not be believed; empty if nothing speaks against it.
        seconds: time the estimate took.
        ranked: whether the row may be the best, the default reference, or have a weight; see
            `is_ranked`.
    """

    name: str
    estimator: str
    bound: str
    log_z: float
    std_error: float
    sampling_error: float
    bits_per_dim: float
    difference: float
    difference_error: float
    difference_sense: Sense
    weight: float
    weight_error: float
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    ranked: bool = True
    training_spread: float = NAN

    @property
    def reliable(self) -> bool:
        """Whether no alarm was raised."""
        return not self.warnings


class BayesFactor(NamedTuple):
    """Bayes factor of one program over another.

    It tells how many times more probable the first program makes the data.

    `log` and its Monte Carlo standard error are in nats; `sense` says how the truth lies to it,
    given both bounds. Where an alarm was raised for either evidence, `reliable` is false.
    """

    numerator: str
    denominator: str
    log: float
    std_error: float
    sense: Sense = "estimate"
    reliable: bool = True

    @property
    def strength(self) -> str:
        """Strength of the evidence in words, for the favoured side.

        The words for |log B| are those of Kass and Raftery (1995), section 3.2.

        Undetermined where an alarm was raised, where bounds leave open which side is favoured, and
        where the standard error is above a nat and half the number.
        """
        open_sign = {"unknown": True, "lower": self.log < 0, "upper": self.log > 0}
        settled = self.std_error <= max(LITTLE, abs(self.log) / 2)
        if not self.reliable or not settled or open_sign.get(self.sense, False):
            return "undetermined"
        return next((word for limit, word in STRENGTHS if abs(self.log) <= limit), "undetermined")

    def __str__(self) -> str:
        log = minus(f"{self.log:.2f}")
        return (
            f"{self.numerator} over {self.denominator}: {in_digits(self.log)} times as probable "
            f"(log Bayes factor {SIGNS[self.sense]} {log} ± {error_text(self.std_error)}), "
            f"{self.strength}"
        )


def in_digits(log_value: float) -> str:
    """exp of a number, short: 12.3, 0.0021 or 10^45."""
    power = log_value / math.log(10)
    if math.isnan(power):
        return "unknown"
    if -4 < power < 6:
        return f"{math.exp(log_value):.3g}"
    return minus(f"10^{power:.1f}")


def make_row(
    name: str,
    evidence: Evidence,
    reference: Evidence,
    weight: tuple[float, float],
    refits: Sequence[Evidence] = (),
) -> Row:
    """The figures of one program, with refits from other seeds."""
    log_z, other = flat(evidence), flat(reference)
    is_reference = evidence is reference
    difference = 0.0 if is_reference else float((log_z - other).sum())
    error = math.hypot(float(evidence.total_std_error), float(reference.total_std_error))
    shared = len(log_z) * math.hypot(evidence.shared_std_error, reference.shared_std_error)
    paired = math.hypot(spread(log_z - other), shared) if len(log_z) > 1 else error
    return Row(
        name=name,
        estimator=evidence.estimator,
        bound=evidence.bound,
        log_z=float(evidence.total),
        std_error=float(evidence.total_std_error),
        sampling_error=spread(log_z),
        bits_per_dim=-float(evidence.total) / (evidence.num_dims * math.log(2))
        if evidence.num_dims
        else NAN,
        difference=difference,
        difference_error=0.0 if is_reference else paired,
        difference_sense="exact" if is_reference else sense_of(evidence.bound, reference.bound),
        weight=weight[0],
        weight_error=weight[1],
        warnings=evidence.warnings,
        seconds=evidence.seconds,
        ranked=is_ranked(evidence),
        training_spread=stdev(float(each.total) for each in (evidence, *refits)) if refits else NAN,
    )


def is_ranked(evidence: Evidence) -> bool:
    """Return whether an evidence may be ranked.

    A ranked evidence may be the best, the default reference, or have a weight. This is the one rule
    for all three.

    It has no alarm, is not too high by design (an upper bound), and no datum's number or error was
    withheld (NaN, or an infinite error).
    """
    given = ~evidence.log_z.isnan() & evidence.std_error.isfinite()
    return evidence.reliable and evidence.bound != "upper" and bool(given.all())


def flat(evidence: Evidence) -> Tensor:
    """log Z as a vector of float64 on the CPU."""
    return evidence.log_z.detach().double().cpu().reshape(-1)


def spread(values: Tensor) -> float:
    """Estimate the standard error of a sum of independent numbers.

    It is NaN for a single number.
    """
    return math.sqrt(len(values)) * float(values.std()) if len(values) > 1 else NAN


def sense_of(bound: str, other: str) -> Sense:
    """Return whether a difference of two bounds is a bound.

    The true difference lies above a `"lower"` one and below an `"upper"` one. For `"unknown"` it
    may lie on either side.

    Example:
        >>> sense_of("lower", "exact"), sense_of("exact", "lower"), sense_of("lower", "lower")
        ('lower', 'upper', 'unknown')
    """
    sides = {"lower": 1, "upper": -1}
    senses = {sides.get(bound, 0), -sides.get(other, 0)} - {0}
    if senses == {1, -1}:
        return "unknown"
    if senses:
        return "lower" if senses == {1} else "upper"
    return "exact" if bound == other == "exact" else "estimate"


def weighed(evidences: Mapping[str, Evidence]) -> dict[str, Evidence]:
    """Select the evidences that get weights: the ranked ones.

    None does where fewer than two are ranked, since the weight of one among one says nothing.
    """
    usable = {name: e for name, e in evidences.items() if is_ranked(e)}
    return usable if len(usable) > 1 else {}


def stack(evidences: Mapping[str, Evidence]) -> dict[str, tuple[float, float]]:
    """Compute stacking weights of the ranked programs.

    The weights of the others are NaN.
    """
    from ppl_dgm.reporting.arviz import stacking_weights  # noqa: PLC0415 - seconds of import

    usable = weighed(evidences)
    weights = stacking_weights({name: flat(e) for name, e in usable.items()}) if usable else {}
    return {name: (weights.get(name, NAN), NAN) for name in evidences}


def probabilities(
    evidences: Mapping[str, Evidence], prior: Mapping[str, float] | None
) -> dict[str, tuple[float, float]]:
    r"""Compute posterior probabilities of ranked programs and their standard errors.

    Those of the other programs are NaN.

    $p_m = \mathrm{softmax}_m(\log Z_m + \log \pi_m)$ and, by the delta method,
    $\mathrm{var}(p_m) \le p_m^2 \bigl((1 - p_m)^2\, \mathrm{se}_m^2 + (\sum_{j \ne m} p_j\,
    \mathrm{se}_j)^2\bigr)$: estimates from one seed share their draws, and may all err alike.
    """
    odds = prior or dict.fromkeys(evidences, 1.0)
    usable = weighed(evidences)
    logits = torch.tensor(
        [float(e.total) + math.log(odds[name]) for name, e in usable.items()], dtype=torch.float64
    )
    p = logits.softmax(0)
    errors = torch.tensor([float(e.total_std_error) for e in usable.values()], dtype=torch.float64)
    p_errors = p * torch.hypot((1 - p) * errors, (p * errors).sum() - p * errors)
    found = dict(zip(usable, zip(p.tolist(), p_errors.tolist(), strict=True), strict=True))
    return {name: found.get(name, (NAN, NAN)) for name in evidences}
