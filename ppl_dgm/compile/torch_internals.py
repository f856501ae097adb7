"""Private names of torch that capture needs, where they are.

They move from release to release. What is missing has a stand-in, so that everything runs as
written with any torch; capture refuses, and names what it misses. Inductor's private names stand
in `inductor/loop_codegen.py` and `inductor/startup_patches.py`, which compilation can do without.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch

from ppl_dgm.compile.errors import CaptureError

__all__ = [
    "TESTED",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "HigherOrderOperator",
    "check_capture",
    "detect_fake_mode",
    "dispatch_modes",
    "function_modes",
    "is_functorch_wrapped_tensor",
    "is_tested",
    "make_fx",
    "pop_mode",
    "push_mode",
    "while_loop_op",
    "without_modes",
]

TESTED = ("2.13",)  # releases with which compiled code was tested

_HOMES = {
    "DataDependentOutputException": "torch._subclasses.fake_tensor:DataDependentOutputException",
    "DynamicOutputShapeException": "torch._subclasses.fake_tensor:DynamicOutputShapeException",
    "FakeTensor": "torch._subclasses.fake_tensor:FakeTensor",
    "FakeTensorMode": "torch._subclasses.fake_tensor:FakeTensorMode",
    "HigherOrderOperator": "torch._ops:HigherOrderOperator",
    "detect_fake_mode": "torch._guards:detect_fake_mode",
    "dispatch_modes": "torch._C:_len_torch_dispatch_stack",
    "function_modes": "torch._C:_len_torch_function_stack",
    "is_functorch_wrapped_tensor": "torch._C._functorch:is_functorch_wrapped_tensor",
    "make_fx": "torch.fx.experimental.proxy_tensor:make_fx",
    "pop_mode": "torch.overrides:_pop_mode",
    "push_mode": "torch.overrides:_push_mode",
    "while_loop_op": "torch._higher_order_ops.while_loop:while_loop_op",
    "without_modes": "torch.utils._python_dispatch:_disable_current_modes",
}
_MISSING: list[str] = []


class Missing(Exception):  # noqa: N818 - it stands for classes, functions and exceptions
    """Stand-in for a private name that this torch lacks."""

    def __init__(self, *_: Any, **__: Any) -> None:
        check_capture()


def check_capture() -> None:
    """Refuse to capture if torch lacks a private name.

    Raises:
        CaptureError: naming all that are missing.
    """
    if _MISSING:
        raise CaptureError(
            f"torch {torch.__version__} has no {', '.join(_MISSING)}, by which programs are "
            f"captured; compiled code was tested with torch {', '.join(TESTED)}. Run with "
            "compile=False."
        )


def is_tested() -> bool:
    """Tell whether compiled code was tested with this torch."""
    return torch.__version__.startswith(tuple(f"{release}." for release in TESTED))


def found(home: str) -> Any:
    """Return what stands somewhere in torch, or a stand-in."""
    try:
        return resolve_name(home)
    except (ImportError, AttributeError):
        _MISSING.append(home.replace(":", "."))
        return type(home.rsplit(":", 1)[-1], (Missing,), {})


if TYPE_CHECKING:
    from torch._C import _len_torch_dispatch_stack as dispatch_modes
    from torch._C import _len_torch_function_stack as function_modes
    from torch._C._functorch import is_functorch_wrapped_tensor
    from torch._guards import detect_fake_mode
    from torch._higher_order_ops.while_loop import while_loop_op
    from torch._ops import HigherOrderOperator
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensor,
        FakeTensorMode,
    )
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.overrides import _pop_mode as pop_mode
    from torch.overrides import _push_mode as push_mode
    from torch.utils._python_dispatch import _disable_current_modes as without_modes
else:
    globals().update({name: found(home) for name, home in _HOMES.items()})
