"""Programs in the coordinates of a guide, Pyro's NeuTra: evidence as in their own."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoIAFNormal
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from ppl_dgm import Program, evidence

X = torch.tensor([0.5, 1.2, -0.3])


def shared(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("other", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("model", [shared, local])
@pytest.mark.parametrize("guide", [AutoDiagonalNormal, AutoIAFNormal])
def test_evidence_is_that_of_the_model(model, guide) -> None:
    torch.manual_seed(0)
    made = guide(model, init_scale=0.8) if guide is AutoDiagonalNormal else guide(model, [8])
    warped = NeuTraReparam(made.requires_grad_(False)).reparam(model)
    covariance = torch.eye(3) + (torch.ones(3, 3) if model is shared else torch.eye(3))
    truth = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(X)
    with pyro.get_param_store().scope():
        made(X)
        found = evidence.ImportanceSampling(20_000)(Program(warped), X, seed=0)
    error = (found.log_z.sum() - truth).abs()
    assert error < 4 * found.std_error.norm() < 0.4


def test_pyro_stays_as_it_is_outside_of_programs() -> None:
    made = AutoDiagonalNormal(shared)
    with pyro.get_param_store().scope():
        made(X)
        warped = NeuTraReparam(made.requires_grad_(False)).reparam(shared)
        Program(warped).bind(X)
        trace = pyro.poutine.trace(warped).get_trace(X)
    latent = next(node for name, node in trace.nodes.items() if name.endswith("_shared_latent"))
    assert isinstance(latent["fn"], dist.MaskedDistribution)
