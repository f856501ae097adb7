"""The Bayes net without edges, all variables in one site."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.grey_levels import Bits
from ppl_dgm.program import Program

__all__ = ["IndependentBernoulli"]


class IndependentBernoulli(Program):
    r"""Bayes net of independent binary variables, a baseline.

    It has no edges: $p(x) = \prod_d p_d^{x_d} (1 - p_d)^{1 - x_d}$.

    Args:
        num_dims: number D of dimensions.

    Raises:
        ValueError: fewer than one dimension.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
        >>> program = IndependentBernoulli(2).fit_counts(x, smoothing=1.0)
        >>> program.probs
        tensor([0.5000, 0.7500])
    """

    vectors = True

    @checked
    def __init__(self, num_dims: int) -> None:
        if num_dims < 1:
            raise ValueError(f"num_dims is {num_dims}; expected at least 1")
        super().__init__(IndependentModel(num_dims))

    @property
    def probs(self) -> Tensor:
        """Probability of a one in each dimension, `[D]`."""
        return self.model.fn.logits.detach().sigmoid()  # type: ignore[attr-defined]

    @checked
    def fit_counts(self, x: Tensor, smoothing: float = 1.0) -> "IndependentBernoulli":
        r"""Fit the probabilities by counting.

        $p_d = (n_d + \alpha) / (N + 2 \alpha)$. Returns the program itself.

        Args:
            x: data `[N, D]` of zeros and ones.
            smoothing: alpha, the pseudo-count of each of 0 and 1; 0 is maximum likelihood.

        Raises:
            ValueError: for data of another shape or other values, or a negative smoothing.
        """
        logits, x = self.model.fn.logits, self.as_data(x)  # type: ignore[attr-defined]
        if x.dim() != 2 or x.shape[1] != len(logits):
            raise ValueError(f"expected data [N, {len(logits)}], got shape {list(x.shape)}")
        if not bool(((x == 0) | (x == 1)).all()):
            raise ValueError("the data have values other than 0 and 1; binarise them first")
        if smoothing < 0:
            raise ValueError(f"smoothing is {smoothing}; expected a pseudo-count of at least 0")
        least = torch.finfo(
            logits.dtype
        ).tiny  # keeps the logits finite where a dimension has one value only
        ones = x.to(logits).sum(0)
        with torch.no_grad():
            odds = [(count + smoothing).clamp_min(least).log() for count in (ones, len(x) - ones)]
            logits.copy_(odds[0] - odds[1])
        return self


class IndependentModel(Bits, nn.Module):
    """x_d ~ Bernoulli(sigmoid(logits_d)), independently."""

    def __init__(self, num_dims: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_dims))

    def forward(self, x: Tensor | None = None) -> Tensor:
        """Score data `[data, D]`, or draw one datum."""
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            return pyro.sample("x", dist.Bernoulli(logits=self.logits).to_event(1), obs=x)
