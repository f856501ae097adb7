"""PPCA against scikit-learn, autodiff and dense Gaussians."""

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppl_dgm import log_weights
from ppl_dgm.evidence import Exact
from ppl_dgm.families import PPCA
from ppl_dgm.objectives import ELBO


def correlated(num_data: int = 200) -> Tensor:
    torch.manual_seed(0)
    mixing = torch.randn(5, 5, dtype=torch.float64)
    return torch.randn(num_data, 5, dtype=torch.float64) @ mixing + torch.arange(
        5.0, dtype=torch.float64
    )


def test_closed_form_fit_agrees_with_scikit_learn() -> None:
    """scikit-learn divides the covariance by N - 1 in place of N.

    All that follows is proportional to it.
    """
    x = correlated()
    program = PPCA(5, 2).double().fit_closed_form(x)
    covariance = program.marginal().covariance_matrix
    scikit = torch.as_tensor(PCA(2).fit(x.numpy()).get_covariance()) * (199 / 200)
    assert torch.allclose(covariance, scikit, atol=1e-8)
    assert torch.allclose(program.marginal().loc, x.mean(0))


@pytest.mark.parametrize("offset", [1e6, 1.7e9])
def test_closed_form_fit_of_doubles_far_from_zero(offset: float) -> None:
    x = correlated()[:, :2]
    far = PPCA(2, 1).fit_closed_form(x + offset)
    truth = PPCA(2, 1).double().fit_closed_form(x).marginal().log_prob(x).mean()
    found = far.marginal().log_prob(x + offset).mean()
    assert found.item() == pytest.approx(truth.item(), abs=1e-5)


def test_parameters_that_lose_likelihood_in_their_dtype_are_told() -> None:
    with pytest.warns(UserWarning, match="torch.float32, the fitted parameters lose"):
        PPCA(2, 1).fit_closed_form(torch.randint(0, 9, (50, 2)) + 100_000_000)


def test_noise_is_told_from_rounding_in_double_precision() -> None:
    """Noise of 1e-5 of the signal has a density, repeated columns in float32 have none."""
    x = torch.randn(90, 1, dtype=torch.float64).expand(90, 3)
    noisy = x + 1e-5 * torch.randn(90, 3, dtype=torch.float64)
    values = torch.linalg.eigvalsh(torch.cov(noisy.T, correction=0))
    program = PPCA(3, 1).fit_closed_form(noisy)
    assert program.marginal().variance.mean().item() == pytest.approx(values.mean().item())
    with pytest.raises(ValueError, match="no variance outside"):
        PPCA(3, 1).fit_closed_form(torch.randn(9, 1) * torch.tensor([1.0, 0.1, 0.3]))


def test_closed_form_fit_is_the_maximum() -> None:
    x = correlated()
    program = PPCA(5, 2).double().fit_closed_form(x).initialise(x)
    (-program.marginal().log_prob(x).sum()).backward()
    assert all(parameter.grad.abs().max() < 1e-8 for parameter in program.parameters())
    best = program.marginal().log_prob(x).sum()
    for _ in range(20):
        other = PPCA(5, 2).double().fit_closed_form(x)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        assert other.marginal().log_prob(x).sum() < best


def test_the_guide_is_the_posterior_so_that_all_weights_are_equal() -> None:
    x = correlated(7)
    program = PPCA(5, 3).double()
    truth = program.marginal().log_prob(x)
    assert torch.allclose(
        log_weights(program, x, num_particles=20, seed=0), truth.expand(20, 7), atol=1e-10
    )
    assert torch.allclose(Exact()(program, x).log_z, truth, atol=1e-8)


def test_the_posterior_is_tight_for_every_value_of_the_parameters_not_by_fitting() -> None:
    """The ELBO's gradient in the model is the gradient of the log evidence itself."""
    x = correlated(40)
    program = PPCA(5, 2).double().initialise(x)
    torch.manual_seed(0)
    ELBO(num_particles=4000, gradient="stl").differentiable_loss(
        program.model, program.guide, x
    ).backward()
    estimated = [parameter.grad.clone() for parameter in program.parameters()]
    program.zero_grad()
    (-program.marginal().log_prob(x).sum()).backward()
    for parameter, estimate in zip(program.parameters(), estimated, strict=True):
        assert torch.allclose(
            parameter.grad, estimate, rtol=0.05, atol=0.05 * parameter.grad.abs().max().item()
        )


def test_the_marginal_is_exact_where_the_noise_is_small() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 2) @ torch.randn(2, 6) + 0.01 * torch.randn(200, 6)
    program = PPCA(6, 2).fit_closed_form(x)
    with torch.no_grad():
        found = program.marginal().log_prob(x)
    assert torch.allclose(found, Exact()(program, x).log_z, atol=1e-3)
    model = program.model.fn
    covariance = model.weight.detach().double() @ model.weight.detach().double().T
    covariance.diagonal().add_((2 * model.log_scale.detach().double()).exp())
    assert torch.allclose(
        found, MultivariateNormal(model.loc.detach().double(), covariance).log_prob(x), atol=1e-6
    )


def test_draws_have_the_moments_of_the_marginal() -> None:
    program = PPCA(5, 2)
    draws = program.sample(40_000)
    covariance = program.marginal().covariance_matrix.detach()
    assert torch.allclose(
        torch.cov(draws.T.double()), covariance, atol=0.05 * covariance.abs().max().item()
    )


BAD = {
    "latents": (lambda: PPCA(3, 3), "less than num_dims = 3"),
    "no latents": (lambda: PPCA(3, 0), "at least 1"),
    "shape": (
        lambda: PPCA(3, 1).fit_closed_form(torch.zeros(9, 4)),
        "at least two data \\[N, 3\\]",
    ),
    "one datum": (lambda: PPCA(3, 1).fit_closed_form(torch.zeros(1, 3)), "at least two data"),
    "no noise": (
        lambda: PPCA(3, 1).fit_closed_form(torch.randn(9, 1).expand(9, 3)),
        "no variance outside 1 directions",
    ),
    "columns": (lambda: PPCA(3, 1).bind(torch.zeros(9, 4)), "failed on its first run"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
