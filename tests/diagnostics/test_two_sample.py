"""Two-sample tests.

Calibrated where nothing differs, sure where something does, equal to their formulas.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor

from ppl_dgm import diagnostics
from ppl_dgm.diagnostics import TwoSampleTest, mmd_test, permutation_test

TESTS: dict[str, Callable[..., TwoSampleTest]] = {
    "mmd": diagnostics.mmd_test,
    "laplace mmd": partial(diagnostics.mmd_test, kernel="laplace"),
    "linear mmd": diagnostics.linear_mmd_test,
    "energy": diagnostics.energy_test,
    "means": diagnostics.mean_test,
    "kolmogorov-smirnov": diagnostics.ks_test,
    "classifier": diagnostics.classifier_test,
    "own": partial(permutation_test, statistic=lambda x, y: (x.mean() - y.mean()).abs()),
}


def normal(num_data: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(num_data, 1, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTS)
def test_p_values_are_uniform_where_nothing_differs(name: str) -> None:
    """Over 500 repetitions.

    Sizes have no common divisor, so that Kolmogorov's statistic has few ties.
    """
    p_values = [
        TESTS[name](normal(53, 2 * k), normal(60, 2 * k + 1), seed=k, num_permutations=199).p_value
        for k in range(500)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.parametrize("name", TESTS)
def test_p_values_are_valid_where_nothing_differs(name: str) -> None:
    """Of 100 repetitions at most 11 are below 0.05, with a chance of error of 1 in 200."""
    p_values = [
        TESTS[name](normal(33, 2 * k), normal(40, 2 * k + 1), seed=k, num_permutations=99).p_value
        for k in range(100)
    ]
    assert sum(p <= 0.05 for p in p_values) <= 11


@pytest.mark.parametrize("name", TESTS)
def test_power_rises_to_one(name: str) -> None:
    """Of 20 repetitions with a shift of one deviation, more data find more, and at last all."""
    sizes = (20, 200) if name != "linear mmd" else (20, 800)
    found = [
        sum(
            TESTS[name](
                normal(n, 2 * k), normal(n, 2 * k + 1, shift=1.0), seed=k, num_permutations=99
            ).p_value
            <= 0.05
            for k in range(20)
        )
        for n in sizes
    ]
    assert found[0] <= found[1] == 20


@pytest.mark.parametrize("name", ["mmd", "energy", "classifier"])
def test_differences_of_shape_are_found_where_means_agree(name: str) -> None:
    x, y = normal(200, 0), normal(200, 1, scale=2.5)
    assert TESTS[name](x, y - y.mean() + x.mean()).p_value < 0.02
    assert diagnostics.mean_test(x, y - y.mean() + x.mean()).p_value > 0.5


# ---- statistics ----------------------------------------------------------------------------------

X, Y = normal(7, 3), normal(5, 4, shift=0.5)


def pair_means(k: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float, float]:
    """Mean within x, within y, and between, one pair after the other."""
    within = [
        sum(float(k(a, b)) for i, a in enumerate(s) for j, b in enumerate(s) if i != j)
        / (len(s) * (len(s) - 1))
        for s in (X, Y)
    ]
    return within[0], within[1], sum(float(k(a, b)) for a in X for b in Y) / 35


def test_the_statistic_of_mmd() -> None:
    width = 0.8
    x, y, between = pair_means(lambda a, b: (-(a - b).square().sum() / (2 * width**2)).exp())
    found = mmd_test(X, Y, bandwidth=width)
    assert found.statistic == pytest.approx(x + y - 2 * between, rel=1e-5)
    own = mmd_test(X, Y, kernel=lambda a, b: (-((a - b.T) ** 2) / (2 * width**2)).exp())
    assert own.statistic == pytest.approx(found.statistic, rel=1e-6)


def test_the_bandwidth_is_the_median_distance() -> None:
    width = torch.pdist(torch.cat([X, Y])).median().item()
    assert mmd_test(X, Y).statistic == pytest.approx(mmd_test(X, Y, bandwidth=width).statistic)


def test_the_statistic_of_the_energy_test() -> None:
    x, y, between = pair_means(lambda a, b: (a - b).norm())
    assert diagnostics.energy_test(X, Y).statistic == pytest.approx(2 * between - x - y, rel=1e-5)


def test_the_statistic_of_the_linear_test() -> None:
    def k(a: Tensor, b: Tensor) -> float:
        return float((-(a - b).square().sum() / 2).exp())

    h = [
        k(X[i], X[i + 1]) + k(Y[i], Y[i + 1]) - k(X[i], Y[i + 1]) - k(X[i + 1], Y[i])
        for i in (0, 2)
    ]
    found = diagnostics.linear_mmd_test(X, Y, bandwidth=1.0)
    assert found.statistic == pytest.approx(sum(h) / 2, rel=1e-5)


def test_the_statistic_of_kolmogorov_and_smirnov_with_ties() -> None:
    x, y = (normal(n, s).mul(2).round() for n, s in ((40, 5), (30, 6)))
    truth = stats.ks_2samp(x.squeeze(1).numpy(), y.squeeze(1).numpy()).statistic
    assert diagnostics.ks_test(x, y).statistic == pytest.approx(truth)


def test_the_statistic_of_a_classifier_is_its_area_under_the_curve() -> None:
    apart = diagnostics.classifier_test(X - 100, Y + 100, classifier=LogisticRegression())
    assert apart.statistic == 1.0
    x, y = normal(4000, 7), normal(4000, 8, shift=1.0)
    found = diagnostics.classifier_test(x, y, classifier=LogisticRegression())
    area = stats.norm.cdf(2**-0.5)  # P(x < y)
    assert found.statistic == pytest.approx(area, abs=4 * (1 / 12 / 1000) ** 0.5)


def test_exchanges_are_those_of_a_loop() -> None:
    """The fast sums over pairs equal the statistic of each exchange, one after the other."""

    def statistic(a: Tensor, b: Tensor) -> float:
        return mmd_test(a, b, bandwidth=1.0, num_permutations=1).statistic

    slow = permutation_test(X, Y, statistic, num_permutations=30, seed=5)
    fast = mmd_test(X, Y, bandwidth=1.0, num_permutations=30, seed=5)
    assert torch.allclose(slow.null, fast.null, atol=1e-6)
    assert slow.p_value == fast.p_value


def test_equal_sets_are_as_near_as_can_be() -> None:
    assert permutation_test(X, X, lambda a, b: abs(a.mean() - b.mean())).p_value == 1.0


def test_seeds_repeat_and_the_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = (mmd_test(X, Y, seed=s, num_permutations=50) for s in (1, 1, 2))
    assert torch.equal(one.null, two.null)
    assert not torch.equal(one.null, other.null)
    assert torch.equal(torch.get_rng_state(), before)


def test_means_are_compared_in_units_of_any_size() -> None:
    x, y = normal(20, 0).double(), normal(30, 1, shift=0.3).double()
    far = diagnostics.mean_test(1e200 * x, 1e200 * y)
    assert far.statistic == pytest.approx(diagnostics.mean_test(x, y).statistic, rel=1e-9)


def test_images_and_arrays_are_taken() -> None:
    images = torch.rand(20, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert mmd_test(images.numpy(), images.numpy() + 1).p_value < 0.01


def sums(x: Tensor, y: Tensor) -> Tensor:
    return x.sum(1) + y.sum(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mmd_test(X, Y.expand(5, 2)),
            r"shapes \(7, 1\) and \(5, 2\); expected \[n, \*event",
        ),
        (lambda: mmd_test(X[:1], Y), "at least 2 data in each"),
        (lambda: mmd_test(X, Y * torch.nan), "have NaN"),
        *((lambda name=name: TESTS[name](X, Y / 0), "NaN or infinite values") for name in TESTS),
        (lambda: mmd_test(X, Y, kernel=lambda a, b: a @ b.T / 0), "NaN or infinite for 501 of 501"),
        (lambda: mmd_test(X, Y, kernel=sums), r"to \[\d+\]; expected one value for each pair"),
        (lambda: TESTS["linear mmd"](X, Y, kernel=sums), r"to \[4\]; expected one value"),
        (lambda: diagnostics.energy_test(X.double() * 1e300, Y), "NaN or infinite for"),
        (lambda: permutation_test(X, Y, lambda a, b: torch.nan), "NaN or infinite for 201 of 201"),
        (lambda: permutation_test(X, Y, lambda a, b: a[:2]), r"shape \[2, 1\]; expected one"),
        (lambda: permutation_test(X, Y, lambda a, b: None), "NoneType; expected one number"),
        (lambda: mmd_test(X, Y, kernel="box"), "kernel is 'box'; expected one of"),
        (lambda: mmd_test(X, Y, bandwidth=-1.0), "bandwidth is -1.0; expected a positive"),
        (lambda: mmd_test(*[torch.zeros(4, 1)] * 2), "bandwidth is 0.0.*pass bandwidth"),
        (lambda: mmd_test(X, Y, num_permutations=0), "num_permutations is 0"),
        (lambda: diagnostics.ks_test(*[torch.zeros(4, 2)] * 2), "2 dimensions; expected one"),
        (lambda: diagnostics.classifier_test(X[:3], Y), "a set has 3 data"),
        (lambda: diagnostics.classifier_test(X, Y, classifier=LinearSVC()), "no predict_proba"),
    ],
)  # fmt: skip
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
