"""BiGAN, a game over data with their codes."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.objectives.adversarial import GAN
from ppl_dgm.objectives.adversarial_losses import AdversarialLoss
from ppl_dgm.objectives.sides import Sides, draw_sides
from ppl_dgm.program import Prior
from ppl_dgm.program.sites import is_deterministic

__all__ = ["BiGAN"]


class BiGAN(GAN):
    r"""A critic tells data with codes from latents with draws.

    The guide is the encoder: pairs (x, z) of data and $z \sim q(z \mid x)$ play against pairs of
    $z \sim p(z)$ and $x \sim p(x \mid z)$. With $D = \mathrm{sigmoid}(c)$ the best critic is
    $c = \log p_{data}(x) q(z \mid x) / p(z) p(x \mid z)$, and the game minimises the
    Jensen-Shannon divergence of the two joint distributions; where that is zero, the guide is the
    posterior, and of deterministic maps the inverse (Donahue et al. 2017, thm. 2; Dumoulin et al.
    2017, ALI).

    The player `"generator"` holds the parameters of model and guide. It minimises the generator's
    loss of its pairs, and the critic's loss of draws at the data's pairs. Validation watches the
    energy distance of the pairs.

    Args:
        critic: maps pairs `[N, D + L]`, data and latents flattened and joined, to scores `[N]` or
            `[N, 1]`. What it computes before its last layer are features of both.
        loss: as for `GAN`.
        latent: name of the latent site of model and guide.
        **settings: as for `GAN`.

    Raises:
        ValueError: as for `GAN`; a model or guide without that latent, or codes without a path
            gradient.

    Example:
        >>> import ppl_dgm
        >>> from ppl_dgm.nn import MLP
        >>> vae = ppl_dgm.families.VAE(3, 2, likelihood="gaussian")
        >>> game = BiGAN(MLP(3 + 2, [8], 1))
        >>> ppl_dgm.fit(vae, torch.randn(50, 3), game, steps=3, progress=False).stopped
        'finished'
    """

    @checked
    def __init__(
        self,
        critic: nn.Module,
        loss: str | AdversarialLoss = "nonsaturating",
        *,
        latent: str = "z",
        **settings: Any,
    ) -> None:
        super().__init__(critic, loss, **settings)
        self.latent = latent

    def sides(
        self, model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any]
    ) -> Sides:
        """Pair data with their codes, and draws with their latents."""
        if isinstance(getattr(guide, "fn", guide), Prior):
            raise ValueError(
                "the program has no guide; give it one that draws the latents given the data, "
                "Program(model, guide), which is the encoder"
            )
        with poutine.trace() as run:
            sides = draw_sides(model, self.site, args, kwargs)
        latents = found_value(run.trace, self.latent, "model")
        codes = found_value(poutine.trace(guide).get_trace(*args, **kwargs), self.latent, "guide")
        return Sides(joined(sides.real, codes), joined(sides.fake, latents), sides.rest)

    def generator_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """What generator and encoder minimise, summed over data."""
        sides, judge = self.sides(model, guide, args, kwargs), self._judge
        real, fake, rest = judge.packed((sides.real, sides.fake, sides.rest))
        loss = self.adversarial.generator(judge.scores(fake, rest)).mean()
        return len(sides.real) * (loss + self.adversarial.fake(judge.scores(real, rest)).mean())


def joined(x: Tensor, z: Tensor) -> Tensor:
    """Join data and latents to `[N, D + L]`."""
    return torch.cat([x.reshape(len(x), -1), z.reshape(len(x), -1).to(x)], 1)


def found_value(trace: Any, name: str, where: str) -> Tensor:
    """Find a latent's value in a trace.

    Raises:
        ValueError: no such site, or in a guide one without a path gradient.
    """
    site = trace.nodes.get(name)
    if site is None or site["type"] != "sample":
        names = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
        raise ValueError(f"the {where} draws no latent {name!r}, only {names}; name it: latent=...")
    if where == "guide" and not (is_deterministic(site) or site["fn"].has_rsample):
        raise ValueError(
            f"the guide draws {name!r} from a {type(site['fn']).__name__} without a path gradient, "
            "so that a critic cannot teach it; use a distribution with rsample, such as Normal"
        )
    return site["value"]
