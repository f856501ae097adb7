"""One effective sample size, one R-hat and one alarm each, whoever asks."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import SMC, SteppingStone
from ppl_dgm.evidence.smc import group_alarms
from ppl_dgm.sampling.convergence import (
    chain_ess,
    dominates,
    r_hat_warnings,
    series_std_error,
    split_r_hat,
    tail_cost,
)


def autoregression(coefficient: float, chains: int = 4, draws: int = 1000) -> Tensor:
    """Stationary chains x' = a x + noise, of variance one."""
    x = torch.randn(chains, dtype=torch.float64)
    rows = []
    for _ in range(draws):
        x = coefficient * x + (1 - coefficient**2) ** 0.5 * torch.randn_like(x)
        rows.append(x)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("coefficient", [-0.95, -0.5])
def test_antithetic_draws_count_in_full(coefficient: float) -> None:
    """Their mean is better than that of independent draws; the error is that of all of them."""
    series = autoregression(coefficient)
    assert float(chain_ess(series)) == 4000
    assert float(series_std_error(series)) == pytest.approx(4000**-0.5, rel=0.15)


def test_the_error_counts_autocorrelation() -> None:
    """(1 + a) / (1 - a) times the variance of independent draws."""
    error = series_std_error(autoregression(0.8))
    assert float(error) == pytest.approx((9 / 4000) ** 0.5, rel=0.25)


def test_a_few_data_whose_chains_disagree_are_told() -> None:
    r_hat = torch.full((100,), 1.01)
    assert r_hat_warnings(r_hat) == ()
    r_hat[:4] = 1.3
    assert "4 of 100 data" in r_hat_warnings(r_hat)[0]
    assert r_hat_warnings(torch.tensor(1.06))
    assert "some temperature" in r_hat_warnings(torch.tensor(1.3), "some temperature", 1.2)[0]


def test_chance_makes_the_largest_r_hat_of_many_no_alarm() -> None:
    series = torch.randn(4, 200, 1000, dtype=torch.float64)
    assert r_hat_warnings(split_r_hat(series)) == ()


def test_failing_data_weigh_by_their_cost() -> None:
    failing, cost = torch.zeros(50).bool(), torch.ones(50)
    assert not dominates(failing, cost)
    failing[3] = True
    assert not dominates(failing, cost)
    cost[3] = 5.0
    assert dominates(failing, cost)
    cost[3] = torch.nan
    assert dominates(failing, cost)
    assert dominates(torch.tensor(True), torch.tensor(0.0))


def test_the_cost_of_a_tail_grows_with_its_shape() -> None:
    cost = tail_cost(torch.tensor([0.5, 1.0, 2.0]), torch.full((3,), 0.1), 1000)
    assert torch.allclose(cost, torch.tensor([1.1, 1.1, 101.0]).log())


def test_one_datum_whose_groups_disagree_is_told() -> None:
    """One in two hundred is less than any share that was allowed by number."""
    groups = 0.05 * torch.randn(8, 200, dtype=torch.float64)
    found = {"group_log_z": groups, "ess": torch.ones(200), "acceptance": torch.ones(200)}
    assert group_alarms(found) == ()
    groups[:, 5] = 4 * torch.randn(8, dtype=torch.float64)
    assert "disagree" in group_alarms(found)[0]


def test_an_outlier_among_many_data_is_told_or_right() -> None:
    """SMC of 60 data, one 30 standard deviations out, and too few particles for it."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    x = torch.randn(60, dtype=torch.float64)
    x[7] = 30.0
    found = SMC(num_particles=8, num_groups=4, num_moves=1, cess=0.3)(Program(model), x)
    truth = dist.Normal(0.0, 1.01**0.5).log_prob(x).sum()
    miss = abs(float(found.total - truth))
    assert miss < 4 * float(found.total_std_error) + 0.02 or not found.reliable


def test_settings_are_refused_by_one_rule() -> None:
    for make in (lambda: SMC(num_particles=1), lambda: SteppingStone(num_chains=1)):
        with pytest.raises(ValueError, match="is 1; expected at least 2"):
            make()
