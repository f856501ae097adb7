"""The ten things a new user tries in the first hour, by public names alone."""

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ppl_dgm import Fit, Program, compare, evidence, families, fit, posterior, to_arviz

ADAM = lambda parameters: torch.optim.Adam(parameters, lr=0.05)  # noqa: E731


def straight(t, y=None):
    a, b = (pyro.sample(name, dist.Normal(0.0, 3.0)) for name in ("a", "b"))
    with pyro.plate("data", len(t)):
        pyro.sample("y", dist.Normal(a + b * t, 0.5), obs=y)


def flat(t, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(t)):
        pyro.sample("y", dist.Normal(a, 0.5), obs=y)


def bent(t, y=None):
    a, b, c = (pyro.sample(name, dist.Normal(0.0, 3.0)) for name in ("a", "b", "c"))
    with pyro.plate("data", len(t)):
        pyro.sample("y", dist.Normal(a + b * t + c * t**2, 0.5), obs=y)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    t = np.linspace(-1, 1, 30)
    return pd.DataFrame({"t": t, "y": 1.0 - 2.0 * t + 0.5 * rng.normal(size=30)})


def log_evidence(table, powers):
    """Closed form: y ~ N(0, 9 X X' + 0.25 I)."""
    design = np.stack([table.t**power for power in powers], 1)
    covariance = torch.tensor(9 * design @ design.T + 0.25 * np.eye(len(table)))
    zero = torch.zeros(len(table), dtype=torch.float64)
    return float(dist.MultivariateNormal(zero, covariance).log_prob(torch.tensor(table.y.values)))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((60, 64), "uint8"), ((60, 1, 8, 8), "bool"), ((60, 8, 8), "int64"), ((60, 64), "float64")],
)
def test_numpy_images(shape, dtype):
    images = (np.random.default_rng(0).random(shape) < 0.3).astype(dtype)
    vae = families.VAE(64, 2, hidden=[16])
    result = fit(vae, images, epochs=3, batch_size=20, optimizer=ADAM, progress=False)
    assert result.steps == 9
    assert evidence.ImportanceSampling(20)(vae, images).log_z.shape == (60,)
    assert vae.sample(4).shape == (4, 64)


def test_a_regression_from_a_data_frame(table):
    result = evidence.auto(Program(straight, site="y"), table)
    assert result.reliable
    assert float(result.log_z) == pytest.approx(log_evidence(table, (0, 1)), abs=1e-3)


def test_an_own_data_loader():
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) + 2.0
    flow = families.Mixture(3, 1, "diagonal")
    fit(
        flow,
        DataLoader(TensorDataset(x), batch_size=16),
        steps=300,
        optimizer=ADAM,
        progress=False,
        compile=False,
    )
    assert torch.allclose(flow.sample(4000).mean(0), x.mean(0), atol=0.15)


def test_an_own_guide_with_pyro_nn(table):
    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))
            self.log_scale = nn.Parameter(torch.full((2,), -1.0))
            self.a = PyroSample(lambda self: dist.Normal(self.loc[0], self.log_scale[0].exp()))
            self.b = PyroSample(lambda self: dist.Normal(self.loc[1], self.log_scale[1].exp()))

        def forward(self, t, y=None):
            return self.a, self.b

    program = Program(straight, Guide(), site="y")
    fit(program, table, steps=300, optimizer=ADAM, progress=False, compile=False)
    result = evidence.ImportanceSampling(4000)(program, table)
    assert (
        abs(float(result.log_z) - log_evidence(table, (0, 1))) < 4 * float(result.std_error) + 0.01
    )


def test_three_regressions_from_one_file_compared(table, tmp_path):
    table.to_csv(tmp_path / "heights.csv", index=False)
    data = pd.read_csv(tmp_path / "heights.csv")
    programs = {fn.__name__: Program(fn, site="y") for fn in (flat, straight, bent)}
    found = compare(programs, data)
    assert found.best.name == "straight"
    assert sum(row.weight for row in found.rows) == pytest.approx(1.0)
    assert all(row.reliable for row in found.rows)


def test_a_bayes_factor_of_nested_models(table):
    found = compare({fn.__name__: Program(fn, site="y") for fn in (flat, straight)}, table)
    factor = found.bayes_factor("straight", "flat")
    truth = log_evidence(table, (0, 1)) - log_evidence(table, (0,))
    assert factor.log == pytest.approx(truth, abs=1e-3)
    assert factor.strength == "very strong"


def test_a_fit_loaded_the_next_day(table, tmp_path):
    def guide(t, y=None):
        for name in ("a", "b"):
            loc = pyro.param(f"{name}_loc", torch.tensor(0.0))
            scale = pyro.param(f"{name}_scale", torch.tensor(0.3), dist.constraints.positive)
            pyro.sample(name, dist.Normal(loc, scale))

    result = fit(
        Program(straight, guide, site="y"), table, steps=50, optimizer=ADAM, progress=False
    )
    result.save(tmp_path / "line.safetensors")
    again = Fit.load(tmp_path / "line.safetensors", Program(straight, guide, site="y"))
    numbers = [evidence.ImportanceSampling(100)(f.program, table) for f in (result, again)]
    assert torch.equal(numbers[0].log_z, numbers[1].log_z)


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # ArviZ 0.23
def test_arviz_plots_its_posterior(table):
    program = Program(straight, AutoMultivariateNormal(straight), site="y")
    fit(program, table, steps=300, optimizer=ADAM, progress=False, compile=False)
    draws = posterior(program, table, num_particles=4000)
    assert draws.reliable
    tree = to_arviz(draws)
    (axes,) = np.atleast_2d(az.plot_posterior(tree, var_names=["a", "b"]))
    assert len(axes) == 2
    axes[0].figure.clear()
    assert az.summary(tree, kind="stats").loc["b", "mean"] == pytest.approx(-2.0, abs=0.5)


def test_predictive_and_nuts_on_a_program(table):
    program = Program(straight, site="y")
    t, y = (torch.tensor(table[name].values, dtype=torch.float32) for name in ("t", "y"))
    program.initialise(t, y)
    with pytest.raises(TypeError, match=r"program\.model"):
        NUTS(program).setup(1, t, y)
    chains = MCMC(NUTS(program.model), num_samples=60, warmup_steps=60, disable_progbar=True)
    chains.run(t, y)
    draws = chains.get_samples()
    assert float(draws["b"].mean()) == pytest.approx(-2.0, abs=0.6)
    assert Predictive(program.model, posterior_samples=draws)(t)["y"].shape == (60, 30)


def test_a_latex_table(table):
    found = compare({fn.__name__: Program(fn, site="y") for fn in (flat, straight)}, table)
    lines = found.to_latex().splitlines()
    assert r"\toprule" in lines
    assert any(line.startswith(r"\textbf{straight} &") for line in lines)
