"""Bounds of log Z on both sides, and their gap."""

import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from ppl_dgm.evidence.result import Evidence

__all__ = ["Sandwich"]

WIDE_GAP = 1.0  # nats per datum
CROSSED = 4.0  # standard errors
TOLERANCE = 0.005  # nats per datum


@dataclass(frozen=True, eq=False, repr=False)
class Sandwich(Evidence):
    """Lower and upper bounds of log p.

    They are of simulated data or, for an unnormalised density, of the given ones.

    It also tells how far apart the bounds are.

    As an `Evidence` it is the lower bound, by annealing forwards; its expectation is at most log Z.

    Attributes:
        upper: annealing backwards from the exact posterior draw; its expectation is at least log Z.
            Its standard error is that of the estimate around that expectation, and so no interval
            for log Z.
        simulated: whether the data were simulated from the program.

    Example:
        >>> import torch
        >>> settings = dict(target="dataset", estimator="BDMC", num_dims=1, digest="")
        >>> low = Evidence(torch.tensor(-2.5), torch.tensor(0.03), "lower", **settings)
        >>> high = Evidence(torch.tensor(-2.25), torch.tensor(0.04), "upper", **settings)
        >>> Sandwich.between(low, high)
        Sandwich(-2.500 <= log p <= -2.250 nats on simulated data; gap 0.25 +- 0.05)
    """

    upper: Evidence = field(kw_only=True)
    simulated: bool = field(default=True, kw_only=True)

    @classmethod
    def between(cls, lower: Evidence, upper: Evidence, simulated: bool = True) -> "Sandwich":
        """Combine lower and upper bounds on the same data.

        The diagnostics hold the gap between them.
        """
        diagnostics = {**lower.diagnostics, "gap": upper.log_z - lower.log_z}
        warnings = (*lower.warnings, *upper.warnings, *crossed(lower, upper))
        told = {"diagnostics": diagnostics, "warnings": tuple(dict.fromkeys(warnings))}
        return cls(**{**vars(lower), **told}, upper=upper, simulated=simulated)

    @property
    def lower(self) -> Evidence:
        """The lower bound alone."""
        return Evidence(**{item.name: getattr(self, item.name) for item in fields(Evidence)})

    @property
    def gap(self) -> Tensor:
        """Upper minus lower bound in nats, `[data]` or `[]`.

        In expectation it is larger than the error of either bound.
        """
        return self.upper.log_z - self.lower.log_z

    @property
    def mean_gap(self) -> float:
        """Gap averaged over the data, in nats."""
        return float(self.gap.mean())

    @property
    def mean_gap_error(self) -> float:
        """Standard error of `mean_gap`.

        It follows from the spread over the data or, for one data set, from the errors of the two
        bounds; what all data share of these is added.
        """
        if self.gap.dim() and len(self.gap) > 1:
            shared = math.hypot(self.lower.shared_std_error, self.upper.shared_std_error)
            return math.hypot(float(self.gap.std() / len(self.gap) ** 0.5), shared)
        return float((self.lower.std_error.square() + self.upper.std_error.square()).sum().sqrt())

    def __repr__(self) -> str:
        low, high = float(self.lower.log_z.mean()), float(self.upper.log_z.mean())
        per = "" if self.gap.dim() == 0 else " per datum"
        gap = f"gap {self.mean_gap:.3g} +- {self.mean_gap_error:.2g}"
        where = " on simulated data" if self.simulated else ""
        sign = "~" if self.lower.bound == "estimate" else "<="
        return f"Sandwich({low:.3f} {sign} log p <= {high:.3f} nats{per}{where}; {gap})"

    def report(self, real: Evidence) -> str:
        """Explain how far to trust an estimate on real data.

        The estimate has to be found with the same settings.

        The gap bounds the error on simulated data in expectation. It carries over to real data as
        far as they are alike to the estimator: where the weights spread more, the error may be
        larger.

        Args:
            real: what the same estimator gave for the real data.
        """
        gap = f"{self.mean_gap:.3g} +- {self.mean_gap_error:.2g} nats"
        spread, simulated = weight_spread(real), weight_spread(self.lower)
        compared = f"({spread:.3g} nats against {simulated:.3g} on simulated data)"
        if spread > 1.5 * simulated + 0.05:
            how, advice = "more", "use more temperatures, its error may exceed it."
        else:
            how, advice = "alike", "the gap measures its error too."
        verdict = f"Log weights spread {how} on the real data {compared}: {advice}"
        wide = (
            " The gap is wide: differences of a nat mean nothing yet."
            if self.mean_gap > WIDE_GAP
            else ""
        )
        return f"On data simulated from the program the bounds are {gap} apart. {verdict}{wide}"


def crossed(lower: Evidence, upper: Evidence) -> tuple[str, ...]:
    """Warn if the lower bound exceeds the upper one.

    The excess must be larger than the errors of the bounds explain.
    """
    excess = float(lower.total - upper.total)
    error = float(torch.hypot(lower.total_std_error, upper.total_std_error))
    if not excess > CROSSED * error + TOLERANCE * lower.log_z.numel():
        return ()
    warning = (
        f"the lower bound stands {excess:.3g} +- {error:.2g} nats above the upper one: the data or "
        "their posterior draw are not the program's, or chains have not mixed"
    )
    return (warning,)


def weight_spread(evidence: Evidence) -> float:
    """Compute the typical spread of log weights, in nats.

    The weights are those behind an evidence; groups have their log Z in place of log weights.
    """
    found = evidence.diagnostics.get("log_weight_std", evidence.diagnostics.get("group_std"))
    if found is None:
        raise ValueError(
            f"{evidence.estimator} has no log weights of chains; pass the evidence that AIS or SMC "
            "gave"
        )
    return float(found.median())
