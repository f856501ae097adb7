"""Adversarial objectives: a program against a critic.

The critic learns to tell the program's draws from data.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ppl_dgm.checked import checked
from ppl_dgm.objectives.adversarial_losses import AdversarialLoss, named_loss
from ppl_dgm.objectives.critics import Judge
from ppl_dgm.objectives.divergences import Divergence, named_divergence
from ppl_dgm.objectives.players import Game, Goal, Player
from ppl_dgm.objectives.sides import Sides, draw_sides
from ppl_dgm.sampling.discrepancies import energy_distance
from ppl_dgm.validation import check_shares, check_sizes

__all__ = ["FGAN", "GAN", "check_weights"]


class GAN(Game):
    r"""Generative adversarial objective of a program and a critic.

    The critic c learns to tell data from the program's draws, and the program to deceive it.

    With $D = \mathrm{sigmoid}(c)$ the critic maximises $V = E_p \log D(x) + E_q \log(1 - D(x))$; at
    its best, $D = p / (p + q)$, $V = 2 \mathrm{JSD}(p, q) - \log 4$ (Goodfellow et al. 2014, prop.
    1 and thm. 1). The program, which may draw its data site deterministically or from a
    distribution with a path gradient, minimises V (`"minimax"`), or $-E_q \log D$
    (`"nonsaturating"`). Further losses: `"least_squares"` (Mao et al. 2017), `"hinge"` (Lim and Ye
    2017), `"wasserstein"` (Arjovsky et al. 2017).

    The players are `"generator"` and `"critic"`. Histories hold minus their losses per datum: for
    the first two losses that of the critic is V. Validation watches the energy distance between
    data and draws, which nobody trains on.

    Args:
        critic: maps data `[N, *event]`, and what else the program is given, to scores `[N]` or `[N,
            1]`.
        loss: one of the names above, or an `AdversarialLoss`.
        num_steps: steps of the critic in a round.
        optimizer: makes the critic's optimiser, `schedule` its learning-rate scheduler; by default
            as the fit's.
        gradient_penalty: weight of $(|\nabla c| - 1)^2$ on lines between data and draws (Gulrajani
            et al. 2017); by default 10 for `"wasserstein"`, else 0. Give 0 for a critic that is
            Lipschitz by itself, as `nn.spectral_normalised` makes it. In one dimension a critic
            whose slope has the wrong sign stays there until the means differ by twice the weight:
            to turn it must pass slope 0, where the penalty is at its highest.
        one_sided: penalise gradients above 1 only (Petzka et al. 2018), which bars no slope.
        r1: weight gamma of $|\nabla c|^2 / 2$ at data (Mescheder et al. 2018).
        smoothing: share of data taken for draws by the critic: label smoothing, one-sided (Salimans
            et al. 2016); at best $D = (1 - s) p / (p + q)$.
        pack: data that the critic sees at once, concatenated (Lin et al. 2018): it maps
            `[N / pack, pack * D]`.
        ema: decay of a running average of the program, `Fit.averages["generator"]`.
        site: name of the data site.

    Raises:
        ValueError: settings that cannot be meant; when run, a critic without one score for a datum,
            draws of another shape than the data's, or without a path gradient.

    Example:
        >>> import torch, ppl_dgm
        >>> from ppl_dgm.families import Generator
        >>> from ppl_dgm.nn import MLP
        >>> generator = Generator(torch.nn.Linear(1, 1), 1, 1)
        >>> data = 3 + torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
        >>> game = GAN(MLP(1, [8], 1), optimizer=lambda p: torch.optim.Adam(p, lr=0.02))
        >>> fit = ppl_dgm.fit(generator, data, game, steps=300, progress=False,
        ...                   optimizer=lambda p: torch.optim.Adam(p, lr=0.02))
        >>> bool(abs(generator.sample(500).mean() - 3) < 0.5)
        True
    """

    @checked
    def __init__(
        self,
        critic: nn.Module,
        loss: str | AdversarialLoss = "nonsaturating",
        *,
        num_steps: int = 1,
        optimizer: Callable[[Any], Optimizer] | None = None,
        schedule: Callable[[Optimizer], Any] | None = None,
        gradient_penalty: float | None = None,
        one_sided: bool = False,
        r1: float = 0.0,
        smoothing: float = 0.0,
        pack: int = 1,
        ema: float | None = None,
        site: str = "x",
    ) -> None:
        super().__init__()
        self.adversarial = named_loss(loss)
        if gradient_penalty is None:
            gradient_penalty = 10.0 if self.adversarial.lipschitz else 0.0
        check_weights(gradient_penalty=gradient_penalty, r1=r1)
        check_sizes(pack=pack, num_steps=num_steps)
        check_shares(ema=ema)
        check_smoothing(smoothing, self.adversarial)
        self.critic, self.pack, self.gradient_penalty, self.r1 = critic, pack, gradient_penalty, r1
        self.smoothing, self.ema, self.site, self.one_sided = smoothing, ema, site, one_sided
        self._judge = Judge(critic, pack, gradient_penalty, one_sided, r1)
        self.critic_moves = {"optimizer": optimizer, "schedule": schedule, "num_steps": num_steps}

    def players(self, module: nn.Module | None) -> Sequence[Player]:
        """Name generator and critic."""
        return (
            Player("generator", module, Goal(self.generator_loss), ema=self.ema),
            Player("critic", self.critic, Goal(self.critic_loss), **self.critic_moves),
        )

    def sides(
        self, model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any]
    ) -> Sides:
        """Draw what the critic compares."""
        return draw_sides(model, self.site, args, kwargs)

    def generator_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """What the generator minimises, summed over data."""
        sides = self.sides(model, guide, args, kwargs)
        return len(sides.real) * self.deception(sides.fake, sides.rest)

    def critic_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """What the critic minimises, summed over data."""
        sides = self.sides(model, guide, args, kwargs)
        mistakes = self.mistakes(sides.real.detach(), sides.fake.detach(), sides.rest)
        return len(sides.real) * mistakes

    def deception(self, fake: Tensor, rest: Any = ((), {})) -> Tensor:
        """The generator's loss on draws, in the mean."""
        scores = self._judge.scores(*self._judge.packed((fake, rest)))
        return self.adversarial.generator(scores).mean()

    def mistakes(self, real: Tensor, fake: Tensor, rest: Any = ((), {})) -> Tensor:
        """The critic's loss on data and draws, in the mean."""
        judge = self._judge
        real, fake, rest = judge.packed((real, fake, rest))
        on_real, on_fake = judge.scores(real, rest), judge.scores(fake, rest)
        loss = self._on_real(on_real).mean() + self.adversarial.fake(on_fake).mean()
        return loss + judge.penalty(real, fake, rest)

    def _on_real(self, scores: Tensor) -> Tensor:
        loss = self.adversarial.real(scores)
        if not self.smoothing:
            return loss
        return (1 - self.smoothing) * loss + self.smoothing * self.adversarial.fake(scores)

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Compute the energy distance between data and draws.

        It is multiplied by the number of data. Of one datum, which has no distance to others, it is
        twice the energy score, estimated by two draws.
        """
        with torch.no_grad():
            sides = self.sides(model, guide, args, kwargs)
            fake = sides.fake
            if len(fake) == 1:
                fake = torch.cat([fake, self.sides(model, guide, args, kwargs).fake])
            return len(sides.real) * energy_distance(sides.real, fake).item()


class FGAN(GAN):
    r"""Adversarial objective that minimises an f-divergence.

    The critic bounds the divergence, and the program minimises the bound: Nowozin et al. (2016),
    eq. 4.

    With $T = a(c(x))$ for the critic c and the divergence's activation a, the critic maximises
    $F = E_p T - E_q f^*(T) \le D_f(p \| q)$, equal at $T = f'(p / q)$; the program minimises F. The
    history of `"critic"` is F, in nats, where no penalty is set.

    Args:
        critic: as for `GAN`.
        divergence: a name (see `named_divergence`) or a `Divergence`.
        nonsaturating: let the program maximise $E_q T$ in place of $E_q f^*(T)$ (section 3.2).
        **settings: as for `GAN`; there are no labels to smooth.

    Example:
        >>> import torch
        >>> from ppl_dgm.nn import MLP
        >>> FGAN(MLP(1, [8], 1), "pearson").divergence.name
        'pearson'
    """

    @checked
    def __init__(
        self,
        critic: nn.Module,
        divergence: str | Divergence = "kl",
        *,
        nonsaturating: bool = False,
        **settings: Any,
    ) -> None:
        for name in settings.keys() & {"loss", "smoothing"}:
            raise TypeError(
                f"FGAN takes no {name}: its losses are those of its divergence, which has no "
                "labels to smooth; leave it out, or use GAN"
            )
        self.divergence = found = named_divergence(divergence)
        loss = AdversarialLoss(
            real=lambda s: -found.activation(s),
            fake=found.penalty,
            generator=lambda s: -(found.activation(s) if nonsaturating else found.penalty(s)),
        )
        super().__init__(critic, loss, smoothing=0.0, **settings)


def check_weights(**weights: float) -> None:
    """Raise ValueError for a weight, given by name, below zero."""
    for name, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"{name} is {weight}; expected a weight of at least 0")


def check_smoothing(smoothing: float, loss: AdversarialLoss) -> None:
    """Refuse label smoothing out of range or without labels."""
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"smoothing is {smoothing}; expected a share of at least 0 and below 0.5")
    if smoothing and loss.lipschitz:
        raise ValueError(
            f"smoothing is {smoothing}, but the critic of this loss tells no labels; leave it out, "
            "or use loss='nonsaturating', 'minimax', 'least_squares' or 'hinge'"
        )
