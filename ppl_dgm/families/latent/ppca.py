"""Latent linear families: probabilistic PCA."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.grey_levels import Shades
from ppl_dgm.program import Program
from ppl_dgm.validation import ROUNDING, warn_of_rounding

__all__ = ["PPCA"]


class PPCA(Program):
    r"""Probabilistic principal component analysis (Tipping and Bishop 1999).

    $z \sim N(0, I)$, $x \mid z \sim N(W z + \mu, \sigma^2 I)$; so $x \sim N(\mu, W W^T + \sigma^2
    I)$ and the posterior $z \mid x \sim N(M^{-1} W^T (x - \mu), \sigma^2 M^{-1})$ with $M = W^T W +
    \sigma^2 I$ (their equations 4 and 7) is the guide.

    Args:
        num_dims: number D of observed dimensions.
        num_latents: number L of latent dimensions, less than D.

    Raises:
        ValueError: if not 1 <= L < D.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(50, 4, generator=generator) * torch.tensor([3.0, 1.0, 1.0, 1.0])
        >>> program = PPCA(4, 1).fit_closed_form(x)
        >>> program.marginal().log_prob(x).shape, program.sample(3).shape
        (torch.Size([50]), torch.Size([3, 4]))
    """

    vectors = True

    @checked
    def __init__(self, num_dims: int, num_latents: int) -> None:
        if not 1 <= num_latents < num_dims:
            raise ValueError(
                f"num_latents is {num_latents}; expected at least 1 and less than num_dims = "
                f"{num_dims}"
            )
        model = LinearGaussianModel(num_dims, num_latents)
        super().__init__(model, LinearGaussianPosterior(model))

    def marginal(self) -> Any:
        """Return the distribution of data in double precision.

        It is N(mu, W W^T + sigma^2 I); its `log_prob` is the log evidence of each datum in nats.
        """
        return self.model.fn.marginal()  # type: ignore[attr-defined]

    @checked
    def fit_closed_form(self, x: Tensor) -> "PPCA":
        r"""Maximise the likelihood of data `[N, D]` in closed form.

        Returns the program itself.

        $\mu = \bar x$, $\sigma^2$ the mean of the D - L smallest eigenvalues of the covariance, and
        $W = U_L (\Lambda_L - \sigma^2 I)^{1/2}$ (Tipping and Bishop 1999, equations 14 and 15, with
        R = I). All is computed in float64; data in float64 raise the parameters to it, which
        otherwise keep their dtype, with a warning where it costs likelihood.

        Raises:
            ValueError: for data of another shape, fewer than two, or without noise outside the L
                directions.
        """
        model: Any = self.model.fn
        num_dims, num_latents = model.weight.shape
        x = self.as_finest_data(x)
        if x.dim() != 2 or x.shape[1] != num_dims or len(x) < 2:
            raise ValueError(
                f"expected at least two data [N, {num_dims}], got shape {list(x.shape)}"
            )
        self.to(torch.promote_types(model.loc.dtype, x.dtype))
        x = x.detach().double()
        values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
        variance, loc = values[: num_dims - num_latents].mean(), x.mean(0)
        rounding = ROUNDING * num_dims * values[-1] + (ROUNDING * loc).square().sum()
        if not variance > rounding:
            raise ValueError(
                f"the data have no variance outside {num_latents} directions, so that the "
                "likelihood has no maximum; use fewer latents, or leave out constant and repeated "
                "columns"
            )
        signal = (values[-num_latents:] - variance).clamp_min(0).sqrt()
        kept = torch.cat([values[-num_latents:], variance.expand(num_dims - num_latents)])
        best = -0.5 * (math.log(2 * math.pi) + 1 + kept.log()).sum()
        with torch.no_grad():
            model.loc.copy_(loc)
            model.weight.copy_((vectors[:, -num_latents:] * signal).flip(-1))
            model.log_scale.copy_(variance.log() / 2)
            warn_of_rounding((best - model.marginal().log_prob(x).mean()).item(), model.loc.dtype)
        return self


class LinearGaussianModel(Shades, nn.Module):
    """Linear-Gaussian model of probabilistic PCA.

    z ~ N(0, I), x ~ N(W z + mu, sigma^2 I), with sigma = exp(log_scale).
    """

    zeros: Tensor

    def __init__(self, num_dims: int, num_latents: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(num_dims))
        self.weight = nn.Parameter(torch.randn(num_dims, num_latents) / num_latents**0.5)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("zeros", torch.zeros(num_latents), persistent=False)

    def marginal(self) -> dist.LowRankMultivariateNormal:
        """Return the distribution of data, latents integrated out.

        It is in double precision, because its quadratic form would cancel in single precision.
        """
        variance = (2 * self.log_scale.double()).exp().expand(self.loc.shape)
        return dist.LowRankMultivariateNormal(self.loc.double(), self.weight.double(), variance)

    def forward(self, x: Tensor | None = None) -> Tensor:
        """Score data `[data, D]`, or draw one datum."""
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.zeros, 1.0).to_event(1))
            loc = z @ self.weight.T + self.loc
            return pyro.sample("x", dist.Normal(loc, self.log_scale.exp()).to_event(1), obs=x)


class LinearGaussianPosterior(nn.Module):
    """Exact posterior of a `LinearGaussianModel`.

    It has no parameters but the model's.
    """

    def __init__(self, model: LinearGaussianModel) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: its parameters are the model's

    def distribution(self, x: Tensor) -> dist.MultivariateNormal:
        """p(z | x) of data `[data, D]`."""
        model = self._model[0]
        variance = (2 * model.log_scale).exp()
        m = model.weight.T @ model.weight + torch.diag_embed(variance.expand(model.weight.shape[1]))
        loc = torch.cholesky_solve(model.weight.T @ (x - model.loc).T, torch.linalg.cholesky(m)).T
        return dist.MultivariateNormal(loc, precision_matrix=m / variance)

    def forward(self, x: Tensor) -> Tensor:
        """Draw latents `[data, L]`."""
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.distribution(x))
