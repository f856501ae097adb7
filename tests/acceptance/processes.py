"""Gaussian processes: exact, sparse, of latent inputs, by basis functions."""

import math

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import (
    AutoNormal,
)
from torch import Tensor

from acceptance.registry import (
    Example,
    example,
    grid_log_integral,
    randn,
)

positive = dist.constraints.positive


@example("tutorial gp: exact regression")
def gp_regression() -> Example:
    x, y = torch.linspace(0.0, 3.0, 8), torch.linspace(0.0, 3.0, 8).sin() + 0.1 * randn(8)
    kernel = gp.kernels.RBF(1, variance=torch.tensor(1.5), lengthscale=torch.tensor(0.8))
    regression = gp.models.GPRegression(x, y, kernel, noise=torch.tensor(0.2))

    def truth() -> float:
        points = x.double()
        covariance = 1.5 * torch.exp(-0.5 * ((points[:, None] - points) / 0.8) ** 2)
        covariance = covariance + (0.2 + 1e-6) * torch.eye(8).double()
        at = dist.MultivariateNormal(torch.zeros(8).double(), covariance)
        return at.log_prob(y.double()).item()

    return Example(regression.model, regression.guide, (), truth=truth, options={"site": "y"})


@example("tutorial gp: hyperparameters with priors")
def gp_priors() -> Example:
    def model(x: Tensor, y: Tensor) -> None:
        length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
        variance = pyro.sample("variance", dist.LogNormal(0.0, 0.5))
        distance = (x[:, None] - x) / length[..., None, None]
        kernel = variance[..., None, None] * torch.exp(-0.5 * distance**2)
        kernel = kernel + 0.1 * torch.eye(len(x))
        at = dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=kernel)
        pyro.sample("y", at, obs=y)

    x = torch.linspace(0.0, 3.0, 6)
    y = x.sin() + 0.3 * randn(6)

    def truth() -> float:
        def density(a: Tensor, b: Tensor) -> Tensor:
            squares = ((x[:, None] - x).double()) ** 2
            kernel = b.exp()[:, None, None] * torch.exp(
                -0.5 * squares / (2 * a).exp()[:, None, None]
            )
            kernel = kernel + 0.1 * torch.eye(6).double()
            at = dist.MultivariateNormal(torch.zeros(6).double(), kernel)
            prior = dist.Normal(0.0, 0.5)
            return prior.log_prob(a) + prior.log_prob(b) + at.log_prob(y.double())

        return grid_log_integral(density, (-3.0, 3.0, 150), (-3.0, 3.0, 150))

    return Example(model, AutoNormal(model), (x, y), truth=truth, options={"site": "y"})


@example("contrib/gp/sv-dkl.py: sparse variational process")
def sparse_process() -> Example:
    x, y = torch.linspace(0.0, 3.0, 8), (torch.linspace(0.0, 3.0, 8).sin() > 0.5).float()
    y = y.to(torch.get_default_dtype())
    kernel = gp.kernels.RBF(1)
    process = gp.models.VariationalSparseGP(
        x,
        y,
        kernel,
        Xu=torch.tensor([0.5, 1.5, 2.5]),
        likelihood=gp.likelihoods.Binary(),
        whiten=True,
        jitter=1e-4,
    )
    return Example(process.model, process.guide, (), options={"site": "y"})


@example("tutorial gplvm: latent inputs of a process")
def gplvm() -> Example:
    def model(y: Tensor) -> None:
        with pyro.plate("cells", y.shape[1], dim=-1):
            latent = pyro.sample("X", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        length = pyro.param("length", torch.tensor(1.0), constraint=positive)
        distance = torch.cdist(latent, latent) / length
        kernel = torch.exp(-0.5 * distance**2) + 0.1 * torch.eye(y.shape[1])
        with pyro.plate("genes", len(y)):
            pyro.sample(
                "y", dist.MultivariateNormal(torch.zeros(y.shape[1]), kernel.unsqueeze(-3)), obs=y
            )

    return Example(
        model, AutoNormal(model), (randn(3, 6),), options={"site": "y", "plate": "genes"}
    )


@example("NumPyro: Hilbert-space approximation of a process")
def hilbert_space() -> Example:
    def model(x: Tensor, y: Tensor) -> None:
        amplitude = pyro.sample("alpha", dist.HalfNormal(1.0))
        length = pyro.sample("length", dist.LogNormal(-1.0, 0.5))
        weights = pyro.sample("beta", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        freq = torch.arange(1, 6) * math.pi / 4
        phi = torch.sin(freq * (x[:, None] + 2.0)) / math.sqrt(2.0)
        scale = length.unsqueeze(-1).sqrt() * torch.exp(-0.25 * (length.unsqueeze(-1) * freq) ** 2)
        spectral = amplitude.unsqueeze(-1) * scale
        with pyro.plate("data", len(x)):
            mean = ((spectral * weights).unsqueeze(-2) * phi).sum(-1)
            pyro.sample("y", dist.Normal(mean, 0.2), obs=y)

    x = torch.linspace(-1.0, 1.0, 8)
    return Example(model, AutoNormal(model), (x, (3 * x).sin() + 0.2 * randn(8)))
