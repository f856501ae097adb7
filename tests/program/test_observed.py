"""Digests of data: what splits, casts and shifts leave alone, and what tells data apart."""

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppl_dgm import Program, compare, evidence, posterior
from ppl_dgm.families import IndependentBernoulli
from ppl_dgm.families.bayesnet import BayesNet, Table
from ppl_dgm.program.observed import same_data

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def vectors(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)


def columns(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        for i in (2, 0, 1):
            pyro.sample(f"c{i}", dist.Normal(0.0, 1.0), obs=x[:, i])


def rows(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"r{i}", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x[i])


def plates(x: Tensor) -> None:
    with pyro.plate("data", len(x)), pyro.plate("variables", 3, dim=-2):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x.T)


def whole(x: Tensor) -> None:
    pyro.sample("x", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(2), obs=x)


def copied(x: Tensor) -> None:
    vectors(x.clone() + 0.0)


def digest(model, *args, **kwargs) -> str:
    return Program(model).bind(*args, **kwargs).digest


@pytest.mark.parametrize("model", [columns, rows, plates, whole, copied])
def test_data_are_told_whatever_sites_they_are_split_into(model):
    assert digest(model, X) == digest(vectors, X)
    assert digest(model, X) != digest(vectors, X.flip(0))


def test_a_vector_is_its_numbers_in_order():
    def vector(y: Tensor) -> None:
        with pyro.plate("schools", 4):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    def numbers(y: Tensor) -> None:
        for i in range(4):
            pyro.sample(f"y{i}", dist.Normal(0.0, 1.0), obs=y[i])

    y = torch.arange(4.0)
    assert digest(vector, y) == digest(numbers, y)
    assert digest(numbers, y) != digest(numbers, y.flip(0))


def test_digits_beyond_single_precision_count():
    y = torch.tensor([[1e8], [1e8 + 1]], dtype=torch.float64)
    assert not same_data(digest(columns_of_one, y), digest(columns_of_one, y.flip(0)))
    single = X.float()
    assert digest(vectors, single) == digest(vectors, single.double())
    assert same_data(digest(vectors, single), digest(vectors, X))  # rounded from it
    assert not same_data(digest(vectors, X), digest(vectors, X + 1e-12))


def columns_of_one(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(1e8, 1.0), obs=x[:, 0])


def test_many_pieces_have_the_digest_of_the_whole(monkeypatch):
    model = IndependentBernoulli(3)
    x = (torch.rand(700, 3) < 0.5).float()
    at_once = model.bind(x).digest
    monkeypatch.setattr("ppl_dgm.program.inspection.LARGE", 0)
    monkeypatch.setattr("ppl_dgm.program.inspection.PIECE", 100)
    assert model.bind(x).digest == at_once


def residuals(sign: float = 1.0, scale: float = 1.0):
    """What a forecasting model observes: data less their prediction."""

    def model(t: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("r", dist.Normal(0.0, 1.0), obs=sign * (y - slope * t) / scale)

    return model


def direct(t: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(slope * t, 1.0), obs=y)


def test_residuals_are_densities_of_the_data():
    t, y = X[:, 0], X[:, 1]
    assert digest(residuals(), t, y) == digest(direct, t, y) == digest(residuals(-1.0), t, y)
    assert digest(residuals(), t, y) != digest(residuals(), t, y + 1)
    assert digest(residuals(scale=2.0), t, y) != digest(direct, t, y)  # another unit
    assert digest(residuals(scale=2.0), t, y) == digest(residuals(scale=2.0), t, y)
    table = compare({"of residuals": Program(residuals()), "of data": Program(direct)}, t, y)
    assert table["of residuals"].log_z == pytest.approx(table["of data"].log_z, abs=1e-6)


def standardised(y: Tensor) -> None:
    mean, scale = location_and_scale()
    with pyro.plate("data", len(y)):
        pyro.sample("r", dist.Normal(0.0, 1.0), obs=(y - mean) / scale)


def completed(y: Tensor) -> None:
    """Standardised values with the Jacobian of that."""
    mean, scale = location_and_scale()
    with pyro.plate("data", len(y)):
        pyro.sample("r", dist.Normal(0.0, 1.0), obs=(y - mean) / scale)
        pyro.factor("jacobian", -scale.log().expand(y.shape))


def location(y: Tensor) -> None:
    mean, scale = location_and_scale()
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def location_and_scale() -> tuple[Tensor, Tensor]:
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    return mean, pyro.sample("scale", dist.LogNormal(0.0, 0.5))


def innovations(y: Tensor) -> None:
    """An autoregression by its residuals: a triangular map of unit volume."""
    slope = pyro.sample("slope", dist.Normal(0.0, 0.5))
    before = torch.cat([y.new_zeros(1), y[:-1]])
    pyro.sample("e", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1), obs=y - slope * before)


def rotated(y: Tensor) -> None:
    """Pairs mixed by a matrix whose determinant moves."""
    slope = pyro.sample("slope", dist.Normal(0.0, 0.5))
    mixed = torch.cat([y[:3] + slope * y[3:], y[3:] + slope * y[:3]])
    pyro.sample("e", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1), obs=mixed)


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (standardised, True),
        (rotated, True),
        (innovations, False),
        (completed, False),
        (location, False),
    ],
)
def test_data_stretched_by_latents_raise_an_alarm(model, wrong):
    program, y = Program(model), X[:, 0]
    found = evidence.SMC(num_particles=50, num_groups=2)(program, y)
    draws = posterior(program, y, num_particles=500)
    for told in (found.warnings, draws.warnings):
        assert any("latents stretch" in warning for warning in told) == wrong


def test_stretched_data_are_none_that_others_observe():
    y = X[:, 0]
    assert digest(standardised, y) != digest(location, y)
    assert digest(standardised, y) == digest(standardised, y)
    assert digest(rotated, y) != digest(location, y)
    assert digest(innovations, y) == digest(location, y) == digest(completed, y)
    with pytest.raises(ValueError, match="different data"):
        compare({"data": Program(location), "standardised": Program(standardised)}, y)


def test_covariates_are_not_taken_for_stretched_data():
    y = X[:, 1]
    assert not Program(residuals()).inspect(X[:, 0], y).stretched
    assert not Program(residuals()).inspect(X[:, 0], torch.arange(6)).stretched


def test_a_bayes_net_stands_beside_vectors():
    x = (torch.rand(20, 2) < 0.4).float()
    net = BayesNet({"a": Table([0.6, 0.4]), "b": Table([0.6, 0.4])})
    pixels = IndependentBernoulli(2).fit_counts(x)
    table = compare(
        {
            "net": evidence.Exact()(net, {"a": x[:, 0], "b": x[:, 1]}),
            "pixels": evidence.Exact()(pixels, x),
        }
    )
    assert {row.name for row in table.rows} == {"net", "pixels"}


def test_masked_entries_are_no_data():
    def model(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    seen = torch.tensor([True, True, False, True, True, True])
    y = X[:, 0]
    hidden = torch.where(seen, y, 9.0)
    assert digest(model, y, seen) == digest(model, hidden, seen)
    assert digest(model, y, seen) != digest(model, y, seen.flip(0))


def test_rows_of_a_loop_may_have_different_lengths():
    """Sequences cut to their lengths are those that are padded and masked."""
    lengths = torch.tensor([3, 1, 2, 3, 2, 1])

    def cut(x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            row = x[i, : lengths[i]]
            pyro.sample(f"r{i}", dist.Normal(torch.zeros(len(row)), 1.0).to_event(1), obs=row)

    def masked(x: Tensor) -> None:
        seen = torch.arange(3) < lengths[:, None]
        with pyro.plate("data", len(x)):
            at = dist.Normal(torch.zeros(len(x), 3), 1.0).mask(seen)
            pyro.sample("x", at.to_event(1), obs=x)

    assert digest(cut, X) == digest(masked, X)
    assert digest(cut, X) != digest(cut, X.flip(0))
    assert Program(cut).bind(X).num_dims == lengths.sum()
    log_z = evidence.Exact()(Program(cut), X).log_z
    torch.testing.assert_close(log_z, evidence.Exact()(Program(masked), X).log_z)
