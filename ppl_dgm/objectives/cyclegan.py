"""CycleGAN, a game of two programs that translate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.objectives.adversarial import GAN, check_weights
from ppl_dgm.objectives.adversarial_losses import AdversarialLoss
from ppl_dgm.objectives.players import Game, Goal, Player
from ppl_dgm.objectives.sides import draw
from ppl_dgm.program import Program
from ppl_dgm.sampling.discrepancies import energy_distance

__all__ = ["CycleGAN"]


@dataclass(frozen=True)
class Translations:
    """Data of both kinds, translated once and back.

    Args:
        x, y: the data, `[N, *event]` each.
        to_y, to_x: their translations.
        back_x, back_y: the translations of these.
    """

    x: Tensor
    y: Tensor
    to_y: Tensor
    to_x: Tensor
    back_x: Tensor
    back_y: Tensor

    @property
    def cycle(self) -> Tensor:
        """Mean absolute errors of both ways there and back."""
        return (self.back_x - self.x).abs().mean() + (self.back_y - self.y).abs().mean()


class CycleGAN(Game):
    r"""Two programs translate unpaired data into each other.

    The fitted program is the way F from x to y, `backward` the way G from y to x. One critic tells
    y from F(x), one x from G(y), with a loss of `GAN`; and both ways there and back must return:
    Zhu et al. (2017), eqs. 1 to 3,

    $$\mathcal L = \mathcal L_{GAN}(F, D_y) + \mathcal L_{GAN}(G, D_x)
      + \lambda\, \mathbb{E}\big[\overline{|G(F(x)) - x|} + \overline{|F(G(y)) - y|}\big],$$

    with means over the entries of a datum. The marginals and the cycle do not tell which
    translation is meant: of a symmetric distribution every symmetry is as good.

    Data are named: `fit(forward, {"x": x, "y": y}, game)`, as many of each; which of them share a
    row does not matter. Both programs take both names: `forward(x, y)` draws the site `"y"` given
    x, `backward(x, y)` the site `"x"` given y, deterministically or with a path gradient. The
    players are `"forward"`, `"backward"`, `"critic_y"` and `"critic_x"`; validation watches the
    energy distances of both translations and the cycle.

    Args:
        backward: the program from y to x.
        critic_x: maps `[N, *event]` of x to scores `[N]` or `[N, 1]`.
        critic_y: the same of y.
        loss: as for `GAN`.
        cycle: weight $\lambda$ of the ways there and back.
        x, y: names of the data and sites.
        **settings: of both critics, as for `GAN`: `num_steps`, `optimizer`, `gradient_penalty`,
            `r1`, `smoothing`, ...

    Raises:
        ValueError: as for `GAN`; a negative weight; when run, data that are not named.

    Example:
        >>> import torch, pyro, ppl_dgm
        >>> from ppl_dgm.nn import MLP
        >>> def way(net, taken, drawn):
        ...     def model(x, y):
        ...         given = {"x": x, "y": y}[taken]
        ...         with pyro.plate("data", len(given)):
        ...             pyro.module("net", net)
        ...             pyro.deterministic(drawn, net(given), event_dim=1)
        ...     return ppl_dgm.Program(model, site=drawn)
        >>> forward, backward = way(MLP(2, [8], 2), "x", "y"), way(MLP(2, [8], 2), "y", "x")
        >>> game = CycleGAN(backward, MLP(2, [8], 1), MLP(2, [8], 1))
        >>> data = {"x": torch.randn(50, 2), "y": 3 + torch.randn(50, 2)}
        >>> ppl_dgm.fit(forward, data, game, steps=3, progress=False).stopped
        'finished'
    """

    @checked
    def __init__(
        self,
        backward: Program,
        critic_x: nn.Module,
        critic_y: nn.Module,
        loss: str | AdversarialLoss = "least_squares",
        *,
        cycle: float = 10.0,
        x: str = "x",
        y: str = "y",
        **settings: Any,
    ) -> None:
        super().__init__()
        check_weights(cycle=cycle)
        self.backward, self.cycle, self.names = backward, cycle, (x, y)
        self.of_x = GAN(critic_x, loss, **settings, site=x)
        self.of_y = GAN(critic_y, loss, **settings, site=y)

    def players(self, module: nn.Module | None) -> Sequence[Player]:
        """Name both ways and both critics."""
        critics = [
            Player(name, game.critic, Goal(goal), **game.critic_moves)
            for name, game, goal in (
                ("critic_y", self.of_y, self._critic_of_y),
                ("critic_x", self.of_x, self._critic_of_x),
            )
        ]
        return (
            Player("forward", module, Goal(self._ways), ema=self.of_y.ema),
            Player("backward", self.backward, Goal(self._ways), ema=self.of_x.ema),
            *critics,
        )

    def initialise(self, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """Run the way back once, for its parameters."""
        self.backward.initialise(*args, **kwargs)

    def translations(self, model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Translations:
        """Translate data there and back."""
        name_x, name_y = self.names
        if args or not {name_x, name_y} <= kwargs.keys():
            raise ValueError(
                f"CycleGAN was given the data {[*range(len(args)), *kwargs]}; expected both kinds "
                f"by name: {{{name_x!r}: ..., {name_y!r}: ...}}"
            )
        x, y, rest = kwargs[name_x], kwargs[name_y], dict(kwargs)

        def to_y(x: Tensor) -> Tensor:
            return draw(model, name_y, (), {**rest, name_x: x})

        def to_x(y: Tensor) -> Tensor:
            return draw(self.backward.model, name_x, (), {**rest, name_y: y})

        drawn_y, drawn_x = to_y(x), to_x(y)
        check_translated(y, drawn_y, name_y)
        check_translated(x, drawn_x, name_x)
        return Translations(x, y, drawn_y, drawn_x, to_x(drawn_y), to_y(drawn_x))

    def _ways(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """What both ways minimise, summed over data."""
        found = self.translations(model, args, kwargs)
        deceive = self.of_y.deception(found.to_y) + self.of_x.deception(found.to_x)
        return len(found.x) * (deceive + self.cycle * found.cycle)

    def _critic_of_y(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        found = self.translations(model, args, kwargs)
        return len(found.y) * self.of_y.mistakes(found.y, found.to_y.detach())

    def _critic_of_x(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        found = self.translations(model, args, kwargs)
        return len(found.x) * self.of_x.mistakes(found.x, found.to_x.detach())

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Add the energy distances of both translations and the cycle.

        The sum is multiplied by the number of data.

        Raises:
            ValueError: one datum, which has no distance to others.
        """
        with torch.no_grad():
            found = self.translations(model, args, kwargs)
            if len(found.x) == 1:
                raise ValueError(
                    "validation measures the distances among translations, of which a minibatch of "
                    "one datum has none; expected at least 2. Choose a batch_size of at least 2 "
                    "that leaves no single datum of valid over, or leave valid out"
                )
            apart = energy_distance(found.y, found.to_y) + energy_distance(found.x, found.to_x)
            return len(found.x) * (apart + self.cycle * found.cycle).item()


def check_translated(data: Tensor, drawn: Tensor, name: str) -> None:
    """Refuse translations of another shape than the data.

    Raises ValueError.
    """
    if drawn.shape != data.shape:
        raise ValueError(
            f"the program draws {tuple(drawn.shape)} at {name!r} but the data are "
            f"{tuple(data.shape)}; expected a draw for each datum, of its shape"
        )
