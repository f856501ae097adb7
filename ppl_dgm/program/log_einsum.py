"""Sums of products of exponentials, in logs.

Enumerated latents are summed out by them.

This is a module as `opt_einsum` takes them for a backend, by the names of its functions.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from operator import add

from pyro.ops.einsum import torch_log
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from torch import Tensor

__all__ = ["SumRing", "einsum", "tensordot", "transpose"]

AT_ONCE = 2**14  # numbers that are made to be summed, where no operand has as many

transpose = torch_log.transpose
shifted: Callable[..., Tensor] = torch_log.einsum  # type: ignore[assignment]


def einsum(equation: str, *operands: Tensor) -> Tensor:
    r"""Contract logs by an equation of letters.

    It is $\log \sum \prod \exp$ of the operands.

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
        return shifted(equation, *operands)
    total = reduce(add, map(partial(spread, letters), names, operands))
    return shifted(f"{letters}->{output}", total)


def spread(letters: str, name: str, operand: Tensor) -> Tensor:
    """Order the dimensions of an operand as the letters.

    It has size one where it had none.
    """
    ordered = operand.permute([name.index(letter) for letter in letters if letter in name])
    return ordered[tuple(slice(None) if letter in name else None for letter in letters)]


tensordot = Tensordot(einsum)


class SumRing(LogRing):
    """Pyro's sums of products, by the functions of this module."""

    _backend = __name__
