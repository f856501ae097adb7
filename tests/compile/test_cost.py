"""Compilation begins where it is reckoned to cost less than it saves."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ppl_dgm.compile import Switch
from ppl_dgm.compile.inductor import backend, cost


def reckoned(operations: int, allowed: float, folder: Path, key: object = "a graph") -> bool:
    try:
        with cost.compiling_within(allowed):
            cost.check_cost(key, operations, folder)
    except cost.TooCostlyError:
        return False
    return True


def test_large_graphs_cost_more_and_kept_code_costs_little(tmp_path: Path) -> None:
    assert reckoned(10, 8.0, tmp_path)
    assert not reckoned(2000, 8.0, tmp_path)
    assert reckoned(2000, math.inf, tmp_path)
    cost.note_compiled("a graph", tmp_path)
    assert reckoned(2000, 1.6, tmp_path)
    assert not reckoned(2000, 8.0, tmp_path, key="another")


def test_outside_there_is_no_limit(tmp_path: Path) -> None:
    with pytest.raises(cost.TooCostlyError, match="compile=True"), cost.compiling_within(1.0):
        cost.check_cost("a graph", 1, tmp_path)
    cost.check_cost("a graph", 10**6, tmp_path)


def test_a_switch_tries_again_once_there_is_twice_as_much_to_save(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Calls of a second each, and a graph reckoned to compile in 16 s."""
    clock, tried = iter(range(1000)), []
    watch = SimpleNamespace(perf_counter=lambda: float(next(clock)))
    monkeypatch.setattr("ppl_dgm.compile.jit.time", watch)
    monkeypatch.setattr(backend, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(cost, "_FIRST_SECONDS", 16.0)

    def counted(*given: object) -> None:
        tried.append(given)
        check(*given)

    check = cost.check_cost
    monkeypatch.setattr(backend, "check_cost", counted)
    monkeypatch.setattr(
        "ppl_dgm.compile.inductor.machine_code.machine_code", lambda graph, flat: graph
    )
    switch, calls = Switch("auto"), 0
    while not switch._compiled:
        assert torch.equal(switch(torch.neg, torch.ones(3)), -torch.ones(3))
        calls += 1
    assert calls == 39 + 1  # half of 39 s is more than twice 9.5
    assert len(tried) == 4  # with 2, 4.5, 9.5 and 19.5 s to save
