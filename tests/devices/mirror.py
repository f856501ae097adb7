"""A second torch device made of host memory: finds faults of devices where there is none.

Importing this registers the device "mirror" in torch's PrivateUse1 slot, for good: import it only
in a process of its own. Its tensors compute on the CPU, but behave as those of an accelerator do:

- they mix with CPU tensors only where these are indices, or numbers `[]` in pointwise operations;
- `.numpy()` refuses;
- random numbers come from a generator of the device, which `torch.manual_seed` seeds;
- what makes the host wait for the device is counted by `host_reads`.

Not covered: Inductor, streams, several devices, operations that an accelerator lacks or sums in
another order, and Pyro's `ProvenanceTensor`.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "mirror"
GENERATOR = torch.Generator()  # the device's own, which operations draw from
GENERATORS: Any = weakref.WeakValueDictionary()  # further ones of the device, by address
READS: Counter = Counter()  # the host's waits so far: (kind, operation)

_INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
_TAKING_NUMBERS = {
    *("where", "clamp", "lerp", "normal", "fill", "fill_", "index_fill", "index_fill_"),
    *("masked_fill", "masked_fill_", "index_put", "index_put_", "_index_put_impl_"),
}  # operations that take a CPU number, without being tagged pointwise
_DEPENDING_ON_VALUES = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
_WAITING = {"_local_scalar_dense": "item", "_linalg_check_errors": "check"}

_setup_privateuseone_for_python_backend(
    NAME,
    SimpleNamespace(  # becomes `torch.mirror`, as there is `torch.cuda`
        is_available=lambda: True,
        is_initialized=lambda: True,
        _is_in_bad_fork=lambda: False,
        synchronize=lambda *_: None,
        device_count=lambda: 1,
        current_device=lambda: 0,
        manual_seed=GENERATOR.manual_seed,
        manual_seed_all=GENERATOR.manual_seed,
        get_rng_state=lambda device=None: GENERATOR.get_state(),
        set_rng_state=lambda state, device=None: GENERATOR.set_state(state),
    ),
)
DEVICE = torch.device(NAME, 0)


@contextmanager
def host_reads() -> Iterator[Counter]:
    """Count within a block what makes the host wait: items, downloads, uploads, shapes, checks."""
    READS.clear()
    found: Counter = Counter()
    yield found
    found.update(READS)


class MirrorTensor(Tensor):
    """A tensor of the device, with the CPU tensor behind it."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> MirrorTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
            requires_grad=raw.requires_grad,
        )

    def __init__(self, raw: Tensor) -> None:
        self.raw = raw

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return run(op, *args, **kwargs or {})

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "can't convert mirror:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )

    __array__ = numpy

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: MirrorTensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.raw = value.raw

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def untyped_storage(self) -> Any:
        return self.raw.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **how: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": DEVICE} | how)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_with_tensors(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_with_tensors(key), value)

    def __repr__(self, **_: Any) -> str:
        return f"{self.raw!r}"[:-1] + f", device='{DEVICE}')"

    def __format__(self, how: str) -> str:
        return format(repr(self) if self.dim() else self.item(), how)

    def __deepcopy__(self, memo: dict) -> Any:
        twin: Any = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            twin = torch.nn.Parameter(twin.detach(), self.requires_grad)
        return memo.setdefault(id(self), twin)

    def __reduce_ex__(self, _: Any) -> tuple:
        if isinstance(self, torch.nn.Parameter):
            return torch._utils._rebuild_parameter, (self.detach(), self.requires_grad, {})
        content = (self.raw.detach(), self.dtype, str(DEVICE), self.requires_grad)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, content


def _with_tensors(key: Any) -> Any:
    """An index with tensors in place of lists, which torch uploads itself."""
    if isinstance(key, tuple):
        return tuple(map(_with_tensors, key))
    if isinstance(key, list):
        return torch.tensor(key, dtype=None if key else torch.long, device="cpu")
    return key


def is_mirror(device: Any) -> bool:
    """Whether a device, or the name of one, is this one."""
    return device is not None and torch.device(device).type == NAME


def behind(leaf: Any) -> Any:
    """What the CPU's operation is given in place of an argument."""
    if isinstance(leaf, torch.device) and is_mirror(leaf):
        return torch.device("cpu")
    return leaf.raw if isinstance(leaf, MirrorTensor) else leaf


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation on the tensors behind, if an accelerator would."""
    leaves = tree_leaves((args, kwargs))
    _check_generators(leaves)
    if copied := _copy_between(op, args, kwargs):
        READS[copied, str(op)] += 1
    else:
        _check_devices(op, args, kwargs)
        _count_waits(op, args)
    drawing = torch.Tag.nondeterministic_seeded in op.tags
    own = drawing and not any(isinstance(leaf, torch.Generator) for leaf in leaves)
    with _generator_of_the_device() if own else nullcontext():
        out = op(*tree_map(behind, args), **tree_map(behind, kwargs))
    owners = {id(leaf.raw): leaf for leaf in leaves if isinstance(leaf, MirrorTensor)}
    for owner in owners.values():
        if owner.shape != owner.raw.shape:  # resized in place: the wrapper learns its shape
            owner.data = MirrorTensor(owner.raw)
    if copied == "download":
        return out
    return tree_map(lambda leaf: _on_device(leaf, owners), out)


def _on_device(leaf: Any, owners: dict[int, MirrorTensor]) -> Any:
    """A result as a tensor of the device, an argument written in place as itself."""
    if not isinstance(leaf, Tensor):
        return leaf
    return owners[id(leaf)] if id(leaf) in owners else MirrorTensor(leaf)


def _check_generators(leaves: list) -> None:
    for leaf in leaves:
        if isinstance(leaf, torch.Generator) and leaf._cdata not in GENERATORS:
            raise RuntimeError("Expected a 'mirror' device type for generator but found 'cpu'")


def _copy_between(op: Any, args: tuple, kwargs: dict) -> str | None:
    """The direction of a copy between host and device; None for anything else."""
    name = _name(op)
    if name == "_to_copy":
        source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
    elif name == "copy_":
        source, target = args[1].device, args[0].device
    else:
        return None
    if source.type == target.type:
        return None
    return "download" if target.type == "cpu" else "upload"


def _check_devices(op: Any, args: tuple, kwargs: dict) -> None:
    name = _name(op)
    given = (args[0], args[2:], kwargs) if name in _INDEXING else (args, kwargs)
    numbers = (
        torch.Tag.pointwise in op.tags or name in _TAKING_NUMBERS or name.startswith("_foreach")
    )
    host = [leaf for leaf in tree_leaves(given) if _is_on_host(leaf)]
    if (name.endswith("_") and _is_on_host(args[0])) or any(t.dim() or not numbers for t in host):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"mirror:0 and cpu! ({op}, CPU tensors of shapes {[tuple(t.shape) for t in host]})"
        )


def _count_waits(op: Any, args: tuple) -> None:
    name = _name(op)
    indices = [leaf for leaf in args[1] if leaf is not None] if name in _INDEXING else []
    if any(map(_is_on_host, indices)):
        READS["upload", str(op)] += 1
    masked = any(leaf.dtype == torch.bool for leaf in indices)
    if name in _WAITING:
        READS[_WAITING[name], str(op)] += 1
    elif masked or (name not in _INDEXING and _DEPENDING_ON_VALUES & set(op.tags)):
        READS["shape", str(op)] += 1


def _is_on_host(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.device.type == "cpu"


def _name(op: Any) -> str:
    return op._schema.name.removeprefix("aten::")


@contextmanager
def _generator_of_the_device() -> Iterator[None]:
    """Let the CPU's operations draw from the device's generator."""
    host = torch.get_rng_state()
    torch.set_rng_state(GENERATOR.get_state())
    try:
        yield
        GENERATOR.set_state(torch.get_rng_state())
    finally:
        torch.set_rng_state(host)


_FALLBACKS = Library("_", "IMPL")
_FALLBACKS.fallback(run, "PrivateUse1")
