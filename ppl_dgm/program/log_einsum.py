"""Sums of products of exponentials, in logs; what Pyro sums enumerated latents out with.

A module as `opt_einsum` takes them for a backend, by the names of its functions.
"""

import math

from pyro.ops.einsum import torch_log
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from torch import Tensor

__all__ = ["SumRing", "einsum", "tensordot", "transpose"]

AT_ONCE = 2**14  # numbers that are made to be summed, where no operand has as many

transpose = torch_log.transpose


def einsum(equation: str, *operands: Tensor) -> Tensor:
    r"""Contract logs: $\log \sum \prod \exp$, by the letters of the equation.

    Pyro's shifts each operand by a maximum of its own, and takes exponentials: of two that favour
    different values by more than 745 nats (88 in single precision) no product is left, and the log
    is minus infinity. Here they are added first, where the sum is not larger than one of them, as
    of data given their class, or small.
    """
    inputs, output = equation.split("->")
    names = inputs.split(",")
    sizes = {
        name: size
        for letters, operand in zip(names, operands, strict=True)
        for name, size in zip(letters, operand.shape, strict=True)
    }
    letters = "".join(dict.fromkeys(output + "".join(names)))
    most = max(AT_ONCE, *(operand.numel() for operand in operands))
    if math.prod(sizes.values()) > most:
        return torch_log.einsum(equation, *operands)
    total = sum(spread(*pair, letters) for pair in zip(names, operands, strict=True))
    return torch_log.einsum(f"{letters}->{output}", total)


def spread(name: str, operand: Tensor, letters: str) -> Tensor:
    """Order the dimensions of an operand as the letters, of size one where it has none."""
    ordered = operand.permute([name.index(letter) for letter in letters if letter in name])
    return ordered[tuple(slice(None) if letter in name else None for letter in letters)]


tensordot = Tensordot(einsum)


class SumRing(LogRing):
    """Pyro's sums of products, by the functions of this module."""

    _backend = __name__
