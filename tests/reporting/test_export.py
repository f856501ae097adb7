"""Export to ArviZ: groups, dimensions, leave-one-out against its closed form, both generations."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
import xarray as xr

from ppl_dgm import Posterior, Program, posterior, to_arviz
from ppl_dgm.reporting import arviz as export
from ppl_dgm.reporting.arviz import build_tree
from ppl_dgm.reporting.netcdf import write_netcdf

X = torch.randn(25, generator=torch.Generator().manual_seed(3)) + 0.5


def shared(scale=1.0):
    """loc ~ N(0, 1), x_i ~ N(loc, scale)."""

    def model(x=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.deterministic("double", 2 * loc)
        with pyro.plate("data", 25):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    return Program(model)


def local(x=None):
    with pyro.plate("data", 3 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample(
            "x",
            dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 4), 1.0).to_event(1),
            obs=x,
        )


def conjugate_draws(x, scale, num_draws=4000):
    """Draws of loc | x, from its closed form."""
    precision = 1 + len(x) / scale**2
    loc = x.sum() / scale**2 / precision
    return loc + torch.randn(num_draws, generator=torch.Generator().manual_seed(1)) / precision**0.5


def exact_loo(x, scale):
    """log p(x_i | the others) of the model `shared`."""
    terms = []
    for i in range(len(x)):
        others = torch.cat([x[:i], x[i + 1 :]])
        precision = 1 + len(others) / scale**2
        loc = others.sum() / scale**2 / precision
        terms.append(dist.Normal(loc, (scale**2 + 1 / precision) ** 0.5).log_prob(x[i]))
    return torch.stack(terms)


def groups_of(tree):
    """Names of the groups, of InferenceData and DataTree alike."""
    names = tree.groups() if callable(tree.groups) else tree.groups
    return {name.strip("/") for name in names} - {""}


@pytest.fixture(scope="module")
def tree():
    return to_arviz(posterior(shared(), X, num_particles=4000, num_draws=500))


def test_groups_and_dimensions(tree):
    groups = {
        "posterior",
        "prior",
        "posterior_predictive",
        "prior_predictive",
        "log_likelihood",
        "observed_data",
    }
    assert groups <= groups_of(tree)
    assert tree.posterior["loc"].dims == ("chain", "draw")
    assert tree.posterior_predictive["x"].dims == ("chain", "draw", "data")
    assert tree.log_likelihood["x"].dims == ("chain", "draw", "data")
    assert tree.prior["loc"].shape == (1, 500)
    assert set(tree.prior.data_vars) == {"loc", "double"}
    assert np.allclose(tree.posterior["double"], 2 * tree.posterior["loc"])
    assert np.allclose(tree.observed_data["x"], X)


def test_log_likelihood_belongs_to_the_posterior_draws(tree):
    loc = torch.tensor(tree.posterior["loc"].values[0]).unsqueeze(1)
    assert np.allclose(tree.log_likelihood["x"][0], dist.Normal(loc, 1.0).log_prob(X), atol=1e-5)


def test_event_dimensions_follow_the_plates():
    tree = to_arviz(posterior(Program(local), torch.zeros(3, 4), num_particles=4000, num_draws=20))
    assert tree.posterior["z"].dims == ("chain", "draw", "data", "z_dim_0")
    assert tree.posterior_predictive["x"].dims == ("chain", "draw", "data", "x_dim_0")
    assert tree.log_likelihood["x"].dims == ("chain", "draw", "data")
    assert tree.observed_data["x"].dims == ("data", "x_dim_0")


def test_leave_one_out_is_the_closed_form():
    draws = Posterior(shared().bind(X), {"loc": conjugate_draws(X, 1.0)})
    loo = az.loo(to_arviz(draws), pointwise=True)
    each, total = (loo.loo_i, loo.elpd_loo) if export.IS_ARVIZ_0 else (loo.elpd_i, loo.elpd)
    assert np.allclose(each.values, exact_loo(X, 1.0), atol=0.02)
    assert total == pytest.approx(float(exact_loo(X, 1.0).sum()), abs=0.1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pandas, in ArviZ 0.23
def test_arviz_compares_the_exports():
    trees = {
        str(scale): to_arviz(
            Posterior(shared(scale).bind(X), {"loc": conjugate_draws(X, scale, 1000)})
        )
        for scale in (1.0, 3.0)
    }
    table = az.compare(trees)
    difference = float((exact_loo(X, 1.0) - exact_loo(X, 3.0)).sum())
    assert list(table.index) == ["1.0", "3.0"]
    assert abs(table.loc["3.0", "elpd_diff"]) == pytest.approx(difference, abs=0.2)


def test_arviz_summarises_the_exports(tree):
    summary = az.summary(tree, kind="stats")
    assert summary.loc["loc", "mean"] == pytest.approx(float(X.sum() / 26), abs=0.05)


def test_netcdf_round_trip(tree, tmp_path):
    write_netcdf(tree, tmp_path / "tree.nc")
    back = az.from_netcdf(tmp_path / "tree.nc")
    assert np.array_equal(back.posterior["loc"], tree.posterior["loc"])
    assert groups_of(back) == groups_of(tree)


def test_plates_name_the_dimensions():
    def model(x=None):
        with pyro.plate("data", 2), pyro.plate("inner", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    tree = to_arviz(posterior(Program(model), torch.zeros(3, 2), num_particles=4000, num_draws=5))
    assert (
        tree.posterior["z"].dims
        == tree.log_likelihood["x"].dims
        == ("chain", "draw", "inner", "data")
    )


def test_factors_have_no_predictive_groups():
    def model(x=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("energy", -0.5 * (x - z) ** 2)

    tree = to_arviz(posterior(Program(model), torch.ones(2), num_particles=1000, num_draws=10))
    assert groups_of(tree) == {"posterior"}


def test_the_second_generation_gets_one_nested_dictionary(monkeypatch):
    calls = []
    monkeypatch.setattr(export, "IS_ARVIZ_0", False)
    monkeypatch.setattr(export.az, "from_dict", lambda data, dims: calls.append((data, dims)))
    build_tree({"posterior": {"loc": np.zeros((1, 2))}}, {"loc": []})
    assert calls[0][0]["posterior"]["loc"].shape == (1, 2)
    assert calls[0][1] == {"loc": []}


# ---- what leaves the library keeps its alarm -----------------------------------------------------


def far(x=None):
    """A posterior far from the prior: a few particles hold all the weight."""
    z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
    with pyro.plate("data", 4):
        pyro.sample("x", dist.Normal(z.sum(), 0.02), obs=x)


def test_alarms_travel_and_repeated_draws_are_not_counted(tmp_path):
    draws = posterior(Program(far), torch.full((4,), 6.0), num_particles=20_000)
    assert draws.ess < 100
    with pytest.warns(UserWarning, match=r"should not be believed: Pareto k.*worth"):
        tree = to_arviz(draws)
    found = tree.posterior.attrs
    assert found["reliable"] == 0
    assert any("Pareto k" in warning for warning in found["warnings"])
    assert (found["ess"], found["pareto_k"]) == (float(draws.ess), float(draws.pareto_k))
    assert (found["num_particles"], found["sampler"]) == (20_000, "importance resampling")
    assert float(az.ess(tree)["z"].max()) < 3 * float(draws.ess)
    write_netcdf(tree, tmp_path / "far.nc")
    assert az.from_netcdf(tmp_path / "far.nc").posterior.attrs["reliable"] == 0


def test_draws_of_another_sampler_are_handed_on_whole():
    tree = to_arviz(Posterior(shared().bind(X), {"loc": conjugate_draws(X, 1.0, 37)}))
    assert tree.posterior["loc"].shape == (1, 37)
    assert tree.posterior.attrs["sampler"] == "given"
    assert tree.posterior.attrs["reliable"] == 1


def test_masked_entries_are_no_data_for_leave_one_out():
    seen = torch.arange(25) < 10

    def masked(x=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 25):
            with pyro.poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.zeros(25))

    tree = to_arviz(Posterior(Program(masked).bind(X), {"loc": conjugate_draws(X[:10], 1.0)}))
    assert tree.log_likelihood["x"].shape == (1, 4000, 10)
    assert tree.log_likelihood["y"].shape == (1, 4000, 25)
    assert list(tree.log_likelihood["x_counted"].values) == list(range(10))
    assert int(np.isnan(tree.observed_data["x"]).sum()) == 15
    loo = az.loo(tree, var_name="x", pointwise=True)
    each = loo.loo_i if export.IS_ARVIZ_0 else loo.elpd_i
    assert np.allclose(each.values, exact_loo(X[:10], 1.0), atol=0.02)


def two_sites(x: torch.Tensor, seen: torch.Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).mask(seen), obs=x)
        pyro.sample("y", dist.Normal(loc, 1.0), obs=x)


def test_a_site_that_is_masked_as_a_whole_has_no_log_likelihood():
    bound = Program(two_sites).bind(X, torch.zeros(len(X), dtype=torch.bool))
    tree = to_arviz(Posterior(bound, {"loc": conjugate_draws(X, 1.0)}))
    assert list(tree.log_likelihood.data_vars) == ["y"]
    assert np.isfinite(az.loo(tree).elpd_loo if export.IS_ARVIZ_0 else az.loo(tree).elpd)


@pytest.mark.parametrize("num_draws", [1, 3])
def test_few_draws_of_any_sampler_are_told(num_draws):
    bound = Program(two_sites).bind(X, torch.ones(len(X), dtype=torch.bool))
    with pytest.warns(UserWarning, match=f"has {num_draws} draw"):
        tree = to_arviz(Posterior(bound, {"loc": torch.zeros(num_draws)}))
    assert ("log_likelihood" in groups_of(tree)) == (num_draws > 1)  # of one az.loo fails
    assert not tree.posterior.attrs["reliable"]


def test_sites_named_as_dimensions_of_arviz_are_kept():
    def model(x=None):
        draw = pyro.sample("draw", dist.Normal(0.0, 1.0))
        chain = pyro.sample("chain", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(draw + chain, 1.0), obs=x)

    tree = to_arviz(posterior(Program(model), torch.ones(3), num_particles=2000))
    assert set(tree.posterior.data_vars) == {"draw_", "chain_"}


def test_log_likelihoods_are_those_of_double():
    """In float32 the density of a count of 3e7 is off by nats, and draws are 2 apart."""

    def model(count):
        rate = pyro.sample("rate", dist.Uniform(3e7, 3e7 + 4))
        with pyro.plate("data", 1):
            pyro.sample("count", dist.Poisson(rate.unsqueeze(-1)), obs=count)

    with pytest.warns(UserWarning, match="rounded to torch.float32"):
        tree = to_arviz(posterior(Program(model), torch.tensor([3e7])))
    assert np.allclose(tree.log_likelihood["count"], scipy.stats.poisson.logpmf(3e7, 3e7))


def test_data_with_leading_dimensions_are_exported() -> None:
    """Pyro's forecasting models observe a residual `[1, time, features]` of data without the 1."""

    def model(x: torch.Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        noise = dist.Normal(level[..., None, None, None], 1.0).expand((1, 6, 2)).to_event(2)
        pyro.sample("residual", noise, obs=x.unsqueeze(0))

    x = torch.arange(12.0).reshape(6, 2) / 10
    tree = to_arviz(posterior(Program(model), x, num_particles=4000))
    assert tree.posterior_predictive["residual"].shape[2:] == (1, 6, 2)
    assert tree.observed_data["residual"].shape == (1, 6, 2)
    assert tree.prior_predictive["residual"].shape[2:] == (1, 6, 2)


NAMES = ["a/b", "a\0b", "\ud800", "β", "a b", "x.y", ".", "/", "", " z ", "🎲", "draw"]


@pytest.mark.filterwarnings("ignore:the exported draws")
def test_sites_and_plates_of_any_names_are_exported(tmp_path):
    def model(x):
        with pyro.plate("p/q", len(x)):
            draws = [pyro.sample(name, dist.Normal(float(i), 1e-9)) for i, name in enumerate(NAMES)]
            pyro.sample("x/y", dist.Normal(draws[0], 1.0), obs=x)

    found = posterior(Program(model), torch.zeros(2), num_particles=9, num_draws=5)
    write_netcdf(to_arviz(found), tmp_path / "names.nc")
    kept = az.from_netcdf(tmp_path / "names.nc").posterior
    means = [kept[name].mean().item() for name in kept.data_vars]
    assert sorted(means) == pytest.approx(range(len(NAMES)), abs=1e-6)
    assert {"a∕b", "β", "unnamed", "draw_"} <= {*kept.data_vars}
    assert kept["β"].dims == ("chain", "draw", "p∕q")


def test_texts_of_any_characters_are_written(tmp_path):
    group = xr.Dataset(coords={"program": NAMES}, attrs={"alarms": "a\0b \ud800"})
    write_netcdf(group, tmp_path / "texts.nc")
    found = xr.load_dataset(tmp_path / "texts.nc", engine="h5netcdf")
    assert [*found.program.values[:5]] == ["a/b", "a␀b", "\\ud800", "β", "a b"]
    assert found.attrs["alarms"] == "a␀b \\ud800"


def test_data_of_any_numbers_are_exported_as_they_are() -> None:
    def model(x: torch.Tensor, y: torch.Tensor, seen: torch.Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1e-7))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate).mask(seen), obs=x)
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    x, y = torch.tensor([2**24 + 1, 2**25 + 3]), torch.tensor([0.5, -0.25], dtype=torch.bfloat16)
    bound = Program(model).bind(x, y, torch.tensor([True, False]))
    draws = Posterior(bound, {"rate": 1e7 * torch.rand(20) + 1e7})
    data = to_arviz(draws).observed_data
    assert np.array_equal(data["x"], [2**24 + 1, np.nan], equal_nan=True)
    assert np.array_equal(data["y"], [0.5, -0.25])
