"""Running programs without changing them: evaluation mode, no gradients, generators left alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import nn

from ppl_dgm.program.parameters import MODULE_DIVIDER, calling_module
from ppl_dgm.pyro_state import pyro_in_turn


class EvaluationMode(Messenger):
    """Puts modules in evaluation mode, also those that a program registers by `pyro.module` while it runs, and back."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.given = modules
        self.modes: dict[nn.Module, bool] = {}
        self.seen: set[str] = set()

    def __enter__(self) -> Any:
        for module in self.given:
            self.switch(module)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for module, training in self.modes.items():
            module.training = training

    def switch(self, module: nn.Module) -> None:
        """Put a module and its children in evaluation mode, noting what they were in."""
        for child in module.modules():
            self.modes.setdefault(child, child.training)
            child.training = False

    def _pyro_post_param(
        self, msg: Any
    ) -> None:  # outermost first: an inner one notes the outer one's mode
        name = msg["name"]
        if MODULE_DIVIDER in name and name not in self.seen:
            self.seen.add(name)
            found = calling_module()
            if found is not None:
                self.switch(found[1])


@contextmanager
def evaluating(*callables: Any) -> Iterator[None]:
    """Put torch modules in evaluation mode (dropout off, batch norm fixed) and back, with those that others register."""
    with pyro_in_turn(), EvaluationMode(*(fn for fn in callables if isinstance(fn, nn.Module))):
        yield


@contextmanager
def undisturbed(*callables: Any) -> Iterator[None]:
    """Run a block in evaluation mode, without gradients and without moving the random number generators."""
    devices = {p.device for fn in callables if isinstance(fn, nn.Module) for p in fn.parameters()}
    cuda = [device for device in devices if device.type == "cuda"]
    with evaluating(*callables), torch.random.fork_rng(cuda), torch.no_grad():
        yield
