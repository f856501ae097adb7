"""The device of this folder's tests, the mirror unless PPL_DGM_DEVICE names another."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_NAME = os.environ.get("PPL_DGM_DEVICE", "mirror")
if _NAME == "mirror":
    import mirror_in_torch  # noqa: F401 - registers it

DEVICE = torch.device(_NAME, 0)


def moved(tensors: Iterable[Any]) -> tuple:
    """The same on the device."""
    return tuple(leaf.to(DEVICE) if isinstance(leaf, Tensor) else leaf for leaf in tensors)


def is_there(tensor: Tensor) -> bool:
    """Whether a tensor is on the device."""
    return tensor.device == DEVICE
