"""Bayesian mixture of Gaussians, with priors on all parameters.

There is one evidence for the data set.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.grey_levels import Shades
from ppl_dgm.distributions.discretised import OrderStatistics
from ppl_dgm.program import Program
from ppl_dgm.validation import is_singular

__all__ = ["BayesianMixture", "NormalInverseWishart"]

LOC_PRIOR, LOG_SCALE_PRIOR, CORRELATION = (0.0, 3.0), (0.0, 1.0), 1.0


@checked
@dataclass(frozen=True)
class NormalInverseWishart:
    r"""Conjugate prior of a Gaussian's mean and covariance.

    $\Sigma \sim \mathrm{IW}(\Psi, \nu)$, $\mu \mid \Sigma \sim N(m, \Sigma / \kappa)$ (Murphy 2007,
    "Conjugate Bayesian analysis of the Gaussian distribution", section 9).

    Args:
        loc: m, a number for all dimensions or D of them.
        kappa: the number of data that the prior of the mean is worth.
        df: nu, above D - 1; D + 2 by default, where $\Psi$ is the mean of $\Sigma$, which is $\Psi
            / (\nu - D - 1)$.
        scale: Psi, a number that multiplies the identity, or a positive definite matrix `[D, D]`.

    Example:
        >>> NormalInverseWishart(df=4.0).parameters(2)[3]
        tensor([[1., 0.],
                [0., 1.]])
    """

    loc: float | Sequence[float] | Tensor = 0.0
    kappa: float = 0.1
    df: float | None = None
    scale: float | Sequence[Sequence[float]] | Tensor = 1.0

    def parameters(self, num_dims: int) -> tuple[Tensor, float, float, Tensor]:
        """Return the checked parameters of the prior.

        They are m `[D]`, kappa, nu and the lower Cholesky factor of Psi `[D, D]`.

        Raises:
            ValueError: for parameters of other shapes or out of range.
        """
        df = num_dims + 2.0 if self.df is None else self.df
        loc = torch.as_tensor(self.loc, dtype=torch.get_default_dtype())
        scale = torch.as_tensor(self.scale, dtype=torch.float64)
        scale = scale * torch.eye(num_dims).to(scale) if scale.dim() == 0 else scale
        if self.kappa <= 0 or df <= num_dims - 1:
            raise ValueError(
                f"kappa is {self.kappa} and df {df}; expected above 0 and above D - 1 = "
                f"{num_dims - 1}"
            )
        if loc.shape not in ((), (num_dims,)) or scale.shape != (num_dims, num_dims):
            raise ValueError(
                f"loc is {list(loc.shape)} and scale {list(scale.shape)}; expected numbers, or "
                f"[{num_dims}] and [{num_dims}, {num_dims}]"
            )
        if bool(is_singular(scale)) or not torch.allclose(scale, scale.T):
            raise ValueError(
                "scale is not positive definite; expected a symmetric matrix with positive "
                "eigenvalues"
            )
        return loc.expand(num_dims), self.kappa, df, torch.linalg.cholesky(scale).to(loc)


class BayesianMixture(Program):
    r"""Mixture of K Gaussians with priors on all parameters.

    Weights, means and covariances are latent; the components z are summed out.

    $\pi \sim \mathrm{Dirichlet}(\alpha)$. The components' parameters are independent of one
    another; with `"diagonal"` and `"full"` covariances $\mu_{kd} \sim N(m, s^2)$, $\log \sigma_{kd}
    \sim N(u, v^2)$, and for the latter a correlation matrix $\sim \mathrm{LKJ}(\eta)$ (Lewandowski
    et al. 2009); or means and covariances have a `NormalInverseWishart` prior.

    The components are numbered by their means in the first dimension (`OrderStatistics`): the K!
    relabelled copies of every mode are one, and since the likelihood does not depend on the labels,
    the evidence is that of the unordered model. An estimator that sees one mode therefore has the
    whole evidence, without adding log K!.

    Args:
        num_dims: number D of dimensions.
        num_components: number K of components.
        covariance: `"diagonal"`, `"full"`, or a `NormalInverseWishart` prior of means and full
            covariances.
        concentration: alpha.
        loc_prior: (m, s), for `"diagonal"` and `"full"`.
        log_scale_prior: (u, v), likewise.
        correlation: eta, for `"full"`.
        guide: an approximate posterior of all latents but z; Pyro's `AutoNormal` by default.

    Raises:
        ValueError: sizes below one, another covariance, prior scales that are not positive, or
            arguments of one prior given with another.

    Example:
        >>> program = BayesianMixture(2, 3)
        >>> program.sample_sites(4)["locs"].shape
        torch.Size([4, 3, 2])
        >>> conjugate = BayesianMixture(2, 3, NormalInverseWishart(kappa=0.5, df=5.0))
        >>> conjugate.sample_sites(4)["scale_trils"].shape
        torch.Size([4, 3, 2, 2])
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        num_components: int,
        covariance: str | NormalInverseWishart = "diagonal",
        concentration: float = 1.0,
        loc_prior: tuple[float, float] = LOC_PRIOR,
        log_scale_prior: tuple[float, float] = LOG_SCALE_PRIOR,
        correlation: float = CORRELATION,
        guide: Any = None,
    ) -> None:
        if num_dims < 1 or num_components < 1:
            raise ValueError(
                f"expected num_dims and num_components of at least 1, got {num_dims} and "
                f"{num_components}"
            )
        if min(concentration, loc_prior[1], log_scale_prior[1], correlation) <= 0:
            raise ValueError(
                "expected positive concentration, correlation and second entries of loc_prior, "
                "log_scale_prior"
            )
        sizes = (num_dims, num_components, concentration)
        if isinstance(covariance, NormalInverseWishart):
            if (loc_prior, log_scale_prior, correlation) != (
                LOC_PRIOR,
                LOG_SCALE_PRIOR,
                CORRELATION,
            ):
                raise ValueError(
                    "loc_prior, log_scale_prior and correlation belong to 'diagonal' and 'full' "
                    "covariances; give NormalInverseWishart its own loc, kappa, df and scale"
                )
            model: BayesianMixtureModel = ConjugateModel(*sizes, covariance)
        elif covariance in ("diagonal", "full"):
            eta = correlation if covariance == "full" and num_dims > 1 else None
            model = ScalesModel(*sizes, loc_prior, log_scale_prior, eta)
        else:
            raise ValueError(
                f"covariance is {covariance!r}; expected 'diagonal' or 'full', or a "
                "NormalInverseWishart prior"
            )
        super().__init__(model, guide or AutoNormal(pyro.poutine.block(model, hide=["z"])))


class BayesianMixtureModel(Shades, nn.Module, ABC):
    """Base class of the models of `BayesianMixture`.

    A prior of the components' parameters is a subclass with `components`.
    """

    one: Tensor

    def __init__(self, num_dims: int, num_components: int, concentration: float) -> None:
        super().__init__()
        self.num_dims, self.num_components, self.concentration = (
            num_dims,
            num_components,
            concentration,
        )
        self.register_buffer("one", torch.ones(()), persistent=False)

    def forward(self, x: Tensor | None = None) -> Tensor:
        """Score data `[data, D]`, or draw one datum."""
        weights = pyro.sample(
            "weights", dist.Dirichlet(self.concentration * self.one.expand(self.num_components))
        )
        components = self.components()
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            return pyro.sample("x", components(z), obs=x)

    @abstractmethod
    def components(self) -> Any:
        """Draw the means and covariances of all components.

        Returns the distribution of data from component z as a function of z.
        """


class ScalesModel(BayesianMixtureModel):
    """Independent means, scales and, unless `correlation` is None, correlations."""

    def __init__(
        self,
        num_dims: int,
        num_components: int,
        concentration: float,
        loc_prior: tuple[float, float],
        log_scale_prior: tuple[float, float],
        correlation: float | None,
    ) -> None:
        super().__init__(num_dims, num_components, concentration)
        self.loc_prior, self.log_scale_prior, self.correlation = (
            loc_prior,
            log_scale_prior,
            correlation,
        )

    def components(self) -> Any:
        first, others = self.locs()
        scales = pyro.sample(
            "scales", self.per_component(dist.LogNormal, self.log_scale_prior, self.num_dims)
        )
        locs = pyro.deterministic("locs", torch.cat([first.unsqueeze(-1), others], -1), event_dim=2)
        if self.correlation is None:
            return lambda z: dist.Normal(gather(locs, z, 1), gather(scales, z, 1)).to_event(1)
        prior = (
            dist.LKJCholesky(self.num_dims, self.correlation * self.one)
            .expand([self.num_components])
            .to_event(1)
        )
        scale_trils = scales.unsqueeze(-1) * pyro.sample("correlations", prior)
        return lambda z: dist.MultivariateNormal(
            gather(locs, z, 1), scale_tril=gather(scale_trils, z, 2)
        )

    def locs(self) -> tuple[Tensor, Tensor]:
        """Draw the means of all components.

        Their first coordinates `[..., K]` are in order; the others are `[..., K, D - 1]`.
        """
        loc, scale = self.loc_prior
        ordered = OrderStatistics(
            dist.Normal(loc * self.one, scale * self.one), self.num_components
        )
        first = pyro.sample("first_locs", ordered)
        if self.num_dims == 1:
            return first, first.unsqueeze(-1)[..., :0]
        return first, pyro.sample(
            "other_locs", self.per_component(dist.Normal, self.loc_prior, self.num_dims - 1)
        )

    def per_component(self, family: Any, prior: tuple[float, float], size: int) -> Any:
        """Independent draws `[K, size]`."""
        loc, scale = prior
        return (
            family(loc * self.one, scale * self.one).expand([self.num_components, size]).to_event(2)
        )


class ConjugateModel(BayesianMixtureModel):
    r"""Mixture model with a normal-inverse-Wishart prior.

    Means and covariances are drawn in an order that lets components be numbered.

    Bartlett's decomposition: $\Sigma = L L^\top$, $L = T M^{-1}$, where $\Psi = T T^\top$ and M is
    lower triangular with independent $M_{ii}^2 \sim \chi^2_{\nu - D + i}$ and $M_{ij} \sim N(0, 1)$
    below. The first mean depends on $\Sigma$ by $M_{11}$ alone. Without it, $\mu_1 \sim t_{\nu - D
    + 1}(m_1, \Psi_{11} / (\kappa (\nu - D + 1)))$, independent of other components' and therefore
    to be ordered; given it, $M_{11}^2 \sim \mathrm{Gamma}((\nu - D + 2) / 2, (1 + \kappa (\mu_1 -
    m_1)^2 / \Psi_{11}) / 2)$, and the other means are normal given $\mu_1$ and $\Sigma$.
    """

    loc: Tensor
    factor: Tensor
    half_df: Tensor
    first: Tensor
    below: Tensor

    def __init__(
        self, num_dims: int, num_components: int, concentration: float, prior: NormalInverseWishart
    ) -> None:
        super().__init__(num_dims, num_components, concentration)
        loc, self.kappa, df, factor = prior.parameters(num_dims)
        rows, columns = torch.tril_indices(num_dims, num_dims, -1)
        buffers = {
            "loc": loc.clone(),
            "factor": factor,
            "half_df": (df - torch.arange(num_dims).flip(0).to(factor)) / 2,
            "first": torch.eye(num_dims).to(factor)[0],
            "below": torch.eye(num_dims**2).to(factor)[
                rows * num_dims + columns
            ],  # where entries below the diagonal go
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def components(self) -> Any:
        shift = self.first_shifts()
        trils = pyro.deterministic("scale_trils", self.scale_trils(shift), event_dim=3)
        offsets = trils[..., 0] * (shift / trils[..., 0, 0]).unsqueeze(
            -1
        )  # of all means, given the first coordinates'
        locs = self.loc + offsets
        if self.num_dims > 1:
            law = dist.MultivariateNormal(
                locs[..., 1:], scale_tril=trils[..., 1:, 1:] / self.kappa**0.5
            ).to_event(1)
            locs = torch.cat([locs[..., :1], pyro.sample("other_locs", law)], -1)
        locs = pyro.deterministic("locs", locs, event_dim=2)
        return lambda z: dist.MultivariateNormal(gather(locs, z, 1), scale_tril=gather(trils, z, 2))

    def first_shifts(self) -> Tensor:
        """Draw the means' first coordinates in order: `[..., K]`.

        The first coordinate of m is subtracted.
        """
        scale = self.factor[0, 0] / (2 * self.half_df[0] * self.kappa) ** 0.5
        base = dist.StudentT(2 * self.half_df[0], self.loc[0], scale)
        return pyro.sample("first_locs", OrderStatistics(base, self.num_components)) - self.loc[0]

    def scale_trils(self, shift: Tensor) -> Tensor:
        """Draw lower Cholesky factors of the covariances.

        They are `[..., K, D, D]`, given the shifts `[..., K]`.
        """
        excess = self.kappa * (shift / self.factor[0, 0]).square()
        law = dist.Gamma(
            self.half_df + self.first / 2, (1 + excess.unsqueeze(-1) * self.first) / 2
        ).to_event(2)
        bartlett = pyro.sample("squares", law).sqrt().diag_embed()
        if self.num_dims > 1:
            shape = [self.num_components, len(self.below)]
            standard: Any = dist.Normal(0 * self.one, self.one).expand(shape)
            below = pyro.sample("below", standard.to_event(2))
            bartlett = bartlett + (below @ self.below).unflatten(-1, (self.num_dims, self.num_dims))
        return torch.linalg.solve_triangular(
            bartlett, self.factor.expand_as(bartlett), upper=False, left=False
        )


def gather(values: Tensor, z: Tensor, event_dim: int) -> Tensor:
    """Select the entries of the components z.

    They are taken from `[*batch, K, *event]`, where z and the batch broadcast: `[*batch, *event]`.
    """
    index = (..., z, *(slice(None),) * event_dim)
    return Vindex(values)[index]
