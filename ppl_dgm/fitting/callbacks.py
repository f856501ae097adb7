"""Callbacks that a fit calls as it runs.

They are users' own, or ready ones: early stopping, CSV files, TensorBoard and logging here,
checkpoints and the progress bar in files of their own.
"""

import csv
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ppl_dgm.checked import checked
from ppl_dgm.fitting.state import since_best
from ppl_dgm.program.identity import Identity
from ppl_dgm.validation import check_positive

__all__ = ["CSVLog", "Callback", "EarlyStopping", "Log", "Progress", "Running", "TensorBoard"]

_LOG = logging.getLogger("ppl_dgm.fit")


class Running(Protocol):
    """What callbacks that keep a fit ask of it."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """All modules with learned tensors, by name."""
        ...

    @property
    def device(self) -> torch.device | None:
        """Where the parameters are."""
        ...

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        ...

    def identity(self) -> Identity:
        """What must agree for two fits to be one."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """What the fit needs to go on bit by bit."""
        ...

    def restore(self, content: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""
        ...

    def note(self, message: str) -> None:
        """Add a line to the notes of the fit."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a fit is.

    Attributes:
        program: the program, with its parameters as they are now.
        step: steps made, resumed ones included.
        objective: of the latest step, in nats per datum, higher is better; None before the first.
        valid: of the latest validation, likewise; None before the first.
        history: all figures so far, lists by the names of `Fit.history`; not to be changed.
        num_steps: steps to make in all.
        epoch_steps: steps in a pass over the data.
        running: the fit itself, for callbacks that keep or restore it.
    """

    program: Any
    step: int
    objective: float | None
    valid: float | None
    history: Mapping[str, Sequence[float]] = field(repr=False)
    num_steps: int
    epoch_steps: int
    running: Running = field(repr=False)


class Callback:
    """Base class of callbacks of `fit`.

    They are given as `fit(..., callbacks=[...])`; a subclass overrides the methods that it needs.
    `on_step` and `on_validation` end the fit early by returning True, `on_start` before any step.
    They may look at the program, but change nothing that a checkpoint would have to know.

    What they raise ends it too, and comes out of `fit` as it is, once the checkpoint is written;
    the error's `.fit` is what was learned. KeyboardInterrupt ends it as Ctrl-C does.

    Attributes:
        every: steps between calls of `on_step`. None leaves it to the fit, which may make many
            steps of a small program in one call.
        everywhere: whether every process of a shared fit calls it, and not the first alone.

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

    every: int | None = 1
    everywhere: bool = False

    def on_start(self, progress: Progress) -> bool | None:
        """Before the first step of this call."""

    def on_step(self, progress: Progress) -> bool | None:
        """After every so many steps, and what validation follows them."""

    def on_validation(self, progress: Progress) -> bool | None:
        """After each validation."""

    def on_note(self, message: str) -> None:
        """With a line on what the fit decided."""

    def on_stop(self, progress: Progress) -> None:
        """After the last step, before the best is restored.

        Also where a callback raised.
        """

    def on_end(self, fit: Any) -> None:
        """With the `Fit`, however it ended but for an error.

        All callbacks hear of it, also where one raises.
        """

    def on_close(self) -> None:
        """At last, also after an error: close what is open."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Settings that change what the fit learns."""
        return {}


class EarlyStopping(Callback):
    """Callback that ends a fit once validation stops improving.

    A fit with validation data ends with the best parameters seen, stopped early or not.

    Args:
        patience: validations without improvement after which it stops.

    Raises:
        ValueError: at the start of a fit without validation data.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)
        >>> ppl_dgm.fit(ppl_dgm.Program(model), torch.ones(3), steps=90, valid=-torch.ones(3),
        ...             progress=False, callbacks=[EarlyStopping(patience=4)]).stopped
        'early'
    """

    everywhere = True

    @checked
    def __init__(self, patience: int) -> None:
        check_positive(patience=patience)
        self.patience = patience

    def on_start(self, progress: Progress) -> bool:
        if "valid" not in progress.history:
            raise ValueError(
                "EarlyStopping stops on validation data, but valid is None; pass valid=..."
            )
        return self.on_validation(progress)

    def on_validation(self, progress: Progress) -> bool:
        return since_best(progress.history["valid"]) >= self.patience

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"patience": self.patience}


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
        check_positive(every=every)
        self.every, self._is_full = every, False
        # It stays open until the end.
        self._file = Path(path).open("w", newline="", encoding="utf-8")  # noqa: SIM115
        self._rows = csv.writer(self._file)
        self._rows.writerow(["step", "objective", "valid"])

    def on_start(self, progress: Progress) -> None:
        if self._file.closed:
            raise ValueError("this CSVLog has written a fit already; make another for the next")

    def on_step(self, progress: Progress) -> None:
        self._attempt(lambda: self._rows.writerow([progress.step, progress.objective, ""]))

    def on_validation(self, progress: Progress) -> None:
        self._attempt(lambda: self._rows.writerow([progress.step, "", progress.valid]))
        self._attempt(self._file.flush)

    def on_close(self) -> None:
        self._attempt(self._file.close)

    def _attempt(self, write: Callable[[], Any]) -> None:
        if self._is_full:
            return
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
        check_positive(every=every)
        self.logger, self.every = logger or logging.getLogger("ppl_dgm.fit"), every

    def on_step(self, progress: Progress) -> None:
        self.logger.info("step %d: %.4f nats per datum", progress.step, progress.objective)

    def on_validation(self, progress: Progress) -> None:
        self.logger.info("step %d: validation %.4f nats per datum", progress.step, progress.valid)

    def on_note(self, message: str) -> None:
        self.logger.info("%s", message)

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

        check_positive(every=every)
        self.every, self._writer = every, SummaryWriter(str(folder))

    def on_step(self, progress: Progress) -> None:
        self._writer.add_scalar("objective", progress.objective, progress.step)

    def on_validation(self, progress: Progress) -> None:
        self._writer.add_scalar("valid", progress.valid, progress.step)

    def on_close(self) -> None:
        self._writer.close()
