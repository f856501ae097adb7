"""CUDA graphs.

The replayed step is the eager one, with fresh noise, on the caller's own tensors.
"""

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_dgm.compile import TrainStep, compile_density, compile_function, compile_loop
from ppl_dgm.objectives import ELBO
from ppl_dgm.program import Program

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_inputs_outputs_and_lifted_tensors() -> None:
    weight = torch.tensor([1.0, 2.0], device="cuda")
    compiled = compile_function(lambda x: (weight * x).sum(), (torch.ones(2, device="cuda"),))
    first = compiled(torch.tensor([1.0, 1.0], device="cuda"))
    weight.mul_(2.0)
    second = compiled(torch.tensor([1.0, 0.0], device="cuda"))
    assert (first.item(), second.item()) == (3.0, 2.0)


def test_noise_is_fresh_at_every_replay() -> None:
    compiled = compile_function(
        lambda x: x + torch.randn(1000, device="cuda"), (torch.zeros(1000, device="cuda"),)
    )
    draws = torch.stack([compiled(torch.zeros(1000, device="cuda")) for _ in range(4)])
    assert draws.unique(dim=0).shape[0] == 4
    assert draws.mean().abs() < 4 / 4000**0.5


def test_recording_moves_nothing() -> None:
    count = torch.zeros((), device="cuda")

    def tick(x: Tensor) -> Tensor:
        count.add_(1.0)
        return x + count

    compiled = compile_function(tick, (torch.zeros((), device="cuda"),))
    assert count == 0
    assert [compiled(torch.zeros((), device="cuda")).item() for _ in range(2)] == [1.0, 2.0]


def test_training_without_noise_is_torchs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).cuda()
    twin = copy.deepcopy(net)
    x, y = torch.randn(20, 5, device="cuda"), torch.randn(20, 1, device="cuda")
    step = TrainStep(
        lambda x, y: ((net(x) - y) ** 2).mean(),
        torch.optim.Adam(net.parameters(), lr=0.01),
        guard=True,
    )
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01)
    for _ in range(10):
        loss = step(x, y)
        optimizer.zero_grad()
        expected = ((twin(x) - y) ** 2).mean()
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_a_program_finds_its_posterior() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        log_scale = pyro.param("log_scale", lambda: x.new_zeros(()))
        pyro.sample(
            "loc", dist.Normal(pyro.param("loc_loc", lambda: x.new_zeros(())), log_scale.exp())
        )

    x = torch.full((9,), 2.0, device="cuda")
    program, objective = Program(model, guide).initialise(x), ELBO(num_particles=20)
    optimizer = torch.optim.Adam(program.parameters(), lr=0.02)
    step = TrainStep(
        lambda x: objective.differentiable_loss(program.model, program.guide, x), optimizer
    )
    for _ in range(1500):
        step(x)
    named = dict(program.named_parameters())
    assert named["loc_loc"].item() == pytest.approx(1.8, abs=0.05)  # 9 * 2 / (9 + 1)
    assert named["log_scale"].exp().item() == pytest.approx(10**-0.5, rel=0.1)


def test_densities_and_loops() -> None:
    points = torch.randn(64, 3, device="cuda")
    value, gradient = compile_density(
        lambda z: -0.5 * (z**2).sum(-1), torch.zeros(64, 3, device="cuda")
    )(points)
    torch.testing.assert_close((value, gradient), (-0.5 * (points**2).sum(-1), -points))

    def add(state: Tensor, x: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        return state + x, state.clone()

    loop = compile_loop(add, torch.zeros((), device="cuda"), torch.ones(4, device="cuda"))
    assert loop(torch.zeros((), device="cuda"), torch.ones(4, device="cuda"))[0].item() == 4.0
