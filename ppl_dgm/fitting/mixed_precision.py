"""Products of nets in few digits, densities in all."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ppl_dgm.program import Program

__all__ = ["NarrowProducts", "check_autocast"]

_PRODUCTS = {
    F.linear,
    F.bilinear,
    F.scaled_dot_product_attention,
    *(getattr(F, f"conv{kind}{n}d") for kind in ("", "_transpose") for n in (1, 2, 3)),
    *(getattr(torch, name) for name in ("matmul", "mm", "bmm", "mv", "addmm", "addbmm", "baddbmm")),
    *(getattr(Tensor, name) for name in ("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv")),
    torch.einsum,
}


class NarrowProducts(TorchFunctionMode):
    """Torch function mode that runs products under autocast.

    Their results return to the dtype of what came in. `torch.autocast` alone hands narrow numbers
    on to densities, whose sums over many sites then keep three digits.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS:
            return func(*args, **kwargs)
        first = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        # Without the cache of casts, which graphs and second backward passes must not share.
        with torch.autocast(first.device.type, self.dtype, cache_enabled=False):
            return func(*args, **kwargs).to(first.dtype)


def check_autocast(program: Program, dtype: torch.dtype | None) -> None:
    """Refuse dtypes and programs unfit for mixed precision.

    Raises ValueError.
    """
    if dtype is None:
        return
    if dtype != torch.bfloat16:
        raise ValueError(
            f"autocast is {dtype}; expected torch.bfloat16 or None: gradients underflow in "
            "float16, which would need a scaler"
        )
    wide = [n for n, p in program.named_parameters() if p.dtype == torch.float64]
    if wide:
        raise ValueError(
            f"autocast is {dtype} but the parameters {wide[:3]} are float64, which it would leave "
            "as they are; use program.float(), or leave autocast out"
        )
