"""Programs after Pyro's examples: accepted, fitted as by SVI, compiled, right, exported."""

import pytest

from acceptance import checks


def test_there_are_enough_of_them() -> None:
    gallery = [name for name in checks.NAMES if name.startswith("NumPyro")]
    assert len(gallery) >= 15
    assert len(checks.NAMES) - len(gallery) >= 80
    assert len(checks.REFUSED) <= 3


@pytest.mark.parametrize("name", checks.NAMES)
def test_a_fit_takes_the_steps_of_svi(name: str) -> None:
    checks.column("eager", name)


@pytest.mark.slow
@pytest.mark.parametrize("column", ["captured", "compiled", "right", "exported"])
@pytest.mark.parametrize("name", checks.NAMES)
def test_other_columns(name: str, column: str) -> None:
    checks.column(column, name)
