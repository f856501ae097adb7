"""The switch between running as written and running compiled.

Its modes, and modules that are set again and again.
"""

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppl_dgm.compile import CaptureError, Switch


class Power(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.power, self.runs = 0.0, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.runs[0] += 1
        return x**self.power if self.training else -x


@pytest.mark.parametrize("mode", [0, 1, 1.0, "yes", None, ["auto"]])
def test_modes_are_auto_true_and_false(mode: Any) -> None:
    with pytest.raises(ValueError, match=r"compile is .* expected 'auto', True or False"):
        Switch(mode)


def test_modes_of_modules_that_come_back_are_not_captured_again() -> None:
    net, switch, two = Power(), Switch(True, backend="eager"), torch.tensor(2.0)
    assert [switch(net.train(training), two) for training in (True, False)] == [1.0, -2.0]
    runs = net.runs[0]
    assert [switch(net.train(training), two) for training in (True, False, True, False)] == [
        1.0,
        -2.0,
        1.0,
        -2.0,
    ]
    assert net.runs[0] == runs


def test_a_setting_that_keeps_changing_is_refused() -> None:
    net, switch, two = Power(), Switch(True, backend="eager"), torch.tensor(2.0)
    for net.power in map(float, range(4)):
        assert switch(net, two) == 2.0**net.power
    net.power = 4.0
    with pytest.raises(
        CaptureError, match=r"Power\.power was 3\.0 and is 4\.0.* buffer .* compile=False"
    ):
        switch(net, two)
    net.power = 2.0
    assert switch(net, two) == 4.0
    assert switch(net, torch.tensor([2.0])) == 4.0  # another kind of call


def test_auto_runs_as_written_what_is_set_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ppl_dgm.compile.inductor.cost.saving", lambda seconds: math.inf)
    net, switch, two = Power(), Switch("auto", backend="eager"), torch.tensor(2.0)
    with caplog.at_level(logging.WARNING, "ppl_dgm.compile"):
        for net.power in map(float, range(20)):
            assert switch(net, two) == 2.0**net.power
    assert len(caplog.records) == 1
    assert "Power.power was" in caplog.text
