"""Progress bar of a fit."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from ppl_dgm.fitting.callbacks import Callback, Progress

__all__ = ["ProgressBar"]

SHOWN = 200  # times that figures change in the whole of a fit
RECENT = 100  # steps whose mean objective is shown


class ProgressBar(Callback):
    """Callback that shows a bar with the objective.

    `fit(..., progress=True)` adds one, on standard error. It closes with how the fit ended:
    finished, stopped early, interrupted, or still improving at the cap; and with the step whose
    parameters were restored.
    """

    every = None

    def __init__(self) -> None:
        self._bar, self._shown = tqdm(disable=True), 1

    def on_start(self, progress: Progress) -> None:
        self._bar = tqdm(total=progress.num_steps, initial=progress.step, unit="step")
        self._shown = max(1, progress.num_steps // SHOWN)

    def on_step(self, progress: Progress) -> None:
        before = self._bar.n
        self._bar.update(progress.step - before)
        if progress.step // self._shown > before // self._shown:
            self._bar.set_postfix_str(_figures(progress.history), refresh=False)

    def on_note(self, message: str) -> None:
        self._bar.write(message, file=sys.stderr)

    def on_end(self, fit: Any) -> None:
        figures = {name: values.tolist() for name, values in fit.history.items()}
        self._bar.set_postfix_str(f"{_figures(figures)}, {_ending(fit, figures)}")

    def on_close(self) -> None:
        self._bar.close()


def _figures(history: Mapping[str, Sequence[float]]) -> str:
    """The objective of the last steps, and of validation."""
    recent = history["objective"][-RECENT:]
    shown = f"nats/datum={sum(recent) / max(1, len(recent)):.3f}"
    valid = history.get("valid")
    return f"{shown}, valid={valid[-1]:.3f}" if valid else shown


def _ending(fit: Any, history: Mapping[str, Sequence[float]]) -> str:
    """How the fit ended, and which parameters it has."""
    told = "still improving at the cap" if fit.improving else fit.stopped
    if fit.stopped == "early":
        told = f"stopped early at {fit.steps}"
    steps = zip(history.get("valid", ()), history.get("valid_step", ()), strict=True)
    finite = [(value, -step) for value, step in steps if math.isfinite(value)]
    return f"{told}, best at {-max(finite)[1]} restored" if finite else told
