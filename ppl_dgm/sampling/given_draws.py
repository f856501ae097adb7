"""Posterior draws of the user's, converted and judged."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_dgm.sampling.chains import LEAST_DRAWS, PosteriorDraws
from ppl_dgm.sampling.convergence import chain_ess, series_std_error
from ppl_dgm.sampling.kernels import (
    Target,
)
from ppl_dgm.sampling.memory import MEMORY, allocated_bytes
from ppl_dgm.sampling.unconstrained import Unconstrained

__all__ = ["given_draws"]

SMALL_MEAN = 0.1  # in Stein's identity, that is no matter


def given_draws(target: Unconstrained, draws: Mapping[str, Tensor]) -> PosteriorDraws:
    """Convert the user's posterior draws to unconstrained space.

    Draws of each site are `[chains, draws, *site]` or `[draws, *site]`.

    Raises:
        ValueError: if a latent is missing or has another shape, or values are outside its support.
    """
    example = target.constrain(target.sample_prior(1))
    missing = [slot.latent.name for slot in target.slots if slot.latent.name not in draws]
    if missing:
        raise ValueError(
            f"the posterior draws lack the latents {missing}; they have {sorted(draws)}"
        )
    values = {}
    for slot in target.slots:
        name = slot.latent.name
        value = with_chains(
            name, draws[name].detach().to(target.device, target.dtype), example[name].shape[1:]
        )
        inside = slot.latent.support.check(value)
        if not bool(inside.all()) or not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"posterior draws of {name!r} lie outside its support {slot.latent.support}; give "
                "them in the space of the model's site, untransformed"
            )
        values[name] = value
    sizes = {name: tuple(value.shape[:2]) for name, value in values.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the posterior draws have different numbers of chains and draws: {sizes}")
    chains, draws_each = next(iter(sizes.values()))
    if draws_each < LEAST_DRAWS:
        raise ValueError(
            f"the posterior draws are {draws_each} in each chain; expected at least {LEAST_DRAWS}. "
            "Independent draws are one chain: join theirs by draws.flatten(0, 1)"
        )
    points = target.unconstrain({name: value.flatten(0, 1) for name, value in values.items()})
    points = points.unflatten(0, (chains, draws_each))
    return PosteriorDraws(
        points,
        stein=stein_distance(target, points),
        copies=times_repeated(points),
        slowest=chain_ess(points).amin(-1),
    )


def stein_distance(target: Unconstrained, points: Tensor, memory: int = MEMORY) -> Tensor:
    r"""Measure how far draws violate Stein's identity.

    Draws are `[chains, draws, *batch, dim]`. The result, `[*batch]`, is the largest violation in
    standard errors.

    $\mathbb{E}[g] = 0$ and $\mathbb{E}[y g] = -1$ for each coordinate y and its slope g of the log
    posterior: the first fails for shifted draws, the second for draws too wide or too narrow.
    Gorham and Mackey (2015).
    """
    flat = points.flatten(0, 1)
    row = allocated_bytes(lambda: target.log_joint(flat[:1]))
    density = Target(target.raw_split, max(1, int(memory / (4 * row + 1))))
    slope = density.slope(flat, flat.new_ones(())).unflatten(0, points.shape[:2]).double()
    centred = points.double() - flat.double().mean(0)
    scale = flat.double().std(0)
    terms = torch.stack([scale * slope, centred * slope + 1])
    return torch.stack([apart_from_zero(part) for part in terms]).amax((0, -1))


def times_repeated(points: Tensor) -> Tensor:
    """Count how often an average draw occurs in all chains.

    Draws are `[chains, draws, *batch, dim]`, the result is `[*batch]`. A chain that stays where it
    is counts once: autocorrelation tells of that. No continuous density gives the same draw again
    elsewhere, so that such draws are copies, and errors too small by the square root of this.
    """
    flat = points.double().flatten(2, -2) if points.dim() > 3 else points.double().unsqueeze(2)
    chains, draws, width, dim = flat.shape
    # Sums of whole numbers wrap round, and so are the same in any order.
    factors = torch.randint(2**62, (dim,), generator=torch.Generator().manual_seed(0))
    keys = (flat.contiguous().view(torch.int64) * (2 * factors + 1).to(flat.device)).sum(-1)
    starts = torch.ones_like(keys, dtype=torch.bool)
    starts[:, 1:] = keys[:, 1:] != keys[:, :-1]
    column = torch.arange(width, device=keys.device).expand(chains, draws, width)[starts]
    _, which, counts = torch.unique(
        keys[starts] + column * 0x9E3779B97F4A7C1, return_inverse=True, return_counts=True
    )
    total = flat.new_zeros(width).index_add(0, column, counts[which].double())
    return (total / starts.sum((0, 1))).reshape(points.shape[2:-1])


def apart_from_zero(series: Tensor) -> Tensor:
    """Measure the distance of series means from zero.

    Series are `[chains, draws, ...]`, distances in standard errors. They are zero where the mean is
    small.
    """
    mean, spread = series.mean((0, 1)), series.flatten(0, 1).std(0)
    distance = mean.abs() / series_std_error(series)
    return torch.where(mean.abs() <= SMALL_MEAN * (1 + spread), 0.0, distance)


def with_chains(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Draws of one site as `[chains, draws, *site]`."""
    extra = value.dim() - len(shape)
    if extra not in (1, 2) or value.shape[extra:] != shape:
        raise ValueError(
            f"posterior draws of {name!r} have shape {tuple(value.shape)}; expected [chains, "
            f"draws, *{list(shape)}] or [draws, *{list(shape)}]"
        )
    return value.unsqueeze(0) if extra == 1 else value
