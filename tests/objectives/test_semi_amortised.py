"""The semi-amortised ELBO, its gradient and its value.

The gradient leads through refinement and is compared with finite differences, the value with the
evidence.
"""

from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from ppl_dgm import Program, fit
from ppl_dgm.conditionals.guides import (
    AmortisedGuide,
    DiagonalNormal,
    FlowPosterior,
    FullRankNormal,
    PosteriorFamily,
)
from ppl_dgm.families import PPCA, VAE
from ppl_dgm.objectives import ELBO, SemiAmortised


def small_vae(posterior: PosteriorFamily | None = None) -> tuple[VAE, Tensor]:
    """A VAE and data in double precision."""
    torch.manual_seed(0)
    x = (torch.rand(5, 4, dtype=torch.float64) < 0.5).double()
    return VAE(4, 2, [6], guide=posterior).double().initialise(x), x


def loss(objective: Any, program: Program, x: Tensor, seed: int = 0) -> Tensor:
    """The loss with the same draws each time."""
    torch.manual_seed(seed)
    return objective.differentiable_loss(program.model, program.guide, x)


POSTERIORS: dict[str, Callable[[], PosteriorFamily]] = {
    "diagonal": lambda: DiagonalNormal(2),
    "full rank": lambda: FullRankNormal(2),
    "planar flow": lambda: FlowPosterior(2, "planar", num_context=3),
}


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize(("num_steps", "clip_norm"), [(1, 100.0), (3, 100.0), (3, 0.5)])
def test_gradients_through_the_steps_match_finite_differences(
    posterior: str, num_steps: int, clip_norm: float
) -> None:
    """Along a random direction of all parameters, and for the encoder's alone.

    The second derivatives count.
    """
    program, x = small_vae(POSTERIORS[posterior]())
    objective = SemiAmortised(num_steps, 0.3, num_particles=2, clip_norm=clip_norm)
    parameters = list(program.parameters())
    gradients = torch.autograd.grad(loss(objective, program, x), parameters)
    encoder = {id(parameter) for parameter in program.guide.fn.encoder.parameters()}
    for chosen in (lambda p: True, lambda p: id(p) in encoder):
        directions = [torch.randn_like(p) * chosen(p) for p in parameters]
        slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(step * d)
                ends.append(loss(objective, program, x))
                for p, d in zip(parameters, directions, strict=True):
                    p.sub_(step * d)
        assert float(slope) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-6, abs=1e-6)


def test_a_step_held_fixed_has_another_gradient() -> None:
    """The finite differences tell the whole gradient from that of a constant shift."""
    program, x = small_vae()
    encoder = list(program.guide.fn.encoder.parameters())
    whole = torch.autograd.grad(loss(SemiAmortised(1, 0.3), program, x), encoder)
    none = torch.autograd.grad(loss(SemiAmortised(1, 1e-12), program, x), encoder)
    assert not torch.allclose(whole[0], none[0], rtol=1e-2)


def linear_gaussian(num_data: int = 20) -> tuple[Program, Tensor, Tensor]:
    """PPCA with an encoder that has learnt nothing, data, and their log evidence."""
    torch.manual_seed(0)
    x = torch.randn(num_data, 3, dtype=torch.float64)
    exact = PPCA(3, 2).double()
    with torch.no_grad():
        exact.model.fn.weight.copy_(torch.tensor([[1.0, 0.5], [0.5, 1.0], [0.0, 0.7]]))
    encoder = nn.Linear(3, 5).double()
    return (
        Program(exact.model.fn, AmortisedGuide(encoder, FullRankNormal(2).double())),
        x,
        exact.marginal().log_prob(x),
    )


def test_many_steps_reach_the_evidence_and_few_lie_between() -> None:
    program, x, truth = linear_gaussian()
    losses = [
        SemiAmortised(k, 0.03, num_particles=32).loss(program.model, program.guide, x)
        for k in (1, 10, 150)
    ]
    start = ELBO(32).loss(program.model, program.guide, x)
    assert start > losses[0] > losses[1] > losses[2]
    assert -truth.sum() - 0.5 < losses[2] < -truth.sum() + 0.5


def test_scales_of_minibatches_multiply_the_bound_and_not_the_step() -> None:
    program, x, _ = linear_gaussian()

    def scaled(fn: Callable) -> Any:
        return poutine.scale(fn, 10.0)

    torch.manual_seed(1)
    plain = SemiAmortised(5, 0.1).differentiable_loss(program.model, program.guide, x)
    model, guide = program.model.fn, program.guide.fn
    guide.draw = scaled(guide.draw)
    torch.manual_seed(1)
    large = SemiAmortised(5, 0.1).differentiable_loss(scaled(model), guide, x)
    assert large.item() == pytest.approx(10 * plain.item(), rel=1e-9)


def test_a_fit_trains_the_encoder_to_give_good_starts() -> None:
    program, x, truth = linear_gaussian()
    for parameter in program.model.parameters():
        parameter.requires_grad_(False)
    for parameter in program.guide.fn.parameters():
        parameter.requires_grad_(True)
    objective = SemiAmortised(2, 0.1, num_particles=4)
    before = [
        ELBO(200).loss(program.model, program.guide, x),
        objective.loss(program.model, program.guide, x),
    ]
    fit(
        program, x, objective, steps=150, seed=0, progress=False, compile=False,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    )  # fmt: skip
    after = [
        ELBO(200).loss(program.model, program.guide, x),
        objective.loss(program.model, program.guide, x),
    ]
    assert after[0] < before[0]
    assert -truth.sum() - 1 < after[1] < before[1]


def test_partly_observed_data_are_refined_from_what_is_seen() -> None:
    program, x = small_vae()
    observed = torch.tensor([True, True, False, True]).expand(5, 4)
    losses = []
    for hidden in (x, 1 - x):
        torch.manual_seed(0)
        data = torch.where(observed, x, hidden)
        losses.append(SemiAmortised(3, 0.1).loss(program.model, program.guide, data, observed))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps is 0"):
        SemiAmortised(0, 0.1)
    with pytest.raises(ValueError, match="learning_rate 0"):
        SemiAmortised(1, 0.0)
    ppca = PPCA(3, 2)
    with pytest.raises(
        ValueError,
        match="the guide is a LinearGaussianPosterior; give the program an AmortisedGuide",
    ):
        SemiAmortised(1, 0.1).loss(ppca.model, ppca.guide, torch.zeros(4, 3))
