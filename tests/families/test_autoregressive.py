"""Autoregressive families: who sees whom, total probability, draws, orders, labels, bad input."""

from functools import partial
from pathlib import Path
from typing import Any

import pyro.poutine as poutine
import pytest
import torch
from cases import all_vectors
from causal import Make, built, frequencies_agree, naively, seen
from torch import Tensor
from torch.autograd.functional import jacobian

from ppl_dgm import Program, fit
from ppl_dgm.evidence import Exact, ImportanceSampling
from ppl_dgm.families import (
    DARN,
    FVSBN,
    MADE,
    NADE,
    GatedPixelCNN,
    PixelCNN,
    PixelCNNPlusPlus,
    PixelSNAIL,
    PixelTransformer,
    RecurrentNet,
    WaveNet,
    likelihoods,
)
from ppl_dgm.objectives import VIMCO

WIDE = (1, 2, 4)
DIMS = 8
NETS: dict[str, Make] = {
    "fvsbn": partial(FVSBN, DIMS),
    "nade": partial(NADE, DIMS, 5),
    "made": partial(MADE, DIMS, [9, 7]),
    "made of drawn masks": partial(MADE, DIMS, [30, 30], seed=3),
    "made with direct connections": partial(MADE, DIMS, [3], direct=True),
    "gru": partial(RecurrentNet, DIMS, 5),
    "lstm": partial(RecurrentNet, DIMS, 5, cell="lstm", num_layers=2),
    "wavenet": partial(WaveNet, DIMS, 4),
    "pixelcnn": partial(PixelCNN, WIDE, 6, 2),
    "gated pixelcnn": partial(GatedPixelCNN, WIDE, 4),
    "pixelcnn++": partial(PixelCNNPlusPlus, WIDE, 4, 2, 1, likelihoods.DiscretisedLogistic(2, 2)),
    "binary pixelcnn++": partial(PixelCNNPlusPlus, WIDE, 4, 2, 1, "bernoulli"),
    "transformer": partial(PixelTransformer, WIDE, 8, 2, 2),
    "rotary transformer": partial(PixelTransformer, WIDE, 8, 2, 2, positions="rotary"),
    "pixelsnail": partial(PixelSNAIL, WIDE, 8, 1, 1, 2),
}
SEVERAL: dict[str, Make] = {
    "fvsbn": partial(FVSBN, DIMS, orders=3),
    "nade": partial(NADE, DIMS, 5, orders=3),
    "made": partial(MADE, DIMS, [9, 7], orders=3),
    "made with direct connections": partial(MADE, DIMS, [3], orders=3, direct=True),
    "transformer": partial(PixelTransformer, WIDE, 8, 1, 2, orders=3),
}
COLOUR: dict[str, Make] = {
    "pixelcnn": partial(PixelCNN, (3, 2, 2), 6, 2),
    "gated pixelcnn": partial(GatedPixelCNN, (3, 2, 2), 4),
    "pixelcnn++": partial(
        PixelCNNPlusPlus, (3, 2, 2), 4, 2, 1, likelihoods.DiscretisedLogistic(2, 2)
    ),
    "transformer": partial(PixelTransformer, (3, 2, 2), 8, 1, 2),
    "pixelsnail": partial(PixelSNAIL, (3, 2, 2), 8, 1, 1, 2),
}
ORDER = [3, 1, 2, 0, 7, 6, 5, 4]
BINARY = all_vectors(2, DIMS).double()


@pytest.mark.parametrize("order", [None, ORDER])
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_each_conditional_sees_the_earlier_dimensions_only(make: Make, order: Any) -> None:
    program = built(make, order=order)
    assert torch.equal(seen(program, torch.rand(DIMS).double()).triu(), torch.zeros(8, 8).bool())


PLACED = {
    **{name: NETS[name] for name in ("wavenet", "transformer", "rotary transformer", "pixelsnail")},
    "gated pixelcnn of half": partial(NETS["gated pixelcnn"], context=(1, 1, 2)),
}


@pytest.mark.parametrize("make", PLACED.values(), ids=PLACED)
def test_places_differ_as_much_as_values(make: Make) -> None:
    torch.manual_seed(0)
    program = make()
    found = [each for path, each in program.named_parameters() if path.endswith("places")]
    values = torch.cat([each.flatten() for each in found])
    assert 0.5 < values.std() < 2


LAWS = {
    "levels": likelihoods.Categorical(3),
    "logistic levels": likelihoods.DiscretisedLogistic(3, 2),
    "gaussian": likelihoods.Gaussian(0.5),
    "learned gaussian": likelihoods.Gaussian(learned="net"),
    "continuous bernoulli": likelihoods.ContinuousBernoulli(),
    "mixture": likelihoods.MixtureDensity(2),
    "logistic mixture": likelihoods.MixtureDensity(2, "logistic"),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("name", [name for name in NETS if "++" not in name])
def test_each_conditional_sees_the_earlier_dimensions_only_under_any_law(
    name: str, law: Any
) -> None:
    program = built(NETS[name], likelihood=law, order=ORDER)
    assert not bool(seen(program, torch.rand(DIMS).double()).triu().any())


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_pixelcnnpp_couples_channels_to_earlier_ones_only(law: Any) -> None:
    program = built(partial(PixelCNNPlusPlus, (2, 2, 2), 4, 2, 1, law))
    assert not bool(seen(program, torch.rand(DIMS).double()).triu().any())


@pytest.mark.parametrize("far", [-1e12, -100.0, 50.0, 100.0, 1e12])
@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.num_params % 3 != 1])
def test_gradients_stay_finite_however_far_the_scales(name: str, far: float) -> None:
    law, x = LAWS[name], torch.tensor([0.0, 1.0, 2.0])
    params = torch.zeros(3, law.num_params)
    params[:, -law.num_params // min(3, law.num_params) :] = far
    params.requires_grad_()
    log_probs = law(params).log_prob(x)
    log_probs.sum().backward()
    assert params.grad is not None
    assert bool(log_probs.isfinite().all() & params.grad.isfinite().all())


@pytest.mark.parametrize("seed", [0, 2])
def test_gradients_of_pixelcnnpp_with_wild_weights_are_finite(seed: int) -> None:
    torch.manual_seed(seed)
    program = PixelCNNPlusPlus((3, 4, 4), 8, None, 1, LAWS["logistic levels"])
    x = torch.randint(3, (5, 48)).float()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    program.model.fn.distribution().log_prob(x).sum().backward()
    for parameter in program.parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())


@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]])
def test_both_nets_of_darn_see_the_earlier_dimensions_only(order: Any) -> None:
    model = built(partial(DARN, 4, 3), order=order).model.fn
    places = list(order or range(4))
    below = jacobian(lambda h: model.prior(h).squeeze(-1), torch.rand(3).double())
    assert torch.equal(below != 0, torch.ones(3, 3).tril(-1).bool())
    h, x = torch.rand(3).double(), torch.rand(4).double()
    found = jacobian(lambda x: model.decoder(x, h).squeeze(-1), x) != 0
    assert torch.equal(found[places][:, places], torch.ones(4, 4).tril(-1).bool())
    assert bool((jacobian(lambda h: model.decoder(x, h).squeeze(-1), h) != 0).all())


COMPLETE = set(NETS) - {
    "made",
    "made of drawn masks",
    "pixelcnn",
    "pixelcnn++",
    "binary pixelcnn++",
}


@pytest.mark.parametrize("name", sorted(COMPLETE))
def test_all_earlier_dimensions_are_seen(name: str) -> None:
    program = built(NETS[name])
    points = torch.rand(5, DIMS).double()
    found = torch.stack([seen(program, x) for x in points]).any(0)
    assert torch.equal(found, torch.ones(DIMS, DIMS).tril(-1).bool())


@pytest.mark.parametrize("make", COLOUR.values(), ids=COLOUR)
def test_channels_see_earlier_channels_and_pixels_only(make: Make) -> None:
    program = built(make)
    assert program.model.fn.order[:4] == (0, 4, 8, 1)
    points = torch.rand(4, 12).double()
    found = torch.stack([seen(program, x) for x in points]).any(0)
    assert not bool(found.triu().any())
    assert bool(found[1, 0])
    assert bool(found[2, :2].all())


@pytest.mark.parametrize("order", [None, ORDER])
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_probabilities_sum_to_one(make: Make, order: Any) -> None:
    program = built(make, order=order).float()
    assert Exact()(program, BINARY.float()).log_z.exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("make", COLOUR.values(), ids=COLOUR)
def test_probabilities_of_colour_images_sum_to_one(make: Make) -> None:
    evidence = Exact()(built(make), all_vectors(2, 12).double())
    assert evidence.log_z.exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_probabilities_given_a_class_sum_to_one_and_differ(make: Make) -> None:
    program = built(make, num_classes=3)
    log_probs = [
        Exact()(program, BINARY, torch.full((256,), label)).log_z.exp() for label in (0, 2)
    ]
    assert log_probs[0].sum().item() == pytest.approx(1, abs=1e-6)
    assert not torch.allclose(*log_probs, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "settings"),
    [pytest.param(make, {}, id=name) for name, make in NETS.items()]
    + [
        pytest.param(NETS["made"], {"num_classes": 2}, id="classes"),
        pytest.param(NETS["gru"], {"num_classes": 2}, id="recurrent classes"),
        pytest.param(SEVERAL["nade"], {}, id="several orders"),
    ],
)
def test_fisher_scores_are_gradients_of_each_datum(make: Make, settings: Any) -> None:
    program = built(make, **settings)
    data = (BINARY[:70:23], torch.tensor([0, 1, 1, 0]))[: 1 + len(settings)]
    scores = program.fisher_scores(*data)
    assert scores.keys() == dict(program.named_parameters()).keys()
    for n in range(len(data[0])):
        bound = program.bind(*(part[n : n + 1] for part in data))
        log_prob = bound.log_joint({}).total.sum()
        expected = torch.autograd.grad(log_prob, list(program.parameters()), allow_unused=True)
        for score, gradient in zip(scores.values(), expected, strict=True):
            wanted = torch.zeros_like(score[n]) if gradient is None else gradient
            assert torch.allclose(score[n], wanted, atol=1e-12)


def test_fisher_scores_have_mean_zero_under_the_program() -> None:
    program = built(NETS["made"])
    probs = Exact()(program, BINARY).log_z.exp()
    for score in program.fisher_scores(BINARY).values():
        assert torch.tensordot(probs, score, 1).abs().max() < 1e-9


@pytest.mark.parametrize("settings", [{}, {"orders": 3}])
def test_classes_follow_from_bayes_rule(settings: dict) -> None:
    program = built(NETS["made"], num_classes=3, **settings)
    prior = torch.tensor([0.2, 0.5, 0.3]).double()
    each = [Exact()(program, BINARY, torch.full((256,), label)).log_z for label in range(3)]
    joint = torch.stack(each, -1).exp() * prior
    found = program.log_class_probs(BINARY, prior.log())
    assert torch.allclose(found.exp(), joint / joint.sum(-1, keepdim=True))
    equal = program.log_class_probs(BINARY).exp() * prior
    assert torch.allclose(equal / equal.sum(-1, keepdim=True), found.exp())


@pytest.mark.parametrize("make", SEVERAL.values(), ids=SEVERAL)
def test_several_orders_are_averaged_exactly(make: Make) -> None:
    program = built(make)
    law = program.model.fn.distribution()
    each = torch.stack([part.log_prob(BINARY).exp() for part in law.laws])
    assert torch.allclose(each.sum(-1), torch.ones(3).double())
    assert not torch.allclose(each[0], each[1], atol=1e-4)
    assert torch.allclose(Exact()(program, BINARY).log_z.exp(), each.mean(0))
    for member in range(3):
        assert not bool(seen(program, torch.rand(DIMS).double(), member).triu().any())
    draws = program.sample(20_000)
    assert frequencies_agree(draws, each.mean(0).detach())


@pytest.mark.parametrize("make", SEVERAL.values(), ids=SEVERAL)
def test_training_scores_one_order_at_a_time(make: Make) -> None:
    program = built(make).train()
    each = [law.log_prob(BINARY) for law in program.model.fn.distribution().laws]
    found = set()
    for _ in range(20):
        trace = poutine.trace(program.model).get_trace(BINARY)
        trace.compute_log_prob()
        scored = trace.nodes["x"]["log_prob"]
        found |= {k for k, law in enumerate(each) if torch.allclose(scored, law)}
        assert any(torch.allclose(scored, law) for law in each)
    assert found == {0, 1, 2}


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        pytest.param(make, settings, id=f"{name} {' '.join(settings)}")
        for name, make in NETS.items()
        for settings in ({}, {"order": ORDER}, {"num_classes": 2})
    ],
)
def test_remembering_changes_no_draw(make: Make, settings: Any) -> None:
    program = built(make, **settings)
    given = {"y": torch.tensor([0, 1])} if "num_classes" in settings else {}
    temperature = 0.8 if "order" in settings else 1.0
    torch.manual_seed(0)
    expected = naively(program, 6, temperature=temperature, **given)
    torch.manual_seed(0)
    assert torch.equal(program.sample(6, temperature=temperature, **given), expected)
    assert expected.shape == ((6, 2, DIMS) if given else (6, DIMS))
    assert expected.unique(dim=0).shape[0] > 1


@pytest.mark.parametrize("make", COLOUR.values(), ids=COLOUR)
def test_remembering_changes_no_draw_of_colour_images(make: Make) -> None:
    program = built(make)
    torch.manual_seed(0)
    expected = naively(program, 6)
    torch.manual_seed(0)
    assert torch.equal(program.sample(6), expected)


LARGE: dict[str, Make] = {
    "wavenet": partial(WaveNet, 35, 4),
    "short wavenet": partial(WaveNet, 35, 4, num_layers=5, cycle=2),
    "pixelcnn": partial(PixelCNN, (1, 5, 7), 6, 3),
    "gated pixelcnn": partial(GatedPixelCNN, (1, 5, 7), 4),
    "pixelcnn++": partial(PixelCNNPlusPlus, (1, 4, 8), 4, 3, 1, "bernoulli"),
    "pixelsnail": partial(PixelSNAIL, (1, 5, 7), 8, 2, 1, 2),
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_remembering_changes_no_draw_of_larger_images(make: Make) -> None:
    program = built(make)
    torch.manual_seed(0)
    expected = naively(program, 4)
    torch.manual_seed(0)
    assert torch.equal(program.sample(4), expected)
    assert not bool(seen(program, torch.rand(expected.shape[1]).double()).triu().any())


TEMPERED: dict[str, Make] = {
    "bernoulli": partial(MADE, 4, [9]),
    "cached": partial(WaveNet, 4, 4),
    "logistic": partial(PixelCNNPlusPlus, (1, 2, 2), 4, 2, 1, likelihoods.DiscretisedLogistic(2)),
}


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("make", TEMPERED.values(), ids=TEMPERED)
def test_temperature_sharpens_each_conditional(make: Make, temperature: float) -> None:
    program = built(make)
    model, vectors = program.model.fn, all_vectors(2, 4).double()
    with torch.no_grad():
        params = model.net(model.likelihood.inputs(vectors))
        law = model.likelihood(params)
        both = torch.stack([law.log_prob(torch.full_like(vectors, v)) for v in (0.0, 1.0)], -1)
    log_probs = (both / temperature).log_softmax(-1)
    chosen = log_probs.gather(-1, vectors.long().unsqueeze(-1)).squeeze(-1).sum(-1)
    draws = program.sample(4000, temperature=temperature)
    assert frequencies_agree(draws, chosen.exp())
    if temperature < 1:  # flat nets made flatter would take far more draws to tell apart
        assert not frequencies_agree(program.sample(4000), chosen.exp())


CONTINUOUS = {
    "gaussian": likelihoods.Gaussian(0.5),
    "learned gaussian": likelihoods.Gaussian(learned="net"),
    "mixture": likelihoods.MixtureDensity(3),
    "logistics": likelihoods.MixtureDensity(3, "logistic"),
    "continuous bernoulli": likelihoods.ContinuousBernoulli(),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_conditionals_integrate_to_one(name: str) -> None:
    program = built(partial(NADE, 2, 5, CONTINUOUS[name]))
    low, high = (0, 1) if name == "continuous bernoulli" else (-40, 40)
    axis = torch.linspace(low, high, 601).double()
    x = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    with torch.no_grad():
        density = program.model.fn.distribution().log_prob(x).exp()
    assert torch.trapezoid(torch.trapezoid(density, axis), axis).item() == pytest.approx(1, 1e-3)
    draws = program.sample(4000)
    mean = (x * density.unsqueeze(-1)).sum((0, 1)) / density.sum()
    assert bool(((draws.mean(0) - mean).abs() < 5 * draws.std(0) / 4000**0.5 + 1e-3).all())
    cold = program.sample(4000, temperature=0.05)
    assert bool((cold.std(0) < draws.std(0)).all())


def test_pixelcnn_has_a_blind_spot_and_gated_pixelcnn_none() -> None:
    """Of the pixel at (4, 2) of 6 x 8: above, to the right, columns past the diagonal are blind."""
    pixel = 4 * 8 + 2
    earlier = torch.arange(48) < pixel
    points = torch.rand(4, 48).double()

    def found(program: Program) -> Tensor:
        return torch.stack([seen(program, x) for x in points]).any(0)[pixel]

    plain = found(built(partial(PixelCNN, (1, 6, 8), 6, 12)))
    blind = (earlier & ~plain).nonzero().flatten().tolist()
    reach = [(row, 2 + 3 + max(0, 4 - row - 3)) for row in range(4)]  # the 7 x 7 mask, then 3 x 3
    rows = {row: [c for c in range(8) if row * 8 + c in blind] for row, _ in reach}
    assert rows[3] == [6, 7]  # three columns to the right of the pixel's, and no further
    assert blind
    assert torch.equal(found(built(partial(GatedPixelCNN, (1, 6, 8), 4))), earlier)


def test_receptive_fields_grow_as_claimed() -> None:
    """Exponentially with dilation, linearly without."""
    for layers in (2, 3, 4):
        for cycle, field in ((None, 2**layers), (1, layers + 1)):
            program = built(partial(WaveNet, 20, 4, num_layers=layers, cycle=cycle))
            last = seen(program, torch.rand(20).double())[-1]
            assert program.model.fn.net.receptive_field == field
            assert torch.equal(last, (torch.arange(20) >= 19 - field) & (torch.arange(20) < 19))


@pytest.mark.parametrize(
    ("make", "first", "more"),
    [(partial(PixelCNN, (1, 9, 3), 16), 3, 1), (partial(GatedPixelCNN, (1, 9, 3), 4), 1, 2)],
)
def test_receptive_fields_of_images_grow_by_so_many_rows_a_layer(
    make: Make, first: int, more: int
) -> None:
    for layers in (1, 2, 3):
        program = built(partial(make, num_layers=layers))
        points = torch.rand(4, 27).double()
        reach = torch.stack([seen(program, x)[8 * 3 + 1] for x in points]).any(0)
        assert 8 - int(reach.nonzero().min()) // 3 == first + more * layers


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_saved_parameters_load_in_their_own_order_alone(make: Make, tmp_path: Path) -> None:
    program = built(make, order=ORDER)
    program.save(tmp_path / "net.pt")
    twin = make(order=ORDER).double().eval().load(tmp_path / "net.pt")
    x = BINARY[::16]
    assert torch.equal(Exact()(twin, x).log_z, Exact()(program, x).log_z)
    with pytest.raises(ValueError, match="another order"):
        make(order=ORDER[::-1]).double().load(tmp_path / "net.pt")


def test_several_orders_learn() -> None:
    """Twins in a pair: every order must find that the last bit repeats the first."""
    x = torch.cat([BINARY[:, :7], BINARY[:, :1]], 1).float()
    program = MADE(DIMS, [30], orders=4, seed=1)
    fit(program, x, epochs=300, optimizer=partial(torch.optim.Adam, lr=1e-2), progress=False)
    assert Exact()(program.eval(), x).log_z.mean().item() == pytest.approx(-7 * 0.6931, abs=0.1)


BAD = {
    "order": (lambda: NADE(3, order=[0, 0, 1]), "permutation of 0, ..., 2"),
    "order of pixels": (lambda: PixelCNN((1, 2, 2), order=[0, 1, 2]), "permutation of 0, ..., 3"),
    "sides": (lambda: PixelCNNPlusPlus((1, 5, 4)), "5 and 4 cannot be halved 1 times"),
    "scales": (lambda: PixelCNNPlusPlus((1, 6, 6), num_scales=3), "halved 2 times"),
    "shape": (lambda: PixelCNN((4, 4)), "image shape \\(channels, height, width\\)"),
    "size": (lambda: PixelCNN((1, 0, 4)), "at least one"),
    "kernel": (lambda: GatedPixelCNN((1, 4, 4), kernel_size=2), "odd kernel"),
    "heads": (lambda: PixelTransformer((1, 2, 2), 6, num_heads=4), "multiple of 4"),
    "rotary": (lambda: PixelTransformer((1, 2, 2), 6, 1, 2, positions="rotary"), "multiple of 4"),
    "positions": (lambda: PixelTransformer((1, 2, 2), positions="sine"), "'learned', 'rotary'"),
    "cell": (lambda: RecurrentNet(3, cell="rnn"), "expected one of"),
    "orders": (lambda: MADE(3, orders=0), "at least one"),
    "likelihood": (lambda: WaveNet(3, likelihood="poisson"), "no likelihood 'poisson'"),
    "mixture": (lambda: likelihoods.MixtureDensity(0), "at least 1"),
    "mixture kind": (lambda: likelihoods.MixtureDensity(2, "cauchy"), "expected one of"),
    "grey pixels": (lambda: NADE(3).bind(torch.full((4, 3), 0.5)), "outside the support"),
    "columns": (lambda: FVSBN(3).bind(torch.ones(4, 5)), "expected \\(4, 3\\)"),
    "temperature": (lambda: FVSBN(3).sample(2, temperature=0.0), "expected a positive number"),
    "cold": (lambda: NADE(3).sample(2, temperature=-1.0), "expected a positive number"),
    "no labels": (lambda: NADE(3, num_classes=2).sample(2), "the labels are missing"),
    "labels": (
        lambda: NADE(3, num_classes=2).bind(torch.ones(2, 3), torch.tensor([0, 2])),
        "go from 0 to 2",
    ),
    "a lone label": (
        lambda: MADE(3, num_classes=2).sample(2, y=torch.tensor(1)),
        "labels have shape \\[\\]",
    ),
    "a lone context": (
        lambda: MADE(3, context=2).sample(2, y=torch.tensor(1.0)),
        "contexts have shape \\[\\]",
    ),
    "NaN contexts": (
        lambda: MADE(3, context=2).sample(2, y=torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])),
        "contexts have 1 NaN or infinite numbers, in rows \\[1\\]",
    ),
    "infinite contexts": (
        lambda: NADE(3, context=1).sample(2, y=torch.tensor([[float("inf")]])),
        "contexts have 1 NaN or infinite",
    ),
    "a label that is no tensor": (
        lambda: MADE(3, num_classes=2).sample(2, y=1),
        "a int; expected a tensor",
    ),
    "classes of none": (lambda: NADE(3).log_class_probs(torch.ones(2, 3)), "without classes"),
    "prior": (
        lambda: NADE(3, num_classes=2).log_class_probs(torch.ones(2, 3), torch.zeros(3)),
        "log_prior is \\[3\\]",
    ),
    "no classes": (
        lambda: NADE(3).bind(torch.ones(2, 3), torch.tensor([0, 1])),
        "made without classes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_compiled_training_equals_eager() -> None:
    compare_training(NETS["fvsbn"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NETS) - {"fvsbn"}))
def test_compiled_training_of_every_net_equals_eager(name: str) -> None:
    compare_training(NETS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SEVERAL))
def test_compiled_training_of_several_orders_equals_eager(name: str) -> None:
    compare_training(SEVERAL[name])


def compare_training(make: Make) -> None:
    """Twelve steps of a compiled and of an eager fit from one start give one result."""
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        program = make()
        for module in program.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        settings: Any = {"steps": 12, "batch_size": 64, "progress": False, "compile": compiled}
        fit(program, BINARY.float(), optimizer=partial(torch.optim.Adam, lr=1e-2), **settings)
        results.append(Exact()(program.eval(), BINARY.float()).log_z)
    assert torch.allclose(*results, atol=1e-4)


def test_the_support_of_many_data_takes_one_pass_of_one_row() -> None:
    """Fits and evidence ask for it; each pass over all data cost as much as their density."""
    made, rows = MADE(6, [5], orders=2), []
    net = made.model.fn.net
    net.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[:-1].numel()))
    law = made.model.fn.distribution().expand([500]).expand([3, 500])
    assert law.support.check(torch.ones(3, 500, 6)).shape == (3, 500)
    assert rows == [1]


def darn_densities(program: Any, x: Tensor, temperature: float = 1.0) -> Tensor:
    """p(x) of each datum, the latents summed over by hand.

    Logits are linear in what comes before, and divided by the temperature.
    """
    model = program.model.fn
    hidden = all_vectors(2, len(model.latents)).double()
    with torch.no_grad():
        prior = torch.distributions.Bernoulli(logits=model.prior(hidden).squeeze(-1) / temperature)
        log_h = prior.log_prob(hidden).sum(-1)
        logits = model.decoder(x.unsqueeze(1), hidden).squeeze(-1) / temperature
        log_x = torch.distributions.Bernoulli(logits=logits).log_prob(x.unsqueeze(1)).sum(-1)
    return (log_h + log_x).logsumexp(-1).exp()


@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]])
def test_darn_sums_to_one_and_is_estimated_and_drawn(order: Any) -> None:
    program = built(partial(DARN, 4, 3), order=order)
    x = all_vectors(2, 4).double()
    probs = darn_densities(program, x)
    assert probs.sum().item() == pytest.approx(1, abs=1e-10)
    found = ImportanceSampling(4000)(program, x)
    z = (found.log_z - probs.log()) / found.std_error
    assert z.abs().max() < 4.5
    assert frequencies_agree(program.sample(4000), probs)
    cold = darn_densities(program, x, temperature=0.4)
    assert frequencies_agree(program.sample(4000, temperature=0.4), cold)
    assert not frequencies_agree(program.sample(4000, temperature=0.4), probs)
    with pytest.raises(ValueError, match="expected a positive number"):
        program.sample(2, temperature=0.0)


def test_darn_remembers_and_draws_alike() -> None:
    program = built(partial(DARN, 6, 4, order=[2, 0, 3, 1, 5, 4]))
    h = all_vectors(2, 4).double()
    law = program.model.fn.conditional(h)
    assert law.stepper is not None
    naive = type(law)(law.net, law.conditional, law.start, law.order)
    torch.manual_seed(0)
    expected = naive.sample((5,))
    torch.manual_seed(0)
    assert torch.equal(law.sample((5,)), expected)


def test_darn_learns_by_vimco() -> None:
    """Twins: the last bit repeats the first, three others are free."""
    x = torch.cat([BINARY[:, :4], BINARY[:, :1]], 1).float()
    torch.manual_seed(0)
    program = DARN(5, 3)
    adam = partial(torch.optim.Adam, lr=3e-2)
    fit(program, x, VIMCO(4), epochs=150, optimizer=adam, progress=False, compile=False)
    mean = darn_densities(program.double(), x.double()).log().mean().item()
    assert mean == pytest.approx(-4 * 0.6931, abs=0.15)
