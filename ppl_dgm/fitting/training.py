"""The training loop: steps, validation, callbacks, interruption."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_dgm.fitting.batches import Batches, Rows
from ppl_dgm.fitting.callbacks import Callback, Progress
from ppl_dgm.fitting.identity import identity_of_fit
from ppl_dgm.fitting.learners import Learner
from ppl_dgm.fitting.loss import BatchLoss, Told, explain_nonfinite
from ppl_dgm.fitting.result import Fit, NonFiniteError, Stopped
from ppl_dgm.fitting.settling import restless
from ppl_dgm.fitting.state import FitState
from ppl_dgm.generators import generator_states, seed_generators, set_generator_states
from ppl_dgm.objectives import Objective
from ppl_dgm.program.identity import Identity
from ppl_dgm.program.isolation import evaluating
from ppl_dgm.program.seeding import seeded
from ppl_dgm.pyro_state import deferred_interrupts
from ppl_dgm.ranks import Ranks

__all__ = ["Training", "device_of"]

LONGEST = 256  # steps of one compiled call, so that Ctrl-C and the progress bar need not wait long


@dataclass
class Training:
    """One fit in progress.

    See `ppl_dgm.fitting` for the meaning of the settings.
    """

    loss: BatchLoss
    batches: Batches
    learners: tuple[Learner, ...]
    num_steps: int
    valid: Batches | None
    valid_every: int
    callbacks: tuple[Callback, ...] = ()
    ranks: Ranks = field(default_factory=Ranks)
    state: FitState = field(default_factory=FitState)
    notes: list[str] = field(default_factory=list)

    def run(self) -> Fit:
        """Train to the end and return the fit.

        Callbacks and Ctrl-C end it sooner, with what was learned so far.
        """
        start = time.perf_counter()
        for learner in self.learners:
            learner.stepper.announce = self._announce
        with deferred_interrupts() as interrupted, ExitStack() as stack:
            for callback in self.callbacks:
                stack.callback(callback.on_close)
            found = self._finish(self._run(start, interrupted), start)
            self._tell_end(found)
        return found

    def _run(self, start: float, interrupted: Callable[[], bool]) -> Stopped:
        """Train, and say how it ended.

        What is raised takes along what was learned before.
        """
        asked = self._tell("on_start")
        try:
            stopped = self._loop(asked, interrupted)
            self._tell("on_stop")
            return stopped
        except KeyboardInterrupt:  # a second one, or one that a program or a callback raised
            self._announce_interrupt()
            return "interrupted"
        except BaseException as error:
            is_nonfinite = isinstance(error, NonFiniteError)
            _attach(error, self._finish("nonfinite" if is_nonfinite else "failed", start))
            raise

    def _loop(self, asked: bool, interrupted: Callable[[], bool]) -> Stopped:
        dealt = self.batches.from_step(self.state.step * self._width)
        if self.state.step:
            asked |= self._is_ended_by_validation()  # where an error had come first
        while (ended := self._ended(asked, interrupted())) is None:
            ahead = self._ahead()
            if ahead > 1:
                self._rounds([next(dealt)[1] for _ in range(ahead)])
            else:
                self._round([next(dealt) for _ in range(self._width)])
            with self._kept(interrupted):
                asked = self._is_ended_by_validation()
                asked |= self._tell("on_step")
        if ended == "interrupted":
            self._announce_interrupt()
        return ended

    @contextmanager
    def _kept(self, interrupted: Callable[[], bool]) -> Iterator[None]:
        """Let callbacks save where a block between two steps raises.

        A second Ctrl-C stops at once. Several processes would wait for each other.
        """
        try:
            yield
        except BaseException as error:
            at_once = isinstance(error, KeyboardInterrupt) and interrupted()
            if self.ranks.size == 1 and not at_once:
                self._tell("on_stop")
            raise

    def _tell_end(self, found: Fit) -> None:
        """Tell all callbacks the end, also where one raises."""
        try:
            with ExitStack() as stack:
                for callback in reversed(self.callbacks):
                    stack.callback(callback.on_end, found)
        except KeyboardInterrupt:
            return
        except BaseException as error:
            _attach(error, found)
            raise

    def _ended(self, asked: bool, interrupted: bool) -> Stopped | None:
        """How the fit ends here, the same in all processes."""
        reason = self.ranks.most(2 * interrupted + asked, self.device)
        if reason:
            return "interrupted" if reason > 1 else "early"
        return "finished" if self.state.step >= self.num_steps else None

    def _tell(self, event: str) -> bool:
        """Tell callbacks where the fit is; whether one ends it."""
        heard = self._listening if event == "on_step" else self.callbacks
        asked = False
        for callback in heard:
            if event != "on_step" or not callback.every or self.state.step % callback.every == 0:
                asked |= getattr(callback, event)(self._progress()) is True
        return asked

    @property
    def _listening(self) -> list[Callback]:
        """Callbacks that hear of steps."""
        return [one for one in self.callbacks if type(one).on_step is not Callback.on_step]

    def _progress(self) -> Progress:
        state = self.state
        return Progress(
            program=self.loss.program,
            step=state.step,
            objective=state.objective[-1] if state.objective else None,
            valid=state.valid[-1] if state.valid else None,
            history=state.figures(self.valid is not None),
            num_steps=self.num_steps,
            epoch_steps=self.epoch_steps,
            running=self,
        )

    @property
    def epoch_steps(self) -> int:
        """Steps in a pass over the data."""
        return -(-self.batches.per_epoch // self._width)

    def _ahead(self) -> int:
        """Count the steps that one compiled call can make.

        Nothing may have to be done between them.
        """
        first, *others = self.learners
        follows = callable(getattr(self.loss.objective, "kl_weight", None))
        if others or not first.has_loop or follows:
            return 1
        step = self.state.step
        rhythms = [one.every for one in self._listening if one.every]
        rhythms += [self.valid_every] if self.valid else []
        ends = [self.num_steps - step, LONGEST, *(every - step % every for every in rhythms)]
        full = self.batches.full_from_step(step)
        return max(1, min(ends if full is None else [*ends, full]))

    def _announce(self, message: str) -> None:
        for callback in self.callbacks:
            callback.on_note(message)

    def _announce_interrupt(self) -> None:
        self._announce(f"interrupted at step {self.state.step}; returning what was learned")

    def note(self, message: str) -> None:
        """Add a line to the notes of the fit."""
        if message not in self.notes:
            self.notes.append(message)
            self._announce(message)

    def _anneal(self, step: int) -> None:
        """Tell an objective with an annealed weight the step."""
        if hasattr(self.loss.objective, "set_step"):
            self.loss.objective.set_step(step)  # type: ignore[attr-defined]

    @property
    def _width(self) -> int:
        """Minibatches in a round."""
        return max(learner.num_steps for learner in self.learners)

    def _round(self, dealt: list[tuple[int, Rows]]) -> None:
        """Let each learner make its steps, the last one first."""
        self._anneal(self.state.step)
        values = {
            learner.name: [self._step(learner, *part) for part in dealt[: learner.num_steps]]
            for learner in reversed(self.learners)
        }
        means = {name: -sum(s[0] for s in steps) / len(steps) for name, steps in values.items()}
        self.state.keep([fmean(c) for c in zip(*values[self.learners[0].name], strict=True)])
        if len(self.learners) > 1:
            self.state.keep_players(means)

    def _rounds(self, rows: list[Rows]) -> None:
        """Let the only learner make many steps in one call."""
        learner = self.learners[0]
        values = learner.steps(self.batches.batch_size, rows)
        sound = [value for value in values if math.isfinite(value[0])]
        for value in sound:
            self.state.keep(value)
        self._anneal(self.state.step - 1)
        if len(sound) < len(values):
            self._stop_nonfinite(learner, values[-1][0], rows[len(sound)])

    def _step(self, learner: Learner, size: int, rows: Rows) -> Told:
        value = learner.step(size, rows)
        if not math.isfinite(value[0]):
            self._stop_nonfinite(learner, value[0], rows)
        return value

    def _stop_nonfinite(self, learner: Learner, value: float, rows: Rows) -> None:
        batch, parameters = self.batches.select(rows), self._named_parameters()
        norm = torch.nn.utils.get_total_norm(list(parameters.values()))
        reason = explain_nonfinite(self.loss.program, batch, parameters.items())
        whose = f" of the player {learner.name!r}" if len(self.learners) > 1 else ""
        raise NonFiniteError(
            f"the objective{whose} or its gradient is not finite at step {self.state.step} "
            f"({-value} nats per datum): {reason}; the norm of the parameters is {norm:.6g}. Lower "
            "the learning rate, clip gradients with clip_norm, or bound the scale at that site; "
            "what was learned before is in the error's .fit"
        )

    def _named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """All parameters, those outside the program under their player's name."""
        program = self.loss.program
        own, known = dict(program.named_parameters()), {id(p) for p in program.parameters()}
        return own | {
            f"{learner.name}.{name}": parameter
            for learner in self.learners
            for name, parameter in learner.module.named_parameters()
            if id(parameter) not in known
        }

    def _is_ended_by_validation(self) -> bool:
        """Validate if it is time; whether that ends it."""
        step = self.state.step
        due = step % self.valid_every == 0 or step == self.num_steps
        if self.valid is None or not due or self.state.valid_step[-1:] == [step]:
            return False
        self._validate(self.valid)
        return self._tell("on_validation")

    def _validate(self, valid: Batches) -> None:
        program = self.loss.program
        loss = BatchLoss(program, self.loss.objective, valid.num_data, self.loss.per_datum)
        self._anneal(
            self.num_steps
        )  # one weight for all validations: with less of the KL early ones would look best
        modules = [learner.module for learner in self.learners]
        with evaluating(program, *modules), torch.no_grad(), seeded(0, self.device, apart=False):
            mine = islice(valid.in_order(), self.ranks.rank, None, self.ranks.size)
            parts = [
                [size / valid.num_data * number for number in loss.numbers(size, batch)]
                for size, batch in mine
            ]
        told = self._sum(parts)
        for learner in self.learners:
            learner.validated(told[0])
        if self.state.keep_validation(told):
            self.state.best = tree_map(torch.clone, self._weights())

    def _sum(self, parts: Iterable[Told]) -> Told:
        """Add what was told in all processes."""
        found = list(chain.from_iterable(self.ranks.gather(list(parts))))
        return [sum(column) for column in zip(*found, strict=True)]

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """All modules with learned tensors, by name.

        The program comes first, then modules of the players' own, then averages.
        """
        program = self.loss.program
        own = {one.name: one.module for one in self.learners if one.module is not program}
        averages = {one.name: one.average for one in self.learners if one.average is not None}
        return (
            {"program": program}
            | {f"player {name}": module for name, module in own.items()}
            | {f"average of {name}": module for name, module in averages.items()}
        )

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        return {name: module.state_dict() for name, module in self.modules.items()}

    def _load_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(weights[name])

    def _finish(self, stopped: Any, start: float) -> Fit:
        for learner in self.learners:
            learner.optimizer.state_dict()  # brings its counts of steps up to the compiled ones
        if self.state.best is not None:
            self._load_weights(self.state.best)
        unlike = list(self.loss.program.unlike_pyro)
        if unlike and isinstance(self.loss.objective, Objective):
            self.note(
                f"the sites {unlike} count otherwise than in Pyro's losses: masks of model and "
                "guide differ, so that what is masked would not cancel, or data are off their "
                "support"
            )
        history = self.state.history(self.valid is not None)
        if curves := restless(history):
            self.note(
                f"the game has not settled: the curves {curves} swing on as widely as before; "
                "regularise the critic (r1=, gradient_penalty=), lower the learning rates, or keep "
                "an average (ema=)"
            )
        return Fit(
            program=self.loss.program,
            history=history,
            steps=self.state.step,
            stopped=stopped,
            seconds=time.perf_counter() - start,
            compile_seconds=sum(learner.stepper.compile_seconds for learner in self.learners),
            notes=tuple(
                dict.fromkeys(chain(self.notes, *(s.stepper.notes for s in self.learners)))
            ),
            epoch_steps=self.epoch_steps,
            averages={one.name: one.average.module for one in self.learners if one.average},
        )

    # ---- what callbacks that keep a fit ask of it ----------------------------------------------

    @property
    def device(self) -> torch.device | None:
        """Where the parameters are."""
        return device_of(self.loss.program)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.ranks.is_first

    def identity(self) -> Identity:
        """What must agree for two fits to be one."""
        settings = {"valid_every": self.valid_every}
        for callback in self.callbacks:
            settings |= callback.identity
        return identity_of_fit(
            self.loss.program,
            self.loss.objective,
            self.batches,
            self.valid,
            self.learners,
            **settings,
        )

    def snapshot(self) -> dict[str, Any]:
        """What the fit needs to go on bit by bit."""
        schedulers = {one.name: one.scheduler for one in self.learners}
        return self._weights() | {
            "optimizer": {one.name: one.optimizer.state_dict() for one in self.learners},
            "scheduler": {
                name: one.state_dict() for name, one in schedulers.items() if one is not None
            },
            "state": vars(self.state),
            "generators": self.ranks.gather(generator_states(self.device)),
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""
        self._load_weights(content)
        for learner in self.learners:
            learner.optimizer.load_state_dict(content["optimizer"][learner.name])
            if learner.scheduler is not None:
                learner.scheduler.load_state_dict(content["scheduler"][learner.name])
        self.state = FitState(**content["state"])
        self._resume_generators(content["generators"])

    def _resume_generators(self, states: list[dict[str, Tensor]]) -> None:
        """Go on with the draws of this process.

        Another number of processes than before starts new streams at this step.
        """
        if len(states) == self.ranks.size:
            set_generator_states(states[self.ranks.rank])
        else:
            seed = self.ranks.seed(self.batches.seed * 1_000_003 + self.state.step)
            seed_generators(seed, self.device)


def _attach(error: BaseException, found: Fit) -> None:
    """Give an error what was learned before it."""
    error.fit = found  # type: ignore[attr-defined]
    if not isinstance(error, NonFiniteError):
        error.add_note(f"after {found.steps} steps of a fit, which is the error's .fit")


def device_of(program: torch.nn.Module) -> torch.device | None:
    """Device of the parameters."""
    return next((parameter.device for parameter in program.parameters()), None)
