"""Releases of torch that lack what compiled code takes from its private parts."""

import logging
import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm
from ppl_dgm import Program, evidence
from ppl_dgm.compile import CaptureError, Switch, capture, compile_loop, torch_internals
from ppl_dgm.compile.inductor import backend, cost, machine_code
from ppl_dgm.sampling.kernels import RandomWalk

X = torch.tensor([0.3, -0.4, 1.2])


def model(x: Tensor | None = None) -> None:
    """A normal mean: log p(x) is known."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3 if x is None else len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def slope(x: Tensor | None = None) -> None:
    """A parameter to fit."""
    mean = pyro.param("mean", torch.tensor(0.0))
    with pyro.plate("data", 3 if x is None else len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def fitted(mode: Any) -> float:
    """The parameter after some steps."""
    program = Program(slope)
    ppl_dgm.fit(program, X, steps=5, compile=mode, progress=False)
    return next(program.parameters()).item()


@pytest.mark.parametrize("home", torch_internals._HOMES.values())
def test_without_a_name_programs_run_as_written(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = fitted(False)
    monkeypatch.setattr(torch_internals, "_MISSING", [home])
    monkeypatch.setattr(cost, "saving", lambda seconds: math.inf)
    with pytest.raises(CaptureError, match=home):
        capture(torch.sin, (X,))
    with pytest.raises(CaptureError, match="compile=False"):
        fitted(True)
    switch = Switch("auto")
    for _ in range(5):
        assert torch.equal(switch(torch.sin, X), X.sin())
    assert fitted("auto") == eager


def test_without_any_name_the_package_works(tmp_path: Any) -> None:
    """Stand-ins are made at import: nothing that runs as written needs the names themselves."""
    code = """
import pkgutil
resolve = pkgutil.resolve_name
def without(name):
    if name.startswith("torch."):
        raise ImportError(name)
    return resolve(name)
pkgutil.resolve_name = without
import torch, pyro, pyro.distributions as dist, ppl_dgm
from ppl_dgm.compile import torch_internals
assert len(torch_internals._MISSING) == len(torch_internals._HOMES)
from ppl_dgm.families import VAE
vae = VAE(4, 2, hidden=[3])
fit = ppl_dgm.fit(vae, torch.ones(6, 4), epochs=2, batch_size=3, progress=False)
from ppl_dgm import evidence
found = evidence.auto(vae, torch.ones(2, 4), budget=20_000)
ais = evidence.AIS(num_temperatures=10, num_chains=4)(vae, torch.ones(2, 4))
assert bool(torch.isfinite(found.log_z).all() & torch.isfinite(ais.log_z).all())
try:
    ppl_dgm.fit(vae, torch.ones(6, 4), steps=2, compile=True, progress=False)
except ppl_dgm.compile.CaptureError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "torch.overrides._pop_mode" in done.stdout


def test_an_untested_release_compiles_without_shortcuts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch_internals, "TESTED", (torch.__version__.rsplit(".", 1)[0],))
    assert machine_code.shortcut("startup_patches") is not None
    monkeypatch.setattr(torch_internals, "TESTED", ("0.1",))
    monkeypatch.setattr(machine_code, "_LEFT_OUT", set())
    with caplog.at_level(logging.WARNING, "ppl_dgm.compile"):
        for _ in range(3):
            assert machine_code.shortcut("startup_patches") is None
    assert [record.getMessage() for record in caplog.records] == [
        f"compiling without startup_patches: torch {torch.__version__} was not tested"
    ]


def test_shortcuts_that_fail_are_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def compiler(graph: Any, flat: Any, on_cpu: bool, loops: str) -> Any:
        tried.append(loops)
        if loops != machine_code.PLAIN:
            raise AttributeError("Inductor has changed")
        return graph

    monkeypatch.setattr(torch_internals, "TESTED", (torch.__version__.rsplit(".", 1)[0],))
    monkeypatch.setattr(machine_code, "_compile", compiler)
    monkeypatch.setattr(machine_code, "has_loops", lambda graph: True)
    graph: Any = SimpleNamespace()
    with caplog.at_level(logging.WARNING, "ppl_dgm.compile"):
        assert machine_code.machine_code(graph, [X]) is graph
    assert len(tried) == 2
    assert tried[-1] == machine_code.PLAIN
    assert "Inductor has changed" in caplog.text


@pytest.mark.parametrize("hidden", ["torch._inductor.custom_graph_pass", "torch._inductor"])
def test_without_inductor_programs_run_as_written(
    hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = fitted(False)
    monkeypatch.setattr(backend, "_COMPILED", {})
    monkeypatch.delitem(sys.modules, "ppl_dgm.compile.inductor.machine_code")
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(CaptureError, match="compile=False"):
        fitted(True)
    assert fitted("auto") == eager


@pytest.mark.slow
def test_numbers_are_the_same_without_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    ais = evidence.AIS(num_temperatures=20, num_chains=8, kernel=RandomWalk(), compile=True)

    def halved(state: Tensor, row: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * state + row @ weights, state.sum()

    def numbers() -> list[Tensor]:
        monkeypatch.setattr(backend, "_COMPILED", {})
        loop = compile_loop(halved, torch.zeros(3), torch.ones(4, 3), torch.ones(3, 3))
        last, history = loop(torch.ones(3), torch.ones(4, 3), torch.ones(3, 3))
        found = ais(Program(model), X, seed=0)
        return [last, history, torch.tensor(fitted(True)), found.log_z]

    with_shortcuts = numbers()
    monkeypatch.setattr(torch_internals, "TESTED", ("0.1",))
    for plain, short in zip(numbers(), with_shortcuts, strict=True):
        torch.testing.assert_close(plain, short)
