"""Flows whose draws explode are told of, with the layer; others are not."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program
from ppl_dgm.families import FFJORD, MAF, NICE, Flow, RealNVP
from ppl_dgm.transforms import Continuous, Coupling, Elementwise, FlowDistribution


def steep(flow: Flow, place: int) -> Flow:
    """A coupling that multiplies its other half by e^2 in some tail, squared by each layer."""
    coupling = flow.parts.transforms()[place]
    first, last = coupling.net.layers[0], coupling.net.layers[-1]
    with torch.no_grad():
        for part in (first, last):
            part.weight.zero_()
            part.bias.zero_()
        first.weight[0, 0], first.bias[0] = 1e7, -2.5e7  # beyond 2.5 of N(0, 1)
        last.weight[0, 0] = 1.0
    return flow


@contextmanager
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_far_out_are_told_of_with_their_layer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    flow = steep(NICE(2, 4, [8]).start(torch.randn(100, 2)), 1).to(dtype)
    assert bool(torch.isfinite(flow.sample(1)).all())
    with pytest.warns(UserWarning, match=r"% of the draws .* most in Coupling transforms\[1\]"):
        x = flow.sample(1000)
    assert x.abs().max() > 1e5
    assert x.median().abs() < 1


@pytest.mark.parametrize("num_samples", [1, 1000])
def test_infinite_draws_are_told_of(num_samples: int) -> None:
    torch.manual_seed(0)
    flow = RealNVP(2, 2, [4])
    with torch.no_grad():
        flow.parts.transforms()[1].log_scale.fill_(100.0)
    with pytest.warns(UserWarning, match=r"100 % of the draws of site 'x' are infinite"):
        flow.sample(num_samples)


def test_draws_that_lead_back_to_other_noise_are_told_of() -> None:
    """All explode alike, so that none is far beyond the others."""
    torch.manual_seed(0)
    flow = RealNVP(2, 2, [4])
    first, _, second, _ = flow.parts.transforms()
    with torch.no_grad():
        for coupling, slope in ((first, 1e5), (second, 1.0)):
            for layer in coupling.net.layers:
                layer.weight.zero_()
                layer.bias.zero_()
                layer.weight[0, 0] = 1.0
            coupling.net.layers[-1].weight[0, 0] = slope
            coupling.net.layers[-1].bias[0] = 1e5
    with pytest.warns(UserWarning, match="are scored as made from noise"):
        flow.sample(100)
    with no_warnings():
        flow.double().sample(100)


def test_flows_at_contexts_are_judged_by_context() -> None:
    """Contexts far from each other are no tail of one."""
    flow = MAF(2, 1, [8], num_context=1)
    with torch.no_grad(), no_warnings():
        flow.parts.transforms.held[0].bijection.net.contexts[-1].weight.fill_(1.0)
        x = flow.sample(50, context=torch.tensor([[0.0], [1e3]]))
    assert x.shape == (50, 2, 2)


@pytest.mark.parametrize("by_context", [False, True])
def test_flows_may_depend_on_latents(by_context: bool) -> None:
    """Each draw has a flow of its own."""
    coupling = Coupling(2, num_context=1 if by_context else 0)

    def model(x: torch.Tensor | None = None) -> None:
        pyro.module("coupling", coupling)
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            noise = dist.Normal(torch.zeros(2) if by_context else z.expand(*z.shape[:-1], 2), 1.0)
            step = coupling.condition(z)
            pyro.sample("x", FlowDistribution(noise.to_event(1), [step]), obs=x)

    with no_warnings():
        assert Program(model).sample(50).shape == (50, 2)


def test_noise_with_heavy_tails_may_lead_far() -> None:
    torch.manual_seed(0)
    base = dist.StudentT(torch.tensor(0.5).expand(2), 0.0, 1.0).to_event(1)
    with no_warnings():
        x = Flow(base, [Coupling(2), Elementwise((2,))]).sample(5000)
    assert x.abs().max() > 1e5


def test_generators_are_not_moved() -> None:
    flow = RealNVP(2, 2, [4])
    torch.manual_seed(0)
    flow.sample(10)
    moved = torch.get_rng_state()
    torch.manual_seed(0)
    torch.randn(10, 2)
    assert torch.equal(torch.get_rng_state(), moved)


@pytest.mark.parametrize("num_context", [0, 1])
def test_a_check_of_many_draws_is_of_few(monkeypatch: pytest.MonkeyPatch, num_context: int) -> None:
    """Each of 2000 draws was checked by 64 of its own: a minute."""
    rows = []

    def noted(field: Continuous, *args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows.append(args[0].numel() // 2)
        return args[0], args[0].new_zeros(args[0].shape[:-1])

    monkeypatch.setattr(Continuous, "call_and_log_det", noted)
    monkeypatch.setattr(Continuous, "inverse_and_log_det", noted)
    flow = FFJORD(2, 1, [4], 1, num_context=num_context)
    given = {"context": torch.zeros(1, 1)} if num_context else {}
    rows.clear()
    flow.sample(2000, **given)
    assert sum(rows) < 3000


def test_a_layer_is_called_as_before_after_a_warning() -> None:
    torch.manual_seed(0)
    flow = steep(NICE(2, 4, [8]).start(torch.randn(100, 2)), 1)
    with pytest.warns(UserWarning, match="draws"):
        flow.sample(1000)
    assert all("call_and_log_det" not in vars(part) for part in flow.modules())
