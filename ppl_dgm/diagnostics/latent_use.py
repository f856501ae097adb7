"""Active units and posterior collapse of latents.

They tell which latents carry information about the data.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.program import Bound, Latent, Program
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.seeding import seeded

__all__ = ["LatentUse", "latent_use"]


@dataclass(frozen=True, eq=False)
class LatentUse:
    """Variation of each latent dimension with the data.

    It is measured under the guide.

    Attributes:
        names: of the dimensions, `"z[0]"`, `"z[1]"`, ...
        signal: Var_x(E_q[z_d | x]), `[dimensions]`, float64; Monte Carlo noise is taken out, so
            that it may fall below 0.
        noise: E_x(Var_q[z_d | x]), `[dimensions]`.
        threshold: signal above which a dimension is active.
    """

    names: tuple[str, ...]
    signal: Tensor
    noise: Tensor
    threshold: float

    @property
    def active(self) -> Tensor:
        """Whether each dimension is active, `[dimensions]`."""
        return self.signal > self.threshold

    @property
    def num_active(self) -> int:
        """Number of active dimensions."""
        return int(self.active.sum())

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Names of the inactive latent dimensions.

        Their posterior is the same for all data.
        """
        return tuple(
            name
            for name, active in zip(self.names, self.active.tolist(), strict=True)
            if not active
        )

    def __repr__(self) -> str:
        return f"LatentUse({self.num_active} of {len(self.names)} active at {self.threshold})"


@checked
def latent_use(
    program: Program,
    *args: Any,
    num_particles: int = 100,
    threshold: float = 0.01,
    seed: int = 0,
    **kwargs: Any,
) -> LatentUse:
    r"""Find the active latent dimensions of a program.

    The posterior mean of an active unit moves with the data.

    $A_d = \mathrm{Var}_x(\mathbb{E}_{q(z \mid x)}[z_d]) > 0.01$: Burda et al. (2016), section 5.2.
    A dimension that is not active has collapsed to a posterior that ignores its datum.

    Args:
        program: the program, with its parameters as they are; latents inside the data plate are
            examined.
        *args: data, as its model takes them.
        num_particles: draws from the guide for each datum.
        threshold: least variance of an active dimension.
        seed: makes the result repeatable; torch's generator is left as it was.
        **kwargs: further data.

    Raises:
        ValueError: for fewer than 2 data or particles, or a program without guide or latents in the
            data plate.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_dgm import Program
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
        >>> def guide(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         loc = torch.stack([x / 2, torch.zeros_like(x)], -1)
        ...         pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))
        >>> latent_use(Program(model, guide), torch.linspace(-2, 2, 50)).collapsed
        ('z[1]',)
    """
    if num_particles < 2:
        raise ValueError(
            f"num_particles is {num_particles}; expected at least 2, to tell signal from noise"
        )
    bound = program.bind(*args, **kwargs)
    latents = check_latents(bound)
    with undisturbed(program), seeded(seed, bound.device):
        values = bound.draw(num_particles).values
    draws = {latent.name: by_datum(latent, values[latent.name]) for latent in latents}
    names = tuple(f"{name}[{i}]" for name, draw in draws.items() for i in range(draw.shape[-1]))
    z = torch.cat(list(draws.values()), -1).double()
    noise = z.var(0).mean(0)
    return LatentUse(names, z.mean(0).var(0) - noise / num_particles, noise, threshold)


def check_latents(bound: Bound) -> list[Latent]:
    """The latents of each datum, drawn by a guide."""
    latents = [
        latent for latent in bound.structure.model_latents if latent.local and latent.batch_dim
    ]
    if not latents or not bound.structure.has_guide:
        raise ValueError(
            "the use of latents is judged by a guide's posterior for each datum, but the program "
            "has no "
            + ("guide" if latents else "latents inside a vectorised data plate")
            + "; for latents shared by all data look at the posterior itself"
        )
    if (bound.num_data or 1) < 2:
        raise ValueError(
            "one datum cannot show whether a latent varies between data; pass at least 2"
        )
    return latents


def by_datum(latent: Latent, value: Tensor) -> Tensor:
    """`[particles, ..., data, *event]` -> `[particles, data, dimensions]`."""
    return value.movedim(latent.batch_dim, 1).flatten(2) if value.dim() > 2 else value.unsqueeze(-1)
