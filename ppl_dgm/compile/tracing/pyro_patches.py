"""Temporary patches that make Pyro traceable.

They are few, scoped, and each has its reason.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pyro
import torch
from pyro.infer import trace_elbo, trace_mean_field_elbo, traceenum_elbo, tracegraph_elbo
from pyro.infer import util as infer_util
from pyro.infer.util import Dice
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from torch.distributions import Distribution, Transform, transforms
from torch.distributions.utils import lazy_property
from torch.overrides import TorchFunctionMode

from ppl_dgm.compile.errors import CaptureError

__all__ = ["SiteTracker", "traceable_pyro"]

_ITERATE_PLATE = IndepMessenger.__iter__
_EXPECTATION = Dice.compute_expectation
_ELBO_MODULES = (trace_elbo, trace_mean_field_elbo, traceenum_elbo, tracegraph_elbo)


class SiteTracker(Messenger):
    """Messenger that tracks the running sample site.

    Error messages name the site. Parameters created during capture are refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current: str | None = None

    def site(self) -> str | None:
        """Return the running site's name and distribution, or None."""
        return self.current

    def _pyro_sample(self, msg: Any) -> None:
        self.current = f"{msg['name']!r} ({type(msg['fn']).__name__})"

    def _pyro_post_sample(self, msg: Any) -> None:
        self.current = None

    def _pyro_param(self, msg: Any) -> None:
        start = msg["args"][1] if len(msg["args"]) > 1 else None
        if msg["name"] not in pyro.get_param_store() and not isinstance(start, torch.nn.Parameter):
            raise _born([msg["name"]])


def _born(names: list[str]) -> CaptureError:
    return CaptureError(
        f"parameter {', '.join(map(repr, names))} does not exist yet and would be created during "
        "capture. Run the program once before compiling it, and give parameters names that don't "
        "change from call to call."
    )


@contextmanager
def traceable_pyro() -> Iterator[SiteTracker]:
    """Let Pyro run without reading tensor values on the host.

    This holds for programs and losses. Everything is restored on exit.
    """
    with ExitStack() as stack:
        touched: list[Transform] = []
        stack.callback(_forget, touched)
        for owner, name, value in [*_patches(), *_cache_patches(touched)]:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(_unchanged_store())
        yield stack.enter_context(SiteTracker())


def _patches() -> list[tuple[Any, str, Any]]:
    patches: list[tuple[Any, str, Any]] = [
        # Distributions made before capture keep their own validation flag, and checking reads
        # values.
        (Distribution, "_validate_sample", lambda self, value: None),
        # A lazy property of a distribution the caller owns would keep a tensor of the trace.
        (lazy_property, "__get__", _compute_property),
        # Boolean masks have dynamic shapes; positions in a triangle are known.
        (transforms, "vec_to_tril_matrix", _fill_triangle),
        (transforms, "tril_matrix_to_vec", _read_triangle),
        # A plate looped over in Python reads its indices with `.item()`; without subsampling they
        # are 0..size-1.
        (IndepMessenger, "__iter__", _iterate_plate),
        # DiCE selects the entries of positive probability; a selection by mask has a dynamic shape.
        (Dice, "compute_expectation", _dice_expectation),
        (infer_util, "_fulldot", _masked_dot),
    ]
    for module in _ELBO_MODULES:
        # Pyro's losses separate value from gradient with `.item()`; detaching does the same in a
        # graph.
        if hasattr(module, "torch_item"):
            patches.append((module, "torch_item", _detached))
        # The check for NaN reads the loss; a fit checks it on what comes out of the graph.
        patches.append((module, "warn_if_nan", lambda value, *_, **__: value))
    return patches


def _cache_patches(touched: list[Transform]) -> list[tuple[Any, str, Any]]:
    """Return patches that clear the caches of transforms.

    A cached pair may stem from before the trace, and must not keep tensors of the trace after it.
    """

    def fresh(method: Any) -> Any:
        def call(self: Transform, value: torch.Tensor) -> torch.Tensor:
            if all(self is not known for known in touched):
                touched.append(self)
                _forget([self])
            return method(self, value)

        return call

    return [
        (Transform, name, fresh(getattr(Transform, name))) for name in ("__call__", "_inv_call")
    ]


def _forget(touched: list[Transform]) -> None:
    for transform in touched:
        transform._cached_x_y = None, None


def _compute_property(self: Any, instance: Any, obj_type: Any = None) -> Any:
    if instance is None:
        return self
    with torch.enable_grad():
        return self.wrapped(instance)


def _triangle(size: int, diagonal: int, device: torch.device) -> torch.Tensor:
    places = [
        row * size + column
        for row in range(size)
        for column in range(min(size, row + diagonal + 1))
    ]
    return torch.tensor(places, device=device, dtype=torch.long)


def _fill_triangle(vec: torch.Tensor, diag: int = 0) -> torch.Tensor:
    length = vec.shape[-1]
    root = math.isqrt((1 + 2 * diag) ** 2 + 8 * length + 4 * abs(diag) * (diag + 1))
    size = (root - 1 - 2 * diag) // 2
    flat = vec.new_zeros(*vec.shape[:-1], size * size)
    places = _triangle(size, diag, vec.device).expand(vec.shape)
    return flat.scatter(-1, places, vec).reshape(*vec.shape[:-1], size, size)


def _read_triangle(mat: torch.Tensor, diag: int = 0) -> torch.Tensor:
    size = mat.shape[-1]
    return mat.flatten(-2)[..., _triangle(size, diag, mat.device)]


def _iterate_plate(self: Any) -> Iterator[Any]:
    if getattr(self, "subsample_size", self.size) == self.size:
        self._indices = range(self.size)
    return _ITERATE_PLATE(self)


class _AssumePositive(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if func is torch.Tensor.all else func(*args, **(kwargs or {}))


def _dice_expectation(self: Any, costs: Any) -> Any:
    with _AssumePositive():  # `if not mask.all()` guards the selection; `_masked_dot` masks instead
        return _EXPECTATION(self, costs)


def _masked_dot(prob: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
    return (prob * torch.where(prob > 0, cost, cost.new_zeros(()))).sum()


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


@contextmanager
def _unchanged_store() -> Iterator[None]:
    store = pyro.get_param_store()
    contents: Any = (store._params, store._constraints, store._param_to_name)
    before = [dict(content) for content in contents]
    yield
    changed = [name for name, value in store._params.items() if before[0].get(name) is not value]
    if changed:
        for content, old in zip(contents, before, strict=True):
            content.clear()
            content.update(old)
        born = [name for name in changed if name not in before[0]]
        raise (
            _born(born)
            if born
            else CaptureError(
                "the program writes to the parameter store during a step "
                f"({', '.join(map(repr, changed))}); such a write would happen once, at capture. "
                "Keep running averages in a buffer of a module instead, updated in place."
            )
        )
