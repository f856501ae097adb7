"""Validation of settings, covariances and parameter precision."""

import warnings
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ROUNDING",
    "check_device",
    "check_least",
    "check_positive",
    "check_shares",
    "check_sizes",
    "is_singular",
    "warn_of_rounding",
]

ROUNDING = 10 * torch.finfo(torch.float64).eps  # what sums of doubles may be off by, relatively
LOST = 1e-3  # nats a datum that rounded parameters may cost without a word


def check_least(settings: Any, **least: int) -> None:
    """Refuse settings below their least value, given by name."""
    for name, value in least.items():
        if getattr(settings, name) < value:
            raise ValueError(f"{name} is {getattr(settings, name)}; expected at least {value}")


def check_sizes(least: int = 1, /, **sizes: int | None) -> None:
    """Refuse sizes, given by name, below one or another least."""
    for name, value in sizes.items():
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}")


def check_positive(**numbers: float | None) -> None:
    """Refuse numbers, given by name, that are not positive."""
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}; expected a positive number")


def check_shares(**shares: float | None) -> None:
    """Refuse numbers, given by name, outside [0, 1)."""
    for name, value in shares.items():
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; expected at least 0 and less than 1")


def check_device(device: torch.device | str | None) -> None:
    """Refuse a device that is unknown or not here."""
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device is {str(device)!r}, which is not to be had here: {reason}. Leave it out, or "
            "name one of this machine, e.g. 'cpu' or 'cuda:0'"
        ) from error


def is_singular(matrix: Tensor) -> Tensor:
    """Check which symmetric matrices are not positive definite.

    Matrices are `[..., D, D]`, the result is `[...]`, up to rounding in float64.

    The rows and columns are scaled to a unit diagonal first, so that units do not count; whether a
    float32 Cholesky factorisation fails would depend on the processor.

    Example:
        >>> is_singular(torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[1e-9, 0.0], [0.0, 1e9]]]))
        tensor([ True, False])
    """
    matrix = matrix.double()
    scale = matrix.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    unit = matrix / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    least = torch.linalg.eigvalsh(unit.nan_to_num(0.0, 0.0, 0.0))[..., 0]
    return ~(least > ROUNDING * matrix.shape[-1])


def warn_of_rounding(lost: float, dtype: torch.dtype) -> None:
    """Warn where rounded parameters lose likelihood.

    They were found in float64 and are kept in another dtype.
    """
    if not lost <= LOST:
        warnings.warn(
            f"kept in {dtype}, the fitted parameters lose {lost:.3g} nats a datum: they are large "
            "beside the spread of the data. Centre the data, or call program.double() before",
            stacklevel=3,
        )
