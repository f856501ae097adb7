"""Estimate, what estimators return before its error is judged."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.evidence.normalising import squeezed
from ppl_dgm.sampling.convergence import widened_by_skew

__all__ = ["TURNED", "BoundKind", "Estimate", "own_errors", "quotient", "shared_error", "widened"]

BoundKind = Literal["exact", "lower", "upper", "estimate"]
TURNED: dict[str, BoundKind] = {"lower": "upper", "upper": "lower"}  # of log Z, for - log Z


class Estimate(NamedTuple):
    """Result of an estimator: log Z, its error and diagnostics.

    log Z and its standard error are in nats; diagnostics go by name.
    """

    log_z: Tensor
    std_error: Tensor
    diagnostics: Mapping[str, Any] = {}
    warnings: tuple[str, ...] = ()


def widened(estimate: Estimate) -> Estimate:
    """Widen a standard error for its skewness, once."""
    diagnostics = dict(estimate.diagnostics)
    skewness = diagnostics.pop("skewness", 0.0)
    error = widened_by_skew(estimate.std_error.double(), skewness)
    return estimate._replace(std_error=error, diagnostics=diagnostics)


def quotient(above: Estimate, below: Estimate) -> Estimate:
    """Divide an unnormalised density by its partition function.

    Returns the estimate of the log ratio, `[data]`; the log partition function is one for all data
    or one for each.
    """
    alone = below.log_z.numel() == 1
    log_partition, error = map(squeezed, below[:2]) if alone else below[:2]
    diagnostics = {
        **above.diagnostics,
        **{name: squeezed(v) for name, v in below.diagnostics.items()},
    }
    diagnostics |= {"log_partition": log_partition, "log_partition_std_error": error}
    return Estimate(
        above.log_z - log_partition,
        torch.hypot(above.std_error, error.expand_as(above.std_error)),
        diagnostics,
        above.warnings + below.warnings,
    )


def shared_error(estimate: Estimate) -> float:
    """Return the error of one partition function for all data."""
    error = estimate.diagnostics.get("log_partition_std_error", torch.zeros(()))
    return float(error) if error.dim() == 0 else 0.0


def own_errors(std_error: Tensor, shared: float) -> Tensor:
    """Take what all data share out of their errors."""
    return (std_error.double().square() - shared**2).clamp_min(0).sqrt()
