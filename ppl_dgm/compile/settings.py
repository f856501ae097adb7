"""What modules hold besides the values of their tensors: baked in at capture, remembered, and compared later."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.nn import Module, Parameter
from torch.nn.modules.module import register_module_forward_pre_hook

from ppl_dgm.compile.errors import CaptureError

Buffers = dict[str, torch.Tensor | None]
Setting = tuple[dict[str, Any], str, Any, str]  # where it is held, its name, its value, the kind of its module
_PLAIN = (bool, int, float, complex, str)


@dataclass(frozen=True)
class Settings:
    """The settings of modules at some time.

    Attributes:
        plain: flags (`training` too), numbers and strings of modules.
        tensors: parameters and buffers of modules.
        types: the parameters that were read, and their types.
    """

    plain: tuple[Setting, ...]
    tensors: tuple[Setting, ...]
    types: tuple[tuple[torch.Tensor, torch.dtype], ...]

    def changed(self) -> str | None:
        """Name the first setting that is another now, or None."""
        for held, name, value, owner in self.plain:
            now = held.get(name)
            if now is not value and now != value:
                return f"{owner}.{name} was {value!r} and is {now!r}"
        for held, name, tensor, owner in self.tensors:
            if held.get(name) is not tensor:
                return f"{owner}.{name} is another tensor"
        for tensor, dtype in self.types:
            if tensor.dtype is not dtype:
                return f"a parameter of {dtype} became one of {tensor.dtype}"
        return None


@dataclass
class Watch:
    """The modules that run, their buffers before, and the names to which they assign meanwhile."""

    before: dict[Module, Buffers] = field(default_factory=dict)
    assigned: set[tuple[int, str]] = field(default_factory=set)

    def settings(self, lifted: Sequence[torch.Tensor]) -> Settings:
        """Return the present settings of the modules and their parts, without what they assign to themselves."""
        modules = list(dict.fromkeys(part for module in self.before for part in module.modules()))
        plain = [
            (module.__dict__, name, value, type(module).__name__)
            for module in modules
            for name, value in module.__dict__.items()
            if isinstance(value, _PLAIN) and self._is_given(module, name)
        ]
        tensors = [
            (held, name, tensor, type(module).__name__)
            for module in modules
            for held in _holders(module)
            for name, tensor in held.items()
        ]
        return Settings(tuple(plain), tuple(tensors), tuple((p, p.dtype) for p in lifted if isinstance(p, Parameter)))

    def _is_given(self, module: Module, name: str) -> bool:
        return name == "training" or (id(module), name) not in self.assigned


def _holders(module: Module) -> tuple[Any, Any]:
    return module._parameters, module._buffers


@contextmanager
def watched_modules() -> Iterator[Watch]:
    """Watch modules run, and refuse those that assign a new tensor to a buffer: it would happen once, at capture."""
    watch, assign = Watch(), Module.__setattr__

    def remember(module: Module, _: Any) -> None:
        watch.before.setdefault(module, dict(module._buffers))

    def note(module: Module, name: str, value: Any) -> None:
        watch.assigned.add((id(module), name))
        assign(module, name, value)

    handle = register_module_forward_pre_hook(remember)
    try:
        with mock.patch.object(Module, "__setattr__", note):
            yield watch
        replaced = [(m, name) for m, old in watch.before.items() for name in old if old[name] is not m._buffers[name]]
    finally:
        handle.remove()
        for module, old in watch.before.items():
            module._buffers.update(old)
    if replaced:
        names = ", ".join(f"{type(module).__name__}.{name}" for module, name in replaced)
        raise CaptureError(f"a module assigns to its buffer ({names}) while it runs. Write in place, with `copy_`.")
