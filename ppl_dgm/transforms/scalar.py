"""Increasing maps of single numbers.

Their parameters come from elsewhere: a net, a context, a table.

Coupling and autoregressive transforms (`layers`) differ in where the parameters come from, and
these in what is done with them: m + n classes make m x n transforms. To add one, subclass
`ScalarMap`.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.transforms.solving import solve_increasing

__all__ = ["Affine", "LogisticMixture", "ScalarMap", "Shift", "Spline"]

MAX_LOG_SCALE = 7.0
EXTREME = 2.0**-40  # least distance of a probability from 0 and 1 in inverses, relative


class ScalarMap(ABC):
    """Increasing elementwise map with given parameters.

    It is y = f(x; p), with `num_params` numbers p for each x.
    """

    num_params: int
    start = 0.1  # share of their usual size at which nets start that give p: near the identity

    @abstractmethod
    def call_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Compute y and log dy/dx, both `[...]`.

        x is `[...]`, parameters are `[..., num_params]`.
        """

    @abstractmethod
    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Compute x and log dx/dy, both `[...]`.

        y is `[...]`, parameters are `[..., num_params]`.
        """


class Shift(ScalarMap):
    """Shift by a parameter, y = x + p.

    Volumes stay (Dinh et al. 2015, NICE, section 3.2).

    Example:
        >>> Shift().call_and_log_det(torch.zeros(1), torch.ones(1, 1))
        (tensor([1.]), tensor([0.]))
    """

    num_params = 1
    start = 0.3  # volumes stay anyway, and near the identity symmetric data have no slope

    def call_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """x + p and zero."""
        y = x + params[..., 0]
        return y, torch.zeros_like(y)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """y - p and zero."""
        x = y - params[..., 0]
        return x, torch.zeros_like(x)


class Affine(ScalarMap):
    r"""Affine map with a bounded log-scale.

    It is $y = e^s x + b$ with $s = m \tanh(p_2 / m)$, $b = p_1$ (Dinh et al. 2017, RealNVP, section
    3.2).

    The bound m is smooth, so that gradients are those of the map that is applied; Pyro clips s to
    [-5, 3] and passes gradients on as if it did not.

    Args:
        max_log_scale: m, above which no |s| goes.

    Example:
        >>> Affine().call_and_log_det(torch.ones(1), torch.tensor([[2.0, 0.0]]))
        (tensor([3.]), tensor([0.]))
    """

    num_params = 2

    @checked
    def __init__(self, max_log_scale: float = MAX_LOG_SCALE) -> None:
        if not max_log_scale > 0:
            raise ValueError(f"max_log_scale is {max_log_scale}; expected a positive number")
        self.max_log_scale = max_log_scale

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor]:
        return params[..., 0], bounded(params[..., 1], self.max_log_scale)

    def call_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """exp(s) x + b, and s."""
        shift, log_scale = self._parts(params)
        y = x * log_scale.exp() + shift
        return y, log_scale.expand(y.shape)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """(y - b) exp(-s), and -s."""
        shift, log_scale = self._parts(params)
        x = (y - shift) * (-log_scale).exp()
        return x, (-log_scale).expand(x.shape)


class Spline(ScalarMap):
    r"""Monotone rational quadratic spline (Durkan et al. 2019).

    It is on [-b, b], and the identity outside. See their section 3.1.

    K bins of widths w and heights h, softmaxes times 2 b, and derivatives $\delta$ at the K - 1
    inner knots, softplus; 1 at the outer ones. Within a bin, with $\xi$ the place in it and s = h /
    w,

    $$y = y_k + h \frac{s \xi^2 + \delta_k \xi (1 - \xi)}{s + (\delta_{k+1} + \delta_k - 2 s) \xi (1
    - \xi)}.$$

    Args:
        num_bins: K.
        bound: b.
        least: of a bin's width and height, as a share of 2 b / K, and of the derivatives.

    Raises:
        ValueError: fewer than two bins, a bound that is not positive.

    Example:
        >>> spline = Spline(4, bound=2.0)
        >>> x = torch.tensor([0.5, 3.0])
        >>> y, log_slope = spline.call_and_log_det(x, torch.zeros(2, spline.num_params))
        >>> y, log_slope.abs() < 1e-6
        (tensor([0.5000, 3.0000]), tensor([True, True]))
    """

    @checked
    def __init__(self, num_bins: int = 8, bound: float = 5.0, least: float = 1e-3) -> None:
        if num_bins < 2 or not bound > 0 or not 0 < least < 1:
            raise ValueError(
                f"expected at least 2 bins, a positive bound and least in (0, 1), got {num_bins}, "
                f"{bound}, {least}"
            )
        self.num_bins, self.bound, self.least = num_bins, bound, least
        self.num_params = 3 * num_bins - 1

    def call_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The spline and its log derivative."""
        inside, x, params = self._prepared(x, params)
        left, width, bottom, height, before, after = self._bin(x, params, by_height=False)
        place = ((x - left) / width).clamp(0, 1)
        slope, mixed = height / width, place * (1 - place)
        total = slope + (before + after - 2 * slope) * mixed
        y = bottom + height * (slope * place.square() + before * mixed) / total
        log_slope = self._log_slope(place, slope, before, after, total)
        return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the inverse and its log derivative.

        The inverse is the root of a quadratic equation.
        """
        inside, y, params = self._prepared(y, params)
        left, width, bottom, height, before, after = self._bin(y, params, by_height=True)
        slope, rise = height / width, (y - bottom).clamp_min(0)
        excess = rise * (before + after - 2 * slope)
        a, b, c = height * (slope - before) + excess, height * before - excess, -slope * rise
        root = (b.square() - 4 * a * c).clamp_min(0).sqrt()
        place = (2 * c / (-b - root)).clamp(0, 1)
        total = slope + (before + after - 2 * slope) * place * (1 - place)
        log_slope = self._log_slope(place, slope, before, after, total)
        x = left + place * width
        return torch.where(inside, x, y), torch.where(inside, -log_slope, 0.0)

    def _prepared(self, value: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find which values the spline maps and broadcast the parameters.

        Elsewhere the spline is the identity. Value and parameters get one shape.
        """
        value = value.expand(torch.broadcast_shapes(value.shape, params.shape[:-1]))
        params = params.expand(*value.shape, self.num_params)
        return value.abs() < self.bound, value, params

    def _bin(self, value: Tensor, params: Tensor, by_height: bool) -> tuple[Tensor, ...]:
        """Find the bin of each value.

        The result is left, width, bottom, height and the two derivatives of the bin.
        """
        widths, heights, slopes = params.split(
            [self.num_bins, self.num_bins, self.num_bins - 1], -1
        )
        across, up = self._knots(widths), self._knots(heights)
        ones = torch.ones_like(slopes[..., :1])
        start = math.log(math.expm1(1 - self.least))  # zero parameters make the identity
        inner = self.least + F.softplus(slopes + start)
        derivatives = torch.cat([ones, inner, ones], -1)
        knots = up if by_height else across
        index = (value.unsqueeze(-1) >= knots[..., 1:-1]).sum(-1, keepdim=True)

        def at(table: Tensor, offset: int = 0) -> Tensor:
            return table.gather(-1, index + offset).squeeze(-1)

        left, bottom = at(across), at(up)
        width, height = at(across, 1) - left, at(up, 1) - bottom
        return left, width, bottom, height, at(derivatives), at(derivatives, 1)

    def _knots(self, sizes: Tensor) -> Tensor:
        """Compute the borders of bins, from -b to b.

        Unnormalised sizes are `[..., K]`, borders `[..., K + 1]`.
        """
        share = self.least / self.num_bins + (1 - self.least) * sizes.softmax(-1)
        inner = share[..., :-1].cumsum(-1) * (2 * self.bound) - self.bound
        edge = torch.full_like(inner[..., :1], self.bound)
        return torch.cat([-edge, inner, edge], -1)

    @staticmethod
    def _log_slope(
        place: Tensor, slope: Tensor, before: Tensor, after: Tensor, total: Tensor
    ) -> Tensor:
        rest = 1 - place
        top = after * place.square() + 2 * slope * place * rest + before * rest.square()
        return 2 * slope.log() + top.log() - 2 * total.log()


class LogisticMixture(ScalarMap):
    r"""Logit of a mixture of logistic distribution functions.

    An affine map follows (Ho et al. 2019, Flow++, section 3.2).

    $y = e^s\, \mathrm{logit} \sum_k \pi_k \sigma((x - \mu_k) e^{-t_k}) + b$. One layer of a neural
    autoregressive flow (Huang et al. 2018, deep sigmoidal flow) is the same map. The inverse is
    numerical, from brackets that are known: the logit lies between the least and the greatest $(x -
    \mu_k) e^{-t_k}$.

    Args:
        num_components: K.
        max_log_scale: above which no |t| and no |s| goes.

    Raises:
        ValueError: no components.

    Example:
        >>> mixture, params = LogisticMixture(3), torch.linspace(-1, 1, 11)
        >>> y, _ = mixture.call_and_log_det(torch.tensor(0.7), params)
        >>> mixture.inverse_and_log_det(y, params)[0]
        tensor(0.7000)
    """

    @checked
    def __init__(self, num_components: int = 8, max_log_scale: float = MAX_LOG_SCALE) -> None:
        if num_components < 1:
            raise ValueError(f"num_components is {num_components}; expected at least 1")
        self.num_components = num_components
        self.affine = Affine(max_log_scale)
        self.num_params = 3 * num_components + 2

    def call_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The map and its log derivative."""
        logit, log_slope = self._logit(x, params)
        y, log_scale = self.affine.call_and_log_det(logit, params[..., -2:])
        return y, log_slope + log_scale

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the inverse and its log derivative.

        The inverse is found by bisection and Newton steps.
        """
        logit, log_scale = self.affine.inverse_and_log_det(y, params[..., -2:])
        _, loc, log_width = self._parts(params)
        ends = loc + log_width.exp() * logit.unsqueeze(-1)

        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            value, log_slope = self._logit(x, params)
            return value, log_slope.exp()

        x = solve_increasing(function, logit, ends.amin(-1), ends.amax(-1))
        return x, log_scale - self._logit(x, params)[1]

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, locations and log-scales of the components, `[..., K]` each."""
        logits, loc, raw = params[..., :-2].chunk(3, -1)
        return logits, loc, bounded(raw, self.affine.max_log_scale)

    def _logit(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the mixture's logit and its log derivative.

        The logit is that of the distribution function. Both are exact in both tails.
        """
        logits, loc, log_width = self._parts(params)
        log_weight = logits.log_softmax(-1)
        u = (x.unsqueeze(-1) - loc) * (-log_width).exp()
        log_below = (log_weight + F.logsigmoid(u)).logsumexp(-1)
        log_above = (log_weight + F.logsigmoid(-u)).logsumexp(-1)
        log_density = (log_weight + F.logsigmoid(u) + F.logsigmoid(-u) - log_width).logsumexp(-1)
        return log_below - log_above, log_density - log_below - log_above


def bounded(raw: Tensor, most: float) -> Tensor:
    """Limit log-scales smoothly to plus and minus a bound.

    The limited values are m tanh(a / m).
    """
    return most * (raw / most).tanh()
