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
_OUTPUTS = torch.linspace(-8.0, 8.0, 20001, dtype=torch.float64).sinh()


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


def _check_at_one(divergence: Divergence) -> None:
    value = float(divergence.f(torch.ones((), dtype=torch.float64)))
    if not abs(value) < 1e-6:
        raise ValueError(
            f"f(1) is {value:.6g} for the divergence {divergence.name!r}; expected 0, so that "
            f"equal distributions have no divergence. Subtract {value:.6g} from f (add it to the "
            "conjugate)"
        )


def _check_convex(divergence: Divergence) -> None:
    slopes = divergence.f(_RATIOS).diff() / _RATIOS.diff()
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
    t = divergence.activation(_OUTPUTS)
    conjugate, f = divergence.conjugate(t), divergence.f(_RATIOS)
    sound = conjugate.isfinite() & t.isfinite()
    twice = (torch.outer(_RATIOS, t[sound]) - conjugate[sound]).amax(1)
    error = twice - f
    worst = int(error.abs().argmax())
    if not bool(error.abs().amax() < 1e-3 * (1 + f.abs().amax())):
        raise ValueError(
            f"the conjugate of the conjugate of the divergence {divergence.name!r} is "
            f"{twice[worst]:.6g} at {_RATIOS[worst]:.3g}, where f is {f[worst]:.6g}; expected them "
            "equal. Check the conjugate, sup_u [u t - f(u)], and that the activation runs through "
            "all slopes of f and no further than the conjugate's domain"
        )


def _check_composed(divergence: Divergence) -> None:
    v = torch.linspace(-5.0, 5.0, 101, dtype=torch.float64)
    if not torch.allclose(divergence.penalty(v), divergence.conjugate(divergence.activation(v))):
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
    are the limits KL and reverse KL, which have names of their own.

    Raises:
        ValueError: for alpha 0 or 1, or one that is not finite.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
        >>> 2 * alpha_divergence(2.0).between(p, q), named_divergence("pearson").between(p, q)
        (tensor(1.7778), tensor(1.7778))
    """
    if alpha in (0, 1) or not math.isfinite(alpha):
        raise ValueError(
            f"alpha is {alpha}; expected a number other than 0 and 1, whose limits are "
            "'reverse_kl' and 'kl'"
        )

    def f(u: Tensor) -> Tensor:
        return (u**alpha - 1 - alpha * (u - 1)) / (alpha * (alpha - 1))

    def conjugate(t: Tensor) -> Tensor:
        base = (t * (alpha - 1) + 1).clamp_min(0.0)
        return (base ** (alpha / (alpha - 1)) - 1) / alpha

    def below(v: Tensor) -> Tensor:
        return 1 / (1 - alpha) - softplus(-v)

    def composed(v: Tensor) -> Tensor:
        return (((1 - alpha) * softplus(-v)) ** (alpha / (alpha - 1)) - 1) / alpha

    name = f"alpha={alpha:g}"
    if alpha > 1:
        return Divergence(name, f, conjugate, _identity)
    return Divergence(name, f, conjugate, below, composed)


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
