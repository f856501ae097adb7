"""Data moved from a failing estimator to another."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.evidence.result import Evidence

__all__ = ["failing_data", "joined_evidence"]

DOUBTFUL_K = 0.5  # Pareto shape from which weights have no variance


def failing_data(evidence: Evidence) -> tuple[Tensor, Tensor] | None:
    """Tell data that an estimator with alarms fails on.

    Returns the indices of the others and of those that fail, by their Pareto k; None where there
    are none.
    """
    k = evidence.diagnostics.get("pareto_k")
    if evidence.reliable or k is None or k.shape != evidence.log_z.shape or not k.dim():
        return None
    failing = ~torch.isfinite(evidence.log_z) | (k > DOUBTFUL_K)  # as mass beyond all draws has
    if not bool(failing.any()):
        return None
    return torch.nonzero(~failing).squeeze(1), torch.nonzero(failing).squeeze(1)


def joined_evidence(
    whole: Evidence, rest: Evidence, moved: Evidence, places: tuple[Tensor, Tensor]
) -> Evidence:
    """Join the evidence of two parts of the data.

    Args:
        whole: an evidence of all data, for what they are.
        rest: that of the first part.
        moved: that of the data that were moved on.
        places: indices of the two parts.
    """

    if not len(places[0]):
        return moved

    def together(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second])[torch.cat(places).argsort()]

    diagnostics = {
        name: together(value, moved.diagnostics[name])
        for name, value in rest.diagnostics.items()
        if each_has(name, rest) and each_has(name, moved)
    }
    return replace(
        whole,
        log_z=together(rest.log_z, moved.log_z),
        std_error=together(rest.std_error, moved.std_error),
        estimator=f"{rest.estimator}, {len(places[1])} data by {moved.estimator}",
        diagnostics={**numbers_of_all(rest.diagnostics), **diagnostics, "moved": places[1]},
        warnings=tuple(dict.fromkeys(rest.warnings + moved.warnings)),
    )


def each_has(name: str, evidence: Evidence) -> bool:
    """Whether a diagnostic has a number for each datum."""
    value = evidence.diagnostics.get(name)
    return isinstance(value, Tensor) and value.shape == evidence.log_z.shape


def numbers_of_all(diagnostics: Mapping[str, Any]) -> dict[str, Any]:
    """Diagnostics that are one number for all data."""
    return {
        name: value
        for name, value in diagnostics.items()
        if not isinstance(value, Tensor) or value.dim() == 0
    }
