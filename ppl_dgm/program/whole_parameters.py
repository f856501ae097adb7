"""Parameters of distributions that are whole numbers.

Torch gives all parameters of a distribution the dtype of the first tensor among them: beside a
tensor of integers the number 2.5 becomes 2 without a word, bytes wrap where they are squared, and
`lgamma` of integers has the digits of float32.
"""

import copy
import sys
from collections.abc import Mapping
from typing import Any

import pyro.distributions  # noqa: F401 - whose modules are patched
from torch import Tensor, get_default_dtype
from torch.distributions import Distribution
from torch.distributions.utils import broadcast_all

from ppl_dgm.context_patches import ContextPatches, Patch

__all__ = ["as_reals", "in_real_numbers", "rounding_refused"]


def as_reals(value: Tensor) -> Tensor:
    """Convert booleans and integers to floating-point numbers.

    Arithmetic of bytes wraps, and that of booleans fails.
    """
    return value.to(get_default_dtype()) if is_whole(value) else value


def is_whole(value: Any) -> bool:
    """Return whether something is a tensor of booleans or integers."""
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def in_real_numbers(fn: Any) -> Any:
    """Turn whole parameters of a distribution to floating-point numbers.

    Those of distributions that it wraps or is made of are turned too.
    """
    declared, changes = getattr(type(fn), "arg_constraints", None), {}
    for name, value in vars(fn).items():
        if isinstance(value, Distribution):
            changes[name] = in_real_numbers(value)
        elif is_whole(value) and isinstance(declared, Mapping) and name in declared:
            changes[name] = as_reals(value)
    if all(value is vars(fn)[name] for name, value in changes.items()):
        return fn
    changed = copy.copy(fn)
    vars(changed).update(changes)
    return changed


def _broadcast_unrounded(*values: Any) -> Any:
    """Broadcast parameters, and refuse numbers that would be rounded."""
    first = next((value for value in values if isinstance(value, Tensor)), None)
    lost = [value for value in values if isinstance(value, float) and value % 1]
    if lost and first is not None and is_whole(first):
        raise ValueError(
            f"the parameter {lost[0]:g} of a distribution is rounded to {int(lost[0])} beside a "
            f"tensor of {first.dtype}, whose dtype torch gives to all of them; expected "
            "floating-point numbers: write tensor.float()"
        )
    return broadcast_all(*values)


rounding_refused = ContextPatches(
    *(
        Patch(module, "broadcast_all", _broadcast_unrounded)
        for name, module in list(sys.modules.items())
        if name.startswith(("torch.distributions.", "pyro.distributions."))
        and vars(module).get("broadcast_all") is broadcast_all
        and name != "torch.distributions.utils"
    )
)
