"""Discrete latents whose gradient is that of their continuous relaxation."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_dgm.checked import checked
from ppl_dgm.objectives.objective import KLWeight, Objective
from ppl_dgm.objectives.score_gradients import check_scored
from ppl_dgm.program import Bound, Structure
from ppl_dgm.program.sites import is_deterministic, is_subsample
from ppl_dgm.program.supports import innermost

__all__ = ["StraightThrough"]


class OneHot(dist.OneHotCategorical):
    """One-hot categorical with a log density linear in the value.

    It agrees with torch's at one-hot vectors.

    Torch's looks up the largest entry, which has no gradient.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """log pi of one-hot vectors `[..., K]`: `[...]`."""
        impossible = self.logits.isneginf() & (value.detach() == 0)  # 0 times infinity is no number
        return (value * self.logits.masked_fill(impossible, 0.0)).sum(-1)


def linear_in_value(fn: Any) -> Any:
    """Give a one-hot categorical the densities of `OneHot`.

    Its `to_event`, `mask` and `expand` are kept.
    """
    if isinstance(fn, dist.OneHotCategorical):
        return OneHot(logits=fn.logits, validate_args=False)
    inner = linear_in_value(fn.base_dist)
    if isinstance(fn, dist.MaskedDistribution):
        return inner.mask(fn._mask)
    return (
        inner.to_event(fn.reinterpreted_batch_ndims)
        if isinstance(fn, dist.Independent)
        else inner.expand(fn.batch_shape)
    )


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `soft`."""
    return hard + (soft - soft.detach())


def draw_bernoulli(logits: Tensor, temperature: float) -> Tensor:
    """Draw 0 or 1 with a relaxed gradient.

    Log odds are `[...]`. The gradient is that of sigmoid((logits + logistic noise) / temperature).
    """
    uniform = torch.rand_like(logits).clamp(
        torch.finfo(logits.dtype).tiny, 1 - torch.finfo(logits.dtype).eps
    )
    noisy = logits + uniform.logit()
    return straight_through((noisy > 0).to(logits), (noisy / temperature).sigmoid())


def draw_one_hot(logits: Tensor, temperature: float) -> Tensor:
    """Draw one-hot vectors with a relaxed gradient.

    Log weights are `[..., K]`. The gradient is that of softmax((logits + Gumbel noise) /
    temperature).
    """
    exponential = torch.rand_like(logits).clamp_min(torch.finfo(logits.dtype).tiny).log().neg()
    noisy = logits - exponential.clamp_min(torch.finfo(logits.dtype).tiny).log()
    hard = one_hot(noisy.argmax(-1), logits.shape[-1]).to(logits)
    return straight_through(hard, (noisy / temperature).softmax(-1))


class Relaxation(Messenger):
    """Pyro handler that draws Bernoulli and one-hot sites straight-through.

    Their densities become differentiable in the value.

    Must be outside of all plates, which give sites their shape.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        if (
            msg["is_observed"]
            or is_subsample(msg)
            or is_deterministic(msg)
            or msg["fn"].has_rsample
        ):
            return
        if msg["infer"].get("_enumerate_dim") is not None:
            return  # summed out
        inner, shape = innermost(msg["fn"]), msg["fn"].shape()
        if isinstance(inner, dist.OneHotCategorical):
            logits, draw = inner.logits.expand(shape), draw_one_hot
            msg["fn"] = linear_in_value(msg["fn"])
        elif isinstance(inner, dist.Bernoulli):
            logits, draw = inner.logits.expand(shape), draw_bernoulli
        else:
            raise ValueError(
                "StraightThrough draws Bernoulli and OneHotCategorical latents, but site "
                f"{msg['name']!r} is a {type(inner).__name__}; write a Categorical as "
                "OneHotCategorical, or use RLOO or VIMCO"
            )
        if not msg["done"]:
            msg["value"], msg["done"] = draw(logits, self.temperature), True


class StraightThrough(Objective):
    r"""The ELBO of discrete latents, differentiated through their Gumbel-softmax relaxation.

    Forward, latents are drawn exactly: $z = \mathrm{onehot}(\mathrm{argmax}_i (\log \pi_i + g_i))$
    with Gumbel noise g; backward, their gradient is that of $\mathrm{softmax}((\log \pi + g) /
    \tau)$. The value is the ELBO without bias, the guide's gradient has a bias that falls and a
    variance that grows as the temperature falls. Jang et al. (2017), section 2.2. Latents must be
    `Bernoulli` or `OneHotCategorical`, and the program differentiable in them. For an objective
    that is relaxed itself write `RelaxedBernoulli` or `RelaxedOneHotCategorical` in model and
    guide, and take `ELBO` or `IWELBO` (Maddison et al. 2017).

    Args:
        num_particles: draws of the latents for each datum.
        temperature: tau, positive.
        kl_weight: factor of log p(z) - log q(z | x); a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: for a temperature that is not positive, if every latent has a path gradient, or
            for discrete latents of other distributions.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Bernoulli(logits=x - 0.5))  # the posterior
        >>> round(StraightThrough().loss(model, guide, torch.zeros(1)), 4)
        1.138
    """

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        *,
        temperature: float = 0.5,
        kl_weight: KLWeight = 1.0,
        plate: str = "data",
    ) -> None:
        super().__init__(num_particles, kl_weight=kl_weight, plate=plate)
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected a positive number")
        self.temperature = temperature

    def check(self, structure: Structure) -> None:
        check_scored(structure, "StraightThrough", "ELBO()")

    def value(self, bound: Bound) -> Tensor:
        with Relaxation(self.temperature):
            draw = bound.draw(self.num_particles)
            joint = bound.log_joint(draw.values)
        return self.log_weights(joint, draw.log_prob).mean(0) * joint.scale
