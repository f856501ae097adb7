"""Permutation tests of two sets by any statistic."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.arrays import as_argument
from ppl_dgm.checked import checked
from ppl_dgm.validation import check_sizes

__all__ = ["TwoSampleTest", "exchanges", "judged", "judged_pairs", "permutation_test", "two_sets"]

ROUNDING = 1e-10


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
    x, y = two_sets(x, y)
    pooled, first = torch.cat([x, y]), exchanges(len(x), len(y), num_permutations, seed)
    rows = first.to(x.device)
    values = [_number(statistic(pooled[row], pooled[~row])) for row in rows]
    return judged(torch.tensor(values, dtype=torch.float64))


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


def two_sets(x: Any, y: Any) -> tuple[Tensor, Tensor]:
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


def exchanges(n: int, m: int, num_permutations: int, seed: int) -> Tensor:
    """Draw random assignments of the data to two sets.

    The rows of `[1 + permutations, n + m]` tell which data are in the first set. The first row is
    the original assignment.
    """
    check_sizes(num_permutations=num_permutations)
    generator = torch.Generator().manual_seed(seed)
    like: dict[str, Any] = {"dtype": torch.double, "device": "cpu"}
    orders = torch.rand(num_permutations, n + m, generator=generator, **like).argsort(1)
    return torch.cat([torch.arange(n + m, device="cpu").unsqueeze(0), orders]) < n


def judged(values: Tensor) -> TwoSampleTest:
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
    as_far = null >= statistic - ROUNDING * values.abs().amax()
    return TwoSampleTest(float(statistic), float((1 + as_far.sum()) / (1 + len(null))), null)


def judged_pairs(
    similar: Tensor, n: int, m: int, num_permutations: int, seed: int
) -> TwoSampleTest:
    """Test by mean similarities within and between the sets.

    The statistic is the similarity `[n + m, n + m]` within the sets less that between. All
    exchanges are computed at once.
    """
    similar = similar - similar.diagonal().diag()
    first = exchanges(n, m, num_permutations, seed).to(similar)
    towards = first @ similar
    within = (towards * first).sum(1)
    between = (towards * (1 - first)).sum(1)
    rest = similar.sum() - within - 2 * between
    return judged(within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * between / (n * m))
