"""Every transform through the same tests, against autodiff, grids and its own inverse."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from transform_cases import ALL, PLANE, Case, context_of

from ppl_dgm.compile import capture, compile_function
from ppl_dgm.transforms import Continuous, FlowDistribution, LULinear
from ppl_dgm.transforms.continuous import Trace

PLACES = {"standard": (0.0, 1.0), "wide": (100.0, 30.0)}
TOLERANCES = {  # of inverses, by whether they are numerical; relative to the data's size
    torch.float32: {False: 1e-5, True: 1e-4},
    torch.float64: {False: 1e-10, True: 1e-8},
}


@pytest.fixture(params=ALL.values(), ids=ALL.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=PLANE.values(), ids=PLANE.keys())
def plane(request: pytest.FixtureRequest) -> Case:
    return request.param


def events(transform: object, place: str, num: int, dtype: torch.dtype) -> Tensor:
    """Data of a mean and sd."""
    mean, sd = PLACES[place]
    generator = torch.Generator().manual_seed(1)
    shape = (num, *transform.event_shape)  # type: ignore[attr-defined]
    return mean + sd * torch.randn(shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("place", PLACES)
def test_inverses_invert_and_determinants_cancel(
    case: Case, place: str, dtype: torch.dtype
) -> None:
    far = (place, dtype) == ("wide", torch.float32)  # there rough nets amplify rounding
    transform = case.build(dtype, moved=0.02 if far else 0.1)
    y, context = events(transform, place, 40, dtype), context_of(transform, 40, dtype)
    x, log_det_back = transform.inverse_and_log_det(y, context)
    again, log_det = transform.call_and_log_det(x, context)
    tolerance = TOLERANCES[dtype][case.numerical]
    assert again.dtype == dtype
    assert (again - y).abs().max() < tolerance * y.abs().max()
    assert (log_det + log_det_back).abs().max() < 100 * tolerance
    forth, _ = transform.call_and_log_det(y, context)
    assert (transform.inverse_and_log_det(forth, context)[0] - y).abs().max() < tolerance * max(
        y.abs().max(), forth.abs().max()
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("backwards", [False, True])
def test_determinants_are_those_of_autodiff(case: Case, backwards: bool, place: str) -> None:
    transform = case.build(torch.float64)
    x = events(transform, place, 3, torch.float64)
    context = context_of(transform, 3, torch.float64)
    for i in range(3):
        row = None if context is None else context[i]

        def image(value: Tensor, given: Tensor | None = row) -> Tensor:
            step = transform.inverse_and_log_det if backwards else transform.call_and_log_det
            return step(value, given)[0]

        size = x[i].numel()
        jacobian = torch.autograd.functional.jacobian(image, x[i]).reshape(size, size)
        step = transform.inverse_and_log_det if backwards else transform.call_and_log_det
        assert step(x[i], row)[1].item() == pytest.approx(
            torch.linalg.slogdet(jacobian)[1].item(), abs=1e-7
        )


def test_gradients_reach_every_parameter_in_both_directions(case: Case) -> None:
    for name in ("call_and_log_det", "inverse_and_log_det"):
        transform = case.build(torch.float64)
        x = events(transform, "standard", 5, torch.float64)
        image, log_det = getattr(transform, name)(x, context_of(transform, 5, torch.float64))
        parameters = list(transform.parameters())
        loss = image.square().sum() + log_det.sum()
        gradients = torch.autograd.grad(loss, parameters) if parameters else ()
        for gradient in gradients:
            assert bool(torch.isfinite(gradient).all())
            assert bool((gradient != 0).any())


def test_gradients_of_inverses_are_finite_differences(case: Case) -> None:
    transform = case.build(torch.float64)
    y = events(transform, "standard", 4, torch.float64)
    context = context_of(transform, 4, torch.float64)

    def loss() -> Tensor:
        x, log_det = transform.inverse_and_log_det(y, context)
        return x.sin().sum() + log_det.sum()

    for parameter in list(transform.parameters())[:3]:
        (gradient,) = torch.autograd.grad(loss(), parameter)
        place = gradient.abs().flatten().argmax()
        with torch.no_grad():
            flat, step = parameter.view(-1), 1e-5
            flat[place] += step
            above = loss()
            flat[place] -= 2 * step
            below = loss()
            flat[place] += step
        expected = ((above - below) / (2 * step)).item()
        assert gradient.flatten()[place].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def law(transform: object, dtype: torch.dtype = torch.float64) -> FlowDistribution:
    """Standard normal noise through the transform, at one context."""
    context = context_of(transform, 1, dtype)
    step = transform
    if context is not None:
        step = transform.condition(context[0])  # type: ignore[attr-defined]
    zeros = torch.zeros(transform.event_shape, dtype=dtype)  # type: ignore[attr-defined]
    return FlowDistribution(dist.Normal(zeros, 1.0).to_event(zeros.dim()), [step])


def test_draws_are_scored_as_the_noise_that_made_them(case: Case) -> None:
    transform = case.build(torch.float64)
    flow = law(transform)
    torch.manual_seed(0)
    x = flow.sample((50,))
    torch.manual_seed(0)
    z = flow.base_dist.sample((50,))
    step = flow.transforms[0]
    expected = flow.base_dist.log_prob(z) - step.log_abs_det_jacobian(z, x)
    assert torch.allclose(flow.log_prob(x), expected, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, case in ALL.items() if case.make().num_context])
def test_draws_for_many_contexts_are_scored_as_they_are_made(name: str) -> None:
    transform = ALL[name].build(torch.float64)
    context = context_of(transform, 6, torch.float64)
    assert context is not None
    zeros = torch.zeros(transform.event_shape, dtype=torch.float64)
    noise = dist.Normal(zeros, 1.0).to_event(zeros.dim())
    flow = FlowDistribution(noise.expand([6]), [transform.condition(context)])
    x, log_p = flow.rsample_and_log_prob((2,))
    assert log_p.shape == (2, 6)
    assert torch.allclose(flow.log_prob(x), log_p, atol=1e-7)
    each = [
        FlowDistribution(noise, [transform.condition(row)]).log_prob(x[0, i])
        for i, row in enumerate(context)
    ]
    assert torch.allclose(torch.stack(each), log_p[0], atol=1e-7)


def test_densities_integrate_to_one(plane: Case) -> None:
    axis = torch.linspace(-10, 10, 101, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = law(plane.build(torch.float64)).log_prob(points).exp().sum()
    assert total.item() * (axis[1] - axis[0]).item() ** 2 == pytest.approx(1.0, abs=5e-3)


def test_state_is_saved_and_copied(case: Case) -> None:
    transform, other = case.build(), case.make()
    x = events(transform, "standard", 5, torch.float32)
    context = context_of(transform, 5, torch.float32)
    expected = transform.call_and_log_det(x, context)[0]
    other.load_state_dict(transform.state_dict())
    twin = copy.deepcopy(transform)
    assert torch.equal(other.eval().call_and_log_det(x, context)[0], expected)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(1.0)
    assert torch.equal(twin.call_and_log_det(x, context)[0], expected)


def test_scores_follow_parameters_at_once(case: Case) -> None:
    """Pyro's transforms return what they computed under earlier parameters."""
    transform = case.build(torch.float64)
    flow, x = law(transform), torch.ones(transform.event_shape, dtype=torch.float64)
    before = flow.log_prob(x)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.1)
    moved = bool((flow.log_prob(x) - before).abs() > 1e-9)
    assert moved == (len(list(transform.parameters())) > 0)
    fresh = law(transform).log_prob(x.clone())
    assert torch.equal(flow.log_prob(x), fresh)


@pytest.mark.parametrize(
    "name", ["call_and_log_det", pytest.param("inverse_and_log_det", marks=pytest.mark.slow)]
)
def test_captured_passes_equal_eager_ones(case: Case, name: str) -> None:
    transform = case.build(torch.float64)
    x = events(transform, "standard", 5, torch.float64)
    context = context_of(transform, 5, torch.float64)
    given, step = (x,) if context is None else (x, context), getattr(transform, name)
    captured = compile_function(step, given, backend="eager")
    for ours, theirs in zip(captured(*given), step(*given), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.slow
def test_machine_code_equals_eager_passes(case: Case) -> None:
    transform = case.build(torch.float64)
    x = events(transform, "standard", 5, torch.float64).requires_grad_()
    context = context_of(transform, 5, torch.float64)
    given, passes = (x,) if context is None else (x, context), there_and_back(transform)
    compiled = compile_function(passes, given)
    for ours, theirs in zip(compiled(*given), passes(*given), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-8)


def there_and_back(transform: Any) -> Callable[..., list[Tensor]]:
    """Images both ways, log-determinants, and gradients of a function of the images."""

    def found(*given: Tensor) -> list[Tensor]:
        y, log_det = transform.call_and_log_det(*given)
        wanted = [given[0], *transform.parameters()]
        slopes = torch.autograd.grad(y.sin().sum() + log_det.sum(), wanted, allow_unused=True)
        x, log_det_back = transform.inverse_and_log_det(*given)
        return [y, log_det, x, log_det_back, *(slope for slope in slopes if slope is not None)]

    return found


def with_slopes(flow: Continuous) -> Callable[..., list[Tensor]]:
    """Images, log-determinants and the gradients of a function of both."""

    def found(*given: Tensor) -> list[Tensor]:
        y, log_det = flow.call_and_log_det(*given)
        loss = y.sin().sum() + log_det.sum()
        return [y, log_det, *torch.autograd.grad(loss, [given[0], *flow.parameters()])]

    return found


@pytest.mark.parametrize(("num_context", "trace"), [(0, "exact"), (2, "hutchinson")])
def test_graphs_of_fields_do_not_grow_with_their_steps(num_context: int, trace: Trace) -> None:
    """The steps of a compiled fit took minutes to compile; gradients go back through the loop."""
    torch.manual_seed(0)
    given = [torch.randn(5, size, dtype=torch.float64) for size in (3, num_context) if size]
    given[0].requires_grad_()
    sizes = []
    for num_steps in (2, 5):
        flow = Continuous(3, [8], num_steps, trace, num_context).double()
        captured = capture(with_slopes(flow), given)
        torch.manual_seed(1)
        expected = with_slopes(flow)(*given)
        torch.manual_seed(1)
        torch.testing.assert_close(captured(*given), expected)
        parts = [part for part in captured.graph.modules() if isinstance(part, GraphModule)]
        sizes.append(sum(len(part.graph.nodes) for part in parts))
    assert sizes[0] == sizes[1]


def test_events_broadcast_over_leading_dimensions(case: Case) -> None:
    transform = case.build(torch.float64)
    x = events(transform, "standard", 6, torch.float64)
    context = context_of(transform, 3, torch.float64)
    for name in ("call_and_log_det", "inverse_and_log_det"):
        step = getattr(transform, name)
        image, log_det = step(x.unflatten(0, (2, 3)), context)
        each = [None] * 6 if context is None else [*context, *context]
        rows = [step(value, given) for value, given in zip(x, each, strict=True)]
        assert torch.allclose(image.flatten(0, 1), torch.stack([row[0] for row in rows]))
        assert torch.allclose(log_det.flatten(), torch.stack([row[1] for row in rows]))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [2, 6, 40])
def test_singular_weights_are_refused_and_small_ones_are_not(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    low_rank = torch.randn(size, size - 1, dtype=dtype) @ torch.randn(size - 1, size, dtype=dtype)
    whole = torch.randn(size, size, dtype=dtype)
    no_row, no_number = whole.clone(), whole.clone()
    no_row[1], no_number[1, 1] = 0.0, torch.nan
    for weight in (low_rank, no_row, no_number):
        with pytest.raises(ValueError, match="the weight is singular"):
            LULinear((size,), weight)
    small = whole * torch.logspace(0, -12, size, dtype=dtype)
    log_det = LULinear((size,), small).call_and_log_det(small[0])[1].item()
    assert log_det == pytest.approx(torch.linalg.slogdet(small.double())[1].item(), rel=1e-4)


@torch.no_grad()
def test_steps_along_a_field_converge_as_their_fourth_power() -> None:
    torch.manual_seed(0)
    fine = Continuous(2, [8], num_steps=256).double()
    with torch.no_grad():
        for parameter in fine.parameters():
            parameter.mul_(3.0)
    x = torch.randn(50, 2, dtype=torch.float64)
    expected, log_det = fine(x), fine.call_and_log_det(x)[1]
    errors = []
    for num_steps in (8, 16, 32):
        fine.num_steps = num_steps
        found, found_log_det = fine.call_and_log_det(x)
        errors.append([(found - expected).abs().max(), (found_log_det - log_det).abs().max()])
    for coarse, finer in itertools.pairwise(torch.tensor(errors)):
        assert bool((coarse / finer > 11).all())
        assert bool((coarse / finer < 25).all())


@torch.no_grad()
def test_traces_of_random_signs_are_those_of_the_tangents_on_average() -> None:
    torch.manual_seed(0)
    flow = Continuous(3, [8], num_steps=16, trace="hutchinson", num_context=2).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(3.0)
    x, context = torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    exact = flow.eval().call_and_log_det(x, context)[1]
    draws = flow.train().call_and_log_det(x.expand(4000, 3), context)[1]
    error = draws.std() / 4000**0.5
    assert error > 1e-4
    assert (draws.mean() - exact).abs() < 4 * error + 1e-5
