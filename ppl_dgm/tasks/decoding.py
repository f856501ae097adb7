"""Data decoded from latents: reconstructions and interpolations."""

from typing import Any, Literal

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.decoding import decoded
from ppl_dgm.sampling.unconstrained import Unconstrained

__all__ = ["interpolate", "reconstruct"]


def check_drawn(bound: Bound) -> None:
    """Refuse programs without latents to decode."""
    if not bound.structure.model_latents:
        raise ValueError(
            "the program draws no latents, so that there is nothing to decode; sample it: "
            "program.sample(n)"
        )


def check_path(bound: Bound) -> None:
    """Refuse programs whose latents lie on no path."""
    if bound.structure.enumerated:
        raise ValueError(
            f"the latents {list(bound.structure.enumerated)} are discrete and summed out, so that "
            "there is no path between their values; give them with the data, or decode paths of "
            "the others by tasks.decode(program, {name: codes, ...})"
        )


@checked
def reconstruct(
    program: Program, *args: Any, num_draws: int = 1, seed: int = 0, **kwargs: Any
) -> Tensor:
    r"""Reconstruct data through the latents.

    The result is $\mathbb{E}[x \mid z]$ with $z \sim q(z \mid x)$; latents that are summed out
    are drawn from their posterior given the others and the data.

    Args:
        program: the program, with its parameters as they are; the data site's distribution must
            have a mean.
        *args: data, as its model takes them.
        num_draws: draws of the latents for each datum.
        seed: makes the draws repeatable; torch's generator is left as it was.
        **kwargs: further data.

    Returns:
        Expected data `[num_draws, data, *event]`.

    Raises:
        ValueError: for a program without drawn latents, or a data site without a mean.

    Example:
        >>> import torch
        >>> from ppl_dgm.families import VAE
        >>> reconstruct(VAE(6, 2, hidden=[8]), torch.ones(3, 6), num_draws=5).shape
        torch.Size([5, 3, 6])
    """
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}; expected at least 1")
    bound = program.bind(*args, **kwargs)
    check_drawn(bound)
    with undisturbed(program), seeded(seed, bound.device):
        return decoded(bound, bound.draw(num_draws).values, program.site, at_data=True)


@checked
def interpolate(
    program: Program,
    start: Tensor,
    end: Tensor,
    *args: Any,
    num_steps: int = 8,
    path: Literal["linear", "spherical"] = "linear",
    num_particles: int = 64,
    seed: int = 0,
    **kwargs: Any,
) -> Tensor:
    r"""Decode points on a path between two posterior means.

    They are the means for pairs of data.

    Linear: $z_t = (1 - t) z_0 + t z_1$. Spherical: $z_t = \frac{\sin((1 - t) \omega)}{\sin \omega}
    z_0 + \frac{\sin(t \omega)}{\sin \omega} z_1$ with the angle $\omega$ between the two, which
    keeps to the shell where a normal prior in many dimensions has its mass (White 2016, section
    2.1). Latents with constraints are interpolated unconstrained.

    Args:
        program: the program, with its parameters as they are.
        start: data `[data, *event]`, the first argument of the program.
        end: data of the same shape.
        *args: further data, of `start` and `end` alike.
        num_steps: points on the path, both ends included.
        path: `"linear"` or `"spherical"`.
        num_particles: draws from the guide of which the means are taken.
        seed: makes the result repeatable; torch's generator is left as it was.
        **kwargs: further data.

    Returns:
        Expected data `[num_steps, data, *event]`.

    Raises:
        ValueError: for unequal shapes, fewer than 2 steps, no or discrete latents, or a data site
            without a mean.

    Example:
        >>> import torch
        >>> from ppl_dgm.families import VAE
        >>> start, end = torch.zeros(3, 6), torch.ones(3, 6)
        >>> interpolate(VAE(6, 2, hidden=[8]), start, end, num_steps=5).shape
        torch.Size([5, 3, 6])
    """
    if start.shape != end.shape:
        raise ValueError(
            f"start is {list(start.shape)} and end {list(end.shape)}; expected pairs of data of "
            "one shape"
        )
    if num_steps < 2 or path not in PATHS:
        raise ValueError(
            f"num_steps is {num_steps}, path {path!r}; expected at least 2, and one of "
            f"{sorted(PATHS)}"
        )
    bounds = [program.bind(x, *args, **kwargs) for x in (start, end)]
    check_drawn(bounds[0])
    check_path(bounds[0])
    with undisturbed(program), seeded(seed, bounds[0].device):
        densities = [Unconstrained(bound) for bound in bounds]
        first, last = (density.sample_guide(num_particles)[0].mean(0) for density in densities)
        time = torch.linspace(0, 1, num_steps, dtype=first.dtype, device=first.device)
        points = PATHS[path](first, last, time.reshape(-1, *(1,) * first.dim()))
        return decoded(bounds[0], densities[0].constrain(points), program.site)


def linear(first: Tensor, last: Tensor, time: Tensor) -> Tensor:
    """Points on the line between two vectors `[..., dim]`."""
    return torch.lerp(first, last, time)


def spherical(first: Tensor, last: Tensor, time: Tensor) -> Tensor:
    """Interpolate between two vectors on a great circle.

    Vectors are `[..., dim]`. Where they are parallel, the points are on a line.

    Example:
        >>> spherical(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([[0.5]]))
        tensor([[0.7071, 0.7071]])
    """
    cosine = torch.cosine_similarity(first, last, -1).unsqueeze(-1).clamp(-1, 1)
    angle = cosine.acos()
    flat = angle.sin() < 1e-4
    sine = torch.where(flat, torch.ones_like(angle), angle.sin())
    arc = (((1 - time) * angle).sin() * first + (time * angle).sin() * last) / sine
    return torch.where(flat, linear(first, last, time), arc)


PATHS = {"linear": linear, "spherical": spherical}
