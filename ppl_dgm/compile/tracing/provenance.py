"""Pyro's provenance tracking for tensors of a trace.

These tensors cannot be wrapped in Pyro's own tensor subclass.
"""

from typing import Any

import torch
from pyro.ops.provenance import extract_provenance, get_provenance, track_provenance
from torch.overrides import TorchFunctionMode

from ppl_dgm.compile.torch_internals import FakeTensor

__all__ = ["TrackProvenance"]

_NAMES = "_ppl_dgm_provenance"


@extract_provenance.register(FakeTensor)
def _extract(value: FakeTensor) -> tuple[FakeTensor, frozenset]:
    return value, getattr(value, _NAMES, frozenset())


@track_provenance.register(FakeTensor)
def _track(value: FakeTensor, provenance: frozenset) -> torch.Tensor:
    if not provenance:
        return value
    view = value.view_as(value)
    setattr(view, _NAMES, provenance | getattr(value, _NAMES, frozenset()))
    return view


class TrackProvenance(TorchFunctionMode):
    """Function mode that propagates provenance through operations.

    Every result gets the union of its arguments' provenances (Wingate et al., 2011).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        provenance = get_provenance([list(args), kwargs])
        result = func(*args, **kwargs)
        return track_provenance(result, provenance) if provenance else result
