"""Model and guide as plain Pyro callables."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.params import param_with_module_name
from torch import nn

from ppl_dgm.generators import unmoved_generators
from ppl_dgm.program.parameters import ParameterScope
from ppl_dgm.program.plates import SizedPlates
from ppl_dgm.pyro_state import pyro_in_turn

__all__ = ["ScopedCallable"]


class ScopedCallable(nn.Module):
    """Model or guide as a plain Pyro callable.

    It finds its parameters in its program's scope.

    It owns the scope, so that `.parameters()` of a model or guide is never empty; a plain
    `torch.nn.Module` announces its parameters to Pyro, so that `pyro.infer.SVI` sees them.
    """

    def __init__(self, name: str, fn: Callable, scope: ParameterScope) -> None:
        super().__init__()
        self.role = name
        self.scope = scope
        self._fn = (fn,)  # in a tuple: a module is registered once, in the scope
        if isinstance(fn, nn.Module):
            scope.adopt(name, fn)

    @property
    def fn(self) -> Callable:
        """The callable as its author wrote it."""
        return self._fn[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.scope.waiting:
            self._create(args, kwargs)
        with pyro_in_turn(), self.scope.lent(self.role), SizedPlates():
            self.scope.forget_values(self.role)
            if isinstance(self.fn, nn.Module) and not isinstance(self.fn, PyroModule):
                announce(self.role, self.fn)
            return self.fn(*args, **kwargs)

    def _create(self, args: tuple, kwargs: Any) -> None:
        """Create the parameters that a file has values for.

        The callable is run once, seen by no handler.
        """
        quiet = unmoved_generators(), torch.no_grad(), pyro.poutine.block()
        with (
            pyro_in_turn(),
            quiet[0],
            quiet[1],
            quiet[2],
            self.scope.lent(self.role),
            SizedPlates(),
        ):
            self.fn(*args, **kwargs)
        self.scope.take()


def announce(name: str, module: nn.Module) -> None:
    """Register a module's trainable parameters with Pyro.

    Unlike `pyro.module`, it does not warn of frozen ones.
    """
    for own, parameter in module.named_parameters():
        if parameter.requires_grad:
            pyro.param(param_with_module_name(name, own), parameter)
