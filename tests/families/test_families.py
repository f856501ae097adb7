"""Every family through the same tests: evidence, draws, training, saving, precision, devices."""

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from cases import CASES, Case, all_vectors
from torch import Tensor

from ppl_dgm import Program, log_weights
from ppl_dgm.compile import compile_function
from ppl_dgm.objectives import ELBO
from ppl_dgm.sampling.weight_summary import WeightSummary

NUM_PARTICLES = 4000


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def discrete(data: tuple) -> bool:
    return bool((data[0] == data[0].round()).all())


def doubled(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The same in double precision, labels and masks as they are."""
    return tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors)


def repeated(given: dict[str, Tensor], num_data: int) -> dict[str, Tensor]:
    """Arguments of one datum for so many."""
    return {name: value.expand(num_data, *value.shape[1:]) for name, value in given.items()}


def estimate(program: Program, data: tuple) -> WeightSummary:
    """Weights of each datum, summed up; proposed from the prior, which bounds them."""
    particles = NUM_PARTICLES if program.bind(*data).structure.latents else 1
    summary = WeightSummary(particles)
    summary.add(log_weights(program, *data, num_particles=particles, proposal="prior", seed=1))
    return summary


def loss(program: Program, data: tuple) -> Tensor:
    """Negative ELBO per datum."""
    return ELBO(num_particles=20).differentiable_loss(program.model, program.guide, *data) / len(
        data[0]
    )


def train(program: Program, data: tuple) -> list[float]:
    """A few steps of gradient ascent of the ELBO; returns the losses."""
    program.initialise(*data)
    optimiser = torch.optim.Adam(program.parameters(), 0.02)
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
    program, data = case.make().double(), doubled(case.data())
    found = estimate(program, data)
    with torch.no_grad():
        truth = case.truth(program, *data)
    assert found.log_mean_exp.shape == truth.shape == data[0].shape[:1]
    std_error = found.std_error if found.count > 1 else 0.0
    assert bool(
        ((found.log_mean_exp - truth).abs() < 4.5 * std_error + 1e-6 * (1 + truth.abs())).all()
    )


def test_draws_follow_the_density(case: Case) -> None:
    program, data = case.make(), case.data()
    if not discrete(data):
        pytest.skip("frequencies are for discrete data")
    num_levels = int(data[0].max()) + 1
    vectors = all_vectors(num_levels, data[0].shape[-1])
    with torch.no_grad():
        probs = case.truth(program, vectors, **repeated(case.given, len(vectors))).exp().double()
    assert probs.sum() == pytest.approx(1.0, abs=1e-4)
    draws = program.sample(20_000, **case.given)
    assert draws.shape == (20_000, data[0].shape[-1])
    weights = num_levels ** torch.arange(draws.shape[-1] - 1, -1, -1)
    counts = torch.bincount((draws.long() * weights).sum(-1), minlength=len(probs)).double()
    std_error = (20_000 * probs * (1 - probs)).sqrt()
    assert bool(((counts - 20_000 * probs).abs() < 4.5 * std_error + 1).all())


def test_draws_have_the_shape_and_support_of_data(case: Case) -> None:
    program, data = case.make(), case.data()
    draws = program.sample(5, **case.given)
    assert draws.shape == (5, *data[0].shape[1:])
    assert draws.dtype == data[0].dtype
    assert bool(
        torch.isfinite(
            log_weights(program, draws, **repeated(case.given, 5), num_particles=2)
        ).all()
    )


def test_training_lowers_the_loss(case: Case) -> None:
    program, data = case.make(), case.data()
    history = train(program, data)
    assert sum(history[-5:]) < sum(history[:5]) - 0.1
    assert all(parameter.grad is not None for parameter in program.parameters())


def test_training_steps_can_be_captured(case: Case) -> None:
    """The graph of loss and gradients, with no Pyro in it, equals the program on fresh data."""
    program, data = case.make(), case.data()
    program.initialise(*data)
    parameters = list(program.parameters())

    def step(*args: Tensor) -> tuple[Tensor, ...]:
        value = loss(program, args)
        return value, *torch.autograd.grad(value, parameters)

    captured = compile_function(step, data, backend="eager")
    other = (data[0].flip(0), *data[1:])
    state = copy.deepcopy(program.state_dict())
    torch.manual_seed(5)
    expected = step(*other)
    program.load_state_dict(state)  # moving averages go back to where they were
    torch.manual_seed(5)
    for ours, theirs in zip(captured(*other), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_saved_parameters_load_into_a_new_program(case: Case, tmp_path: Any) -> None:
    program, data = case.make().eval(), case.data()
    program.save(tmp_path / "program.pt")
    other = case.make().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = log_weights(other, *data, num_particles=2, seed=0)
    other.load(tmp_path / "program.pt")
    expected = log_weights(program, *data, num_particles=2, seed=0)
    assert torch.equal(log_weights(other, *data, num_particles=2, seed=0), expected)
    assert not torch.allclose(before, expected)


def test_a_copy_is_independent(case: Case) -> None:
    program, data = case.make().eval(), case.data()
    twin = copy.deepcopy(program)
    expected = log_weights(program, *data, num_particles=2, seed=0)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(log_weights(twin, *data, num_particles=2, seed=0), expected)


def test_double_precision_changes_nothing_but_the_digits(case: Case) -> None:
    program, data = case.make().eval(), case.data()
    bound = program.bind(*data)
    values = bound.draw(3).values
    single = bound.log_joint(values).total
    program.double()
    double = (
        program.bind(*doubled(data))
        .log_joint(dict(zip(values, doubled(values.values()), strict=True)))
        .total
    )
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert double.shape == (3 if program.structure.latents else 1, len(data[0]))
    assert torch.allclose(single.double(), double, rtol=1e-4, atol=1e-4)
    given = dict(zip(case.given, doubled(case.given.values()), strict=True))
    assert program.sample(2, **given).dtype == torch.float64


@pytest.mark.cuda
def test_programs_move_to_a_device(case: Case) -> None:
    program, data = case.make(), case.data()
    program.to("cuda")
    moved = tuple(leaf.cuda() for leaf in data)
    found = estimate(program, moved)
    with torch.no_grad():
        truth = case.truth(program, *moved).double()
    given = {name: value.cuda() for name, value in case.given.items()}
    assert found.log_mean_exp.device.type == program.sample(2, **given).device.type == "cuda"
    std_error = found.std_error if found.count > 1 else 0.0
    assert bool(
        ((found.log_mean_exp - truth).abs() < 4.5 * std_error + 1e-3 * (1 + truth.abs())).all()
    )
