"""Anomaly detection by the evidence of a program.

It shows how well the evidence tells foreign data from the program's own.
"""

import math
from dataclasses import dataclass

import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence import Evidence
from ppl_dgm.markup import error_text

__all__ = ["Detection", "detect"]


@dataclass(frozen=True, eq=False)
class Detection:
    """Anomaly scores of data and their ranking quality.

    The quality is how well scores rank anomalies above the rest.

    Attributes:
        scores: -log p(x), nats, `[data]`, float64: usual data first, anomalies after.
        labels: True for the anomalies, `[data]`.
        auroc: probability that an anomaly scores above a usual datum.
        std_error: standard error of `auroc` over data (Hanley and McNeil 1982, eq. 1).
        average_precision: area under precision over recall.
        warnings: the alarms of both evidences.
    """

    scores: Tensor
    labels: Tensor
    auroc: float
    std_error: float
    average_precision: float
    warnings: tuple[str, ...] = ()

    @property
    def roc(self) -> tuple[Tensor, Tensor]:
        """False and true positive rates as the threshold falls."""
        false_rate, true_rate, _ = roc_curve(self.labels.numpy(), self.scores.numpy())
        return torch.from_numpy(false_rate), torch.from_numpy(true_rate)

    def __repr__(self) -> str:
        mark = f" UNRELIABLE: {'; '.join(self.warnings)}" if self.warnings else ""
        number = f"{self.auroc:.3f} +- {error_text(self.std_error)}"
        return f"Detection(AUROC {number}, {int(self.labels.sum())} anomalies){mark}"


@checked
def detect(usual: Evidence, anomalies: Evidence) -> Detection:
    r"""Score data by their surprise and evaluate anomaly detection.

    The surprise is $-\log p(x)$.

    High density is not typicality: programs of images may find simpler foreign images more probable
    than their own (Nalisnick et al. 2019); an AUROC below one half shows it.

    Args:
        usual: evidence of data of the kind the program was fitted to, `[data]`.
        anomalies: evidence of foreign data under the same program, by the same estimator.

    Raises:
        ValueError: for evidence of a whole data set, by different estimators, of data of unequal
            size, or not finite.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_dgm import Program, evidence
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> program, exact = Program(model), evidence.Exact()
        >>> usual = exact(program, torch.tensor([0.0, 0.5]))
        >>> detect(usual, exact(program, torch.tensor([0.2, 3.0, 4.0])))
        Detection(AUROC 0.833 +- 0.20, 3 anomalies)
    """
    check_comparable(usual, anomalies)
    scores = -torch.cat([usual.log_z, anomalies.log_z]).cpu()
    labels = torch.arange(len(scores), device="cpu") >= usual.log_z.numel()
    auroc = float(roc_auc_score(labels.numpy(), scores.numpy()))
    error = auroc_std_error(auroc, int(labels.sum()), int((~labels).sum()))
    precision = float(average_precision_score(labels.numpy(), scores.numpy()))
    warnings = tuple(dict.fromkeys(usual.warnings + anomalies.warnings))
    return Detection(scores, labels, auroc, error, precision, warnings)


def check_comparable(usual: Evidence, anomalies: Evidence) -> None:
    """Refuse scores that do not rank data alike."""
    for role, result in (("usual", usual), ("anomalies", anomalies)):
        if result.target != "datum":
            raise ValueError(
                f"the evidence of {role} is of the data set as a whole; detection needs one for "
                "each datum"
            )
        if not bool(torch.isfinite(result.log_z).all()):
            raise ValueError(
                f"the evidence of {role} is not finite for some data; check the support of their "
                "values"
            )
    sizes = [result.num_dims / result.log_z.numel() for result in (usual, anomalies)]
    if usual.estimator != anomalies.estimator or sizes[0] != sizes[1]:
        raise ValueError(
            f"the usual data have {sizes[0]:g} numbers each, by {usual.estimator}, the anomalies "
            f"{sizes[1]:g}, by {anomalies.estimator}; expected the same program, estimator and "
            "size of data"
        )


def auroc_std_error(auroc: float, num_anomalies: int, num_usual: int) -> float:
    """Compute the standard error of an AUROC.

    AUROC is the area under the ROC curve. Hanley and McNeil (1982), eqs. 1 and 2.

    An area of 0 or 1, where the formula gives zero, is taken to be that with one more anomaly (or
    usual datum, whichever are fewer) that ranks at random.

    Example:
        >>> round(auroc_std_error(0.8, 50, 50), 3)
        0.045
    """
    if auroc in (0, 1):
        fewer = min(num_anomalies, num_usual)
        auroc = (auroc * fewer + 0.5) / (fewer + 1)
    two_anomalies, two_usual = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    spread = (num_anomalies - 1) * (two_anomalies - auroc**2) + (num_usual - 1) * (
        two_usual - auroc**2
    )
    return math.sqrt((auroc * (1 - auroc) + spread) / (num_anomalies * num_usual))
