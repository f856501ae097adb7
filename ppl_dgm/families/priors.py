"""Priors of a latent vector: modules that return a distribution of event shape `[L]`."""

from abc import ABC, abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class LatentPrior(nn.Module, ABC):
    """A distribution of a latent vector `[L]`, with or without parameters."""

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        if num_latents < 1:
            raise ValueError(f"num_latents is {num_latents}; expected at least 1")
        self.num_latents = num_latents

    @abstractmethod
    def forward(self) -> Any:
        """The distribution: batch `[]`, event `[L]`."""


class StandardNormal(LatentPrior):
    """z ~ N(0, I).

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    zeros: Tensor

    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents)
        self.register_buffer("zeros", torch.zeros(num_latents), persistent=False)

    def forward(self) -> Any:
        """The standard normal distribution."""
        return dist.Normal(self.zeros, 1.0).to_event(1)
