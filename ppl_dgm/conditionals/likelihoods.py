"""Likelihoods that turn a net's outputs into distributions.

Each dimension of the data has its own distribution.

A likelihood is a module that turns parameters `[..., D, num_params]` into a distribution with batch
shape `[..., D]`. VAEs and autoregressive nets take any of them. To add one, subclass `Likelihood`,
set `num_params`, write `forward`.
"""

import math
from abc import abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.conditional import Conditional
from ppl_dgm.conditionals.grey_levels import Bits, Shades
from ppl_dgm.distributions import discretised as distributions
from ppl_dgm.distributions.discretised import DiscretisedLogisticMixture

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretisedLogistic",
    "Gaussian",
    "Likelihood",
    "MixtureDensity",
    "check_levels",
    "named_likelihood",
    "scaled_levels",
]

MIN_SCALE = 1e-4
MAX_LOG_SCALE = 40.0  # of larger ones float32 has no squares, and of those above 88 no numbers


class Likelihood(Conditional):
    """Conditional distribution of each dimension of the data.

    It turns `num_params` numbers per dimension into a distribution of that dimension.
    """

    num_params: int = 1

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistribution:
        """Return the distribution for the given parameters.

        Its batch shape is `[..., D]` for parameters `[..., D, num_params]`.
        """

    def inputs(self, x: Tensor) -> Tensor:
        """Scale data for use as inputs of a net.

        Inputs are of order one. Both shapes are `[..., D]`.
        """
        return x

    def of_bytes(
        self, levels: Tensor, are_images: bool, bright: bool | None = None
    ) -> tuple[Tensor, str]:
        """Turn bytes, 0 to 255, into what is observed.

        Args:
            levels: the bytes, of the dtype of parameters.
            are_images: whether each datum is an image.
            bright: whether any byte of the data, of which these may be a part, is above 127; None
                looks at these.

        Returns:
            The values, and what was done to them, empty where they are as they were.
        """
        return levels, ""

    def tempered(self, params: Tensor, temperature: float) -> TorchDistribution:
        r"""Temper a distribution: $p(x)^{1 / T}$, normalised.

        Here that of finitely many levels 0, 1, ...

        Raises:
            ValueError: where the values are not finitely many, and the subclass has no rule of its
                own.
        """
        law = self(params)
        if not law.has_enumerate_support:
            raise ValueError(
                f"{type(self).__name__} has no draws at temperature {temperature}, only at 1; "
                "write its method `tempered`"
            )
        log_probs = law.log_prob(law.enumerate_support())
        return Levels(logits=log_probs.movedim(0, -1) / temperature)

    def draw(self, params: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw one dimension `[...]` of parameters `[..., num_params]`."""
        params = params.unsqueeze(-2)
        law = self(params) if temperature == 1 else self.tempered(params, temperature)
        return law.sample().squeeze(-1)


class Levels(dist.Categorical):
    """Categorical distribution that draws levels as real numbers.

    The data are real numbers too.
    """

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Levels `[*sample_shape, *batch]`."""
        return super().sample(sample_shape).to(self.logits.dtype)


class Bernoulli(Bits, Likelihood):
    """Pixels in {0, 1}; the parameter is the logit.

    Example:
        >>> Bernoulli()(torch.zeros(3, 1)).log_prob(torch.ones(3))
        tensor([-0.6931, -0.6931, -0.6931])
    """

    def forward(self, params: Tensor) -> TorchDistribution:
        """Bernoulli distributions `[..., D]` of logits `[..., D, 1]`."""
        return dist.Bernoulli(logits=params.squeeze(-1))


class Gaussian(Shades, Likelihood):
    r"""Real numbers, $x_d \sim N(\mu_d, \sigma_d^2)$.

    Args:
        scale: the standard deviation: a number fixes it (the start, where it is learned).
        learned: `"no"`; `"shared"`, one parameter; `"net"`, an output of the net for every
            dimension.

    Raises:
        ValueError: a scale that is not positive, or another word for `learned`.

    Example:
        >>> Gaussian(2.0)(torch.zeros(3, 1)).scale
        tensor([2., 2., 2.])
        >>> Gaussian(learned="net")(torch.zeros(3, 2)).batch_shape
        torch.Size([3])
    """

    log_scale: Tensor

    @checked
    def __init__(self, scale: float = 1.0, learned: str = "no") -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a positive standard deviation")
        if learned not in ("no", "shared", "net"):
            raise ValueError(f"learned is {learned!r}; expected 'no', 'shared' or 'net'")
        self.num_params = 2 if learned == "net" else 1
        start = torch.tensor(math.log(scale))
        if learned == "shared":
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)

    def forward(self, params: Tensor) -> TorchDistribution:
        """Return normal distributions `[..., D]` for the given parameters.

        The parameters, `[..., D, 1 or 2]`, are means, and offsets of log-scales.
        """
        if self.num_params == 1:
            return dist.Normal(params[..., 0], self.log_scale.exp())
        return dist.Normal(params[..., 0], scales(self.log_scale + params[..., 1]))

    def tempered(self, params: Tensor, temperature: float) -> TorchDistribution:
        """The variance times the temperature."""
        law: Any = self(params)
        return dist.Normal(law.loc, law.scale * temperature**0.5)


class Categorical(Likelihood):
    """Categorical likelihood of grey levels without an order.

    The levels are 0, ..., levels - 1. The parameters are their logits.

    Args:
        levels: number of levels.

    Raises:
        ValueError: fewer than two levels.

    Example:
        >>> Categorical(4)(torch.zeros(3, 4)).log_prob(torch.tensor([0.0, 1.0, 3.0])).exp()
        tensor([0.2500, 0.2500, 0.2500])
    """

    @checked
    def __init__(self, levels: int) -> None:
        super().__init__()
        self.num_params = check_levels(levels)

    def forward(self, params: Tensor) -> TorchDistribution:
        """Categorical distributions `[..., D]` of logits `[..., D, levels]`."""
        return Levels(logits=params)

    def inputs(self, x: Tensor) -> Tensor:
        """Levels scaled to [-1, 1]."""
        return scaled_levels(x, self.num_params)


class ContinuousBernoulli(Likelihood):
    """Continuous Bernoulli likelihood of pixels in [0, 1].

    The parameter is the logit (Loaiza-Ganem and Cunningham 2019).

    The density is normalised, which that of a Bernoulli at grey values is not.

    Example:
        >>> uniform = ContinuousBernoulli()(torch.zeros(3, 1))
        >>> uniform.log_prob(torch.tensor([0.0, 0.3, 1.0])).abs().max() < 1e-6
        tensor(True)
    """

    def forward(self, params: Tensor) -> TorchDistribution:
        """Continuous Bernoulli distributions `[..., D]` of logits `[..., D, 1]`."""
        return distributions.ContinuousBernoulli(params.squeeze(-1))

    def of_bytes(
        self, levels: Tensor, are_images: bool, bright: bool | None = None
    ) -> tuple[Tensor, str]:
        """Grey levels are divided by 255."""
        return levels / 255, "divided by 255"

    def tempered(self, params: Tensor, temperature: float) -> TorchDistribution:
        """The logit divided by the temperature."""
        return self(params / temperature)


class MixtureDensity(Likelihood):
    r"""Real numbers from mixtures of Gaussians or logistics.

    $x_d \sim \sum_k \pi_k\, p((x_d - \mu_k) / s_k) / s_k$, p a standard Gaussian or logistic.

    The parameters are, for each component, the logit of its weight, its location and the log of its
    scale (Uria, Murray and Larochelle 2013, RNADE, equations 9 to 11).

    Args:
        num_components: K.
        kind: `"gaussian"` or `"logistic"`.

    Raises:
        ValueError: fewer than one component, another kind.

    Example:
        >>> MixtureDensity(3)(torch.zeros(4, 9)).log_prob(torch.zeros(4)).exp()
        tensor([0.3989, 0.3989, 0.3989, 0.3989])
    """

    @checked
    def __init__(self, num_components: int = 10, kind: str = "gaussian") -> None:
        super().__init__()
        if num_components < 1:
            raise ValueError(f"num_components is {num_components}; expected at least 1")
        if kind not in COMPONENTS:
            raise ValueError(f"kind is {kind!r}; expected one of {tuple(COMPONENTS)}")
        self.num_components, self.kind, self.num_params = num_components, kind, 3 * num_components

    def forward(self, params: Tensor) -> TorchDistribution:
        """Distributions `[..., D]` of parameters `[..., D, 3 K]`."""
        return self._mixture(params, 1.0)

    def tempered(self, params: Tensor, temperature: float) -> TorchDistribution:
        r"""Temper the weights and scales of the components separately.

        Weights are $\propto \pi_k^{1 / T}$, scales are $s_k \sqrt T$.
        """
        return self._mixture(params, temperature)

    def _mixture(self, params: Tensor, temperature: float) -> TorchDistribution:
        logits, loc, log_scale = params.unflatten(-1, (3, self.num_components)).unbind(-2)
        scale = scales(log_scale) * temperature**0.5
        components = COMPONENTS[self.kind](loc, scale)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits / temperature), components)


class DiscretisedLogistic(Likelihood):
    """Discretised logistic mixture likelihood of ordered grey levels.

    The levels are 0, ..., levels - 1. Each dimension has its own mixture.

    The parameters are, for each component, the logit of its weight, its mean in [-1, 1] and the log
    of its scale, less that of 1 / sqrt(levels).

    Args:
        levels: number of levels.
        num_components: number of logistics.

    Raises:
        ValueError: fewer than two levels or one component.

    Example:
        >>> DiscretisedLogistic(256, 5)(torch.zeros(3, 15)).log_prob(torch.zeros(3)).shape
        torch.Size([3])
    """

    @checked
    def __init__(self, levels: int = 256, num_components: int = 5) -> None:
        super().__init__()
        if num_components < 1:
            raise ValueError(f"num_components is {num_components}; expected at least 1")
        self.levels, self.num_params = check_levels(levels), 3 * num_components

    def forward(self, params: Tensor) -> TorchDistribution:
        """Distributions `[..., D]` of parameters `[..., D, 3 * num_components]`."""
        logits, loc, log_scale = params.chunk(3, -1)
        scale = scales(log_scale - 0.5 * math.log(self.levels))
        return DiscretisedLogisticMixture(logits, loc, scale, self.levels)

    def inputs(self, x: Tensor) -> Tensor:
        """Levels scaled to [-1, 1]."""
        return scaled_levels(x, self.levels)


def scales(log_scale: Tensor) -> Tensor:
    """Make finite scales of the logarithms that nets give."""
    return log_scale.clamp(max=MAX_LOG_SCALE).exp() + MIN_SCALE


def check_levels(levels: int) -> int:
    """Refuse fewer than two levels."""
    if levels < 2:
        raise ValueError(f"levels is {levels}; expected at least 2, e.g. 256 for bytes")
    return levels


def scaled_levels(x: Tensor, levels: int) -> Tensor:
    """Levels 0, ..., levels - 1 scaled to [-1, 1]."""
    return 2 * x / (levels - 1) - 1


COMPONENTS = {"gaussian": dist.Normal, "logistic": dist.Logistic}
NAMED = {"bernoulli": Bernoulli, "gaussian": Gaussian}


def named_likelihood(likelihood: "str | Likelihood") -> Likelihood:
    """A likelihood, or a new one of that name.

    Raises:
        ValueError: for another name; TypeError: for anything else than a likelihood or a name.

    Example:
        >>> named_likelihood("bernoulli")
        Bernoulli()
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(
            f"likelihood is a {type(likelihood).__name__}; expected a Likelihood or one of "
            f"{sorted(NAMED)}"
        )
    if likelihood not in NAMED:
        raise ValueError(
            f"there is no likelihood {likelihood!r}; expected a Likelihood or one of "
            f"{sorted(NAMED)}"
        )
    return NAMED[likelihood]()
