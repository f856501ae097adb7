"""Pyro handlers under which programs run."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_dgm.program.sites import (
    is_drawn,
    is_enumerated,
    is_point_mass,
    is_subsample,
)

__all__ = [
    "NoWiderThan",
    "Prior",
    "SizedPlates",
    "Substitute",
    "WithoutPaths",
    "is_given_or_summed_out",
]


class WithoutPaths(Messenger):
    """Pyro messenger that cuts the path gradients of draws.

    Point masses keep theirs, which have no score.
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_drawn(msg) and not is_subsample(msg) and not is_point_mass(msg):
            msg["value"] = msg["value"].detach()


class Substitute(Messenger):
    """Messenger that gives latent sites fixed values.

    The sites stay latent. Point masses of a guide are recomputed, not replaced.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not is_point_mass(msg):
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


class NoWiderThan(Messenger):
    """Pyro handler that refuses sites of too many batch dimensions.

    A program that does not broadcast over particles may give each site more of them than the one
    before, until they fill all memory.
    """

    def __init__(self, num_dims: int) -> None:
        super().__init__()
        self.num_dims = num_dims

    def _pyro_sample(self, msg: Any) -> None:
        shape = getattr(msg["fn"], "batch_shape", ())
        if len(shape) > self.num_dims:
            raise ValueError(
                f"site {msg['name']!r} has batch shape {tuple(shape)}, with dimensions to the left "
                f"of all plates; expected at most {self.num_dims}. Let its parameters broadcast"
            )


class SizedPlates(Messenger):
    """Pyro handler that sizes plates written without a size.

    A plate such as `pyro.plate("data")` gets the size that each site has along it.

    Pyro leaves a site without that dimension as it is, one draw for all; so it is taken out of the
    plate.
    """

    def _pyro_sample(self, msg: Any) -> None:
        frames = msg["cond_indep_stack"]
        if any(frame.size == -1 for frame in frames) and not is_subsample(msg):
            shape = batch_shape(msg)
            msg["cond_indep_stack"] = tuple(sized_frames(frames, shape))


def batch_shape(site: Any) -> tuple[int, ...]:
    """Batch shape of a site, that of its data included."""
    shape = site["fn"].batch_shape
    if not (site["is_observed"] and isinstance(site["value"], Tensor)):
        return tuple(shape)
    value = site["value"].shape
    event = len(site["fn"].event_shape)
    return tuple(torch.broadcast_shapes(shape, value[: len(value) - event]))


def sized_frames(frames: Iterable[Any], shape: tuple[int, ...]) -> Iterable[Any]:
    """Give frames without a size that of the shape.

    Frames of which the shape has no dimension are left out.
    """
    for frame in frames:
        if frame.size != -1 or frame.dim is None:
            yield frame
        elif len(shape) >= -frame.dim:
            yield frame._replace(size=shape[frame.dim], full_size=shape[frame.dim])


class Prior:
    """Prior of the model, used as a guide.

    It draws all latents, and hides the data and the factors.

    As the guide of Pyro's own losses it must hide the latents that are summed out too: they are
    none of the guide's.
    """

    def __init__(self, model: Callable, hide: Callable[[Any], bool] | None = None) -> None:
        self.model = model
        self.hide = hide or is_given

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        poutine.block(self.model, hide_fn=self.hide)(*args, **kwargs)


def is_given(site: Any) -> bool:
    """Return whether a site is data or a factor.

    Such sites are not drawn.
    """
    return site["type"] == "sample" and site["is_observed"]


def is_given_or_summed_out(site: Any) -> bool:
    """Whether a site is not drawn or is enumerated."""
    return is_given(site) or (site["type"] == "sample" and is_enumerated(site))
