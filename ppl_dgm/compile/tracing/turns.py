"""Exclusive use of torch's tracer and compiler.

What they would keep of each trace for ever is freed.
"""

import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from torch.fx import graph_module

from ppl_dgm.compile.torch_internals import FakeTensorMode
from ppl_dgm.generators import unmoved_generators
from ppl_dgm.pyro_state import PYRO_LOCK

__all__ = ["compiling_in_turn"]

_MAX_SHAPES = 10_000  # entries of torch's cache of output shapes, 1 kB each; NaNs always add one


@contextmanager
def compiling_in_turn() -> Iterator[None]:
    """Trace or compile alone, and free the traces.

    Captures run Pyro's handlers, and their patches of modules and Inductor are the whole process's:
    the lock is that of runs of programs, since each of the two may come inside the other. Torch
    keeps the source of every graph, and the shape of every output, as long as the process lives.
    """
    sources = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
    with PYRO_LOCK, unmoved_generators():
        known = len(sources)
        try:
            yield
        finally:
            for name in list(islice(sources, known, None)):
                del sources[name]
                linecache.cache.pop(name, None)
            _bound_shapes()


def _bound_shapes() -> None:
    if len(getattr(FakeTensorMode, "cache", ())) > _MAX_SHAPES:
        FakeTensorMode.cache_clear()
