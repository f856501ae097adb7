"""Games: objectives of several players.

Each player has parameters of its own.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.infer
import pyro.poutine as poutine
from torch import Tensor, nn
from torch.optim import Optimizer

from ppl_dgm.checked import checked

__all__ = ["Game", "Goal", "Player", "trainable"]


@dataclass(frozen=True, eq=False)
class Goal:
    """Objective that one player minimises.

    It is a scalar function of model, guide and the program's arguments.

    It is summed over the data; only the player's own parameters follow its gradient.
    """

    differentiable_loss: Callable[..., Tensor]


@checked
@dataclass(frozen=True, eq=False)
class Player:
    """Player of a game, with its parameters and objective.

    Attributes:
        name: in histories and messages.
        module: holds its parameters; None for those of the model and guide that a game is given.
        objective: what it minimises: a `Goal`, or another objective with a differentiable loss.
        optimizer: makes its optimiser of its parameters; by default as the fit's.
        schedule: makes its learning-rate scheduler of its optimiser; by default as the fit's.
        num_steps: its steps in a round, each on a minibatch of its own.
        ema: decay of a running average of its module, kept beside it and brought up to date after
            each of its steps (`torch.optim.swa_utils`); `Fit.averages` has it.
    """

    name: str
    module: nn.Module | None
    objective: Any
    optimizer: Callable[[Any], Optimizer] | None = None
    schedule: Callable[[Optimizer], Any] | None = None
    num_steps: int = 1
    ema: float | None = None


class Game(pyro.infer.ELBO):
    """An objective of several players.

    `fit` lets the players move in turn: a round is `num_steps` steps of each, the last named first.
    `pyro.infer.SVI(model, guide, optim, loss=game)` moves all of them at once, from the same point.

    To add one, implement `players` and `loss`. The loss of a player must depend on tensors alone,
    so that its step can be captured.
    """

    @abstractmethod
    def players(self, module: nn.Module | None) -> Sequence[Player]:
        """Return the players of the game.

        `module` holds the parameters of model and guide.

        The first player's loss is the one that a history calls `objective`.
        """

    def initialise(self, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """See the data once, before the players are asked for."""

    @abstractmethod
    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Compute the loss for validation.

        Lower is better. It is summed over the data, without gradients.
        """

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Add each player's gradient to its own parameters.

        Returns the first player's loss.
        """
        losses = []
        for player in self.players(None):
            if player.ema is not None:
                raise ValueError(
                    "SVI makes its steps out of sight of the objective, which can keep no average "
                    "of the parameters; use ppl_dgm.fit, or leave out ema"
                )
            with poutine.trace(param_only=True) as run:
                loss = player.objective.differentiable_loss(model, guide, *args, **kwargs)
            loss.backward(inputs=_parameters(player, run.trace))
            losses.append(loss.item())
        return losses[0]

    def _get_trace(self, *_: Any) -> Any:
        """Refuse to trace one pair of model and guide.

        Pyro asks for this hook, but games make traces of their own.
        """
        raise NotImplementedError(f"{type(self).__name__} scores no traces of a model and guide")


def _parameters(player: Player, trace: Any) -> Sequence[Tensor]:
    """Return a player's parameters.

    Those outside the program are announced to Pyro.
    """
    if player.module is not None:
        pyro.module(player.name, player.module)
        return trainable(player.module)
    values = [site["value"] for site in trace.nodes.values() if site["type"] == "param"]
    return [getattr(value, "unconstrained", lambda value=value: value)() for value in values]


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that require gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
