"""Nets: what depends on what, by autodiff; broadcasting against loops; dtypes and devices."""

import itertools

import pytest
import torch
from torch import nn

from ppl_dgm.nn.conv import ConvDecoder, ConvEncoder
from ppl_dgm.nn.masked import CausalConv2d, MADENet, MaskedLinear, autoregressive_masks
from ppl_dgm.nn.mlp import MLP, ResidualMLP

# name -> (constructor, shape of one input)
NETS = {
    "affine": (lambda: MLP(3, [], 2), (3,)),
    "perceptron": (lambda: MLP(3, [7, 5], 2, nn.Tanh), (3,)),
    "residual": (lambda: ResidualMLP(3, 8, 2, 4), (3,)),
    "encoder": (lambda: ConvEncoder((2, 7, 6), [3, 4], 5), (2, 7, 6)),
    "encoder, flat": (lambda: ConvEncoder((2, 7, 6), [3, 4], 5), (84,)),
    "decoder": (lambda: ConvDecoder(5, [4, 3], (2, 7, 6)), (5,)),
    "masked": (lambda: MaskedLinear(torch.eye(3)), (3,)),
    "MADE": (lambda: MADENet(4, [9, 8], 2), (4,)),
    "causal": (lambda: CausalConv2d(2, 3, 3, sees_centre=False), (2, 5, 4)),
}
EVENT_DIMS_OUT = {"decoder": 3, "causal": 3, "MADE": 2}

each_net = pytest.mark.parametrize("name", NETS)


def jitter(net: nn.Module) -> nn.Module:
    """Moves every parameter off its initial value, so that nothing is zero by initialisation."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def jacobian(net, x):
    """`[outputs, inputs]`"""
    return torch.autograd.functional.jacobian(net, x).reshape(net(x).numel(), x.numel())


@each_net
def test_leading_dimensions_equal_a_loop(name):
    make, event = NETS[name]
    net = jitter(make())
    x = torch.randn(2, 3, *event)
    looped = torch.stack([torch.stack([net(row) for row in rows]) for rows in x])
    torch.testing.assert_close(net(x), looped)
    assert looped.ndim == 2 + EVENT_DIMS_OUT.get(name, 1)


@each_net
def test_expanded_particles_and_vmap_agree(name):
    make, event = NETS[name]
    net = jitter(make())
    x = torch.randn(3, *event)
    torch.testing.assert_close(net(x.expand(4, 3, *event)), net(x).expand(4, *net(x).shape))
    torch.testing.assert_close(torch.func.vmap(net)(x), net(x))


@each_net
def test_dtype_and_device_follow(name):
    make, event = NETS[name]
    net = make().double()
    assert net(torch.randn(2, *event, dtype=torch.float64)).dtype == torch.float64
    assert (
        net.to("meta")(torch.empty(2, *event, dtype=torch.float64, device="meta")).device.type
        == "meta"
    )


@each_net
def test_every_parameter_matters(name):
    make, event = NETS[name]
    net = jitter(make())
    net(torch.randn(8, *event)).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@each_net
def test_state_dict_restores_the_function(name):
    make, event = NETS[name]
    net, other = jitter(make()), jitter(make())
    x = torch.randn(2, *event)
    assert not torch.equal(net(x), other(x))
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(x), other(x))


def test_mlp_is_the_formula():
    net = MLP(2, [3], 1, nn.Tanh)
    x = torch.randn(5, 2)
    first, _, last = net
    torch.testing.assert_close(
        net(x), torch.tanh(x @ first.weight.T + first.bias) @ last.weight.T + last.bias
    )


def test_residual_net_starts_affine():
    net = ResidualMLP(3, 8, 4, 2, nn.Identity)
    points = torch.randn(2, 3)
    torch.testing.assert_close(net(points.mean(0)), net(points).mean(0))
    blocks = [block[3].weight.abs().sum() for block in net.blocks]
    assert blocks == [0.0] * 4


@pytest.mark.parametrize(("height", "width"), [(28, 28), (8, 8), (5, 7), (1, 2)])
def test_conv_nets_take_any_image_size(height, width):
    encoder, decoder = (
        ConvEncoder((1, height, width), [2, 3], 4),
        ConvDecoder(4, [3, 2], (1, height, width)),
    )
    assert decoder(encoder(torch.randn(6, 1, height, width))).shape == (6, 1, height, width)


def test_encoder_sees_flat_and_unflattened_images_alike():
    encoder = ConvEncoder((2, 4, 4), [3], 5)
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(encoder(x), encoder(x.flatten(1)))


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("hidden", [[], [40], [30, 31], [2]])
def test_made_is_autoregressive_in_its_order(hidden, seed, num_outputs):
    order = torch.randperm(6)
    net = jitter(MADENet(6, hidden, num_outputs, order, seed, activation=nn.Tanh)).double()
    jac = jacobian(net, torch.randn(6, dtype=torch.float64)).reshape(6, num_outputs, 6)
    ordered = jac[order][:, :, order]
    for i, j in itertools.product(range(6), repeat=2):
        if j >= i:
            assert (ordered[i, :, j] == 0).all()


@pytest.mark.parametrize("hidden", [[], [5], [64], [20, 20]])
def test_made_uses_every_allowed_input(hidden):
    net = jitter(MADENet(6, hidden, activation=nn.Tanh)).double()
    jac = jacobian(net, torch.randn(6, dtype=torch.float64))
    assert torch.equal(jac != 0, torch.ones(6, 6).tril(-1).bool())


def test_made_masks_of_a_seed_repeat_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    one, two, other = (autoregressive_masks(9, [30, 30], seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[1], other[1])


def test_made_with_context_is_autoregressive_in_x_and_sees_all_of_the_context():
    net = jitter(MADENet(4, [12], 1, num_context=2, activation=nn.Tanh)).double()
    x, context = torch.randn(4, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    by_x, by_context = torch.autograd.functional.jacobian(net, (x, context))
    assert torch.equal(by_x.squeeze(1) != 0, torch.ones(4, 4).tril(-1).bool())
    assert (by_context != 0).all()


def test_made_of_one_dimension_is_a_constant():
    net = MADENet(1, [4])
    assert net(torch.randn(5, 1)).unique().numel() == 1


@pytest.mark.parametrize("sees_centre", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
def test_causal_convolution_sees_earlier_pixels_only(sees_centre, dilation):
    layer = jitter(CausalConv2d(1, 1, 3, sees_centre, dilation)).double()
    jac = jacobian(layer, torch.randn(1, 5, 6, dtype=torch.float64))
    assert (jac.triu(0 if not sees_centre else 1) == 0).all()
    centre = jac.diagonal()
    assert (centre != 0).all() == sees_centre
    pixel, seen = (
        2 * 6 + 3,
        {(2 - dilation) * 6 + 3 + shift * dilation for shift in (-1, 0, 1)}
        | {2 * 6 + 3 - dilation},
    )
    assert set(jac[pixel].nonzero().flatten().tolist()) == seen | (
        {pixel} if sees_centre else set()
    )


def test_gradient_through_a_mask_stops():
    layer = MaskedLinear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    layer(torch.ones(1, 2)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.eye(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(0, [3], 2), "sizes of at least one"),
        (lambda: MLP(2, 3, 2), r"hidden is 3; expected .* a whole number, e.g. \[3\]"),
        (lambda: MADENet(2, 3), r"hidden is 3; expected .* a whole number, e.g. \[3\]"),
        (lambda: ResidualMLP(2, 3, 0, 1), "sizes of at least one"),
        (lambda: ConvEncoder((1, 8, 8), [0], 2), "sizes of at least one"),
        (lambda: ConvDecoder(2, [4], (1, 0, 8)), "sizes of at least one"),
        (lambda: ConvEncoder((1, 8, 8), [], 2), "at least one layer"),
        (lambda: ConvDecoder(2, [], (1, 8, 8)), "at least one layer"),
        (
            lambda: ConvEncoder((1, 8, 8), [2], 2)(torch.zeros(3, 63)),
            r"expected images .*\[3, 63\]",
        ),
        (lambda: MaskedLinear(torch.ones(3)), "expected a mask"),
        (lambda: MADENet(3, [4], order=[0, 1, 1]), "permutation of 0, ..., 2"),
        (lambda: MADENet(3, [4], order=[0, 1]), "permutation of 0, ..., 2"),
        (
            lambda: MADENet(3, [4])(torch.zeros(3), torch.zeros(1)),
            "num_context = 0 but was called with",
        ),
        (
            lambda: MADENet(3, [4], num_context=1)(torch.zeros(3)),
            "num_context > 0 but was called without",
        ),
        (lambda: CausalConv2d(1, 1, 4, sees_centre=True), "odd kernel size"),
    ],
)
def test_bad_arguments_say_what_was_expected(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
