"""Every kind of program.

What the graph computes is what Pyro computes - loss, gradient, optimisation, sampling.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pytest
import torch
from programs import PROGRAMS, Case
from pyro import poutine

from ppl_dgm.compile import Backend, TrainStep, capture, differentiable_loss
from ppl_dgm.compile.inductor.backend import compile_captured
from ppl_dgm.program import Program

SEED = 3
COMPILED = ["mixture_enumerated", "batch_norm"]


@dataclass
class Prepared:
    """A case as a program, with its loss as a function of the data."""

    case: Case
    program: Program

    def loss(self, *args: Any) -> torch.Tensor:
        args = tuple(
            arg.clone() for arg in args
        )  # Pyro's transforms cache by identity, even across gradient steps
        return differentiable_loss(self.case.loss, self.program.model, self.program.guide, *args)

    def sites(self, *args: Any) -> list[torch.Tensor]:
        guide = poutine.trace(self.program.guide).get_trace(*args)
        model = poutine.trace(poutine.replay(self.program.model, trace=guide)).get_trace(*args)
        nodes = [
            site
            for trace in (guide, model)
            for site in trace.nodes.values()
            if site["type"] == "sample"
        ]
        return [
            site["value"]
            for site in nodes
            if not site["is_observed"] and "_Subsample" not in str(site["fn"])
        ]

    def parameters(self) -> list[torch.Tensor]:
        return list(self.program.parameters())


def prepare(name: str) -> Prepared:
    torch.manual_seed(0)
    case = PROGRAMS[name]()
    program = Program(case.model, case.guide)
    prepared = Prepared(case, program)
    prepared.loss(
        *case.args
    )  # creates the parameters; Pyro's losses guess plate nestings on their first run
    program.train(case.train)
    return prepared


def seeded(fn: Callable[..., Any], *args: Any) -> Any:
    torch.manual_seed(SEED)
    return fn(*args)


def assert_equal(name: str, ours: Any, theirs: Any, tolerance: float) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            mine, other, rtol=tolerance, atol=tolerance, msg=lambda text: f"{name}: {text}"
        )


def check_loss_and_gradient(name: str, prepared: Prepared, backend: Backend) -> None:
    def run(*args: Any) -> list[torch.Tensor]:
        loss = prepared.loss(*args)
        found = torch.autograd.grad(loss, prepared.parameters(), allow_unused=True)
        return [loss.detach(), *(gradient for gradient in found if gradient is not None)]

    state = copy.deepcopy(prepared.program.state_dict())
    expected = seeded(run, *prepared.case.args)
    prepared.program.load_state_dict(state)
    compiled = compile_captured(capture(run, prepared.case.args), backend=backend)
    assert_equal(name, seeded(compiled, *prepared.case.args), expected, 2e-5)


def check_training(name: str, prepared: Prepared, backend: Backend, steps: int) -> None:
    args, program = prepared.case.args, prepared.program
    state = copy.deepcopy(program.state_dict())
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-2)

    def eager() -> torch.Tensor:
        optimizer.zero_grad()
        loss = prepared.loss(*args)
        loss.backward()
        optimizer.step()
        return loss.detach()

    theirs = seeded(lambda: [eager() for _ in range(steps)])
    expected = copy.deepcopy(program.state_dict())
    program.load_state_dict(state)
    step = TrainStep(
        prepared.loss, torch.optim.Adam(prepared.parameters(), lr=1e-2), backend=backend
    )
    ours = seeded(lambda: [step(*args) for _ in range(steps)])
    assert_equal(name, ours, theirs, 1e-3)
    assert_equal(name, program.state_dict().values(), expected.values(), 1e-3)


def check_sampling(name: str, prepared: Prepared, backend: Backend) -> None:
    args = prepared.case.args
    expected = seeded(prepared.sites, *args)
    compiled = compile_captured(capture(prepared.sites, args), backend=backend)
    assert_equal(name, seeded(compiled, *args), expected, 2e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_graph_equals_pyro(name: str) -> None:
    prepared = prepare(name)
    check_training(name, prepared, "eager", steps=3)
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_equals_pyro(name: str) -> None:
    check_training(name, prepare(name), "inductor", steps=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_everything_compiled_equals_pyro(name: str) -> None:
    prepared = prepare(name)
    check_loss_and_gradient(name, prepared, "inductor")
    check_sampling(name, prepared, "inductor")
    check_training(name, prepared, "inductor", steps=20)


@pytest.mark.parametrize("name", [name for i, name in enumerate(PROGRAMS) if i % 4 == 0])
def test_gradient_and_samples_of_the_graph(name: str) -> None:
    prepared = prepare(name)
    check_loss_and_gradient(name, prepared, "eager")
    check_sampling(name, prepared, "eager")
