"""One optimisation step on a minibatch, run eagerly or compiled."""

import math
import time
from collections.abc import Callable

import torch
from torch.optim import Optimizer

from ppl_dgm.compile import CaptureError, CompileMode, TrainStep
from ppl_dgm.compile.jit import pays
from ppl_dgm.fitting.batches import Batch
from ppl_dgm.fitting.loss import BatchLoss

__all__ = ["Stepper", "make_stepper"]

TRIAL_STEPS = 12  # eager steps that are timed before deciding to compile


class Stepper:
    """Optimisation step on a minibatch, run eagerly.

    It returns the loss in nats per datum; where that is NaN, parameters and optimiser are left as
    they were.
    """

    def __init__(self, loss: BatchLoss, optimizer: Optimizer, clip_norm: float | None) -> None:
        self.loss, self.optimizer, self.clip_norm = loss, optimizer, clip_norm
        self.notes: list[str] = []
        self.announce: Callable[[str], None] = lambda message: None

    def __call__(self, size: int, batch: Batch) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        value = self._gradients(size, batch)
        parameters = self._parameters
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not bool(torch.isfinite(norm) & torch.isfinite(value)):
            return float("nan")
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        self.optimizer.step()
        return float(value)

    def _gradients(self, size: int, batch: Batch) -> torch.Tensor:
        if not self.loss.differentiable:
            return self.loss.backward(size, batch)
        value = self.loss(size, batch)
        value.backward(inputs=[p for p in self._parameters if p.requires_grad])
        return value.detach()

    @property
    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def compile_seconds(self) -> float:
        """Time spent on capture and compilation."""
        return 0.0


class CompiledStepper(Stepper):
    """Optimisation step that is compiled after some eager ones.

    The first steps are made eagerly and checked in full, the rest as one compiled call each.

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
        mode: CompileMode,
        size: int,
        num_steps: int,
    ) -> None:
        super().__init__(loss, optimizer, clip_norm)
        self.mode, self.size, self.remaining = mode, size, num_steps
        self.step: TrainStep | None = None
        self.times: list[float] = []
        self.gave_up = False

    def __call__(self, size: int, batch: Batch) -> float:
        self.remaining -= 1
        if size != self.size:
            return super().__call__(size, batch)
        if self.step is not None and not self.gave_up:
            return self._stepped(self.step, size, batch)
        start = time.perf_counter()
        value = super().__call__(size, batch)
        self.times.append(time.perf_counter() - start)
        if self._pays():
            self._compile(batch)
        return value

    def _stepped(self, step: TrainStep, size: int, batch: Batch) -> float:
        try:
            return self._compiled(step, size, batch)
        except CaptureError as error:  # modules that were set differently had to be captured anew
            self._give_up(error)
            return super().__call__(size, batch)

    def _compiled(self, step: TrainStep, size: int, batch: Batch) -> float:
        value = float(step(*batch))
        if not math.isfinite(
            value
        ):  # gradients stay inside the compiled step, and the fault may be theirs
            self.optimizer.zero_grad(set_to_none=True)
            self._gradients(size, batch)
        return value

    def _pays(self) -> bool:
        """Decide whether to compile now.

        Compilation starts at once if told so, else if what is left takes longer than compiling it.
        """
        if self.mode is True:
            return len(self.times) == 1
        if len(self.times) != TRIAL_STEPS:
            return False
        eager = sorted(self.times)[TRIAL_STEPS // 2]
        return pays(self.remaining * eager)

    def _compile(self, batch: Batch) -> None:
        try:
            self.step = self._prepared(batch)
        except CaptureError as error:
            self._give_up(error)

    def _give_up(self, error: CaptureError) -> None:
        if self.mode is True:
            raise error
        self.gave_up = True
        self.notes.append(f"not compiled: {str(error).splitlines()[0]}")
        self.announce(self.notes[-1])

    def _prepared(self, batch: Batch) -> TrainStep:
        if not self.loss.differentiable:
            raise CaptureError(undifferentiable(self.loss))
        loss, size = self.loss, self.size  # a step that held the stepper would outlive the fit
        step = TrainStep(
            lambda args, kwargs: loss(size, (args, kwargs)),
            self.optimizer,
            clip_norm=self.clip_norm,
            guard=True,
        )
        self.announce("compiling the step; this takes some seconds, less the next time")
        step.prepare(*batch)
        return step

    @property
    def compile_seconds(self) -> float:
        return self.step.seconds if self.step else 0.0


def make_stepper(
    loss: BatchLoss,
    optimizer: Optimizer,
    clip_norm: float | None,
    mode: CompileMode,
    size: int,
    num_steps: int,
) -> Stepper:
    """Make the stepper for a compile mode.

    Minibatches have `size` data.

    Raises:
        ValueError: for True with an objective that has no differentiable loss.
    """
    if mode is True and not loss.differentiable:
        raise ValueError(f"compile is True but {undifferentiable(loss)}")
    if mode is False:
        return Stepper(loss, optimizer, clip_norm)
    return CompiledStepper(loss, optimizer, clip_norm, mode, size, num_steps)


def undifferentiable(loss: BatchLoss) -> str:
    """Why an objective without a differentiable loss is not compiled."""
    return (
        f"{type(loss.objective).__name__} has no differentiable loss, so that its step cannot be "
        "captured; use an objective of ppl_dgm.objectives, or compile=False"
    )
