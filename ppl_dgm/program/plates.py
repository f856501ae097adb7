"""Plates of a program and their sizes.

They are read off its sites. Plates may be written without a size.
"""

from collections.abc import Iterable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_dgm.program.sites import Site, is_subsample, placed_sites

__all__ = ["NoWiderThan", "SizedPlates", "data_size", "in_plate", "plate_frames"]


def plate_frames(site: Site, plate: str) -> list[Any]:
    """Return the frames of a plate around a site.

    There is one, or none.
    """
    return [frame for frame in site["cond_indep_stack"] if frame.name == plate]


def in_plate(site: Site, plate: str) -> bool:
    """Whether the site is inside the data plate."""
    return bool(plate_frames(site, plate))


def data_size(trace: Any, plate: str) -> int | None:
    """Number of data in the data plate, or None."""
    frames = [frame for site in placed_sites(trace) for frame in plate_frames(site, plate)]
    return next((frame.full_size for frame in frames), None)


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
