"""Importance-weighted bound for latents without a path gradient."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.objectives.objective import KLWeight, Objective
from ppl_dgm.objectives.score_gradients import check_scored, check_several, zero_valued
from ppl_dgm.program import Bound, Structure
from ppl_dgm.sampling.importance import log_mean_exp

__all__ = ["VIMCO", "leave_one_out_bounds"]


class VIMCO(Objective):
    r"""Importance-weighted bound with leave-one-out gradients for discrete latents.

    The signal of each particle is its own part in the bound.

    $\hat L = \log \frac1K \sum_k w_k$ has the gradient $\sum_k (\hat L - \hat L_{-k}) \nabla \log
    q(z_k \mid x) + \sum_k \tilde w_k \nabla \log w_k$, where $\hat L_{-k}$ has $w_k$ replaced by
    the geometric mean of the others. Mnih and Rezende (2016), eqs. 9 to 12. Latents with a path
    gradient keep it.

    Args:
        num_particles: K, at least 2, for each datum.
        kl_weight: factor of log p(z) - log q(z | x) in log w; a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: for fewer than 2 particles, or if every latent has a path gradient.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Bernoulli(logits=x - 0.5))  # the posterior
        >>> round(VIMCO(5).loss(model, guide, torch.zeros(1)), 4)
        1.138
    """

    @checked
    def __init__(
        self, num_particles: int, *, kl_weight: KLWeight = 1.0, plate: str = "data"
    ) -> None:
        check_several(num_particles, "VIMCO", "RLOO or REINFORCE")
        super().__init__(num_particles, kl_weight=kl_weight, plate=plate)

    def check(self, structure: Structure) -> None:
        check_scored(structure, "VIMCO", "IWELBO")

    def value(self, bound: Bound) -> Tensor:
        draw = bound.draw(self.num_particles)
        joint = bound.log_joint(draw.values)
        log_w = self.log_weights(joint, draw.log_prob)
        total = log_mean_exp(log_w)
        signal = total.detach() - leave_one_out_bounds(log_w.detach())
        return (total + (signal * zero_valued(draw.score)).sum(0)) * joint.scale


def leave_one_out_bounds(log_w: Tensor) -> Tensor:
    """Compute the bound with each log weight replaced in turn.

    The bound is log-mean-exp of log weights `[K, ...]`, each in turn replaced by the mean of the
    others. The result is `[K, ...]`.

    In O(K), from sums on either side. Where the others' weights are all zero the result is zero: it
    may be any number that does not depend on the particle.

    Example:
        >>> leave_one_out_bounds(torch.tensor([1.0, 3.0]))
        tensor([3., 1.])
    """
    count = log_w.shape[0]
    others = sums_of_others(log_w, torch.logcumsumexp, torch.logaddexp, -math.inf)
    mean = sums_of_others(log_w, torch.cumsum, torch.add, 0.0) / (count - 1)
    return (torch.logaddexp(others, mean) - math.log(count)).nan_to_num(neginf=0.0)


def sums_of_others(values: Tensor, cumulate: Callable, combine: Callable, empty: float) -> Tensor:
    """Compute leave-one-out sums over the first dimension."""
    start = torch.full_like(values[:1], empty)
    before = torch.cat([start, cumulate(values, 0)[:-1]])
    after = torch.cat([start, cumulate(values.flip(0), 0)[:-1]]).flip(0)
    return combine(before, after)
