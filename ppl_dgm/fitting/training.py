"""The training loop: steps, validation, checkpoints, interruption."""

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm.auto import tqdm

from ppl_dgm.fitting.batches import Batch, Batches
from ppl_dgm.fitting.loss import BatchLoss, explain_nonfinite
from ppl_dgm.fitting.result import Fit, NonFiniteError, Stopped
from ppl_dgm.fitting.stepping import Stepper
from ppl_dgm.program import evaluating, read_state, write_state
from ppl_dgm.program.seeding import seeded


@dataclass
class State:
    """What a fit knows of itself between two steps: all that a checkpoint must hold beside the parameters."""

    step: int = 0
    objective: list[float] = field(default_factory=list)
    valid_step: list[int] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    best: dict[str, Tensor] | None = None

    @property
    def stale(self) -> int:
        """Validations since the best one; NaN is worst."""
        ranks = [-math.inf if math.isnan(value) else value for value in self.valid]
        return len(ranks) - 1 - ranks.index(max(ranks)) if ranks else 0


@dataclass
class Training:
    """One fit in progress; see `ppl_dgm.fitting` for what the settings mean."""

    loss: BatchLoss
    batches: Batches
    stepper: Stepper
    optimizer: Optimizer
    scheduler: Any
    num_steps: int
    valid: Batches | None
    valid_every: int
    patience: int | None
    checkpoint: Path | None
    checkpoint_every: int
    progress: bool
    state: State = field(default_factory=State)

    def run(self) -> Fit:
        """Train to the end, early stopping or Ctrl-C, and return what was learned."""
        self._resume()
        start, stopped = time.perf_counter(), "interrupted"
        with tqdm(
            total=self.num_steps, initial=self.state.step, disable=not self.progress, unit="step"
        ) as bar:
            if self.progress:
                self.stepper.announce = bar.write
            try:
                stopped = self._loop(bar)
            except KeyboardInterrupt:
                bar.write(f"interrupted at step {self.state.step}; returning what was learned")
            except NonFiniteError as error:
                error.fit = self._finish("nonfinite", start)
                raise
        return self._finish(stopped, start)

    def _loop(self, bar: tqdm) -> Stopped:
        dealt = self.batches.from_step(self.state.step)
        while self.patience is None or self.state.stale < self.patience:
            if self.state.step >= self.num_steps:
                return "finished"
            size, batch = next(dealt)
            self._step(size, batch)
            bar.update(1)
            self._show(bar)
            if self.valid and (
                self.state.step % self.valid_every == 0 or self.state.step == self.num_steps
            ):
                self._validate(self.valid)
            if self.checkpoint and (
                self.state.step % self.checkpoint_every == 0 or self.state.step == self.num_steps
            ):
                self._save()
        return "early"

    def _anneal(self, step: int) -> None:
        """Tell an objective with an annealed weight the step."""
        if hasattr(self.loss.objective, "set_step"):
            self.loss.objective.set_step(step)  # type: ignore[attr-defined]

    def _step(self, size: int, batch: Batch) -> None:
        self._anneal(self.state.step)
        value = self.stepper(size, batch)
        if not math.isfinite(value):
            self._stop_nonfinite(value, batch)
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        self.state.step += 1
        self.state.objective.append(-value)

    def _stop_nonfinite(self, value: float, batch: Batch) -> None:
        norm = torch.nn.utils.get_total_norm(list(self.loss.program.parameters()))
        reason = explain_nonfinite(self.loss.program, batch)
        raise NonFiniteError(
            f"the objective or its gradient is not finite at step {self.state.step} ({-value} nats per datum): {reason}; "
            f"the norm of the parameters is {norm:.6g}. Lower the learning rate, clip gradients with clip_norm, or bound "
            "the scale at that site; what was learned before is in the error's .fit"
        )

    def _show(self, bar: tqdm) -> None:
        if self.state.step % max(1, self.num_steps // 200) == 0:
            recent = self.state.objective[-100:]
            shown = {"nats/datum": f"{sum(recent) / len(recent):.3f}"}
            if self.state.valid:
                shown["valid"] = f"{self.state.valid[-1]:.3f}"
            bar.set_postfix(shown, refresh=False)

    def _validate(self, valid: Batches) -> None:
        program = self.loss.program
        loss = BatchLoss(program, self.loss.objective, valid.num_data)
        self._anneal(
            self.num_steps
        )  # one weight for all validations: with less of the KL early ones would look best
        with evaluating(program), torch.no_grad(), seeded(0, device_of(program)):
            total = sum(loss.number(size, batch) * size for size, batch in valid.in_order())
        self.state.valid_step.append(self.state.step)
        self.state.valid.append(-total / valid.num_data)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(total / valid.num_data)
        if self.state.stale == 0 and math.isfinite(self.state.valid[-1]):
            self.state.best = {
                name: value.detach().clone() for name, value in program.state_dict().items()
            }

    def _finish(self, stopped: Any, start: float) -> Fit:
        self.optimizer.state_dict()  # its counts of steps are brought up to the compiled ones
        if self.state.best is not None:
            self.loss.program.load_state_dict(self.state.best)
        history = {
            "step": torch.arange(1, len(self.state.objective) + 1),
            "objective": torch.tensor(self.state.objective, dtype=torch.float64),
        }
        if self.valid:
            history["valid_step"] = torch.tensor(self.state.valid_step, dtype=torch.long)
            history["valid"] = torch.tensor(self.state.valid, dtype=torch.float64)
        return Fit(
            program=self.loss.program,
            history=history,
            steps=self.state.step,
            stopped=stopped,
            seconds=time.perf_counter() - start,
            compile_seconds=self.stepper.compile_seconds,
            notes=tuple(self.stepper.notes),
        )

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be this fit's."""
        return {
            "num_data": self.batches.num_data,
            "batch_size": self.batches.batch_size,
            "seed": self.batches.seed,
            "objective": type(self.loss.objective).__name__,
            "optimizer": type(self.optimizer).__name__,
            "schedule": type(self.scheduler).__name__ if self.scheduler is not None else None,
        }

    def _save(self) -> None:
        content = {
            "identity": self._identity(),
            "program": self.loss.program.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
            "state": vars(self.state),
            "generator": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        write_state(self.checkpoint, content)  # type: ignore[arg-type]

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        content = read_state(self.checkpoint, device_of(self.loss.program))
        if content.get("identity") != self._identity():
            raise ValueError(
                f"the checkpoint {self.checkpoint} is of another fit: it has {content.get('identity')}, this one has "
                f"{self._identity()}. Use the same settings, or another file"
            )
        try:
            self.loss.program.load_state_dict(content["program"])
        except RuntimeError as error:
            raise ValueError(
                f"the checkpoint {self.checkpoint} is of another program: {error}. Build the program as it was, or use "
                "another file"
            ) from error
        self.optimizer.load_state_dict(content["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(content["scheduler"])
        self.state = State(**content["state"])
        torch.set_rng_state(content["generator"].cpu())
        if content["cuda"]:
            torch.cuda.set_rng_state_all([state.cpu() for state in content["cuda"]])


def device_of(program: torch.nn.Module) -> torch.device | None:
    """Device of the parameters."""
    return next((parameter.device for parameter in program.parameters()), None)


def checkpoint_path(path: str | os.PathLike | None) -> Path | None:
    """The checkpoint file, its folder checked before any work."""
    if path is None:
        return None
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(
            f"the folder {target.parent} for the checkpoint does not exist; create it first"
        )
    return target
