"""The training loop: steps, validation, checkpoints, interruption."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from tqdm.auto import tqdm

from ppl_dgm.fitting.batches import Batches, Rows
from ppl_dgm.fitting.callbacks import Callback, Progress
from ppl_dgm.fitting.checkpoint import CheckpointFile, identity_of_fit
from ppl_dgm.fitting.learners import Learner
from ppl_dgm.fitting.loss import TERMS, BatchLoss, Told, explain_nonfinite
from ppl_dgm.fitting.result import Fit, NonFiniteError, Stopped
from ppl_dgm.generators import generator_states, seed_generators, set_generator_states
from ppl_dgm.objectives import Objective
from ppl_dgm.program import evaluating
from ppl_dgm.program.seeding import seeded
from ppl_dgm.pyro_state import deferred_interrupts
from ppl_dgm.ranks import Ranks

__all__ = ["Training", "device_of"]

LONGEST = 256  # steps of one compiled call, so that Ctrl-C and the progress bar need not wait long


@dataclass
class State:
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

    @property
    def stale(self) -> int:
        """Validations since the best one; NaN is worst."""
        ranks = [-math.inf if math.isnan(value) else value for value in self.valid]
        return len(ranks) - 1 - ranks.index(max(ranks)) if ranks else 0


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
    patience: int | None
    progress: bool
    callbacks: tuple[Callback, ...] = ()
    file: CheckpointFile | None = None
    ranks: Ranks = field(default_factory=Ranks)
    state: State = field(default_factory=State)
    notes: list[str] = field(default_factory=list)

    def run(self) -> Fit:
        """Train to the end and return the fit.

        Early stopping and Ctrl-C end it sooner, with what was learned so far.
        """
        if self.file:
            self._resume(self.file)
        start, stopped = time.perf_counter(), "interrupted"
        with tqdm(
            total=self.num_steps, initial=self.state.step, disable=not self.progress, unit="step"
        ) as bar:
            for learner in self.learners if self.progress else ():
                learner.stepper.announce = bar.write
            try:
                with deferred_interrupts() as interrupted:
                    stopped = self._loop(bar, interrupted)
            except KeyboardInterrupt:  # a second one, or one that a program raised
                bar.write(f"interrupted at step {self.state.step}; returning what was learned")
            except NonFiniteError as error:
                error.fit = self._finish("nonfinite", start)
                raise
            found = self._finish(stopped, start)
            bar.set_postfix_str(f"{self._figures()}, {self._ending(found)}")
        for callback in self.callbacks:
            callback.on_end(found)
        return found

    def _tell(self, event: str) -> None:
        """Tell all callbacks where the fit is."""
        if self.callbacks:
            state = self.state
            valid = state.valid[-1] if state.valid else None
            now = Progress(self.loss.program, state.step, state.objective[-1], valid)
            for callback in self.callbacks:
                getattr(callback, event)(now)

    def _loop(self, bar: tqdm, interrupted: Callable[[], bool]) -> Stopped:
        dealt = self.batches.from_step(self.state.step * self._width)
        while self.patience is None or self.state.stale < self.patience:
            if self.state.step >= self.num_steps:
                return "finished"
            before = self.state.step
            ahead = self._ahead()
            if ahead > 1:
                self._rounds([next(dealt)[1] for _ in range(ahead)])
            else:
                self._round([next(dealt) for _ in range(self._width)])
            bar.update(self.state.step - before)
            self._show(bar, before)
            self._tell("on_step")
            if self.valid and self._is_due(self.valid_every):
                self._validate(self.valid)
                self._tell("on_validation")
            if self.file and self._is_due(self.file.every):
                self._save(self.file)
            if self.ranks.any(interrupted(), device_of(self.loss.program)):
                self._stop(bar)
                return "interrupted"
        return "early"

    def _ending(self, found: Fit) -> str:
        """How the fit ended, for its bar."""
        step, state = self.state.step, self.state
        told = "still improving at the cap" if found.improving else found.stopped
        if found.stopped == "early":
            told = f"stopped early at {step}"
        if state.best is None:
            return told
        best = max(state.valid)
        return f"{told}, best at {state.valid_step[state.valid.index(best)]} restored"

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.num_steps

    def _ahead(self) -> int:
        """Count the steps that one compiled call can make.

        Nothing may have to be done between them.
        """
        first, *others = self.learners
        if others or not first.has_loop or self._is_watched:
            return 1
        step = self.state.step
        ends = [self.num_steps - step, LONGEST]
        ends += [self.valid_every - step % self.valid_every] if self.valid else []
        ends += [self.file.every - step % self.file.every] if self.file else []
        full = self.batches.full_from_step(step)
        return max(1, min(ends if full is None else [*ends, full]))

    @property
    def _is_watched(self) -> bool:
        """Whether each step is followed or changed from outside."""
        watched = any(type(one).on_step is not Callback.on_step for one in self.callbacks)
        return watched or callable(getattr(self.loss.objective, "kl_weight", None))

    def _stop(self, bar: tqdm) -> None:
        if self.file:
            self._save(self.file)
        bar.write(f"interrupted at step {self.state.step}; returning what was learned")

    def _note(self, message: str) -> None:
        if message not in self.notes:
            self.notes.append(message)
            tqdm.write(message)

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
        self.state.objective.append(means[self.learners[0].name])
        self._keep_terms(
            [fmean(column) for column in zip(*values[self.learners[0].name], strict=True)]
        )
        if len(self.learners) > 1:
            for name, mean in means.items():
                self.state.players.setdefault(name, []).append(mean)
        self.state.step += 1

    def _rounds(self, rows: list[Rows]) -> None:
        """Let the only learner make many steps in one call."""
        learner = self.learners[0]
        values = learner.steps(self.batches.batch_size, rows)
        sound = [value for value in values if math.isfinite(value[0])]
        self.state.objective += [-value[0] for value in sound]
        for value in sound:
            self._keep_terms(value)
        self.state.step += len(sound)
        self._anneal(self.state.step - 1)
        if len(sound) < len(values):
            self._stop_nonfinite(learner, values[-1][0], rows[len(sound)])

    def _keep_terms(self, told: Told, prefix: str = "") -> None:
        """Keep the terms of an ELBO beside its loss."""
        for name, value in zip(TERMS, told[1:], strict=False):
            self.state.terms.setdefault(prefix + name, []).append(value)

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

    def _show(self, bar: tqdm, before: int) -> None:
        every = max(1, self.num_steps // 200)
        if self.state.step // every > before // every:
            bar.set_postfix_str(self._figures(), refresh=False)

    def _figures(self) -> str:
        """The objective of the last steps, and of validation."""
        recent = self.state.objective[-100:]
        shown = f"nats/datum={sum(recent) / max(1, len(recent)):.3f}"
        return f"{shown}, valid={self.state.valid[-1]:.3f}" if self.state.valid else shown

    def _validate(self, valid: Batches) -> None:
        program = self.loss.program
        loss = BatchLoss(program, self.loss.objective, valid.num_data, self.loss.per_datum)
        self._anneal(
            self.num_steps
        )  # one weight for all validations: with less of the KL early ones would look best
        modules = [learner.module for learner in self.learners]
        with evaluating(program, *modules), torch.no_grad(), seeded(0, device_of(program)):
            mine = islice(valid.in_order(), self.ranks.rank, None, self.ranks.size)
            parts = [
                [size / valid.num_data * number for number in loss.numbers(size, batch)]
                for size, batch in mine
            ]
        told = self._sum(parts)
        self.state.valid_step.append(self.state.step)
        self.state.valid.append(-told[0])
        self._keep_terms(told, "valid_")
        for learner in self.learners:
            learner.validated(told[0])
        if self.state.stale == 0 and math.isfinite(self.state.valid[-1]):
            self.state.best = tree_map(torch.clone, self._weights())

    def _sum(self, parts: Iterable[Told]) -> Told:
        """Add what was told in all processes."""
        found = list(chain.from_iterable(self.ranks.gather(list(parts))))
        return [sum(column) for column in zip(*found, strict=True)]

    @property
    def _modules(self) -> dict[str, torch.nn.Module]:
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
        return {name: module.state_dict() for name, module in self._modules.items()}

    def _load_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, module in self._modules.items():
            module.load_state_dict(weights[name])

    def _finish(self, stopped: Any, start: float) -> Fit:
        for learner in self.learners:
            learner.optimizer.state_dict()  # brings its counts of steps up to the compiled ones
        if self.state.best is not None:
            self._load_weights(self.state.best)
        unlike = list(self.loss.program.unlike_pyro)
        if unlike and isinstance(self.loss.objective, Objective):
            self._note(
                f"the sites {unlike} count otherwise than in Pyro's losses: masks of model and "
                "guide differ, so that what is masked would not cancel, or data are off their "
                "support"
            )
        return Fit(
            program=self.loss.program,
            history=self._history(),
            steps=self.state.step,
            stopped=stopped,
            seconds=time.perf_counter() - start,
            compile_seconds=sum(learner.stepper.compile_seconds for learner in self.learners),
            notes=tuple(
                dict.fromkeys(chain(self.notes, *(s.stepper.notes for s in self.learners)))
            ),
            epoch_steps=-(-self.batches.per_epoch // self._width),
            averages={one.name: one.average.module for one in self.learners if one.average},
        )

    def _history(self) -> dict[str, Tensor]:
        state = self.state
        figures = {"objective": state.objective, **state.players, **state.terms}
        history = {"step": torch.arange(1, state.step + 1)}
        history |= {
            name: torch.tensor(values, dtype=torch.float64) for name, values in figures.items()
        }
        if self.valid:
            history["valid_step"] = torch.tensor(state.valid_step, dtype=torch.long)
            history["valid"] = torch.tensor(state.valid, dtype=torch.float64)
        return history

    # ---- checkpoints ---------------------------------------------------------------------------

    def keep_in(self, path: str | PathLike, every: int, resume: bool = True) -> None:
        """Save the progress to a file every `every` steps.

        With `resume`, training goes on from the file if it exists.
        """
        identity = identity_of_fit(
            self.loss.program,
            self.loss.objective,
            self.batches,
            self.valid,
            self.learners,
            valid_every=self.valid_every,
            patience=self.patience,
        )
        self.file = CheckpointFile(Path(path), every, identity, self._modules, resume)

    def _save(self, file: CheckpointFile) -> None:
        progress = self._progress()  # of every process
        if not self.ranks.is_first:
            return
        try:
            file.write(progress)
        except OSError as error:  # a full disk: the older file is as it was, and the fit goes on
            self._note(f"the checkpoint {file.path} could not be written: {error}")

    def _progress(self) -> dict[str, Any]:
        return self._weights() | {
            "optimizer": {one.name: one.optimizer.state_dict() for one in self.learners},
            "scheduler": {
                one.name: one.scheduler.state_dict()
                for one in self.learners
                if one.scheduler is not None
            },
            "state": vars(self.state),
            "generators": self.ranks.gather(generator_states(device_of(self.loss.program))),
        }

    def _resume(self, file: CheckpointFile) -> None:
        content = file.read(device_of(self.loss.program))
        if content is None:
            return
        try:
            self._load_weights(content)
        except RuntimeError as error:
            raise ValueError(
                f"the checkpoint {file.path} is of another program: {error}. Build the program as "
                "it was, or use another file"
            ) from error
        for learner in self.learners:
            learner.optimizer.load_state_dict(content["optimizer"][learner.name])
            if learner.scheduler is not None:
                learner.scheduler.load_state_dict(content["scheduler"][learner.name])
        self.state = State(**content["state"])
        self._resume_generators(content["generators"])

    def _resume_generators(self, states: list[dict[str, Tensor]]) -> None:
        """Go on with the draws of this process.

        Another number of processes than before starts new streams at this step.
        """
        if len(states) == self.ranks.size:
            set_generator_states(states[self.ranks.rank])
        else:
            seed = self.ranks.seed(self.batches.seed * 1_000_003 + self.state.step)
            seed_generators(seed, device_of(self.loss.program))


def device_of(program: torch.nn.Module) -> torch.device | None:
    """Device of the parameters."""
    return next((parameter.device for parameter in program.parameters()), None)
