"""Contexts that run programs without changing them.

They give evaluation mode, no gradients, and generators left alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ppl_dgm.generators import unmoved_generators, unmoved_python_generators
from ppl_dgm.program.parameters import MODULE_DIVIDER, calling_module
from ppl_dgm.pyro_state import pyro_in_turn

__all__ = ["evaluating", "repeatable", "undisturbed", "undone", "undone_on_error"]


class EvaluationMode(Messenger):
    """Pyro handler that puts modules in evaluation mode.

    This holds also for modules that a program registers by `pyro.module` while it runs. All get
    their modes back at the end.
    """

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
        """Put a module and its children in evaluation mode.

        Their modes before are noted.
        """
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
    """Put torch modules in evaluation mode during a block.

    Dropout is off and batch norm fixed, also in modules that others register. The modes are
    restored after it.
    """
    with pyro_in_turn(), EvaluationMode(*(fn for fn in callables if isinstance(fn, nn.Module))):
        yield


class UnchangedBuffers(EvaluationMode):
    """Evaluation mode after which buffers are what they were."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.buffers: list[Noted] = []

    @contextmanager
    def in_given_modes(self) -> Iterator[None]:
        """Run a block in the modules' original modes."""
        for module, training in self.modes.items():
            module.training = training
        try:
            yield
        finally:
            for module in self.modes:
                module.training = False

    def switch(self, module: nn.Module) -> None:
        """Note a module's buffers and start its evaluation mode.

        This holds for its children too.
        """
        for child in module.modules():
            if child not in self.modes:
                self.buffers += noted(child._buffers)
        super().switch(module)

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        put_back(self.buffers)


Noted = tuple[dict[str, Any], str, Tensor, Tensor, int]


def noted(tensors: dict[str, Any]) -> list[Noted]:
    """Record where tensors are held, and their values.

    The values are copies. How often each tensor had been written to is recorded too.
    """
    return [
        (tensors, name, tensor, tensor.detach().clone(), tensor._version)
        for name, tensor in tensors.items()
        if tensor is not None and not is_lazy(tensor) and not tensor.is_inference()
    ]


@torch.no_grad()
def put_back(places: list[Noted]) -> None:
    """Restore recorded tensors and their values.

    Each place gets its tensor back, and each tensor that was written to its value.
    """
    for held, name, tensor, value, version in places:
        held[name] = tensor
        if tensor._version != version:
            if tensor.shape == value.shape:
                tensor.copy_(value)
            else:
                tensor.set_(value)  # type: ignore[arg-type]


class Snapshot:
    """Snapshot of what modules hold.

    It is put back after a run that should not have happened.

    Lists and dicts (plates that a guide keeps, say) get their contents back, and whatever was
    created is dropped; parameters are taken to have kept their values, as they do without
    gradients.
    """

    def __init__(self, *callables: Any) -> None:
        modules = dict.fromkeys(
            part for fn in callables if isinstance(fn, nn.Module) for part in fn.modules()
        )
        scopes: list[Any] = [getattr(module, "scope", None) for module in modules]
        for scope in filter(None, scopes):
            modules |= dict.fromkeys(scope.modules())
        self.attributes = [(module, dict(vars(module))) for module in modules]
        self.contents = [
            (value, value.copy())
            for _, held in self.attributes
            for value in held.values()
            if isinstance(value, (dict, list, set))
        ]

    def restore(self) -> None:
        """Put everything back."""
        for container, content in self.contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
        for module, held in self.attributes:
            vars(module).clear()
            vars(module).update(held)


@contextmanager
def repeatable(*callables: Any) -> Iterator[None]:
    """Restore generators and buffers after a block.

    The block then runs again as before.
    """
    modules = {part for fn in callables if isinstance(fn, nn.Module) for part in fn.modules()}
    for module in tuple(modules):
        scope = getattr(module, "scope", None)
        modules |= set(scope.modules()) if scope is not None else set()
    buffers = [place for module in modules for place in noted(module._buffers)]
    with unmoved_generators(*{tensor.device for _, _, tensor, _, _ in buffers}):
        yield
    put_back(buffers)


@contextmanager
def undone(*callables: Any) -> Iterator[None]:
    """Put modules back as they were after a block."""
    snapshot = Snapshot(*callables)
    try:
        yield
    finally:
        snapshot.restore()


@contextmanager
def undone_on_error(*callables: Any) -> Iterator[None]:
    """Restore modules if a block fails or is interrupted."""
    snapshot = Snapshot(*callables)
    try:
        yield
    except BaseException:
        snapshot.restore()
        raise


@contextmanager
def undisturbed(*callables: Any) -> Iterator["UnchangedBuffers"]:
    """Run a block in evaluation mode without gradients.

    Generators and buffers are restored after it.
    """
    modules = [fn for fn in callables if isinstance(fn, nn.Module)]
    devices = {parameter.device for module in modules for parameter in module.parameters()}
    with (
        pyro_in_turn(),
        UnchangedBuffers(*modules) as isolation,
        unmoved_generators(*devices),
        unmoved_python_generators(),
        torch.no_grad(),
    ):
        yield isolation
