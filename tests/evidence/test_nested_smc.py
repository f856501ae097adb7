"""Nested sampling by SMC against known evidence: peaks, plateaus, edges, and data of their own."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence.case_programs import FLOAT, Case, case, tensor, uniform
from evidence.kind_programs import KINDS
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import SMC, NestedSMC

KIND = {known.name: known for known in KINDS}


def miss(known: Case, estimator: NestedSMC | SMC, seed: int = 0) -> tuple[float, float, bool]:
    found = estimator(known.program(), *known.args, seed=seed)
    return float(found.total) - known.log_z, float(found.total_std_error), found.reliable


def test_a_narrow_peak_in_a_wide_one_is_found() -> None:
    off, error, reliable = miss(KIND["spike_and_slab"], NestedSMC(num_particles=150, num_moves=10))
    assert reliable
    assert abs(off) < 4 * error < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cut_by_data", "dirichlet_0.01", "correlation_matrix"])
def test_edges_are_no_obstacle(name: str) -> None:
    off, error, reliable = miss(KIND[name], NestedSMC(num_particles=250))
    assert reliable
    assert abs(off) < 4 * error < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dynesty_eggbox", "dynesty_gauss3d", "bs_betabinomial_tutorial"])
def test_cases_are_found(name: str) -> None:
    off, error, reliable = miss(case(name), NestedSMC())
    assert reliable
    assert abs(off) < 4 * error < 0.6


@pytest.mark.slow
def test_error_bars_cover() -> None:
    known = KIND["banana"]
    found = [miss(known, NestedSMC(num_particles=100), seed) for seed in range(30)]
    z = torch.tensor([off / error for off, error, _ in found])
    assert float((z.abs() < 2).double().mean()) >= 0.85
    assert abs(float(z.mean())) < 4 / 30**0.5


def wide_likelihood(dims: int, noise: float, dtype: torch.dtype) -> tuple[Program, Tensor, float]:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(dims, dtype=dtype), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    x = torch.full((dims,), 0.7, dtype=dtype)
    scale = math.sqrt(1 + noise**2)
    return Program(model), x, float(dist.Normal(tensor(0.0), scale).log_prob(x.double()).sum())


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_copies_do_not_move_by_differences_of_each_other(seed: int) -> None:
    """In fifty dimensions the estimate was 0.7 nat too high, twelve standard errors."""
    program, x, truth = wide_likelihood(50, 2.0, torch.float32)
    found = NestedSMC(num_particles=100)(program, x, seed=seed)
    assert abs(float(found.log_z) - truth) < 4 * float(found.std_error) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_levels_do_not_add_up_to_a_bias(seed: int) -> None:
    """A hundred levels: 0.8 nat too high before."""
    program, x, truth = wide_likelihood(10, 1e-3, FLOAT)
    found = NestedSMC(num_particles=200)(program, x, seed=seed)
    assert not found.reliable or abs(float(found.log_z) - truth) < 4 * float(found.std_error) < 4


@pytest.mark.parametrize("settings", [{"num_particles": 8, "keep": 0.99}, {"num_particles": 9}])
def test_few_particles_have_a_next_level(settings: dict) -> None:
    program, x, truth = wide_likelihood(1, 3.0, FLOAT)
    found = NestedSMC(num_groups=20, num_moves=4, **settings)(program, x)
    assert abs(float(found.log_z) - truth) < 4 * float(found.std_error)


def test_plateaus_are_summed_as_they_are() -> None:
    """A likelihood of two values: 1 on a tenth of the box, 0.001 elsewhere."""

    def steps() -> None:
        z = pyro.sample("z", uniform(0.0, 1.0, 2))
        pyro.factor("likelihood", torch.where(z[..., 0] < 0.1, 0.0, math.log(0.001)))

    found = NestedSMC(num_particles=200, num_moves=5)(Program(steps))
    assert abs(float(found.log_z) - math.log(0.1 + 0.9 * 0.001)) < 4 * float(found.std_error) < 0.5


def test_a_likelihood_of_zero_is_told() -> None:
    def impossible() -> None:
        z = pyro.sample("z", uniform(0.0, 1.0, 2))
        pyro.factor("likelihood", torch.full_like(z[..., 0], -math.inf))

    found = NestedSMC(num_particles=20)(Program(impossible))
    assert float(found.log_z) == -math.inf
    assert not found.reliable


def test_every_datum_has_its_own_levels() -> None:
    def local(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x)

    x = torch.linspace(-4, 4, 9, dtype=FLOAT)
    truth = dist.Normal(tensor(0.0), 1.09**0.5).log_prob(x)
    for memory in (256 * 2**20, 500_000):
        found = NestedSMC(num_particles=100, num_moves=5, memory=memory)(Program(local), x)
        assert found.reliable
        assert bool(((found.log_z - truth).abs() < 4.5 * found.std_error).all())


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="keep is 1"):
        NestedSMC(keep=1.0)
    with pytest.raises(ValueError, match="remaining is 0"):
        NestedSMC(remaining=0.0)
    with pytest.raises(ValueError, match="num_groups"):
        NestedSMC(num_groups=1)
