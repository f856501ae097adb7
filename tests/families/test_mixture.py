"""Mixtures: EM against scikit-learn and autodiff; the Bayesian mixture against a sum over all assignments."""

import math
from itertools import product

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ppl_dgm.distributions import OrderStatistics
from ppl_dgm.evidence import SMC, Exact, PriorSampling
from ppl_dgm.families import Mixture
from ppl_dgm.families.bayesian_mixture import BayesianMixture
from ppl_dgm.families.components import Components
from ppl_dgm.objectives import ELBO

SCIKIT = {"diagonal": "diag", "full": "full", "tied": "tied"}


def blobs(num_data: int = 300, num_dims: int = 3) -> Tensor:
    torch.manual_seed(0)
    centres = 3 * torch.randn(4, num_dims, dtype=torch.float64)
    return centres[torch.randint(4, (num_data,))] + torch.randn(num_data, num_dims, dtype=torch.float64)


def precisions(mixture: Mixture) -> np.ndarray:
    """Inverse covariances in the shape that scikit-learn has them."""
    components = mixture.parts.components
    covariance = components(torch.arange(4)).variance if components.covariance == "diagonal" else None
    if covariance is not None:
        return (1 / covariance).detach().numpy()
    inverse = torch.linalg.inv(components(torch.arange(4)).covariance_matrix).detach().numpy()
    return inverse[0] if components.covariance == "tied" else inverse


@pytest.mark.parametrize("covariance", SCIKIT)
def test_em_agrees_with_scikit_learn_from_one_start(covariance: str) -> None:
    x = blobs()
    mixture = Mixture(3, 4, covariance).double().start_from_kmeans(x)
    scikit = GaussianMixture(
        4, covariance_type=SCIKIT[covariance], reg_covar=1e-6, tol=1e-12, max_iter=500,
        weights_init=mixture.parts.logits.softmax(-1).detach().numpy(),
        means_init=mixture.parts.components.locs.detach().numpy(), precisions_init=precisions(mixture),
    ).fit(x.numpy())  # fmt: skip
    steps = mixture.fit_em(x, num_steps=500, tolerance=1e-12, seed=None)
    assert steps.converged
    assert Exact()(mixture, x).log_z.mean().item() == pytest.approx(scikit.score(x.numpy()), abs=1e-5)
    assert np.allclose(Exact()(mixture, x).log_z.numpy(), scikit.score_samples(x.numpy()), atol=1e-4)
    assert np.allclose(mixture.responsibilities(x).detach().numpy(), scikit.predict_proba(x.numpy()), atol=1e-4)
    assert (mixture.cluster(x).numpy() == scikit.predict(x.numpy())).mean() > 0.99


@pytest.mark.parametrize("kind", ["bernoulli", "diagonal", "full", "tied"])
def test_em_never_lowers_the_likelihood_and_ends_where_its_gradient_vanishes(kind: str) -> None:
    x = blobs()
    data = (x > 0).double() if kind == "bernoulli" else x
    mixture = Mixture(3, 2, kind).double()
    steps = mixture.fit_em(data, num_steps=3000, tolerance=1e-14, regularisation=0.0)
    assert steps.converged
    assert bool((steps.log_likelihood.diff() > -1e-12).all())
    assert steps.log_likelihood[-1] > steps.log_likelihood[0]
    mixture.initialise(data)
    ELBO().differentiable_loss(mixture.model, mixture.guide, data).backward()
    assert all(parameter.grad.abs().max() < 1e-3 for parameter in mixture.parameters())


def test_the_first_step_is_the_weighted_maximum_likelihood() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, -1.0], [1.0, 5.0]], dtype=torch.float64)
    weights = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7], [0.3, 0.7]], dtype=torch.float64)
    mixture = Mixture(2, 2, "full").double()
    mixture.parts.maximise(x, weights, 0.0)
    component = mixture.parts.components(torch.tensor(0))
    loc = weights[:, 0] @ x / 2
    covariance = sum(w * torch.outer(v - loc, v - loc) for w, v in zip(weights[:, 0], x, strict=True)) / 2
    assert torch.allclose(component.loc, loc)
    assert torch.allclose(component.covariance_matrix, covariance, atol=1e-7)
    assert torch.allclose(mixture.parts.logits.softmax(-1), torch.tensor([0.5, 0.5]).double())


def test_clusters_of_separated_blobs_are_found() -> None:
    torch.manual_seed(0)
    labels = torch.arange(3).repeat_interleave(40)
    x = 20.0 * labels.unsqueeze(-1) + torch.randn(120, 2)
    for kind in ("diagonal", "full", "tied"):
        mixture = Mixture(2, 3, kind)
        mixture.fit_em(x)
        found = mixture.cluster(x)
        assert all(len(found[labels == k].unique()) == 1 for k in range(3))
        assert len(found.unique()) == 3


class PoissonComponents(Components):
    """Counts: a kind of one's own."""

    def __init__(self, num_dims: int, num_components: int) -> None:
        super().__init__(num_dims, num_components)
        self.log_rates = torch.nn.Parameter(torch.randn(num_components, num_dims))

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(self.log_rates[z].exp()).to_event(1)

    def maximise(self, x: Tensor, responsibilities: Tensor, regularisation: float) -> None:
        rates = responsibilities.T @ x / responsibilities.sum(0).unsqueeze(-1)
        self.log_rates.copy_((rates + regularisation).log())


def test_components_of_ones_own() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.poisson(torch.full((200, 2), 1.0)), torch.poisson(torch.full((100, 2), 9.0))])
    mixture = Mixture(2, 2, PoissonComponents(2, 2))
    mixture.fit_em(x)
    rates = mixture.parts.components.log_rates.exp().mean(-1).sort().values
    assert rates.tolist() == pytest.approx([1.0, 9.0], rel=0.1)


# ---- the Bayesian mixture -------------------------------------------------------------------------------------------


def log_marginal_of_one_component(x: Tensor) -> float:
    """log of the integral over mean and scale of prod_n N(x_n; mean, scale), by quadrature."""
    if not len(x):
        return 0.0
    locs, logs = torch.linspace(-9, 9, 361, dtype=torch.float64), torch.linspace(-5, 5, 401, dtype=torch.float64)
    loc, log_scale = torch.meshgrid(locs, logs, indexing="ij")
    log_joint = dist.Normal(0.0, 2.0).log_prob(loc) + dist.Normal(-0.5, 0.8).log_prob(log_scale)
    log_joint = log_joint + sum(dist.Normal(loc, log_scale.exp()).log_prob(value) for value in x)
    return (log_joint.logsumexp((0, 1)) + (locs[1] - locs[0]).log() + (logs[1] - logs[0]).log()).item()


def log_evidence_by_assignments(x: Tensor, num_components: int, concentration: float) -> float:
    """Sum over all assignments of data to components, weights and parameters integrated out."""
    terms = []
    for z in product(range(num_components), repeat=len(x)):
        counts = [z.count(k) for k in range(num_components)]
        log_prior = math.lgamma(num_components * concentration) - math.lgamma(num_components * concentration + len(x))
        log_prior += sum(math.lgamma(n + concentration) - math.lgamma(concentration) for n in counts)
        parts = [x[[i for i, k in enumerate(z) if k == component]] for component in range(num_components)]
        terms.append(log_prior + sum(map(log_marginal_of_one_component, parts)))
    return torch.tensor(terms).double().logsumexp(0).item()


def test_bayesian_evidence_is_the_sum_over_assignments() -> None:
    x = torch.tensor([[-2.0], [-1.5], [2.2], [1.9]])
    program = BayesianMixture(1, 2, concentration=1.5, loc_prior=(0.0, 2.0), log_scale_prior=(-0.5, 0.8))
    evidence = PriorSampling(num_particles=100_000)(program, x)
    truth = log_evidence_by_assignments(x[:, 0].double(), 2, 1.5)
    assert evidence.target == "dataset"
    assert 0 < evidence.std_error < 0.03
    assert abs(evidence.log_z.item() - truth) < 4 * evidence.std_error.item()


def test_sampling_in_unconstrained_coordinates_finds_the_same_evidence() -> None:
    """The ordered means have their transform and Jacobian; nothing is added for labels that could be exchanged."""
    x = torch.tensor([[-2.0], [-1.5], [2.2], [1.9]])
    program = BayesianMixture(1, 2, concentration=1.5, loc_prior=(0.0, 2.0), log_scale_prior=(-0.5, 0.8))
    evidence = SMC()(program, x)
    truth = log_evidence_by_assignments(x[:, 0].double(), 2, 1.5)
    assert 0 < evidence.std_error < 0.15
    assert abs(evidence.log_z.item() - truth) < 4 * evidence.std_error.item()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_bayesian_joint_density_term_by_term(covariance: str) -> None:
    x = torch.randn(5, 2)
    program = BayesianMixture(2, 3, covariance, concentration=0.7, loc_prior=(0.5, 2.0), log_scale_prior=(0.1, 0.3))
    bound = program.bind(x)
    values = bound.draw_prior(4).values
    joint = bound.log_joint(values)
    for i in range(4):
        v = {name: value[i] for name, value in values.items()}
        locs = torch.cat([v["first_locs"].unsqueeze(-1), v["other_locs"]], -1)
        prior = dist.Dirichlet(torch.full((3,), 0.7)).log_prob(v["weights"]) + math.log(6)
        prior = (
            prior + dist.Normal(0.5, 2.0).log_prob(locs).sum() + dist.LogNormal(0.1, 0.3).log_prob(v["scales"]).sum()
        )
        trils = torch.diag_embed(v["scales"])
        if covariance == "full":
            prior = prior + dist.LKJCholesky(2, 1.0).log_prob(v["correlations"]).sum()
            trils = v["scales"].unsqueeze(-1) * v["correlations"]
        each = dist.MultivariateNormal(locs, scale_tril=trils).log_prob(x.unsqueeze(1))
        assert joint.prior[i].item() == pytest.approx(prior.item(), rel=1e-4)
        assert joint.likelihood[i].item() == pytest.approx(
            (v["weights"].log() + each).logsumexp(-1).sum().item(), rel=1e-4
        )


def test_order_statistics_integrate_to_one_and_draw_what_they_score() -> None:
    law = OrderStatistics(dist.Exponential(torch.tensor(1.0)), 2)
    grid = torch.linspace(1e-3, 15, 1500)
    density = law.log_prob(torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)).exp()
    assert (density.sum() * (grid[1] - grid[0]) ** 2).item() == pytest.approx(1.0, abs=0.02)
    draws = law.sample((40_000,))
    assert draws.mean(0).tolist() == pytest.approx([0.5, 1.5], abs=0.02)  # the minimum is Exponential(2)
    assert law.log_prob(torch.tensor([2.0, 1.0])).item() == -math.inf


BAD = {
    "kind": (lambda: Mixture(3, 2, "poisson"), "there are no components 'poisson'"),
    "sizes": (lambda: Mixture(0, 2), "at least 1"),
    "other sizes": (lambda: Mixture(3, 2, PoissonComponents(3, 4)), "expected \\(3, 2\\)"),
    "shape": (lambda: Mixture(3, 2).fit_em(torch.zeros(9, 4)), "expected data"),
    "few": (lambda: Mixture(3, 5).start_from_kmeans(torch.zeros(4, 3)), "at least num_components = 5"),
    "columns": (lambda: Mixture(3, 2).bind(torch.zeros(9, 4)), "x"),
    "support": (lambda: Mixture(3, 2, "bernoulli").bind(torch.full((9, 3), 0.5)), "outside the support"),
    "covariance": (lambda: BayesianMixture(2, 2, "tied"), "expected 'diagonal' or 'full'"),
    "prior": (lambda: BayesianMixture(2, 2, loc_prior=(0.0, 0.0)), "expected positive"),
    "bayesian sizes": (lambda: BayesianMixture(2, 0), "at least 1"),
    "order statistics": (lambda: OrderStatistics(dist.Normal(torch.zeros(2), 1.0), 2), "a scalar distribution"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
