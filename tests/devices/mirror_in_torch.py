"""Teach the mirror to what torch doesn't route to devices written in Python.

Importing this module does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mirror import DEVICE, GENERATORS, behind, is_mirror
from torch import Tensor
from torch.utils._pytree import tree_map

_MAKE, _LOAD, _APPLY = torch.tensor, torch.load, torch.nn.Module._apply


class _Generator(torch.Generator):
    """A generator of the device; operations see a plain one and know it by its address."""

    def __init__(self) -> None:
        GENERATORS[self._cdata] = self

    @property
    def device(self) -> torch.device:
        return DEVICE


class _GeneratorType(type):
    """Stands in for `torch.Generator`, whose constructor refuses the device."""

    plain = torch.Generator

    def __call__(cls, device: Any = "cpu") -> Any:
        return _Generator() if is_mirror(device) else cls.plain(device)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.plain)


def _uploading(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` and its like, which make CPU tensors that are then copied."""

    def made(
        data: Any, *args: Any, device: Any = None, requires_grad: bool = False, **how: Any
    ) -> Tensor:
        device = device or (data if isinstance(data, Tensor) else torch.empty(0)).device
        if not is_mirror(device):
            return make(behind(data), *args, device=device, **how).requires_grad_(requires_grad)
        if isinstance(data, (int, float)) and torch._C._len_torch_dispatch_stack():
            return torch.full((), data, device=device, **how)  # while a function is traced
        if isinstance(data, Tensor) and make is not _MAKE:
            return data.to(device, *args, **how)
        made_on_host = make(behind(data), *args, device="cpu", **how)
        return made_on_host.to(device).requires_grad_(requires_grad)

    return made


def _loading(*args: Any, map_location: Any = None, **how: Any) -> Any:
    """`torch.load`, which puts tensors of the device onto it itself, but no others."""
    moved = isinstance(map_location, (str, torch.device)) and is_mirror(map_location)
    found = _LOAD(*args, map_location="cpu" if moved else map_location, **how)
    return (
        tree_map(lambda leaf: leaf.to(DEVICE) if isinstance(leaf, Tensor) else leaf, found)
        if (moved)
        else found
    )


def _swap(one: Any, other: Any) -> None:
    """Exchange the contents of two tensors, that parameters stay themselves as they move."""
    one.__class__, other.__class__ = other.__class__, one.__class__
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__
    torch._C._swap_tensor_impl(one, other)


def _applying(module: Any, fn: Any, recurse: bool = True) -> Any:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return _APPLY(module, fn, recurse)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


torch.Generator = _GeneratorType("Generator", (), {})  # type: ignore[misc]
torch.tensor, torch.as_tensor, torch.asarray = (
    _uploading(make) for make in (torch.tensor, torch.as_tensor, torch.asarray)
)
torch.load, torch.utils.swap_tensors = _loading, _swap
torch.nn.Module._apply = _applying  # type: ignore[method-assign]
