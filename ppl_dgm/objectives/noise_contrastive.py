"""Noise-contrastive estimation: data told from noise whose density is known."""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.objectives.energies import DataDensity, EnergyObjective
from ppl_dgm.objectives.objective import check_count
from ppl_dgm.program import Bound, Program

__all__ = ["KnownDensity", "NoiseContrastive"]

KINDS = ("ranking", "binary")


class NoiseContrastive(EnergyObjective):
    r"""Noise-contrastive estimation with draws of a known noise.

    The objective tells each datum from K draws of the noise.

    With $G(x) = \log f(x) - \log q(x)$ for noise $q$ and draws $x_k \sim q$,

    - ranking: $G(x) - \log (e^{G(x)} + \sum_k e^{G(x_k)})$, in which every constant of f cancels
      (Ma and Collins 2018, eq. 4);
    - binary: $\log \sigma(G(x) - \log K) + \sum_k \log \sigma(\log K - G(x_k))$ (Gutmann and
      Hyvärinen 2010, eq. 3); f learns to be normalised, so its net needs a constant of its own, as
      the bias of a last layer.

    The nearer the noise is to the data, the more a comparison tells.

    Args:
        noise: a distribution of the data's event shape, or a Program with an exact density, as a
            flow fitted before.
        num_noise: number K of draws for each datum.
        kind: `"ranking"` or `"binary"`.
        plate: name of the data plate.

    Raises:
        ValueError: for an unknown kind, a count below one, noise of another shape or without an
            exact density, or drawn latents.
        TypeError: for noise of another kind.

    Example:
        >>> import torch, ppl_dgm, pyro.distributions as dist
        >>> energy = ppl_dgm.families.Energy(torch.nn.Sequential(
        ...     torch.nn.Linear(2, 1), torch.nn.Flatten(0)), 2)
        >>> noise = dist.Normal(torch.zeros(2), 2.0).to_event(1)
        >>> fit = ppl_dgm.fit(energy, torch.randn(50, 2), NoiseContrastive(noise, 5), steps=3,
        ...                   progress=False)
        >>> fit.stopped
        'finished'
    """

    @checked
    def __init__(
        self,
        noise: Any,
        num_noise: int = 1,
        *,
        kind: Literal["ranking", "binary"] = "ranking",
        plate: str = "data",
    ) -> None:
        super().__init__(plate=plate)
        check_count("num_noise", num_noise)
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; expected one of {KINDS}")
        self.noise, self.num_noise, self.kind = KnownDensity(noise, "noise"), num_noise, kind

    def contrast(self, density: DataDensity) -> Tensor:
        x = density.data
        with torch.no_grad():
            drawn = self.noise.draw(self.num_noise * len(x), x)
            log_drawn, log_data = self.noise.log_prob(drawn), self.noise.log_prob(x)
        fantasy = drawn.unflatten(0, (self.num_noise, len(x)))
        others = density.repeated(fantasy) - log_drawn.reshape(fantasy.shape[:2])
        gain = density(x) - log_data
        if self.kind == "ranking":
            return gain - torch.cat([gain.unsqueeze(0), others]).logsumexp(0)
        shift = math.log(self.num_noise)
        return F.logsigmoid(gain - shift) + F.logsigmoid(shift - others).sum(0)


class KnownDensity:
    """A normalised density that can be drawn from and evaluated.

    Args:
        source: a distribution of the data's event shape, or a Program with an exact density.
        role: what it is called in messages.
    """

    def __init__(self, source: Any, role: str) -> None:
        if not isinstance(source, Program) and not hasattr(source, "log_prob"):
            raise TypeError(
                f"{role} is a {type(source).__name__}; expected a distribution of the data's event "
                "shape, or a Program with an exact density"
            )
        self.source, self.role = source, role
        self._bound: Bound | None = None

    @torch.no_grad()
    def draw(self, num_draws: int, x: Tensor) -> Tensor:
        """Draw `[num_draws, *event]`, for data like x."""
        if isinstance(self.source, Program):
            return self.source.sample(num_draws).to(x)
        if tuple(self.source.event_shape) != x.shape[1:] or self.source.batch_shape:
            raise ValueError(
                f"the {self.role} has batch shape {list(self.source.batch_shape)} and event shape "
                f"{list(self.source.event_shape)}; expected [] and the data's, "
                f"{list(x.shape[1:])}. Declare event dimensions: "
                f"{self.role}.to_event({x.dim() - 1})"
            )
        return self.source.sample((num_draws,)).to(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute log q of data `[n, *event]`: `[n]`."""
        if not isinstance(self.source, Program):
            return self.source.log_prob(x)
        if self._bound is None:
            if self.source.initialise(x).density != "exact":
                raise ValueError(
                    f"the {self.role} program has the density {self.source.density!r}; expected an "
                    "exact one, as flows, mixtures and autoregressive nets have"
                )
            self._bound = self.source.bind(x)
        return replace(self._bound, args=(x,), num_data=len(x)).log_joint({}).total[0]
