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

from typing import Any

import torch
from sklearn.base import clone
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.diagnostics.permutations import (
    TwoSampleTest,
    exchanges,
    judged,
    judged_pairs,
    two_sets,
)
from ppl_dgm.sampling.discrepancies import distances

__all__ = ["classifier_test", "energy_test", "ks_test", "mean_test"]


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
    x, y = (side.flatten(1).double() for side in two_sets(x, y))
    pooled = torch.cat([x, y])
    near = -distances(pooled, pooled)
    return judged_pairs(near, len(x), len(y), num_permutations, seed)


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
    x, y = (side.flatten(1).double() for side in two_sets(x, y))
    pooled = torch.cat([x, y])
    tiny = torch.finfo(torch.double).tiny
    pooled = pooled / pooled.abs().amax(0).clamp_min(tiny)  # its squares are numbers
    scaled = (pooled - pooled.mean(0)) / pooled.std(0).clamp_min(tiny)
    first = exchanges(len(x), len(y), num_permutations, seed).to(x)
    apart = first @ scaled / len(x) - (1 - first) @ scaled / len(y)
    return judged(apart.square().sum(1))


@checked
def ks_test(x: Any, y: Any, *, num_permutations: int = 500, seed: int = 0) -> TwoSampleTest:
    """Test one-dimensional data by the Kolmogorov-Smirnov statistic.

    It is the largest difference of the distribution functions.

    Args and errors as for `permutation_test`; data `[n]` or `[n, 1]`.

    Example:
        >>> ks_test(torch.linspace(0, 1, 50), torch.linspace(0.3, 1.3, 50)).statistic
        0.3...
    """
    x, y = (side.flatten(1).double() for side in two_sets(x, y))
    if x.shape[1] != 1:
        raise ValueError(
            f"the data have {x.shape[1]} dimensions; expected one for a Kolmogorov-Smirnov test. "
            "Use energy_test or mmd_test, or test each dimension"
        )
    values, order = torch.cat([x, y]).squeeze(1).sort()
    last = torch.cat([values.diff() > 0, torch.ones_like(values[:1], dtype=torch.bool)])
    first = exchanges(len(x), len(y), num_permutations, seed).to(x)[:, order]
    apart = first.cumsum(1) / len(x) - (1 - first).cumsum(1) / len(y)
    return judged(apart[:, last].abs().amax(1))


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
    x, y = (side.flatten(1).double().cpu() for side in two_sets(x, y))
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
    first = exchanges(n, m, num_permutations, seed + 1).double()
    ranks = _mean_ranks(scores)
    return judged(((1 - first) @ ranks - m * (m + 1) / 2) / (n * m))


def _nearest(num_data: int) -> Any:
    return make_pipeline(StandardScaler(), KNeighborsClassifier(max(1, int((num_data / 2) ** 0.5))))


def _mean_ranks(scores: Tensor) -> Tensor:
    """Ranks from 1, those of ties averaged."""
    _, which, counts = scores.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[which]
