"""Guides: densities against autodiff and quadrature, fits against the exact posterior."""

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from ppl_dgm import Program, log_weights
from ppl_dgm.conditionals.guides import (
    AmortisedGuide,
    DiagonalNormal,
    FlowPosterior,
    FullRankNormal,
    LocalGuide,
)
from ppl_dgm.families import PPCA, VAE
from ppl_dgm.objectives import ELBO, IWELBO

FLOWS = ["planar", "iaf", "maf", "spline", "householder", "sylvester"]


def drawn(posterior: FlowPosterior, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, latent, and log density of one draw for each row of parameters."""
    with pyro.plate("data", len(params)):
        trace = poutine.trace(posterior.draw).get_trace("z", params)
    trace.compute_log_prob()
    noise, z = trace.nodes["z_noise"], trace.nodes["z"]
    return noise["value"], z["value"], noise["log_prob"] + z["log_prob"]


@pytest.mark.parametrize("flow", FLOWS)
def test_flow_density_is_the_change_of_variables(flow: str) -> None:
    posterior = FlowPosterior(3, flow, num_context=4).double()
    params = torch.randn(5, posterior.num_params, dtype=torch.float64)
    noise, _, log_q = drawn(posterior, params)
    for i in range(5):

        def image(e: Tensor, row: Tensor = params[i]) -> Tensor:
            with poutine.block(), poutine.condition(data={"z_noise": e}):
                return posterior.draw("z", row)

        jacobian = torch.autograd.functional.jacobian(image, noise[i])
        loc, log_scale = params[i].split([3, 3, 4])[:2]
        expected = (
            dist.Normal(loc, log_scale.exp()).log_prob(noise[i]).sum()
            - torch.linalg.slogdet(jacobian)[1]
        )
        assert log_q[i].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("flow", FLOWS)
def test_flow_bends_with_its_context(flow: str) -> None:
    posterior = FlowPosterior(2, flow, num_context=4)
    params = torch.zeros(2, posterior.num_params)
    params[1, 4:] = 3.0
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    torch.manual_seed(0)
    _, z, _ = drawn(posterior, params[:1].expand(500, -1))
    torch.manual_seed(0)
    _, other, _ = drawn(posterior, params[1:].expand(500, -1))
    assert (z - other).abs().max() > 0.05


def test_the_transformed_distribution_is_that_of_the_draws() -> None:
    posterior = FlowPosterior(2, "iaf", num_context=3)
    params = torch.randn(4, posterior.num_params)
    _, z, log_q = drawn(posterior, params)
    assert torch.allclose(posterior(params).log_prob(z), log_q, atol=1e-4)


def test_full_rank_normal_has_its_covariance() -> None:
    posterior = FullRankNormal(2)
    law = posterior(torch.tensor([1.0, -1.0, 0.0, 0.5, 0.7]))
    factor = torch.tensor([[1.0, 0.0], [0.7, torch.tensor(0.5).exp()]])
    assert torch.allclose(law.covariance_matrix, factor @ factor.T)
    assert law.loc.tolist() == [1.0, -1.0]
    assert posterior(torch.randn(3, 1, 4, 5)).batch_shape == (3, 1, 4)


@pytest.mark.slow
def test_full_rank_amortisation_finds_the_exact_posterior() -> None:
    """The posterior of PPCA is normal with a mean that is linear in x: this guide contains it."""
    torch.manual_seed(0)
    x = torch.randn(30, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    exact = PPCA(3, 2).double()
    program = Program(
        exact.model.fn, AmortisedGuide(nn.Linear(3, 5).double(), FullRankNormal(2).double())
    )
    program.initialise(x)
    guide = [
        parameter for name, parameter in program.named_parameters() if name.startswith("guide")
    ]
    optimiser = torch.optim.Adam(guide, 0.05)
    objective = ELBO(num_particles=4, gradient="stl")
    for step in range(600):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / 600)
        optimiser.zero_grad()
        objective.differentiable_loss(program.model, program.guide, x).backward()
        optimiser.step()
    weights = log_weights(program, x, num_particles=1000, seed=0)
    gap = exact.marginal().log_prob(x) - weights.mean(0)  # the divergence from guide to posterior
    assert gap.abs().max() < 0.02


def test_local_guide_serves_its_own_data_only() -> None:
    vae = VAE(4, 2, [5])
    x = (torch.rand(6, 4) < 0.5).float()
    program = Program(vae.model.fn, LocalGuide(DiagonalNormal(2), torch.zeros(6, 4)))
    assert log_weights(program, x, num_particles=3).shape == (3, 6)
    with pytest.raises(ValueError, match="parameters for 6 data, but was called with 4"):
        program.guide(x[:4])


@pytest.mark.parametrize("objective", [ELBO(gradient="stl"), IWELBO(4, gradient="dreg")])
def test_gradients_that_need_the_density_at_fixed_latents_are_refused_for_flows(
    objective: Any,
) -> None:
    vae, x = VAE(4, 2, [5], guide=FlowPosterior(2, "iaf")), torch.ones(6, 4)
    with pytest.raises(ValueError, match="by transforms of auxiliary noise"):
        objective.differentiable_loss(vae.model, vae.guide, x)
    assert IWELBO(4).loss(vae.model, vae.guide, x) > 0


BAD = {
    "latents": (lambda: DiagonalNormal(0), "at least 1"),
    "flow": (lambda: FlowPosterior(2, "glow"), "there is no flow 'glow'"),
    "transforms": (lambda: FlowPosterior(2, "iaf", num_transforms=0), "at least one transform"),
    "start": (
        lambda: LocalGuide(DiagonalNormal(2), torch.zeros(6, 3)),
        "expected parameters \\[N, 4\\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
