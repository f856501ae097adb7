"""Tests on a second device, `on_*.py`: run by `test_second_device.py` in a process of their own.

pytest tests/devices/on_families.py                          # on the mirror, made of host memory
PPL_DGM_DEVICE=cuda pytest tests/devices/on_families.py      # on an accelerator at hand
"""

from collections.abc import Iterator

import pytest
import torch

collect_ignore_glob = ["on_*.py", "mirror*.py", "second_device.py"]  # by name only


@pytest.fixture(params=[pytest.param("moved", marks=pytest.mark.slow), "default device"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The second device: what is on it is moved there, or made there as torch's default."""
    from second_device import DEVICE  # noqa: PLC0415 - importing it registers the device for good

    if request.param == "default device":
        torch.set_default_device(DEVICE)
    yield DEVICE
    torch.set_default_device(None)
