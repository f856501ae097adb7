"""Visible units of restricted Boltzmann machines.

They have the base measures that they are annealed from.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_dgm.conditionals.grey_levels import Bits, Shades

__all__ = ["UNITS", "BinaryUnits", "Units", "toss"]


class Units(nn.Module, ABC):
    r"""Base class of visible units.

    A kind has a term of the energy, a function of the units that hidden units see, and a base
    measure.

    $-E(v, h) = u(v) + s(v)^\top W h + c^\top h$; `score` is u, `signal` s. To add a kind, implement
    the methods below. All are over data `[..., D]`.
    """

    @abstractmethod
    def base(self) -> Any:
        """Return the base measure, a distribution of event shape `[D]`."""

    @abstractmethod
    def fit_base(self, x: Tensor) -> None:
        """Fit base measure and biases to data `[N, D]`.

        They become those of independent units.
        """

    @abstractmethod
    def score(self, v: Tensor) -> Tensor:
        """Compute the unnormalised log density u of units alone: `[...]`."""

    @abstractmethod
    def signal(self, v: Tensor) -> Tensor:
        """Compute s, what is multiplied with the weights: `[..., D]`."""

    @abstractmethod
    def draw(self, field: Tensor, beta: Any) -> Tensor:
        r"""Draw units given the field W h `[..., D]`.

        The density is $\mathrm{base}^{1-\beta} \exp(\beta (u + s^\top W h))$.
        """

    @abstractmethod
    def log_normaliser(self, field: Tensor) -> Tensor:
        r"""Compute the log normaliser of units given fields: `[...]`.

        $\log \int \exp(u(v) + s(v)^\top a)\, dv$ for fields a `[..., D]`.
        """


class BinaryUnits(Bits, Units):
    r"""Binary visible units, with values 0 and 1.

    $u(v) = b^\top v$, $s(v) = v$; independent Bernoullis are the base measure.
    """

    base_logits: Tensor

    def __init__(self, num_units: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_units))
        self.register_buffer("base_logits", torch.zeros(num_units))

    def base(self) -> Any:
        return dist.Bernoulli(logits=self.base_logits).to_event(1)

    @torch.no_grad()
    def fit_base(self, x: Tensor) -> None:
        rates = (x.to(self.bias).sum(0) + 0.5) / (len(x) + 1)
        self.base_logits.copy_(rates.logit())
        self.bias.copy_(self.base_logits)

    def score(self, v: Tensor) -> Tensor:
        return v @ self.bias

    def signal(self, v: Tensor) -> Tensor:
        return v

    def draw(self, field: Tensor, beta: Any) -> Tensor:
        logits = field + self.bias
        if isinstance(beta, Tensor) or beta != 1:
            logits = torch.lerp(self.base_logits, logits, torch.as_tensor(beta).to(field))
        return toss(logits.sigmoid_())

    def log_normaliser(self, field: Tensor) -> Tensor:
        return F.softplus(field + self.bias).sum(-1)


class GaussianUnits(Shades, Units):
    r"""Real visible units, normal given the hidden units.

    $u(v) = -\sum_i (v_i - b_i)^2 / 2\sigma_i^2$, $s(v) = v / \sigma$; normals are the base measure.

    Given hidden units each is normal with mean $b + \sigma W h$ and standard deviation $\sigma$, a
    parameter. Hinton and Salakhutdinov (2006), "Reducing the dimensionality of data with neural
    networks".
    """

    base_loc: Tensor
    base_scale: Tensor

    def __init__(self, num_units: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_units))
        self.log_scale = nn.Parameter(torch.zeros(num_units))
        self.register_buffer("base_loc", torch.zeros(num_units))
        self.register_buffer("base_scale", torch.ones(num_units))

    @property
    def scale(self) -> Tensor:
        """Standard deviation of each unit given the hidden ones: `[D]`."""
        return self.log_scale.exp()

    def base(self) -> Any:
        return dist.Normal(self.base_loc, self.base_scale).to_event(1)

    @torch.no_grad()
    def fit_base(self, x: Tensor) -> None:
        scale, loc = torch.std_mean(x.to(self.bias), 0)
        self.base_loc.copy_(loc)
        self.base_scale.copy_(scale.clamp_min(1e-3))
        self.bias.copy_(self.base_loc)
        self.log_scale.copy_(self.base_scale.log())

    def score(self, v: Tensor) -> Tensor:
        return -0.5 * ((v - self.bias) / self.scale).square().sum(-1)

    def signal(self, v: Tensor) -> Tensor:
        return v / self.scale

    def draw(self, field: Tensor, beta: Any) -> Tensor:
        own, given = beta * self.scale**-2, (1 - beta) * self.base_scale**-2
        precision = own + given
        mean = (own * (self.bias + self.scale * field) + given * self.base_loc) / precision
        return mean + precision.rsqrt() * torch.randn_like(mean)

    def log_normaliser(self, field: Tensor) -> Tensor:
        one = 0.5 * field.square() + field * self.bias / self.scale + self.log_scale
        return (one + 0.5 * math.log(2 * math.pi)).sum(-1)


def toss(p: Tensor) -> Tensor:
    r"""Draw ones with probabilities p `[..., D]`, else zeros.

    Each is $[(k + v) / 2^{16} < p]$, with 16 bits k of its own and a v in [0, 1) of its row.
    """
    if p.device.type != "cpu":
        return torch.bernoulli(p)
    # `torch.bernoulli` draws a double for each unit here, which takes as long as the products of a
    # Gibbs step. (k + v) / 2^16 has the distribution of `torch.rand`, bit for bit: marginals are
    # exact, and so are rows, which are independent. Given v, P(one) of a unit is
    # (floor(2^16 p) + [v < what is left]) / 2^16, so that the covariance of two units of a row is
    # that of two indicators over 2^32, at most 2^-34, in any precision; beside it, rounding p to
    # float32 moves P(one) by up to 2^-25. The number of ones among D units of a row has a variance
    # off by a factor between 1 and 1 + D / 2^16, most where all p are below 2^-16.
    num_units = p.shape[-1]
    rows, device = p.shape[:-1], p.device
    words = torch.randint(-(2**63), 2**63 - 1, (*rows, -(-num_units // 4)), device=device)
    wide = torch.promote_types(p.dtype, torch.float32)
    # Two bytes, not an int16: Inductor's loops over int16 are not vectorised, three times as slow.
    high, low = words.view(torch.uint8)[..., : 2 * num_units].chunk(2, -1)
    levels = int(2**-15 / torch.finfo(wide).eps)  # of v: the bits of `torch.rand` that are left
    v = torch.randint(levels, (*rows, 1), dtype=wide, device=device) * (2**-16 / levels)
    return torch.add(v, low, alpha=2**-16).add_(high, alpha=2**-8).lt_(p).to(p.dtype)


UNITS = {"binary": BinaryUnits, "gaussian": GaussianUnits}
