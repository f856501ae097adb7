"""Completions against conditional distributions in closed form and by enumeration."""

import math
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program
from ppl_dgm.conditionals.guides import FlowPosterior
from ppl_dgm.families import VAE, IndependentBernoulli, Mixture
from ppl_dgm.tasks import complete
from ppl_dgm.tasks.completion import shown

WEIGHT = torch.tensor([[1.0, 0.5, -1.0], [0.0, 1.0, 0.8]])
NOISE = 0.4
X = torch.tensor([[1.2, 0.3, 0.0], [-0.5, 0.0, 1.1]])
SEEN = torch.tensor([[True, True, False], [True, False, True]])


def factors(x=None):
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal((z.unsqueeze(-1) * WEIGHT).sum(-2), NOISE).to_event(1), obs=x)


def loose_guide(x=None):
    """A proposal that depends on all entries, also those that are missing."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x.unsqueeze(-1) * 0.3 * WEIGHT.T).sum(-2), 0.8).to_event(1))


def conditional(x, seen):
    """Mean and covariance of the missing entries given the others."""
    covariance = WEIGHT.T @ WEIGHT + NOISE**2 * torch.eye(3)
    inside, across = covariance[seen][:, seen], covariance[~seen][:, seen]
    gain = across @ torch.linalg.inv(inside)
    return gain @ x[seen], covariance[~seen][:, ~seen] - gain @ across.T


@pytest.mark.parametrize("guide", [None, loose_guide])
@pytest.mark.parametrize("rounds", [1, 3])
def test_gaussian_completions_have_the_conditional_moments(guide, rounds):
    found = complete(
        Program(factors, guide),
        X,
        SEEN,
        num_particles=20_000,
        num_draws=4000,
        rounds=rounds,
        seed=1,
        memory=2**26,
    )
    assert not found.warnings
    for i in range(2):
        mean, covariance = conditional(X[i], SEEN[i])
        draws = found.draws[:, i, ~SEEN[i]]
        assert torch.allclose(
            draws.mean(0), mean, atol=4.5 * (covariance.max() / 1500).sqrt().item()
        )
        assert torch.allclose(draws.var(0), covariance.diagonal(), rtol=0.12)
    assert torch.equal(found.draws[:, SEEN], X[SEEN].expand(4000, -1))
    assert torch.allclose(found.mean[SEEN], X[SEEN])


def test_placeholders_do_not_matter_to_the_result():
    other = torch.where(SEEN, X, torch.tensor(2.0))
    results = [
        complete(Program(factors, loose_guide), x, SEEN, num_particles=8000, num_draws=2000).mean
        for x in (X, other)
    ]
    assert torch.allclose(*results, atol=0.08)


def gaussian(weight, noise):
    """A linear-Gaussian program and the covariance of its data."""

    def model(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(weight.new_zeros(weight.shape[0]), 1.0).to_event(1))
            pyro.sample(
                "x", dist.Normal((z.unsqueeze(-1) * weight).sum(-2), noise).to_event(1), obs=x
            )

    return Program(model), weight.T @ weight + noise**2 * torch.eye(
        weight.shape[1], dtype=weight.dtype
    )


def scores(draws, seen, x, covariance):
    """Errors of means and covariances of independent draws of entries, in standard errors."""
    hidden = ~seen
    gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen][:, hidden]).T
    mean, inside = (
        gain @ x[seen],
        covariance[hidden][:, hidden] - gain @ covariance[seen][:, hidden],
    )
    found, n, variances = draws[:, hidden], len(draws), inside.diagonal()
    spread = (inside.square() + variances.outer(variances)) / n
    centred = found - mean
    return (found.mean(0) - mean) / (variances / n).sqrt(), (
        centred.T @ centred / n - inside
    ) / spread.sqrt()


@pytest.mark.parametrize("guide", [None, pytest.param(loose_guide, marks=pytest.mark.slow)])
def test_chains_have_the_conditional_moments(guide):
    found = complete(
        Program(factors, guide),
        X,
        SEEN,
        num_particles=500,
        num_draws=2000,
        method="hmc",
        seed=2,
        memory=2**24,
    )
    assert not found.warnings
    assert bool((found.diagnostics["acceptance"] > 0.6).all())
    covariance = WEIGHT.T @ WEIGHT + NOISE**2 * torch.eye(3)
    for i in range(2):
        assert all(
            part.abs().max() < 4 for part in scores(found.draws[:, i], SEEN[i], X[i], covariance)
        )
    assert torch.equal(found.draws[:, SEEN], X[SEEN].expand(2000, -1))
    assert found.posterior.draws["z"].shape == (2000, 2, 2)


def test_chains_find_the_posterior_that_prior_draws_miss():
    """Ten latents and precise data: of a thousand prior draws one has all the weight."""
    torch.manual_seed(3)
    program, covariance = gaussian(torch.randn(10, 16, dtype=torch.float64), 0.3)
    x = torch.linalg.cholesky(covariance) @ torch.randn(16, 3, dtype=torch.float64)
    x, seen = x.T, torch.arange(16) % 4 != torch.tensor([[0], [1], [3]])
    poor, right = (
        complete(program, x, seen, num_draws=500, method=method, seed=1)
        for method in ("resampling", "hmc")
    )
    assert bool((poor.posterior.ess < 3).all())
    assert poor.warnings
    assert not right.warnings
    for i in range(3):
        assert scores(poor.draws[:, i], seen[i], x[i], covariance)[0].abs().max() > 20
        assert all(
            part.abs().max() < 4 for part in scores(right.draws[:, i], seen[i], x[i], covariance)
        )


def positive(x=None):
    """A latent rate that is constrained, one observed and one missing count."""
    with pyro.plate("data", 1 if x is None else len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Poisson(rate.unsqueeze(-1).expand(*rate.shape, 2)).to_event(1), obs=x)


def test_chains_in_constrained_latents_follow_the_conjugate_posterior():
    counts = torch.tensor([[3.0, 0.0], [0.0, 9.0], [5.0, 1.0]])
    found = complete(
        Program(positive), counts, torch.tensor([True, False]), num_draws=4000, method="hmc"
    )
    shape = 2 + counts[:, 0]  # the rate is Gamma(shape, 2), the missing count negative binomial
    rates, missing = found.posterior.draws["rate"], found.draws[..., 1]
    assert bool(((rates.mean(0) - shape / 2).abs() < 4 * (shape / 4 / 4000).sqrt()).all())
    assert bool(((missing.mean(0) - shape / 2).abs() < 4 * (0.75 * shape / 4000).sqrt()).all())
    assert torch.allclose(
        rates.var(0), shape / 4, rtol=4 * (2 / 4000 * (1 + 3 / shape.min())).sqrt().item()
    )


@pytest.mark.slow
def test_chains_of_few_draws_and_of_data_in_parts():
    x, seen = X.repeat(20, 1), SEEN.repeat(20, 1)
    found = complete(
        Program(factors), x, seen, num_draws=5, method="hmc", num_moves=40, memory=2**20
    )
    assert found.draws.shape == (5, 40, 3)
    assert found.diagnostics["acceptance"].shape == found.diagnostics["r_hat"].shape == (40,)
    mean, covariance = conditional(X[0], SEEN[0])
    assert abs(found.mean[::2, 2].mean() - mean).item() < 4 * (covariance.item() / 100) ** 0.5
    again = complete(
        Program(factors), x, seen, num_draws=5, method="hmc", num_moves=40, memory=2**20
    )
    assert torch.equal(found.draws, again.draws)


def test_chains_that_have_not_met_raise_an_alarm():
    """Two modes far apart.

    Each chain stays in its own, and the resampled starts decide how many are in each.
    """

    def modes(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 3.0))
            pyro.sample(
                "x", dist.Normal(z.abs().unsqueeze(-1).expand(*z.shape, 2), 0.1).to_event(1), obs=x
            )

    found = complete(
        Program(modes), torch.tensor([[4.0, 0.0]]), torch.tensor([True, False]), method="hmc"
    )
    assert found.diagnostics["r_hat"].item() > 1.5
    assert "disagree" in found.warnings[0]


def narrow_guide(x=None):
    """The posterior given all entries: far too narrow for the posterior given some."""
    gain = torch.linalg.solve(WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(2), WEIGHT)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x.unsqueeze(-1) * gain.T).sum(-2), 0.5).to_event(1))


def test_later_rounds_bring_a_narrow_proposal_to_the_posterior():
    far = torch.where(SEEN, X, torch.tensor(4.0))
    once, later = (
        complete(Program(factors, narrow_guide), far, SEEN, rounds=rounds) for rounds in (1, 4)
    )
    assert bool((later.posterior.ess > 5 * once.posterior.ess).all())
    assert once.warnings
    assert not later.warnings


def test_guides_that_transform_auxiliary_noise():
    """A planar flow has no density at given latents.

    Its draws are weighted by their own completion's.
    """
    torch.manual_seed(0)
    posterior = FlowPosterior(2, "planar", num_context=3)
    encoder = torch.nn.Linear(3, posterior.num_params)
    with torch.no_grad():  # wide enough for the posterior
        encoder.weight.mul_(0.2)
        encoder.bias.copy_(torch.tensor([0.0, 0.0, 0.3, 0.3, 0.2, -0.1, 0.1]))

    def flow_guide(x=None):
        with pyro.plate("data", len(x)):
            posterior.draw("z", encoder(x))

    found = complete(
        Program(factors, flow_guide), X, SEEN, num_particles=20_000, num_draws=4000, seed=1
    )
    assert not found.warnings
    for i in range(2):
        mean, covariance = conditional(X[i], SEEN[i])
        draws = found.draws[:, i, ~SEEN[i]]
        assert torch.allclose(draws.mean(0), mean, atol=0.1)
        assert torch.allclose(draws.var(0), covariance.diagonal(), rtol=0.15)


def test_the_proposal_is_the_mixture_of_the_guide_over_completions():
    fills = torch.stack([X, X + 1, X - 2], 1)
    seen = shown(Program(factors, narrow_guide).bind(X), fills, SEEN, "x")
    draw = seen.draw(3000)
    guides = [Program(factors, narrow_guide).bind(fills[:, m]) for m in range(3)]
    each = torch.stack([guide.log_guide(draw.values) for guide in guides])
    assert torch.allclose(draw.log_prob, each.logsumexp(0) - torch.tensor(3.0).log(), atol=1e-5)
    centre = torch.stack([guide.draw(3000).values["z"] for guide in guides]).mean((0, 1))
    assert torch.allclose(draw.values["z"].mean(0), centre, atol=0.04)
    assert seen.draw(2).values["z"].shape == (2, 2, 2)  # fewer particles than completions


def belief_net(x=None):
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.4 * torch.ones(2)).to_event(1))
        logits = (z.unsqueeze(-1) * 4 * WEIGHT).sum(-2) - 1
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def test_binary_completions_match_enumeration():
    x, seen = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([True, False, False])
    joint = torch.zeros(2, 2)
    for a, b in product((0.0, 1.0), repeat=2):
        z = torch.tensor([a, b])
        prior = dist.Bernoulli(0.4).log_prob(z).sum().exp()
        probs = ((z @ (4 * WEIGHT)) - 1).sigmoid()
        second = torch.stack([1 - probs[1], probs[1]])
        third = torch.stack([1 - probs[2], probs[2]])
        joint = joint + prior * probs[0] * second[:, None] * third
    truth = joint / joint.sum()
    draws = (
        complete(Program(belief_net), x, seen, num_particles=20_000, num_draws=8000)
        .draws[:, 0]
        .long()
    )
    counts = torch.zeros(2, 2).index_put(
        (draws[:, 1], draws[:, 2]), torch.ones(8000), accumulate=True
    )
    assert torch.allclose(counts / 8000, truth, atol=0.025)


def test_completions_are_repeatable_and_leave_the_generator_alone():
    vae = VAE(6, 2, hidden=[8])
    x, seen = torch.ones(3, 6), torch.tensor([True, True, True, False, False, False])
    state = torch.get_rng_state()
    first, second = (
        complete(vae, x, seen, num_particles=50, num_draws=5, seed=4) for _ in range(2)
    )
    assert torch.equal(first.draws, second.draws)
    assert torch.equal(state, torch.get_rng_state())
    assert first.draws.shape == (5, 3, 6)
    assert set(first.draws.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.cuda
@pytest.mark.parametrize("method", ["resampling", "hmc"])
def test_completions_on_a_cuda_device(method):
    vae, seen = VAE(6, 2, hidden=[8]).to("cuda"), torch.arange(6, device="cuda") < 3
    found = complete(
        vae, torch.ones(3, 6, device="cuda"), seen, num_particles=50, num_draws=5, method=method
    )
    assert found.draws.is_cuda
    assert found.draws.shape == (5, 3, 6)


def test_more_data_than_fit_into_memory_at_once():
    x, seen = X.repeat(20, 1), SEEN.repeat(20, 1)
    found = complete(
        Program(factors, loose_guide), x, seen, num_particles=2000, num_draws=500, memory=2**22
    )
    assert found.draws.shape == (500, 40, 3)
    mean, covariance = conditional(X[0], SEEN[0])
    assert torch.allclose(
        found.mean[::2, 2].mean(), mean, atol=4.5 * (covariance.max() / 4000).sqrt().item()
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: complete(Program(factors), X, SEEN.float()), TypeError, "torch.bool"),
        (lambda: complete(Program(factors), X, SEEN[:, :2]), ValueError, r"observed is \[2, 2\]"),
        (
            lambda: complete(Program(factors), X, SEEN, rounds=0),
            ValueError,
            "rounds is 0; expected at least 1",
        ),
        (
            lambda: complete(Program(factors), X, SEEN, method="gibbs"),
            ValueError,
            "method is 'gibbs'; expected one of",
        ),
        (
            lambda: complete(Program(factors), X, SEEN, method="hmc", num_moves=3),
            ValueError,
            "num_moves is 3",
        ),
        (
            lambda: complete(Program(belief_net), (X > 0).float(), SEEN, method="hmc"),
            ValueError,
            "discrete",
        ),
        (
            lambda: complete(IndependentBernoulli(3), (X > 0).float(), SEEN),
            ValueError,
            "no latents to draw",
        ),
        (lambda: complete(Mixture(3, 2, "diagonal"), X, SEEN), ValueError, "summed out"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_entries_that_depend_on_one_another_are_refused():
    def correlated(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.MultivariateNormal(z, torch.eye(3)), obs=x)

    with pytest.raises(ValueError, match="depend on one another"):
        complete(Program(correlated), X, SEEN)


def test_latents_shared_by_all_data_are_refused():
    def shared(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).expand([len(x), 3]).to_event(1), obs=x)

    with pytest.raises(ValueError, match="shared by all data"):
        complete(Program(shared), X, SEEN)


def test_entries_that_the_model_masks_are_no_evidence():
    """z ~ N(0, 1), entries N(z, 1), the second padding.

    Given x = (1, 9, ?) the mean of the third is 1/2.
    """
    seen = torch.tensor([True, False, True])

    def model(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
            entries = dist.Normal(z.expand(*z.shape[:-1], 3), 1.0)
            pyro.sample("x", entries.mask(seen).to_event(1), obs=x)

    found = complete(
        Program(model),
        torch.tensor([[1.0, 9.0, 0.0]]),
        torch.tensor([True, True, False]),
        num_particles=20_000,
        num_draws=2000,
    )
    spread = math.sqrt(1.5)  # of the third entry: 1/2 of z and its own noise
    assert abs(found.mean[0, 2].item() - 0.5) < 4 * spread / math.sqrt(2000)
