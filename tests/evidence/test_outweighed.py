"""Modes of a posterior that an estimator misses and a search finds."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program
from ppl_dgm.evidence import (
    SMC,
    BridgeSampling,
    ImportanceSampling,
    Laplace,
    LearnedHarmonicMean,
    PriorSampling,
    auto,
)
from ppl_dgm.sampling.missed_modes import scouted_before

PLACES = torch.tensor([[-4.0, 2.0], [4.0, 0.0], [1.0, -3.0]]).double()
WEIGHTS = torch.tensor([0.2, 0.3, 0.5]).double()
TRUTH = -0.5 * math.log(2 * math.pi)  # of the datum alone: the modes' weights sum to one


def three_modes(narrow):
    """A mixture of three normals in the plane, half of its mass in the narrow one."""
    widths = torch.tensor([0.6, 0.8, narrow]).double()

    def model(x=None):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 3.0).to_event(1))
        modes = dist.Normal(PLACES, widths[:, None]).log_prob(z.unsqueeze(-2)).sum(-1)
        mixture = (modes + WEIGHTS.log()).logsumexp(-1)
        pyro.factor("modes", mixture - dist.Normal(0.0, 3.0).log_prob(z).sum(-1))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return Program(model)


def draws_of_two_modes():
    """Posterior draws as of chains that have not found the third one."""
    torch.manual_seed(1)
    which = torch.multinomial(WEIGHTS[:2], 2000, replacement=True)
    widths = torch.tensor([0.6, 0.8]).double()
    return {"z": (PLACES[which] + widths[which, None] * torch.randn(2000, 2)).view(4, 500, 2)}


DRAWS = draws_of_two_modes()
DATUM = torch.tensor(0.0).double()
NARROW, FAIR = three_modes(0.05), three_modes(0.4)  # each is searched once


@pytest.mark.parametrize(
    "estimator",
    [
        PriorSampling(),
        Laplace(),
        BridgeSampling(posterior=DRAWS),
        LearnedHarmonicMean(posterior=DRAWS),
    ],
    ids=lambda estimator: estimator.name,
)
def test_a_narrow_mode_with_half_of_the_mass_is_told(estimator):
    found = estimator(NARROW, DATUM)
    assert float(found.log_z - TRUTH) == pytest.approx(math.log(0.5), abs=0.1)  # missed, indeed
    assert any("some modes alone outweigh the estimate" in text for text in found.warnings)


@pytest.mark.parametrize("estimator", [SMC(), Laplace()], ids=lambda estimator: estimator.name)
def test_an_estimate_of_all_modes_has_no_alarm(estimator):
    for seed in range(1, 3):
        found = estimator(FAIR, DATUM, seed=seed)
        assert found.reliable, found.warnings
        assert abs(float(found.log_z - TRUTH)) < 4 * float(found.std_error)


def test_a_support_without_coordinates_is_no_error():
    """A direction, about which the datum says nothing; vmap cannot draw it, an outer plate can."""

    def model(x):
        z = pyro.sample("z", dist.ProjectedNormal(torch.tensor([1.0, 0.0, 0.0])))
        pyro.sample("x", dist.Normal(0.0 * z[..., 0], 1.0), obs=x)

    program = Program(model)
    assert float(PriorSampling(100)(program, DATUM).log_z) == pytest.approx(TRUTH, abs=1e-6)
    with pytest.raises(ValueError, match="latent 'z' has no transform from all real numbers"):
        SMC()(program, DATUM)


def squared(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z.square(), 1.0), obs=x)


def at_one_root(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.sqrt(), 0.5))


def at_both_roots(x):
    even = dist.Categorical(logits=torch.zeros(len(x), 2).double())
    roots = dist.Normal(torch.stack([x.sqrt(), -x.sqrt()], -1), 0.5)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.MixtureSameFamily(even, roots))


def test_modes_of_latents_of_each_datum_are_looked_for():
    """A guide at one of two mirrored modes is log 2 too low for each datum, in silence."""
    x = torch.tensor([6.0, 5.0, 4.5, 7.0, 8.0]).double()
    one = ImportanceSampling(5000)(Program(squared, at_one_root), x)
    assert any("for 5 of 5 data" in warning for warning in one.warnings)
    with scouted_before(None):  # as `auto` does, whose search is of data sets
        again = ImportanceSampling(5000)(Program(squared, at_one_root), x)
    assert again.warnings == one.warnings
    both = ImportanceSampling(5000)(Program(squared, at_both_roots), x)
    assert not both.warnings
    assert float((both.log_z - one.log_z - math.log(2)).abs().max()) < 0.15


def test_few_data_with_two_modes_among_many_are_told():
    """Three data have a second root, the others one mode at zero."""
    x = torch.full((150,), 0.01).double()
    x[torch.tensor([10, 57, 120])] = 6.0

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sqrt(), torch.where(x > 1, 0.3, 0.6)))

    found = ImportanceSampling(5000)(Program(squared, guide), x)
    assert any("for 3 of 150 data" in warning for warning in found.warnings)


@pytest.mark.parametrize("num_data", [1, 5])
def test_auto_moves_on_where_a_guide_misses_modes(num_data):
    x = torch.tensor([6.0, 5.0, 4.5, 7.0, 8.0]).double()[:num_data]
    z = torch.linspace(-10, 10, 20001).double().unsqueeze(1)
    normal = torch.distributions.Normal
    joint = normal(0.0, 1.0).log_prob(z) + normal(z.square(), 1.0).log_prob(x)
    found = auto(Program(squared, at_one_root), x)
    assert found.reliable
    assert float((found.log_z - joint.logsumexp(0) - math.log(1e-3)).abs().max()) < 0.05
