"""Changes to torch that Pyro programs need to be vectorised."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor


@contextmanager
def unvalidated() -> Iterator[None]:
    """Run without argument checks, also for distributions made while checks were on.

    The checks read tensors on the host, which neither `torch.func.vmap` nor a captured graph allows.
    """
    distribution = torch.distributions.Distribution
    validate_sample = distribution._validate_sample
    distribution._validate_sample = lambda self, value: None  # type: ignore[method-assign,assignment]
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        distribution._validate_sample = validate_sample  # type: ignore[method-assign]


def forgiving_cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor:
    """Cholesky factor, NaN where a matrix of the batch is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


@contextmanager
def forgiving_factors() -> Iterator[None]:
    """Let one particle's singular covariance make its own density NaN, not stop all the others with an error."""
    strict = torch.linalg.cholesky
    torch.linalg.cholesky = forgiving_cholesky  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.linalg.cholesky = strict
