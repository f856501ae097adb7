"""Guides: approximate posteriors of a latent vector for each datum.

An amortised guide is an encoder followed by a posterior family: a module that turns the encoder's outputs into a
distribution. To add a family, subclass `Posterior`: `num_params` numbers in, a distribution of event shape `[L]` out.
"""

from abc import ABC, abstractmethod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class Posterior(nn.Module, ABC):
    """A family of distributions of a latent vector `[L]`, indexed by `num_params` numbers."""

    def __init__(self, num_latents: int, num_params: int) -> None:
        super().__init__()
        if num_latents < 1:
            raise ValueError(f"num_latents is {num_latents}; expected at least 1")
        self.num_latents, self.num_params = num_latents, num_params

    @abstractmethod
    def forward(self, params: Tensor) -> Any:
        """The distribution, batch `[...]`, event `[L]`, of parameters `[..., num_params]`."""


class DiagonalNormal(Posterior):
    """N(loc, diag(scale^2)), parameters loc and log scale.

    Example:
        >>> DiagonalNormal(3)(torch.zeros(5, 6)).event_shape
        torch.Size([3])
    """

    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents, 2 * num_latents)

    def forward(self, params: Tensor) -> Any:
        """Normal distributions of parameters `[..., 2 L]`."""
        loc, log_scale = params.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class FullRankNormal(Posterior):
    """N(loc, T T^T) with T lower triangular: parameters loc, log of T's diagonal, and T below it.

    Example:
        >>> FullRankNormal(3)(torch.zeros(5, 9)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents, 2 * num_latents + num_latents * (num_latents - 1) // 2)
        rows, columns = torch.tril_indices(num_latents, num_latents, -1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, params: Tensor) -> Any:
        """Normal distributions of parameters `[..., 2 L + L (L - 1) / 2]`."""
        loc, log_diagonal, below = params.split([self.num_latents, self.num_latents, len(self.rows)], -1)
        flat = below.new_zeros(*below.shape[:-1], self.num_latents**2)
        index = (self.rows * self.num_latents + self.columns).expand(below.shape)
        lower = flat.scatter(-1, index, below).unflatten(-1, (self.num_latents, self.num_latents))
        return dist.MultivariateNormal(loc, scale_tril=lower + torch.diag_embed(log_diagonal.exp()))


class AmortisedGuide(nn.Module):
    """q(z | x) = posterior(encoder(x)), one latent vector for each datum.

    Args:
        encoder: maps data `[..., *event]` to `[..., posterior.num_params]`.
        posterior: makes the distribution of its outputs.

    Example:
        >>> guide = AmortisedGuide(nn.Linear(4, 6), DiagonalNormal(3))
        >>> guide(torch.zeros(7, 4)).shape
        torch.Size([7, 3])
    """

    def __init__(self, encoder: nn.Module, posterior: Posterior) -> None:
        super().__init__()
        self.encoder, self.posterior = encoder, posterior

    def distribution(self, x: Tensor) -> Any:
        """q(z | x) of data `[..., *event]`: batch `[...]`, event `[L]`."""
        return self.posterior(self.encoder(x))

    def forward(self, x: Tensor) -> Tensor:
        """Draw latents `[data, L]` of data `[data, *event]`."""
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.distribution(x))
