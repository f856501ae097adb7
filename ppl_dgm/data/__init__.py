"""Data sets, loaders, and densities with known truth.

Data sets are tensors with their splits, support and units.

A `Dataset` is what `fit` and every estimator take besides plain tensors, a `Stream` data that are
larger than memory. `load_digits` needs no
network, `load_binarized_mnist` and `load_mnist` fetch the originals or read a folder, `load_array`
reads the user's own files, and `load_density` draws from `DENSITIES`, two-dimensional distributions
with an exact log-density. `problems` are programs of known evidence.
"""

from importlib import import_module
from types import ModuleType

from ppl_dgm.data.dataset import Dataset
from ppl_dgm.data.densities import (
    DENSITIES,
    banana,
    funnel,
    gaussian_grid,
    gaussian_ring,
    load_density,
    pinwheel,
)
from ppl_dgm.data.loaders import load_array, load_binarized_mnist, load_digits, load_mnist
from ppl_dgm.data.stream import Stream

__all__ = [
    "DENSITIES",
    "Dataset",
    "Stream",
    "banana",
    "funnel",
    "gaussian_grid",
    "gaussian_ring",
    "load_array",
    "load_binarized_mnist",
    "load_density",
    "load_digits",
    "load_mnist",
    "pinwheel",
]


def __getattr__(name: str) -> ModuleType:
    if name != "problems":  # programs, which lie above this room
        raise AttributeError(f"module 'ppl_dgm.data' has no attribute {name!r}")
    return import_module("ppl_dgm.data.problems")
