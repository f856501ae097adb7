"""Inpainting and denoising by chains against conditionals in closed form and by enumeration."""

import pytest
import torch
from energies import Ising, NormalEnergy, make_rbm, states
from torch import Tensor

from ppl_dgm.evidence import Exact
from ppl_dgm.families import VAE, Energy, RealNVP
from ppl_dgm.tasks import complete, denoise

PRECISION = torch.tensor([[2.0, 0.5, 0.3], [0.5, 1.0, -0.2], [0.3, -0.2, 1.5]])
SHIFT = torch.tensor([1.0, -0.5, 0.2])
X = torch.tensor([[1.2, 0.3, -0.4], [-0.5, 1.0, 0.6]])
SEEN = torch.tensor([[True, False, False], [False, True, False]])
BITS = states(5)
MASK = torch.tensor([[1, 1, 0, 0, 1], [0, 1, 0, 1, 0]]).bool()


def normal(dtype: torch.dtype = torch.float32) -> Energy:
    return Energy(NormalEnergy(PRECISION, SHIFT), 3).to(dtype)


def z_scores(draws: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Errors of the mean and the covariance of independent normal draws, in standard errors."""
    n, variances = len(draws), covariance.diagonal()
    spread = ((covariance.square() + variances.outer(variances)) / n).sqrt()
    first = (draws.mean(0) - mean) / (variances / n).sqrt()
    return torch.cat([first, ((torch.cov(draws.T) - covariance) / spread).flatten()])


@pytest.mark.parametrize(
    ("dtype", "leapfrogs"),
    [
        pytest.param(torch.float32, 5, marks=pytest.mark.slow),
        pytest.param(torch.float64, 5, marks=pytest.mark.slow),
        pytest.param(torch.float32, 1, marks=pytest.mark.slow),  # Langevin
    ],
)
def test_missing_entries_of_a_normal_energy(dtype: torch.dtype, leapfrogs: int) -> None:
    x, moves = X.to(dtype), 40 if leapfrogs > 1 else 400
    found = complete(
        normal(dtype), x, SEEN, num_draws=500, num_moves=moves, num_leapfrog=leapfrogs, seed=1
    )
    assert torch.equal(found.draws[:, SEEN], x[SEEN].expand(500, -1))
    assert found.draws.dtype == dtype
    precision, mode = PRECISION.to(dtype), torch.linalg.solve(PRECISION, SHIFT).to(dtype)
    for i, seen in enumerate(SEEN):
        inside = torch.linalg.inv(precision[~seen][:, ~seen])
        mean = mode[~seen] - inside @ precision[~seen][:, seen] @ (x[i, seen] - mode[seen])
        assert z_scores(found.draws[:, i, ~seen], mean, inside).abs().max() < 4.5


def test_noise_is_taken_off_a_normal_energy() -> None:
    found = denoise(normal(), X, 0.7, num_draws=500, num_moves=40, num_leapfrog=5)
    precision = PRECISION + torch.eye(3) / 0.49
    for i, y in enumerate(X):
        mean = torch.linalg.solve(precision, SHIFT + y / 0.49)
        draws = found.draws[:, i]
        assert z_scores(draws, mean, torch.linalg.inv(precision)).abs().max() < 4.5


def conditional(log_f: Tensor, log_likelihood: Tensor) -> Tensor:
    """Mean of bits under the posterior over all states."""
    return (log_f + log_likelihood).softmax(0) @ BITS


@pytest.mark.parametrize("own", [True, False])
def test_bits_of_an_rbm_are_filled_in(own: bool) -> None:
    rbm = make_rbm(5, 4)
    x = BITS[[3, 17]]
    program = rbm if own else Energy(rbm.free_energy, 5, base="bernoulli").double()
    found = complete(program, x, MASK, num_draws=1000, num_moves=20)
    assert torch.equal(found.draws[:, MASK], x[MASK].expand(1000, -1))
    log_f = -rbm.free_energy(BITS).detach()
    for i in range(2):
        held = (BITS[:, MASK[i]] == x[i, MASK[i]]).all(1)
        truth = conditional(log_f, torch.where(held, 0.0, -torch.inf))
        error = found.mean[i] - truth
        assert bool((error.abs() <= 4.5 * (truth * (1 - truth) / 1000).sqrt() + 1e-9).all())


@pytest.mark.slow
def test_flipped_bits_of_an_rbm_are_flipped_back() -> None:
    rbm, y = make_rbm(5, 4), BITS[[3, 17]]
    found = denoise(rbm, y, 0.2, num_draws=1000, num_moves=20)
    for i in range(2):
        flipped = (y[i] != BITS).sum(1)
        truth = conditional(
            -rbm.free_energy(BITS).detach(),
            flipped * torch.tensor(0.2).log() + (5 - flipped) * torch.tensor(0.8).log(),
        )
        error = found.mean[i] - truth
        assert bool((error.abs() <= 4.5 * (truth * (1 - truth) / 1000).sqrt()).all())


@pytest.mark.slow
def test_images_of_any_shape() -> None:
    image = Energy(lambda x: 1.5 * (x - 1).square().sum((1, 2, 3)), (1, 2, 3))
    y = torch.linspace(-1, 1, 6).reshape(1, 1, 2, 3)
    found = denoise(image, y, 1.0, num_draws=400, num_leapfrog=5, num_moves=60, memory=2**20)
    mean, sd = (3 * 1.0 + y) / 5, (1 / 5) ** 0.5
    assert bool(((found.mean - mean).abs() < 4.5 * sd / 20).all())
    filled = complete(image, y, torch.rand(2, 3) < 0, num_draws=400, num_leapfrog=5, num_moves=60)
    assert bool(((filled.mean - 0.75).abs() < 4.5 * 0.5 / 20).all())


@pytest.mark.slow
def test_a_flow_against_quadrature() -> None:
    torch.manual_seed(0)
    flow, y = RealNVP(2, 1), X[:1, :2]
    line = torch.linspace(-6, 6, 301)
    grid = torch.cartesian_prod(line, line)
    log_f = Exact()(flow, grid).log_z
    shares = (log_f - 0.5 * (grid - y).square().sum(1)).softmax(0)
    mean = shares @ grid.double()
    sd = (shares @ (grid.double() - mean).square()).sqrt()
    found = denoise(flow, y, 1.0, num_draws=400, num_leapfrog=5, num_moves=60)
    assert bool(((found.mean[0] - mean).abs() < 4.5 * sd / 20).all())


@pytest.mark.slow
def test_two_modes_keep_their_shares() -> None:
    """An even mixture far apart, seen through noise that leaves odds of e^(2 y m / s^2)."""
    log_f = lambda x: torch.logaddexp(-8 * (x - 2).square(), -8 * (x + 2).square()).sum(-1)  # noqa: E731
    model = Energy(lambda x: -log_f(x) - 0.5 * x.square().sum(-1), 1)
    found = denoise(model, torch.tensor([[0.2]]), 1.5, num_draws=2000, num_leapfrog=5)
    odds = torch.tensor(2 * 0.2 * 2 / (1.5**2 + 1 / 16))
    share = (found.draws > 0).float().mean()
    assert abs(share - odds.sigmoid()) < 0.06  # tempered draws are resampled, 256 of them


@pytest.mark.slow
def test_stuck_chains_are_an_alarm() -> None:
    """Two valleys of bits that Gibbs steps never leave."""
    lattice = Energy(Ising(4, 0.0, 3.0), 16, base="bernoulli").double()
    x = torch.zeros(1, 16, dtype=torch.float64)
    lopsided = Energy(lambda x: lattice.energy(x) - 0.2 * x.sum(-1), 16, base="bernoulli").double()
    found = complete(lopsided, x, torch.zeros(16, dtype=torch.bool), num_draws=64, num_moves=20)
    assert any("R-hat" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: denoise(normal(), X, 0.0), "positive standard deviation"),
        (lambda: denoise(make_rbm(), states(4)[:2], 0.5), "below 0.5"),
        (lambda: denoise(normal(), X, 0.1, num_moves=3), "num_moves is 3"),
        (lambda: denoise(VAE(3, 1, hidden=[4], likelihood="gaussian"), X, 0.1), "reconstruct"),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
