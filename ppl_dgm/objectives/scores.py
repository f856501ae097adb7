"""Score matching: fitting densities without their normalisers.

Densities are fitted by their gradients in the data.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ppl_dgm.arrays import as_argument
from ppl_dgm.checked import checked
from ppl_dgm.objectives.energies import DataDensity, EnergyObjective
from ppl_dgm.objectives.objective import check_count

__all__ = ["ScoreMatching"]

Kind = Literal["exact", "sliced", "denoising"]
KINDS = ("exact", "sliced", "denoising")


class ScoreMatching(EnergyObjective):
    r"""Score matching of real data, exact, sliced or denoising.

    With the score $s(x) = \nabla_x \log f(x)$, which needs no normaliser, each datum's objective is
    minus

    - exact: $\mathrm{tr} \nabla_x s(x) + \tfrac12 |s(x)|^2$, at the cost of a gradient for each of
      the D dimensions (Hyvärinen 2005, eq. 4);
    - sliced: $v^\top \nabla_x s(x)\, v + \tfrac12 |s(x)|^2$ averaged over random signs v, unbiased
      for the former (Song et al. 2019, eq. 8);
    - denoising: $\tfrac12 |\sigma s(\tilde x) + \epsilon|^2$ at $\tilde x = x + \sigma \epsilon$,
      which fits the data blurred by $\sigma$ (Vincent 2011, eq. 9, times $\sigma^2$). Of several
      noise levels each datum takes one at random (Song and Ermon 2019, eq. 6).

    Args:
        kind: `"exact"`, `"sliced"` or `"denoising"`.
        num_slices: random directions for each datum, of `"sliced"`.
        noise: standard deviations of `"denoising"`, in units of the data; one
            or several, in a list or array.
        plate: name of the data plate.

    Raises:
        ValueError: for an unknown kind, counts below one, noise that is not positive, drawn
            latents, or data that are not real.

    Example:
        >>> import torch, ppl_dgm
        >>> energy = ppl_dgm.families.Energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> ppl_dgm.objectives.ScoreMatching().loss(energy.model, energy.guide, torch.zeros(3, 2))
        -12.0
    """

    support: ClassVar[str | None] = "real"

    @checked
    def __init__(
        self,
        kind: Kind = "exact",
        *,
        num_slices: int = 1,
        noise: float | Sequence[float] | Tensor = 0.1,
        plate: str = "data",
    ) -> None:
        super().__init__(plate=plate)
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; expected one of {KINDS}")
        check_count("num_slices", num_slices)
        self.kind, self.num_slices = kind, num_slices
        levels = torch.as_tensor(as_argument(noise), dtype=torch.float64)
        self.noise = tuple(levels.reshape(-1).tolist())
        if not self.noise or not all(0 < level < math.inf for level in self.noise):
            raise ValueError(f"noise is {noise}; expected positive standard deviations")

    def contrast(self, density: DataDensity) -> Tensor:
        with torch.enable_grad():  # the score is a gradient, also where the objective is validated
            if self.kind == "denoising":
                return -self._denoising(density)
            x = density.data.detach().clone().requires_grad_()
            score = score_of(density, x)
            trace = exact_trace if self.kind == "exact" else self._sliced_trace
            return -(trace(score, x) + 0.5 * rows(score.square()).sum(-1))

    def _sliced_trace(self, score: Tensor, x: Tensor) -> Tensor:
        """Estimate the trace of the score's Jacobian, `[data]`.

        The directions are random signs.
        """
        total = score.new_zeros(len(score))
        for _ in range(self.num_slices):
            signs = torch.where(torch.rand_like(x) < 0.5, -1.0, 1.0).to(x)
            total = total + rows(signs * derivative((score * signs).sum(), x)).sum(-1)
        return total / self.num_slices

    def _denoising(self, density: DataDensity) -> Tensor:
        x = density.data.detach()
        levels = x.new_tensor(self.noise)
        chosen = levels[torch.randint(len(self.noise), (len(x),), device=x.device)]
        sigma = chosen.reshape(-1, *(1,) * (x.dim() - 1))
        noise = torch.randn_like(x)
        blurred = (x + sigma * noise).requires_grad_()
        error = sigma * score_of(density, blurred) + noise
        return 0.5 * rows(error.square()).sum(-1)


def score_of(density: DataDensity, x: Tensor) -> Tensor:
    """Compute the gradient of log f in the data.

    Data are `[data, *event]`, and the result is differentiable.
    """
    return derivative(density(x).sum(), x)


def derivative(value: Tensor, x: Tensor) -> Tensor:
    """Compute the differentiable derivative of a scalar in x.

    It is zero where the scalar does not depend on x.
    """
    if not value.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(
        value, x, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return found


def exact_trace(score: Tensor, x: Tensor) -> Tensor:
    """Compute the trace of the score's Jacobian, `[data]`.

    Data are `[data, *event]`.
    """
    flat = rows(score)
    diagonal = [rows(derivative(flat[:, d].sum(), x))[:, d] for d in range(flat.shape[1])]
    return torch.stack(diagonal).sum(0)


def rows(x: Tensor) -> Tensor:
    """Flatten data `[data, *event]`, numbers among them, to `[data, D]`."""
    return x.reshape(len(x), -1)
