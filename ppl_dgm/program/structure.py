"""What a program is made of, found once by running it: its latents, its plates, and how to run many particles."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor
from torch.distributions.constraints import Constraint

from ppl_dgm.program.log_densities import Layout

Density = Literal["exact", "latent", "unnormalised", "implicit"]


@dataclass(frozen=True)
class Latent:
    """One latent site: its support, the number of its batch and event dimensions, and where it lives.

    `local` latents are inside the data plate, the others are shared by all data. `auxiliary` ones exist in the guide
    alone. `reparameterised` tells whether the guide draws it differentiably, `point_mass` whether it is a Delta there,
    `transported` (a Delta marked `infer={"transported": True}`) that it is the image of an auxiliary latent under a map
    with parameters, so that log q at a fixed value is not to be had.
    """

    name: str
    support: Constraint
    batch_dim: int
    event_dim: int
    local: bool
    auxiliary: bool = False
    reparameterised: bool = True
    point_mass: bool = False
    transported: bool = False

    def pad(self, value: Tensor, nesting: int) -> Tensor:
        """`[particles, *shape]` -> the layout under a particle plate: singletons for the plates the site is not in."""
        return value.reshape(value.shape[:1] + (1,) * (nesting - self.batch_dim) + value.shape[1:])

    @property
    def discrete(self) -> bool:
        """Whether the latent takes discrete values."""
        return bool(self.support.is_discrete)


@dataclass(frozen=True)
class Structure:
    """The sites and plates of a program.

    `latents` are those that are drawn; `enumerated` are discrete and summed out exactly; `observed` have data,
    `factors` are unnormalised terms, those of them that depend on observed values `energies`; `deterministic` are
    functions of the others. `nesting` counts the plate dimensions, `batched` tells whether there is a data plate,
    `per_datum` whether every random site is inside it, so that each datum has an evidence of its own. `model_runs` and
    `guide_runs` tell how many particles run at once: inside an outer plate, or by `torch.func.vmap` where the program does
    not broadcast. `has_guide` is false when the prior proposes; `divisible` tells whether the program takes a part of its
    data for the whole. A masked latent counts for nothing, in model and guide, unless it is one of the `unmasked`, which
    keep their densities.
    """

    latents: tuple[Latent, ...]
    enumerated: tuple[str, ...]
    observed: tuple[str, ...]
    factors: tuple[str, ...]
    deterministic: tuple[str, ...]
    subsampled: tuple[str, ...]
    nesting: int
    plate: str
    batched: bool
    per_datum: bool
    common_scale: bool
    has_guide: bool
    divisible: bool = False
    unmasked: tuple[str, ...] = ()
    energies: tuple[str, ...] = ()
    model_runs: Literal["plate", "vmap"] = "plate"
    guide_runs: Literal["plate", "vmap"] = "plate"

    @property
    def model_latents(self) -> tuple[Latent, ...]:
        """The drawn latents of the model, without a guide's auxiliary ones."""
        return tuple(latent for latent in self.latents if not latent.auxiliary)

    @property
    def target(self) -> Literal["datum", "dataset"]:
        """Whose evidence the program has: each datum's, or the data set's."""
        return "datum" if self.per_datum else "dataset"

    def density(self, site: str) -> Density:
        """Classify the density of the data: what it decides is which objectives and estimators apply."""
        if self.factors:
            return "unnormalised"
        if site in self.deterministic and not self.observed:
            return "implicit"
        return "latent" if self.latents else "exact"

    def layout(self, particles: bool) -> Layout:
        """Where the dimensions of log densities are when run with or without a particle plate."""
        return Layout(particles, self.nesting, self.plate, self.per_datum, self.common_scale)

    def without_paths(self) -> "Structure":
        """The same with no latent drawn differentiably."""
        return replace(
            self, latents=tuple(replace(latent, reparameterised=False) for latent in self.latents)
        )

    def find(self, name: str) -> Any:
        """The latent of that name, or None."""
        return next((latent for latent in self.latents if latent.name == name), None)
