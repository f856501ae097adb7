"""Maximum likelihood with a learned proposal against closed forms."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from energies import NormalEnergy
from torch import Tensor

from ppl_dgm import fit
from ppl_dgm.evidence import Exact
from ppl_dgm.families import NSF, VAE, Energy, Mixture, RealNVP
from ppl_dgm.objectives import LearnedProposal

PRECISION = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
SHIFT = torch.tensor([0.4, -0.7], dtype=torch.float64)


def proportional_to(mixture: Mixture, log_constant: float) -> Energy:
    """An energy whose density is that of a mixture times a constant."""
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    parts = mixture.model.fn.components  # type: ignore[union-attr]
    each = dist.Normal(parts.locs.detach(), parts.log_scales.exp().detach()).to_event(1)
    weights = dist.Categorical(logits=mixture.model.fn.logits.detach())  # type: ignore[union-attr]
    density = dist.MixtureSameFamily(weights, each)
    return Energy(lambda x: base.log_prob(x) - density.log_prob(x) - log_constant, 2)


def test_a_proposal_that_is_the_model_leaves_no_noise() -> None:
    """All weights are equal, whatever the draws: the value is the log likelihood."""
    torch.manual_seed(0)
    flow, x = Mixture(2, 2), torch.randn(5, 2)
    energy, game = proportional_to(flow, 3.0), LearnedProposal(flow, 4)
    loss = game.loss(energy.model, energy.guide, x)
    assert -loss == pytest.approx(float(Exact()(flow, x).total), abs=1e-4)


def test_the_gradient_is_that_of_weighted_draws() -> None:
    flow, x = Mixture(2, 2).double(), torch.randn(5, 2, dtype=torch.float64)
    net = NormalEnergy(PRECISION, SHIFT)
    energy = Energy(net, 2).double()
    game = LearnedProposal(flow, 30)
    game.initialise((x,), {})
    player = game.players(None)[0]
    torch.manual_seed(7)
    loss = player.objective.differentiable_loss(energy.model, energy.guide, x)
    (found,) = torch.autograd.grad(loss / 5, [net.shift])
    torch.manual_seed(7)
    draws = flow.sample(30)
    log_f = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1).log_prob(draws) - net(draws)
    weights = (log_f.detach() - Exact()(flow, draws).log_z).softmax(0)
    torch.testing.assert_close(found, weights @ draws - x.mean(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype", "compiled"),
    [
        (partial(RealNVP, 2, 2), torch.float64, False),
        (partial(NSF, 2, 1), torch.float32, False),
        (partial(RealNVP, 2, 2), torch.float32, True),
    ],
)
def test_the_parameters_of_a_normal_are_recovered(
    family: partial, dtype: torch.dtype, compiled: bool
) -> None:
    """The maximum likelihood estimates, to a fraction of their standard errors."""
    torch.manual_seed(1)
    size, steps = 1000, 250
    mean = torch.linalg.solve(PRECISION, SHIFT)
    x = dist.MultivariateNormal(mean, precision_matrix=PRECISION).sample((size,)).to(dtype)
    net = NormalEnergy(torch.eye(2).to(dtype), torch.zeros(2, dtype=dtype))
    decay = partial(torch.optim.lr_scheduler.LinearLR, start_factor=1, end_factor=0.01)
    found = fit(
        Energy(net, 2).to(dtype),
        x,
        LearnedProposal(family().to(dtype), 300),
        steps=steps,
        optimizer=partial(torch.optim.Adam, lr=0.03),
        schedule=partial(decay, total_iters=steps),
        compile=compiled,
        progress=False,
    )
    covariance = torch.cov(x.T, correction=0)
    best = torch.linalg.inv(covariance)
    precision = 0.5 * (net.precision + net.precision.T)
    spread = (best.diagonal().outer(best.diagonal()) + best.square()).sqrt() / math.sqrt(size)
    assert bool(((precision - best).abs() < spread).all())
    error = torch.linalg.solve(precision, net.shift) - x.mean(0)
    assert bool((error.abs() < (covariance.diagonal() / size).sqrt()).all())
    truth = dist.MultivariateNormal(x.mean(0), covariance).log_prob(x).mean()
    assert float(found.history["objective"][-20:].mean()) == pytest.approx(float(truth), abs=0.02)
    assert {"energy", "proposal"} <= set(found.history)


def joined(x: Tensor, y: Tensor) -> None:
    """A program with a covariate."""
    with pyro.plate("data", len(x)):
        value = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)
        pyro.factor("energy", (value * y).sum(-1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LearnedProposal(Mixture(2, 2), 0), ValueError, "num_draws"),
        (lambda: LearnedProposal(NOISE), TypeError, "Program"),  # type: ignore[arg-type]
        (lambda: run(Energy(NET, 2), LearnedProposal(VAE(2, 1))), ValueError, "expected an exact"),
        (
            lambda: LearnedProposal(Mixture(2, 2)).loss(
                joined, lambda *_: None, torch.zeros(4, 2), torch.zeros(4, 2)
            ),
            ValueError,
            "covariates",
        ),
    ],
)
def test_bad_input(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()  # type: ignore[operator]


NOISE = dist.Normal(torch.zeros(2), 1.0).to_event(1)
NET = NormalEnergy(PRECISION.float(), SHIFT.float())


def run(energy: Energy, game: LearnedProposal) -> None:
    fit(energy, torch.zeros(4, 2), game, steps=1, progress=False)
