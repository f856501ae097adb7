r"""f-divergences and what a critic needs to bound them.

An f-divergence is $D_f(p \| q) = \mathbb{E}_q f(p(x) / q(x))$.

For any function T, $D_f(p \| q) \ge \mathbb{E}_p T - \mathbb{E}_q f^*(T)$, with equality at
$T = f'(p / q)$ (Nguyen, Wainwright and Jordan 2010). A critic's output v becomes T = activation(v),
which runs through the domain of the conjugate f* (Nowozin et al. 2016, tables 1, 2 and 6).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ppl_dgm.checked import checked

__all__ = ["Divergence", "alpha_divergence", "named_divergence"]

Function = Callable[[Tensor], Tensor]

_RATIOS = torch.linspace(-3.0, 3.0, 61, dtype=torch.float64).exp()
_OUTPUTS = torch.linspace(-32.0, 32.0, 40001, dtype=torch.float64).sinh()
_FAR = 50.0
_LARGEST_ALPHA = 10.0  # whose f at a ratio of 20 has a slope among these outputs


@checked
@dataclass(frozen=True)
class Divergence:
    r"""f-divergence: a convex function, its conjugate and an activation.

    To add one, make an instance. It is checked numerically, on ratios from 1/20 to 20: f(1) = 0, f
    convex, and $f(u) = \sup_v [u \, a(v) - f^*(a(v))]$, which says that the conjugate is f's and
    that the activation a runs through all of its domain that matters.

    Args:
        name: in messages.
        f: of ratios `[...]`, elementwise.
        conjugate: $f^*(t) = \sup_u [u t - f(u)]$, elementwise, where the activation's values are.
        activation: maps a critic's output, any number, to the domain of the conjugate.
        composed: conjugate(activation(v)) in one formula, where that of the two parts overflows.

    Raises:
        ValueError: f(1) that is not zero, f that is not convex, a conjugate or activation of
            another f, a composition that is not theirs.

    Example:
        >>> import torch
        >>> named_divergence("kl").between(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]))
        tensor(0.5108)
    """

    name: str
    f: Function
    conjugate: Function
    activation: Function
    composed: Function | None = None

    def __post_init__(self) -> None:
        with torch.no_grad():
            _check_at_one(self)
            _check_convex(self)
            _check_conjugate(self)
            _check_composed(self)

    def penalty(self, v: Tensor) -> Tensor:
        """The conjugate at a critic's outputs `[...]`."""
        return self.conjugate(self.activation(v)) if self.composed is None else self.composed(v)

    def between(self, p: Tensor, q: Tensor) -> Tensor:
        """Compute the divergence of two mass functions, in nats.

        It is D_f(p || q), `[...]`, of functions `[..., values]`, with q positive.
        """
        return (q * self.f(p / q)).sum(-1)


def _evaluated(divergence: Divergence, part: str, at: Tensor) -> Tensor:
    """Evaluate a part of a divergence, checked to act elementwise."""
    found = getattr(divergence, part)(at)
    if not isinstance(found, Tensor) or found.shape != at.shape:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"{part} of the divergence {divergence.name!r} maps {list(at.shape)} to {shape}; "
            "expected a function of tensors that acts elementwise"
        )
    return found


def _check_at_one(divergence: Divergence) -> None:
    value = float(divergence.f(torch.ones((), dtype=torch.float64)))
    if not abs(value) < 1e-6:
        raise ValueError(
            f"f(1) is {value:.6g} for the divergence {divergence.name!r}; expected 0, so that "
            f"equal distributions have no divergence. Subtract {value:.6g} from f (add it to the "
            "conjugate)"
        )


def _check_convex(divergence: Divergence) -> None:
    slopes = _evaluated(divergence, "f", _RATIOS).diff() / _RATIOS.diff()
    falls = slopes.diff() < -1e-6 * (1 + slopes[1:].abs())
    if bool(falls.any()) or not bool(slopes.isfinite().all()):
        where = _RATIOS[1:-1][falls | ~slopes.diff().isfinite()]
        raise ValueError(
            f"f of the divergence {divergence.name!r} is not convex near {where[0]:.3g}; expected "
            "a convex function of all positive ratios. An f that is concave has -f convex"
        )


def _check_conjugate(divergence: Divergence) -> None:
    """Compare f with the conjugate of its conjugate.

    The inner one is taken over the range of the activation.
    """
    t = _evaluated(divergence, "activation", _OUTPUTS)
    conjugate, f = _evaluated(divergence, "conjugate", t), divergence.f(_RATIOS)
    sound = conjugate.isfinite() & t.isfinite()
    lines = torch.outer(_RATIOS, torch.where(sound, t, 0.0)) - conjugate
    twice = torch.where(sound, lines, -torch.inf).amax(1)
    error = (twice - f).abs() / (1 + 10 * f.abs())
    worst = int(error.argmax())
    if not bool(error.amax() < 1e-4):
        raise ValueError(
            f"the conjugate of the conjugate of the divergence {divergence.name!r} is "
            f"{twice[worst]:.6g} at {_RATIOS[worst]:.3g}, where f is {f[worst]:.6g}; expected them "
            "equal. Check the conjugate, sup_u [u t - f(u)], and that the activation runs through "
            "all slopes of f and no further than the conjugate's domain"
        )


def _check_composed(divergence: Divergence) -> None:
    v = torch.linspace(-15.0, 15.0, 301, dtype=torch.float64)
    parts, sound = divergence.conjugate(divergence.activation(v)), True
    if divergence.composed is not None:
        composed, sound = _evaluated(divergence, "composed", v), parts.isfinite()
        sound = bool(torch.allclose(composed[sound], parts[sound]))
    if not sound:
        raise ValueError(
            f"composed of the divergence {divergence.name!r} is not its conjugate of its "
            "activation; expected conjugate(activation(v)) in another form. Leave it out to have "
            "it composed"
        )


def _identity(v: Tensor) -> Tensor:
    return v


def _entropic(u: Tensor) -> Tensor:
    """Compute f of twice the Jensen-Shannon divergence.

    It is u log u - (u + 1) log((u + 1) / 2).
    """
    return torch.xlogy(u, u) - (u + 1) * torch.log((u + 1) / 2)


@checked
def alpha_divergence(alpha: float) -> Divergence:
    r"""Make the alpha divergence of order `alpha`.

    It has $f(u) = (u^\alpha - 1 - \alpha (u - 1)) / (\alpha (\alpha - 1))$.

    alpha = 2 is half of Pearson's chi-squared, 1/2 twice the squared Hellinger distance; 1 and 0
    are the limits KL and reverse KL, which have names of their own. A critic's output of 0 stands
    for equal densities.

    Args:
        alpha: from -9 to 10, other than 0 and 1; swapping the two distributions turns alpha to
            1 - alpha.

    Raises:
        ValueError: for alpha 0 or 1, or one out of range.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
        >>> 2 * alpha_divergence(2.0).between(p, q), named_divergence("pearson").between(p, q)
        (tensor(1.7778), tensor(1.7778))
    """
    if alpha in (0, 1) or not 1 - _LARGEST_ALPHA <= alpha <= _LARGEST_ALPHA:
        raise ValueError(
            f"alpha is {alpha}; expected a number from {1 - _LARGEST_ALPHA:g} to "
            f"{_LARGEST_ALPHA:g} other than 0 and 1, whose limits are 'reverse_kl' and 'kl'"
        )
    power = alpha / (alpha - 1)

    def f(u: Tensor) -> Tensor:
        if alpha < 0.5:  # this and the other form are exact where alpha is near 0 and near 1
            return (torch.expm1(alpha * u.log()) / alpha - (u - 1)) / (alpha - 1)
        away = abs(alpha - 1)
        return (u ** min(alpha, 1.0) * torch.expm1(away * u.log()) / away - (u - 1)) / alpha

    def conjugate(t: Tensor) -> Tensor:
        least = torch.finfo(t.dtype).eps - 1
        return torch.expm1(power * torch.log1p(((alpha - 1) * t).clamp_min(least))) / alpha

    if alpha > 1:
        return Divergence(f"alpha={alpha:g}", f, conjugate, _identity)
    end = 1 / (1 - alpha)  # of the conjugate's domain
    slope = math.log(-math.expm1(-end))

    def below(v: Tensor) -> Tensor:
        return -torch.logaddexp(torch.full_like(v, -end), slope - v)

    def composed(v: Tensor) -> Tensor:
        return torch.expm1(power * torch.log(softplus(end + slope - v) / end)) / alpha

    # near alpha = 1 the end is out of reach, and the parts are the exact ones
    near_end = composed if end < _FAR else None
    return Divergence(f"alpha={alpha:g}", f, conjugate, below, near_end)


DIVERGENCES = {
    "kl": lambda: Divergence("kl", lambda u: torch.xlogy(u, u), lambda t: (t - 1).exp(), _identity),
    "reverse_kl": lambda: Divergence(
        "reverse_kl",
        lambda u: -u.log(),
        lambda t: -1 - (-t).log(),
        lambda v: -(-v).exp(),
        lambda v: v - 1,
    ),
    "js": lambda: Divergence(
        "js",
        lambda u: _entropic(u) / 2,
        lambda t: -torch.log(2 - (2 * t).exp()) / 2,
        lambda v: (math.log(2) + logsigmoid(v)) / 2,
        lambda v: (softplus(v) - math.log(2)) / 2,
    ),
    "gan": lambda: Divergence(
        "gan",
        lambda u: torch.xlogy(u, u) - (u + 1) * torch.log(u + 1) + 2 * math.log(2),
        lambda t: -torch.log(-torch.expm1(t)) - 2 * math.log(2),
        logsigmoid,
        lambda v: softplus(v) - 2 * math.log(2),
    ),
    "hellinger": lambda: Divergence(
        "hellinger",
        lambda u: (u.sqrt() - 1) ** 2,
        lambda t: t / (1 - t),
        lambda v: -torch.expm1(-v),
        torch.expm1,
    ),
    "pearson": lambda: Divergence(
        "pearson", lambda u: (u - 1) ** 2, lambda t: t**2 / 4 + t, _identity
    ),
    "total_variation": lambda: Divergence(
        "total_variation", lambda u: (u - 1).abs() / 2, _identity, lambda v: torch.tanh(v) / 2
    ),
}


def named_divergence(divergence: str | Divergence) -> Divergence:
    """A divergence, or the one of that name.

    `"kl"`, `"reverse_kl"`, `"js"` (Jensen-Shannon), `"gan"` (twice that, by the critic of the first
    GAN), `"hellinger"` (squared, without the factor 1/2), `"pearson"` (chi-squared) and
    `"total_variation"`, each D_f(data || draws); `alpha_divergence(alpha)` makes others.

    Raises:
        ValueError: for another name.
        TypeError: for what is neither.
    """
    if isinstance(divergence, Divergence):
        return divergence
    if not isinstance(divergence, str):
        raise TypeError(
            f"divergence is a {type(divergence).__name__}; expected a Divergence or one of "
            f"{sorted(DIVERGENCES)}"
        )
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"divergence is {divergence!r}; expected one of {sorted(DIVERGENCES)}, "
            "alpha_divergence(alpha), or a Divergence of your own"
        )
    return DIVERGENCES[divergence]()
