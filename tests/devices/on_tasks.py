"""Tasks, diagnostics, exports and plots on a second device."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from second_device import DEVICE, is_there
from torch import Tensor

from ppl_dgm import Dataset, Program, compare, diagnostics, fit, plots, posterior, tasks, to_arviz
from ppl_dgm.amortisation import amortisation_gap
from ppl_dgm.data import load_density, load_digits
from ppl_dgm.evidence import Exact, ImportanceSampling
from ppl_dgm.families import MADE, RBM, VAE, Energy


@pytest.fixture
def x() -> Tensor:
    return (torch.arange(80.0, device="cpu").reshape(20, 4) % 3 > 1).float().to(DEVICE)


@pytest.fixture
def vae(device: torch.device) -> VAE:
    return VAE(4, 2, [5]).to(device)


@pytest.fixture
def made(device: torch.device) -> MADE:
    return MADE(4, [8], order=[2, 0, 3, 1]).to(device)


def host(x: Tensor) -> Tensor:
    """A mask on the CPU, as users write it, for data on the device."""
    return torch.arange(x.shape[-1], device="cpu") < 2


def late_program() -> Program:
    """A model with a parameter and a net that its first run makes known."""
    with torch.device("cpu"):
        net, start = torch.nn.Linear(1, 1), torch.tensor(0.0)

    def model(x: Tensor) -> None:
        shift = pyro.module("net", net)(x.unsqueeze(-1)).squeeze(-1)
        loc = pyro.param("loc", start)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + shift, 1.0), obs=x)

    return Program(model)


def test_completions(vae: VAE, made: MADE, x: Tensor) -> None:
    for program in (vae, made):
        found = tasks.complete(program, x, host(x), num_particles=20, num_draws=2)
        assert is_there(found.draws)
        assert torch.equal(found.draws[:, :, :2], x[:, :2].expand(2, -1, -1))


@pytest.mark.slow
def test_denoising_and_inpainting(x: Tensor) -> None:
    rbm, bits = RBM(x.shape[1], 3).to(DEVICE), (x > 0.5).float()
    assert is_there(tasks.denoise(rbm, bits, 0.1, num_draws=2, num_moves=20).draws)
    assert is_there(tasks.complete(rbm, bits, x > 0, num_draws=2, num_moves=20).draws)
    normal = Energy(lambda x: 0 * x.sum(-1), x.shape[1]).to(DEVICE)
    assert is_there(tasks.denoise(normal, x, 0.5, num_draws=2, num_moves=20).draws)


def test_parts_given_parts(made: MADE, x: Tensor) -> None:
    mask = host(x)
    assert is_there(tasks.log_marginal(made, x, mask, num_particles=20).log_prob)
    assert is_there(tasks.log_conditional(made, x, mask, ~mask, num_particles=20).log_prob)


def test_decodings(vae: VAE, x: Tensor) -> None:
    assert is_there(tasks.reconstruct(vae, x))
    assert is_there(tasks.interpolate(vae, x[:1], x[1:2], num_steps=3, num_particles=8))


def test_detection(made: MADE, x: Tensor) -> None:
    usual, odd = Exact()(made, x), Exact()(made, 1 - x)
    assert 0 <= tasks.detect(usual, odd).auroc <= 1


def test_diagnostics(vae: VAE, x: Tensor) -> None:
    before = torch.get_device_module(x.device).get_rng_state(x.device)
    assert bool(diagnostics.latent_use(vae, x, num_particles=8).signal.isfinite().all())
    assert bool(diagnostics.code_length(vae, x, num_particles=8).data.isfinite().all())
    assert amortisation_gap(vae, x, num_steps=2, num_particles=8) is not None
    assert torch.equal(before, torch.get_device_module(x.device).get_rng_state(x.device))


@pytest.mark.parametrize(
    "name",
    ["mean_test", "ks_test", "energy_test", "mmd_test", "linear_mmd_test", "classifier_test"],
)
def test_two_samples(name: str, device: torch.device) -> None:
    x = torch.randn(30, 1 if name == "ks_test" else 2, device=device)
    found = getattr(diagnostics, name)(x, x + 5, num_permutations=50)
    assert found.p_value < 0.05


def test_data_sets(device: torch.device) -> None:
    data = load_digits(levels=2)
    assert data.split().x.device == data.labels.device == data.x.device
    before = torch.get_device_module(device).get_rng_state(device)
    assert load_density("banana", num_samples=10).x.shape == (10, 2)
    assert torch.equal(before, torch.get_device_module(device).get_rng_state(device))
    assert is_there(Dataset(torch.zeros(4, 2)).to(device).x)


def test_exports_and_plots(vae: VAE, made: MADE, x: Tensor) -> None:
    result = fit(vae, x, steps=2, compile=False, progress=False)
    assert result.plot() is not None
    method = ImportanceSampling(20)
    table = compare({"vae": method(vae, x), "made": method(made, x)})
    assert "made" in str(table)
    with pytest.warns(UserWarning, match="should not be believed"):  # of so few particles
        assert to_arviz(posterior(vae, x, num_particles=20, num_draws=4)) is not None
    plots.plot_weights(torch.randn(100, device=x.device))


def test_a_parameter_made_late_is_where_the_fit_is(device: torch.device) -> None:
    """The program is moved before its first run makes its parameters and a net of its own."""
    how: Any = {"device": device, "steps": 2, "compile": False, "progress": False}
    result = fit(late_program(), torch.ones(4, device="cpu"), **how)
    assert all(map(is_there, result.program.parameters()))
    assert len(list(result.program.parameters())) == 3
