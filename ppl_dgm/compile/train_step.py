"""Whole training step as one compiled call.

It covers program, loss, gradient, clipping and optimiser.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from ppl_dgm.compile.errors import CaptureError
from ppl_dgm.compile.inductor.backend import Backend, Compiled, compile_captured
from ppl_dgm.compile.optimisers import GraphOptimiser
from ppl_dgm.compile.scan import Loop, compile_loop
from ppl_dgm.compile.specialisations import Versions
from ppl_dgm.compile.tracing.capture import capture
from ppl_dgm.compile.tracing.known_values import constant_data
from ppl_dgm.compile.tracing.pytrees import Rest, laid_out, leaves_and_rest, looks, tensor_leaves

__all__ = ["TrainStep"]

Gradients = dict[torch.Tensor, torch.Tensor]

_SMALL = (
    4096  # parameters; above, a step takes long enough for the way through Python not to matter
)
_CHUNK = 256  # steps of one compiled loop


class TrainStep:
    r"""Compiled step of stochastic optimisation.

    One call makes the step $\theta \leftarrow U(\theta, \nabla_\theta L(\theta, x))$.

    The first call for each shape of batch captures and compiles (seconds); later ones run machine
    code. Parameters, buffers and optimiser state are changed in place: they are the module's and
    the optimiser's own tensors, so that compiled steps, eager steps and checkpoints mix freely.
    Learning rates and all other numbers are read from the optimiser at every step, so schedules
    work as they are. Where one of these numbers becomes zero or ceases to be, an option of the
    optimiser is switched, parameters are frozen, thawed or added to it, or a module's mode, numbers
    or tensors are replaced, the next call captures anew.

    Args:
        loss: function of the batch that returns a differentiable scalar (nats, for the objectives
            here), or a pair of it and a vector of numbers to be told beside it. It is run under
            Pyro's handlers at capture only, so it must not read values on the host.
        optimizer: `Adam`, `AdamW` or `SGD` of `torch.optim`, holding the parameters to train.
        clip_norm: scale gradients so that their joint norm is at most this.
        clip_value: clamp every entry of the gradients to plus or minus this (after `clip_norm`).
        guard: where the loss or a gradient is not finite, move nothing and return NaN as the loss.
        select: `(batch, rows) -> batch`, the minibatch of data that a row of `repeat` names.
        constant: the batch is the same at every call, so that the loss may read its values; where
            they are other ones, the next call captures anew.
        backend: as in `compile_function`.

    Attributes:
        seconds: how long capture and compilation took so far.

    Raises:
        CaptureError: at once for another optimiser; at the first call for a loss that cannot be
            captured or compiled; where a module keeps being set to what it has not been set to
            before.

    Example:
        >>> import torch
        >>> from ppl_dgm.compile import TrainStep
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> step = TrainStep(lambda x: ((weight - x) ** 2).sum(), optimizer, backend="eager")
        >>> step(torch.ones(2))
        tensor(2.)
        >>> weight.data
        tensor([1., 1.])
    """

    def __init__(
        self,
        loss: Callable[..., torch.Tensor | tuple[torch.Tensor, torch.Tensor]],
        optimizer: Optimizer,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        guard: bool = False,
        select: Callable[[Any, torch.Tensor], Any] | None = None,
        constant: bool = False,
        backend: Backend = "inductor",
    ) -> None:
        self._loss, self._guard, self._select = loss, guard, select
        self._constant = constant
        self._backend: Backend = backend
        self._clip_norm, self._clip_value = (
            _positive("clip_norm", clip_norm),
            _positive("clip_value", clip_value),
        )
        self._optimiser = GraphOptimiser(optimizer)
        self.seconds = 0.0
        self._compiled = Versions[Compiled](lambda compiled: compiled.captured)
        self._loops = Versions[Loop](lambda loop: loop.compiled.captured)
        self._device = self._optimiser.parameters[0].device
        self._rates = torch.empty(0, dtype=torch.float64, device="cpu")
        self._numbers = self._rates.numpy()

    @contextmanager
    def _clock(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def _key(self, leaves: list[torch.Tensor], rest: Rest) -> Any:
        kind = self._optimiser.parameters[0].dtype  # a module can be converted between two steps
        values = [(leaf.data_ptr(), leaf._version) for leaf in leaves if self._constant]
        return looks(leaves), rest, kind, self._optimiser.arrangement, tuple(values)

    def _known(self, batch: Any) -> AbstractContextManager[None]:
        return constant_data(tensor_leaves(batch) if self._constant else ())

    def __call__(self, *batch: Any) -> torch.Tensor:
        """Make one step on a batch and return its loss.

        The loss, `[]` or `[numbers]`, is detached.
        """
        self._follow()
        leaves, rest = leaves_and_rest(batch)
        compiled = self._compiled.find(self._key(leaves, rest)) or self.prepare(*batch)
        captured = compiled.captured
        return compiled.run(
            *laid_out(leaves, captured.examples), self._next_rates(), *captured.lifted
        )[0]

    @property
    def has_loops(self) -> bool:
        """Whether `repeat` runs in a compiled loop."""
        return self._optimiser.size <= _SMALL and self._device.type == "cpu"

    def repeat(
        self,
        count: int,
        *batch: Any,
        rows: torch.Tensor | None = None,
        between: Callable[[], Any] | None = None,
    ) -> torch.Tensor:
        """Make `count` steps and return their losses.

        The losses have shape `[count]`, or `[count, numbers]`. With `guard`, nothing moves after
        the first one that is not finite, and all later ones are NaN.

        Programs with few parameters run in a compiled loop that does not return to Python between
        steps; the numbers of the optimiser are then read before.

        Args:
            count: number of steps.
            *batch: the arguments of the loss, the same for all steps.
            rows: `[count, size]`, whole numbers; each step's batch is then `select(batch, row)`.
            between: called after each step's numbers were read, to step a scheduler.
        """
        self._follow()
        if not self.has_loops:
            return self._repeat_in_python(count, batch, rows, between)
        loop = self.prepare_loop(*batch, rows=rows)
        parts = [
            self._run_loop(loop, batch, rows, start, min(_CHUNK, count - start), between)
            for start in range(0, count, _CHUNK)
        ]
        return torch.cat(parts)

    def _repeat_in_python(
        self, count: int, batch: Any, rows: torch.Tensor | None, between: Any
    ) -> torch.Tensor:
        losses = []
        for place in range(count):
            losses.append(self(*(batch if rows is None else self._picked(batch, rows[place]))))
            if self._guard and not bool(torch.isfinite(losses[-1].reshape(-1)[0])):
                losses += [losses[-1]] * (count - len(losses))
                break
            if between is not None:
                between()
        return torch.stack(losses)

    def _picked(self, batch: Any, row: torch.Tensor) -> Any:
        if self._select is None:
            raise ValueError("rows were given to a step that was made without select")
        return self._select(batch, row)

    def prepare_loop(self, *batch: Any, rows: torch.Tensor | None = None) -> Loop:
        """Compile the loop for a batch of this shape.

        No step is made.

        Nothing is done if that has been compiled before.
        """
        self._follow()
        width = None if rows is None else rows.shape[1]
        key = self._key(*leaves_and_rest(batch)), width
        return self._loops.find(key) or self._loops.add(key, lambda: self._make_loop(batch, width))

    def _make_loop(self, batch: Sequence[Any], width: int | None) -> Loop:
        numbers = self._example_rates().repeat(_CHUNK, 1)
        inputs = (numbers,) if width is None else (numbers, self._blank_rows(width))
        alive = torch.ones((), dtype=torch.bool, device=self._device)
        with self._clock(), self._known(batch):
            return compile_loop(self._loop_step, alive, inputs, batch, backend=self._backend)

    def _blank_rows(self, width: int) -> torch.Tensor:
        return torch.zeros(_CHUNK, width, dtype=torch.int64, device=self._device)

    def _loop_step(
        self, alive: torch.Tensor, inputs: Sequence[torch.Tensor], batch: Sequence[Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        numbers, *row = inputs
        loss, sound = self._step(self._picked(batch, *row) if row else batch, numbers, alive)
        return sound, loss

    def _run_loop(
        self,
        loop: Loop,
        batch: Sequence[Any],
        rows: torch.Tensor | None,
        start: int,
        steps: int,
        between: Callable[[], Any] | None,
    ) -> torch.Tensor:
        numbers = self._optimiser.table(steps, between)
        table = torch.zeros(loop.length, numbers.shape[1], dtype=torch.float64, device="cpu")
        table[:steps] = torch.from_numpy(numbers)
        inputs: tuple[torch.Tensor, ...] = (table,)
        if rows is not None:
            padded = self._blank_rows(rows.shape[1])
            padded[:steps] = rows[start : start + steps]
            inputs = (table, padded)
        alive = torch.ones((), dtype=torch.bool, device=self._device)
        losses = loop(alive, inputs, batch, steps)[1][:steps]
        if self._guard:
            self._optimiser.take_back(int(losses.reshape(steps, -1)[:, 0].isnan().sum()))
        return losses

    def prepare(self, *batch: Any) -> Compiled:
        """Compile for a batch of this shape without a step.

        Nothing is done if that has been compiled before.
        """
        self._follow()
        key = self._key(*leaves_and_rest(batch))
        return self._compiled.find(key) or self._compiled.add(key, lambda: self._make(batch))

    def _make(self, batch: Sequence[Any]) -> Compiled:
        with self._clock(), self._known(batch):
            captured = capture(self._lone_step, (batch, self._example_rates()))
            return compile_captured(captured, backend=self._backend)

    def knows(self, *batch: Any) -> bool:
        """Whether a batch of this shape runs without compiling."""
        return self._compiled.find(self._key(*leaves_and_rest(batch))) is not None

    def eager(self, *batch: Any) -> torch.Tensor:
        """Make the same step without the compiler.

        It is for a last, odd minibatch that does not justify a compilation.
        """
        self._follow()
        return self._lone_step(batch, self._next_rates())

    def _follow(self) -> None:
        """Adapt to changes of the optimiser between two steps.

        Its parameters and options may change.
        """
        if not self._optimiser.is_current():
            self._optimiser.flush()
            self._optimiser = GraphOptimiser(self._optimiser.optimizer)
            self._compiled.clear()
            self._loops.clear()

    def _next_rates(self) -> torch.Tensor:
        numbers = self._optimiser.rates()
        if len(numbers) != len(self._numbers):  # a checkpoint may split or join the cohorts
            self._rates = torch.empty(len(numbers), dtype=torch.float64, device="cpu")
            self._numbers = self._rates.numpy()
        self._numbers[:] = numbers
        return self._rates if self._device.type == "cpu" else self._rates.to(self._device)

    def _example_rates(self) -> torch.Tensor:
        count = sum(
            len(self._optimiser.rule.rates(cohort.group, 1)) for cohort in self._optimiser.cohorts
        )
        return torch.ones(count, dtype=torch.float64, device=self._device)

    def _lone_step(self, batch: Sequence[Any], rates: torch.Tensor) -> torch.Tensor:
        return self._step(batch, rates, None)[0]

    def _step(
        self, batch: Sequence[Any], rates: torch.Tensor, alive: torch.Tensor | None
    ) -> tuple[torch.Tensor, Any]:
        """Make one step and tell whether all were sound.

        `alive` tells that for those before; None is for a step without any.
        """
        parameters = self._optimiser.parameters
        with torch.enable_grad():
            loss, told = _with_numbers(self._loss(*batch))
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            gradients = {
                p: gradient
                for p, gradient in zip(parameters, found, strict=True)
                if gradient is not None
            }
            if not self._guard and self._clip_norm is None:
                self._optimiser.move(self._clamped(gradients), rates)
                return told.detach(), alive
            norm = _joint_norm(gradients)
            if not self._guard:
                self._optimiser.move(self._clamped(self._scaled(gradients, norm)), rates)
                return told.detach(), alive
            sound = torch.isfinite(norm) & torch.isfinite(loss)
            sound = sound if alive is None else sound & alive
            self._optimiser.move(self._clamped(self._scaled(gradients, norm)), rates, sound)
            return torch.where(sound, told.detach(), torch.nan), sound

    def _scaled(self, gradients: Gradients, norm: torch.Tensor) -> Gradients:
        if self._clip_norm is None:
            return gradients
        factor = (self._clip_norm / (norm + 1e-6)).clamp(max=1.0)
        return {parameter: gradient * factor for parameter, gradient in gradients.items()}

    def _clamped(self, gradients: Gradients) -> Gradients:
        if self._clip_value is None:
            return gradients
        return {
            p: gradient.clamp(-self._clip_value, self._clip_value)
            for p, gradient in gradients.items()
        }


def _with_numbers(given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a loss `[]` and what a step tells."""
    loss, *beside = given if isinstance(given, tuple) else (given,)
    if loss.dim() != 0:
        raise CaptureError(f"the loss must be a scalar, got shape {tuple(loss.shape)}")
    return loss, torch.cat([loss.reshape(1), *beside]) if beside else loss


def _joint_norm(gradients: Gradients) -> torch.Tensor:
    return torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()])
    )


def _positive(name: str, value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}; leave it out for no clipping")
    return value
