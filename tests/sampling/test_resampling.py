"""Resampling of weighted particles, their effective sizes, and steps in temperature."""

import math

import pytest
import torch

from ppl_dgm.sampling.smc.resampling import (
    SCHEMES,
    conditional_ess,
    effective_size,
    next_increment,
    resample,
    shuffle,
)

FLOAT = torch.float64
BY_SCHEME = pytest.mark.parametrize("scheme", sorted(SCHEMES))


@BY_SCHEME
@pytest.mark.parametrize("num_draws", [12, 5, 30])
def test_expected_copies_are_proportional_to_weights(scheme, num_draws):
    log_w = torch.randn(12, 1, dtype=FLOAT).expand(12, 20_000) * 1.5
    ancestors = resample(log_w, num_draws, scheme)
    assert ancestors.shape == (num_draws, 20_000)
    copies = torch.nn.functional.one_hot(ancestors, 12).sum(0).double()
    expected = num_draws * log_w[:, 0].softmax(0)
    error = copies.std(0).clamp_min(1e-3) / math.sqrt(20_000)
    assert ((copies.mean(0) - expected) / error).abs().max() < 4.5
    if scheme in ("systematic", "residual"):
        assert bool((copies >= expected.floor() - 1e-9).all())


def test_systematic_resampling_rounds_each_expected_count():
    log_w = torch.rand(50, 7, dtype=FLOAT)
    index = resample(log_w, 90)
    counts = torch.stack([index[:, i].bincount(minlength=50) for i in range(7)], 1)
    assert bool(((counts - 90 * log_w.softmax(0)).abs() < 1).all())


@BY_SCHEME
def test_particles_of_weight_zero_are_never_drawn(scheme):
    log_w = torch.tensor([[-torch.inf], [0.0], [-torch.inf], [1.0], [-torch.inf]]).expand(5, 1000)
    assert set(resample(log_w, 40, scheme).unique().tolist()) == {1, 3}
    one = torch.full((1000, 3), -torch.inf)
    one[[0, 500, 999], [0, 1, 2]] = 0.0
    assert resample(one, 7, scheme).tolist() == [[0, 500, 999]] * 7


@BY_SCHEME
def test_levels_at_the_ends_of_the_unit_interval_meet_no_particle_of_weight_zero(
    scheme, monkeypatch
):
    log_w = torch.tensor([-torch.inf, 0.0, -1.0, -torch.inf])
    for level in (0.0, 1.0):  # 1 as what rounding makes of the highest level
        monkeypatch.setattr(
            torch, "rand", lambda *size, level=level, **options: torch.full(size, level, **options)
        )
        assert set(resample(log_w, 4, scheme).tolist()) <= {1, 2}


def test_shuffled_draws_are_the_same_draws_in_another_order():
    index = torch.arange(1000).unsqueeze(-1).expand(1000, 2)
    shuffled = shuffle(index)
    assert torch.equal(shuffled.sort(0).values, index)
    assert not torch.equal(shuffled, index)


def test_effective_sizes():
    equal, one, none = (
        torch.zeros(8),
        torch.tensor([0.0, *[-torch.inf] * 7]),
        torch.full((8,), -torch.inf),
    )
    assert effective_size(torch.stack([equal, one, none], 1)).tolist() == pytest.approx(
        [8.0, 1.0, 0.0]
    )
    w = torch.rand(50, dtype=FLOAT)
    assert effective_size(w.log() + 700).item() == pytest.approx(
        (w.sum().square() / w.square().sum()).item()
    )


def test_increments_keep_the_conditional_ess_that_was_asked_for():
    log_w, tilt = torch.randn(500, 3, dtype=FLOAT), 30 * torch.randn(500, 3, dtype=FLOAT)
    step = next_increment(log_w, tilt, torch.ones(3, dtype=FLOAT), 0.7)
    torch.testing.assert_close(
        conditional_ess(log_w, step * tilt), torch.full((3,), 0.7).double(), atol=1e-6, rtol=0
    )
    dead = torch.where(torch.arange(500).unsqueeze(-1) % 2 == 0, tilt, -torch.inf)
    assert bool((next_increment(log_w, dead, torch.ones(3, dtype=FLOAT), 0.7) > 1e-4).all())
    weak = next_increment(log_w, 1e-3 * tilt, torch.ones(3, dtype=FLOAT), 0.7)
    assert weak.tolist() == [1.0, 1.0, 1.0]
