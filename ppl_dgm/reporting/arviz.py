"""Export of posteriors and evidences to ArviZ.

It works with ArviZ 0.x and 1.x. A program with its posterior becomes InferenceData or DataTree,
evidences become stacking weights.

What differs between the two generations of ArviZ is in `build_tree` and `as_elpd`; nothing else
asks which one it is.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.environment import __version__
from ppl_dgm.program import Bound
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.log_densities import seen_entries
from ppl_dgm.program.log_likelihoods import log_likelihoods
from ppl_dgm.program.sampling import draw_sites
from ppl_dgm.program.seeding import seeded
from ppl_dgm.program.sites import is_subsample
from ppl_dgm.reporting.netcdf import storable_name
from ppl_dgm.sampling.posterior import Posterior

__all__ = ["stacking_weights", "to_arviz"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.x on every import
    import arviz

az: Any = arviz  # its two generations have different types
IS_ARVIZ_0 = version("arviz").startswith("0.")
Group = dict[str, NDArray[Any]]
FEW_DRAWS = 100  # independent ones, below which leave-one-out and quantiles are not to be believed
FEWEST_DRAWS = 4  # that ArviZ's diagnostics take
FEWEST_LEFT_OUT = 2  # that its leave-one-out takes


@checked
def to_arviz(posterior: Posterior, seed: int = 0) -> Any:
    """Convert a posterior to an ArviZ container.

    It includes prior, predictive draws, pointwise log-likelihood and data, for all of ArviZ's
    functions.

    Groups: `posterior` and `prior` (latents and deterministic sites), `posterior_predictive` and
    `prior_predictive` (observed sites), `log_likelihood` (log p(x_i | z) in nats, one variable for
    each observed site, summed over event dimensions but not over plates: `az.loo` leaves out one
    entry of all plates) and `observed_data`. Dimensions are `chain` (one), `draw`, then the names
    of the plates. Programs with factors have no predictive groups: ancestral draws do not follow
    their density.

    Resampled draws repeat each other, which ArviZ's own effective sample size does not see: no more
    are handed on than the smallest effective sample size of the weights (but at least 4). Entries
    of the data that a mask takes out are NaN in `observed_data` and absent from `log_likelihood`,
    whose plates then are one dimension. A site without other entries is not in it, and a single
    draw has none. Sites and plates named `chain` or `draw`, ArviZ's own dimensions, get an
    underscore at their end. `posterior.attrs` has the sampler, its particles, `ess`, `pareto_k`,
    whether the draws are reliable, and why not.

    Args:
        posterior: of `ppl_dgm.posterior`, or `Posterior(program.bind(*data), draws)`
            around draws of another sampler.
        seed: of the prior and predictive draws, as many as the posterior has; torch's generator is
            left as it was.

    Returns:
        `arviz.InferenceData` with ArviZ 0.x, `xarray.DataTree` with 1.x.

    Warns:
        UserWarning: if an alarm was raised for the draws, or they are worth fewer than 100
        independent ones.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_dgm import Program, posterior
        >>> def model(x=None):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> draws = posterior(Program(model), torch.randn(20), num_particles=2000, num_draws=500)
        >>> tree = to_arviz(draws)
        >>> tree.log_likelihood["x"].shape
        (1, 500, 20)
    """
    found = alarms(posterior)
    if found:  # ArviZ takes the draws for draws like any others
        told = "; ".join(found)
        warnings.warn(f"the exported draws should not be believed: {told}", UserWarning, 2)
    attrs = provenance(posterior, found, seed)
    with seeded(seed, posterior.bound.device):
        tree = as_tree(thinned(posterior), seed)
    tree.posterior.attrs.update(attrs)
    return tree


def as_tree(posterior: Posterior, seed: int) -> Any:
    """Collect the groups of a posterior."""
    bound, structure = posterior.bound, posterior.bound.structure
    names = [latent.name for latent in structure.model_latents]
    drawn = {} if structure.factors else posterior.predict(seed)
    kept = [name for name in drawn if name not in structure.observed and name not in names]
    groups: dict[str, Mapping[str, Tensor]] = {
        "posterior": {**posterior.draws, **{name: drawn[name] for name in kept}},
        "posterior_predictive": observed_draws(bound, drawn),
        "log_likelihood": counted_likelihoods(posterior),
        "observed_data": {name: visible(bound, name) for name in structure.observed},
    }
    if not structure.factors:
        prior = prior_draws(posterior, seed)
        groups["prior"] = {
            name: value for name, value in prior.items() if name not in structure.observed
        }
        groups["prior_predictive"] = observed_draws(bound, prior)
    arrays = {group: as_arrays(values, group) for group, values in groups.items() if values}
    tree = build_tree(arrays, plates(posterior))
    if "log_likelihood" in arrays:
        drop_masked(bound, tree)
    return tree


def counted_likelihoods(posterior: Posterior) -> dict[str, Tensor]:
    """Compute log likelihoods of the sites that count.

    They are none of a single draw: ArviZ fails on it, as on sites that masks take out as a whole.
    """
    if posterior.num_draws < FEWEST_LEFT_OUT:
        return {}
    found = log_likelihoods(posterior.bound.in_double(), posterior.draws)
    seen = {name: counted(posterior.bound, name) for name in found}
    masked = [name for name, entries in seen.items() if entries is not None and not entries.any()]
    return {name: value for name, value in found.items() if name not in masked}


def observed_draws(bound: Bound, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Collect draws of observed sites, shaped as the data.

    A site may observe data with further leading dimensions of size one.
    """
    nodes = bound.model_trace().nodes
    found = {name: draws[name] for name in bound.structure.observed if name in draws}
    return {
        name: draw.reshape(len(draw), *nodes[name]["value"].shape)
        if name in nodes and draw[0].numel() == nodes[name]["value"].numel()
        else draw
        for name, draw in found.items()
    }


def alarms(posterior: Posterior) -> tuple[str, ...]:
    """Collect the reasons not to trust the draws in ArviZ.

    They are the warnings of the draws themselves, and too few effective draws.
    """
    ess = posterior.ess
    if posterior.num_draws < FEWEST_DRAWS:
        what = "draw" if posterior.num_draws == 1 else "draws"
        lacking = "" if posterior.num_draws >= FEWEST_LEFT_OUT else ", and no log_likelihood"
        few = f"the posterior has {posterior.num_draws} {what}, less than {FEWEST_DRAWS}{lacking}"
        return (*posterior.warnings, few)
    if ess is None or float(ess.min()) >= FEW_DRAWS:
        return posterior.warnings
    worth = f"{float(ess.min()):.0f} independent ones, less than {FEW_DRAWS}"
    few = f"the weighted draws are worth {worth}"
    where = f" for {int((ess < FEW_DRAWS).sum())} of {ess.numel()} data" if ess.dim() else ""
    return (*posterior.warnings, few + where)


def provenance(posterior: Posterior, alarms: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Describe the origin and reliability of draws.

    The values are of types that netCDF can hold.
    """
    found: dict[str, Any] = {
        "inference_library": "ppl_dgm",
        "inference_library_version": __version__,
        "seed": seed,
        "reliable": int(not alarms),
        "warnings": list(alarms) or "none",
    }
    if posterior.ess is None or posterior.pareto_k is None:
        return found | {"sampler": "given"}
    return found | {
        "sampler": "importance resampling",
        "num_particles": posterior.num_particles,
        "num_draws_resampled": posterior.num_draws,
        "ess": float(posterior.ess.min()),
        "pareto_k": float(posterior.pareto_k.max()),
    }


def thinned(posterior: Posterior) -> Posterior:
    """Keep only as many draws as the weights are worth.

    The draws are in random order, so that the first ones will do.
    """
    if posterior.ess is None:
        return posterior
    worth = max(int(posterior.ess.min()), FEWEST_DRAWS)
    return replace(posterior, draws={name: draw[:worth] for name, draw in posterior.draws.items()})


def visible(bound: Bound, name: str) -> Tensor:
    """Return a site's observed value, with NaN where masked."""
    site = bound.model_trace().nodes[name]
    seen, value = seen_entries(site), site["value"]
    if bool(seen.all()):
        return value
    return torch.where(seen, value if value.is_floating_point() else value.double(), torch.nan)


def drop_masked(bound: Bound, tree: Any) -> None:
    """Remove masked entries from the log likelihoods.

    The remaining entries of a site lie along one dimension of its own.
    """
    for name in list(tree.log_likelihood.data_vars):
        seen = counted(bound, name)
        if seen is None or bool(seen.all()):
            continue
        group = tree.log_likelihood
        kept = group[name].values.reshape(*group[name].shape[:2], -1)[..., seen.reshape(-1)]
        where = f"{name}_counted"
        array = (("chain", "draw", where), kept)
        rest = {other: group[other] for other in group.data_vars if other != name}
        rest = xr.Dataset({**rest, name: array}, coords={where: np.flatnonzero(seen)})
        put_group(tree, "log_likelihood", rest)


def counted(bound: Bound, name: str) -> NDArray[Any] | None:
    """Find which entries `[*plates]` of a site are not masked.

    An entry is masked if all of its event is. The result is None for several sites in one.
    """
    nodes = bound.model_trace().nodes
    if name not in nodes:
        return None
    seen = seen_entries(nodes[name])
    plate_shape = seen.shape[: seen.dim() - nodes[name]["fn"].event_dim]
    return seen.reshape(*plate_shape, -1).any(-1).cpu().numpy()


def prior_draws(posterior: Posterior, seed: int) -> dict[str, Tensor]:
    """Draw all sites from the prior by ancestral sampling.

    There are as many draws as the posterior has.
    """
    bound = posterior.bound
    with undisturbed(bound.model), seeded(seed, bound.device):
        return draw_sites(
            bound.model, bound.structure, posterior.num_draws, bound.args, bound.kwargs
        )


def as_arrays(values: Mapping[str, Tensor], group: str) -> Group:
    """Tensors as arrays, with a leading chain but for data."""
    plain = {name: value.detach().cpu() for name, value in values.items()}
    arrays = {  # of NumPy, which knows no bfloat16
        free(name): (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for name, value in plain.items()
    }
    return (
        arrays if "data" in group else {name: array[np.newaxis] for name, array in arrays.items()}
    )


def plates(posterior: Posterior) -> dict[str, list[str]]:
    """Name the dimensions of every site.

    The plates come first, from left to right, then numbered event dimensions.
    """
    nodes = posterior.bound.model_trace().nodes
    sites = {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and not is_subsample(site)
    }
    return {
        free(name): list(map(free, dimension_names(name, site)))
        for name, site in sites.items()
        if torch.is_tensor(site["value"])
    }


def free(name: str) -> str:
    """A name that files and ArviZ take."""
    return f"{name}_" if name in ("chain", "draw") else storable_name(name)


def dimension_names(name: str, site: Mapping[str, Any]) -> list[str]:
    """Name the dimensions of one site.

    A plate has no other site's name, since it is a site itself.
    """
    frames = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.dim is not None}
    batch_dim = max((-dim for dim in frames), default=0)
    event_dim = site["value"].dim() - batch_dim
    return [frames.get(dim, f"{name}_batch_{-dim}") for dim in range(-batch_dim, 0)] + [
        f"{name}_dim_{i}" for i in range(event_dim)
    ]


def build_tree(groups: Mapping[str, Group], dims: Mapping[str, list[str]]) -> Any:
    """Build an ArviZ container from groups of arrays.

    ArviZ 0.x takes groups as keywords, 1.x takes one nested dictionary.
    """
    if IS_ARVIZ_0:
        return az.from_dict(**groups, dims=dict(dims), save_warmup=False)
    return az.from_dict(dict(groups), dims=dict(dims))


def put_group(tree: Any, name: str, group: xr.Dataset) -> None:
    """Replace a group of ArviZ's container."""
    if IS_ARVIZ_0:
        setattr(tree, name, group)
    else:
        tree[name] = xr.DataTree(group)


def stacking_weights(log_p: Mapping[str, Tensor]) -> dict[str, float]:
    r"""Compute stacking weights of programs by ArviZ.

    With them the mixture of programs predicts the data best.

    $\max_w \sum_i \log \sum_m w_m\, p_m(x_i)$ over the simplex. Yao, Vehtari, Simpson and Gelman
    (2018), "Using stacking to average Bayesian predictive distributions", eq. 4. The data should be
    held out: their log density is then the predictive score that leave-one-out approximates.

    Args:
        log_p: log p_m(x_i) in nats by program, each `[data]`.

    Returns:
        Weights by program, adding up to one; NaN where some datum has a finite density under no
            program, and for a single datum, which cannot tell programs apart.

    Example:
        >>> log_p = {"a": torch.tensor([-1.0, -5.0]), "b": torch.tensor([-5.0, -1.0])}
        >>> weights = stacking_weights(log_p)
        >>> {name: round(weight, 2) for name, weight in weights.items()}
        {'a': 0.5, 'b': 0.5}
    """
    if len(log_p) == 1:
        return dict.fromkeys(log_p, 1.0)
    rows = torch.stack([value.double().cpu() for value in log_p.values()])
    best = rows.max(0).values
    if len(best) < 2 or not bool(torch.isfinite(best).all()):
        return dict.fromkeys(log_p, float("nan"))
    # A shift by datum changes no weight, and keeps exp(log p) from underflowing; exp(-700) counts
    # for as little as zero.
    centred = (rows - best).clamp_min(-700.0).numpy()
    elpds = {name: as_elpd(row) for name, row in zip(log_p, centred, strict=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pandas, in ArviZ 0.23
        table = az.compare(elpds, method="stacking")
    return {name: float(table["weight"][name]) for name in log_p}


def as_elpd(log_p: NDArray[np.float64]) -> Any:
    """Convert held-out log densities `[data]` to an ArviZ `loo` result.

    It is of the class in which ArviZ keeps leave-one-out results.

    In 0.x it is a table of fields, in 1.x a class whose arguments depend on the release: there a
    result of `loo` is given other figures.
    """
    total, error = float(log_p.sum()), float(np.sqrt(len(log_p) * log_p.var()))
    pointwise = xr.DataArray(log_p, dims=["datum"])
    if IS_ARVIZ_0:
        fields = {
            "elpd_loo": total,
            "se": error,
            "p_loo": 0.0,
            "n_samples": 1,
            "n_data_points": len(log_p),
        }
        fields |= {"warning": False, "loo_i": pointwise, "scale": "log"}
        return az.stats.ELPDData(data=list(fields.values()), index=list(fields))
    noise = np.random.default_rng(0).normal(size=(1, 100, 2))
    pattern = az.loo(
        build_tree({"posterior": {"z": noise}, "log_likelihood": {"x": noise}}, {}), pointwise=True
    )
    return replace(
        pattern,
        elpd=total,
        se=error,
        p=0.0,
        n_data_points=len(log_p),
        warning=False,
        elpd_i=pointwise,
    )
