"""Sums of products of exponentials, in logs.

Enumerated latents are summed out by them.

This is a module as `opt_einsum` takes them for a backend, by the names of its functions.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add

import torch
from pyro.ops.einsum import torch_log
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from torch import Tensor

from ppl_dgm.compile.tracing.closures import is_concrete

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
    of data given their class, or small, and where exponentials have lost digits.
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
        found = shifted(equation, *operands)
        # A captured or mapped program cannot branch on a value.
        if not is_concrete(found) or not bool(underflows(found, output, names, operands).any()):
            return found
    total = reduce(add, map(partial(spread, letters), names, operands))
    return shifted(f"{letters}->{output}", total)


def underflows(
    found: Tensor, output: str, names: Sequence[str], operands: Sequence[Tensor]
) -> Tensor:
    """Check where a sum of exponentials has lost digits.

    `found` is its log, where each operand was shifted by its maximum. Each product that is lost is
    below the smallest normal number; digits stay where the sum of those left is larger by the
    reciprocal of the rounding error.
    """
    largest = reduce(add, map(partial(largest_along, output), names, operands))
    info = torch.finfo(found.dtype)
    return found < largest + math.log(info.tiny / info.eps)


def largest_along(output: str, name: str, operand: Tensor) -> Tensor:
    """Maximum of an operand over what is summed.

    Its dimensions are ordered as the output.
    """
    summed = [i for i, letter in enumerate(name) if letter not in output]
    kept = "".join(letter for letter in name if letter in output)
    return spread(output, kept, operand.detach().amax(summed) if summed else operand.detach())


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
