"""Discrete latents summed out exactly, against sums by brute force over all their values."""

import itertools
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from ppl_dgm import Program, log_weights
from ppl_dgm.evidence import Exact

X = torch.tensor([0.3, -1.2, 2.0, 0.7, 1.1])
WEIGHTS, LOCS = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-1.0, 0.5, 2.0])
PARALLEL = {"enumerate": "parallel"}


def mixture(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
        pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x)


def mixture_truth(x: Tensor, locs: Tensor = LOCS) -> Tensor:
    """log sum_k pi_k N(x | m_k, 1) over the last dimension of `locs`."""
    return (WEIGHTS.log() + Normal(locs, 1.0).log_prob(x.unsqueeze(-1))).logsumexp(-1)


def test_mixture() -> None:
    program = Program(mixture)
    weights = log_weights(program, X, num_particles=3)
    assert program.structure.enumerated == ("k",)
    assert program.density == "exact"
    assert torch.allclose(weights, mixture_truth(X).expand(3, 5), atol=1e-5)


@pytest.mark.parametrize("apart", [10.0, 200.0])
def test_observations_may_contradict_one_another(apart: float) -> None:
    """Two sites favour different values by apart^2 / 2 nats; exponentials of 745 are zero."""
    locs = apart * torch.tensor([[0.0, 0.0], [1.0, -1.0], [-3.0, 2.0]])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
            for site in range(2):
                pyro.sample(f"x{site}", dist.Normal(locs[k, site], 1.0), obs=x[:, site])

    x = torch.tensor([[apart, 0.1], [0.2, -apart]], requires_grad=True)
    terms = WEIGHTS.log() + Normal(locs, 1.0).log_prob(x.unsqueeze(1)).sum(-1)
    (expected,) = torch.autograd.grad(terms.logsumexp(-1).sum(), x)
    found = Program(model).bind(x.detach()).log_joint({}).total[0]
    torch.testing.assert_close(found, terms.logsumexp(-1).detach())
    loss = Program(model).bind(x).log_joint({}).total[0]
    torch.testing.assert_close(
        torch.autograd.grad(loss.sum(), x)[0], expected, rtol=1e-4, atol=1e-4
    )


def test_chains_of_states_may_contradict_their_data() -> None:
    """A hidden Markov model whose states hardly move, at data that jump."""
    stays = torch.tensor([[0.0, -900.0], [-900.0, 0.0]])
    locs, x = torch.tensor([0.0, 60.0]), torch.tensor([0.0, 60.0, 60.0])

    def model(x: Tensor) -> None:
        k = 0
        for turn in pyro.markov(range(3)):
            k = pyro.sample(f"k{turn}", dist.Categorical(logits=stays[k]), infer=PARALLEL)
            pyro.sample(f"x{turn}", dist.Normal(locs[k], 1.0), obs=x[turn])

    paths = torch.tensor(list(itertools.product(range(2), repeat=3)))
    before = torch.cat([torch.zeros(8, 1).long(), paths[:, :-1]], 1)
    truth = (stays[before, paths] + Normal(locs[paths], 1.0).log_prob(x)).sum(1).logsumexp(0)
    assert truth.item() == pytest.approx(-902.76, abs=0.01)
    found = Program(model).bind(x).log_joint({}).total
    torch.testing.assert_close(found.squeeze(), truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_sums_keep_what_their_exponentials_lose(dtype: torch.dtype) -> None:
    """Two chains that only rise, at data far from where they begin.

    A step of both sums more numbers than are made at once.
    """
    num_states, num_data, scale = 8, 40, 0.3
    rises = (0.7 * torch.eye(8) + 0.3 * torch.eye(8).roll(1, 1)).triu().to(dtype).log()
    states = torch.arange(num_states)
    x = (18.9 * torch.linspace(1.0, 0.9, num_data)[:, None]).expand(-1, 3).to(dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", num_data):
            y, z = 0, 0
            for t in pyro.markov(range(3)):
                y = pyro.sample(f"y{t}", dist.Categorical(logits=rises[y]), infer=PARALLEL)
                z = pyro.sample(f"z{t}", dist.Categorical(logits=rises[z]), infer=PARALLEL)
                pyro.sample(f"x{t}", dist.Normal(y + 1.7 * z, scale), obs=x[:, t])

    moves = rises.double().log_softmax(-1)
    both = (moves[:, None, :, None] + moves[None, :, None, :]).reshape(64, 64)
    locs = (states[:, None] + 1.7 * states.double()).reshape(64)
    state = torch.full((num_data, 64), -torch.inf, dtype=torch.float64)
    state[:, 0] = 0.0
    for t in range(3):
        state = (state.unsqueeze(-1) + both).logsumexp(1)
        state = state + Normal(locs, scale).log_prob(x[:, t, None].double())
    found = Exact()(Program(model, site="x0"), x)
    assert found.reliable
    torch.testing.assert_close(found.log_z, state.logsumexp(1), rtol=1e-6, atol=0)
    loss = Program(model, site="x0").bind(x).log_joint({}).total[0]
    torch.testing.assert_close(loss.double(), state.logsumexp(1), rtol=1e-5, atol=0)


def test_mixture_with_drawn_means() -> None:
    """A global continuous latent beside local discrete ones."""

    def model(x: Tensor | None = None) -> None:
        with pyro.plate("parts", 3):
            locs = pyro.sample("locs", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
            pyro.sample("x", dist.Normal(locs[k] if locs.dim() == 1 else pick(locs, k), 1.0), obs=x)

    bound = Program(model).bind(X)
    values = bound.draw(6).values
    joint = bound.log_joint(values)
    truth = torch.stack([mixture_truth(X, locs).sum() for locs in values["locs"]])
    assert torch.allclose(joint.likelihood, truth, atol=1e-4)
    assert torch.allclose(joint.prior, Normal(0.0, 2.0).log_prob(values["locs"]).sum(-1), atol=1e-5)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """`values[..., index]` with leading dimensions in common."""
    return sum(values[..., k : k + 1] * (index == k) for k in range(values.shape[-1]))


TRANSITIONS = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
EMISSIONS = torch.tensor([-1.0, 1.5])


def hidden_markov(series: Tensor, noise: Tensor | float = 1.0) -> None:
    """Series `[data, steps]` under a hidden Markov chain of two states."""
    with pyro.plate("data", len(series), dim=-1):
        z: Tensor | int = 0
        for t in pyro.markov(range(series.shape[1])):
            z = pyro.sample(f"z{t}", dist.Categorical(TRANSITIONS[z]), infer=PARALLEL)
            pyro.sample(f"x{t}", dist.Normal(EMISSIONS[z], noise), obs=series[:, t])


def hidden_markov_truth(series: Tensor, noise: float = 1.0) -> Tensor:
    """log of the sum over all paths, one after the other."""
    total = torch.zeros(len(series), dtype=torch.float64)
    for path in itertools.product(range(2), repeat=series.shape[1]):
        prior = math.prod(TRANSITIONS[a, b].item() for a, b in itertools.pairwise((0, *path)))
        total += (
            prior * Normal(EMISSIONS[list(path)], noise).log_prob(series).sum(-1).double().exp()
        )
    return total.log().float()


SERIES = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def test_hidden_markov_model() -> None:
    program = Program(hidden_markov, site="x0")
    assert torch.allclose(log_weights(program, SERIES)[0], hidden_markov_truth(SERIES), atol=1e-4)


def noisy_markov(scalar: Callable) -> Callable:
    def model(series: Tensor) -> None:
        noise = pyro.sample("noise", dist.LogNormal(0.0, 0.3))
        hidden_markov(series, scalar(noise))

    return model


@pytest.mark.parametrize("way", ["plate", "vmap"])
def test_hidden_markov_model_under_a_drawn_parameter(way: str) -> None:
    scalar = (lambda v: v) if way == "plate" else (lambda v: v.reshape(()))
    program = Program(noisy_markov(scalar), site="x0")
    bound = program.bind(SERIES)
    assert bound.structure.model_runs == way
    values = bound.draw(3).values
    truth = torch.stack(
        [hidden_markov_truth(SERIES, noise.item()).sum() for noise in values["noise"]]
    )
    assert torch.allclose(bound.log_joint(values).likelihood, truth, atol=1e-3)


def global_discrete(x: Tensor | None = None) -> None:
    """One discrete latent for all data, with a continuous one drawn."""
    k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(LOCS[k] + shift, 1.0), obs=x)


def test_global_discrete_latent() -> None:
    bound = Program(global_discrete).bind(X)
    values = bound.draw(4).values
    terms = Normal(LOCS[:, None, None] + values["shift"][:, None], 1.0).log_prob(X).sum(-1)
    truth = (WEIGHTS.log()[:, None] + terms).logsumexp(0)
    joint = bound.log_joint(values)
    assert torch.allclose(joint.likelihood, truth, atol=1e-4)
    assert torch.allclose(joint.prior, Normal(0.0, 1.0).log_prob(values["shift"]), atol=1e-5)


def test_discrete_latent_of_a_nested_plate() -> None:
    """Three repeats of each datum, each with a component, around the datum's own latent."""
    y = torch.randn(4, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("repeats", 3, dim=-2):
                k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
                pyro.sample("x", dist.Normal(LOCS[k] + z, 1.0), obs=x.mT)

    bound = Program(model).bind(y)
    values = bound.draw(5).values
    truth = mixture_truth(y, LOCS + values["z"][..., None, None]).sum(-1)
    joint = bound.log_joint(values)
    assert torch.allclose(joint.likelihood, truth, atol=1e-4)
    assert torch.allclose(joint.prior, Normal(0.0, 1.0).log_prob(values["z"]), atol=1e-5)


def test_discrete_latent_of_the_datum_above_repeats() -> None:
    """One component for all repeats of a datum: the product over repeats is inside the sum."""
    y = torch.randn(4, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
            with pyro.plate("repeats", 3, dim=-2):
                pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x.mT)

    terms = Normal(LOCS[:, None, None], 1.0).log_prob(y).sum(-1)
    truth = (WEIGHTS.log()[:, None] + terms).logsumexp(0)
    assert torch.allclose(log_weights(Program(model), y)[0], truth, atol=1e-4)


def downstream(x: Tensor | None = None) -> None:
    """A continuous latent whose prior depends on a summed-out discrete one."""
    with pyro.plate("data", 1 if x is None else len(x)):
        k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(LOCS[k], 0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_continuous_latent_downstream_of_a_discrete_one() -> None:
    """The prior proposal's density is the mixture sum_k pi_k N(z | m_k, 0.5).

    So log w = log p(x | z).
    """
    bound = Program(downstream).bind(X)
    draw = bound.draw(4)
    marginal = (
        WEIGHTS.log() + Normal(LOCS, 0.5).log_prob(draw.values["z"].unsqueeze(-1))
    ).logsumexp(-1)
    joint = bound.log_joint(draw.values)
    assert torch.allclose(joint.prior, marginal, atol=1e-5)
    assert torch.allclose(draw.log_prob, marginal, atol=1e-5)
    assert torch.allclose(joint.likelihood, Normal(draw.values["z"], 1.0).log_prob(X), atol=1e-5)
    assert torch.allclose(bound.log_guide(draw.values), marginal, atol=1e-5)


def test_its_prior_draws_follow_the_mixture() -> None:
    draws = Program(downstream).bind(X).draw(4000).values["z"].flatten()
    mean = (WEIGHTS * LOCS).sum()
    variance = (WEIGHTS * LOCS**2).sum() - mean**2 + 0.25
    assert abs(draws.mean() - mean) < 4.5 * (variance / 20000).sqrt()
    assert abs(draws.var() / variance - 1) < 0.05


def test_its_evidence_by_importance_sampling() -> None:
    truth = (WEIGHTS.log() + Normal(LOCS, math.sqrt(1.25)).log_prob(X.unsqueeze(-1))).logsumexp(-1)
    for seed, guide in ((1, None), (2, wide_guide)):
        ratio = (
            log_weights(Program(downstream, guide), X, num_particles=5000, seed=seed) - truth
        ).exp()
        error = ratio.std(0) / 5000**0.5
        assert bool(((ratio.mean(0) - 1).abs() < 4.5 * error).all())


def wide_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2 + 0.3, 1.2))


def test_unmarked_discrete_latents_are_drawn_unless_asked_for() -> None:
    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS))
            pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x)

    program = Program(model)
    bound = program.bind(X)
    values = bound.draw(50).values
    assert torch.allclose(
        bound.log_joint(values).likelihood, Normal(LOCS[values["k"]], 1.0).log_prob(X), atol=1e-5
    )
    summed = program.bind(X, sum_out=True)
    assert summed.structure.enumerated == ("k",)
    assert torch.allclose(summed.log_joint({}).total[0], mixture_truth(X), atol=1e-5)


def test_a_guide_may_draw_what_is_marked() -> None:
    """A marked latent that the guide samples is drawn, not summed."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(torch.ones(3) / 3))

    program = Program(mixture, guide)
    ratio = (log_weights(program, X, num_particles=6000, seed=0) - mixture_truth(X)).exp()
    assert program.structure.enumerated == ()
    assert bool(((ratio.mean(0) - 1).abs() < 4.5 * ratio.std(0) / 6000**0.5).all())


def test_masks_apply_inside_the_sum() -> None:
    mask = torch.tensor([True, False, True, True, False])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=mask[: len(x)]):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
            pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x)

    assert torch.allclose(log_weights(Program(model), X)[0], mixture_truth(X) * mask, atol=1e-5)


@pytest.mark.parametrize("wrapped", [False, True])
def test_padded_series_have_the_evidence_of_the_series(wrapped: bool) -> None:
    """A masked step of a hidden Markov model adds nothing, not log of the number of states."""
    start, emit = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    move = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    x, lengths = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]), torch.tensor([4, 2, 3])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            state = None
            for t in pyro.markov(range(4)):
                chances = dist.Categorical(start if state is None else move[state])
                with poutine.mask(mask=True if wrapped else t < lengths):
                    hidden = chances.mask(t < lengths) if wrapped else chances
                    state = pyro.sample(f"z{t}", hidden, infer=PARALLEL)
                    pyro.sample(
                        f"x{t}", dist.Categorical(emit[state]).mask(t < lengths), obs=x[:, t]
                    )

    def forward(series: Tensor) -> Tensor:
        alpha = start * emit[:, series[0]]
        for entry in series[1:]:
            alpha = (alpha @ move) * emit[:, entry]
        return alpha.sum().log()

    truth = torch.stack(
        [forward(series[:length]) for series, length in zip(x, lengths, strict=True)]
    )
    assert torch.allclose(log_weights(Program(model), x)[0], truth, atol=1e-5)


def test_prior_and_likelihood_part_at_the_drawn_latents() -> None:
    """Summed out with the data where nothing drawn depends on them.

    Else p(x | z) is p(x, z) over p(z).
    """

    def local(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
            pyro.sample("x", dist.Normal(loc + LOCS[k], 1.0), obs=x)

    def above(x: Tensor) -> None:
        k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
        loc = pyro.sample("loc", dist.Normal(LOCS[k], 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    loc = torch.tensor([0.3, -1.0])
    parts = Program(local).bind(X).log_joint({"loc": loc})
    each = WEIGHTS.log() + dist.Normal(loc[:, None, None] + LOCS, 1.0).log_prob(X[:, None])
    assert torch.allclose(parts.prior, dist.Normal(0.0, 3.0).log_prob(loc), atol=1e-5)
    assert torch.allclose(parts.likelihood, each.logsumexp(-1).sum(-1), atol=1e-4)
    parts = Program(above).bind(X).log_joint({"loc": loc})
    assert torch.allclose(parts.prior, mixture_truth(loc), atol=1e-5)
    assert torch.allclose(
        parts.likelihood, dist.Normal(loc[:, None], 1.0).log_prob(X).sum(-1), atol=1e-4
    )


def test_masked_observations_of_summed_latents_vanish() -> None:
    mask = torch.tensor([True, False, True, True, False])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
            with poutine.mask(mask=mask[: len(x)]):
                pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x)

    assert torch.allclose(log_weights(Program(model), X)[0], mixture_truth(X) * mask, atol=1e-5)


def test_a_common_scale_applies_outside_the_sum() -> None:
    program = Program(poutine.scale(mixture, scale=4.0))
    joint = program.bind(X).log_joint({})
    assert joint.scale == 4
    assert torch.allclose(joint.total[0], mixture_truth(X), atol=1e-5)


def test_minibatch_scale_of_summed_latents_beside_global_ones() -> None:
    def model(x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), poutine.scale(scale=10.0):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
            pyro.sample("x", dist.Normal(LOCS[k] + shift, 1.0), obs=x)

    bound = Program(model).bind(X)
    values = bound.draw(4).values
    truth = 10 * mixture_truth(X, LOCS + values["shift"][:, None, None]).sum(-1)
    assert torch.allclose(bound.log_joint(values).likelihood, truth, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_sums_that_share_nothing_have_scales_of_their_own(weight: float | Tensor) -> None:
    def model(x: Tensor, y: Tensor) -> None:
        for name, data, scale in (("x", x, weight), ("y", y, 3.0)):
            with pyro.plate(f"{name}s", len(data)), poutine.scale(scale=scale):
                k = pyro.sample(f"{name}_part", dist.Categorical(WEIGHTS), infer=PARALLEL)
                pyro.sample(name, dist.Normal(LOCS[k], 1.0), obs=data)

    truth = 0.5 * mixture_truth(X).sum() + 3 * mixture_truth(X[:2]).sum()
    assert torch.allclose(log_weights(Program(model), X, X[:2])[0], truth, rtol=1e-5)


def test_turns_of_a_sequential_data_plate_are_summed_out_each() -> None:
    def model(x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            shift = pyro.sample(f"shift{i}", dist.Normal(0.0, 1.0))
            k = pyro.sample(f"k{i}", dist.Categorical(WEIGHTS), infer=PARALLEL)
            with pyro.plate(f"twice{i}", 2):
                pyro.sample(f"x{i}", dist.Normal(LOCS[k] + shift, 1.0), obs=x[i].expand(2))

    bound = Program(model).bind(X)
    values = bound.draw(3).values
    shifts = torch.stack([values[f"shift{i}"] for i in range(5)], -1).reshape(3, 5)
    log_prob = 2 * Normal(LOCS + shifts[..., None], 1.0).log_prob(X[:, None])
    assert torch.allclose(
        bound.log_joint(values).likelihood, (WEIGHTS.log() + log_prob).logsumexp(-1), atol=1e-4
    )


def test_turns_that_share_a_sum_have_no_evidence_each() -> None:
    def model(x: Tensor) -> None:
        z: Tensor | int = 0
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z{i}", dist.Categorical(TRANSITIONS[z]), infer=PARALLEL)
            pyro.sample(f"x{i}", dist.Normal(EMISSIONS[z], 1.0), obs=x[i])

    with pytest.raises(
        ValueError, match=r"sequential data plate 'data' share .*\['z0', 'x0'.*pyro.markov"
    ):
        log_weights(Program(model), X)


def test_unlike_scales_of_one_sum_are_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
            with poutine.scale(scale=2.0):
                pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x)

    with pytest.raises(ValueError, match="different poutine.scale factors.*Scale them alike"):
        log_weights(Program(model), X)


def test_gradients_of_a_sum_are_posterior_averages() -> None:
    """d/dm_k log p(x) = p(k | x) (x - m_k)."""

    def model(x: Tensor | None = None) -> None:
        locs = pyro.param("locs", LOCS.clone())
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=PARALLEL)
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    program = Program(model)
    program.bind(X).log_joint({}).total.sum().backward()
    joint = WEIGHTS.log() + Normal(LOCS, 1.0).log_prob(X[:, None])
    truth = (joint.softmax(-1) * (X[:, None] - LOCS)).sum(0)
    assert torch.allclose(program.get_parameter("locs").grad, truth, atol=1e-5)


def test_pyros_own_loss_sums_out_what_a_program_without_guide_marks() -> None:
    program = Program(mixture).initialise(X)
    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(program.model, program.guide, X)
    assert loss == pytest.approx(-float(mixture_truth(X).sum()), rel=1e-5)


def test_pyros_own_loss_sums_out_a_chain() -> None:
    moves = torch.tensor([[0.7, 0.3], [0.4, 0.6]])

    def chain(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k: Tensor | int = 0
            for t in pyro.markov(range(3)):
                k = pyro.sample(f"k{t}", dist.Categorical(moves[k]), infer=PARALLEL)
                pyro.sample(f"x{t}", dist.Normal(LOCS[k], 1.0), obs=x[:, t])

    x = torch.randn(4, 3)
    density = Normal(LOCS[:2], 1.0).log_prob(x.unsqueeze(-1)).exp()  # [data, time, values]
    truth = sum(
        (
            moves[0, a]
            * moves[a, b]
            * moves[b, c]
            * density[:, 0, a]
            * density[:, 1, b]
            * density[:, 2, c]
        )
        for a, b, c in itertools.product(range(2), repeat=3)
    )
    program = Program(chain).initialise(x)
    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(program.model, program.guide, x)
    assert loss == pytest.approx(-float(torch.as_tensor(truth).log().sum()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_finer_than_the_literals_of_a_program(dtype: torch.dtype) -> None:
    """NumPy's doubles meet weights in single precision."""

    def model(x: Tensor) -> None:
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", dist.Categorical(torch.tensor([0.25, 0.75])), infer={"enumerate": "parallel"}
            )
            pyro.sample("x", dist.Normal(locs[..., z], 1.0), obs=x)

    x = torch.tensor([-0.5, 2.0], dtype=dtype)
    bound, locs = Program(model).bind(x), torch.tensor([[0.3, 1.0]])
    terms = dist.Normal(locs.double(), 1.0).log_prob(x.double().unsqueeze(-1))
    truth = (terms + torch.tensor([0.25, 0.75]).double().log()).logsumexp(-1).sum()
    found = bound.log_joint({"locs": locs}).likelihood
    assert found.dtype == dtype
    assert found.item() == pytest.approx(truth.item(), abs=1e-5)
