"""Test of whether the data of a program are independent.

They are where no datum's density moves with another's latents.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.distributions import biject_to

from ppl_dgm.program.bound_program import Bound
from ppl_dgm.program.operands import (
    SameInParts,
    UnlikeError,
    check_same_operands,
    disjoint_places,
    record,
)
from ppl_dgm.program.particles import Values

__all__ = ["are_independent"]

NUM_MIXTURES = 2  # of two draws of the latents
NUM_TURNS = 8  # about, of a loop over data: their latents are changed one by one
FAR = 20.0  # times a latent's distance from zero, and one, in unconstrained space
MOST_PLACES = 16  # of data whose operands are compared
TOLERANCE = 1e-4  # nats, and relative
Terms = Sequence[Tensor]  # log p(x, z) and log q(z), `[data]`


def are_independent(bound: Bound) -> bool:
    """Return whether the data of a program are independent.

    They are if each datum's terms stay as they are when the latents of others change, and are
    computed from the same numbers, which tells what counts at few latents only.

    The name of a plate promises it; a Gaussian process inside the plate breaks the promise.
    """
    structure, size = bound.structure, bound.num_data or 1
    if not structure.per_datum or not structure.latents or structure.subsampled or size < 2:
        return True
    one, other = single_draw(bound), single_draw(bound)
    try:
        own = any(latent.local and latent.batch_dim for latent in structure.latents)
        terms = check_alone(bound, one, other) if own else bound.log_densities_of_one(one)
        return not (
            any(
                moved(terms, bound.log_densities_of_one(mixture(bound, one, other, kept)), kept)
                for kept in halves(size, bound.device)
            )
            or any(
                reaches_others(terms, bound.log_densities_of_one({**one, name: other[name]}))
                for name in turns(bound)
            )
        )
    except Exception:  # latents that go together alone, says the user's own code
        return False


def check_alone(bound: Bound, one: Values, other: Values) -> Terms:
    """Check that some data see no latents of the rest.

    Two parts of the data keep their latents. The rest has those far out to either side or, where
    the program does not run there, those of another draw.

    Returns:
        The terms at the first draw's latents.

    Raises:
        UnlikeError: where operations on the data see the rest.
    """
    size, device = bound.num_data or 1, bound.device
    parts = SameInParts(size, disjoint_places(size, min(MOST_PLACES, size // 2), device))
    recorded = record(partial(bound.log_densities_of_one, one), parts.keep)
    for number, side in () if recorded.packs else enumerate((1.0, -1.0)):
        check = parts.check_of(number)
        kept = torch.isin(torch.arange(size, device=device), parts.places[number])
        for rest in (far_from(bound, one, side), other):
            mixed = mixture(bound, one, rest, kept)
            try:
                check_same_operands(partial(bound.log_densities_of_one, mixed), (recorded, check))
            except UnlikeError:
                raise
            except Exception:  # of the user's own code, as where a matrix far out has no factor
                continue
            break
    return recorded.results


def far_from(bound: Bound, values: Values, side: float) -> Values:
    """Move latents far out to one side.

    Gates that a draw finds shut are open there.
    """
    far = dict(values)
    for latent in bound.structure.latents:
        if not latent.discrete and latent.batch_dim:
            transform = biject_to(latent.support)
            point = transform.inv(values[latent.name])
            far[latent.name] = transform(side * FAR * (1 + point.abs()))
    return far


def moved(terms: Terms, others: Terms, kept: Tensor) -> bool:
    """Return whether the terms of some data have moved."""
    pairs = zip(terms, others, strict=True)
    return not all(agree(one[..., kept], other[..., kept]) for one, other in pairs)


def turns(bound: Bound) -> list[str]:
    """List some latents that belong to one datum each.

    Each is a site of its own, as in a Python loop over the data.
    """
    names = [latent.name for latent in bound.structure.latents if not latent.batch_dim]
    return names[:: max(1, len(names) // NUM_TURNS)]


def reaches_others(terms: Terms, others: Terms) -> bool:
    """Return whether terms of more than one datum have changed."""
    apart = (
        ~torch.isclose(one, other, TOLERANCE, TOLERANCE, equal_nan=True)
        for one, other in zip(terms, others, strict=True)
    )
    return int(torch.stack(list(apart)).any(0).sum()) > 1


def single_draw(bound: Bound) -> Values:
    """Latents of one run."""
    values = bound.draw(1).values
    return {name: v[0] if bound.structure.find(name) else v for name, v in values.items()}


def halves(size: int, device: torch.device | None) -> Iterator[Tensor]:
    """Every other datum, then random halves of them."""
    yield torch.arange(size, device=device) % 2 == 0
    for _ in range(NUM_MIXTURES - 1):
        yield torch.rand(size, device=device) < 0.5


def mixture(bound: Bound, one: Values, other: Values, kept: Tensor) -> Values:
    """Mix latents of two draws by datum.

    The data in `kept` have the latents of the first draw, all others those of the second.
    """
    mixed = dict(one)
    for latent in bound.structure.latents:
        value, batch = one[latent.name], latent.batch_dim
        if latent.local and batch and value.shape[batch - 1] == len(kept):
            keep = kept.reshape(-1, *(1,) * (value.dim() - batch))
            mixed[latent.name] = torch.where(keep, value, other[latent.name])
    noise = {
        latent.name: mixed[latent.name] for latent in bound.structure.latents if latent.auxiliary
    }
    return bound.images(noise) if noise else mixed


def agree(one: Tensor, other: Tensor) -> bool:
    """Return whether log densities agree to rounding."""
    return torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
