"""Products with a weight that is held."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["packed_linear"]

WORTHWHILE = 2**23  # multiplications a product, below which copies cost what oneDNN gains


def packed_linear(weight: Tensor, bias: Tensor | None, num_rows: int) -> Callable[[Tensor], Tensor]:
    r"""Prepare an affine map for many products.

    It is $x \mapsto x W^\top + b$ of x `[num_rows, in]`, with weight `[out, in]` and bias as
    they are now, without gradients.
    """
    # oneDNN has AVX-512 kernels for every maker's processors, where MKL, behind `F.linear`, takes
    # AVX2 on those of AMD: twice as fast there. A tensor becomes oneDNN's by a copy, so that a
    # weight pays only if it is kept.
    usable = (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and num_rows * weight.numel() >= WORTHWHILE
    )
    if not usable:
        return partial(
            F.linear, weight=weight.detach(), bias=None if bias is None else bias.detach()
        )
    packed = weight.detach().contiguous().to_mkldnn()
    offset = None if bias is None else bias.detach().to_mkldnn()
    return lambda x: F.linear(x.to_mkldnn(), packed, offset).to_dense()
