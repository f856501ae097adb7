"""Flows of images: noise and back, densities by autodiff, starts, scales, bad sides."""

import copy
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_dgm import evidence, fit
from ppl_dgm.families import Flow, FlowPlusPlus, Glow, RealNVP
from ppl_dgm.transforms import Chain, Inverse, MultiScale, Squeeze

SHAPE = (2, 4, 4)
FLOWS: dict[str, Callable[[], Flow]] = {
    "realnvp": lambda: RealNVP(SHAPE, 4, [8, 8]),
    "realnvp of three scales": lambda: RealNVP((1, 8, 4), 2, [4], levels=3),
    "realnvp with odd sides": lambda: RealNVP((1, 5, 3), 2, [8], levels=1),
    "glow": lambda: Glow(SHAPE, 2, [8, 8]),
    "flow++": lambda: FlowPlusPlus((1, 4, 4), 1, 8, 3, 1),
    "glow of one scale": lambda: Glow(SHAPE, 2, [8], levels=1),
}
FAST = {"seed": 0, "progress": False}


def images(flow: Flow, num: int = 100) -> Tensor:
    """Flattened images of mean 100 and sd 30, all of a datum's pixels alike, in double."""
    size = flow.parts.event_shape[0]
    noise = torch.randn(num, size + 1, generator=torch.Generator().manual_seed(0)).double()
    return 100 + 30 * (0.6 * noise[:, 1:] + 0.8 * noise[:, :1])


@pytest.fixture(params=FLOWS)
def flow(request: pytest.FixtureRequest) -> Flow:
    torch.manual_seed(0)
    found = FLOWS[request.param]().double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return found


def test_images_go_to_noise_and_back(flow: Flow) -> None:
    x = images(flow)
    z = flow.start(x).latents(x)
    assert z.shape == x.shape
    assert (flow.from_latents(z) - x).abs().max() < 1e-10 * x.abs().max()
    assert z.mean().abs() < 0.2
    assert 0.5 < z.std() < 1.5


def test_densities_are_those_of_autodiff_and_of_the_noise_drawn(flow: Flow) -> None:
    flow.start(images(flow))
    torch.manual_seed(1)
    x = flow.sample(3)
    torch.manual_seed(1)
    z = flow.latents(x)
    base = dist.Normal(torch.zeros_like(x[0]), 1.0).to_event(1)
    jacobians = [
        torch.autograd.functional.jacobian(lambda v: flow.latents(v.unsqueeze(0))[0], row)
        for row in x
    ]
    expected = base.log_prob(z) + torch.linalg.slogdet(torch.stack(jacobians))[1]
    assert torch.allclose(evidence.Exact()(flow, x).log_z, expected, atol=1e-8)


def test_state_travels_with_the_start(flow: Flow) -> None:
    x = images(flow)
    other = copy.deepcopy(flow)
    flow.start(x)
    other.load_state_dict(flow.state_dict())
    before = other.distribution().log_prob(x)
    assert torch.equal(before, flow.distribution().log_prob(x))
    assert torch.equal(other.start(2 * x).distribution().log_prob(x), before)


def test_gradients_reach_every_parameter(flow: Flow) -> None:
    x = images(flow)
    loss = -flow.start(x).distribution().log_prob(x).mean()
    for name, gradient in zip(
        dict(flow.named_parameters()),
        torch.autograd.grad(loss, list(flow.parameters())),
        strict=True,
    ):
        assert bool(torch.isfinite(gradient).all()), name
        assert bool((gradient != 0).any()), name


def test_fits_learn_that_pixels_are_alike() -> None:
    torch.manual_seed(0)
    flow = Glow((1, 4, 4), 2, [16]).double()
    x = images(flow, 600)
    alone = dist.Normal(x.mean(0), x.std(0)).to_event(1).log_prob(x).mean()
    rate = lambda parameters: torch.optim.Adam(parameters, 5e-3)  # noqa: E731
    fit(flow, x[:400], steps=80, batch_size=100, optimizer=rate, compile=False, **FAST)
    assert evidence.auto(flow, x[400:]).log_z.mean() > alone + 2


def test_contexts_bend_images() -> None:
    torch.manual_seed(0)
    flow = RealNVP((1, 4, 4), 2, [8], num_context=2)
    x, context = torch.randn(6, 16), torch.randn(6, 2)
    z = flow.latents(x, context)
    assert (z - flow.latents(x, -context)).abs().max() > 1e-3
    assert torch.allclose(flow.from_latents(z, context), x, atol=1e-4)
    assert flow.sample(3, context=context).shape == (3, 6, 16)


def test_half_of_each_scale_is_noise() -> None:
    scales = [Inverse(Squeeze((1, 4, 4))), Inverse(Squeeze((2, 2, 2)))]
    image = MultiScale(scales)(torch.arange(16.0)).unflatten(-1, (4, 4))
    assert image[0::2].flatten().sort().values.tolist() == [float(i) for i in range(8, 16)]
    assert image[1::2, 0::2].flatten().tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_compiled_fits_equal_eager_ones(name: str) -> None:
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        flow = FLOWS[name]()
        found = fit(flow, images(flow).float(), steps=10, batch_size=50, compile=compiled, **FAST)
        losses.append(found.history["objective"])
    assert torch.allclose(losses[0], losses[1], rtol=1e-3)


BAD = {
    "sides": (lambda: Glow((1, 6, 8)), "\\[6, 8\\] cannot be halved 2 times; .* multiples of 4"),
    "sides of realnvp": (lambda: RealNVP((1, 5, 4)), "\\[5, 4\\] cannot be halved 1 times"),
    "squeeze": (lambda: Squeeze((1, 3, 4)), "\\[3, 4\\] cannot be halved"),
    "image shape": (lambda: Glow((4, 4)), "expected an image shape"),  # type: ignore[arg-type]
    "levels": (lambda: Glow(SHAPE, levels=0), "levels is 0"),
    "levels of vectors": (lambda: RealNVP(4, levels=2), "vectors have no scales"),
    "length": (lambda: RealNVP(SHAPE, length=0), "length is 0"),
    "hidden": (
        lambda: Glow(SHAPE, hidden=8),  # type: ignore[arg-type]
        r"hidden is 8; expected .* e.g. \[8\]",
    ),
    "one pixel": (lambda: RealNVP((1, 2, 2)), "mask of images \\[2, 1, 1\\] is all"),
    "odd sides": (lambda: FlowPlusPlus((1, 3, 4)), "\\[3, 4\\] cannot be halved"),
    "width": (lambda: FlowPlusPlus((1, 4, 4), width=6), "width is 6; expected a multiple of 4"),
    "components": (lambda: FlowPlusPlus((1, 4, 4), num_components=0), "num_components is 0"),
    "no parts": (lambda: Chain([]), "at least one bijection"),
    "parts": (
        lambda: Chain([Squeeze((1, 4, 4)), Squeeze((1, 4, 4))]),
        "part 1, Squeeze, maps events \\[1, 4, 4\\] but is given events \\[4, 2, 2\\]",
    ),
    "scales": (
        lambda: MultiScale([Inverse(Squeeze((1, 4, 4))), Inverse(Squeeze((1, 2, 2)))]),
        "scale 0 takes images \\[4, 2, 2\\]",
    ),
    "data of another size": (
        lambda: Glow(SHAPE).latents(torch.zeros(5, 3, 4, 4)),
        "expected data \\['N', 32\\], got \\[5, 48\\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises((TypeError, ValueError), match=message):
        make()
