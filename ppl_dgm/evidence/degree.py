"""Degree of a computed quantity as a polynomial in tensors.

It is read off the operations that compute the quantity.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["degree_in"]

MORE = math.inf  # not a polynomial, or not known to be one

# What moves, selects, copies or adds up entries: the degree of the result is the highest of the
# arguments'.
_ADDITIVE = (
    "add sub rsub neg positive sum mean cumsum trace view _unsafe_view _reshape_alias reshape "
    "expand permute transpose t numpy_T movedim unsqueeze squeeze select slice narrow split "
    "split_with_sizes unbind chunk cat stack clone _to_copy detach alias lift_fresh copy copy_ "
    "fill fill_ flip roll repeat tile diagonal diag_embed tril triu constant_pad_nd unfold "
    "as_strided view_as_real view_as_complex select_scatter slice_scatter diagonal_scatter "
    "addcmul addmm addmv addbmm baddbmm addr"
)
# Products: the degrees of these arguments add up.
FACTORS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ("mul", "mm", "bmm", "mv", "dot", "vdot", "ger", "outer", "convolution"), (0, 1)
    ),
    **dict.fromkeys(("addmm", "addmv", "addbmm", "baddbmm", "addr", "addcmul"), (1, 2)),
}
# Linear in these arguments alone, whatever the others are.
LINEAR_IN: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ("div", "gather", "index", "index_select", "take", "embedding", "cholesky_solve"), (0,)
    ),
    **dict.fromkeys(
        ("triangular_solve", "_fft_r2c", "_fft_c2c", "_fft_c2r", "upsample_nearest2d"), (0,)
    ),
    "lerp": (0, 1),
    **dict.fromkeys(("linalg_solve_triangular", "linalg_solve", "_linalg_solve_ex"), (1,)),
    **dict.fromkeys(("where", "linalg_lu_solve"), (1, 2)),
    **dict.fromkeys(("scatter", "scatter_add", "index_add", "index_copy"), (0, 3)),
    **dict.fromkeys(("index_put", "masked_fill", "masked_scatter"), (0, 2)),
}
_SHAPE_ONLY = (
    "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty "
    "new_full new_empty_strided is_same_size sym_size sym_stride sym_numel size stride zero_"
)
ADDITIVE, SHAPE_ONLY = frozenset(_ADDITIVE.split()), frozenset(_SHAPE_ONLY.split())


def degree_in(variables: list[Tensor], compute: Callable[[], Tensor]) -> float:
    """Bound the polynomial degree of a computation from above.

    It is the degree of `compute()` in the entries of the tensors, infinite if that is no
    polynomial.

    Each operation is judged by what it is, not by values: `z.clamp(min=0)` is no polynomial
    wherever z is. What Python reads of a value may decide anything, so that it makes the degree
    infinite too.

    Example:
        >>> import torch
        >>> z = torch.ones(3)
        >>> degree_in([z], lambda: (2 * z - 1).sum() ** 2), degree_in([z], lambda: z.relu())
        (2, inf)
    """
    tracker = Degrees(variables)
    with tracker:
        result = compute()
    return MORE if tracker.read_by_python else tracker.of(result)


class Degrees(TorchDispatchMode):
    """Tracker of polynomial degrees through torch operations.

    Tensors that share memory have one degree.
    """

    def __init__(self, variables: list[Tensor]) -> None:
        super().__init__()
        self.read_by_python = False
        self._degrees: dict[int, float] = {storage(variable): 1 for variable in variables}
        self._alive: list[Any] = [*variables]  # the addresses of what is gone are given anew

    def of(self, value: Any) -> float:
        """Return the degree of a tensor or list.

        Of a list it is the highest degree of its tensors, and it is 0 for anything else.
        """
        return max((self._degrees.get(storage(t), 0) for t in tensors(value)), default=0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        degree = self._degree_after(func, args, kwargs) if self.of((args, kwargs)) else 0
        result = func(*args, **kwargs)
        if not degree:
            return result
        found = list(tensors(result))
        self.read_by_python |= not found
        for tensor in found:
            exact = tensor.is_floating_point() or tensor.is_complex()
            known = self._degrees.get(storage(tensor), 0)
            self._degrees[storage(tensor)] = max(known, degree if exact else MORE)
        self._alive.append(found)
        return result

    def _degree_after(self, func: Any, args: Any, kwargs: Any) -> float:
        name = func._schema.name.removeprefix("aten::")
        plain = name if name in ADDITIVE or name in SHAPE_ONLY else name.removesuffix("_")
        if plain in SHAPE_ONLY:
            return 0
        if plain == "pow":
            return self._power(args)
        if plain in FACTORS:
            product = sum(self.of(args[i]) for i in FACTORS[plain])
            return max(product, self.of(args) if plain in ADDITIVE else 0)
        if plain in LINEAR_IN:
            inside = [arg for i, arg in enumerate(args) if i in LINEAR_IN[plain]]
            outside = [arg for i, arg in enumerate(args) if i not in LINEAR_IN[plain]]
            return (
                MORE if self.of((outside, kwargs)) or "rounding_mode" in kwargs else self.of(inside)
            )
        return self.of((args, kwargs)) if plain in ADDITIVE else MORE

    def _power(self, args: Any) -> float:
        base, exponent = args[:2]
        whole = isinstance(exponent, (int, float)) and exponent >= 0 and exponent == int(exponent)
        return self.of(base) * exponent if whole else MORE


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def storage(tensor: Tensor) -> int:
    """What identifies the memory of a tensor."""
    return tensor.untyped_storage()._cdata
