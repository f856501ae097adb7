"""VAEs and their parts: likelihoods that sum to one, priors that do, labels, layers, bad input."""

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import (
    ComposeTransform,
    affine_coupling,
    conditional_planar,
    iterated,
    permute,
    planar,
)
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from ppl_dgm import Program, log_weights
from ppl_dgm.conditionals.guides import AmortisedGuide, DiagonalNormal, FlowPosterior
from ppl_dgm.distributions import Autoregressive, DiscretisedLogisticMixture
from ppl_dgm.evidence import Exact
from ppl_dgm.families import (
    MADE,
    VAE,
    ConditionalVAE,
    HierarchicalVAE,
    IndependentBernoulli,
    SemiSupervisedVAE,
    likelihoods,
    priors,
)
from ppl_dgm.families.latent.labelled import with_class
from ppl_dgm.nn.conv import ConvDecoder, ConvEncoder
from ppl_dgm.nn.mlp import ResidualMLP
from ppl_dgm.objectives import ELBO

# ---- likelihoods ---------------------------------------------------------------------------------

DISCRETE = {
    "bernoulli": (likelihoods.Bernoulli(), 2),
    "categorical": (likelihoods.Categorical(5), 5),
    "discretised logistic": (likelihoods.DiscretisedLogistic(7, 3), 7),
}
CONTINUOUS = {
    "gaussian": (likelihoods.Gaussian(0.7), -9.0, 9.0),
    "shared gaussian": (likelihoods.Gaussian(0.7, "shared"), -9.0, 9.0),
    "net gaussian": (likelihoods.Gaussian(0.5, "net"), -12.0, 12.0),
    "continuous bernoulli": (likelihoods.ContinuousBernoulli(), 0.0, 1.0),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_likelihoods_sum_to_one_and_draw_what_they_score(name: str) -> None:
    likelihood, num_levels = DISCRETE[name]
    law = likelihood(torch.randn(4, likelihood.num_params))
    probs = law.log_prob(torch.arange(float(num_levels)).unsqueeze(-1)).exp()
    assert torch.allclose(probs.sum(0), torch.ones(4), atol=1e-6)
    draws = law.sample((20_000,))
    assert draws.dtype == torch.float32
    for level in range(num_levels):
        share = (draws == level).float().mean(0)
        assert bool(
            ((share - probs[level]).abs() < 4.5 * (probs[level] / 20_000).sqrt() + 1e-4).all()
        )


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_likelihoods_integrate_to_one(name: str) -> None:
    likelihood, low, high = CONTINUOUS[name]
    law = likelihood(torch.randn(4, likelihood.num_params))
    x = torch.linspace(low, high, 20_001)
    density = law.log_prob(x.unsqueeze(-1)).exp().double()
    assert torch.allclose(
        torch.trapezoid(density, x.double(), dim=0), torch.ones(4).double(), atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_continuous_bernoulli_is_normalised_and_draws_what_it_scores_at_any_logit(
    dtype: torch.dtype,
) -> None:
    logits = torch.tensor(
        [-300.0, -50.0, -17.0, -1.0, -0.3, -0.1, 0.0, 1e-3, 0.19, 2.0, 20.0, 100.0], dtype=dtype
    )
    law = likelihoods.ContinuousBernoulli()(logits.unsqueeze(-1))
    x = torch.linspace(0, 1, 40_001, dtype=torch.float64).unsqueeze(-1)
    density = law.log_prob(x.to(dtype)).double().exp()
    assert torch.allclose(
        torch.trapezoid(density, x, dim=0), torch.ones(len(logits)).double(), atol=1e-5
    )
    mean = torch.trapezoid(density * x, x, dim=0)
    assert torch.allclose(law.mean.double(), mean, atol=1e-5)
    variance = torch.trapezoid(density * (x - mean) ** 2, x, dim=0)
    torch.manual_seed(0)
    draws = law.sample(torch.Size([20_000])).double()
    assert bool(((draws.mean(0) - mean).abs() < 4.5 * (variance / 20_000).sqrt()).all())
    assert torch.allclose(draws.var(0), variance, rtol=0.1)


def test_gradient_of_the_continuous_bernoulli_is_the_datum_less_the_mean() -> None:
    logits = torch.tensor(
        [-90.0, -1.0, -0.19, 0.0, 1e-9, 0.21, 30.0], dtype=torch.float64, requires_grad=True
    )
    law = likelihoods.ContinuousBernoulli()(logits.unsqueeze(-1))
    (gradient,) = torch.autograd.grad(law.log_prob(torch.full((7,), 0.3).double()).sum(), logits)
    assert torch.allclose(gradient, 0.3 - law.mean, atol=1e-9)


def test_discretised_logistic_is_exact_far_in_the_tails() -> None:
    """P(x) against differences of sigmoids in doubles, and gradients where those underflow.

    Gradients are finite.
    """
    loc = torch.tensor([[0.1]], dtype=torch.float64)
    law = DiscretisedLogisticMixture(torch.zeros_like(loc), loc, torch.full_like(loc, 0.2), 256)
    x = torch.tensor([0.0, 3.0, 120.0, 254.0, 255.0], dtype=torch.float64)
    edges = ((2 * x - 1) / 255 - 1 - 0.1) / 0.2, ((2 * x + 1) / 255 - 1 - 0.1) / 0.2
    lower = torch.where(x > 0, edges[0].sigmoid(), 0.0)
    upper = torch.where(x < 255, edges[1].sigmoid(), 1.0)
    assert torch.allclose(law.log_prob(x), (upper - lower).log(), atol=1e-9)
    scale = torch.tensor([[1e-3]], requires_grad=True)
    far = DiscretisedLogisticMixture(
        torch.zeros(1, 1), torch.full((1, 1), 0.9), scale, 256
    ).log_prob(torch.tensor([2.0]))
    far.backward()
    assert far.item() == pytest.approx(-(0.9 + 1 - 5 / 255) / 1e-3, rel=1e-3)
    assert bool(torch.isfinite(scale.grad).all())


# ---- priors --------------------------------------------------------------------------------------


def vamp() -> priors.VampPrior:
    return priors.VampPrior(AmortisedGuide(nn.Linear(3, 4), DiagonalNormal(2)), torch.rand(5, 3))


PRIORS = {
    "standard": lambda: priors.StandardNormal(2),
    "mixture": lambda: priors.GaussianMixturePrior(2, 3, learned_weights=True),
    "vamp": vamp,
    "flow": lambda: priors.FlowPrior(2, [affine_coupling(2, [4]), affine_coupling(2, [4])]),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors_integrate_to_one_and_draw_what_they_score(name: str) -> None:
    torch.manual_seed(0)
    prior = PRIORS[name]()
    law = prior()
    axis = torch.linspace(-14, 14, 561)
    density = law.log_prob(torch.cartesian_prod(axis, axis)).exp()
    cell = (axis[1] - axis[0]).item() ** 2
    assert density.sum().item() * cell == pytest.approx(1.0, abs=2e-3)
    mean = (density.unsqueeze(-1) * torch.cartesian_prod(axis, axis)).sum(0) * cell
    draws = prior().sample((20_000,))
    assert torch.allclose(draws.mean(0), mean, atol=5 * draws.std().item() / 20_000**0.5)


def test_mixture_prior_clusters_by_bayes_rule() -> None:
    prior = priors.GaussianMixturePrior(2, 3)
    z = torch.randn(5, 2)
    each = torch.stack([dist.Normal(prior.locs[k], 1.0).log_prob(z).sum(-1) for k in range(3)], -1)
    assert torch.allclose(prior.responsibilities(z), each.softmax(-1), atol=1e-5)


def test_mixture_prior_starts_at_the_clusters() -> None:
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    scales = torch.tensor([0.5, 1.0, 2.0])[labels].unsqueeze(-1)
    z = 30.0 * labels.unsqueeze(-1) + scales * torch.randn(300, 2)
    prior = priors.GaussianMixturePrior(2, 3).start_from_kmeans(z)
    order = prior.locs[:, 0].argsort()
    for k in range(3):
        assert torch.allclose(prior.locs[order[k]], z[labels == k].mean(0), atol=1e-4)
        spread = z[labels == k].std(0, correction=0)
        assert torch.allclose(prior.log_scales[order[k]].exp(), spread, rtol=1e-3)
    found = prior.responsibilities(z).argmax(-1)
    assert all(len(found[labels == k].unique()) == 1 for k in range(3))


def test_mixture_prior_starts_at_clusters_far_from_zero_or_fewer_than_components() -> None:
    torch.manual_seed(0)
    far = 1000.0 + torch.randn(300, 2)
    prior = priors.GaussianMixturePrior(2, 1).start_from_kmeans(far)
    assert torch.allclose(prior.log_scales.exp(), far.std(0, correction=0).unsqueeze(0), rtol=1e-3)
    with pytest.warns(ConvergenceWarning):
        collapsed = priors.GaussianMixturePrior(2, 3).start_from_kmeans(torch.ones(5, 2))
    assert bool(torch.isfinite(collapsed().log_prob(torch.ones(2))))


FLOWS = {
    "coupling": lambda: affine_coupling(2, [4]),
    "iterated": lambda: iterated(2, affine_coupling, 2, [4]),
    "composed": lambda: ComposeTransform(
        [affine_coupling(2, [4]), permute(2), affine_coupling(2, [4])]
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flow_prior_forgets_values_of_old_parameters(name: str) -> None:
    vae = VAE(3, 2, [4], prior=priors.FlowPrior(2, [FLOWS[name]()]))
    z = torch.randn(1, 6, 2)
    bound = vae.bind(torch.ones(6, 3))
    before = bound.log_joint({"z": z}).prior
    with torch.no_grad():
        for parameter in vae.model.fn.prior.parameters():
            parameter.add_(0.3)
    after = bound.log_joint({"z": z}).prior
    assert not torch.allclose(after, before)
    assert torch.equal(bound.log_joint({"z": z.clone()}).prior, after)
    copy.deepcopy(vae.model.fn.prior)


# ---- nets, layers, labels ------------------------------------------------------------------------


def test_convolutional_and_residual_nets_fit_in() -> None:
    x = (torch.rand(3, 64) < 0.5).float()
    conv = VAE(
        64, 4, encoder=ConvEncoder((1, 8, 8), [4, 8], 8), decoder=ConvDecoder(4, [8, 4], (1, 8, 8))
    )
    residual = VAE(64, 4, encoder=ResidualMLP(64, 16, 2, 8), decoder=ResidualMLP(4, 16, 2, 64))
    for vae in (conv, residual):
        assert log_weights(vae, x, num_particles=5).shape == (5, 3)
        assert vae.sample(2).shape == (2, 64)


def test_analytic_divergence_through_pyro_agrees_with_the_sampled_one() -> None:
    """Normal prior and guide: TraceMeanField_ELBO takes KL(q || p) in closed form."""
    torch.manual_seed(0)
    vae, x = VAE(4, 2, [5]), (torch.rand(6, 4) < 0.5).float()
    vae.initialise(x)
    law = vae.guide.fn.distribution(x)
    divergence = (law.variance + law.mean.square() - 1 - law.variance.log()).sum() / 2
    z = law.sample((4000,))
    expected = divergence - vae.model.fn.distribution(z).log_prob(x).mean(0).sum()
    analytic = TraceMeanField_ELBO(
        num_particles=4000, vectorize_particles=True, max_plate_nesting=1
    )
    assert analytic.loss(vae.model, vae.guide, x) == pytest.approx(expected.item(), abs=0.05)
    assert ELBO(num_particles=20_000).loss(vae.model, vae.guide, x) == pytest.approx(
        expected.item(), abs=0.1
    )


def test_learned_scale_is_trained_and_stays_positive() -> None:
    torch.manual_seed(0)
    x = 0.1 * torch.randn(200, 2)
    vae = VAE(2, 1, [4], likelihoods.Gaussian(1.0, "shared")).initialise(x)
    optimiser = torch.optim.Adam(vae.parameters(), 0.03)
    for _ in range(150):
        optimiser.zero_grad()
        ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
        optimiser.step()
    assert vae.model.fn.likelihood.log_scale.exp().item() == pytest.approx(0.1, rel=0.25)


def test_missing_entries_do_not_matter() -> None:
    vae = VAE(4, 2, [5])
    x = (torch.rand(5, 4) < 0.5).float()
    observed = torch.rand(5, 4) < 0.5
    flipped = torch.where(observed, x, 1 - x)
    expected = log_weights(vae, x, observed, num_particles=3, seed=0)
    assert torch.equal(log_weights(vae, flipped, observed, num_particles=3, seed=0), expected)
    everything = log_weights(vae, x, torch.ones_like(observed), num_particles=3, seed=0)
    assert torch.equal(everything, log_weights(vae, x, num_particles=3, seed=0))


def semi_supervised(**options: Any) -> tuple[SemiSupervisedVAE, Tensor, Tensor]:
    torch.manual_seed(0)
    x = (torch.rand(6, 3) < 0.5).float()
    return SemiSupervisedVAE(3, 1, 3, [4], **options), x, torch.tensor([0, 1, 2, -1, -1, -1])


def test_semi_supervised_elbo_is_the_sum_over_classes() -> None:
    """Pyro's enumeration and a sum over classes by hand, each an average over many draws of z."""
    vae, x, y = semi_supervised()
    vae.eval().initialise(x, y)
    torch.manual_seed(0)
    enumerated = TraceEnum_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    pyros = -enumerated.loss(vae.model, vae.guide, x, y)
    log_q = vae.classify(x).log()
    total = 0.0
    for c in range(3):
        bound = vae.bind(x, torch.full((6,), c))
        values, log_guide = bound.draw(2000)[:2]
        elbo = (bound.log_joint(values).total - log_guide).mean(0)
        total = total + torch.where(
            y == c, elbo, torch.where(y < 0, log_q[:, c].exp() * (elbo - log_q[:, c]), 0.0)
        )
    assert pyros == pytest.approx(total.sum().item(), abs=0.05)
    drawn = -ELBO(num_particles=4000).loss(vae.model, vae.guide, x, y)
    assert drawn == pytest.approx(total.sum().item(), abs=0.1)


def test_classifier_term_is_there_in_training_only() -> None:
    vae, x, y = semi_supervised(classifier_weight=10.0)
    vae.initialise(x, y)
    values = {"y": y.clamp_min(0).unsqueeze(0), "z": torch.zeros(1, 6, 1)}
    training = vae.train().bind(x, y).log_joint(values).total
    evaluation = vae.eval().bind(x, y).log_joint(values).total
    log_q = vae.classify(x).log().gather(-1, y.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(training - evaluation, torch.where(y >= 0, 10 * log_q, 0.0), atol=1e-4)


def test_labels_teach_the_classifier() -> None:
    torch.manual_seed(0)
    classes = torch.arange(120) % 2
    x = torch.where(
        classes.unsqueeze(-1) == 1, torch.rand(120, 6) < 0.8, torch.rand(120, 6) < 0.2
    ).float()
    labels = torch.where(torch.arange(120) < 12, classes, -1)
    vae = SemiSupervisedVAE(6, 1, 2, [8], classifier_weight=5.0).initialise(x, labels)
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    optimiser = torch.optim.Adam(vae.parameters(), 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        objective.differentiable_loss(vae.model, vae.guide, x, labels).backward()
        optimiser.step()
    assert (vae.classify(x).argmax(-1) == classes).float().mean() > 0.9


def test_sampling_given_labels() -> None:
    vae = ConditionalVAE(3, 1, 2, [4])
    assert vae.sample(5, y=torch.tensor([0, 1, 1])).shape == (5, 3, 3)


@pytest.mark.parametrize("trained", [False, True])
def test_semi_supervised_draws_are_of_the_given_labels(trained: bool) -> None:
    """The share of ones given each label, against the decoder's mean.

    Without a label it is that over all classes.
    """
    vae, x, y = semi_supervised()
    with torch.no_grad():
        for parameter in vae.model.fn.decoding.parameters():
            parameter.mul_(3.0)
    if trained:
        vae.initialise(x, y)
    given = torch.tensor([2, 0, -1])
    draws = vae.sample(20_000, y=given)
    decoding = vae.model.fn.decoding
    z = torch.randn(50_000, 1)
    with torch.no_grad():
        means = [
            decoding.pixels(with_class(z, torch.full((50_000,), c), 3)).mean.mean(0)
            for c in range(3)
        ]
    expected = torch.stack([means[2], means[0], torch.stack(means).mean(0)])
    assert not torch.allclose(expected[0], expected[1], atol=0.05)
    assert torch.allclose(draws.mean(0), expected, atol=0.02)
    assert vae.sample(4, y=torch.tensor([2])).shape == vae.sample(4).shape == (4, 3)


def test_layers_of_the_hierarchy_have_their_sizes() -> None:
    x = torch.ones(4, 6)
    for top_down in (False, True):
        vae = HierarchicalVAE(6, (5, 3, 2), [[8], [4], []], top_down=top_down)
        shapes = {name: tuple(value.shape) for name, value in vae.bind(x).draw(7).values.items()}
        assert shapes == {"z1": (7, 4, 5), "z2": (7, 4, 3), "z3": (7, 4, 2)}


# ---- densities without latents -------------------------------------------------------------------


def test_counting_is_maximum_likelihood_and_smoothing_the_posterior_mean() -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    program = IndependentBernoulli(2).fit_counts(x, smoothing=1.0)
    assert torch.allclose(program.probs, torch.tensor([2 / 5, 4 / 5]))
    mle = IndependentBernoulli(2).fit_counts(x, smoothing=0.0)
    assert torch.allclose(mle.probs, torch.tensor([1 / 3, 1.0]))
    assert Exact()(program, x[:1]).log_z.item() == pytest.approx(math.log(3 / 5 * 4 / 5), abs=1e-6)


def test_autoregressive_distribution_under_plates_and_batches() -> None:
    made = MADE(3, [6])
    law = made.model.fn.distribution()
    with pyro.plate("particles", 5, dim=-2), pyro.plate("data", 4, dim=-1):
        x = pyro.sample("x", law)
    assert x.shape == (5, 4, 3)
    assert law.expand([5, 4]).log_prob(x).shape == (5, 4)
    assert torch.allclose(law.log_prob(x), law.expand([5, 4]).log_prob(x))


def test_order_decides_who_sees_whom() -> None:
    made = MADE(3, [16], order=[2, 1, 0])
    x = torch.zeros(3, requires_grad=True)
    net = made.model.fn.net
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v).squeeze(-1), x)
    assert bool((jacobian.tril() == 0).all())
    assert jacobian[0, 2] != 0


BAD = {
    "likelihood": (lambda: VAE(3, 2, likelihood="poisson"), "there is no likelihood 'poisson'"),
    "prior size": (lambda: VAE(3, 2, prior=priors.StandardNormal(3)), "the prior has 3 latents"),
    "guide size": (lambda: VAE(3, 2, guide=FlowPosterior(4)), "the guide has 4 latents"),
    "two encoders": (
        lambda: VAE(
            3, 2, encoder=nn.Linear(3, 4), guide=AmortisedGuide(nn.Linear(3, 4), DiagonalNormal(2))
        ),
        "has its own nets",
    ),
    "channels first": (
        lambda: VAE(
            9,
            2,
            likelihood=likelihoods.Gaussian(learned="net"),
            decoder=ConvDecoder(2, [4], (2, 3, 3)),
        ).sample(1),
        "gives \\[2, 3, 3\\] numbers .* expected \\[9, 2\\]",
    ),
    "dims": (lambda: VAE(0, 2), "at least one"),
    "latents": (lambda: priors.StandardNormal(0), "at least 1"),
    "components": (lambda: priors.GaussianMixturePrior(2, 0), "at least 1"),
    "few latents": (
        lambda: priors.GaussianMixturePrior(2, 5).start_from_kmeans(torch.rand(4, 2)),
        "N >= 5",
    ),
    "pseudo-data": (
        lambda: priors.VampPrior(AmortisedGuide(nn.Linear(3, 4), DiagonalNormal(2)), torch.rand(3)),
        "pseudo-data",
    ),
    "no inverse": (lambda: priors.FlowPrior(2, [planar(2)]), "Planar has no inverse"),
    "scale": (lambda: likelihoods.Gaussian(0.0), "positive standard deviation"),
    "learned": (lambda: likelihoods.Gaussian(learned="yes"), "expected 'no', 'shared' or 'net'"),
    "levels": (lambda: likelihoods.Categorical(1), "at least 2"),
    "logistics": (lambda: likelihoods.DiscretisedLogistic(256, 0), "at least 1"),
    "mixture levels": (
        lambda: DiscretisedLogisticMixture(*torch.zeros(3, 1), levels=1),
        "at least 2",
    ),
    "grey pixels": (lambda: VAE(3, 2).bind(torch.full((4, 3), 0.5)), "outside the support"),
    "pixels above": (
        lambda: VAE(3, 2, likelihood=likelihoods.ContinuousBernoulli()).bind(
            torch.full((4, 3), 1.5)
        ),
        "outside",
    ),
    "level above": (
        lambda: VAE(3, 2, likelihood=likelihoods.Categorical(4)).bind(torch.full((4, 3), 4.0)),
        "outside",
    ),
    "half level": (
        lambda: MADE(3, [5], likelihoods.DiscretisedLogistic(4)).bind(torch.full((4, 3), 0.5)),
        "outside",
    ),
    "columns": (lambda: VAE(3, 2).bind(torch.zeros(4, 5)), "failed on its first run"),
    "made order": (lambda: MADE(3, [5], order=[0, 0, 1]), "permutation"),
    "order": (
        lambda: Autoregressive(lambda x: x, lambda p: p, torch.zeros(3), [0, 1]),
        "permutation",
    ),
    "layers": (lambda: HierarchicalVAE(3, (2, 1), [[5]]), "each of 2 layers"),
    "classes": (lambda: ConditionalVAE(3, 2, 1), "at least 2"),
    "labels": (
        lambda: ConditionalVAE(3, 2, 3).bind(torch.ones(4, 3), torch.tensor([0, 1, 2, 3])),
        "go from 0 to 3",
    ),
    "half labels": (
        lambda: ConditionalVAE(3, 2, 3).bind(torch.ones(1, 3), torch.tensor([0.5])),
        "whole numbers",
    ),
    "one-hot labels": (
        lambda: ConditionalVAE(3, 2, 3).sample(1, y=torch.eye(3)),
        "the number of a class",
    ),
    "inverse": (
        lambda: priors.FlowPrior(2, [affine_coupling(2).inv]),
        "neither learned nor copied",
    ),
    "no labels": (lambda: ConditionalVAE(3, 2, 3).sample(4), "the labels are missing"),
    "semi labels": (
        lambda: SemiSupervisedVAE(3, 2, 3).bind(torch.ones(2, 3), torch.tensor([-2, 1])),
        "go from -2 to 1",
    ),
    "weight": (lambda: SemiSupervisedVAE(3, 2, 3, classifier_weight=-1.0), "at least 0"),
    "count shape": (lambda: IndependentBernoulli(3).fit_counts(torch.ones(4, 2)), "expected data"),
    "count values": (
        lambda: IndependentBernoulli(3).fit_counts(torch.full((4, 3), 0.5)),
        "binarise",
    ),
    "count smoothing": (
        lambda: IndependentBernoulli(3).fit_counts(torch.ones(4, 3), -1.0),
        "at least 0",
    ),
    "no dims": (lambda: IndependentBernoulli(0), "at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="expected text or a Likelihood"):
        VAE(3, 2, likelihood=3)


def test_conditional_transforms_of_ones_own() -> None:
    vae = VAE(3, 2, [4], guide=FlowPosterior(2, [conditional_planar(2, 5)], num_context=5))
    assert log_weights(vae, torch.ones(4, 3), num_particles=2).shape == (2, 4)
    assert isinstance(vae, Program)
