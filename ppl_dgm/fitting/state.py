"""Figures of a fit between two steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.fitting.loss import TERMS, Told

__all__ = ["FitState", "since_best"]


@dataclass
class FitState:
    """State of a fit between two steps.

    A checkpoint holds it beside the parameters, optimisers and generators.
    """

    step: int = 0
    objective: list[float] = field(default_factory=list)
    valid_step: list[int] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    players: dict[str, list[float]] = field(default_factory=dict)
    terms: dict[str, list[float]] = field(default_factory=dict)
    best: dict[str, Any] | None = None

    def keep(self, told: Told) -> None:
        """Keep what a step told."""
        self.step += 1
        self.objective.append(-told[0])
        self._keep_terms(told)

    def keep_players(self, means: dict[str, float]) -> None:
        """Keep the objectives of several players."""
        for name, mean in means.items():
            self.players.setdefault(name, []).append(mean)

    def keep_validation(self, told: Told) -> bool:
        """Keep what a validation told; whether it is the best."""
        self.valid_step.append(self.step)
        self.valid.append(-told[0])
        self._keep_terms(told, "valid_")
        return since_best(self.valid) == 0 and math.isfinite(told[0])

    def _keep_terms(self, told: Told, prefix: str = "") -> None:
        for name, value in zip(TERMS, told[1:], strict=False):
            self.terms.setdefault(prefix + name, []).append(value)

    def figures(self, validates: bool) -> dict[str, list]:
        """All figures so far, by the names of `Fit.history`."""
        found: dict[str, list] = {"objective": self.objective, **self.players, **self.terms}
        if validates:
            found |= {"valid_step": self.valid_step, "valid": self.valid}
        return found

    def history(self, validates: bool) -> dict[str, Tensor]:
        """The figures as tensors, and the steps."""
        whole = {"step", "valid_step"}
        figures = {"step": list(range(1, self.step + 1)), **self.figures(validates)}
        return {
            name: torch.tensor(values, dtype=torch.long if name in whole else torch.float64)
            for name, values in figures.items()
        }


def since_best(values: Sequence[float]) -> int:
    """Count the validations since the best one; NaN is worst."""
    ranks = [-math.inf if math.isnan(value) else value for value in values]
    return len(ranks) - 1 - ranks.index(max(ranks)) if ranks else 0
