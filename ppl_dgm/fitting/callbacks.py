"""Callbacks that a fit calls as it runs.

They are users' own, or ready ones for CSV files, TensorBoard and logging.
"""

import csv
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppl_dgm.checked import checked

__all__ = ["CSVLog", "Callback", "Log", "Progress", "TensorBoard"]

_LOG = logging.getLogger("ppl_dgm.fit")


@dataclass(frozen=True)
class Progress:
    """Where a fit is.

    Attributes:
        program: the program, with its parameters as they are now.
        step: steps made, resumed ones included.
        objective: of the latest step, in nats per datum, higher is better.
        valid: of the latest validation, likewise; None before the first.
    """

    program: Any
    step: int
    objective: float
    valid: float | None = None


class Callback:
    """Base class of callbacks of `fit`.

    They are given as `fit(..., callbacks=[...])`; a subclass overrides the methods that it needs.

    What it raises ends the fit. It may look at the program, but changes nothing that a checkpoint
    would have to know.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> class Show(Callback):
        ...     def on_step(self, progress):
        ...         if progress.step % 2 == 0:
        ...             print(f"step {progress.step}")
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)
        >>> program = ppl_dgm.Program(model)
        >>> _ = ppl_dgm.fit(program, torch.ones(3), steps=4, progress=False, callbacks=[Show()])
        step 2
        step 4
    """

    def on_step(self, progress: Progress) -> None:
        """After each step."""

    def on_validation(self, progress: Progress) -> None:
        """After each validation."""

    def on_end(self, fit: Any) -> None:
        """With the `Fit`, however it ended but for an error."""


class CSVLog(Callback):
    """Callback that writes the progress to a CSV file.

    It writes a row `step,objective,valid` for every so many steps and every validation. A full disk
    ends the file, with a warning of the logger `ppl_dgm.fit`, and not the fit.

    Args:
        path: the file, of one fit; one of an earlier fit is overwritten.
        every: steps between rows.
    """

    @checked
    def __init__(self, path: str | os.PathLike, every: int = 1) -> None:
        self.every, self._is_full = every, False
        # It stays open until the end.
        self._file = Path(path).open("w", newline="", encoding="utf-8")  # noqa: SIM115
        self._rows = csv.writer(self._file)
        self._rows.writerow(["step", "objective", "valid"])

    def on_step(self, progress: Progress) -> None:
        if progress.step % self.every == 0:
            self._attempt(lambda: self._rows.writerow([progress.step, progress.objective, ""]))

    def on_validation(self, progress: Progress) -> None:
        self._attempt(lambda: self._rows.writerow([progress.step, "", progress.valid]))
        self._attempt(self._file.flush)

    def on_end(self, fit: Any) -> None:
        self._attempt(self._file.close)

    def _attempt(self, write: Callable[[], Any]) -> None:
        if self._is_full:
            return
        if self._file.closed:
            raise ValueError("this CSVLog has written a fit already; make another for the next")
        try:
            write()
        except OSError as error:
            self._is_full = True
            _LOG.warning("the file %s ends here: %s", self._file.name, error)
            with suppress(OSError):
                self._file.close()


class Log(Callback):
    """Callback that reports the progress to a logger.

    It reports every so many steps, validations and the end.

    Args:
        logger: default `ppl_dgm.fit`.
        every: steps between messages.
    """

    @checked
    def __init__(self, logger: logging.Logger | None = None, every: int = 100) -> None:
        self.logger, self.every = logger or logging.getLogger("ppl_dgm.fit"), every

    def on_step(self, progress: Progress) -> None:
        if progress.step % self.every == 0:
            self.logger.info("step %d: %.4f nats per datum", progress.step, progress.objective)

    def on_validation(self, progress: Progress) -> None:
        self.logger.info("step %d: validation %.4f nats per datum", progress.step, progress.valid)

    def on_end(self, fit: Any) -> None:
        self.logger.info("%r", fit)


class TensorBoard(Callback):
    """Callback that writes the progress for TensorBoard.

    It writes the scalars `objective` and `valid`; TensorBoard must be installed.

    Args:
        folder: of the event files.
        every: steps between scalars.

    Raises:
        ImportError: without the package tensorboard.
    """

    @checked
    def __init__(self, folder: str | os.PathLike, every: int = 1) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an optional package

        self.every, self._writer = every, SummaryWriter(str(folder))

    def on_step(self, progress: Progress) -> None:
        if progress.step % self.every == 0:
            self._writer.add_scalar("objective", progress.objective, progress.step)

    def on_validation(self, progress: Progress) -> None:
        self._writer.add_scalar("valid", progress.valid, progress.step)

    def on_end(self, fit: Any) -> None:
        self._writer.close()
