"""Exact densities of discrete data at extreme probabilities.

They are right to the last digit where probabilities are 0, 1 or next to them.

torch clamps probabilities to [1.2e-7, 1 - 1.2e-7] before it takes logarithms, so that what is
impossible has log p = -15.9. That keeps gradients of fits finite; evidence must not have it.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Categorical, Multinomial, NegativeBinomial
from torch.nn.functional import logsigmoid

from ppl_dgm.context_patches import ContextPatches, Patch

__all__ = ["exact_probabilities"]


def given_probs(fn: Any) -> Tensor | None:
    """Return the probabilities that a distribution was created with.

    The result is None if it was created with logits.
    """
    probs = fn.__dict__.get("probs")
    return probs if probs is not None and fn._param is probs else None


def log_odds(fn: Any) -> tuple[Tensor, Tensor]:
    """Compute log p and log(1 - p) without clamping.

    p is the success probability of the distribution.
    """
    probs = given_probs(fn)
    if probs is not None:
        return probs.log(), (-probs).log1p()
    return logsigmoid(fn.logits), logsigmoid(-fn.logits)


def times(count: Tensor, log_prob: Tensor) -> Tensor:
    """Multiply a count by a log probability.

    The product is zero for a count of zero, whatever the probability.
    """
    return torch.where(count == 0, 0.0, count * log_prob)


def exact_logits(probs: Tensor, is_binary: bool = False) -> Tensor:
    """Logits of probabilities: minus infinity of zero."""
    return probs.log() - (-probs).log1p() if is_binary else probs.log()


def _bernoulli(self: Bernoulli, value: Tensor) -> Tensor:
    yes, no = log_odds(self)
    return times(value, yes) + times(1 - value, no)


def _binomial(self: Binomial, value: Tensor) -> Tensor:
    total, (yes, no) = self.total_count, log_odds(self)
    ways = torch.lgamma(total + 1) - torch.lgamma(value + 1) - torch.lgamma(total - value + 1)
    return ways + times(value, yes) + times(total - value, no)


def _negative_binomial(self: NegativeBinomial, value: Tensor) -> Tensor:
    total, (yes, no) = self.total_count, log_odds(self)
    ways = torch.lgamma(total + value) - torch.lgamma(value + 1) - torch.lgamma(total)
    return torch.where(total + value == 0, 0.0, ways) + times(total, no) + times(value, yes)


def _categorical(self: Categorical, value: Tensor) -> Tensor:
    probs = given_probs(self)
    logits = self.logits if probs is None else exact_logits(probs)
    index, logits = torch.broadcast_tensors(value.long().unsqueeze(-1), logits)
    return logits.gather(-1, index[..., :1]).squeeze(-1)


def _multinomial(self: Multinomial, value: Tensor) -> Tensor:
    logits = self.logits if given_probs(self._categorical) is None else exact_logits(self.probs)
    ways = torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1)
    found = ways + times(value, logits).sum(-1)
    return torch.where(value.sum(-1) == self.total_count, found, -torch.inf)


# Seen by the thread that computes evidence alone; fits keep torch's clamp.
exact_probabilities = ContextPatches(
    Patch(Bernoulli, "log_prob", _bernoulli),
    Patch(Binomial, "log_prob", _binomial),
    Patch(dist.Binomial, "log_prob", _binomial),  # Pyro's own, beside torch's
    Patch(NegativeBinomial, "log_prob", _negative_binomial),
    Patch(Categorical, "log_prob", _categorical),
    Patch(Multinomial, "log_prob", _multinomial),
    Patch(torch.distributions.categorical, "probs_to_logits", exact_logits),
)
