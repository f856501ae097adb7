"""Structure of a program, found by running it once.

It holds the latents, the plates, and how to run many particles.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor
from torch.distributions.constraints import Constraint

from ppl_dgm.program.log_densities import Layout

__all__ = ["DensityKind", "Division", "Latent", "Structure", "Way"]

DensityKind = Literal["exact", "latent", "unnormalised", "implicit"]


@dataclass(frozen=True)
class Latent:
    """Description of one latent site.

    It holds the support, the numbers of batch and event dimensions, and whether the latent is
    inside the data plate.

    `local` latents are inside the data plate, the others are shared by all data. `auxiliary` ones
    exist in the guide alone. `reparameterised` tells whether the guide draws it differentiably,
    `point_mass` whether it is a Delta there, `transported` (a Delta marked `infer={"transported":
    True}`) that it is the image of an auxiliary latent under a map with parameters, so that log q
    at a fixed value is not to be had.
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
        """Reshape values `[particles, *shape]` to broadcast under a particle plate.

        Plates that the site is not in become dimensions of size one.
        """
        return value.reshape(value.shape[:1] + (1,) * (nesting - self.batch_dim) + value.shape[1:])

    @property
    def discrete(self) -> bool:
        """Whether the latent takes discrete values."""
        return bool(self.support.is_discrete)


Way = Literal["single", "plate", "vmap", "loop"]


class Division:
    """Set of tensor arguments that all data share.

    It is found when it is first asked for.

    Args:
        learn: finds the places of those tensors, or None where the program takes no part of its
            data.
    """

    def __init__(self, learn: Callable[[], frozenset[int] | None] | None = None) -> None:
        self._learn = learn
        self._held: frozenset[int] | None = None

    @property
    def held(self) -> frozenset[int] | None:
        """Positions of the tensors that all data share.

        They are None where the data cannot be divided.
        """
        if self._learn is not None:
            self._held, self._learn = self._learn(), None
        return self._held

    def settle(self, held: frozenset[int] | None) -> None:
        """Take what is known already, in place of learning it."""
        self._held, self._learn = held, None

    def __deepcopy__(self, memo: Any) -> "Division":
        return self

    def __reduce__(self) -> Any:
        return _known_division, (self.held,)


def _known_division(held: frozenset[int] | None) -> Division:
    return Division(lambda: held)


def names_of(latents: tuple[Latent, ...]) -> list[str]:
    """Names of latents, in order."""
    return [latent.name for latent in latents]


@dataclass(frozen=True)
class Structure:
    """The sites and plates of a program.

    `latents` are those that are drawn; `enumerated` are discrete and summed out exactly; `observed`
    have data, `factors` are unnormalised terms, those of them that depend on observed values
    `energies`; `deterministic` are functions of the others. `nesting` counts the plate dimensions,
    `batched` tells whether there is a data plate, `per_datum` whether every random site is inside
    it and no datum's density moves with another's latents, so that each datum has an evidence of
    its own. `model_runs` and `guide_runs` tell how many particles run: inside an outer plate, by
    `torch.func.vmap` where the program does not broadcast, or one by one in a loop, for the reason
    `slow`; "single" ones have not been tried with more than one. `has_guide` is false when the
    prior proposes; `noisy_guide` tells that log q at fixed latents is random, as under dropout;
    `division` tells whether the program takes a part of its data for the whole. A masked latent
    counts for nothing, in model and guide, unless it is one of the `unmasked`, which keep their
    densities; `unlike_pyro` names the sites that Pyro's losses count otherwise, `stretched` those
    that observe data stretched by latents without a factor that counts for it, `discrete` those
    that observe values of a discrete support.
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
    unmasked: tuple[str, ...] = ()
    energies: tuple[str, ...] = ()
    noisy_guide: bool = False
    unlike_pyro: tuple[str, ...] = ()
    stretched: tuple[str, ...] = ()
    discrete: tuple[str, ...] = ()
    model_runs: Way = "plate"
    guide_runs: Way = "plate"
    slow: str = ""
    division: Division = field(default_factory=Division, compare=False, repr=False)

    @property
    def divisible(self) -> bool:
        """Whether the program can run on part of its data.

        Parts of the data then have the densities that they have in the whole.
        """
        return self.division.held is not None

    @property
    def held(self) -> frozenset[int]:
        """Places of the tensor arguments that all data share."""
        return self.division.held or frozenset()

    @property
    def model_latents(self) -> tuple[Latent, ...]:
        """Drawn latents of the model.

        Auxiliary latents of a guide are left out.
        """
        return tuple(latent for latent in self.latents if not latent.auxiliary)

    @property
    def target(self) -> Literal["datum", "dataset"]:
        """Unit of the evidence, `"datum"` or `"dataset"`.

        Either each datum has an evidence, or the data set as a whole.
        """
        return "datum" if self.per_datum else "dataset"

    def density(self, site: str) -> DensityKind:
        """Classify the density of the data.

        The class decides which objectives and estimators apply.
        """
        if self.factors:
            return "unnormalised"
        if site in self.deterministic and not self.observed:
            return "implicit"
        return "latent" if self.latents else "exact"

    def layout(self, particles: bool) -> Layout:
        """Return the layout of dimensions of log densities.

        It depends on whether the program runs with a particle plate.
        """
        return Layout(particles, self.nesting, self.plate, self.per_datum, self.common_scale)

    def without_paths(self) -> "Structure":
        """The same with no latent drawn differentiably."""
        return replace(
            self, latents=tuple(replace(latent, reparameterised=False) for latent in self.latents)
        )

    def with_sites_of(self, other: "Structure") -> "Structure":
        """Take the sites and plates of another run.

        The other run is, for instance, in training. Particles run in the same way as here.
        """
        return replace(
            other,
            latents=self.latents
            if names_of(self.latents) == names_of(other.latents)
            else other.latents,
            per_datum=self.per_datum and other.per_datum,
            unmasked=self.unmasked,
            model_runs=self.model_runs,
            guide_runs=self.guide_runs,
            slow=self.slow,
            division=self.division,
        )

    def untried(self) -> "Structure":
        """The same for one particle alone."""
        return replace(self, guide_runs="single", model_runs="single") if self.latents else self

    def find(self, name: str) -> Any:
        """The latent of that name, or None."""
        return next((latent for latent in self.latents if latent.name == name), None)
