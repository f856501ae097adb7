"""Importance resampling: posterior draws from weighted particles."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.checks import refuse_point_masses
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.particles import Values
from ppl_dgm.program.seeding import seeded
from ppl_dgm.program.stretching import stretch_alarm
from ppl_dgm.sampling.convergence import tail_warnings
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.memory import MEMORY, chunk_plan, part_of
from ppl_dgm.sampling.missed_modes import modes_alarm
from ppl_dgm.sampling.posterior import Posterior
from ppl_dgm.sampling.reach import unreached_alarm
from ppl_dgm.sampling.smc.resampling import resample, shuffle
from ppl_dgm.sampling.undefined import undefined_draws
from ppl_dgm.sampling.weight_summary import WeightSummary
from ppl_dgm.watching import watched

__all__ = [
    "check_latents",
    "join_posteriors",
    "joined",
    "posterior",
    "resample_part",
    "storable_parts",
]

COARSE = 0.05  # of a latent's standard deviation, that rounding its draws may move them


@checked
def posterior(
    program: Program,
    *args: Any,
    num_particles: int = 1000,
    num_draws: int = 1000,
    seed: int = 0,
    memory: int = MEMORY,
    progress: bool = True,
    **kwargs: Any,
) -> Posterior:
    r"""Draw from a program's posterior by importance resampling.

    Particles $z_k \sim q(z \mid x)$ get weights $w_k = p(x, z_k) / q(z_k \mid x)$; draws are
    resampled from them systematically, for each datum on its own where all latents are inside the
    data plate. The guide (the prior, where there is none) need only cover the posterior: the
    weights correct the rest, and `ess` and `pareto_k` say how well. Weights are computed in
    float64; draws have the program's own precision. Discrete latents that are summed out have no
    draws here. `warnings` tell where chains or climbs find a part of the posterior that no particle
    came near, as for `evidence.ImportanceSampling`; the search for modes takes seconds for the
    first draws of a program and its data.

    Rubin (1988), "Using the SIR algorithm to simulate posterior distributions"; Kitagawa (1996) for
    the systematic scheme; Vehtari et al. (2024) for Pareto k.

    Args:
        program: the program, with its parameters as they are.
        *args: data, as its model takes them.
        num_particles: weighted particles for each datum (or for the data set).
        num_draws: draws to return.
        seed: makes the draws repeatable; torch's generator is left as it was.
        memory: bytes that one chunk of particles may allocate.
        progress: show a bar of the densities evaluated, where it takes over two seconds.
        **kwargs: further data.

    Raises:
        ValueError: for a program without latents to draw, fewer than 2 particles or 1 draw, or
            weights that are all zero.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_dgm import Program
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> draws = posterior(Program(model), torch.tensor([-1.0, 0.4, 1.0]), num_particles=4000)
        >>> draws.draws["z"].shape, [round(mean, 1) for mean in draws.mean["z"].tolist()]
        (torch.Size([1000, 3]), [-0.5, 0.2, 0.5])
    """
    if num_particles < 2 or num_draws < 1:
        raise ValueError(
            f"num_particles is {num_particles} and num_draws {num_draws}; expected at least 2 "
            "particles and 1 draw"
        )
    bound = program.bind(*args, **kwargs)
    check_latents(bound)
    refuse_point_masses(bound)
    with watched("posterior", progress), undisturbed(program), seeded(seed, bound.device):
        parts = [
            resample_part(part, num_particles, num_draws, memory)
            for part in storable_parts(bound, num_particles, memory)
        ]
        found = join_posteriors(bound, parts)
        if found.reliable:
            found = replace(found, warnings=missed_alarm(program, bound.in_double(), parts, memory))
        return replace(found, warnings=found.warnings + stretch_alarm(bound.structure.stretched))


def check_latents(bound: Bound) -> None:
    """Refuse programs without latents to draw.

    Programs whose data are not a dimension of their latents are refused too.
    """
    structure = bound.structure
    if not structure.model_latents:
        how = (
            f"{list(structure.enumerated)} are summed out"
            if structure.enumerated
            else "the program has none"
        )
        raise ValueError(
            f"there are no latents to draw: {how}; its density is exact, ask for evidence.Exact()"
        )
    if structure.per_datum and any(latent.batch_dim == 0 for latent in structure.model_latents):
        raise ValueError(
            f"the data plate {structure.plate!r} is sequential (a Python loop); write it `with "
            "pyro.plate(...):` to draw for all data at once"
        )


def storable_parts(bound: Bound, num_particles: int, memory: int) -> list[Bound]:
    """Divide data into parts whose latents fit into memory.

    The latents of all particles of one part count. The parts compute in float64.
    """
    bound = bound.in_double()
    structure, num_data = bound.structure, bound.num_data or 1
    if not (structure.divisible and structure.per_datum):
        return [bound]
    few = min(num_data, 8)
    values = part_of(bound, 0, few).draw(1).values
    stored = sum(value.numel() * value.element_size() for value in values.values()) / few
    size = max(1, int(memory / (stored * num_particles + 1)))
    return [part_of(bound, start, start + size) for start in range(0, num_data, size)]


@dataclass(frozen=True, eq=False)
class Resampled:
    """Draws, moments and diagnostics of one part of the data."""

    draws: Values
    mean: Values
    std: Values
    summary: WeightSummary
    warnings: tuple[str, ...] = ()


def resample_part(bound: Bound, num_particles: int, num_draws: int, memory: int) -> list[Resampled]:
    """Weight particles in chunks, then resample them.

    Chunks are bounded by memory. There is one result for each part of the data.
    """
    results = []
    for _, part, size in chunk_plan(bound, num_particles, memory, lambda b: weigh(b, 1)):
        sizes = [min(size, num_particles - done) for done in range(0, num_particles, size)]
        chunks = [weigh(part, count) for count in sizes]
        log_w = torch.cat([chunk[1] for chunk in chunks]).double()
        values = {name: torch.cat([chunk[0][name] for chunk in chunks]) for name in chunks[0][0]}
        results.append(resample_values(part, values, log_w, num_draws))
    return results


def weigh(bound: Bound, num_particles: int) -> tuple[Values, Tensor]:
    """Draw latents from the guide and compute log weights.

    Log weights are `[particles, data]` or `[particles]`. Only latents of the model are returned.
    """
    spend(num_particles * (bound.num_data or 1 if bound.structure.per_datum else 1))
    draw = bound.draw(num_particles)
    names = [latent.name for latent in bound.structure.model_latents]
    return {name: draw.values[name] for name in names}, bound.log_joint(
        draw.values
    ).total - draw.log_prob


def resample_values(bound: Bound, values: Values, log_w: Tensor, num_draws: int) -> Resampled:
    """Resample weighted latents, and summarise the weights."""
    warnings = undefined_draws(bound, values, log_w)
    log_w = torch.where(log_w.isnan(), -torch.inf, log_w)
    summary = WeightSummary(log_w.shape[0])
    summary.add(log_w)
    weights = log_w.softmax(0)
    if not bool(torch.isfinite(weights).all()):
        reasons = "".join(f"; {warning}" for warning in warnings)
        raise ValueError(
            "all weights are zero or one is infinite: the proposal misses the posterior, or the "
            "program gives the data no density; give the program a guide that covers the "
            f"posterior, or check the data{reasons}"
        )
    index = shuffle(resample(log_w, num_draws))
    dims = {latent.name: latent.batch_dim for latent in bound.structure.model_latents}
    mean, std = {}, {}
    for name, value in values.items():
        w = beside_data(weights, value, dims[name])
        mean[name] = (w * value).sum(0)
        std[name] = (w * (value - mean[name]).square()).sum(0).sqrt()
    draws = {name: take(value, index, dims[name]) for name, value in values.items()}
    return Resampled(draws, mean, std, summary, warnings)


def beside_data(tensor: Tensor, value: Tensor, batch_dim: int) -> Tensor:
    """Reshape `[n, data]` or `[n]` to broadcast with latent values.

    Latent values are `[particles, ..., data, *event]`.
    """
    if tensor.dim() == 1:
        return tensor.reshape(-1, *(1,) * (value.dim() - 1))
    return tensor.reshape(
        tensor.shape[0], *(1,) * (batch_dim - 1), -1, *(1,) * (value.dim() - 1 - batch_dim)
    )


def take(value: Tensor, index: Tensor, batch_dim: int) -> Tensor:
    """Select particles of latent values by index.

    Values are `[particles, *shape]`, indices `[draws, data]` or `[draws]`, the result is `[draws,
    *shape]`.
    """
    if index.dim() == 1:
        return value[index]
    return value.gather(
        0, beside_data(index, value, batch_dim).expand(index.shape[0], *value.shape[1:])
    )


def join_posteriors(bound: Bound, parts: list[list[Resampled]]) -> Posterior:
    """Put the parts of the data together again.

    Draws get the precision that the program itself gives them.
    """
    results = [result for part in parts for result in part]
    dims = {latent.name: latent.batch_dim for latent in bound.structure.model_latents}
    summaries = [result.summary for result in results]
    ess, pareto_k = (of_all(bound, summaries, name) for name in ("ess", "pareto_k"))
    num_particles = results[0].summary.num_particles
    own = {name: value.dtype for name, value in bound.draw(1).values.items()}
    draws = {name: joined([r.draws[name] for r in results], dims[name]) for name in dims}
    std = {name: joined([r.std[name] for r in results], dims[name] - 1) for name in dims}
    rounded = {name: value.to(own[name]) for name, value in draws.items()}
    return Posterior(
        bound=bound,
        draws=rounded,
        mean={name: joined([r.mean[name] for r in results], dims[name] - 1) for name in dims},
        std=std,
        ess=ess,
        pareto_k=pareto_k,
        num_particles=num_particles,
        warnings=tail_warnings(
            pareto_k, (1 / ess - 1 / num_particles).clamp_min(0).sqrt(), num_particles
        )
        + tuple(dict.fromkeys(warning for r in results for warning in r.warnings))
        + rounding_warnings(draws, rounded, std),
    )


def rounding_warnings(draws: Values, rounded: Values, std: Values) -> tuple[str, ...]:
    """Warn where a program rounds its draws too coarsely."""
    warnings = []
    for name, value in draws.items():
        error = (rounded[name].double() - value.double()).square().mean(0).sqrt()
        apart = (error / std[name].double())[std[name] > 0]
        if apart.numel() and float(apart.max()) > COARSE:
            warnings.append(
                f"draws of {name!r} are rounded to {rounded[name].dtype} by "
                f"{float(apart.max()):.2g} of their standard deviation: mean and std alone are "
                "right; write its distribution with numbers in float64"
            )
    return tuple(warnings)


def of_all(bound: Bound, summaries: list[WeightSummary], name: str) -> Tensor:
    """One property of all weights: `[data]` or `[]`."""
    values = [getattr(summary, name) for summary in summaries]
    return torch.cat([*map(torch.atleast_1d, values)]) if bound.structure.per_datum else values[0]


@torch.no_grad()
def missed_alarm(
    program: Program, bound: Bound, parts: list[list[Resampled]], memory: int
) -> tuple[str, ...]:
    """Warn of mass and modes that no particle reached."""
    summaries = [result.summary for part in parts for result in part]
    names = ("largest", "log_mean_exp", "std_error")
    largest, log_z, error = (of_all(bound, summaries, name) for name in names)
    count = summaries[0].num_particles
    alarm = unreached_alarm(bound, largest, log_z, error, "guide", count, memory)
    return alarm or modes_alarm(program, bound, log_z, error)


def joined(parts: list[Tensor], dim: int) -> Tensor:
    """Concatenate tensors from parts of the data.

    A single part stays as it is.
    """
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
