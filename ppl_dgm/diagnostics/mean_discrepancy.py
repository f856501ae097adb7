"""Two-sample tests by the maximum mean discrepancy."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.diagnostics.permutations import (
    TwoSampleTest,
    judged,
    judged_pairs,
    two_sets,
)
from ppl_dgm.sampling.discrepancies import distances
from ppl_dgm.validation import check_sizes

__all__ = ["linear_mmd_test", "mmd_test"]

Kernel = Callable[[Tensor, Tensor], Tensor]
KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda d: (-d.square() / 2).exp(),
    "laplace": lambda d: (-d).exp(),
    "rational_quadratic": lambda d: 1 / (1 + d.square() / 2),
}


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
    x, y = (side.flatten(1).double() for side in two_sets(x, y))
    pooled = torch.cat([x, y])
    similar = _similarities(_kernel(kernel, bandwidth, pooled), pooled)
    return judged_pairs(similar, len(x), len(y), num_permutations, seed)


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
    x, y = (side.flatten(1).double() for side in two_sets(x, y))
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
    return judged((signs.to(h) @ h) / pairs)


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
