"""Program: a Pyro model/guide pair as one torch module."""

import logging
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.compile.tracing.capture import is_tracing
from ppl_dgm.markup import latex_table
from ppl_dgm.program.adapted_data import AdaptedData
from ppl_dgm.program.arguments import call_signature, unpack_arguments
from ppl_dgm.program.bound_program import Bound
from ppl_dgm.program.checks import refuse_implicit
from ppl_dgm.program.description import describe_program, site_rows
from ppl_dgm.program.drawing import StandIns, drawing_html, model_graph
from ppl_dgm.program.first_run import blame
from ppl_dgm.program.handlers import Prior, is_given_or_summed_out
from ppl_dgm.program.inspection import Examination, examine, inspect
from ppl_dgm.program.isolation import evaluating, undisturbed, undone_on_error
from ppl_dgm.program.parameters import ScopedCallable
from ppl_dgm.program.sampling import draw_sites
from ppl_dgm.program.sites import random_sites
from ppl_dgm.program.storage import parameters_in, write_state
from ppl_dgm.program.structure import DensityKind, Structure
from ppl_dgm.program.supports import finite_value

__all__ = ["Program"]

_LOG = logging.getLogger("ppl_dgm")


class Program(AdaptedData):
    """Pyro model and optional guide as one torch module.

    It takes any pair of a generative model and, if that has latents, a guide.

    The model is a callable `model(x=None, ...)` that scores the data site when `x` is given and
    draws it when not; the guide takes the same arguments. Both may be functions with `pyro.param`
    and `pyro.module` statements, plain torch modules, `PyroModule`s or (the guide) autoguides. Data
    are independent in `pyro.plate("data", size)` at dim -1; latents inside it are local, latents
    outside are shared by all data. What `pyro.poutine.mask` takes out counts for nothing, datum or
    latent: series of different lengths are padded and masked.

    Parameters are torch parameters: unconstrained, named as in the program, listed by
    `named_parameters()`, kept in `state_dict()`, moved by `.to(device)`. They exist after the first
    run (`initialise`); nothing enters or leaves Pyro's global parameter store.

    Args:
        model: the generative model.
        guide: the approximate posterior; without one, finite discrete latents marked
            `infer={"enumerate": "parallel"}` are summed out and others are proposed from the prior.
        site: name of the data site, which `sample` returns.
        plate: name of the data plate.
        shared: names of arguments that all data share, though they may have as many rows as there
            are data; what is not named is learnt from the program when minibatches or parts of the
            data are asked for.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x=None):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> program = Program(model).initialise(torch.randn(5))
        >>> program.density, [name for name, _ in program.named_parameters()]
        ('exact', ['loc'])
        >>> program.sample(3).shape
        torch.Size([3])
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable | None = None,
        *,
        site: str = "x",
        plate: str = "data",
        shared: Collection[str] = (),
    ) -> None:
        super().__init__()
        for role, fn in (("model", model), ("guide", guide)):
            if not callable(fn) and not (role == "guide" and fn is None):
                raise TypeError(
                    f"{role} is a {type(fn).__name__}; expected a callable Pyro program"
                )
        self._take_names(site, plate, shared)
        scoped_model = ScopedCallable("model", model, self)
        proposal = Prior(scoped_model.fn, is_given_or_summed_out) if guide is None else guide
        self._halves = (scoped_model, ScopedCallable("guide", proposal, self))
        self._has_guide = guide is not None
        self._structures: dict[bool, Structure] = {}
        self._kinds: dict[Any, Structure] = {}  # by training and kind of arguments
        self._stand_ins: StandIns | None = None  # of the latest data

    @checked
    def _take_names(self, site: str, plate: str, shared: Collection[str]) -> None:
        self.site, self.plate, self.shared = site, plate, tuple(shared)

    @property
    def model(self) -> ScopedCallable:
        """The model as a plain Pyro callable (and torch module)."""
        return self._halves[0]

    @property
    def guide(self) -> ScopedCallable:
        """Guide as a plain Pyro callable and torch module.

        It is the prior where no guide was given.
        """
        return self._halves[1]

    @property
    def has_guide(self) -> bool:
        """Whether a guide was given."""
        return self._has_guide

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse calls; model and guide are what Pyro runs.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a Program is not called itself; hand on its model (or guide), which are Pyro's "
            "callables, e.g. NUTS(program.model), Predictive(program.model)"
        )

    def initialise(self, *args: Any, **kwargs: Any) -> "Program":
        """Run the program once on its data.

        This creates its parameters, checks it and finds its structure. Returns the program itself.

        Later calls re-check the data against the program.

        Raises:
            ValueError: naming the site, what was expected and the cure.
        """
        self.inspect(*args, **kwargs)
        return self

    def inspect(self, *args: Any, sum_out: bool = False, **kwargs: Any) -> Structure:
        """Check the program at data and return its structure.

        See `ppl_dgm.program.inspect`.
        """
        args, kwargs = self.adapt(*unpack_arguments(args, kwargs))
        return self.examine_at(args, kwargs, sum_out=sum_out).structure

    def bind(self, *args: Any, sum_out: bool = False, **kwargs: Any) -> Bound:
        """Bind the program to data, after checking them.

        The result gives log densities over particles.

        Raises:
            ValueError: as `initialise`, and for an implicit program, which has no density.
        """
        args, kwargs = self.adapt(*unpack_arguments(args, kwargs))
        found = self.examine_at(args, kwargs, sum_out=sum_out)
        refuse_implicit(found.structure, self.site)
        args, kwargs = self.adapt(args, kwargs)  # to what it was found to run on
        return Bound(
            self.model,
            self.guide,
            found.structure,
            args,
            kwargs,
            found.num_data,
            found.num_dims,
            found.digest,
        )

    def examine_at(
        self,
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        sum_out: bool = False,
        shared: Collection[str] | None = None,
        particles: int | None = None,
        training: bool = False,
    ) -> Examination:
        """Check the program at adapted data and describe it.

        The result tells the structure, the number of data and what was observed. Settings are other
        `shared` arguments, training, or one particle, not tried with more.
        """
        guide = self.guide if self._has_guide else None
        shared = self.shared if shared is None else shared
        if guide is not None and self.moved and not self.initialised:
            self._adopt_modules(args, kwargs)
        settings = self.plate, sum_out, shared, particles, training
        start = torch.get_rng_state()
        try:
            found = examine(self.model, guide, args, kwargs, *settings)
        except ValueError as error:
            if not self.set_dtype(error, (args, dict(kwargs))):
                raise
            args, kwargs = self.adapt(args, kwargs)
            torch.set_rng_state(start)
            found = self._examined_in_its_dtype(error, args, kwargs, *settings)
        before = self._structures.get(sum_out)
        if found.structure.slow and (before is None or before.slow != found.structure.slow):
            _LOG.warning(found.structure.slow)
        self.check_all_taken()
        self.seal()
        self._structures[sum_out] = found.structure
        self._stand_ins = StandIns.of(args, kwargs, found.num_data)
        if not sum_out:
            self._kinds[training, call_signature(args, kwargs)] = found.structure
        return found

    def _examined_in_its_dtype(
        self, error: Exception, args: tuple, kwargs: Mapping[str, Any], *settings: Any
    ) -> Examination:
        """Examine the program at data of its dtype."""
        guide = self.guide if self._has_guide else None
        wanted, self._only_dtype = self._only_dtype, None
        try:
            found = examine(self.model, guide, args, kwargs, *settings)
        except ValueError:
            raise error from error.__cause__
        self._only_dtype = wanted
        _LOG.warning("real data are converted to %s, in which alone the program runs", wanted)
        return found

    def _adopt_modules(self, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """Let the model register its modules before the guide.

        An autoguide runs it where no handler sees what it registers, which would not be moved.
        """
        with suppress(Exception), undone_on_error(self.model), undisturbed(self):
            self.model(*args, **kwargs)
            self.forget(set())

    def structure_at(
        self, args: tuple, kwargs: Mapping[str, Any], particles: int | None = None
    ) -> Structure:
        """Return the structure at arguments of this kind.

        It is that of the mode in which the program is, and is looked for once.

        With one particle it may be one that has not been tried with more. A capture under way can't
        run the program to look; it takes what was found in the other mode.
        """
        kind = call_signature(args, kwargs)
        found = self._kinds.get((self.training, kind))
        if found is None and is_tracing():
            found = self._kinds.get((not self.training, kind)) or self._structures.get(False)
        if found is None or (particles != 1 and found.model_runs == "single"):
            found = self.examine_at(
                args, kwargs, particles=particles, training=self.training
            ).structure
        return found

    @property
    def unlike_pyro(self) -> tuple[str, ...]:
        """Sites that Pyro's losses count differently.

        They are from all runs in training.
        """
        found = (name for seen in self._kinds.values() for name in seen.unlike_pyro)
        return tuple(dict.fromkeys(found))

    @property
    def structure(self) -> Structure:
        """Structure found by the latest run on data."""
        if False not in self._structures:
            raise ValueError(
                "the program has not seen data yet; call program.initialise(*data) first"
            )
        return self._structures[False]

    @property
    def density(self) -> DensityKind:
        """`exact`, `latent`, `unnormalised` or `implicit`: which objectives and estimators apply.

        exact: log p(x) is computed (no latents, or all summed out); latent: some latents are drawn;
        unnormalised: the program has factors; implicit: the data site is deterministic.
        """
        return self._sampling_structure((), {}).density(self.site)

    def _generative_structure(self, args: tuple, kwargs: Mapping[str, Any]) -> Structure:
        """Find the structure of a run without data.

        The data site's draw stands for data.
        """
        with undisturbed(self):
            trace = blame(
                "model", lambda: poutine.trace(self.model).get_trace(*args, **kwargs), args, kwargs
            )
        site = trace.nodes.get(self.site)
        given = [name for name, other in random_sites(trace) if other["is_observed"]]
        if site is None and not given:
            names = [name for name, _ in random_sites(trace)]
            raise ValueError(
                f"the program has no site {self.site!r}, only {names}; name it: Program(..., "
                "site=...)"
            )
        if site is None or site["is_observed"]:
            return inspect(self.model, None, args, kwargs, self.plate)
        conditioned = poutine.condition(self.model, data={self.site: finite_value(site)})
        return inspect(conditioned, None, args, kwargs, self.plate)

    @checked
    def sample(self, num_samples: int, *args: Any, **kwargs: Any) -> Tensor:
        """Draw the data site ancestrally.

        The program runs in evaluation mode and without gradients.

        Args:
            num_samples: number of independent draws.
            *args: passed on to the model (covariates, labels); the data themselves are left out or
                ignored.

        Returns:
            Draws `[num_samples, *event]`; a data plate of size m > 1 gives `[num_samples, m,
                *event]`.

        Raises:
            ValueError: for an unnormalised program, or one whose data site cannot be told.
        """
        draws = self.sample_sites(num_samples, *args, **kwargs)
        site = self._data_site()
        if site not in draws:
            raise ValueError(
                f"the program has no site {site!r}, only {sorted(draws)}; name it: Program(..., "
                "site=...)"
            )
        value = draws[site]
        return (
            value.squeeze(1)
            if self.structure.batched and value.dim() > 1 and value.shape[1] == 1
            else value
        )

    @checked
    def sample_sites(self, num_samples: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all sites of the model jointly.

        Returns `{site: [num_samples, *shape]}`. See `sample`.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; expected at least 1")
        structure = self._sampling_structure(args, kwargs)
        if structure.factors:
            raise ValueError(
                f"the program has factors {list(structure.factors)}, so that ancestral draws do "
                "not follow its density; draw by Markov chain Monte Carlo or resample "
                "importance-weighted draws instead"
            )
        with evaluating(self), torch.no_grad():
            return draw_sites(self.model, structure, num_samples, args, kwargs)

    def render(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the model's graph: sites, plates, what depends on what.

        It needs the package graphviz and its program `dot`, as Pyro's `render_model`, whose drawing
        it is.

        Args:
            *args: data, as the model takes them; none for a model that generates.
            **kwargs: further data.

        Returns:
            A `graphviz.Digraph`, which notebooks show and `.render(filename)` writes.
        """
        args, kwargs = self.adapt(*unpack_arguments(args, kwargs))
        return model_graph(self.model, args, kwargs)

    def _repr_html_(self) -> str:
        structure, drawn = self._structures.get(False), ""
        if structure is not None and self._stand_ins is not None:
            drawn = drawing_html(self.model, structure, self._stand_ins)
        return describe_program(type(self).__name__, structure, self) + drawn

    def to_dataframe(self) -> Any:
        """Tabulate the sites that the latest run found.

        Returns:
            A pandas DataFrame: what each `site` is, what it belongs to and its support.
        """
        import pandas as pd  # noqa: PLC0415 - heavy, and programs are mostly used without

        header, *rows = site_rows(self.structure)
        return pd.DataFrame(rows, columns=pd.Index(header))

    def to_latex(self) -> str:
        r"""Return the sites found as a LaTeX table.

        It needs `\usepackage{booktabs}`.
        """
        return latex_table(site_rows(self.structure), left=range(4))

    def _sampling_structure(self, args: tuple, kwargs: Mapping[str, Any]) -> Structure:
        known = self._structures.get(False)
        if known is None or known.model_runs == "single":
            known = self._generative_structure(args, kwargs)
            self._structures[False] = known
        return known

    def _data_site(self) -> str:
        """The data site: `x`, or the only observed site."""
        structure = self.structure
        if (
            self.site in (*structure.observed, *structure.deterministic)
            or len(structure.observed) != 1
        ):
            return self.site
        return structure.observed[0]

    @checked
    def save(self, path: str | os.PathLike) -> None:
        """Save the parameters and buffers to a file.

        The file is written atomically, and `load` reads it.
        """
        write_state(path, self.state_dict())

    @checked
    def load(self, path: str | os.PathLike) -> "Program":
        """Load parameters and buffers from a file.

        No code is unpickled. Returns the program itself.

        The file is one of `Program.save`, `Fit.save`, or a checkpoint of `fit`. What `pyro.param`
        and `pyro.module` statements have yet to create takes its values from the file when they
        first run.

        Raises:
            ValueError: if the file's names or shapes are not this program's.
        """
        state = parameters_in(path, next((p.device for p in self.parameters()), None))
        own = self.state_dict().keys() if not self.waiting else set()
        if not self.initialised and own < state.keys():
            self.take_when_created(state, str(path))
            self.take()
            return self
        try:
            self.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} does not hold the parameters of this program: {error}. Build the program "
                "as it was saved"
            ) from error
        return self
