"""Mixtures: EM against scikit-learn and autodiff.

The Bayesian mixture against a sum over all assignments.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from scipy.special import multigammaln
from scipy.stats import invwishart, multivariate_normal, multivariate_t
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ppl_dgm import evidence as estimators
from ppl_dgm import fit
from ppl_dgm.conditionals.components import Components
from ppl_dgm.distributions.discretised import OrderStatistics
from ppl_dgm.evidence import SMC, Exact, Laplace, PriorSampling
from ppl_dgm.families import BayesianMixture, Mixture, NormalInverseWishart
from ppl_dgm.objectives import ELBO

SCIKIT = {"diagonal": "diag", "full": "full", "tied": "tied"}


def blobs(num_data: int = 300, num_dims: int = 3) -> Tensor:
    torch.manual_seed(0)
    centres = 3 * torch.randn(4, num_dims, dtype=torch.float64)
    return centres[torch.randint(4, (num_data,))] + torch.randn(
        num_data, num_dims, dtype=torch.float64
    )


def precisions(mixture: Mixture) -> np.ndarray:
    """Inverse covariances in the shape that scikit-learn has them."""
    components = mixture.parts.components
    covariance = (
        components(torch.arange(4)).variance if components.covariance == "diagonal" else None
    )
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
        means_init=mixture.parts.components.locs.detach().numpy(),
        precisions_init=precisions(mixture),
    ).fit(x.numpy())  # fmt: skip
    steps = mixture.fit_em(x, num_steps=500, tolerance=1e-12, seed=None)
    assert steps.converged
    assert Exact()(mixture, x).log_z.mean().item() == pytest.approx(
        scikit.score(x.numpy()), abs=1e-5
    )
    assert np.allclose(
        Exact()(mixture, x).log_z.numpy(), scikit.score_samples(x.numpy()), atol=1e-4
    )
    assert np.allclose(
        mixture.responsibilities(x).detach().numpy(), scikit.predict_proba(x.numpy()), atol=1e-4
    )
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


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_likelihood_that_falls_is_not_the_end(seed):
    """Pseudo-counts cost likelihood at first: EM went two steps and said that it had converged."""
    x = (torch.rand(60, 4, generator=torch.Generator().manual_seed(seed)) < 0.5).double()
    mixture = Mixture(4, 2, "bernoulli")
    steps = mixture.fit_em(x, num_steps=20_000, tolerance=1e-12)
    assert steps.converged
    ends = mixture.parts.components.logits.sigmoid()
    again = mixture.fit_em(x, num_steps=100, tolerance=-1.0, seed=None)
    assert len(again.log_likelihood) == 100
    assert bool(((mixture.parts.components.logits.sigmoid() - ends).abs() < 1e-3).all())


def test_the_first_step_is_the_weighted_maximum_likelihood() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, -1.0], [1.0, 5.0]], dtype=torch.float64)
    weights = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7], [0.3, 0.7]], dtype=torch.float64)
    mixture = Mixture(2, 2, "full").double()
    mixture.parts.maximise(x, weights, 0.0)
    component = mixture.parts.components(torch.tensor(0))
    loc = weights[:, 0] @ x / 2
    covariance = (
        sum(w * torch.outer(v - loc, v - loc) for w, v in zip(weights[:, 0], x, strict=True)) / 2
    )
    assert torch.allclose(component.loc, loc)
    assert torch.allclose(component.covariance_matrix, covariance, atol=1e-7)
    assert torch.allclose(mixture.parts.logits.softmax(-1), torch.tensor([0.5, 0.5]).double())


@pytest.mark.parametrize("covariance", ["diagonal", "full", "tied"])
def test_em_far_from_zero_finds_what_it_finds_near(covariance: str) -> None:
    """Years, say, in single precision; doubles and whole numbers are taken too."""
    torch.manual_seed(0)
    x = torch.randn(400, 2).round(decimals=2) + 6.0 * (torch.arange(400) % 2).unsqueeze(-1)
    near = Mixture(2, 2, covariance).fit_em(x).log_likelihood[-1]
    for far in (x + 2000, x.double() + 2000):
        assert Mixture(2, 2, covariance).fit_em(far).log_likelihood[-1] == pytest.approx(
            near.item(), abs=1e-3
        )
    assert Mixture(2, 2, covariance).fit_em(x.round().long()).converged


@pytest.mark.parametrize("offset", [1e6, 1.7e9])
def test_em_on_doubles_far_from_zero_agrees_with_scikit_learn(offset: float) -> None:
    """Unix times, say.

    Rounded to float32 they lose their clusters, so that the parameters become doubles too.
    """
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(100, 2)) + 6]) + offset
    mixture = Mixture(2, 2, "full")
    steps = mixture.fit_em(torch.tensor(x))
    truth = GaussianMixture(2, covariance_type="full", tol=1e-9, max_iter=1000).fit(x).score(x)
    assert steps.log_likelihood[-1].item() == pytest.approx(truth, abs=1e-4)
    assert Exact()(mixture, torch.tensor(x)).log_z.mean().item() == pytest.approx(truth, abs=1e-4)
    assert mixture.parts.logits.dtype == torch.float64
    assert mixture.cluster(torch.tensor(x)).bincount().tolist() in ([200, 100], [100, 200])


def test_parameters_that_lose_likelihood_in_their_dtype_are_told() -> None:
    x = torch.randint(0, 9, (50, 1)) + 100_000_000
    with pytest.warns(UserWarning, match="torch.float32, the fitted parameters lose"):
        Mixture(1, 1).fit_em(x)
    mixture = Mixture(1, 1).double()
    found = mixture.fit_em(x).log_likelihood[-1].item()
    spread = x.double().var(correction=0).item()
    assert found == pytest.approx(-0.5 * (math.log(2 * math.pi * spread) + 1), abs=1e-6)


@pytest.mark.parametrize("kind", ["full", "tied", "diagonal"])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_singularity_does_not_depend_on_units_or_rounding(kind: str, scale: float) -> None:
    """Equal columns have no density, nor has a constant one.

    Nearly equal ones in other units have.
    """
    line = torch.randn(9, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    flat = 0 * line + 0.1 if kind == "diagonal" else line
    with pytest.raises(ValueError, match="singular"):
        Mixture(2, 1, kind).fit_em(scale * torch.cat([line, flat], 1), regularisation=0.0)
    x = scale * (line + 1e-4 * noise) * torch.tensor([1.0, 1e6])
    found = Mixture(2, 1, kind).fit_em(x, regularisation=0.0).log_likelihood[-1].item()
    variances = torch.cov(x.T, correction=0)
    log_det = variances.diagonal().log().sum() if kind == "diagonal" else variances.logdet()
    truth = -math.log(2 * math.pi) - log_det.item() / 2 - 1
    assert found == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("kind", ["full", "tied", "diagonal"])
def test_a_default_regularisation_that_hides_the_spread_is_told(kind: str) -> None:
    """One column is in units of its own."""
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = torch.tensor([1.0, 1e-5])
    with pytest.warns(UserWarning, match="the default regularisation 1e-06 .* costs about 3.94"):
        default = Mixture(2, 1, kind).fit_em(x * units).log_likelihood[-1]
    small = Mixture(2, 1, kind).fit_em(x * units, regularisation=1e-20).log_likelihood[-1]
    near = Mixture(2, 1, kind).fit_em(x).log_likelihood[-1]
    assert small == pytest.approx(near.item() + 5 * math.log(10), abs=1e-4)
    assert small - default == pytest.approx(3.94, abs=5e-3)


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
    x = torch.cat(
        [torch.poisson(torch.full((200, 2), 1.0)), torch.poisson(torch.full((100, 2), 9.0))]
    )
    mixture = Mixture(2, 2, PoissonComponents(2, 2))
    mixture.fit_em(x)
    rates = mixture.parts.components.log_rates.exp().mean(-1).sort().values
    assert rates.tolist() == pytest.approx([1.0, 9.0], rel=0.1)


# ---- the Bayesian mixture ------------------------------------------------------------------------


def log_marginal_of_one_component(x: Tensor) -> float:
    """log of the integral over mean and scale of prod_n N(x_n; mean, scale), by quadrature."""
    if not len(x):
        return 0.0
    locs, logs = (
        torch.linspace(-9, 9, 361, dtype=torch.float64),
        torch.linspace(-5, 5, 401, dtype=torch.float64),
    )
    loc, log_scale = torch.meshgrid(locs, logs, indexing="ij")
    log_joint = dist.Normal(0.0, 2.0).log_prob(loc) + dist.Normal(-0.5, 0.8).log_prob(log_scale)
    log_joint = log_joint + sum(dist.Normal(loc, log_scale.exp()).log_prob(value) for value in x)
    return (
        log_joint.logsumexp((0, 1)) + (locs[1] - locs[0]).log() + (logs[1] - logs[0]).log()
    ).item()


def log_evidence_by_assignments(
    x: Tensor,
    num_components: int,
    concentration: float,
    log_marginal: Callable[[Tensor], float] = log_marginal_of_one_component,
) -> float:
    """Sum over all assignments of data to components, weights and parameters integrated out."""
    terms = []
    for z in product(range(num_components), repeat=len(x)):
        counts = [z.count(k) for k in range(num_components)]
        log_prior = math.lgamma(num_components * concentration) - math.lgamma(
            num_components * concentration + len(x)
        )
        log_prior += sum(
            math.lgamma(n + concentration) - math.lgamma(concentration) for n in counts
        )
        parts = [
            x[[i for i, k in enumerate(z) if k == component]] for component in range(num_components)
        ]
        terms.append(log_prior + sum(map(log_marginal, parts)))
    return torch.tensor(terms).double().logsumexp(0).item()


def test_bayesian_evidence_is_the_sum_over_assignments() -> None:
    x = torch.tensor([[-2.0], [-1.5], [2.2], [1.9]])
    program = BayesianMixture(
        1, 2, concentration=1.5, loc_prior=(0.0, 2.0), log_scale_prior=(-0.5, 0.8)
    )
    evidence = PriorSampling(num_particles=100_000)(program, x)
    truth = log_evidence_by_assignments(x[:, 0].double(), 2, 1.5)
    assert evidence.target == "dataset"
    assert 0 < evidence.std_error < 0.03
    assert abs(evidence.log_z.item() - truth) < 4 * evidence.std_error.item()


def test_sampling_in_unconstrained_coordinates_finds_the_same_evidence() -> None:
    """The ordered means have their transform and Jacobian.

    Nothing is added for labels that could be exchanged.
    """
    x = torch.tensor([[-2.0], [-1.5], [2.2], [1.9]])
    program = BayesianMixture(
        1, 2, concentration=1.5, loc_prior=(0.0, 2.0), log_scale_prior=(-0.5, 0.8)
    )
    evidence = SMC()(program, x)
    truth = log_evidence_by_assignments(x[:, 0].double(), 2, 1.5)
    assert 0 < evidence.std_error < 0.15
    assert abs(evidence.log_z.item() - truth) < 4 * evidence.std_error.item()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_bayesian_joint_density_term_by_term(covariance: str) -> None:
    x = torch.randn(5, 2)
    program = BayesianMixture(
        2, 3, covariance, concentration=0.7, loc_prior=(0.5, 2.0), log_scale_prior=(0.1, 0.3)
    )
    bound = program.bind(x)
    values = bound.draw_prior(4).values
    joint = bound.log_joint(values)
    for i in range(4):
        v = {name: value[i] for name, value in values.items()}
        locs = torch.cat([v["first_locs"].unsqueeze(-1), v["other_locs"]], -1)
        prior = dist.Dirichlet(torch.full((3,), 0.7)).log_prob(v["weights"]) + math.log(6)
        prior = (
            prior
            + dist.Normal(0.5, 2.0).log_prob(locs).sum()
            + dist.LogNormal(0.1, 0.3).log_prob(v["scales"]).sum()
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


PSI = torch.tensor([[1.5, 0.4], [0.4, 0.8]])
CONJUGATE = NormalInverseWishart(loc=[0.5, -1.0], kappa=0.4, df=4.5, scale=PSI)


def log_conjugate_marginal(x: Tensor, prior: NormalInverseWishart = CONJUGATE) -> float:
    """log p(x) of data `[n, D]` of one component.

    It is equation 266 of Murphy (2007), by normalisers before and after.
    """
    n, num_dims = x.shape
    loc, kappa, df, factor = prior.parameters(num_dims)
    loc, psi = loc.double(), (factor @ factor.T).double()
    mean = x.mean(0) if n else loc
    scatter = (x - mean).T @ (x - mean) + kappa * n / (kappa + n) * torch.outer(
        mean - loc, mean - loc
    )
    log_gammas = multigammaln((df + n) / 2, num_dims) - multigammaln(df / 2, num_dims)
    log_dets = df / 2 * psi.logdet() - (df + n) / 2 * (psi + scatter).logdet()
    return (
        -n * num_dims / 2 * math.log(math.pi)
        + log_gammas
        + log_dets.item()
        + num_dims / 2 * math.log(kappa / (kappa + n))
    )


def from_sites(vector: Tensor, num_dims: int) -> tuple[Tensor, Tensor]:
    """Mean `[D]` and covariance `[D, D]` of the one component, from one vector of latents."""
    program = BayesianMixture(num_dims, 1, conjugate(num_dims)).double()
    names, values, start = site_names(num_dims), {}, 0
    for name, shape in names.items():
        size = math.prod(shape)
        values[name], start = vector[start : start + size].reshape(shape), start + size
    trace = poutine.trace(poutine.condition(program.model.fn.components, data=values)).get_trace()
    tril = trace.nodes["scale_trils"]["value"][0]
    return trace.nodes["locs"]["value"][0], tril @ tril.T


def site_names(num_dims: int) -> dict[str, tuple[int, ...]]:
    """Sites of the conjugate model of one component and their shapes."""
    several = (
        {"below": (1, num_dims * (num_dims - 1) // 2), "other_locs": (1, num_dims - 1)}
        if num_dims > 1
        else {}
    )
    return {"first_locs": (1,), "squares": (1, num_dims), **several}


def conjugate(num_dims: int) -> NormalInverseWishart:
    root = torch.randn(num_dims, num_dims, generator=torch.Generator().manual_seed(5))
    scale = root @ root.T + torch.eye(num_dims)
    return NormalInverseWishart(
        loc=[0.3 * i for i in range(num_dims)], kappa=0.4, df=num_dims + 1.5, scale=scale
    )


@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_conjugate_sites_have_the_normal_inverse_wishart_density(num_dims: int) -> None:
    """log p(sites) less a log Jacobian is the prior of Murphy (2007).

    The map is to (mean, lower half of the covariance).
    """
    prior = conjugate(num_dims)
    loc, kappa, df, factor = prior.parameters(num_dims)
    program = BayesianMixture(num_dims, 1, prior).double()
    bound = program.bind(torch.zeros(1, num_dims).double())
    draw = bound.draw_prior(4)
    rows, columns = torch.tril_indices(num_dims, num_dims)

    def flat(vector: Tensor) -> Tensor:
        mean, covariance = from_sites(vector, num_dims)
        return torch.cat([mean, covariance[rows, columns]])

    for i in range(4):
        vector = torch.cat([draw.values[name][i].reshape(-1) for name in site_names(num_dims)])
        jacobian = torch.autograd.functional.jacobian(flat, vector)
        mean, covariance = from_sites(vector, num_dims)
        expected = invwishart(df, (factor @ factor.T).double().numpy()).logpdf(covariance.numpy())
        expected += multivariate_normal(loc.numpy(), covariance.numpy() / kappa).logpdf(
            mean.numpy()
        )
        assert (draw.log_prob[i] - jacobian.slogdet()[1]).item() == pytest.approx(
            expected, abs=1e-5
        )


def test_conjugate_draws_have_the_moments_of_the_prior() -> None:
    """Over both components, since the numbering leaves the unordered pair as it was."""
    torch.manual_seed(0)
    sites = BayesianMixture(2, 2, NormalInverseWishart([0.5, -1.0], 0.4, 9.0, PSI)).sample_sites(
        40_000
    )
    trils = sites["scale_trils"].flatten(0, 1)
    covariances, locs = trils @ trils.mT, sites["locs"].flatten(0, 1)
    expected = PSI / (9 - 2 - 1)
    for found, truth in (
        (covariances, expected),
        (locs.unsqueeze(-1), torch.tensor([[0.5], [-1.0]])),
    ):
        error = found.std(0) / len(found) ** 0.5
        assert bool(((found.mean(0) - truth).abs() < 4.5 * error).all())
    products = (locs - locs.mean(0)).unsqueeze(-1) * (locs - locs.mean(0)).unsqueeze(-2)
    assert bool(
        ((products.mean(0) - expected / 0.4).abs() < 4.5 * products.std(0) / len(locs) ** 0.5).all()
    )
    assert bool((sites["locs"][:, 0, 0] <= sites["locs"][:, 1, 0]).all())


FEW = torch.tensor([[-1.2, -1.0], [-0.8, -1.9], [1.6, 0.4], [2.1, -0.3], [1.5, -0.2]])


@pytest.mark.parametrize("estimator", [PriorSampling(num_particles=100_000), SMC(), Laplace()])
def test_evidence_of_one_conjugate_gaussian(estimator: Any) -> None:
    evidence = estimator(BayesianMixture(2, 1, CONJUGATE), FEW)
    assert 0 < evidence.std_error < 0.1
    assert (
        abs(evidence.log_z.item() - log_conjugate_marginal(FEW.double()))
        < 4 * evidence.std_error.item()
    )


def test_the_default_guide_is_fitted_to_a_bound_of_the_conjugate_evidence() -> None:
    program = BayesianMixture(2, 1, CONJUGATE)
    fit(
        program, FEW, ELBO(4), steps=80, progress=False, seed=0, compile=False,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    )  # fmt: skip
    truth, bound = (
        log_conjugate_marginal(FEW.double()),
        estimators.ELBO(num_particles=4000)(program, FEW),
    )
    assert truth - 1.5 < bound.log_z.item() < truth


@pytest.mark.parametrize(
    "estimator", [PriorSampling(num_particles=200_000), pytest.param(SMC(), marks=pytest.mark.slow)]
)
def test_evidence_of_a_conjugate_mixture_is_the_sum_over_assignments(estimator: Any) -> None:
    """Exact with label switching.

    The sum runs over labelled assignments, the program over numbered components.
    """
    evidence = estimator(BayesianMixture(2, 2, CONJUGATE, concentration=1.5), FEW)
    truth = log_evidence_by_assignments(FEW.double(), 2, 1.5, log_conjugate_marginal)
    assert 0 < evidence.std_error < 0.15
    assert abs(evidence.log_z.item() - truth) < 4 * evidence.std_error.item()


def test_the_closed_form_is_the_chain_rule_of_student_t_predictives() -> None:
    """Murphy (2007), equation 232: the evidence that the tests lean on, found another way."""
    x, total = FEW.double(), 0.0
    loc, kappa, df, factor = (
        value.double() if isinstance(value, Tensor) else value for value in CONJUGATE.parameters(2)
    )
    psi = factor @ factor.T
    for value in x:
        law = multivariate_t(loc.numpy(), (psi * (kappa + 1) / (kappa * (df - 1))).numpy(), df - 1)
        total += law.logpdf(value.numpy())
        shift = value - loc
        psi = psi + kappa / (kappa + 1) * torch.outer(shift, shift)
        loc, kappa, df = loc + shift / (kappa + 1), kappa + 1, df + 1
    assert log_conjugate_marginal(x) == pytest.approx(total, abs=1e-6)


def test_order_statistics_integrate_to_one_and_draw_what_they_score() -> None:
    law = OrderStatistics(dist.Exponential(torch.tensor(1.0)), 2)
    grid = torch.linspace(1e-3, 15, 1500)
    density = law.log_prob(torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)).exp()
    assert (density.sum() * (grid[1] - grid[0]) ** 2).item() == pytest.approx(1.0, abs=0.02)
    draws = law.sample((40_000,))
    assert draws.mean(0).tolist() == pytest.approx(
        [0.5, 1.5], abs=0.02
    )  # the minimum is Exponential(2)
    assert law.log_prob(torch.tensor([2.0, 1.0])).item() == -math.inf


BAD = {
    "kind": (lambda: Mixture(3, 2, "poisson"), "there are no components 'poisson'"),
    "sizes": (lambda: Mixture(0, 2), "at least 1"),
    "other sizes": (lambda: Mixture(3, 2, PoissonComponents(3, 4)), "expected \\(3, 2\\)"),
    "shape": (lambda: Mixture(3, 2).fit_em(torch.zeros(9, 4)), "expected data"),
    "few": (
        lambda: Mixture(3, 5).start_from_kmeans(torch.zeros(4, 3)),
        "at least num_components = 5",
    ),
    "singular": (
        lambda: Mixture(2, 1, "full").fit_em(1e4 * torch.arange(9.0).unsqueeze(-1).expand(9, 2)),
        "singular with the regularisation 1e-06",
    ),
    "no steps": (lambda: Mixture(3, 2).fit_em(torch.zeros(9, 3), num_steps=0), "num_steps is 0"),
    "regularisation": (
        lambda: Mixture(3, 2).fit_em(torch.zeros(9, 3), regularisation=-1.0),
        "regularisation -1.0",
    ),
    "columns": (lambda: Mixture(3, 2).bind(torch.zeros(9, 4)), "x"),
    "support": (
        lambda: Mixture(3, 2, "bernoulli").bind(torch.full((9, 3), 0.5)),
        "outside the support",
    ),
    "covariance": (lambda: BayesianMixture(2, 2, "tied"), "expected 'diagonal' or 'full'"),
    "prior": (lambda: BayesianMixture(2, 2, loc_prior=(0.0, 0.0)), "expected positive"),
    "two priors": (
        lambda: BayesianMixture(2, 2, CONJUGATE, correlation=2.0),
        "belong to 'diagonal' and 'full'",
    ),
    "degrees": (
        lambda: BayesianMixture(3, 2, NormalInverseWishart(df=2.0)),
        "expected above 0 and above D - 1 = 2",
    ),
    "kappa": (lambda: BayesianMixture(3, 2, NormalInverseWishart(kappa=0.0)), "kappa is 0.0"),
    "psi": (
        lambda: BayesianMixture(2, 2, NormalInverseWishart(scale=[[1.0, 2.0], [2.0, 1.0]])),
        "not positive definite",
    ),
    "nearly singular psi": (
        lambda: BayesianMixture(
            2, 2, NormalInverseWishart(scale=[[1.0, 1.0 - 1e-16], [1.0 - 1e-16, 1.0]])
        ),
        "not positive definite",
    ),
    "skew": (
        lambda: BayesianMixture(2, 2, NormalInverseWishart(scale=[[1.0, 0.2], [0.0, 1.0]])),
        "not positive definite",
    ),
    "psi shape": (
        lambda: BayesianMixture(3, 2, CONJUGATE),
        "loc is \\[2\\] and scale \\[2, 2\\]; expected",
    ),
    "bayesian sizes": (lambda: BayesianMixture(2, 0), "at least 1"),
    "order statistics": (
        lambda: OrderStatistics(dist.Normal(torch.zeros(2), 1.0), 2),
        "a scalar distribution",
    ),
}


def test_in_one_dimension_full_covariances_are_diagonal_ones() -> None:
    full, diagonal = BayesianMixture(1, 2, "full"), BayesianMixture(1, 2)
    x = torch.randn(3, 1)
    values = full.bind(x).draw(4).values
    assert torch.equal(
        full.bind(x).log_joint(values).total, diagonal.bind(x).log_joint(values).total
    )


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
