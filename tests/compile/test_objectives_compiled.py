"""Every family under every objective of ours.

The captured loss and gradient are those of the eager program.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES

from ppl_dgm.compile import capture
from ppl_dgm.objectives import ELBO, IWELBO, Objective, Renyi, SemiAmortised, linear_warmup

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "elbo": ELBO,
    "sticking": lambda: ELBO(2, gradient="stl"),
    "annealed": lambda: ELBO(2, kl_weight=linear_warmup(10)),
    "iwelbo": lambda: IWELBO(3),
    "dreg": lambda: IWELBO(3, gradient="dreg"),
    "renyi": lambda: Renyi(0.5, 3),
    "semi-amortised": lambda: SemiAmortised(2, 0.1),
}
SEED = 4


def check(family: str, objective: Objective) -> None:
    case = CASES[family]
    program, data = case.make(), case.data()
    program.initialise(*data)
    parameters = list(program.parameters())

    def run(*args: Any) -> list[torch.Tensor]:
        loss = objective.differentiable_loss(program.model, program.guide, *args)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [loss.detach(), *(gradient for gradient in found if gradient is not None)]

    state = copy.deepcopy(program.state_dict())  # a run may move buffers: batch norm, codebooks
    torch.manual_seed(SEED)
    try:
        expected = run(*data)
    except ValueError as refusal:
        pytest.skip(str(refusal))
    moved = copy.deepcopy(program.state_dict())
    program.load_state_dict(state)
    captured = capture(run, data)
    torch.manual_seed(SEED)
    torch.testing.assert_close(captured(*data), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(program.state_dict(), moved)


@pytest.mark.parametrize("family", CASES)
def test_families(family: str) -> None:
    check(family, ELBO())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives(objective: str) -> None:
    check("bernoulli vae", OBJECTIVES[objective]())


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", CASES)
def test_families_and_objectives(family: str, objective: str) -> None:
    check(family, OBJECTIVES[objective]())


def test_an_annealed_weight_reaches_the_graph() -> None:
    case = CASES["bernoulli vae"]
    program, data, objective = case.make(), case.data(), ELBO(kl_weight=linear_warmup(10))
    program.initialise(*data)
    captured = capture(
        lambda x: objective.differentiable_loss(program.model, program.guide, x), data
    )
    values = []
    for step in (0, 5, 10):
        objective.set_step(step)
        torch.manual_seed(SEED)
        values.append(captured(*data).item())
    assert values[1] - values[0] == pytest.approx(values[2] - values[1], rel=1e-3)
    assert values[0] != values[2]
