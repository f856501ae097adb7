"""The switch between running as written and running compiled: its modes."""

from typing import Any

import pytest

from ppl_dgm.compile import Switch


@pytest.mark.parametrize("mode", [0, 1, 1.0, "yes", None, ["auto"]])
def test_modes_are_auto_true_and_false(mode: Any) -> None:
    with pytest.raises(ValueError, match=r"compile is .* expected 'auto', True or False"):
        Switch(mode)
