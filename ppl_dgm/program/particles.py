"""Latent values over particles, and their log densities."""

from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Draw", "LogJoint", "Values"]

Values = dict[str, Tensor]


class LogJoint(NamedTuple):
    """Log prior and log likelihood of latent values.

    These are log p(z) and log p(x | z), each `[particles, data]` (per datum) or `[particles]` (data
    set).

    `scale` is the factor by which each datum counts, a number or `[data]`: 10 for a minibatch of a
    tenth of the data.
    """

    prior: Any
    likelihood: Any
    scale: Any = 1.0

    @property
    def total(self) -> Tensor:
        """log p(x, z)."""
        return self.prior + self.likelihood


class Draw(NamedTuple):
    """Latent values and the log density of their draw.

    Values are `[particles, *shape]` by site name. The density is that of the distribution that drew
    them.

    `score` is the log density of the sites drawn without a path gradient, without scales and masks;
    `counted` is its part in `log_prob`, with them. Its gradient has mean zero, since scales and
    masks of a site come before its draw. It is zero where the prior draws: there it cancels against
    the joint density.
    """

    values: Values
    log_prob: Any
    score: Any = 0.0
    counted: Any = 0.0
