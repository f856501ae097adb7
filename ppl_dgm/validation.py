"""Validation of the settings of estimators."""

from collections.abc import Collection
from typing import Any


def check_least(settings: Any, **least: int) -> None:
    """Refuse settings below their least value, given by name."""
    for name, value in least.items():
        if getattr(settings, name) < value:
            raise ValueError(f"{name} is {getattr(settings, name)}; expected at least {value}")


def check_choice(settings: Any, name: str, choices: Collection[str]) -> None:
    """Refuse a setting that is not one of the choices."""
    if getattr(settings, name) not in choices:
        raise ValueError(f"{name} is {getattr(settings, name)!r}; expected one of {tuple(choices)}")


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse a count that is too small."""
    if value < least:
        raise ValueError(f"{name} is {value}; expected at least {least}")
