"""Refinement against an exact posterior, and the gap it closes."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ppl_dgm import Program, evidence
from ppl_dgm.amortisation import amortisation_gap, refine
from ppl_dgm.conditionals.guides import (
    AmortisedGuide,
    DiagonalNormal,
    FullRankNormal,
    PosteriorFamily,
)
from ppl_dgm.families import PPCA, VAE
from ppl_dgm.sampling.importance import weight_chunks


def linear_gaussian(posterior: PosteriorFamily) -> tuple[Program, PPCA, Tensor]:
    """PPCA with an untrained encoder, the exact one, and data."""
    torch.manual_seed(0)
    x = torch.randn(20, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    exact = PPCA(3, 2).double()
    with torch.no_grad():
        exact.model.fn.weight.copy_(torch.tensor([[2.0, 1.5], [1.0, 1.0], [0.0, 0.7]]))
    encoder = nn.Linear(3, posterior.num_params).double()
    return Program(exact.model.fn, AmortisedGuide(encoder, posterior.double())), exact, x


def test_refinement_reaches_the_exact_posterior_and_the_gap_is_the_rest() -> None:
    program, exact, x = linear_gaussian(FullRankNormal(2))
    truth = exact.marginal().log_prob(x).detach()
    before = {name: parameter.clone() for name, parameter in program.named_parameters()}
    gap = amortisation_gap(program, x, num_steps=1000, learning_rate=0.1, num_particles=1000)
    assert torch.allclose(gap.refined, truth, atol=0.02)
    assert bool((gap.gap > -3 * gap.std_error).all())
    assert gap.gap.mean() > 1.0
    assert not gap.warnings
    assert all(
        torch.equal(parameter, before[name]) for name, parameter in program.named_parameters()
    )
    assert all(parameter.grad is None for parameter in program.parameters())


def test_a_diagonal_family_keeps_the_gap_of_the_family() -> None:
    """The best diagonal normal has the posterior's conditional variances.

    Its divergence is known in closed form.
    """
    program, exact, x = linear_gaussian(DiagonalNormal(2))
    gap = amortisation_gap(program, x, num_steps=400, learning_rate=0.1, num_particles=4000)
    covariance = exact.guide.fn.distribution(x[:1]).covariance_matrix[0]
    divergence = (
        torch.linalg.slogdet(covariance)[1] + torch.linalg.inv(covariance).diagonal().log().sum()
    ) / 2
    rest = exact.marginal().log_prob(x) - gap.refined
    assert rest.mean().item() == pytest.approx(divergence.item(), abs=0.03)
    assert divergence > 0.05


def test_refinement_that_did_not_arrive_is_told() -> None:
    program, _, x = linear_gaussian(FullRankNormal(2))
    gap = amortisation_gap(program, x, num_steps=20, learning_rate=0.01)
    assert "for 100 % of the data" in repr(gap)
    assert (
        gap.gap.mean()
        < 0.9 * amortisation_gap(program, x, num_steps=300, learning_rate=0.1).gap.mean()
    )


def test_more_steps_are_better() -> None:
    program, _, x = linear_gaussian(FullRankNormal(2))
    totals = [
        evidence.ELBO(num_particles=500)(
            refine(program, x, num_steps=k, learning_rate=0.05), x
        ).total.item()
        for k in (1, 20, 200)
    ]
    assert totals[0] < totals[1] < totals[2]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a program with an AmortisedGuide"):
        refine(PPCA(3, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="num_steps is 0"):
        refine(VAE(3, 2, [4]), torch.zeros(4, 3), num_steps=0)


def test_the_gap_of_more_data_than_fit_into_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program, _, x = linear_gaussian(DiagonalNormal(2))
    whole = amortisation_gap(program, x, num_steps=20, num_particles=200)
    monkeypatch.setattr("ppl_dgm.amortisation.weight_chunks", partial(weight_chunks, memory=5_000))
    parts = amortisation_gap(program, x, num_steps=20, num_particles=200)
    assert parts.gap.shape == (20,)
    assert bool(
        (
            (parts.gap - whole.gap).abs()
            < 5 * (parts.std_error.square() + whole.std_error.square()).sqrt()
        ).all()
    )
