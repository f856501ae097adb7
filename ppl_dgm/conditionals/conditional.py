"""Base of modules from a context to a distribution."""

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

__all__ = ["Conditional"]


class Conditional(nn.Module, ABC):
    """A distribution p(y | context), with or without parameters.

    Likelihoods, priors, posteriors, mixture components and the nodes of Bayes nets are such
    modules. Each role has its own context: a net's outputs, nothing, an encoder's outputs,
    component numbers, the parents' values. To add a kind, subclass the class of its role and write
    `forward`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> class Noise(Conditional):
        ...     def forward(self, loc):
        ...         return dist.Normal(loc, 1.0).to_event(1)
        >>> Noise()(torch.zeros(5, 3)).batch_shape
        torch.Size([5])
    """

    @abstractmethod
    def forward(self, *context: Any) -> Any:
        """Return the distribution of a context, batch first."""
