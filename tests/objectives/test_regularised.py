"""Free bits, beta-TC and combined bounds against closed forms, brute force and the ELBO."""

import math
from itertools import combinations

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch

from ppl_dgm import Program
from ppl_dgm.compile import TrainStep
from ppl_dgm.families import VAE
from ppl_dgm.objectives import CIWAE, ELBO, IWELBO, MIWAE, BetaTC, FreeBits, linear_warmup

X = torch.tensor([[0.3, -1.2], [1.0, 0.4], [-0.7, 2.0], [0.1, 0.5]])
SLOPE, SCALE = torch.tensor([0.9, 0.05]), torch.tensor([0.5, 0.98])


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.7).to_event(1), obs=x)


def guide(x):
    slope, scale = pyro.param("slope", SLOPE.clone()), pyro.param("scale", SCALE.clone())
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x * slope, scale).to_event(1))


def program():
    return Program(model, guide).initialise(X)


def kl(x=X, slope=SLOPE, scale=SCALE):
    """KL of each datum and dimension in closed form: `[data, 2]`."""
    return 0.5 * (scale.square() + (x * slope).square() - 1) - scale.log()


def likelihood(x=X, slope=SLOPE, scale=SCALE):
    """E_q log p(x | z) of each datum in closed form."""
    return (dist.Normal(x * slope, 0.7).log_prob(x) - 0.5 * (scale / 0.7).square()).sum(-1)


def loss(objective, pair, x=X, seed=0):
    torch.manual_seed(seed)
    return objective.loss(pair.model, pair.guide, x)


def gradients(objective, pair, repeats=300, x=X):
    names = dict(pair.named_parameters())
    rows = [
        torch.autograd.grad(
            objective.differentiable_loss(pair.model, pair.guide, x), list(names.values())
        )
        for _ in range(repeats)
    ]
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(names)}


# ---- free bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("nats", [0.0, 0.1, 0.4, 5.0])
def test_each_dimension_costs_at_least_its_free_nats(nats):
    pair = program()
    extra = loss(FreeBits(nats), pair) - loss(FreeBits(0.0), pair)
    mean = kl().mean(0)
    assert extra == pytest.approx(4 * (mean.clamp_min(nats) - mean).sum().item(), abs=1e-5)
    losses = torch.tensor([loss(FreeBits(nats), pair, seed=i) for i in range(300)])
    truth = -likelihood().sum() + 4 * mean.clamp_min(nats).sum()
    assert abs(losses.mean() - truth) < 4 * losses.std() / math.sqrt(300)


def test_sites_share_their_free_nats():
    total = kl().mean(0).sum().item()
    for nats in (0.5 * total, 2 * total):
        extra = loss(FreeBits(nats, per="site"), program()) - loss(
            FreeBits(0.0, per="site"), program()
        )
        assert extra == pytest.approx(4 * max(0.0, nats - total), abs=1e-5)
    assert loss(FreeBits(0.0, per="site"), program()) == pytest.approx(
        loss(FreeBits(0.0), program()), abs=1e-5
    )


def test_the_site_of_a_scalar_latent_is_its_one_dimension():
    def scalar_model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.7), obs=x)

    def scalar_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * SLOPE[0], SCALE[0]))

    pair = Program(scalar_model, scalar_guide)
    for nats in (0.0, 2.0):
        losses = [loss(FreeBits(nats, per=per), pair, X[:, 0]) for per in ("site", "dimension")]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_floored_dimension_feels_no_divergence():
    """Dimension 0 has KL above the floor, dimension 1 below it.

    Only the likelihood moves the latter.
    """
    slope, scale = SLOPE.clone().requires_grad_(), SCALE.clone().requires_grad_()
    assert kl().mean(0)[0] > 0.3 > kl().mean(0)[1]
    value = likelihood(slope=slope, scale=scale).sum() - 4 * kl(slope=slope, scale=scale).mean(0)[0]
    truth = dict(zip(("slope", "scale"), torch.autograd.grad(-value, (slope, scale)), strict=True))
    for name, draws in gradients(FreeBits(0.3), program()).items():
        assert bool(
            ((draws.mean(0) - truth[name]).abs() < 4.5 * draws.std(0) / math.sqrt(300)).all()
        )


def test_divergences_without_closed_form_are_estimated():
    def mixture_model(x):
        weights = dist.Categorical(torch.tensor([0.5, 0.5]))
        with pyro.plate("data", len(x)):
            prior = dist.MixtureSameFamily(weights, dist.Normal(torch.tensor([-1.0, 1.0]), 1.0))
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def simple_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, pyro.param("s", torch.tensor(0.6))))

    x = X[:, 0]
    pair = Program(mixture_model, simple_guide).initialise(x)
    for seed in range(
        5
    ):  # at no floor it is the ELBO's own estimate, draw by draw, unless that mean is negative
        divergence = loss(FreeBits(0.0), pair, x, seed) - loss(
            FreeBits(0.0, kl_weight=0.0), pair, x, seed
        )
        elbo = loss(ELBO(), pair, x, seed) - loss(ELBO(kl_weight=0.0), pair, x, seed)
        assert divergence == pytest.approx(max(elbo, 0.0), abs=1e-4)


def test_free_bits_for_latents_shared_by_all_data():
    def shared(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).expand([len(x)]), obs=x)

    def shared_guide(x):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))

    pair = Program(shared, shared_guide).initialise(X[:, 0])
    extra = loss(FreeBits(0.25), pair, X[:, 0]) - loss(FreeBits(0.0), pair, X[:, 0])
    assert extra == pytest.approx(0.25 - 0.005, abs=1e-5)


# ---- beta-TC -------------------------------------------------------------------------------------


def test_with_weights_one_beta_tc_is_the_elbo_draw_by_draw():
    for num_data in (4, 1000):
        for seed in range(3):
            assert loss(BetaTC(num_data, 1.0), program(), seed=seed) == pytest.approx(
                loss(ELBO(), program(), seed=seed), abs=1e-4
            )


def brute_force(z):
    """Mutual information, total correlation, divergence of dimensions at draws `[4, 2]`."""
    parts = []
    for i in range(len(z)):
        q = torch.stack([dist.Normal(x * SLOPE, SCALE).log_prob(z[i]).exp() for x in X])  # [4, 2]
        aggregate, marginals = q.prod(-1).mean().log(), q.mean(0).log().sum()
        prior = dist.Normal(0.0, 1.0).log_prob(z[i]).sum()
        parts.append(
            torch.stack([q[i].log().sum() - aggregate, aggregate - marginals, marginals - prior])
        )
    return torch.stack(parts).sum(0)


def test_parts_of_the_divergence_match_brute_force_on_all_data():
    torch.manual_seed(0)
    z = dist.Normal(X * SLOPE, SCALE).sample()
    information, correlation, dimensions = brute_force(z)
    plain = loss(BetaTC(4, 1.0), program())
    assert loss(BetaTC(4, 3.0), program()) - plain == pytest.approx(
        2 * correlation.item(), abs=1e-4
    )
    assert loss(BetaTC(4, 1.0, alpha=0.0), program()) - plain == pytest.approx(
        -information.item(), abs=1e-4
    )
    assert loss(BetaTC(4, 1.0, gamma=2.0), program()) - plain == pytest.approx(
        dimensions.item(), abs=1e-4
    )
    halved = loss(BetaTC(4, 1.0, kl_weight=0.5), program())
    assert plain - halved == pytest.approx(
        0.5 * (information + correlation + dimensions).item(), abs=1e-4
    )


def test_minibatches_stand_for_the_aggregate_posterior_without_bias():
    """Averaged over the minibatches of a datum, the weighted density is the mean over all data."""
    density = torch.rand(6, dtype=torch.float64)  # of one draw under each datum's guide
    for size in (2, 3, 6):
        estimates = []
        for others in combinations(range(1, 6), size - 1):
            rows = [0, *others]
            weights = BetaTC(6).log_mixing(torch.zeros(size, size, 1, dtype=torch.float64))[0].exp()
            estimates.append((weights * density[rows]).sum())
        assert torch.stack(estimates).mean().item() == pytest.approx(
            density.mean().item(), rel=1e-10
        )


def test_total_correlation_is_zero_where_dimensions_are_independent():
    """A guide that ignores the data: the aggregate posterior factorises."""

    def blind(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.3).to_event(1))

    pair = Program(model, blind).initialise(X)
    assert loss(BetaTC(100, 50.0), pair) == pytest.approx(loss(BetaTC(100, 1.0), pair), abs=1e-3)


def test_a_last_minibatch_of_one_is_the_elbo():
    assert loss(BetaTC(5), program(), X[:1]) == pytest.approx(
        loss(ELBO(), program(), X[:1]), abs=1e-5
    )


# ---- MIWAE, CIWAE --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("combined", "parts"),
    [
        (MIWAE(1, 6), [IWELBO(6)]),
        (MIWAE(6, 1), [ELBO(6)]),
        (CIWAE(6, 1.0), [ELBO(6)]),
        (CIWAE(6, 0.0), [IWELBO(6)]),
        (CIWAE(6, 0.5), [IWELBO(6), ELBO(6)]),
    ],
)
def test_combined_bounds_at_their_ends(combined, parts):
    pair = program()
    assert loss(combined, pair) == pytest.approx(
        sum(loss(part, pair) for part in parts) / len(parts), abs=1e-4
    )


def test_miwae_is_the_mean_of_smaller_bounds():
    pair = program()
    many, small = (
        torch.tensor([loss(objective, pair, seed=i) for i in range(400)])
        for objective in (MIWAE(3, 2), IWELBO(2))
    )
    assert abs(many.mean() - small.mean()) < 4 * (many.var() / 400 + small.var() / 400).sqrt()
    assert many.var() < 0.6 * small.var()


# ---- all of them ---------------------------------------------------------------------------------

OBJECTIVES = [FreeBits(0.2), BetaTC(4, 4.0), MIWAE(2, 3), CIWAE(3, 0.3)]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_scales_multiply_each_datum(objective):
    pair = program()

    def at(factor):
        torch.manual_seed(0)
        return type(objective).loss(
            objective, poutine.scale(pair.model, factor), poutine.scale(pair.guide, factor), X
        )

    assert at(10.0) == pytest.approx(10 * loss(objective, pair), rel=1e-4)
    ones = torch.ones(4)
    assert at(ones + torch.eye(4)[0]) + at(2 * ones - torch.eye(4)[0]) == pytest.approx(
        3 * at(1.0), rel=1e-4
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_they_are_captured_for_a_vae(objective):
    x = (torch.rand(4, 6) < 0.5).float()
    vae = VAE(6, 2, hidden=[8]).initialise(x)
    step = TrainStep(
        lambda batch: objective.differentiable_loss(vae.model, vae.guide, batch),
        torch.optim.SGD(vae.parameters(), lr=0.0),
        backend="eager",
    )
    step(x)  # captures
    torch.manual_seed(2)
    captured = step(x).item()
    assert captured == pytest.approx(loss(objective, vae, x, seed=2), rel=1e-4)


def test_annealed_weights_reach_every_objective():
    for make in (lambda w: FreeBits(0.1, kl_weight=w), lambda w: BetaTC(4, kl_weight=w)):
        annealed = make(linear_warmup(10))
        annealed.set_step(5)
        assert loss(annealed, program()) == pytest.approx(loss(make(0.5), program()), abs=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreeBits(-0.1), ">= 0"),
        (lambda: FreeBits(per="pixel"), "'dimension', 'site'"),
        (lambda: BetaTC(0), "at least one datum"),
        (lambda: BetaTC(4, -1.0), "weights >= 0"),
        (lambda: BetaTC(4, math.nan), "beta is nan; expected a finite number"),
        (lambda: MIWAE(0, 3), "num_bounds is 0"),
        (lambda: MIWAE(2, 2.5), "num_particles is 2.5"),
        (lambda: linear_warmup(10, start=-1.0), "weights >= 0"),
        (lambda: CIWAE(3, 1.5), "between 0 and 1"),
        (lambda: BetaTC(2).loss(model, guide, X), "num_data is 2"),
    ],
)
def test_bad_settings(make, message):
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=message):
        make()


def dependent_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.MultivariateNormal(x, torch.eye(2)))


def discrete_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 1.0).to_event(1), obs=x)


def discrete_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(0.5))


def masked_guide(x):
    with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0):
        pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def loop_model(x):
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z{i}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample(f"x{i}", dist.Normal(z, 0.7).to_event(1), obs=x[i])


def loop_guide(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z{i}", dist.Normal(x[i], 0.7).to_event(1))


@pytest.mark.parametrize(
    ("objective", "of_model", "of_guide", "message"),
    [
        (BetaTC(4), model, dependent_guide, "independent given the datum"),
        (BetaTC(4), discrete_model, discrete_guide, "VIMCO"),
        (FreeBits(), discrete_model, discrete_guide, "VIMCO"),
        (FreeBits(), model, masked_guide, "masked"),
        (FreeBits(), loop_model, loop_guide, "vectorised"),
    ],
)
def test_programs_they_do_not_apply_to(objective, of_model, of_guide, message):
    with pytest.raises(ValueError, match=message):
        objective.loss(of_model, of_guide, X)


def test_programs_without_a_divergence_per_latent_are_refused():
    lonely = Program(model).initialise(X)
    with pytest.raises(ValueError, match="no guide"):
        FreeBits().loss(lonely.model, lonely.guide, X)

    def summed(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(k.to(x).unsqueeze(-1), torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    pair = Program(summed, guide).initialise(X)
    with pytest.raises(ValueError, match=r"\['k'\] are summed out"):
        FreeBits().loss(pair.model, pair.guide, X)


def test_free_bits_of_zero_are_the_elbo_of_data_that_count_unlike():
    scale, x = torch.tensor([1.9, 0.1]), torch.tensor([0.0, 10.0])

    def model(x):
        with pyro.plate("data", 2), pyro.poutine.scale(scale=scale):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 2), pyro.poutine.scale(scale=scale):
            pyro.sample("z", dist.Normal(x, 1.0))

    divergence = x.square() / 2
    loss = (scale * (divergence - dist.Normal(0.0, 1.0).log_prob(x))).sum().item()
    assert FreeBits(0.0).loss(model, guide, x) == pytest.approx(loss, rel=1e-6)
