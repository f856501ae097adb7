"""Conditional queries and completions of autoregressive programs, against enumeration."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import all_vectors
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import Exact
from ppl_dgm.families import MADE, NADE, VAE, PixelTransformer, WaveNet, likelihoods
from ppl_dgm.tasks import complete, conditioning, log_conditional, log_marginal

ORDER = [4, 0, 2, 5, 1, 3]
DIMS = 6
BINARY = all_vectors(2, DIMS).double()
MAKE: dict[str, Callable[..., Program]] = {
    "made": partial(MADE, DIMS, [12]),
    "made in another order": partial(MADE, DIMS, [12], order=ORDER),
    "several orders": partial(MADE, DIMS, [12], orders=3),
    "wavenet": partial(WaveNet, DIMS, 4, order=ORDER),
    "transformer": partial(PixelTransformer, (1, 2, 3), 8, 1, 2),
}
FIRST = torch.tensor([True, True, False, False, True, False])
LAST = torch.tensor([False, False, False, True, False, True])


def built(make: Callable[..., Program], **settings: Any) -> Program:
    """A program with parameters far from their start, in double."""
    torch.manual_seed(2)
    program = make(**settings)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return program.double().eval()


def table(program: Program, *args: Any) -> Tensor:
    """p of all binary vectors."""
    return Exact()(program, BINARY, *args).log_z.exp()


def probability(probs: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """p of a part of one datum, all others summed."""
    return probs[(x == BINARY)[:, mask].all(-1)].sum()


@pytest.mark.parametrize("name", MAKE)
def test_marginals_sum_all_completions(name: str) -> None:
    program = built(MAKE[name])
    probs, x = table(program), BINARY[[5, 22, 63]]
    masks = torch.stack([FIRST, LAST, torch.ones(DIMS).bool()])
    found = log_marginal(program, x, masks)
    expected = torch.stack([probability(probs, *pair) for pair in zip(x, masks, strict=True)])
    assert found.exact
    assert torch.allclose(found.log_prob.exp(), expected)
    nothing = log_marginal(program, x, torch.zeros(DIMS).bool())
    assert torch.allclose(nothing.log_prob, torch.zeros(3).double())


@pytest.mark.parametrize("name", MAKE)
def test_conditionals_are_ratios(name: str) -> None:
    program = built(MAKE[name])
    probs, x = table(program), BINARY[[5, 22, 63]]
    found = log_conditional(program, x, LAST, FIRST)
    for datum, log_prob in zip(x, found.log_prob, strict=True):
        ratio = probability(probs, datum, LAST | FIRST) / probability(probs, datum, FIRST)
        assert log_prob.exp().item() == pytest.approx(ratio.item(), rel=1e-9)


@pytest.mark.parametrize("name", MAKE)
def test_importance_weighting_agrees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, x = built(MAKE[name]), BINARY[[5, 22, 63]]
    exact = log_conditional(program, x, LAST, FIRST)
    monkeypatch.setattr(conditioning, "ENUMERABLE", 0)
    found = log_conditional(program, x, LAST, FIRST, num_particles=4000, seed=1)
    assert not found.exact
    assert bool(((found.log_prob - exact.log_prob).abs() < 4.5 * found.std_error + 1e-9).all())
    assert bool((found.std_error < 0.1).all())


def test_observed_entries_that_come_first_have_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioning, "ENUMERABLE", 0)
    program = built(MAKE["made in another order"])
    mask = torch.zeros(DIMS).bool()
    mask[ORDER[:3]] = True
    found = log_marginal(program, BINARY[:4], mask, num_particles=10)
    expected = torch.stack([probability(table(program), x, mask) for x in BINARY[:4]])
    assert torch.allclose(found.log_prob.exp(), expected)
    assert bool((found.std_error < 1e-6).all())


@pytest.mark.parametrize("name", MAKE)
def test_completions_follow_the_conditional(name: str) -> None:
    program = built(MAKE[name])
    probs, x = table(program), BINARY[[37]]
    found = complete(program, x, FIRST, num_particles=6000, num_draws=3000, seed=3)
    assert bool((found.draws[..., FIRST] == x[:, FIRST]).all())
    assert not found.warnings
    assert found.posterior is None
    agreeing = (x == BINARY)[:, FIRST].all(-1)
    expected = probs[agreeing] / probs[agreeing].sum()
    draws = found.draws[:, 0]
    counts = torch.stack([(draws == row).all(-1).sum() for row in BINARY[agreeing]])
    error = (3000 * expected * (1 - expected)).sqrt()
    inflation = (3000 / found.diagnostics["ess"].item() + 1) ** 0.5
    assert bool(((counts - 3000 * expected).abs() < 4.5 * inflation * error + 1).all())


def test_completions_given_classes() -> None:
    program = built(MAKE["made"], num_classes=3)
    x, y = BINARY[[37, 37]], torch.tensor([0, 2])
    found = log_marginal(program, x, FIRST, y)
    for label, log_prob in zip(y, found.log_prob, strict=True):
        probs = table(program, label.expand(len(BINARY)))
        assert log_prob.exp().item() == pytest.approx(probability(probs, x[0], FIRST).item())
    assert complete(program, x, FIRST, y, num_draws=5).draws.shape == (5, 2, DIMS)


def test_real_entries_are_completed_by_weights() -> None:
    """Of a linear Gaussian chain: x2 given x1 and x3 is normal."""
    program = NADE(3, 1, likelihoods.Gaussian(1.0), activation=torch.nn.Identity).double()
    net: Any = program.model.fn.net  # type: ignore[attr-defined]
    with torch.no_grad():
        net.columns.weight.copy_(torch.tensor([[0.8, 0.5, 0.0]]))
        net.columns.bias.zero_()
        net.rows.fill_(1.0)  # x2 | x1 ~ N(0.8 x1, 1), x3 | x1, x2 ~ N(0.8 x1 + 0.5 x2, 1)
    x = torch.tensor([[1.0, 0.0, 2.0]]).double()
    seen = torch.tensor([True, False, True])
    found = complete(program, x, seen, num_particles=20_000, num_draws=20_000)
    gain = 0.5 / 1.25
    mean, variance = 0.8 + gain * (2.0 - 0.8 - 0.4), 1 - 0.5 * gain
    draws = found.draws[:, 0, 1]
    assert draws.mean().item() == pytest.approx(mean, abs=0.04)
    assert draws.var().item() == pytest.approx(variance, abs=0.05)
    log_density = torch.distributions.Normal(1.2, 1.25**0.5).log_prob(torch.tensor(2.0))
    first = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(1.0))
    marginal = log_marginal(program, x, seen, num_particles=20_000)
    expected = (log_density + first).item()
    assert marginal.log_prob.item() == pytest.approx(expected, abs=4.5 * marginal.std_error.item())


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "latents": (
        lambda: log_marginal(VAE(DIMS, 2), BINARY[:2].float(), FIRST),
        ValueError,
        "not autoregressive",
    ),
    "mask": (
        lambda: log_marginal(MAKE["made"](), BINARY[:2].float(), FIRST[:4]),
        ValueError,
        "one mask entry for each",
    ),
    "kind": (
        lambda: log_marginal(MAKE["made"](), BINARY[:2].float(), FIRST.float()),
        TypeError,
        "torch.bool",
    ),
    "particles": (
        lambda: log_marginal(MAKE["made"](), BINARY[:2].float(), FIRST, num_particles=1),
        ValueError,
        "at least 2",
    ),
    "both": (
        lambda: log_conditional(MAKE["made"](), BINARY[:2].float(), FIRST, FIRST),
        ValueError,
        "both asked for and given",
    ),
    "support": (
        lambda: log_marginal(MAKE["made"](), BINARY[:2].float() + 0.5, FIRST),
        ValueError,
        "outside the support",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
