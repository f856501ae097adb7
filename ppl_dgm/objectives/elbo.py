"""The variational bounds: ELBO, importance-weighted ELBO, Renyi."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.objectives.objective import KLWeight, Objective
from ppl_dgm.program import Bound, Latent, Structure
from ppl_dgm.program.particles import Draw, Values
from ppl_dgm.sampling.importance import expand_particles, log_mean_exp

__all__ = [
    "ELBO",
    "IWELBO",
    "Renyi",
    "check_density",
    "check_reparameterised",
    "check_score",
    "log_weights_with_paths",
    "without_score",
]

Gradient = Literal["reparam", "stl", "dreg"]


def log_weights_with_paths(
    objective: Objective, bound: Bound, gradient: Gradient
) -> tuple[Tensor, Any]:
    """Compute log weights and the scale of each datum.

    Weights are `[particles, ...]`; `gradient` says how they are differentiated.
    """
    if gradient == "dreg" and bound.structure.latents:
        return doubly_reparameterised(objective, bound)
    values, log_q = bound.draw(objective.num_particles)[:2]
    joint = bound.log_joint(values)
    if gradient == "stl":
        log_q = log_q - parameter_path(bound, values)
    return objective.log_weights(joint, log_q), joint.scale


def parameter_path(bound: Bound, values: Values) -> Any:
    """Return zero with the score of q as gradient.

    It is log q(z | x) at fixed z, less its own value.

    What is subtracted from log q to leave the path derivative alone (Roeder et al. 2017, eq. 8).
    """
    if not bound.structure.latents:
        return 0.0
    log_q = bound.log_guide({name: value.detach() for name, value in values.items()})
    return log_q - log_q.detach()


def doubly_reparameterised(objective: Objective, bound: Bound) -> tuple[Tensor, Any]:
    """Compute log weights with doubly reparameterised gradients.

    The gradient through the latents is multiplied by the normalised weight once more.

    Summed with weights w~ they give w~ for the model's parameters and w~^2 for the guide's: Tucker
    et al. (2019), eq. 8. The guide's direct dependence on its parameters is taken out, as in
    `parameter_path`: where log q has the factor beta in log w, it is worth beta (w~ - w~^2) of the
    path's gradient, which leaves w~ (1 - beta + beta w~).
    """
    factors: list[Tensor] = []
    drawn = bound.draw(objective.num_particles).values
    values = {name: weigh_gradient(bound, name, value, factors) for name, value in drawn.items()}
    joint = bound.log_joint(values)
    log_q = bound.log_guide(values) - parameter_path(bound, drawn)
    log_w = objective.log_weights(joint, log_q)
    factors.append(1 - objective.weight * (1 - log_w.detach().softmax(0)))
    return log_w, joint.scale


def weigh_gradient(bound: Bound, name: str, value: Tensor, factors: list[Tensor]) -> Tensor:
    """Multiply the incoming gradient of a latent by factors.

    The result is a view of the value. The factors are filled in after this call.
    """
    latent = bound.structure.find(name)
    if latent is None or not value.requires_grad:
        return value
    view = value.view_as(value)
    view.register_hook(
        lambda grad: grad * align(factors[0], latent, bound.structure.per_datum, grad)
    )
    return view


def align(factors: Tensor, latent: Latent, per_datum: bool, value: Tensor) -> Tensor:
    """Reshape factors to multiply a latent's value.

    Factors are `[particles, data]` or `[particles]`, the value is `[particles, *shape]`.
    """
    if not per_datum:
        return factors.reshape((-1,) + (1,) * (value.dim() - 1))
    if latent.batch_dim == 0:  # a sequential data plate: the gradient of this datum's column
        raise ValueError(
            "doubly reparameterised gradients need a vectorised data plate, not a Python loop "
            "over it"
        )
    return factors.reshape(
        (factors.shape[0],) + (1,) * (latent.batch_dim - 1) + (-1,) + (1,) * latent.event_dim
    )


def check_reparameterised(structure: Structure, mode: str) -> None:
    """Refuse guides without a path gradient.

    The error names objectives that work for them.
    """
    names = [
        latent.name
        for latent in structure.latents
        if not (latent.reparameterised or latent.point_mass)
    ]
    if names:
        raise ValueError(
            f"{mode} needs reparameterised latents, but the guide draws {names} without a path "
            "gradient (discrete, or no rsample); use VIMCO(num_particles) or "
            "ReweightedWakeSleep(num_particles) for the importance-weighted bound, ELBO() or "
            "RLOO() for the ELBO, or mark finite discrete latents infer={'enumerate': "
            "'parallel'} and leave them out of the guide to sum them out"
        )


def check_density(structure: Structure, mode: str) -> None:
    """Refuse guides without log q at fixed latents."""
    moved = [latent.name for latent in structure.latents if latent.transported]
    if moved:
        raise ValueError(
            f"{mode} needs log q at fixed latents, but the guide draws {moved} by transforms of "
            "auxiliary noise that need no inverse; use ELBO() or gradient='reparam', or a guide "
            "with a density such as DiagonalNormal or FullRankNormal"
        )


def check_score(structure: Structure, mode: str) -> None:
    """Refuse guides whose log q cannot be computed twice."""
    check_density(structure, mode)
    if structure.noisy_guide:
        raise ValueError(
            f"{mode} runs the guide twice and needs the same log q at the same latents, but it has "
            "noise of its own, such as dropout; use gradient='reparam' (or VIMCO, RLOO for "
            "discrete latents), or put the guide's dropout in evaluation mode"
        )


class ELBO(Objective):
    r"""Evidence lower bound (ELBO).

    It is $\mathbb{E}_q[\log p(x \mid z) + \beta (\log p(z) - \log q(z \mid x))]$.

    Reparameterised latents have the path gradient; others the score function with, for several
    particles, the other particles' mean as baseline (Mnih and Rezende 2016; Kool et al. 2019).
    Enumerated latents are summed out, so that for a program without drawn latents this is the log
    likelihood itself.

    Kingma and Welling (2014), eq. 3; `kl_weight`: Higgins et al. (2017), eq. 4; `"stl"`: Roeder et
    al. (2017), eq. 8, whose gradient vanishes without noise where the guide is the posterior.

    Args:
        num_particles: draws of the latents for each datum.
        gradient: `"reparam"` or `"stl"`, sticking the landing.
        kl_weight: beta; a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: for unknown settings, or `"stl"` with latents that are not reparameterised.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x=None):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x=None):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the posterior
        >>> loss = ELBO().loss(model, guide, torch.zeros(2))
        >>> truth = -2 * dist.Normal(0.0, 2.0**0.5).log_prob(torch.tensor(0.0)).item()
        >>> abs(loss - truth) < 1e-5
        True
    """

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        *,
        gradient: Literal["reparam", "stl"] = "reparam",
        kl_weight: KLWeight = 1.0,
        plate: str = "data",
    ) -> None:
        super().__init__(num_particles, kl_weight=kl_weight, plate=plate)
        self.gradient: Gradient = gradient

    def check(self, structure: Structure) -> None:
        if self.gradient == "stl":
            check_reparameterised(structure, "gradient='stl'")
            check_score(structure, "gradient='stl'")

    def value(self, bound: Bound) -> Tensor:
        if all(latent.reparameterised or latent.point_mass for latent in bound.structure.latents):
            log_w, scale = log_weights_with_paths(self, bound, self.gradient)
            return log_w.mean(0) * scale
        draw = bound.draw(self.num_particles)
        joint = bound.log_joint(draw.values)
        log_w = self.log_weights(joint, without_score(draw))
        return (log_w + score_function(log_w, draw.score)).mean(0) * joint.scale


def without_score(draw: Draw) -> Any:
    """Return log q without the gradient of its scored sites.

    Its mean is zero, and it would only add noise to the score function.
    """
    return draw.log_prob - (draw.counted - torch.as_tensor(draw.counted).detach())


def score_function(log_w: Tensor, score: Tensor) -> Tensor:
    """Return zero with the score-function gradient as its gradient.

    The gradient is that of the mean log weight. The mean of the other particles is the baseline.
    """
    reward = log_w.detach()
    count = reward.shape[0]
    if count > 1:
        reward = (reward - reward.mean(0)) * (count / (count - 1))
    return reward * (score - score.detach())


class IWELBO(Objective):
    r"""Importance-weighted evidence lower bound.

    It is $\mathbb{E} \log \frac1K \sum_k w_k$ with $w_k = p(x, z_k) / q(z_k \mid x)$.

    Tightens with K and equals the ELBO at K = 1 (Burda et al. 2016, eq. 8). With `"reparam"` the
    signal-to-noise ratio of the guide's gradient falls as $K^{-1/2}$ (Rainforth et al. 2018);
    `"dreg"` is unbiased and has it grow as $K^{1/2}$ (Tucker et al. 2019, eq. 8); `"stl"` drops the
    score term (Roeder et al. 2017), which has little noise but for K > 1 a small bias.

    Args:
        num_particles: K, for each datum.
        gradient: `"reparam"`, `"stl"` or `"dreg"`.
        kl_weight: factor of log p(z) - log q(z | x) in log w; a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: for unknown settings, or latents that are not reparameterised.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x=None):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x=None):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> x = torch.zeros(100)
        >>> IWELBO(100).loss(model, guide, x) < ELBO(100).loss(model, guide, x)
        True
    """

    @checked
    def __init__(
        self,
        num_particles: int,
        *,
        gradient: Gradient = "reparam",
        kl_weight: KLWeight = 1.0,
        plate: str = "data",
    ) -> None:
        super().__init__(num_particles, kl_weight=kl_weight, plate=plate)
        self.gradient: Gradient = gradient

    def check(self, structure: Structure) -> None:
        check_reparameterised(structure, f"IWELBO(gradient={self.gradient!r})")
        if self.gradient != "reparam":
            check_score(structure, f"gradient={self.gradient!r}")
        if self.gradient == "dreg" and not structure.common_scale:
            raise ValueError(
                "gradient='dreg' needs one scale for all sites, but some latents are scaled "
                "unlike the data (poutine.scale, or minibatches beside shared latents); use "
                "kl_weight for a weight of the KL term, or gradient='stl'"
            )

    def value(self, bound: Bound) -> Tensor:
        log_w, scale = log_weights_with_paths(self, bound, self.gradient)
        return log_mean_exp(expand_particles(log_w, self.num_particles)) * scale


class Renyi(Objective):
    r"""The variational Renyi bound, $\frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}$.

    A lower bound for alpha > 0 that falls as alpha grows; alpha = 0 is the importance-weighted
    bound, alpha -> 1 the ELBO, and for alpha < 0 an upper bound as K grows. Li and Turner (2016),
    eq. 8. Unlike Pyro's `RenyiELBO` it is right on scaled minibatches: the scale multiplies the
    logarithm, not the exponent.

    Args:
        alpha: order, not 1.
        num_particles: K, for each datum.
        kl_weight: factor of log p(z) - log q(z | x) in log w; a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: for alpha = 1 or infinite, or latents that are not reparameterised.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x=None):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x=None):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> round(Renyi(0.5, 10).loss(model, guide, torch.zeros(1)), 4)
        1.2655
    """

    @checked
    def __init__(
        self,
        alpha: float,
        num_particles: int = 2,
        *,
        kl_weight: KLWeight = 1.0,
        plate: str = "data",
    ) -> None:
        super().__init__(num_particles, kl_weight=kl_weight, plate=plate)
        if alpha == 1:
            raise ValueError(
                "alpha is 1, where the Renyi bound is the ELBO; use ELBO(), or another alpha"
            )
        if not math.isfinite(alpha):
            raise ValueError(f"alpha is {alpha}; expected a finite number")
        self.alpha = alpha

    def check(self, structure: Structure) -> None:
        check_reparameterised(structure, "Renyi")

    def value(self, bound: Bound) -> Tensor:
        log_w, scale = log_weights_with_paths(self, bound, "reparam")
        power = 1.0 - self.alpha
        return log_mean_exp(power * expand_particles(log_w, self.num_particles)) / power * scale
