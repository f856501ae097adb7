"""Sums over discrete latents against enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.data import problems
from ppl_dgm.evidence import Exact, GridSampling, GridSum, WideSampling, auto


def noisy_or(x: Tensor | None = None) -> None:
    """Two kinds of discrete latents for each datum."""
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        b = pyro.sample("b", dist.Bernoulli(torch.full((2,), 0.3)).to_event(1))
        pyro.sample("x", dist.Normal(z + b.sum(-1), 1.0), obs=x)


def truth(x: Tensor) -> Tensor:
    rows = [
        math.log(pz) + math.log(pb) + dist.Normal(float(z + b), 1.0).log_prob(x)
        for z, pz in enumerate((0.2, 0.3, 0.5))
        for b, pb in enumerate((0.49, 0.42, 0.09))
    ]
    return torch.stack(rows).logsumexp(0).double()


def test_agrees_with_enumeration_within_its_error():
    x = torch.linspace(-1, 4, 40)
    result = GridSampling(num_particles=4000)(Program(noisy_or), x)
    z = (result.log_z - truth(x)) / result.std_error
    assert 0.6 < float(z.square().mean().sqrt()) < 1.4


def test_global_latents_have_one_grid():
    def model(x: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4)).to_event(1))
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    x = torch.tensor([0.5, 1.0])
    result = GridSampling(num_particles=20000)(Program(model), x)
    count = torch.arange(4.0)
    log_joint = dist.Binomial(3, 0.4).log_prob(count) + dist.Normal(count[:, None], 1.0).log_prob(
        x
    ).sum(-1)
    assert abs(float(result.log_z - log_joint.logsumexp(0))) < 4 * float(result.std_error) < 0.1


def test_what_has_no_grid_is_refused():
    def continuous(x: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def infinite(x: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Poisson(1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def none(x: Tensor | None = None) -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.zeros(())
    for model, message in (
        (continuous, "continuous"),
        (infinite, "cannot be enumerated"),
        (none, "Exact"),
    ):
        with pytest.raises(ValueError, match=message):
            GridSampling()(Program(model), x)
    with pytest.raises(ValueError, match="num_particles"):
        GridSampling(num_particles=1)
    assert Exact()(Program(none), x).bound == "exact"


@pytest.mark.parametrize("memory", [2**28, 2000])
def test_all_values_are_summed_for_each_datum(memory):
    x = torch.linspace(-1, 4, 40)
    result = GridSum(memory=memory)(Program(noisy_or), x)
    assert torch.allclose(result.log_z, truth(x), atol=1e-6)
    assert result.reliable
    assert float(result.total_std_error) == 0


def test_counts_of_each_datum_are_summed():
    def model(x: Tensor | None = None) -> None:
        rate = torch.tensor([2.0, 5.0])
        with pyro.plate("data", 1 if x is None else len(x)):
            k = pyro.sample("k", dist.Poisson(rate).to_event(1))
            pyro.sample("x", dist.Normal(k.sum(-1), 1.0), obs=x)

    x = torch.tensor([3.0, 9.0, 30.0], dtype=torch.float64)
    k = torch.arange(200.0, dtype=torch.float64)
    each = dist.Poisson(7.0).log_prob(k) + dist.Normal(k, 1.0).log_prob(x[:, None])
    result = GridSum()(Program(model), x)
    assert torch.allclose(result.log_z, each.logsumexp(-1), atol=1e-5)


def test_counts_that_are_left_out_are_told():
    def model(x: Tensor | None = None) -> None:
        k = pyro.sample("k", dist.Poisson(torch.tensor(40.0)))
        pyro.sample("x", dist.Normal(0.0 * k, 1.0), obs=x)

    cut = GridSum(num_values=60)(Program(model), torch.zeros(()))
    assert any("larger ones are left out" in warning for warning in cut.warnings)
    assert GridSum()(Program(model), torch.zeros(())).reliable
    with pytest.raises(ValueError, match="joint values"):
        GridSum(num_values=11)(Program(noisy_or), torch.zeros(3))


@pytest.mark.parametrize("name", ["rare_count", "binary_sum"])
def test_auto_sums_what_it_can(name):
    known = problems.load(name)
    found = auto(known.program(), *known.args)
    assert found.reliable
    assert "GridSum agrees with" in found.estimator
    assert float(found.log_z) == pytest.approx(known.log_z, abs=1e-9)


MASK = torch.tensor([[True, True, False], [True, False, False]])


@pytest.mark.parametrize("where", ["inside", "outside", "handler"])
def test_masked_counts_are_counted_whole(where):
    """Padding has latents too, whose density integrates to one."""
    counts = dist.Poisson(torch.ones((), dtype=torch.float64)).expand([3])
    masked = counts.mask(MASK).to_event(1) if where == "inside" else counts.to_event(1)
    masked = masked.mask(MASK[:, 1]) if where == "outside" else masked

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with pyro.poutine.mask(mask=where != "handler"):
                k = pyro.sample("k", masked)
            pyro.sample("x", dist.Normal(k, 1.0).mask(mask).to_event(1), obs=x)

    x = torch.tensor([[1.0, 2.0, 9.0], [0.0, 9.0, 9.0]], dtype=torch.float64)
    k = torch.arange(40.0, dtype=torch.float64)
    each = dist.Poisson(1.0).log_prob(k) + dist.Normal(k, 1.0).log_prob(x[..., None])
    truth = torch.where(MASK, each.logsumexp(-1), 0.0).sum(-1)
    assert torch.allclose(GridSum()(Program(model), x, MASK).log_z, truth)
    wide = WideSampling(20_000)(Program(model), x, MASK)
    assert bool(((wide.log_z - truth).abs() < 4 * wide.std_error).all())
    assert float(wide.std_error.max()) < 0.05
