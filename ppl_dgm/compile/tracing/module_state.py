"""State of modules besides the values of their tensors.

It is fixed at capture, remembered, and compared later.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.fx import GraphModule
from torch.nn import Module, Parameter
from torch.nn.modules.module import register_module_forward_pre_hook

from ppl_dgm.compile.errors import NUMBER_CURE, CaptureError
from ppl_dgm.compile.tracing.pytrees import tensor_leaves

__all__ = ["Settings", "watched_modules"]

Setting = tuple[
    dict[str, Any], str, Any, str
]  # where it is held, its name, its value, the kind of its module
_PLAIN = (bool, int, float, complex, str)
_ABSENT = object()
_OWN = frozenset(vars(Module()))
_FLAG_CURE = "Run the program once before compiling it, or run with compile=False."


@dataclass(frozen=True)
class Settings:
    """The settings of modules at some time.

    Attributes:
        plain: flags (`training` too), numbers and strings of modules.
        tensors: parameters and buffers of modules.
        types: the parameters that were read, and their types.
        values: masks, indices and counts that shapes and branches depend on, and their values.
    """

    plain: tuple[Setting, ...]
    tensors: tuple[Setting, ...]
    types: tuple[tuple[torch.Tensor, torch.dtype], ...]
    values: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()

    def changed(self) -> str | None:
        """Name the first setting that is another now, or None."""
        for held, name, value, owner in self.plain:
            now = held.get(name)
            if not _same(now, value):
                return f"{owner}.{name} was {value!r} and is {now!r}"
        for held, name, tensor, owner in self.tensors:
            if held.get(name) is not tensor:
                return f"{owner}.{name} is another tensor"
        for tensor, dtype in self.types:
            if tensor.dtype is not dtype:
                return f"a parameter of {dtype} became one of {tensor.dtype}"
        for tensor, value in self.values:
            if not torch.equal(tensor, value):
                return f"a tensor {list(value.shape)} that decides shapes or branches has changed"
        return None


@dataclass
class Watch:
    """Modules that run, and the attributes they assign meanwhile.

    Attributes and buffers are recorded as they were before, and after the first run.

    Modules that are born meanwhile do as they like.
    """

    born: set[Module] = field(default_factory=set)
    contents: list[tuple[Any, Any]] = field(default_factory=list)
    seen: dict[Module, None] = field(default_factory=dict)
    buffers: dict[tuple[Module, str], torch.Tensor | None] = field(default_factory=dict)
    assigned: dict[tuple[Module, str], Any] = field(default_factory=dict)
    first_run: dict[tuple[Module, str], Any] = field(default_factory=dict)

    def end_first_run(self) -> None:
        """Record the attributes that the first run left.

        CaptureError is raised if the run replaced a buffer.
        """
        replaced = [
            _name(module, name)
            for (module, name), old in self.buffers.items()
            if module._buffers[name] is not old
        ]
        if replaced:
            names = ", ".join(replaced)
            raise CaptureError(
                f"a module assigns to its buffer ({names}) while it runs. Write in place, with "
                "`copy_`."
            )
        self.first_run = {key: _held(*key) for key in self.assigned}

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """Name the attribute that holds a tensor, or None."""
        holders = (
            key
            for key in self.assigned
            if any(leaf is tensor for leaf in tensor_leaves(_held(*key)))
        )
        return next((_name(*key) for key in holders), None)

    def refuse_counts(self) -> None:
        """Refuse numbers and flags that change from run to run.

        CaptureError is raised for a number that the second run changed again, or a flag that the
        first run turned.
        """
        for key, first in self.first_run.items():
            before, now = self.assigned[key], _held(*key)
            counted = isinstance(now, _PLAIN) and not _same(first, now)
            turned = (
                isinstance(before, bool)
                and isinstance(now, bool)
                and before != now
                and key[1] != "training"
            )
            if counted or turned:
                old, cure = (first, NUMBER_CURE) if counted else (before, _FLAG_CURE)
                raise CaptureError(
                    f"a module changes as it runs ({_name(*key)}: {old!r}, then {now!r}). {cure}"
                )

    def restore(self, *, numbers: bool) -> None:
        """Restore the attributes, lists and dicts of the modules.

        They would hold tensors of a trace. Numbers are restored only if `numbers` is true.
        """
        for (module, name), buffer in self.buffers.items():
            module._buffers[name] = buffer
        for container, content in self.contents:
            container.clear()
            (container.update if isinstance(container, dict) else container.extend)(content)
        for (module, name), value in self.assigned.items():
            if not numbers and isinstance(_held(module, name), _PLAIN):
                continue
            if value is _ABSENT:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = value

    def settings(
        self, lifted: Sequence[torch.Tensor], read: Iterable[torch.Tensor] = ()
    ) -> Settings:
        """Return the present settings of the modules.

        Those of their parts are included, but not what modules assign to themselves. `read` are
        tensors whose values are baked in.
        """
        modules = list(dict.fromkeys(part for module in self.seen for part in module.modules()))
        plain = [
            (module.__dict__, name, value, type(module).__name__)
            for module in modules
            for name, value in module.__dict__.items()
            if isinstance(value, _PLAIN) and self._is_given(module, name)
        ]
        tensors = [
            (held, name, tensor, type(module).__name__)
            for module in modules
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
        ]
        return Settings(
            tuple(plain),
            tuple(tensors),
            tuple((p, p.dtype) for p in lifted if isinstance(p, Parameter)),
            tuple((tensor, tensor.detach().clone()) for tensor in read),
        )

    def _is_given(self, module: Module, name: str) -> bool:
        return name == "training" or (module, name) not in self.assigned


def _held(module: Module, name: str) -> Any:
    return module.__dict__.get(name, _ABSENT)


def _containers(module: Module) -> list[Any]:
    return [
        value
        for name, value in vars(module).items()
        if name not in _OWN and type(value) in (list, dict)
    ]


def _name(module: Module, name: str) -> str:
    return f"{type(module).__name__}.{name}"


def _same(one: Any, other: Any) -> bool:
    return one is other or one == other


@contextmanager
def watched_modules() -> Iterator[Watch]:
    """Refuse modules that count or replace buffers while they run.

    Such a change would happen once, at capture. The modules are watched until the end of the block.

    What else they assign to themselves is taken back.
    """
    watch, create, assign = Watch(), Module.__init__, Module.__setattr__

    def remember(module: Module, _: Any = None) -> None:
        is_trace = (
            isinstance(module, GraphModule) and module in watch.born
        )  # the body of a loop, rewritten later
        if module not in watch.seen and not is_trace:
            watch.seen[module] = None
            watch.contents += [(value, value.copy()) for value in _containers(module)]

    def born(module: Module, *args: Any, **kwargs: Any) -> None:
        watch.born.add(module)
        create(module, *args, **kwargs)

    def note(module: Module, name: str, value: Any) -> None:
        if module not in watch.born and "_buffers" in module.__dict__:
            remember(module)
            if name in module._buffers:
                watch.buffers.setdefault((module, name), module._buffers[name])
            watch.assigned.setdefault((module, name), _held(module, name))
        assign(module, name, value)

    done, handle = False, register_module_forward_pre_hook(remember)
    try:
        with (
            mock.patch.object(Module, "__init__", born),
            mock.patch.object(Module, "__setattr__", note),
        ):
            yield watch
        watch.refuse_counts()
        done = True
    finally:
        handle.remove()
        watch.restore(numbers=not done)
