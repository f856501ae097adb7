"""Program bound to data, evaluated over many particles.

Its log densities have a leading dimension of particles.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_dgm.data.conversion import Arguments
from ppl_dgm.program.arguments import select_data, tensors_of
from ppl_dgm.program.enumeration import blaming_dimensions, entangled, split_enumerated
from ppl_dgm.program.handlers import NoWiderThan, Prior, SizedPlates, Substitute, WithoutPaths
from ppl_dgm.program.log_densities import (
    Layout,
    check_one_scale,
    log_prob_of,
    sum_scores,
    sum_sites,
    unmask,
)
from ppl_dgm.program.particles import Draw, LogJoint, Values
from ppl_dgm.program.precision import in_float64, to_double
from ppl_dgm.program.pyro_patches import forgiving_factors, right_draws, unvalidated
from ppl_dgm.program.sites import Site, is_point_mass, is_random_subsample, random_sites
from ppl_dgm.program.structure import Latent, Structure
from ppl_dgm.program.vmap_patches import loop_runs, vmap_runs
from ppl_dgm.program.weighted_rows import WeightedRows, weighted_rows
from ppl_dgm.program.zero_probabilities import exact_probabilities
from ppl_dgm.pyro_state import import_dynamo, pyro_in_turn

__all__ = ["PARTICLE_PLATE", "Bound"]

PARTICLE_PLATE = "_particles"
MANY_DATA = 1000  # from which it pays to draw from the prior without them


@dataclass(frozen=True)
class Bound:
    """Model and guide with their data.

    They are seen as functions of particles of latent values.

    Every method takes and returns tensors whose first dimension is particles; latent values are
    `[particles, *shape]` with the shape that one run of the program gives them. Log densities are
    in nats, `[particles, data]` where the structure is per datum and `[particles]` otherwise. A
    scale common to all sites of a datum (minibatch scaling, `poutine.scale` around model and guide)
    is not in them but in `LogJoint.scale`; other scales are exponents and stay. `num_data` counts
    the data in the data plate, `num_dims` the observed numbers, which `digest` identifies. With
    `double` the program computes in float64, whatever it is written in, and few weighted
    `rows` stand for many data where they may. Without `paths` draws have
    no path gradient, whatever could give them one, but for point masses.
    """

    model: Callable
    guide: Callable
    structure: Structure
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_data: int | None = None
    num_dims: int = 0
    digest: str = ""
    double: bool = False
    keeps_guide_factors: bool = False
    paths: bool = True
    rows: WeightedRows | None = None

    def in_double(self) -> "Bound":
        """Return the same bound program in float64.

        Data are converted at once, parameters, constants and literals as the program uses them.
        """
        args, kwargs = tree_map(to_double, (self.args, dict(self.kwargs)))
        double = replace(self, args=args, kwargs=kwargs, double=True)
        return replace(double, rows=weighted_rows(double))

    @property
    def num_terms(self) -> int:
        """Number of log densities of numbers that one evaluation sums."""
        rows = self._own_rows
        return int(self.num_dims * (rows.share if rows else 1))

    @property
    def _own_rows(self) -> WeightedRows | None:
        """Weighted rows, unless the data are others by now."""
        return self.rows if self.rows and self.rows.stands_for(self.args, self.kwargs) else None

    def draw(self, num_particles: int) -> Draw:
        """Draw latents from the guide.

        Without a guide they are drawn from the prior.
        """
        if not self.structure.latents:
            return Draw(self._subsample_indices(), 0.0)
        draw = self._drawn_from()._draw_many(num_particles)
        if self._guide_is_tractable:
            return draw
        if all(latent.reparameterised for latent in self.structure.latents):
            return draw._replace(log_prob=self.log_joint(draw.values).prior)
        values = {name: value.detach() for name, value in draw.values.items()}
        prior = self.log_joint(values).prior
        return Draw(values, prior, prior)

    def _drawn_from(self) -> "Bound":
        """Take the least data that draws need.

        Two are enough where the prior of the latents draws them and none belongs to a datum: the
        others would only cost time and memory.
        """
        structure = self.structure
        own = any(latent.local for latent in structure.latents)
        if structure.has_guide or own or structure.subsampled or (self.num_data or 0) < MANY_DATA:
            return self
        try:
            divisible = structure.divisible
        except ValueError:  # which tensors are data is unclear, and told where it matters
            return self
        if not divisible:
            return self
        args, kwargs = self.select(slice(2))
        return replace(self, args=args, kwargs=kwargs, num_data=2, rows=None)

    def draw_prior(self, num_particles: int) -> Draw:
        """Draw latents from the model's prior."""
        given = self.structure
        runs = given.model_runs if given.has_guide else given.guide_runs  # as proved for draws
        structure = replace(given, has_guide=False, latents=given.model_latents, guide_runs=runs)
        return replace(self, structure=structure).draw(num_particles)

    def log_guide(self, values: Values) -> Tensor:
        """Compute log q(z | x) of given latents.

        Point masses of the guide are recomputed from what they depend on.
        """
        if not self._guide_is_tractable:
            return self.log_joint(values).prior
        return self._map(self._guide_once, values, self.structure.guide_runs)

    def log_joint(self, values: Values) -> LogJoint:
        """Compute log prior and log likelihood of given latents.

        They are log p(z) and log p(x | z), with enumerated latents summed out.
        """
        scale: list[Any] = []

        def once(given: Values, particles: int | None) -> tuple[Any, Any]:
            return self._model_once(given, particles, scale)

        if self.structure.latents:
            prior, likelihood = self._map(once, values, self.structure.model_runs)
            return LogJoint(prior, likelihood, scale[0])
        prior, likelihood = self._evaluate(lambda: once(values, None))
        return LogJoint(prior, likelihood.unsqueeze(0), scale[0])

    def proper(self) -> "Bound":
        """Return the same bound program without masked latents.

        Its density is one of all latents and integrates to the evidence.
        """
        unmasked = tuple(latent.name for latent in self.structure.latents)
        return replace(self, structure=replace(self.structure, unmasked=unmasked))

    def log_densities_of_one(self, values: Values) -> tuple[Tensor, Tensor]:
        """Compute the log densities of one particle without vectorisation.

        They are log p(x, z) and log q(z | x), which vectorised runs must equal.
        """

        def evaluate() -> tuple[Tensor, Tensor]:
            prior, likelihood = self._model_once(values, None, [])
            has_guide = self.structure.has_guide  # the prior's density is known already
            return prior + likelihood, self._guide_once(values, None) if has_guide else prior

        return self._evaluate(evaluate)

    def log_densities_by_site(self, values: Values) -> list[Tensor]:
        """Compute the log density of each model site.

        The values are those of one particle.
        """

        def evaluate() -> list[Tensor]:
            sites = random_sites(self._trace(self.model, values, None))
            return [log_prob_of(site, site["scale"]) for _, site in sites]

        return self._evaluate(evaluate)

    def is_entangled(self) -> bool:
        """Return whether drawn latents depend on summed-out ones.

        Then a draw from their prior gives no path gradient of its density.
        """

        def evaluate() -> bool:
            trace = self._trace(self.model, self._draw_once(None).values, None, enumerate_=True)
            return entangled(trace, list(self._sites(trace).values()))

        possible = bool(self.structure.latents and self.structure.enumerated)
        return possible and self._evaluate(evaluate)

    def model_trace(self) -> Any:
        """Trace the model once at the data, without vectorisation.

        Latents are drawn by the guide.

        Of a model that runs only under enumeration the latents that are summed out have all their
        values.
        """
        values = (
            self._evaluate(lambda: self._draw_once(None).values) if self.structure.latents else {}
        )
        try:
            return self._evaluate(lambda: self._trace(self.model, values, None))
        except Exception:  # the user's own code may raise anything
            if not self.structure.enumerated:
                raise
            return self._evaluate(lambda: self._trace(self.model, values, None, enumerate_=True))

    def guide_is_noisy(self) -> bool:
        """Return whether log q at fixed latents is random.

        It is random under dropout, for instance.
        """
        if not (self.structure.has_guide and self.structure.latents):
            return False

        def evaluate() -> bool:
            values = self._draw_once(None).values
            one, other = (self._guide_once(values, None) for _ in range(2))
            return not torch.allclose(one, other, equal_nan=True)

        return self._evaluate(evaluate)

    def images(self, auxiliary: Values) -> Values:
        """Compute the guide's latents from given auxiliary ones.

        All are of one particle.
        """
        return self._evaluate(lambda: self._draw_once(None, auxiliary).values)

    def undefined_sites(self, values: Values) -> list[str]:
        """List the sites whose log density is NaN.

        The latents are those of one particle.
        """

        def evaluate() -> list[str]:
            sites = self._sites(self._trace(self.model, values, None, enumerate_=True))
            densities = {name: log_prob_of(site, 1.0) for name, site in sites.items()}
            return [name for name, density in densities.items() if bool(density.isnan().any())]

        return self._evaluate(evaluate)

    # ---- one run, with `particles` as an outer plate or without --------------------------------

    def _draw_once(self, particles: int | None, shared: Values | None = None) -> Draw:
        with nullcontext() if self.paths else WithoutPaths():
            trace = self._trace(self._proposal, shared or {}, particles)
        sites = self._sites(trace)
        wanted = {latent.name for latent in self.structure.latents} | (
            set() if shared else set(self.structure.subsampled)
        )
        values = {name: site["value"] for name, site in trace.nodes.items() if name in wanted}
        layout = self._layout(particles)
        log_prob = sum_sites(self._guide_terms(sites), layout)
        drawn = [s for s in sites.values() if not s["is_observed"] and self._is_scored(s)]
        counted = sum_sites(drawn, layout) if self.structure.has_guide else 0.0
        return Draw(values, log_prob, sum_scores(drawn, layout), counted)

    def _is_scored(self, site: Site) -> bool:
        """Whether a draw has a score, not a path."""
        return not site["fn"].has_rsample or not (self.paths or is_point_mass(site))

    def _guide_once(self, values: Values, particles: int | None) -> Any:
        trace = self._trace(self._proposal, values, particles)
        return sum_sites(self._guide_terms(self._sites(trace)), self._layout(particles))

    def _guide_terms(self, sites: Mapping[str, Site]) -> list[Site]:
        """Select the sites that make up log q.

        They are the drawn ones. For a fit, what a guide observes and its factors count too.
        """
        kept = sites.values()
        return [site for site in kept if self.keeps_guide_factors or not site["is_observed"]]

    def _model_once(
        self, values: Values, particles: int | None, scale: list[Any]
    ) -> tuple[Any, Any]:
        rows, layout = self._own_rows, self._layout(particles)
        seen = replace(self, args=rows.args, kwargs=rows.kwargs) if rows else self
        trace = seen._trace(self.model, values, particles, enumerate_=True)
        sites = list(self._sites(trace).values())
        latents = [site for site in sites if not site["is_observed"]]
        observed = [site for site in sites if site["is_observed"]]
        scale.append(next(map(layout.datum_scale, observed), 1.0))
        if self.structure.enumerated:
            return split_enumerated(trace, sites, layout)
        weights = rows.weights if rows else None
        return sum_sites(latents, layout), sum_sites(observed, layout, weights)

    def _sites(self, trace: Any) -> dict[str, Site]:
        sites = dict(random_sites(trace))
        unmask([sites[name] for name in self.structure.unmasked if name in sites])
        if self.structure.per_datum and self.structure.common_scale:
            check_one_scale(sites)
        return sites

    @property
    def _proposal(self) -> Callable:
        """Callable that draws the latents: guide or prior.

        The prior keeps summed-out variables visible, so that plates of particles reach them.
        """
        return self.guide if self.structure.has_guide else Prior(self.model)

    @property
    def _guide_is_tractable(self) -> bool:
        """Whether a draw's density is that of its sites.

        It is not for a prior with summed-out variables.
        """
        return self.structure.has_guide or not self.structure.enumerated

    def _trace(
        self, fn: Callable, values: Values, particles: int | None, enumerate_: bool = False
    ) -> Any:
        nesting = self.structure.nesting
        with ExitStack() as stack:
            stack.enter_context(SizedPlates())
            summed_out = self.structure.enumerated and enumerate_
            if summed_out:
                marked = poutine.infer_config(fn, self._enumerate_if_listed)
                fn = poutine.enum(marked, first_available_dim=-2 - nesting)
            if particles is not None:
                stack.enter_context(pyro.plate(PARTICLE_PLATE, particles, dim=-1 - nesting))
            if particles is not None and not summed_out:
                stack.enter_context(NoWiderThan(1 + nesting))
            stack.enter_context(Substitute(values))
            if summed_out:
                stack.enter_context(blaming_dimensions(self.structure.enumerated))
            return poutine.trace(fn).get_trace(*self.args, **self.kwargs)

    def _enumerate_if_listed(self, site: Any) -> Any:
        listed = site["name"] in self.structure.enumerated
        return {"enumerate": "parallel" if listed else None}

    # ---- many particles ------------------------------------------------------------------------

    def _draw_many(self, num_particles: int) -> Draw:
        if self.structure.guide_runs == "plate" and num_particles > 1:
            draw = self._evaluate(lambda: self._draw_once(num_particles))
            values = {name: self._strip(name, v) for name, v in draw.values.items()}
            return draw._replace(values=values)
        shared = self._subsample_indices()

        def once(_: Any) -> Draw:
            draw = self._draw_once(None, shared)
            zero = torch.zeros_like(draw.log_prob)
            return draw._replace(score=zero + draw.score, counted=zero + draw.counted)

        draw = Draw(*self._repeat(once, num_particles, {}, self.structure.guide_runs))
        return draw._replace(values=draw.values | shared)

    def _map(self, once: Callable, values: Values, way: str) -> Any:
        num_particles = self.count(values)
        if way == "plate" and num_particles > 1:
            padded = {name: self._pad(name, value) for name, value in values.items()}
            return self._evaluate(lambda: once(padded, num_particles))
        mapped = {name: value for name, value in values.items() if self.structure.find(name)}
        return self._repeat(
            lambda given: once({**values, **given}, None), num_particles, mapped, way
        )

    def _repeat(self, run: Callable, num_particles: int, mapped: Values, way: str) -> Any:
        """Run the program once for each particle.

        The runs are mapped, or made one after the other. A single one needs neither.
        """
        if way in ("loop", "single") and num_particles > 1:
            return self._evaluate(lambda: loop_runs(run, num_particles, mapped))
        return self._evaluate(lambda: vmap_runs(run, num_particles, self.device, mapped))

    def _evaluate(self, run: Callable) -> Any:
        import_dynamo()
        digits = exactly() if self.double else nullcontext()
        with pyro_in_turn(), unvalidated(), forgiving_factors(), right_draws(), digits:
            return run()

    def _layout(self, particles: int | None) -> Layout:
        return self.structure.layout(particles is not None)

    def _strip(self, name: str, value: Tensor) -> Tensor:
        """Drop the plate dimensions that a site lacks.

        They are singletons. The plate layout becomes `[particles, *shape]`.
        """
        latent: Latent | None = self.structure.find(name)
        if latent is None:
            return value
        return value.reshape(
            value.shape[:1] + value.shape[1 + self.structure.nesting - latent.batch_dim :]
        )

    def _pad(self, name: str, value: Tensor) -> Tensor:
        """`[particles, *shape]` -> plate layout."""
        latent: Latent | None = self.structure.find(name)
        return value if latent is None else latent.pad(value, self.structure.nesting)

    def _subsample_indices(self) -> Values:
        if not self.structure.subsampled:
            return {}
        trace = self._evaluate(
            lambda: poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
        )
        return {
            n: s["value"]
            for n, s in trace.nodes.items()
            if s["type"] == "sample" and is_random_subsample(s)
        }

    def select(self, index: Any) -> Arguments:
        """Index the data among the arguments.

        What all data share is left whole.
        """
        return select_data(self.args, self.kwargs, self.num_data, index, self.structure.held)

    def count(self, values: Values) -> int:
        """Number of particles that the latent values hold."""
        return values[self.structure.latents[0].name].shape[0]

    @property
    def device(self) -> torch.device | None:
        """Device of the data.

        It is None where the program takes no data.
        """
        return next((tensor.device for tensor in tensors_of(self.args, self.kwargs)), None)


@contextmanager
def exactly() -> Iterator[None]:
    """Compute in float64, without clamping probabilities.

    Probabilities may then be zero.
    """
    with in_float64(), exact_probabilities():
        yield
