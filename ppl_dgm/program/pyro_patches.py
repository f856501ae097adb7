"""Changes to torch and Pyro for vectorised programs.

Apart from two repairs of Pyro, only the thread that runs a program sees them.
"""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import AutoRegressiveNN
from pyro.poutine import (
    lift_messenger,
    messenger,
    scale_messenger,
    subsample_messenger,
    substitute_messenger,
    trace_struct,
)
from torch import Tensor
from torch.distributions import Beta, Distribution, LKJCholesky

from ppl_dgm.context_patches import ContextPatches, Patch
from ppl_dgm.program.neutra import apply_with_density

__all__ = ["forgiving_factors", "right_draws", "unvalidated"]

_INITIALISE = Distribution.__init__
_HANDLERS = (
    lift_messenger,
    scale_messenger,
    subsample_messenger,
    substitute_messenger,
    trace_struct,
)


def _entered(context: Any, fn: Callable, /, *args: Any, **kwargs: Any) -> Any:
    with context:
        return fn(*args, **kwargs)


# Pyro's own takes no argument of a program that is called `context` or `fn`; the same with these
# names free.
messenger._context_wrap = _entered  # type: ignore[assignment]


def _forward_in_dtype(self: AutoRegressiveNN, x: Tensor) -> Any:
    dtype = torch.promote_types(x.dtype, next(self.parameters()).dtype)
    return _FORWARD(self, x.to(dtype))


# The inverse of Pyro's affine autoregressive transform begins at zeros of the default dtype, which
# its net refuses in double.
_FORWARD = AutoRegressiveNN.forward
AutoRegressiveNN.forward = _forward_in_dtype  # type: ignore[method-assign]


def _initialise_unvalidated(
    self: Distribution, *shapes: torch.Size, validate_args: bool | None = None, **named: torch.Size
) -> None:
    _INITIALISE(self, *shapes[:2], validate_args=False, **named)


def _accept_value(self: Distribution, value: Any) -> None:
    pass


def forgiving_cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor:
    """Compute Cholesky factors, with NaN for failures.

    A matrix of the batch fails if it is not positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def _sample_onion(self: LKJCholesky, sample_shape: Any = ()) -> Tensor:
    """Draw Cholesky factors by the onion method.

    The rows are drawn from balls, one by one (Lewandowski, Kurowicka and Joe 2009, sec. 3.2).

    The squared length of row i is Beta(i / 2, eta + (dim - 1 - i) / 2); torch has i - 1/2 in place
    of i / 2.
    """
    row = torch.arange(1, self.dim).to(self.concentration)
    spread = self.concentration.unsqueeze(-1) + 0.5 * (self.dim - 1 - row)
    length = Beta((0.5 * row).expand_as(spread), spread).sample(torch.Size(sample_shape))
    normal = torch.randn((*length.shape, self.dim), dtype=row.dtype, device=row.device).tril()
    within = length.sqrt().unsqueeze(-1) * normal / normal.norm(dim=-1, keepdim=True)
    rest = (1 - length).clamp_min(torch.finfo(row.dtype).tiny).sqrt()
    factor = torch.cat([torch.zeros_like(within[..., :1, :]), within], -2)
    return factor + torch.cat([torch.ones_like(rest[..., :1]), rest], -1).diag_embed()


# Argument checks read tensors on the host, which neither `torch.func.vmap` nor a captured graph
# allows. Distributions made while checks were on keep their flag, so that the check of values is
# left out too.
unvalidated = ContextPatches(
    Patch(Distribution, "__init__", _initialise_unvalidated),
    Patch(Distribution, "_validate_sample", _accept_value),
    *(Patch(handlers, "is_validation_enabled", lambda: False) for handlers in _HANDLERS),
)

# Draws that follow their density, and latents that have one.
right_draws = ContextPatches(
    Patch(LKJCholesky, "sample", _sample_onion),
    Patch(NeuTraReparam, "apply", apply_with_density),
)

# One particle's singular covariance makes its own density NaN, and does not stop all the others
# with an error.
forgiving_factors = ContextPatches(Patch(torch.linalg, "cholesky", forgiving_cholesky))
