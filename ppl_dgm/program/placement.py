"""Where the tensors of a program are: device and precision."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Placement"]


@dataclass(frozen=True)
class Placement:
    """Device and precision to which a program was moved.

    They are None where it was not moved.
    """

    device: torch.device | None = None
    dtype: torch.dtype | None = None

    def after(self, move: Callable[[Tensor], Tensor]) -> "Placement":
        """Return where a tensor here would be after a move."""
        kinds = torch.float32, torch.float64
        probes = [torch.empty(0, device=self.device or "cpu", dtype=kind) for kind in kinds]
        one, other = map(move, probes)
        device = one.device if one.device != probes[0].device else self.device
        return Placement(device, one.dtype if one.dtype == other.dtype else self.dtype)

    def of_tensor(self, value: Tensor) -> Tensor:
        """Move a tensor. Whole numbers keep their dtype."""
        return value.to(self.device, self.dtype if value.is_floating_point() else None)

    def of_module(self, module: nn.Module) -> nn.Module:
        """Move a module, unless it is here."""
        tensors = (*module.parameters(), *module.buffers())
        return module._apply(self.of_tensor) if any(map(self._moves, tensors)) else module

    def _moves(self, value: Tensor) -> bool:
        elsewhere = self.device is not None and value.device != self.device
        other = self.dtype is not None and value.is_floating_point() and value.dtype != self.dtype
        return elsewhere or other

    def of_start(self, start: Any) -> Any:
        """Move a parameter's initial value, or what a function makes."""
        if start is None or isinstance(start, Tensor):
            return start if start is None else self.of_tensor(start)
        return lambda: self.of_tensor(start())
