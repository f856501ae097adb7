"""Random draws under `torch.func.vmap`.

torch's in-place samplers and Dirichlet draws do not work there by themselves.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro.ops.special as special
import torch
import torch.distributions.dirichlet as dirichlet
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ppl_dgm.context_patches import ContextPatches, Patch

__all__ = ["loop_runs", "vmap_runs"]

IN_PLACE_SAMPLERS = {
    "normal_",
    "uniform_",
    "exponential_",
    "cauchy_",
    "log_normal_",
    "geometric_",
    "random_",
    "bernoulli_",
}


READ_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class MappedRun(TorchFunctionMode):
    """Lets a Pyro program run inside vmap.

    The tensor that an in-place sampler fills is made to vary with the mapped index, as are those
    that torch's binomial and multinomial draws start from; `clamp_` (in Gamma draws), which cannot
    be mapped, copies; asking a parameter that requires a gradient to require one (Pyro's parameter
    store does so on each call) changes nothing and is let pass; `.data` (Pyro's enumeration looks
    at `.data.shape`) is `.detach()`; `log_ndtr`, of which vmap takes one run after the other, is
    made of what it takes at once.
    """

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.zero = index * 0

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.requires_grad_ and args[0].requires_grad:
            return args[0]
        if func == READ_DATA:
            return args[0].detach()
        if func is Tensor.clamp_:
            return args[0].copy_(args[0].clamp(*args[1:], **(kwargs or {})))
        if func is Tensor.new:
            return self.vary(func(*args, **(kwargs or {})))
        if func is torch.special.log_ndtr:
            func = log_ndtr
        if func is torch.binomial:
            args = (self.vary(args[0]), self.vary(args[1]))
        if getattr(func, "__name__", "") in IN_PLACE_SAMPLERS:
            args = (self.vary(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))

    def vary(self, value: Tensor) -> Tensor:
        """The same tensor, varying with the mapped index."""
        return value + self.zero.to(value)


def log_ndtr(x: Tensor) -> Tensor:
    """log Phi(x) of the standard normal distribution."""
    below, above = (x / math.sqrt(2)).clamp_max(1.0), (x / math.sqrt(2)).clamp_min(0.0)
    tail = (torch.special.erfcx(-below) / 2).log() - below.square()
    return torch.where(x < 1, tail, torch.log1p(-torch.erfc(above) / 2))


def gamma_dirichlet(concentration: Tensor) -> Tensor:
    """Draw from a Dirichlet distribution by normalising Gamma draws.

    The implicit reparameterisation gradient is the same.
    """
    gamma = torch._standard_gamma(concentration)  # type: ignore[attr-defined]
    tiny = torch.finfo(concentration.dtype).tiny  # all zero for small concentrations
    gamma = gamma.clamp_min(tiny)
    return gamma / gamma.sum(-1, keepdim=True)


def floored_log(x: Tensor) -> Tensor:
    """log(x), minus infinity at 0, with a finite gradient."""
    info = torch.finfo(x.dtype)
    return torch.where(x > 0, x.clamp_min(info.tiny).log(), torch.full_like(x, -torch.inf))


# vmap refuses the custom autograd functions of torch and Pyro.
mappable_functions = ContextPatches(
    Patch(dirichlet._Dirichlet, "apply", gamma_dirichlet),
    Patch(special._SafeLog, "apply", floored_log),
)


def vmap_runs(
    once: Callable[[Any], Any], num: int, device: torch.device | None, given: Any = None
) -> Any:
    """Run `once(given)` `num` times in parallel, with independent noise.

    Outputs gain a leading dimension.

    Tensors in `given` are `[num, ...]`, one slice for each run. A single run is not mapped, so that
    modules that update statistics of their inputs, as batch normalisation does, can be trained with
    one particle.
    """
    given = given or {}
    if num == 1:
        return tree_map(lambda part: part.unsqueeze(0), once(tree_map(lambda part: part[0], given)))

    def mapped(index: Tensor, values: Any) -> Any:
        with MappedRun(index):
            return once(values)

    with mappable_functions():
        return torch.func.vmap(mapped, randomness="different")(
            torch.arange(num, device=device), given
        )


def loop_runs(once: Callable[[Any], Any], num: int, given: Any = None) -> Any:
    """Run `once(given)` `num` times, one after the other.

    Outputs gain a leading dimension, numbers aside: the zero of a program that scores nothing.
    """
    given = given or {}
    runs = [once({name: value[i] for name, value in given.items()}) for i in range(num)]
    return tree_map(_stacked, *runs)


def _stacked(*parts: Any) -> Any:
    """Stack tensors; numbers stay as they are."""
    return torch.stack(parts) if isinstance(parts[0], Tensor) else parts[0]
