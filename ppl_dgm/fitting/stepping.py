"""One optimisation step on a minibatch, run eagerly or compiled."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_dgm.compile import CaptureError, CompileMode, TrainStep
from ppl_dgm.compile.inductor import cost
from ppl_dgm.fitting.batches import Batches, Rows
from ppl_dgm.fitting.loss import BatchLoss, Told

__all__ = ["Stepper", "make_stepper"]

TRIAL_STEPS = 12  # eager steps that are timed before deciding to compile


class Stepper:
    """Optimisation step on a minibatch, run eagerly.

    It tells the loss in nats per datum, and the terms of an ELBO; where the loss is NaN, parameters
    and optimiser are left as they were.
    """

    def __init__(
        self, loss: BatchLoss, optimizer: Optimizer, clip_norm: float | None, batches: Batches
    ) -> None:
        self.loss, self.optimizer, self.clip_norm = loss, optimizer, clip_norm
        self.batches = batches
        self.notes: list[str] = []
        self.announce: Callable[[str], None] = lambda message: None

    def __call__(self, size: int, rows: Rows) -> Told:
        self.optimizer.zero_grad(set_to_none=True)
        value = self._gradients(size, rows)
        parameters = self._parameters
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not bool(torch.isfinite(norm) & torch.isfinite(value[0])):
            return [math.nan]
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        self.optimizer.step()
        return value.tolist()

    def _gradients(self, size: int, rows: Rows) -> Tensor:
        batch = self.batches.select(rows)
        if not self.loss.differentiable:
            return self.loss.backward(size, batch)
        value = self.loss(size, batch)
        value[0].backward(inputs=[p for p in self._parameters if p.requires_grad])
        return value.detach()

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def has_loop(self) -> bool:
        """Whether `many` makes its steps in one compiled call."""
        return False

    def many(
        self, size: int, rows: Sequence[Rows], between: Callable[[], Any] | None
    ) -> list[Told]:
        """Make a step on each minibatch and return the losses.

        They end with the first that is not finite. `between` is called after each step.
        """
        values = []
        for part in rows:
            values.append(self(size, part))
            if not math.isfinite(values[-1][0]):
                break
            if between is not None:
                between()
        return values

    @property
    def compile_seconds(self) -> float:
        """Time spent on capture and compilation."""
        return 0.0


class CompiledStepper(Stepper):
    """Optimisation step that is compiled after some eager ones.

    The first steps are made eagerly and checked in full, the rest as one compiled call each, or as
    one call for many of them where the program has few parameters.

    With `"auto"` it compiles when the eager steps left to make take long enough for that to pay,
    and stays or becomes eager, with a note, where the program cannot be captured. With True it
    compiles after the first step and raises instead. Minibatches of another size than `size`, the
    last of an epoch, are run eagerly.
    """

    def __init__(
        self,
        loss: BatchLoss,
        optimizer: Optimizer,
        clip_norm: float | None,
        batches: Batches,
        mode: CompileMode,
        num_steps: int,
    ) -> None:
        super().__init__(loss, optimizer, clip_norm, batches)
        self.mode, self.size, self.remaining = mode, batches.batch_size, num_steps
        self.step: TrainStep | None = None
        self.times: list[float] = []
        self.gave_up = False

    def __call__(self, size: int, rows: Rows) -> Told:
        self.remaining -= 1
        if size != self.size:
            return super().__call__(size, rows)
        if self.step is not None and not self.gave_up:
            return self._compiled(self.step, [rows], None)[0]
        start = clocks()
        value = super().__call__(size, rows)
        took = (now - then for now, then in zip(clocks(), start, strict=True))
        self.times.append(min(took))  # waiting is no time to save
        allowed = self._allowed()
        if allowed > 0:
            self._compile(rows, allowed)
        return value

    @property
    def has_loop(self) -> bool:
        return self.step is not None and not self.gave_up and self._loops(self.step)

    def _loops(self, step: TrainStep) -> bool:
        """Whether a step runs in loops over data in memory."""
        return step.has_loops and not self.batches.is_streamed

    def many(
        self, size: int, rows: Sequence[Rows], between: Callable[[], Any] | None
    ) -> list[Told]:
        if self.step is None or not self.has_loop or size != self.size:
            return super().many(size, rows, between)
        self.remaining -= len(rows)
        return self._compiled(self.step, rows, between)

    def _compiled(
        self, step: TrainStep, rows: Sequence[Rows], between: Callable[[], Any] | None
    ) -> list[Told]:
        try:
            values = self._called(step, rows, between)
        except CaptureError as error:  # modules that were set differently had to be captured anew
            self._give_up(error)
            self.remaining += len(rows)
            return super().many(self.size, rows, between)
        made = next((i + 1 for i, v in enumerate(values) if not math.isfinite(v[0])), None)
        if made is not None:  # gradients stay inside the compiled step, and the fault may be theirs
            self.optimizer.zero_grad(set_to_none=True)
            self._gradients(self.size, rows[made - 1])
        return values[:made]

    def _called(
        self, step: TrainStep, rows: Sequence[Rows], between: Callable[[], Any] | None
    ) -> list[Told]:
        if not self._loops(step):
            return [step(*self.batches.select(part)).tolist() for part in rows]
        given = self._stacked(rows)
        return step.repeat(
            len(rows), *self.batches.everything, rows=given, between=between
        ).tolist()

    def _stacked(self, rows: Sequence[Rows]) -> Tensor | None:
        """Stack the places of minibatches, `[steps, size]`.

        None stands for all data.
        """
        parts = [part for part in rows if isinstance(part, Tensor)]
        return torch.stack(parts) if parts else None

    def _allowed(self) -> float:
        """Decide how many seconds a compilation may take now.

        There is no limit if told to compile; else it may take what it saves of the steps left.
        """
        if self.mode is True:
            return math.inf if len(self.times) == 1 else 0.0
        if len(self.times) != TRIAL_STEPS:
            return 0.0
        return cost.saving(self.remaining * sorted(self.times)[TRIAL_STEPS // 2])

    def _compile(self, rows: Rows, allowed: float) -> None:
        try:
            with cost.compiling_within(allowed):
                self.step = self._prepared(rows)
        except cost.TooCostlyError:
            self.gave_up = True
        except CaptureError as error:
            self._give_up(error)

    def _give_up(self, error: CaptureError) -> None:
        if self.mode is True:
            raise error
        self.gave_up = True
        self.notes.append(f"not compiled: {str(error).splitlines()[0]}")
        self.announce(self.notes[-1])

    def _prepared(self, rows: Rows) -> TrainStep:
        if not self.loss.differentiable:
            raise CaptureError(undifferentiable(self.loss))
        loss, size = self.loss, self.size  # a step that held the stepper would outlive the fit
        step = TrainStep(
            lambda args, kwargs: split(loss(size, (args, kwargs))),
            self.optimizer,
            clip_norm=self.clip_norm,
            guard=True,
            select=self.batches.picker(),
            constant=size == self.batches.num_data,
        )
        self.announce("compiling the step; this takes some seconds, less the next time")
        if self._loops(step):
            step.prepare_loop(*self.batches.everything, rows=self._stacked([rows]))
        else:
            step.prepare(*self.batches.select(rows))
        return step

    @property
    def compile_seconds(self) -> float:
        return self.step.seconds if self.step else 0.0


def clocks() -> tuple[float, float]:
    """Read the clocks of the wall and the processor."""
    return time.perf_counter(), time.process_time()


def split(told: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and what is told beside it."""
    return told[0], told[1:].detach()


def make_stepper(
    loss: BatchLoss,
    optimizer: Optimizer,
    clip_norm: float | None,
    batches: Batches,
    mode: CompileMode,
    num_steps: int,
) -> Stepper:
    """Make the stepper for a compile mode.

    Raises:
        ValueError: for True with an objective that has no differentiable loss.
    """
    if mode is True and not loss.differentiable:
        raise ValueError(f"compile is True but {undifferentiable(loss)}")
    if mode is False:
        return Stepper(loss, optimizer, clip_norm, batches)
    return CompiledStepper(loss, optimizer, clip_norm, batches, mode, num_steps)


def undifferentiable(loss: BatchLoss) -> str:
    """Why an objective without a differentiable loss is not compiled."""
    return (
        f"{type(loss.objective).__name__} has no differentiable loss, so that its step cannot be "
        "captured; use an objective of ppl_dgm.objectives, or compile=False"
    )
