"""Mixture components with closed-form M-steps.

Each module holds K distributions of one kind.

To add a kind, subclass `Components`: `forward(z)` gives the distribution of data from component z,
`maximise` sets the parameters that maximise the weighted likelihood. Without `maximise` a kind is
still fitted by gradients.
"""

import warnings
from abc import abstractmethod

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.conditional import Conditional
from ppl_dgm.conditionals.grey_levels import Bits, Shades
from ppl_dgm.validation import ROUNDING, check_sizes, is_singular

__all__ = ["BernoulliComponents", "Components", "GaussianComponents", "named_components"]

LOST_TO_REGULARISATION = 1.0  # nats a datum


class Components(Conditional):
    """K distributions of data `[D]`, indexed by integers.

    The index is an integer tensor of any shape.

    `regularisation` is what `maximise` adds where none is given: it keeps a component from falling
    on a single datum.
    """

    regularisation: float = 0.0

    def __init__(self, num_dims: int, num_components: int) -> None:
        super().__init__()
        check_sizes(num_dims=num_dims, num_components=num_components)
        self.num_dims, self.num_components = num_dims, num_components

    def regularisation_for(self, x: Tensor) -> float:
        """Return the default regularisation for data `[N, D]`."""
        return self.regularisation

    def log_penalty(self, regularisation: float) -> Tensor | float:
        """Return what `maximise` raises beside the log-likelihood.

        It is in nats, of all data together: the log prior density that a regularisation stands for.
        """
        return 0.0

    @abstractmethod
    def forward(self, z: Tensor) -> TorchDistribution:
        """Distributions of component numbers `[...]`: batch `[...]`, event `[D]`."""

    @abstractmethod
    def maximise(self, x: Tensor, responsibilities: Tensor, regularisation: float) -> None:
        """Set the maximum likelihood parameters for weighted data.

        The data are `[N, D]`, their weights `[N, K]`.
        """


class BernoulliComponents(Bits, Components):
    """Binary vectors with independent dimensions within a component.

    Its regularisation is a pseudo-count of each of 0 and 1.

    Example:
        >>> BernoulliComponents(3, 2)(torch.tensor([0, 1])).log_prob(torch.ones(2, 3)).shape
        torch.Size([2])
    """

    regularisation = 0.5

    @checked
    def __init__(self, num_dims: int, num_components: int) -> None:
        super().__init__(num_dims, num_components)
        self.logits = nn.Parameter(torch.randn(num_components, num_dims))

    def forward(self, z: Tensor) -> TorchDistribution:
        """Bernoulli vectors of component numbers `[...]`."""
        return dist.Bernoulli(logits=Vindex(self.logits)[z]).to_event(1)

    def log_penalty(self, regularisation: float) -> Tensor:
        """Pseudo-counts are as many data of each value."""
        both = nn.functional.logsigmoid(self.logits) + nn.functional.logsigmoid(-self.logits)
        return regularisation * both.sum()

    def maximise(self, x: Tensor, responsibilities: Tensor, regularisation: float) -> None:
        """Set the probabilities to weighted frequencies.

        `regularisation` is a pseudo-count for each of 0 and 1.
        """
        least = torch.finfo(
            x.dtype
        ).tiny  # keeps the logits finite where a component has seen one value only
        ones = (responsibilities.T @ x + regularisation).clamp_min(least)
        zeros = (responsibilities.T @ (1 - x) + regularisation).clamp_min(least)
        self.logits.copy_(ones.log() - zeros.log())


class GaussianComponents(Shades, Components):
    """Normal distributions with diagonal, full or tied covariance.

    The names are `"diagonal"`, `"full"` and `"tied"` (full and common to all components).

    The covariance is L L^T with L lower triangular, the logarithm of its diagonal a parameter. The
    regularisation is added to all variances.

    Example:
        >>> GaussianComponents(3, 2, "full")(torch.tensor([0, 1])).covariance_matrix.shape
        torch.Size([2, 3, 3])
    """

    regularisation = 1e-6

    @checked
    def __init__(self, num_dims: int, num_components: int, covariance: str = "diagonal") -> None:
        super().__init__(num_dims, num_components)
        if covariance not in ("diagonal", "full", "tied"):
            raise ValueError(f"covariance is {covariance!r}; expected 'diagonal', 'full' or 'tied'")
        self.covariance = covariance
        self.locs = nn.Parameter(torch.randn(num_components, num_dims))
        copies = 1 if covariance == "tied" else num_components
        self.log_scales = nn.Parameter(torch.zeros(copies, num_dims))
        if covariance != "diagonal":
            self.lower = nn.Parameter(torch.zeros(copies, num_dims, num_dims))

    def regularisation_for(self, x: Tensor) -> float:
        """Return the default; warn where it hides the data.

        Data are `[N, D]`, and it hides them where it is large beside their variances.
        Of one Gaussian it costs (log(1 + r) - r / (1 + r)) / 2 nats a datum, summed over dimensions
        that vary, with r the regularisation over the variance.
        """
        variance = x.var(0, correction=0)
        varying = variance > (ROUNDING * x.mean(0)).square()
        ratio = self.regularisation / variance[varying]
        lost = 0.5 * (ratio.log1p() - ratio / (1 + ratio)).sum().item()
        if lost > LOST_TO_REGULARISATION:
            warnings.warn(
                f"the default regularisation {self.regularisation:g} is large beside the data's "
                f"variances and costs about {lost:.3g} nats a datum: scale the data, or pass a "
                "smaller regularisation",
                stacklevel=4,
            )
        return self.regularisation

    def forward(self, z: Tensor) -> TorchDistribution:
        """Normal vectors of component numbers `[...]`."""
        loc = Vindex(self.locs)[z]
        if self.covariance == "diagonal":
            return dist.Normal(loc, Vindex(self.log_scales)[z].exp()).to_event(1)
        scale_tril = self.lower.tril(-1) + torch.diag_embed(self.log_scales.exp())
        which = torch.zeros_like(z) if self.covariance == "tied" else z
        return dist.MultivariateNormal(loc, scale_tril=Vindex(scale_tril)[which])

    def maximise(self, x: Tensor, responsibilities: Tensor, regularisation: float) -> None:
        """Weighted means and covariances; `regularisation` is added to all variances."""
        counts = responsibilities.sum(0).clamp_min(torch.finfo(x.dtype).tiny)
        locs = responsibilities.T @ x / counts.unsqueeze(-1)
        self.locs.copy_(locs)
        centred = x - locs.unsqueeze(1)
        weighted = torch.einsum("nk,knd->kd", responsibilities, centred.square())
        variance = weighted / counts.unsqueeze(-1) + regularisation
        flat = variance <= (ROUNDING * locs).square()
        check_regular(flat.all(0) if self.covariance == "tied" else flat.any(-1), regularisation)
        if self.covariance == "diagonal":
            self.log_scales.copy_(variance.log() / 2)
        else:
            self._set_covariance(self._scatter(centred, responsibilities, counts), regularisation)

    def _scatter(self, centred: Tensor, responsibilities: Tensor, counts: Tensor) -> Tensor:
        """Weighted covariances `[K or 1, D, D]`."""
        scatter = torch.einsum("nk,kni,knj->kij", responsibilities, centred, centred)
        if self.covariance == "tied":
            return (scatter.sum(0) / counts.sum()).unsqueeze(0)
        return scatter / counts[:, None, None]

    def _set_covariance(self, covariance: Tensor, regularisation: float) -> None:
        covariance = covariance.double()
        covariance.diagonal(dim1=-2, dim2=-1).add_(regularisation)
        check_regular(is_singular(covariance), regularisation)
        tril = torch.linalg.cholesky(covariance)
        self.lower.copy_(tril.tril(-1))
        self.log_scales.copy_(tril.diagonal(dim1=-2, dim2=-1).log())


def check_regular(singular: Tensor, regularisation: float) -> None:
    """Refuse components without a density."""
    if bool(singular.any()):
        raise ValueError(
            f"the covariances of {int(singular.sum())} components are singular with the "
            f"regularisation {regularisation:g}; expected it to be large enough beside the data's "
            "variances: raise it, scale the data, or leave out constant and repeated columns"
        )


def named_components(
    components: str | Components, num_dims: int, num_components: int
) -> Components:
    """Return given components, or new ones of a named kind.

    The kinds are `"bernoulli"`, `"diagonal"`, `"full"` and `"tied"`.

    Raises:
        ValueError: for another kind, or components of other sizes.
    """
    if isinstance(components, Components):
        sizes = (components.num_dims, components.num_components)
        if sizes != (num_dims, num_components):
            raise ValueError(
                f"the components have num_dims, num_components = {sizes}; expected "
                f"{num_dims, num_components}"
            )
        return components
    if components == "bernoulli":
        return BernoulliComponents(num_dims, num_components)
    if components in ("diagonal", "full", "tied"):
        return GaussianComponents(num_dims, num_components, components)
    raise ValueError(
        f"there are no components {components!r}; expected 'bernoulli', 'diagonal', 'full', 'tied' "
        "or Components"
    )
