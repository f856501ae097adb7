"""Measures of draws against closed forms, loops over points, and scipy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ppl_dgm.data.densities import gaussian_grid, gaussian_ring
from ppl_dgm.diagnostics import (
    class_counts,
    frechet_distance,
    memorisation,
    mode_counts,
    precision_recall,
    sample_quality,
)

GRID = 2 * (torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)) - 2)


def normal(num_data: int, num_dims: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(num_data, num_dims, generator=torch.Generator().manual_seed(seed))


# ---- modes -------------------------------------------------------------------------------------


def test_draws_of_the_mixture_itself_have_all_modes_and_the_radial_share() -> None:
    """Within three deviations of a round normal in the plane: 1 - exp(-9 / 2)."""
    found = mode_counts(gaussian_grid().sample((20_000,)), GRID, 0.05)
    truth = 1 - math.exp(-4.5)
    assert found.num_found == 25
    assert found.quality == pytest.approx(truth, abs=4 * math.sqrt(truth * (1 - truth) / 20_000))
    assert found.kl_from_even < 4 * 24 / (2 * 20_000)  # its mean is (modes - 1) / 2n
    assert int(found.counts.sum()) == round(found.quality * 20_000)


def test_modes_that_are_left_out_are_missed() -> None:
    """Draws of 3 of 8 modes of a ring at 1/2, 1/4, 1/4: KL from even is log 8 - H."""
    angle = torch.arange(8) * (math.pi / 4)
    centres = torch.stack([angle.cos(), angle.sin()], -1)
    draws = centres[[0, 0, 3, 5]] + 0.001 * normal(4)
    found = mode_counts(draws.double(), centres, 0.01)
    assert found.counts.tolist() == [2, 0, 0, 1, 0, 1, 0, 0]
    assert found.kl_from_even == pytest.approx(math.log(8) - 1.5 * math.log(2))
    everywhere = gaussian_ring(8, 1.0, 0.01).sample((1000,))
    assert mode_counts(everywhere, centres, 0.01).num_found == 8


def test_quality_depends_on_the_number_of_deviations() -> None:
    draws = torch.tensor([[0.0], [0.25], [0.35], [10.0]])
    found = mode_counts(draws, torch.zeros(1, 1), 0.1)
    assert (found.quality, found.counts.tolist()) == (0.5, [2])
    assert mode_counts(draws, torch.zeros(1, 1), 0.1, num_scales=4).quality == 0.75
    lost = mode_counts(draws + 50, torch.zeros(1, 1), 0.1)
    assert lost.quality == 0
    assert math.isnan(lost.kl_from_even)


def test_stacked_classes_are_combinations() -> None:
    labels = torch.tensor([[3, 1, 4], [3, 1, 4], [1, 5, 9]])
    found = class_counts(labels, 10)
    assert len(found.counts) == 1000
    assert (found.counts[413], found.counts[951], found.num_found) == (2, 1, 2)
    every = torch.cartesian_prod(*[torch.arange(10)] * 3)
    assert class_counts(every, 10).num_found == 1000
    assert class_counts(every, 10).kl_from_even == pytest.approx(0.0, abs=1e-12)
    assert class_counts(torch.tensor([0, 2, 2]), 4).counts.tolist() == [1, 0, 2, 0]


# ---- precision and recall ----------------------------------------------------------------------


def test_neighbourhoods_are_those_of_a_loop(monkeypatch: Any) -> None:
    monkeypatch.setattr(sample_quality, "_AT_ONCE", 100)  # in many parts
    x, y, k = normal(40), 0.7 * normal(30, seed=1) + 0.3, 4

    def radii(points: Tensor) -> list[float]:
        near = NearestNeighbors(n_neighbors=k + 1).fit(points.double().numpy())
        return near.kneighbors(points.double().numpy())[0][:, -1].tolist()

    of_x, of_y = radii(x), radii(y)
    apart = [[float((a - b).double().norm()) for b in y] for a in x]
    found = precision_recall(x, y, k=k)
    inside = [[apart[i][j] <= of_x[i] for j in range(30)] for i in range(40)]
    held = [sum(inside[i][j] for i in range(40)) for j in range(30)]
    assert found.precision == pytest.approx(sum(h > 0 for h in held) / 30)
    assert found.density == pytest.approx(sum(held) / (k * 30))
    assert found.coverage == pytest.approx(sum(any(row) for row in inside) / 40)
    recalled = [any(apart[i][j] <= of_y[j] for j in range(30)) for i in range(40)]
    assert found.recall == pytest.approx(sum(recalled) / 40)


def test_coverage_of_equal_laws_is_its_expectation() -> None:
    """1 - prod_j (N - 1 - j) / (N + M - 1 - j): the k nearest are all data. Density is near 1."""
    n, m, k = 60, 40, 3
    runs = [
        precision_recall(normal(n, seed=2 * s), normal(m, seed=2 * s + 1), k=k) for s in range(200)
    ]
    coverage, density = (
        torch.tensor([getattr(r, name) for r in runs]) for name in ("coverage", "density")
    )
    truth = 1 - math.prod((n - 1 - j) / (n + m - 1 - j) for j in range(k))
    assert coverage.mean().item() == pytest.approx(truth, abs=4 * coverage.std().item() / 200**0.5)
    # a draw is in a datum's ball if it is among the k nearest: k / n of them in expectation
    assert density.mean().item() == pytest.approx(
        n / n, abs=4 * density.std().item() / 200**0.5 + 0.02
    )


def test_parts_of_the_support_have_precision_without_recall() -> None:
    x = torch.cat([normal(200), normal(200, seed=1) + 20])
    left_out = precision_recall(x, normal(400, seed=2))
    assert left_out.precision > 0.95
    assert 0.4 < left_out.recall <= 0.5
    assert 0.4 < left_out.coverage <= 0.5
    invented = precision_recall(normal(400, seed=2), x)
    assert invented.recall > 0.95
    assert 0.4 < invented.precision <= 0.5


# ---- memorisation ------------------------------------------------------------------------------


def test_p_values_of_memorisation_are_uniform_for_draws_of_the_law() -> None:
    """Of 200 repetitions those below 0.1 are binomial; shares are 1/2 on average."""
    runs = [
        memorisation(*(normal(n, seed=3 * s + i) for i, n in enumerate((40, 50, 30))))
        for s in range(200)
    ]
    below = sum(run.p_value < 0.1 for run in runs)
    assert abs(below - 20) < 4 * math.sqrt(200 * 0.1 * 0.9)
    shares = torch.tensor([run.share for run in runs])
    assert shares.mean().item() == pytest.approx(0.5, abs=4 * shares.std().item() / 200**0.5)


def test_copies_are_found_and_named() -> None:
    train, held_out = normal(50), normal(60, seed=1)
    copies = memorisation(train[[3, 7, 9]], train, held_out)
    assert copies.nearest.tolist() == [3, 7, 9]
    assert copies.distances.tolist() == [0.0] * 3
    assert copies.share == 1.0
    assert copies.p_value < 0.01
    far = memorisation(train[:20] + 30, train, held_out)
    assert far.share == 0.0


# ---- Frechet -----------------------------------------------------------------------------------


def exactly(mean: Tensor, covariance: Tensor, num_data: int, seed: int) -> Tensor:
    """Data whose sample moments are these."""
    raw = normal(num_data, len(mean), seed).double()
    raw = raw - raw.mean(0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(raw.T).reshape(covariance.shape)), raw.T, upper=False
    )
    return mean + (torch.linalg.cholesky(covariance) @ white).T


@pytest.mark.parametrize("num_dims", [1, 3])
def test_the_frechet_distance_is_that_of_the_moments(num_dims: int) -> None:
    torch.manual_seed(2)
    means = torch.randn(2, num_dims).double()
    factors = torch.randn(2, num_dims, num_dims).double()
    covariances = factors @ factors.mT + 0.1 * torch.eye(num_dims)
    x, y = (exactly(means[i], covariances[i], 50 + i, i) for i in range(2))
    root = linalg.sqrtm((covariances[0] @ covariances[1]).numpy())
    traces = sum(float(c.trace()) for c in covariances) - 2 * float(np.real(np.trace(root)))
    truth = float((means[0] - means[1]).square().sum()) + traces
    assert frechet_distance(x, y) == pytest.approx(truth, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(truth, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)


def test_singular_features_have_a_frechet_distance() -> None:
    """Of fewer data than features; equal sets are 0 apart, and moved ones their shift."""
    x = normal(5, 40)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(x, x + 1) == pytest.approx(40.0, rel=1e-6)


def test_features_are_applied() -> None:
    images = normal(30, 16).reshape(30, 1, 4, 4)
    pooled = frechet_distance(images, images + 2, features=lambda x: x.mean((2, 3)))
    assert pooled == pytest.approx(4.0, rel=1e-6)
    assert frechet_distance(images, images + 2) == pytest.approx(64.0, rel=1e-6)


def test_features_and_labels_of_other_kinds_are_taken() -> None:
    images = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    features: Any = lambda x: x.mean((2, 3)).numpy()  # noqa: E731
    assert frechet_distance(images, images + 2, features) == pytest.approx(4.0, rel=1e-6)
    assert class_counts(torch.tensor([True, False, True]), 2).counts.tolist() == [1, 2]


# ---- bad input ---------------------------------------------------------------------------------

X = normal(10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mode_counts(X, torch.zeros(3, 1), 0.1),
            r"shapes \(10, 2\) and \(3, 1\); expected",
        ),
        (lambda: mode_counts(X[:0], GRID, 0.1), "expected .n, D. and .modes, D."),
        (lambda: mode_counts(X, GRID, 0.0), "scale is 0.0 .*expected positive numbers"),
        (
            lambda: mode_counts(X, GRID, 0.1, num_scales=math.nan),
            "num_scales is nan; expected a finite number",
        ),
        (lambda: mode_counts(X / 0, GRID, 0.1), "draws are not all finite"),
        (lambda: mode_counts(X, GRID / 0, 0.1), "centres are not all finite"),
        (lambda: mode_counts(X, GRID[:0], 0.1), "expected .n, D. and .modes, D."),
        (lambda: class_counts(torch.zeros(5, 30, dtype=torch.long), 10), "have 10.30 modes"),
        (lambda: class_counts(torch.tensor([0, 10]), 10), "whole numbers from 0 to 9"),
        (lambda: class_counts(torch.tensor([0.5]), 10), "whole numbers from 0 to 9"),
        (
            lambda: class_counts(torch.tensor([], dtype=torch.long), 10),
            "expected one for each draw",
        ),
        (lambda: precision_recall(X, X[:, :1]), r"shapes \(10, 2\) and \(10, 1\)"),
        (lambda: precision_recall(X, X, k=10), "k is 10 for 10 data and 10 draws; expected fewer"),
        (lambda: precision_recall(X, X, k=0), "k"),
        (lambda: memorisation(X, X * math.nan, X), "not all finite"),
        (lambda: memorisation(X, X, X[:1]), "at least 2 data in each"),
        (lambda: frechet_distance(X, X[:1]), "at least 2 data in each"),
        (lambda: frechet_distance(X, X, lambda x: x.sum()), r"to \(\); expected a vector for each"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
