r"""Two-sample tests for equality of two distributions.

The two sets of data are, say, a program's draws and held-out data.

Each statistic is compared with its values after random exchanges of data between the two sets,
which leave its distribution as it is if both are of one law. So the p-value of every test, $(1 +
\#\{T_b \ge T\}) / (1 + B)$ over B exchanges, is valid at any number of data, whatever the statistic
(Phipson and Smyth 2010). A statistic sees some differences and not others: a difference of means no
change of shape, a kernel of the wrong width next to nothing.

How to choose: `mmd_test` first; `energy_test` where there is no scale to choose a kernel by;
`linear_mmd_test` for more data than a matrix of their distances fits; `classifier_test` where the
difference is subtle and there are data to learn it from; `ks_test` in one dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.base import clone
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ppl_dgm.arrays import as_argument
from ppl_dgm.checked import checked
from ppl_dgm.sampling.discrepancies import distances
from ppl_dgm.validation import check_sizes

__all__ = [
    "TwoSampleTest",
    "classifier_test",
    "energy_test",
    "ks_test",
    "linear_mmd_test",
    "mean_test",
    "mmd_test",
    "permutation_test",
]

Kernel = Callable[[Tensor, Tensor], Tensor]

KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda d: (-d.square() / 2).exp(),
    "laplace": lambda d: (-d).exp(),
    "rational_quadratic": lambda d: 1 / (1 + d.square() / 2),
}
_ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class TwoSampleTest:
    """What a two-sample test found.

    Attributes:
        statistic: its value; higher is farther apart.
        p_value: share of exchanges that are as far apart, the data as they are among them.
        null: its values after the exchanges, `[permutations]`, float64.
    """

    statistic: float
    p_value: float
    null: Tensor

    def __repr__(self) -> str:
        return f"TwoSampleTest(statistic {self.statistic:.4g}, p = {self.p_value:.3g})"


@checked
def permutation_test(
    x: Any,
    y: Any,
    statistic: Callable[[Tensor, Tensor], Any],
    *,
    num_permutations: int = 200,
    seed: int = 0,
) -> TwoSampleTest:
    """Test equality of two distributions by any statistic.

    The statistic is a function of two sets, higher for sets that are farther apart.

    Args:
        x: data `[n, *event]`.
        y: data `[m, *event]`.
        statistic: maps `[n, *event]` and `[m, *event]` to a number.
        num_permutations: exchanges; the least p-value is one over their number plus one.
        seed: of the exchanges.

    Raises:
        ValueError: fewer than two data, data of unlike shapes, data or a statistic that are not
            finite.
        TypeError: a statistic that is not one number.

    Example:
        >>> x, y = torch.linspace(0, 1, 50).unsqueeze(1), torch.linspace(0, 3, 50).unsqueeze(1)
        >>> permutation_test(x, y, lambda a, b: abs(a.std() - b.std())).p_value < 0.01
        True
    """
    x, y = _two_sets(x, y)
    pooled, first = torch.cat([x, y]), _exchanges(len(x), len(y), num_permutations, seed)
    rows = first.to(x.device)
    values = [_number(statistic(pooled[row], pooled[~row])) for row in rows]
    return _judged(torch.tensor(values, dtype=torch.float64))


def _number(value: Any) -> float:
    """Return a statistic's value, checked to be one number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"the statistic returned {kind}; expected one number for two sets, higher for sets "
            "that are farther apart"
        ) from error


@checked
def mmd_test(
    x: Any,
    y: Any,
    *,
    kernel: str | Kernel = "gaussian",
    bandwidth: float | None = None,
    num_permutations: int = 500,
    seed: int = 0,
) -> TwoSampleTest:
    """Test equality of distributions by the maximum mean discrepancy.

    It is $E k(x, x') + E k(y, y') - 2 E k(x, y)$.

    The unbiased estimate of Gretton et al. (2012), eq. 3, of all pairs of different data. With
    these kernels it is zero for equal distributions only.

    Args:
        x: data `[n, *event]`.
        y: data `[m, *event]`.
        kernel: `"gaussian"`, exp(-d^2 / 2), `"laplace"`, exp(-d), or `"rational_quadratic"`, 1 / (1
            + d^2 / 2), of distances d in bandwidths; or a function of data `[n, D]`, `[m, D]` that
            gives `[n, m]`.
        bandwidth: by default the median distance of all pairs.
        num_permutations: exchanges, among which the p-value counts.
        seed: of the exchanges.

    Raises:
        ValueError: as `permutation_test`; an unknown kernel, a bandwidth that is not positive.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> y = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
        >>> mmd_test(x, y).p_value > 0.05, mmd_test(x, y + 1).p_value < 0.01
        (True, True)
    """
    x, y = (side.flatten(1).double() for side in _two_sets(x, y))
    pooled = torch.cat([x, y])
    similar = _similarities(_kernel(kernel, bandwidth, pooled), pooled)
    return _test_of_pairs(similar, len(x), len(y), num_permutations, seed)


@checked
def energy_test(x: Any, y: Any, *, num_permutations: int = 500, seed: int = 0) -> TwoSampleTest:
    """Test equality of distributions by the energy distance.

    It is $2 E|x - y| - E|x - x'| - E|y - y'|$ (Szekely and Rizzo 2004).

    Args and errors as for `permutation_test`. It has no bandwidth to choose.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> energy_test(x, x + 1).p_value < 0.01
        True
    """
    x, y = (side.flatten(1).double() for side in _two_sets(x, y))
    pooled = torch.cat([x, y])
    near = -distances(pooled, pooled)
    return _test_of_pairs(near, len(x), len(y), num_permutations, seed)


@checked
def linear_mmd_test(
    x: Any,
    y: Any,
    *,
    kernel: str | Kernel = "gaussian",
    bandwidth: float | None = None,
    num_permutations: int = 500,
    seed: int = 0,
) -> TwoSampleTest:
    """Test by the maximum mean discrepancy in linear time.

    It is computed over neighbouring pairs of data.

    $h_i = k(x_1, x_2) + k(y_1, y_2) - k(x_1, y_2) - k(x_2, y_1)$ of the i-th pair of data in each
    set, averaged (Gretton et al. 2012, lemma 14). Exchanging $x_1$ and $y_1$ turns the sign of
    $h_i$, so that signs are drawn. Far weaker than `mmd_test` at the same number of data.

    Args and errors as for `mmd_test`; of sets of unlike size the longer one is cut. The bandwidth
    is the median distance within the pairs.

    Example:
        >>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> linear_mmd_test(x, x.flip(0) + 1).p_value < 0.01
        True
    """
    x, y = (side.flatten(1).double() for side in _two_sets(x, y))
    pairs = min(len(x), len(y)) // 2
    x, y = (side[: 2 * pairs].reshape(pairs, 2, -1) for side in (x, y))
    blocks = torch.cat([x, y], 1)
    if bandwidth is None and isinstance(kernel, str):
        bandwidth = float(torch.cdist(blocks, blocks)[:, *torch.triu_indices(4, 4, 1)].median())
    k = torch.vmap(lambda block: _similarities(_kernel(kernel, bandwidth, block), block))(blocks)
    h = k[:, 0, 1] + k[:, 2, 3] - k[:, 0, 3] - k[:, 1, 2]
    check_sizes(num_permutations=num_permutations)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(
        2, (num_permutations + 1, pairs), generator=generator, dtype=torch.double, device="cpu"
    )
    signs = signs * 2 - 1
    signs[0] = 1.0
    return _judged((signs.to(h) @ h) / pairs)


@checked
def mean_test(x: Any, y: Any, *, num_permutations: int = 500, seed: int = 0) -> TwoSampleTest:
    r"""Test by the standardised difference of means.

    In units of the pooled deviations it is $\sum_d \Delta_d^2 / s_d^2$.

    Args and errors as for `permutation_test`. It sees means and nothing else.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> mean_test(x, x + 1).p_value < 0.01, mean_test(x, 2 * x - x.mean(0)).p_value > 0.5
        (True, True)
    """
    x, y = (side.flatten(1).double() for side in _two_sets(x, y))
    pooled = torch.cat([x, y])
    tiny = torch.finfo(torch.double).tiny
    pooled = pooled / pooled.abs().amax(0).clamp_min(tiny)  # its squares are numbers
    scaled = (pooled - pooled.mean(0)) / pooled.std(0).clamp_min(tiny)
    first = _exchanges(len(x), len(y), num_permutations, seed).to(x)
    apart = first @ scaled / len(x) - (1 - first) @ scaled / len(y)
    return _judged(apart.square().sum(1))


@checked
def ks_test(x: Any, y: Any, *, num_permutations: int = 500, seed: int = 0) -> TwoSampleTest:
    """Test one-dimensional data by the Kolmogorov-Smirnov statistic.

    It is the largest difference of the distribution functions.

    Args and errors as for `permutation_test`; data `[n]` or `[n, 1]`.

    Example:
        >>> ks_test(torch.linspace(0, 1, 50), torch.linspace(0.3, 1.3, 50)).statistic
        0.3...
    """
    x, y = (side.flatten(1).double() for side in _two_sets(x, y))
    if x.shape[1] != 1:
        raise ValueError(
            f"the data have {x.shape[1]} dimensions; expected one for a Kolmogorov-Smirnov test. "
            "Use energy_test or mmd_test, or test each dimension"
        )
    values, order = torch.cat([x, y]).squeeze(1).sort()
    last = torch.cat([values.diff() > 0, torch.ones_like(values[:1], dtype=torch.bool)])
    first = _exchanges(len(x), len(y), num_permutations, seed).to(x)[:, order]
    apart = first.cumsum(1) / len(x) - (1 - first).cumsum(1) / len(y)
    return _judged(apart[:, last].abs().amax(1))


@checked
def classifier_test(
    x: Any,
    y: Any,
    *,
    classifier: Any = None,
    num_permutations: int = 500,
    seed: int = 0,
) -> TwoSampleTest:
    """Test by a classifier that distinguishes the two sets.

    It learns on half of the data.

    The statistic is the area under its ROC curve on the other half, 1/2 where it cannot; the labels
    of that half are exchanged. After Lopez-Paz and Oquab (2017), who count errors, of which too few
    values are possible for p-values to be uniform.

    Args:
        x: data `[n, *event]`.
        y: data `[m, *event]`.
        classifier: one of scikit-learn's with `predict_proba`; by default nearest neighbours, as
            many as the root of the number of data they are among, after scaling.
        num_permutations: exchanges of labels.
        seed: of the halves and the exchanges.

    Raises:
        ValueError: as `permutation_test`; fewer than 4 data in a set.
        TypeError: a classifier without `predict_proba`.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> classifier_test(x, x.flip(0) * 2).p_value < 0.01
        True
    """
    x, y = (side.flatten(1).double().cpu() for side in _two_sets(x, y))
    if min(len(x), len(y)) < 4:
        raise ValueError(f"a set has {min(len(x), len(y))} data; expected at least 4 in each")
    classifier = _nearest(len(x) + len(y)) if classifier is None else clone(classifier)
    if not hasattr(classifier, "predict_proba"):
        raise TypeError(
            f"{type(classifier).__name__} has no predict_proba; expected a classifier that gives "
            "probabilities, such as LogisticRegression or SVC(probability=True)"
        )
    generator = torch.Generator().manual_seed(seed)
    x, y = (side[torch.randperm(len(side), generator=generator, device="cpu")] for side in (x, y))
    learn, judge = zip(*((s[: len(s) // 2], s[len(s) // 2 :]) for s in (x, y)), strict=True)
    labels = torch.cat(
        [torch.full((len(side),), float(i), device="cpu") for i, side in enumerate(learn)]
    )
    classifier.fit(torch.cat(learn).numpy(), labels.numpy())
    scores = torch.from_numpy(classifier.predict_proba(torch.cat(judge).numpy())[:, 1]).double()
    n, m = map(len, judge)
    first = _exchanges(n, m, num_permutations, seed + 1).double()
    ranks = _mean_ranks(scores)
    return _judged(((1 - first) @ ranks - m * (m + 1) / 2) / (n * m))


def _nearest(num_data: int) -> Any:
    return make_pipeline(StandardScaler(), KNeighborsClassifier(max(1, int((num_data / 2) ** 0.5))))


def _mean_ranks(scores: Tensor) -> Tensor:
    """Ranks from 1, those of ties averaged."""
    _, which, counts = scores.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[which]


def _two_sets(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Two sets as tensors `[n, *event]`, checked."""
    x, y = (torch.as_tensor(as_argument(side)) for side in (x, y))
    x, y = (side.unsqueeze(-1) if side.dim() == 1 else side for side in (x, y))
    if min(x.dim(), y.dim()) < 1 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"the two sets have shapes {tuple(x.shape)} and {tuple(y.shape)}; expected [n, *event] "
            "and [m, *event] with equal events, and at least 2 data in each"
        )
    if not bool(x.isfinite().all() & y.isfinite().all()):
        raise ValueError(
            "the data have NaN or infinite values; expected finite data. Remove or impute them"
        )
    return x, y


def _exchanges(n: int, m: int, num_permutations: int, seed: int) -> Tensor:
    """Draw random assignments of the data to two sets.

    The rows of `[1 + permutations, n + m]` tell which data are in the first set. The first row is
    the original assignment.
    """
    check_sizes(num_permutations=num_permutations)
    generator = torch.Generator().manual_seed(seed)
    like: dict[str, Any] = {"dtype": torch.double, "device": "cpu"}
    orders = torch.rand(num_permutations, n + m, generator=generator, **like).argsort(1)
    return torch.cat([torch.arange(n + m, device="cpu").unsqueeze(0), orders]) < n


def _judged(values: Tensor) -> TwoSampleTest:
    """Compute the test result from values of a statistic.

    Of the values, `[1 + permutations]`, the first is that of the data as they are.

    Raises:
        ValueError: values that are not finite, of which none is farther than another.
    """
    values = values.double().cpu()
    lost = int((~values.isfinite()).sum())
    if lost:
        raise ValueError(
            f"the statistic is NaN or infinite for {lost} of {len(values)} divisions of the data, "
            "their own among them or not; expected finite values. Look at the statistic or kernel, "
            "or divide the data by their scale where squares of them overflow"
        )
    statistic, null = values[0], values[1:]
    as_far = null >= statistic - _ROUNDING * values.abs().amax()
    return TwoSampleTest(float(statistic), float((1 + as_far.sum()) / (1 + len(null))), null)


def _test_of_pairs(
    similar: Tensor, n: int, m: int, num_permutations: int, seed: int
) -> TwoSampleTest:
    """Test by mean similarities within and between the sets.

    The statistic is the similarity `[n + m, n + m]` within the sets less that between. All
    exchanges are computed at once.
    """
    similar = similar - similar.diagonal().diag()
    first = _exchanges(n, m, num_permutations, seed).to(similar)
    towards = first @ similar
    within = (towards * first).sum(1)
    between = (towards * (1 - first)).sum(1)
    rest = similar.sum() - within - 2 * between
    return _judged(within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * between / (n * m))


def _kernel(kernel: str | Kernel, bandwidth: float | None, pooled: Tensor) -> Kernel:
    if callable(kernel):
        return kernel
    if kernel not in KERNELS:
        raise ValueError(
            f"kernel is {kernel!r}; expected one of {sorted(KERNELS)}, or a function of data [n, "
            "D] and [m, D] that gives [n, m]"
        )
    if bandwidth is None:
        apart = distances(pooled, pooled)[*torch.triu_indices(len(pooled), len(pooled), 1)]
        bandwidth = float(apart.median())
    if not bandwidth > 0:
        raise ValueError(
            f"the bandwidth is {bandwidth}; expected a positive number. Where most data are equal "
            "the median distance is zero: pass bandwidth=..."
        )
    of_distance, width = KERNELS[kernel], bandwidth
    return lambda a, b: of_distance(distances(a, b) / width)


def _similarities(kernel: Kernel, x: Tensor) -> Tensor:
    """Compute a kernel of all pairs of data.

    Data are `[n, D]`, and the result is `[n, n]`.
    """
    similar = kernel(x, x)
    if not isinstance(similar, Tensor) or tuple(similar.shape) != (len(x), len(x)):
        found = list(similar.shape) if isinstance(similar, Tensor) else type(similar).__name__
        raise ValueError(
            f"the kernel maps two sets of data {list(x.shape)} to {found}; expected one value for "
            f"each pair, [{len(x)}, {len(x)}]"
        )
    return similar.double()
