"""Plates of a program and their sizes.

They are read off its sites. Plates may be written without a size.
"""

from typing import Any

from ppl_dgm.program.sites import Site, placed_sites

__all__ = ["data_size", "in_plate", "plate_frames"]


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
