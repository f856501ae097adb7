"""Learners: the parts of the parameters that a fit moves.

Each has a loss, an optimiser and a schedule.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ppl_dgm.compile import CompileMode
from ppl_dgm.fitting.batches import Batches, Rows
from ppl_dgm.fitting.loss import BatchLoss, Told
from ppl_dgm.fitting.sharing import SharedStepper
from ppl_dgm.fitting.stepping import Stepper, make_stepper
from ppl_dgm.objectives.objective import check_count
from ppl_dgm.objectives.players import Game, Player, trainable
from ppl_dgm.program import Program
from ppl_dgm.program.checks import refuse_implicit
from ppl_dgm.ranks import Ranks

__all__ = ["Learner", "Maker", "players_of"]


@dataclass(frozen=True, eq=False)
class Learner:
    """One part of the parameters and what moves it."""

    name: str
    module: nn.Module
    stepper: Stepper
    scheduler: Any
    num_steps: int = 1
    average: AveragedModel | None = None

    @property
    def optimizer(self) -> Optimizer:
        """The optimiser of its parameters."""
        return self.stepper.optimizer

    def step(self, size: int, rows: Rows) -> Told:
        """Make one step and return its loss and terms.

        They are in nats per datum; where the loss is NaN, nothing moves.
        """
        value = self.stepper(size, rows)
        if math.isfinite(value[0]):
            self._schedule()
            if self.average is not None:
                self.average.update_parameters(self.module)
        return value

    def _schedule(self) -> None:
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()

    @property
    def has_loop(self) -> bool:
        """Whether `steps` makes its steps in one compiled call.

        Nothing but numbers of the optimiser may change between them: torch's schedulers change
        nothing else.
        """
        known = self.scheduler is None or isinstance(self.scheduler, LRScheduler)
        return known and self.num_steps == 1 and self.average is None and self.stepper.has_loop

    def steps(self, size: int, rows: Sequence[Rows]) -> list[Told]:
        """Make a step on each minibatch and return the losses.

        They end with the first that is not finite.
        """
        return self.stepper.many(size, rows, self._schedule if self.scheduler else None)

    def validated(self, loss: float) -> None:
        """Pass the validation loss to the scheduler.

        Only a scheduler that follows it uses it.
        """
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be this learner's."""
        return {
            "optimizer": type(self.optimizer).__name__,
            "schedule": type(self.scheduler).__name__ if self.scheduler is not None else None,
            "num_steps": self.num_steps,
        }


def players_of(
    objective: Any, program: Program, device: Any, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[Player, ...]:
    """Return the players of an objective.

    A game sees the data first, and its players are moved to a device. Another objective has the
    program as its only player.

    Raises:
        ValueError: players that share parameters or a name; an objective that is no game for a
            program without a density.
    """
    if not isinstance(objective, Game):
        refuse_implicit(program.structure, program.site)
        return (Player("program", program, objective),)
    objective.initialise(args, kwargs)
    players = tuple(objective.players(program))
    for player in players:
        check_count(f"num_steps of the player {player.name!r}", player.num_steps)
        if device is not None and player.module is not None:
            player.module.to(device)
    check_apart(players)
    return players


def check_apart(players: Sequence[Player]) -> None:
    """Refuse players that share parameters or a name.

    Raises ValueError.
    """
    owners: dict[int, str] = {}
    if len({player.name for player in players}) < len(players):
        raise ValueError(
            f"the players are named {[player.name for player in players]}; give each a name of "
            "its own"
        )
    for player in players:
        for parameter in trainable(player.module) if player.module else ():
            other = owners.setdefault(id(parameter), player.name)
            if other != player.name:
                raise ValueError(
                    f"the players {other!r} and {player.name!r} share a parameter of shape "
                    f"{tuple(parameter.shape)}; expected each to have its own. Give one of them a "
                    "copy of the module (copy.deepcopy), or freeze what they share "
                    "(requires_grad_(False))"
                )


@dataclass(frozen=True)
class Maker:
    """Factory of learners for the players of a fit.

    It holds what all players have in common.

    Args:
        program: the program.
        num_data: size of the data plate.
        per_datum: whether each datum has latents of its own alone.
        batches: minibatches of the data.
        num_rounds: rounds to make.
        optimizer, schedule: for players without their own.
        clip_norm: largest joint norm of one player's gradient.
        compile: the compile mode.
        valid: validation data, or None.
        ranks: the processes that share the steps.
        autocast: dtype of products, or None.
    """

    program: Program
    num_data: int
    per_datum: bool
    batches: Batches
    num_rounds: int
    optimizer: Callable[[Any], Optimizer]
    schedule: Callable[[Optimizer], Any] | None
    clip_norm: float | None
    compile: CompileMode
    valid: Any
    ranks: Ranks
    autocast: torch.dtype | None = None

    def __call__(self, player: Player) -> Learner:
        module = self.program if player.module is None else player.module
        owner = "the program" if module is self.program else f"the player {player.name!r}"
        optimizer = make_optimizer(player.optimizer or self.optimizer, learnable(module, owner))
        loss = BatchLoss(
            self.program, player.objective, self.num_data, self.per_datum, self.autocast
        )
        steps = self.num_rounds * player.num_steps
        return Learner(
            name=player.name,
            module=module,
            stepper=self._stepper(loss, optimizer, steps),
            scheduler=make_scheduler(player.schedule or self.schedule, optimizer, self.valid),
            num_steps=player.num_steps,
            average=averaged(module, player.ema),
        )

    def _stepper(self, loss: BatchLoss, optimizer: Optimizer, num_steps: int) -> Stepper:
        settings = (loss, optimizer, self.clip_norm, self.batches)
        if self.ranks.size > 1:
            return SharedStepper(*settings, self.ranks)
        return make_stepper(*settings, self.compile, num_steps)


def averaged(module: nn.Module, decay: float | None) -> AveragedModel | None:
    """Copy a module for an exponential moving average.

    The copy will follow the module.
    """
    if decay is None:
        return None
    if not 0 <= decay < 1:
        raise ValueError(f"ema is {decay}; expected a decay of at least 0 and below 1, e.g. 0.999")
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))


def learnable(module: nn.Module, owner: str) -> list[nn.Parameter]:
    """Parameters that require gradients, at least one."""
    parameters = trainable(module)
    if not parameters:
        raise ValueError(
            f"{owner} has no parameters to fit; use pyro.param, pyro.module or torch modules in "
            "it, or go straight to evidence or posterior sampling"
        )
    return parameters


def make_optimizer(make: Callable[[Any], Optimizer], parameters: list[nn.Parameter]) -> Optimizer:
    """The optimiser, checked to be one of torch's."""
    optimizer = make(parameters)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer made a {type(optimizer).__name__}; expected a torch.optim.Optimizer of the "
            "parameters it was given, e.g. "
            "optimizer=functools.partial(torch.optim.Adam, lr=1e-3)"
        )
    given = set(map(id, parameters))
    if any(id(p) not in given for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "optimizer made an optimiser of other parameters than it was given, which would leave "
            "the program as it is; use its argument, e.g. optimizer=lambda parameters: "
            "torch.optim.Adam(parameters, lr=1e-3)"
        )
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "optimizer is LBFGS, which evaluates the objective several times in a step; expected "
            "one that steps once for each gradient, e.g. "
            "optimizer=functools.partial(torch.optim.Adam, lr=1e-3)"
        )
    return optimizer


def make_scheduler(
    schedule: Callable[[Optimizer], Any] | None, optimizer: Optimizer, valid: Any
) -> Any:
    """The scheduler, checked to have what it follows."""
    scheduler = schedule(optimizer) if schedule else None
    if scheduler is not None and not callable(getattr(scheduler, "step", None)):
        raise TypeError(
            f"schedule made a {type(scheduler).__name__}; expected a learning-rate scheduler of "
            "torch, e.g. schedule=lambda optimizer: StepLR(optimizer, 100)"
        )
    if isinstance(scheduler, ReduceLROnPlateau) and valid is None:
        raise ValueError(
            "ReduceLROnPlateau follows the loss on validation data, but valid is None; pass "
            "valid=..."
        )
    return scheduler
