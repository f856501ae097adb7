"""Evidence of data that are read part by part."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from ppl_dgm.data.conversion import Arguments, is_collection
from ppl_dgm.data.stream import PART, Stream, opened
from ppl_dgm.evidence.sharing import join_evidences
from ppl_dgm.program import Program
from ppl_dgm.program.arguments import unpack_arguments
from ppl_dgm.program.digests import RunningDigest

__all__ = ["over_stream", "read_once"]

OPENED = (Stream, DataLoader, IterableDataset, np.memmap)


def read_once(args: tuple, kwargs: Mapping[str, Any]) -> Stream | Arguments:
    """Open a stream, or read what loaders and tables give.

    Loaders may give other data, or these in another order, each time that they are read.

    Raises:
        ValueError: for a stream beside other arguments.
    """
    given = (*args, *kwargs.values())
    if not any(isinstance(one, OPENED) for one in given):
        unread = any(map(is_collection, given))
        return unpack_arguments(args, kwargs) if unread else (args, dict(kwargs))
    found = opened(given_data(args, kwargs))
    if isinstance(found, Stream):
        return found
    check_alone(args, kwargs)
    return found if len(given) == 1 and args else unpack_arguments(args, kwargs)


def over_stream(program: Program, stream: Stream, run: Callable[..., Any], seed: int | None) -> Any:
    """Estimate the evidence of each datum of a stream.

    Args:
        program: whose evidence it is.
        stream: the data, whose batches have all arguments.
        run: `run(*args, seed=seed, **kwargs)` estimates the evidence of a part.
        seed: of the first part; each has its own.

    Raises:
        ValueError: for latents that all data share.
    """
    parts, running = [], RunningDigest(program)
    bright = program.is_bright(stream.first_parts())
    for number, part in enumerate(stream.parts(PART)):
        own, named = program.adapt(*part, bright)
        parts.append(run(*own, seed=None if seed is None else (seed + number) % 2**32, **named))
        if parts[-1].target != "datum":
            raise ValueError(
                f"the data are a {stream!r}, but latents are shared by all of them, so that parts "
                "have no evidence of their own; give all data at once"
            )
        running.add(own, named)
    joined = join_evidences(sum(part.num_dims for part in parts), running.digest, parts)
    return replace(joined, seconds=sum(part.seconds for part in parts))


def given_data(args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """All data as one value, positional or named."""
    if args and kwargs:
        return ()
    if kwargs:
        return kwargs
    return args[0] if len(args) == 1 else args


def check_alone(args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Refuse a stream beside other arguments.

    Raises ValueError.
    """
    if any(isinstance(one, Stream) for one in (*args, *kwargs.values())):
        raise ValueError(
            "a Stream is given beside other data; make one whose batches are tuples or dicts of "
            "all arguments"
        )
