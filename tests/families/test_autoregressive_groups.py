"""Groups of dimensions drawn together, images from coarse to fine, contexts, all orders."""

from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pyro.poutine as poutine
import pytest
import torch
from cases import all_vectors
from causal import Make, built, frequencies_agree, naively, seen
from torch import Tensor
from torch.nn import functional as F

from ppl_dgm import fit, tasks
from ppl_dgm.compression import decode, encode, stack
from ppl_dgm.evidence import Exact
from ppl_dgm.families import (
    DARN,
    FVSBN,
    MADE,
    NADE,
    VQVAE,
    GatedPixelCNN,
    MultiscalePixelCNN,
    PixelCNN,
    PixelCNNPlusPlus,
    PixelSNAIL,
    PixelTransformer,
    RecurrentNet,
    WaveNet,
    likelihoods,
)
from ppl_dgm.nn.causal import CausalNet
from ppl_dgm.nn.nade import NADENet
from ppl_dgm.nn.sequence import WaveNetNet

DIMS, WIDE = 8, (1, 2, 4)
GROUPS = [3, [1, 2, 0], [7, 6], 5, 4]
BINARY = all_vectors(2, DIMS).double()
levels = likelihoods.DiscretisedLogistic(2, 2)
GROUPED: dict[str, Make] = {
    "fvsbn": partial(FVSBN, DIMS, order=GROUPS),
    "made": partial(MADE, DIMS, [20, 20], order=GROUPS),
    "made of drawn masks": partial(MADE, DIMS, [30, 30], order=GROUPS, seed=3),
    "made with direct connections": partial(MADE, DIMS, [3], order=GROUPS, direct=True),
    "made of one group": partial(MADE, DIMS, [9], order=[list(range(DIMS))]),
    "nade": partial(NADE, DIMS, 5, order=GROUPS),
    "eonade": partial(NADE, DIMS, 5, order=GROUPS, all_orders=True),
    "multiscale": partial(MultiscalePixelCNN, WIDE, 6, 1),
    "multiscale of two": partial(MultiscalePixelCNN, WIDE, 6, 1, 1),
    "multiscale of one": partial(MultiscalePixelCNN, WIDE, 6, 1, 0),
    "odd multiscale": partial(MultiscalePixelCNN, (1, 3, 3), 6, 1),
    "narrow multiscale": partial(MultiscalePixelCNN, (1, 5, 1), 6, 1),
    "colour multiscale": partial(MultiscalePixelCNN, (3, 2, 2), 6, 1),
    "multiscale of levels": partial(MultiscalePixelCNN, (2, 1, 3), 6, 1, likelihood=levels),
    "multiscale of a pixel": partial(MultiscalePixelCNN, (1, 1, 1), 6, 1),
}
IMAGES: dict[str, Make] = {
    "pixelcnn": partial(PixelCNN, WIDE, 6, 2),
    "gated pixelcnn": partial(GatedPixelCNN, WIDE, 4),
    "pixelcnn++": partial(PixelCNNPlusPlus, WIDE, 4, 2, 1, levels),
    "transformer": partial(PixelTransformer, WIDE, 8, 1, 2),
    "pixelsnail": partial(PixelSNAIL, WIDE, 8, 1, 1, 2),
    "multiscale": partial(MultiscalePixelCNN, WIDE, 6, 1),
}
VECTORS: dict[str, Make] = {
    "fvsbn": partial(FVSBN, DIMS),
    "made": partial(MADE, DIMS, [9]),
    "nade": partial(NADE, DIMS, 5),
    "gru": partial(RecurrentNet, DIMS, 5),
    "wavenet": partial(WaveNet, DIMS, 4),
}
GIVEN: dict[str, Make] = {
    **{
        f"{name} of a vector": partial(make, context=3) for name, make in (VECTORS | IMAGES).items()
    },
    **{f"{name} of half": partial(make, context=(1, 1, 2)) for name, make in IMAGES.items()},
    **{f"{name} of more": partial(make, context=(2, 3, 5)) for name, make in IMAGES.items()},
}


FAST = ("made", "nade", "odd multiscale")
slow = partial(pytest.param, marks=pytest.mark.slow)


def some(cases: dict[str, Make], *fast: str) -> list[Any]:
    """All cases, those that are not named slow."""
    marks = {name: () if name in fast else pytest.mark.slow for name in cases}
    return [pytest.param(make, id=name, marks=marks[name]) for name, make in cases.items()]


def steps_of(program: Any, member: int = 0) -> Tensor:
    """The step at which each dimension is drawn."""
    net: CausalNet = program.model.fn.net
    return net.steps[net.ranks[member]]


def contexts(program: Any, num: int) -> Tensor:
    """Contexts of a program."""
    generator = torch.Generator().manual_seed(5)
    size = program.model.fn.net.num_context
    return torch.rand(num, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", [name if name in FAST else slow(name) for name in GROUPED])
def test_a_group_sees_earlier_groups_only_and_sums_to_one(name: str) -> None:
    program = built(GROUPED[name])
    net = program.model.fn.net
    points = torch.rand(4, net.num_dims).double()
    found = torch.stack([seen(program, x) for x in points]).any(0)
    earlier = net.steps[:, None] > net.steps[None, :]
    assert not bool((found & ~earlier).any())
    if name not in ("made", "made of drawn masks"):
        assert torch.equal(found, earlier)
    values = all_vectors(2, net.num_dims).double()
    assert Exact()(program, values).log_z.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", [name if name in FAST else slow(name) for name in GROUPED])
def test_groups_are_drawn_from_their_density(name: str) -> None:
    program = built(GROUPED[name])
    values = all_vectors(2, program.model.fn.net.num_dims).double()
    draws = program.sample(4000)
    assert frequencies_agree(draws, Exact()(program, values).log_z.exp())
    torch.manual_seed(0)
    expected = naively(program, 6, temperature=0.7)
    torch.manual_seed(0)
    assert torch.equal(program.sample(6, temperature=0.7), expected)


@pytest.mark.parametrize("make", [partial(MADE, DIMS, [20]), partial(NADE, DIMS, 5)])
def test_several_orders_have_groups_of_one_size(make: Make) -> None:
    program = built(partial(make, order=GROUPS, orders=3))
    each = [law.log_prob(BINARY).exp() for law in program.model.fn.distribution().laws]
    for member, probs in enumerate(each):
        assert steps_of(program, member).bincount().tolist() == [1, 3, 2, 1, 1]
        assert probs.sum().item() == pytest.approx(1, abs=1e-9)
    assert torch.allclose(Exact()(program, BINARY).log_z.exp(), torch.stack(each).mean(0))
    assert frequencies_agree(program.sample(4000), torch.stack(each).mean(0).detach())


def test_darn_draws_groups() -> None:
    program = built(partial(DARN, 5, 3, order=[[1, 2], 0, [4, 3]]))
    h = all_vectors(2, 3).double()
    with torch.no_grad():
        law = program.model.fn.conditional(h.unsqueeze(1))
        total = law.log_prob(all_vectors(2, 5).double()).exp().sum(1)
    assert torch.allclose(total, torch.ones_like(total))
    assert program.sample(7).shape == (7, 5)


def test_a_draw_takes_few_passes() -> None:
    """Of 28 x 28 pixels one, and three for each of five scales."""
    program = MultiscalePixelCNN((1, 28, 28), 4, 1)
    passes = []
    for scale in program.model.fn.net.scales:
        scale.first.register_forward_hook(lambda *args: passes.append(args[2].shape[2:]))
    program.sample(2)
    passes.clear()
    program.sample(2)
    assert len(program.model.fn.order) == 16
    assert [tuple(size) for size in passes[::3]] == [(2, 2), (4, 4), (7, 7), (14, 14), (28, 28)]
    assert len(passes) == 15


@pytest.mark.parametrize(
    "name", ["nade", "made", *map(slow, ("odd multiscale", "colour multiscale"))]
)
def test_missing_parts_follow_their_conditional(name: str) -> None:
    """Of completions, against sums over all values; exact where the observed come first."""
    program = built(GROUPED[name])
    size = program.model.fn.net.num_dims
    values = all_vectors(2, size).double()
    log_probs = Exact()(program, values).log_z
    x = values[5:6]
    first = steps_of(program) < 2
    scattered = torch.arange(size) % 2 == 1
    for observed in (first, scattered):
        agrees = (values[:, observed] == x[:, observed]).all(-1)
        found = tasks.complete(program, x, observed, num_particles=4000, num_draws=4000)
        expected = torch.where(agrees, log_probs.exp(), 0.0)
        expected = (expected.unsqueeze(-1) * values).sum(0) / expected.sum()
        ess = found.diagnostics["ess"].item()
        error = (expected * (1 - expected) * (1 / ess + 1 / 4000)).sqrt()
        assert bool(((found.draws.mean((0, 1)) - expected).abs() <= 4.5 * error + 1e-3).all())
        if observed is first:
            assert ess == pytest.approx(4000, rel=1e-6)
        marginal = tasks.log_marginal(program, x, observed)
        truth = log_probs[agrees].logsumexp(0)
        assert marginal.log_prob.item() == pytest.approx(truth.item(), abs=1e-6)


@pytest.mark.skipif(stack.constriction is None, reason="needs constriction")
@pytest.mark.parametrize("settings", [slow({}), {"orders": 3}])
def test_groups_are_coded(settings: dict) -> None:
    program = built(partial(MADE, DIMS, [20], order=GROUPS, **settings))
    x = BINARY[torch.randint(256, (300,), generator=torch.Generator().manual_seed(1))]
    code = encode(program, x)
    assert torch.equal(decode(program, code), x)
    bits = -Exact()(program, x).log_z.sum().item() / 0.6931
    assert 8 * len(code) == pytest.approx(bits, abs=150 + 0.01 * bits)
    other = built(partial(MADE, DIMS, [20], order=[3, 1, 2, 0, [7, 6, 5, 4]], **settings))
    with pytest.raises(ValueError, match="another program"):
        decode(other, code)


def test_parameters_load_in_their_own_groups_alone(tmp_path: Path) -> None:
    program = built(GROUPED["nade"])
    program.save(tmp_path / "net.pt")
    twin = GROUPED["nade"]().double().eval().load(tmp_path / "net.pt")
    assert torch.equal(Exact()(twin, BINARY).log_z, Exact()(program, BINARY).log_z)
    for other in ([3, [1, 2, 0], [7, 6, 5], 4], [3, 1, 2, 0, 7, 6, 5, 4]):
        with pytest.raises(ValueError, match="another order|does not hold the parameters"):
            NADE(DIMS, 5, order=other).double().load(tmp_path / "net.pt")


@pytest.mark.parametrize("make", some(GIVEN, "nade of a vector", "gated pixelcnn of half"))
def test_probabilities_given_a_context_sum_to_one_and_differ(make: Make) -> None:
    program = built(make)
    y = contexts(program, 2)
    probs = [Exact()(program, BINARY, each.expand(256, -1)).log_z.exp() for each in y]
    assert probs[0].sum().item() == pytest.approx(1, abs=1e-9)
    assert not torch.allclose(*probs, atol=1e-5)
    torch.manual_seed(0)
    expected = naively(program, 6, y=y)
    torch.manual_seed(0)
    assert torch.equal(program.sample(6, y=y), expected)
    assert expected.shape == (6, 2, DIMS)


@pytest.mark.parametrize("make", some(IMAGES, "multiscale"))
def test_each_pixel_sees_all_of_a_context_image_and_the_earlier_pixels(make: Make) -> None:
    program = built(partial(make, context=(1, 1, 2)))
    net, y = program.model.fn.net, contexts(program, 1)
    x = torch.rand(1, DIMS).double()
    assert not bool(seen(program, x[0], context=y[0]).triu().any())
    reach = torch.autograd.functional.jacobian(lambda v: net(x, v).sum(-1), y).abs().sum((0, 2))
    assert bool((reach > 0).all())


@pytest.mark.slow
def test_draws_follow_the_density_given_a_context() -> None:
    program = built(partial(MultiscalePixelCNN, WIDE, 6, 1, context=(1, 1, 2)))
    y = contexts(program, 2)
    draws = program.sample(4000, y=y)
    for number, each in enumerate(y):
        probs = Exact()(program, BINARY, each.expand(256, -1)).log_z.exp()
        assert frequencies_agree(draws[:, number], probs)


SHARP = {
    "pixelcnn": partial(PixelCNN, (1, 4, 4), 8, 1, context=(1, 2, 2)),
    "multiscale": partial(MultiscalePixelCNN, (1, 4, 4), 8, 1, context=(1, 2, 2)),
}


@pytest.mark.parametrize("name", ["pixelcnn", slow("multiscale")])
def test_a_small_image_is_made_large(name: str) -> None:
    """Blocks of four equal pixels leave no doubt given one pixel of each."""
    torch.manual_seed(0)
    small = all_vectors(2, 4)
    x = F.interpolate(small.reshape(-1, 1, 2, 2), scale_factor=2).flatten(1)
    program = SHARP[name]()
    adam = partial(torch.optim.Adam, lr=2e-2)
    fit(program, (x, small), steps=120, optimizer=adam, progress=False, compile=False)
    assert Exact()(program.eval(), x, small).log_z.mean().item() > -0.1
    swapped = Exact()(program, x, small.flip(0)).log_z.mean().item()
    assert swapped < -10
    drawn = program.sample(1, y=small.reshape(-1, 1, 2, 2))[0]
    assert (drawn == x).double().mean().item() > 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixelcnn", "pixelcnn++", "transformer", "multiscale"])
def test_compiled_training_given_contexts_equals_eager(name: str) -> None:
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        program = IMAGES[name](context=(1, 1, 2))
        for module in program.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        data = (BINARY.float(), contexts(program, 256).float())
        settings: Any = {"steps": 12, "batch_size": 64, "progress": False, "compile": compiled}
        fit(program, data, optimizer=partial(torch.optim.Adam, lr=1e-2), **settings)
        results.append(Exact()(program.eval(), *data).log_z)
    assert torch.allclose(*results, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["made", "nade", "eonade", "multiscale"])
def test_compiled_training_of_groups_equals_eager(name: str) -> None:
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        program = GROUPED[name]()
        settings: Any = {"steps": 12, "batch_size": 64, "progress": False, "compile": compiled}
        fit(program, BINARY.float(), optimizer=partial(torch.optim.Adam, lr=1e-2), **settings)
        results.append(Exact()(program.eval(), BINARY.float()).log_z)
    assert torch.allclose(*results, atol=1e-4)


@pytest.mark.parametrize("name", ["nade", "multiscale", "pixelcnn++"])
def test_scores_of_groups_and_contexts_are_gradients(name: str) -> None:
    settings = {"order": GROUPS} if name == "nade" else {}
    program = built(partial((VECTORS | IMAGES)[name], **settings, context=2))
    x, y = BINARY[:3], contexts(program, 3)
    scores = program.fisher_scores(x, y)
    for n in range(3):
        total = program.bind(x[n : n + 1], y[n : n + 1]).log_joint({}).total.sum()
        gradients = torch.autograd.grad(total, list(program.parameters()), allow_unused=True)
        for score, gradient in zip(scores.values(), gradients, strict=True):
            wanted = torch.zeros_like(score[n]) if gradient is None else gradient
            assert torch.allclose(score[n], wanted, atol=1e-12)


def test_codes_with_an_autoregressive_decoder_bound_the_density() -> None:
    """An encoder learns codes by a plain decoder; pixels given them get a causal one."""
    torch.manual_seed(0)
    x = (torch.rand(40, 4) < 0.5).float()
    vqvae = VQVAE(4, num_codes=2, codebook_size=3, code_dim=2, hidden=[8], prior_hidden=[8])
    adam = partial(torch.optim.Adam, lr=1e-2)
    settings: Any = {"optimizer": adam, "steps": 40, "progress": False, "compile": False}
    fit(vqvae, x, **settings)
    codes = vqvae.eval().encode(x).float()
    prior = NADE(2, 6, likelihoods.Categorical(3))
    decoder = PixelCNN((1, 2, 2), 6, 1, context=2)
    fit(prior, codes, **settings)
    fit(decoder, (x, codes), **settings)
    prior, decoder = prior.eval().double(), decoder.eval().double()
    every, values = all_vectors(3, 2).double(), all_vectors(2, 4).double()
    log_prior = Exact()(prior, every).log_z
    joint = torch.stack(
        [
            log_p + Exact()(decoder, values, k.expand(16, -1)).log_z
            for k, log_p in zip(every, log_prior, strict=True)
        ]
    )
    assert joint.logsumexp(0).exp().sum().item() == pytest.approx(1, abs=1e-9)
    bound = Exact()(prior, codes).log_z + Exact()(decoder, x, codes).log_z
    index = (x.long() * torch.tensor([8, 4, 2, 1])).sum(-1)
    assert bool((bound < joint.logsumexp(0)[index]).all())
    draws = decoder.sample(1, y=prior.sample(2000)).squeeze(0)
    assert frequencies_agree(draws, joint.logsumexp(0).exp())


def levelled(y: Any) -> Any:
    """A program of 17 levels, given a small image of levels."""
    law = likelihoods.DiscretisedLogistic(17, 2)
    program = built(partial(PixelCNN, (1, 2, 2), 4, 1, law, context=(1, 1, 2)))
    return program.model.fn.context(y)


def test_context_images_are_scaled_as_the_data_are() -> None:
    y = torch.tensor([[0.0, 16.0], [8.0, 4.0]])
    expected = torch.tensor([[-1.0, 1.0], [0.0, -0.5]]).double()
    assert torch.equal(levelled(y), expected)
    assert torch.equal(levelled(y.to(torch.uint8).reshape(2, 1, 1, 2)), expected)


@pytest.mark.parametrize("law", ["bernoulli", "gaussian", likelihoods.ContinuousBernoulli()])
def test_context_images_of_bytes_are_refused_where_data_of_bytes_are_converted(law: Any) -> None:
    program, bytes_ = PixelCNN((1, 2, 2), 4, 1, law, context=(1, 1, 2)), torch.tensor([0, 200])
    y = bytes_.to(torch.uint8).reshape(1, 1, 1, 2)
    for use in (partial(program.sample, 1, y=y), partial(Exact(), program, torch.zeros(1, 4), y)):
        with pytest.raises(ValueError, match="the context images are bytes; as data they would be"):
            use()
    program.sample(1, y=(y > 127).float())


@pytest.mark.parametrize("settings", [{}, {"orders": 2}, {"order": [2, [0, 1], 3]}, {"context": 2}])
def test_an_eonade_sums_to_one_and_remembers(settings: dict) -> None:
    program = built(partial(NADE, 4, 5, all_orders=True, **settings))
    values = all_vectors(2, 4).double()
    y = contexts(program, 1) if "context" in settings else None
    data = (values,) if y is None else (values, y.expand(16, -1))
    probs = Exact()(program, *data).log_z.exp()
    assert probs.sum().item() == pytest.approx(1, abs=1e-9)
    given = {} if y is None else {"y": y}
    assert frequencies_agree(program.sample(4000, **given).flatten(0, -2), probs)
    torch.manual_seed(0)
    expected = naively(program, 6, **given)
    torch.manual_seed(0)
    assert torch.equal(program.sample(6, **given), expected)


def test_an_eonade_trains_on_all_orders() -> None:
    """Scores in training are those of the six orders of three dimensions, all equally often."""
    program = built(partial(NADE, 3, 5, all_orders=True)).train()
    values, net = all_vectors(2, 3).double(), program.model.fn.net
    orders = torch.tensor(list(permutations(range(3))))
    with torch.no_grad():
        params = [net(values, member=order).squeeze(-1) for order in orders]
        each = torch.stack(
            [
                -F.binary_cross_entropy_with_logits(p, values, reduction="none").sum(-1)
                for p in params
            ]
        )
    assert torch.allclose(each.exp().sum(-1), torch.ones(6).double())
    counts = torch.zeros(6)
    for _ in range(300):
        trace = poutine.trace(program.model).get_trace(values)
        trace.compute_log_prob()
        same = (each - trace.nodes["x"]["log_prob"]).abs().max(-1).values < 1e-12
        assert same.sum() == 1
        counts += same
    assert (counts - 50).abs().max() < 4.5 * (300 * 5 / 36) ** 0.5


def test_an_eonade_knows_what_it_knows() -> None:
    """A dimension that is known to be zero counts, as one that is unknown does not."""
    program = built(partial(NADE, 2, 3, all_orders=True))
    net, zero = program.model.fn.net, torch.zeros(1, 2).double()
    first, second = (net(zero, member=torch.tensor(order)) for order in ([0, 1], [1, 0]))
    assert not torch.allclose(first[0, 0], second[0, 0])


x2 = torch.ones(2, 3)
BAD = {
    "empty group": (lambda: NADE(3, order=[[0, 1], [], 2]), "empty group"),
    "group twice": (lambda: MADE(3, order=[[0, 1], [1, 2]]), "permutation of 0, ..., 2"),
    "groups of a sequence": (lambda: WaveNetNet(3, order=[[0, 1], 2]), "has groups"),
    "scales": (lambda: MultiscalePixelCNN((1, 6, 5), num_scales=4), "6 and 5 cannot be halved 4"),
    "no scales": (lambda: MultiscalePixelCNN((1, 4, 4), num_scales=-1), "at least 0"),
    "width": (lambda: MultiscalePixelCNN((1, 4, 4), width=0), "at least one"),
    "both": (lambda: NADE(3, num_classes=2, context=2), "both num_classes and context"),
    "context size": (lambda: NADE(3, context=0), "context is 0"),
    "context shape": (lambda: PixelCNN((1, 2, 2), context=(1, 0, 2)), "at least one"),
    "no contexts": (lambda: NADE(3, context=2).sample(2), "or the contexts"),
    "contexts of none": (lambda: NADE(3).bind(x2, torch.ones(2, 2)), "made without"),
    "context columns": (lambda: NADE(3, context=2).bind(x2, x2), "expected one for each datum"),
    "flat contexts": (lambda: NADE(3, context=1).bind(x2, x2[:, 0]), "expected one for each datum"),
    "nan": (lambda: NADE(3, context=3).bind(x2, x2 * torch.nan), "expected finite data"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()


WHOLE = [*range(40, 97), list(range(40)), *range(97, 100)]  # a group wider than a block
SPLIT = [*range(30), [30, 31, 32, 33], *range(34, 100)]  # a group across the end of one


@pytest.mark.parametrize("all_orders", [False, True])
@pytest.mark.parametrize("order", [None, WHOLE, SPLIT])
def test_nade_in_blocks_is_nade_one_dimension_after_the_other(order: Any, all_orders: bool) -> None:
    torch.manual_seed(0)
    net = NADENet(100, 6, 2, order, 0, 3, num_orders=2, all_orders=all_orders).double()
    if all_orders:
        torch.nn.init.normal_(net.known)
    x, context = torch.randn(4, 100).double(), torch.randn(4, 3).double()
    for member in range(2):
        step = net.stepper(x, context, member)
        params = torch.empty(4, 100, 2).double()
        for t, dims in enumerate(net.sequences[member]):
            params[:, dims] = step(t, x)
        torch.testing.assert_close(net(x, context, member), params)
