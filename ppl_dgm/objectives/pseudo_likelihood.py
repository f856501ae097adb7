"""Objectives for binary data: pseudo-likelihood and ratio matching.

Both compare each datum with copies in which one bit is flipped.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ppl_dgm.objectives.energies import DataDensity, EnergyObjective

__all__ = ["PseudoLikelihood", "RatioMatching"]


class PseudoLikelihood(EnergyObjective):
    r"""Pseudo-likelihood of binary data, in nats.

    It is $\sum_d \log p(x_d \mid x_{-d})$.

    $p(x_d \mid x_{-d}) = \sigma(\log f(x) - \log f(x^{(d)}))$ with bit d of $x^{(d)}$ flipped, so
    that normalisers cancel; D + 1 densities for each datum. Its maximum is consistent.

    Besag (1975), "Statistical analysis of non-lattice data".

    Args:
        plate: name of the data plate.

    Raises:
        ValueError: for drawn latents, or data that are not binary.

    Example:
        >>> import torch, ppl_dgm
        >>> rbm = ppl_dgm.families.RBM(4, 2)
        >>> ppl_dgm.fit(rbm, torch.eye(4), PseudoLikelihood(), steps=3, progress=False).stopped
        'finished'
    """

    support: ClassVar[str | None] = "binary"

    def contrast(self, density: DataDensity) -> Tensor:
        return F.logsigmoid(flip_ratios(density)).sum(0)


class RatioMatching(EnergyObjective):
    r"""Ratio matching of binary data.

    The objective is minus $\sum_d \sigma(\log f(x^{(d)}) - \log f(x))^2$.

    The counterpart of score matching, by the ratios of the density at each datum and with one bit
    flipped; bounded, so that data of tiny density pull less than by `PseudoLikelihood`.

    Hyvärinen (2007), "Some extensions of score matching", eq. 17.

    Args:
        plate: name of the data plate.

    Raises:
        ValueError: for drawn latents, or data that are not binary.

    Example:
        >>> import torch, ppl_dgm
        >>> rbm = ppl_dgm.families.RBM(4, 2)
        >>> ppl_dgm.fit(rbm, torch.eye(4), RatioMatching(), steps=3, progress=False).stopped
        'finished'
    """

    support: ClassVar[str | None] = "binary"

    def contrast(self, density: DataDensity) -> Tensor:
        return -(-flip_ratios(density)).sigmoid().square().sum(0)


def flip_ratios(density: DataDensity) -> Tensor:
    """Compute log density ratios for each bit flip.

    They are log f(x) - log f(x with bit d flipped) for each d, `[D, data]`.
    """
    x = density.data
    flat = x.reshape(len(x), -1)
    flips = torch.eye(flat.shape[1], dtype=torch.bool, device=x.device).unsqueeze(1)
    flipped = torch.where(flips, 1 - flat, flat).reshape(-1, *x.shape)
    return density(x) - density.repeated(flipped)
