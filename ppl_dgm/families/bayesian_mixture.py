"""The mixture of Gaussians with priors on all its parameters: one evidence for the data set."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from ppl_dgm.distributions import OrderStatistics
from ppl_dgm.program import Program


class BayesianMixture(Program):
    r"""Mixture of K Gaussians whose weights, means and covariances are latent; the components z are summed out.

    $\pi \sim \mathrm{Dirichlet}(\alpha)$, $\mu_{kd} \sim N(m, s^2)$, $\log \sigma_{kd} \sim N(u, v^2)$, and for full
    covariances a correlation matrix $\sim \mathrm{LKJ}(\eta)$ for each component (Lewandowski et al. 2009).

    The components are numbered by their means in the first dimension (`OrderStatistics`): the K! relabelled copies of
    every mode are one, and since the likelihood does not depend on the labels, the evidence is that of the
    unordered model. An estimator that sees one mode therefore has the whole evidence, without adding log K!.

    Args:
        num_dims: number D of dimensions.
        num_components: number K of components.
        covariance: `"diagonal"` or `"full"`.
        concentration: alpha.
        loc_prior: (m, s).
        log_scale_prior: (u, v).
        correlation: eta.
        guide: an approximate posterior of all latents but z; Pyro's `AutoNormal` by default.

    Raises:
        ValueError: sizes below one, another covariance, or prior scales that are not positive.

    Example:
        >>> program = BayesianMixture(2, 3)
        >>> program.sample_sites(4)["locs"].shape
        torch.Size([4, 3, 2])
    """

    def __init__(
        self,
        num_dims: int,
        num_components: int,
        covariance: str = "diagonal",
        concentration: float = 1.0,
        loc_prior: tuple[float, float] = (0.0, 3.0),
        log_scale_prior: tuple[float, float] = (0.0, 1.0),
        correlation: float = 1.0,
        guide: Any = None,
    ) -> None:
        if num_dims < 1 or num_components < 1:
            raise ValueError(f"expected num_dims and num_components of at least 1, got {num_dims} and {num_components}")
        if covariance not in ("diagonal", "full"):
            raise ValueError(f"covariance is {covariance!r}; expected 'diagonal' or 'full'")
        if min(concentration, loc_prior[1], log_scale_prior[1], correlation) <= 0:
            raise ValueError(
                "expected positive concentration, correlation and second entries of loc_prior, log_scale_prior"
            )
        model = BayesianMixtureModel(num_dims, num_components, concentration, loc_prior, log_scale_prior)
        model.correlation = correlation if covariance == "full" else None
        super().__init__(model, guide or AutoNormal(pyro.poutine.block(model, hide=["z"])))


class BayesianMixtureModel(nn.Module):
    """The model of `BayesianMixture`."""

    correlation: float | None
    one: Tensor

    def __init__(
        self,
        num_dims: int,
        num_components: int,
        concentration: float,
        loc_prior: tuple[float, float],
        log_scale_prior: tuple[float, float],
    ) -> None:
        super().__init__()
        self.num_dims, self.num_components = num_dims, num_components
        self.concentration, self.loc_prior, self.log_scale_prior = concentration, loc_prior, log_scale_prior
        self.register_buffer("one", torch.ones(()), persistent=False)

    def forward(self, x: Tensor | None = None) -> Tensor:
        """Score data `[data, D]`, or draw one datum."""
        weights = pyro.sample("weights", dist.Dirichlet(self.concentration * self.one.expand(self.num_components)))
        components = self.components()
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            return pyro.sample("x", components(z), obs=x)

    def components(self) -> Any:
        """Draw all means and covariances; return the distribution of data from component z as a function of z."""
        first, others = self.locs()
        scales = pyro.sample("scales", self.per_component(dist.LogNormal, self.log_scale_prior, self.num_dims))
        locs = pyro.deterministic("locs", torch.cat([first.unsqueeze(-1), others], -1), event_dim=2)
        if self.correlation is None:
            return lambda z: dist.Normal(gather(locs, z, 1), gather(scales, z, 1)).to_event(1)
        prior = dist.LKJCholesky(self.num_dims, self.correlation * self.one).expand([self.num_components]).to_event(1)
        scale_trils = scales.unsqueeze(-1) * pyro.sample("correlations", prior)
        return lambda z: dist.MultivariateNormal(gather(locs, z, 1), scale_tril=gather(scale_trils, z, 2))

    def locs(self) -> tuple[Tensor, Tensor]:
        """Draw the means: their first coordinates `[..., K]` in order, and the others `[..., K, D - 1]`."""
        loc, scale = self.loc_prior
        ordered = OrderStatistics(dist.Normal(loc * self.one, scale * self.one), self.num_components)
        first = pyro.sample("first_locs", ordered)
        if self.num_dims == 1:
            return first, first.unsqueeze(-1)[..., :0]
        return first, pyro.sample("other_locs", self.per_component(dist.Normal, self.loc_prior, self.num_dims - 1))

    def per_component(self, family: Any, prior: tuple[float, float], size: int) -> Any:
        """Independent draws `[K, size]`."""
        loc, scale = prior
        return family(loc * self.one, scale * self.one).expand([self.num_components, size]).to_event(2)


def gather(values: Tensor, z: Tensor, event_dim: int) -> Tensor:
    """The entries z of `[*batch, K, *event]`, where z and the batch broadcast: `[*batch, *event]`."""
    index = (..., z, *(slice(None),) * event_dim)
    return Vindex(values)[index]
