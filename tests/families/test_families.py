"""Every family through the same tests: evidence, draws, training, saving, precision, devices."""

import copy
from typing import Any

import pytest
import torch
from cases import CASES, Case, all_vectors
from torch import Tensor

from ppl_dgm import Program, log_weights
from ppl_dgm.objectives import ELBO
from ppl_dgm.weights import WeightSummary

NUM_PARTICLES = 4000


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def discrete(data: tuple) -> bool:
    return bool((data[0] == data[0].round()).all())


def estimate(program: Program, data: tuple) -> WeightSummary:
    """Weights of each datum, summed up; proposed from the prior, which bounds them."""
    particles = NUM_PARTICLES if program.bind(*data).structure.latents else 1
    summary = WeightSummary(particles)
    summary.add(log_weights(program, *data, num_particles=particles, proposal="prior", seed=1))
    return summary


def loss(program: Program, data: tuple) -> Tensor:
    """Negative ELBO per datum."""
    return ELBO(num_particles=20).differentiable_loss(program.model, program.guide, *data) / len(data[0])


def train(program: Program, data: tuple) -> list[float]:
    """A few steps of gradient ascent of the ELBO; returns the losses."""
    program.initialise(*data)
    optimiser = torch.optim.Adam(program.parameters(), 0.03)
    torch.manual_seed(0)
    history = []
    for _ in range(40):
        optimiser.zero_grad()
        value = loss(program, data)
        value.backward()
        optimiser.step()
        history.append(value.item())
    return history


def test_evidence_agrees_with_the_mathematics(case: Case) -> None:
    program, data = case.make(), case.data()
    found = estimate(program, data)
    with torch.no_grad():
        truth = case.truth(program, *data).double()
    assert found.log_mean_exp.shape == truth.shape == data[0].shape[:1]
    std_error = found.std_error if found.count > 1 else 0.0
    assert bool(((found.log_mean_exp - truth).abs() < 4.5 * std_error + 2e-5 * (1 + truth.abs())).all())


def test_draws_follow_the_density(case: Case) -> None:
    program, data = case.make(), case.data()
    if not discrete(data):
        pytest.skip("frequencies are for discrete data")
    num_levels = int(data[0].max()) + 1
    vectors = all_vectors(num_levels, data[0].shape[-1])
    with torch.no_grad():
        probs = case.truth(program, vectors).exp().double()
    assert probs.sum() == pytest.approx(1.0, abs=1e-4)
    draws = program.sample(20_000)
    assert draws.shape == (20_000, data[0].shape[-1])
    weights = num_levels ** torch.arange(draws.shape[-1] - 1, -1, -1)
    counts = torch.bincount((draws.long() * weights).sum(-1), minlength=len(probs)).double()
    std_error = (20_000 * probs * (1 - probs)).sqrt()
    assert bool(((counts - 20_000 * probs).abs() < 4.5 * std_error + 1).all())


def test_draws_have_the_shape_and_support_of_data(case: Case) -> None:
    program, data = case.make(), case.data()
    draws = program.sample(5)
    assert draws.shape == (5, *data[0].shape[1:])
    assert draws.dtype == data[0].dtype
    assert bool(torch.isfinite(log_weights(program, draws, *data[1:], num_particles=2)).all())


def test_training_lowers_the_loss(case: Case) -> None:
    program, data = case.make(), case.data()
    history = train(program, data)
    assert sum(history[-5:]) < sum(history[:5]) - 0.1
    assert all(parameter.grad is not None for parameter in program.parameters())


def test_saved_parameters_load_into_a_new_program(case: Case, tmp_path: Any) -> None:
    program, data = case.make(), case.data()
    program.save(tmp_path / "program.pt")
    other = case.make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = log_weights(other, *data, num_particles=2, seed=0)
    other.load(tmp_path / "program.pt")
    expected = log_weights(program, *data, num_particles=2, seed=0)
    assert torch.equal(log_weights(other, *data, num_particles=2, seed=0), expected)
    assert not torch.allclose(before, expected)


def test_a_copy_is_independent(case: Case) -> None:
    program, data = case.make(), case.data()
    twin = copy.deepcopy(program)
    expected = log_weights(program, *data, num_particles=2, seed=0)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(log_weights(twin, *data, num_particles=2, seed=0), expected)


def test_double_precision_changes_nothing_but_the_digits(case: Case) -> None:
    program, data = case.make(), case.data()
    with torch.no_grad():
        single = case.truth(program, *data)
    program.double()
    doubled = tuple(leaf.double() for leaf in data)
    with torch.no_grad():
        truth = case.truth(program, *doubled)
    weights = log_weights(program, *doubled, num_particles=3, seed=0)
    assert weights.dtype == torch.float64
    assert weights.shape == (3 if program.structure.latents else 1 * 3, len(data[0]))
    assert torch.allclose(single.double(), truth, atol=1e-4)
    assert program.sample(2).dtype == torch.float64


@pytest.mark.cuda
def test_programs_move_to_a_device(case: Case) -> None:
    program, data = case.make(), case.data()
    program.to("cuda")
    moved = tuple(leaf.cuda() for leaf in data)
    found = estimate(program, moved)
    with torch.no_grad():
        truth = case.truth(program, *moved).double()
    assert found.log_mean_exp.device.type == program.sample(2).device.type == "cuda"
    std_error = found.std_error if found.count > 1 else 0.0
    assert bool(((found.log_mean_exp - truth).abs() < 4.5 * std_error + 1e-3 * (1 + truth.abs())).all())
