"""Mixtures of Student t against torch's own, their draws against their density."""

import pyro.distributions as dist
import pytest
import torch

from ppl_dgm.sampling.memory import allocated_bytes
from ppl_dgm.sampling.student_mixtures import StudentMixture, fit_student_mixture

FLOAT = torch.float64


def random_mixture(batch: tuple, components: int, dim: int) -> StudentMixture:
    raw = torch.randn(*batch, components, dim, dim, dtype=FLOAT) * 0.3
    factor = raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())
    weight = torch.randn(*batch, components, dtype=FLOAT).softmax(-1)
    return StudentMixture(weight, torch.randn(*batch, components, dim, dtype=FLOAT) * 3, factor)


@pytest.mark.parametrize("batch", [(), (4,)])
def test_density_is_that_of_torch(batch: tuple) -> None:
    mixture = random_mixture(batch, 3, 2)
    df = torch.tensor(mixture.degrees, dtype=FLOAT)
    parts = dist.MultivariateStudentT(df, mixture.loc, mixture.scale_tril)
    expected = dist.MixtureSameFamily(dist.Categorical(mixture.weight), parts)
    points = mixture.sample(50)
    assert points.shape == (50, *batch, 2)
    assert torch.allclose(mixture.log_prob(points), expected.log_prob(points))


@pytest.mark.parametrize("batch", [(), (4,)])
def test_draws_follow_the_density(batch: tuple) -> None:
    """E q'/q = 1 for another normalised q' that is no wider."""
    mixture = random_mixture(batch, 3, 2)
    other = StudentMixture(mixture.weight.flip(-1), mixture.loc + 0.1, mixture.scale_tril)
    points = mixture.sample(20_000)
    ratio = (other.log_prob(points) - mixture.log_prob(points)).exp()
    error = ratio.std(0) / 20_000**0.5
    assert bool(((ratio.mean(0) - 1).abs() < 4.5 * error).all())


def test_draws_do_not_hold_every_component() -> None:
    """Fifty components cost draws no more memory at once than a few numbers for each point."""
    mixture = random_mixture((), 50, 30)
    per_component = allocated_bytes(lambda: mixture.sample(1000)) / 50
    assert per_component < 8 * 1000 * 30 * 6


def test_a_fit_finds_two_clusters() -> None:
    left, right = torch.randn(300, 2, dtype=FLOAT) - 4, torch.randn(700, 2, dtype=FLOAT) + 4
    found = fit_student_mixture(torch.cat([left, right]), 2)
    order = found.loc[:, 0].argsort()
    assert torch.allclose(found.weight[order], torch.tensor([0.3, 0.7], dtype=FLOAT), atol=0.02)
    assert torch.allclose(found.loc[order, 0], torch.tensor([-4.0, 4.0], dtype=FLOAT), atol=0.3)
