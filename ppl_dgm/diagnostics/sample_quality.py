r"""Qualities of draws: modes, precision and recall, memorisation, Fréchet distance.

Each is one number that sees one thing. Counts of modes need to know the modes; neighbours need a
distance that means something, in a space of few dimensions or of features; the Fréchet distance
compares two moments and nothing else. None of them is a likelihood: a program that has learned its
data by heart is perfect by all but `memorisation`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from ppl_dgm.arrays import as_argument
from ppl_dgm.checked import checked
from ppl_dgm.sampling.discrepancies import distances
from ppl_dgm.validation import check_sizes

__all__ = [
    "Memorisation",
    "ModeCounts",
    "PrecisionRecall",
    "class_counts",
    "frechet_distance",
    "memorisation",
    "mode_counts",
    "precision_recall",
]

_AT_ONCE = 2**24  # distances in memory at a time


@dataclass(frozen=True, eq=False)
class ModeCounts:
    """How many draws fell to each mode.

    Attributes:
        counts: draws of high quality at each mode, `[modes]`, whole numbers.
        quality: share of all draws that are near enough to some mode.
    """

    counts: Tensor
    quality: float

    @property
    def num_found(self) -> int:
        """Number of modes with at least one draw."""
        return int((self.counts > 0).sum())

    @property
    def kl_from_even(self) -> float:
        """Divergence of the modes' shares from even ones, in nats.

        It is KL(shares || even shares), and NaN without a draw at any mode.
        """
        shares = self.counts.double() / self.counts.sum()
        return float(torch.xlogy(shares, shares * len(shares)).sum())

    def __repr__(self) -> str:
        return f"ModeCounts({self.num_found} of {len(self.counts)}, quality {self.quality:.1%})"


@checked
def mode_counts(
    draws: Any, centres: Tensor, scale: float, *, num_scales: float = 3.0
) -> ModeCounts:
    """Count draws at modes of a mixture of round components.

    A draw belongs to the nearest centre, and is of high quality within `num_scales` deviations of
    it (Srivastava et al. 2017, VEEGAN, section 5.1). In two dimensions a share of 1 - exp(-9 / 2) =
    98.9 % of the mixture itself is within three.

    Args:
        draws: `[n, D]`.
        centres: of the components, `[modes, D]`.
        scale: standard deviation of each component.
        num_scales: how many deviations away a draw may be.

    Raises:
        ValueError: no draws, shapes that don't fit, a scale or number that is not positive, NaN.

    Example:
        >>> mode_counts(torch.tensor([[0.0], [0.1], [5.0]]), torch.tensor([[0.0], [1.0]]), 0.1)
        ModeCounts(1 of 2, quality 66.7%)
    """
    draws = torch.as_tensor(as_argument(draws))
    if (
        draws.dim() != 2
        or centres.dim() != 2
        or draws.shape[1] != centres.shape[1]
        or not len(draws)
        or not len(centres)
    ):
        raise ValueError(
            f"draws and centres have shapes {tuple(draws.shape)} and {tuple(centres.shape)}; "
            "expected [n, D] and [modes, D]"
        )
    if not scale > 0 or not num_scales > 0:
        raise ValueError(f"scale is {scale} and num_scales {num_scales}; expected positive numbers")
    draws = _finite(draws.double(), "draws")
    nearest = distances(draws, _finite(centres.to(draws), "centres")).min(1)
    good = nearest.values <= num_scales * scale
    counts = nearest.indices[good].bincount(minlength=len(centres))
    return ModeCounts(counts, float(good.double().mean()))


@checked
def class_counts(labels: Tensor, num_classes: int) -> ModeCounts:
    """Count draws of each class, as a classifier tells them.

    Stacked digits have one label for each part, and as many modes as combinations (Metz et al.
    2017, section 3.3.1).

    Args:
        labels: whole numbers below `num_classes`, `[n]`, or `[n, parts]` for stacked data.
        num_classes: classes of each part.

    Raises:
        ValueError: no labels, labels outside the classes, or too many modes to count each.

    Example:
        >>> class_counts(torch.tensor([[0, 1], [0, 1], [1, 1]]), 2)
        ModeCounts(2 of 4, quality 100.0%)
    """
    check_sizes(num_classes=num_classes)
    labels = labels.long() if labels.dtype == torch.bool else labels
    parts = labels.unsqueeze(-1) if labels.dim() == 1 else labels
    named = (parts >= 0) & (parts < num_classes) & (parts == parts.floor())
    if parts.dim() != 2 or not parts.numel() or not bool(named.all()):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} are not all whole numbers from 0 to "
            f"{num_classes - 1}; expected one for each draw and part, [n] or [n, parts]"
        )
    if num_classes ** parts.shape[1] > _AT_ONCE:
        raise ValueError(
            f"{parts.shape[1]} parts of {num_classes} classes have {num_classes}^{parts.shape[1]} "
            f"modes; expected at most {_AT_ONCE}. Count some of the parts, labels[:, :k]"
        )
    places = num_classes ** torch.arange(parts.shape[1], device=parts.device)
    modes = (parts.long() * places).sum(1)
    return ModeCounts(modes.bincount(minlength=num_classes ** parts.shape[1]), 1.0)


@dataclass(frozen=True)
class PrecisionRecall:
    """Overlap of two samples' neighbourhoods.

    Attributes:
        precision: share of draws within the data's neighbourhoods.
        recall: share of data within the draws' neighbourhoods.
        density: mean number of data's neighbourhoods that hold a draw, over k.
        coverage: share of data with a draw in their neighbourhood.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@checked
def precision_recall(data: Any, draws: Any, *, k: int = 3) -> PrecisionRecall:
    r"""Compare the supports of data and draws by neighbourhoods.

    A neighbourhood is the ball around a point to its k-th nearest neighbour in its own set.
    Precision and recall are those of Kynkäänniemi et al. (2019), eq. 2, density and coverage those
    of Naeem et al. (2020), eq. 3 and 4: one far outlier has a ball that holds much, which moves
    precision, and not coverage. Where both are of one law, the expected coverage of N data by M
    draws is $1 - \prod_{j<k} (N - 1 - j) / (N + M - 1 - j)$, and the expected density near 1.

    Args:
        data: `[n, *event]`, or their features.
        draws: `[m, *event]`.
        k: which neighbour bounds a neighbourhood.

    Raises:
        ValueError: unlike shapes, NaN, or k that is not below the numbers of data and draws.

    Example:
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> found = precision_recall(x[:250], x[250:].clamp(max=0.0))
        >>> found.precision > 0.9, found.recall < 0.5
        (True, True)
    """
    data, draws = _flat_sets(data, draws)
    check_sizes(k=k)
    if k >= min(len(data), len(draws)):
        raise ValueError(
            f"k is {k} for {len(data)} data and {len(draws)} draws; expected fewer than either"
        )
    of_data, of_draws = _radii(data, k), _radii(draws, k)
    holding = torch.zeros(len(draws), dtype=torch.long, device=data.device)
    recalled, covered = [], []
    for part, radii in zip(_parts(data, len(draws)), _parts(of_data, len(draws)), strict=True):
        apart = distances(part, draws)
        within = apart <= radii.unsqueeze(1)
        holding += within.sum(0)
        covered.append(within.any(1))
        recalled.append((apart <= of_draws).any(1))
    return PrecisionRecall(
        precision=_share(holding > 0),
        recall=_share(torch.cat(recalled)),
        density=float(holding.double().mean()) / k,
        coverage=_share(torch.cat(covered)),
    )


@dataclass(frozen=True, eq=False)
class Memorisation:
    """Whether draws are nearer to training data than held-out data.

    Attributes:
        share: probability that a draw is nearer to its nearest training datum than a held-out datum
            is to its own, ties halved; 1/2 where nothing is learned by heart.
        p_value: of as high a share, were draws and held-out data of one law (Mann-Whitney).
        nearest: index of each draw's nearest training datum, `[draws]`.
        distances: of each draw to it, `[draws]`, float64.
    """

    share: float
    p_value: float
    nearest: Tensor
    distances: Tensor

    def __repr__(self) -> str:
        return f"Memorisation(share {self.share:.3f}, p = {self.p_value:.3g})"


@checked
def memorisation(draws: Any, train: Any, held_out: Any) -> Memorisation:
    """Test whether draws copy training data, by distances to it.

    Given the training data, draws and held-out data of one law have distances of one law, so the
    p-value is valid whatever the law (Meehan et al. 2020, eq. 2). It sees copies on the whole, not
    a few among many good draws: look at the least `distances`.

    Args:
        draws: `[m, *event]`.
        train: what the program was fitted to, `[n, *event]`.
        held_out: data it has not seen, `[h, *event]`.

    Raises:
        ValueError: unlike shapes, NaN, fewer than 2 data in a set.

    Example:
        >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> memorisation(x[:100] + 0.01, x[:100], x[200:]).p_value < 1e-6
        True
        >>> memorisation(x[100:200], x[:100], x[200:]).p_value > 0.01
        True
    """
    draws, train = _flat_sets(draws, train)
    held_out, _ = _flat_sets(held_out, train)
    apart, nearest = _nearest(draws, train)
    usual, _ = _nearest(held_out, train)
    found: Any = mannwhitneyu(apart.cpu().numpy(), usual.cpu().numpy(), alternative="less")
    above = float(found.statistic) / (len(apart) * len(usual))
    return Memorisation(1 - above, float(found.pvalue), nearest, apart)


@checked
def frechet_distance(
    data: Any, draws: Any, features: Callable[[Tensor], Tensor] | None = None
) -> float:
    r"""Compute the Fréchet distance of two samples' moments.

    $|m_1 - m_2|^2 + \mathrm{tr}(S_1 + S_2 - 2 (S_1 S_2)^{1/2})$, the squared Wasserstein distance
    of normals with these means and covariances (Dowson and Landau 1982); of features of an image
    net it is the FID (Heusel et al. 2017). It is biased upwards by a term of order 1 / n, so
    compare only values of equal numbers of data.

    Args:
        data: `[n, *event]`.
        draws: `[m, *event]`.
        features: maps data to features `[n, F]`; by default the data themselves, flattened. A
            module is used as it stands: put it in evaluation mode.

    Returns:
        In squared units of the features.

    Raises:
        ValueError: unlike shapes, NaN, fewer than 2 data in a set, features of another shape.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(x, x + 3), 4)
        18.0
    """
    data, draws = (_features(side, features) for side in _pair(data, draws))
    data, draws = _flat_sets(data, draws)
    first, second = torch.cov(data.T), torch.cov(draws.T)
    first, second = (cov.reshape(data.shape[1], -1) for cov in (first, second))
    root = _root(first)
    spread = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0.0).sqrt().sum()
    means = (data.mean(0) - draws.mean(0)).square().sum()
    return float((means + first.trace() + second.trace() - 2 * spread).clamp_min(0.0))


def _features(x: Tensor, features: Callable[[Tensor], Tensor] | None) -> Tensor:
    if features is None:
        return x
    with torch.no_grad():
        found = torch.as_tensor(as_argument(features(x)))
    if found.dim() != 2 or len(found) != len(x):
        raise ValueError(
            f"features maps {tuple(x.shape)} to {tuple(found.shape)}; expected a vector for each "
            f"datum, [{len(x)}, F]"
        )
    return found


def _root(covariance: Tensor) -> Tensor:
    """Take the square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T


def _pair(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Check two sets of data, `[n, *event]`, and return them."""
    x, y = (torch.as_tensor(as_argument(side)) for side in (x, y))
    if min(x.dim(), y.dim()) < 2 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"the two sets have shapes {tuple(x.shape)} and {tuple(y.shape)}; expected [n, *event] "
            "and [m, *event] with equal events, and at least 2 data in each"
        )
    return x, y


def _flat_sets(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Return two sets as vectors in double precision, checked."""
    x, y = _pair(x, y)
    x, y = (_finite(side.flatten(1).double(), "data") for side in (x, y.to(x.device)))
    return x, y


def _finite(x: Tensor, what: str) -> Tensor:
    if not bool(x.isfinite().all()):
        raise ValueError(f"the {what} are not all finite; expected numbers. Remove or impute them")
    return x


def _parts(x: Tensor, others: int) -> tuple[Tensor, ...]:
    """Split rows so that distances to others fit in memory."""
    return x.split(max(1, _AT_ONCE // max(others, 1)))


def _radii(x: Tensor, k: int) -> Tensor:
    """Compute distances to the k-th nearest other point: `[n]`."""
    return torch.cat([distances(part, x).kthvalue(k + 1, 1).values for part in _parts(x, len(x))])


def _nearest(x: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest of other points: distances and indices `[n]`."""
    found = [distances(part, among).min(1) for part in _parts(x, len(among))]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
