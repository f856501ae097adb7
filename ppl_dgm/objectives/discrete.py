"""Objectives for latents without a path gradient.

These are score functions with baselines, VIMCO and reweighted wake-sleep.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ppl_dgm.checked import checked
from ppl_dgm.objectives.elbo import ELBO, check_density, check_score, without_score
from ppl_dgm.objectives.objective import KLWeight, Objective
from ppl_dgm.program import Bound, Program, Structure, unvalidated
from ppl_dgm.program.supports import support_of
from ppl_dgm.sampling.importance import log_mean_exp

__all__ = ["REINFORCE", "RLOO", "VIMCO", "ReweightedWakeSleep", "RunningMean", "check_scored"]


def zero_valued(tensor: Tensor) -> Tensor:
    """Zero, with the gradient of a tensor."""
    return tensor - tensor.detach()


def check_scored(structure: Structure, name: str, cure: str) -> None:
    """Refuse programs that draw nothing without a path gradient."""
    if all(latent.reparameterised or latent.point_mass for latent in structure.latents):
        raise ValueError(
            f"{name} is for latents without a path gradient, but the guide draws every latent "
            f"differentiably (or none is drawn); use {cure}, which has less noise"
        )


def check_several(num_particles: int, name: str, cure: str) -> None:
    """Refuse a single particle where the others are the baseline."""
    if num_particles < 2:
        raise ValueError(
            f"num_particles is {num_particles}; {name} needs at least 2, or use {cure}"
        )


class RunningMean(nn.Module):
    r"""Running mean of past rewards, a baseline of `REINFORCE`.

    It is exponentially weighted, and free of the bias of its start.

    $b_t = \sum_{s<t} \lambda^{t-s} r_s / \sum_{s<t} \lambda^{t-s}$. Its state is in buffers: give
    it to the program (`program.baseline = baseline`) to have it moved between devices and saved
    with it. It learns from calls with gradients alone, not from validation.

    Args:
        decay: lambda, between 0 and 1.

    Example:
        >>> baseline = RunningMean(0.5)
        >>> baseline.update(torch.tensor([2.0, 4.0])), baseline()
        (None, tensor(3.))
    """

    total: Tensor
    weight: Tensor

    @checked
    def __init__(self, decay: float = 0.95) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; expected at least 0 and less than 1")
        self.decay = decay
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """The mean so far, whatever the data."""
        return self.total / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)

    def update(self, reward: Tensor) -> None:
        """Take in the mean of new rewards."""
        if self.total.device != reward.device:
            self.to(reward.device)
        self.total.mul_(self.decay).add_((1 - self.decay) * reward.mean())
        self.weight.mul_(self.decay).add_(1 - self.decay)


class REINFORCE(Objective):
    r"""ELBO with the score-function gradient.

    The gradient is $\nabla_\phi = \mathbb{E}_q[(\log w - b) \nabla_\phi \log q(z \mid x)]$.

    Williams (1992); the baseline b lowers the variance and leaves the mean. The term $-\nabla_\phi
    \log q$ of log w itself has mean zero and is left out. Latents with a path gradient keep it,
    unless told otherwise. For several particles `RLOO` needs no baseline of its own.

    Args:
        num_particles: draws of the latents for each datum.
        baseline: None; `RunningMean()`; or any module called with the program's data that returns
            `[data]` (or `[data, 1]`) numbers: an input-dependent baseline, fitted to the log
            weights by least squares in the same optimisation (Mnih and Gregor 2014, section 2.3). A
            module with parameters must belong to the program, so that it is trained, moved and
            saved: `program.baseline = net`.
        gradient: `"mixed"`, or `"score"` for all latents by the score, those with a path gradient
            too (to see what it saves: `diagnostics.gradient_noise`).
        kl_weight: factor of log p(z) - log q(z | x); a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: if every latent has a path gradient (`"mixed"`), or a flow with parameters
            makes one (`"score"`); for an input-dependent baseline beside latents shared by all
            data, or one whose parameters are not the program's.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Bernoulli(logits=x - 0.5))  # the posterior
        >>> x = torch.zeros(1)
        >>> round(REINFORCE(baseline=RunningMean()).loss(model, guide, x), 4)
        1.138
    """

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        *,
        baseline: nn.Module | None = None,
        gradient: Literal["mixed", "score"] = "mixed",
        kl_weight: KLWeight = 1.0,
        plate: str = "data",
    ) -> None:
        super().__init__(num_particles, kl_weight=kl_weight, plate=plate)
        if baseline is not None and not isinstance(baseline, nn.Module):
            raise TypeError(
                f"baseline is a {type(baseline).__name__}; expected None, RunningMean() or a torch "
                "module"
            )
        self.baseline, self.gradient = baseline, gradient

    @property
    def learned(self) -> bool:
        """Whether the baseline has parameters."""
        return self.baseline is not None and any(True for _ in self.baseline.parameters())

    def check(self, structure: Structure) -> None:
        if self.gradient == "mixed":
            check_scored(structure, "REINFORCE", "ELBO()")
        else:
            check_density(structure, "gradient='score'")
        if self.learned and not structure.per_datum:
            raise ValueError(
                "an input-dependent baseline needs every latent inside the data plate, but this "
                "program has latents shared by all data, for which it would be one constant; use "
                "RunningMean() or RLOO"
            )

    def structure_of(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> Structure:
        if (model, guide) not in self._structures and self.learned:
            check_ownership(model, self.baseline)  # type: ignore[arg-type]
        return super().structure_of(model, guide, args, kwargs)

    def value(self, bound: Bound) -> Tensor:
        draw = replace(bound, paths=self.gradient == "mixed").draw(self.num_particles)
        joint = bound.log_joint(draw.values)
        log_w = self.log_weights(joint, without_score(draw))
        reward = log_w.detach()
        expected = self.expected(bound)
        if isinstance(self.baseline, RunningMean) and torch.is_grad_enabled():
            self.baseline.update(reward)
        check_forecast(expected, reward)
        surrogate = (reward - torch.as_tensor(expected).detach()) * zero_valued(draw.score)
        if self.learned:
            surrogate = surrogate - zero_valued((reward - expected).square())
        return (log_w + surrogate).mean(0) * joint.scale

    def expected(self, bound: Bound) -> Any:
        """Compute the baseline's prediction of the log weights.

        It is a number, or `[data]`.
        """
        if self.baseline is None:
            return 0.0
        owned = not self.learned or isinstance(getattr(bound.model, "scope", None), Program)
        net = self.baseline if owned else pyro.module("baseline", self.baseline)
        forecast = net(*bound.args, **bound.kwargs)
        return forecast.squeeze(-1) if forecast.dim() == 2 else forecast


def check_forecast(expected: Any, reward: Tensor) -> None:
    """Check the shape of a baseline's prediction.

    It must be one number, or one for each datum.
    """
    shape, allowed = torch.as_tensor(expected).shape, ((), (1,), reward.shape[1:])
    if shape not in allowed:
        raise ValueError(
            f"the baseline returned {list(shape)} for log weights of {list(reward.shape[1:])} "
            "data; expected one number for each datum, [data] or [data, 1]"
        )


def check_ownership(model: Any, baseline: nn.Module) -> None:
    """Check that the program owns the baseline's parameters.

    Otherwise its optimiser and checkpoints would not see them.
    """
    scope = getattr(model, "scope", None)
    if isinstance(scope, Program) and not {*baseline.parameters()} <= {*scope.parameters()}:
        raise ValueError(
            "the baseline's parameters are not among the program's, so that they would not be "
            "trained, moved or saved; write program.baseline = net before fitting"
        )


class RLOO(ELBO):
    r"""ELBO with the leave-one-out score-function gradient.

    The baseline of each particle is the mean log weight of the others.

    $\frac{1}{K} \sum_k \big(\log w_k - \frac{1}{K-1} \sum_{j \ne k} \log w_j\big) \nabla_\phi \log
    q(z_k \mid x)$: Kool et al. (2019); Mnih and Rezende (2016), section 2.5. What `ELBO(K)` does
    for discrete latents, under its name.

    Args:
        num_particles: K, at least 2, for each datum.
        kl_weight: factor of log p(z) - log q(z | x); a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: for fewer than 2 particles, or if every latent has a path gradient.

    Example:
        >>> RLOO(4).num_particles
        4
    """

    @checked
    def __init__(
        self, num_particles: int = 2, *, kl_weight: KLWeight = 1.0, plate: str = "data"
    ) -> None:
        check_several(num_particles, "RLOO", "REINFORCE(baseline=RunningMean())")
        super().__init__(num_particles, kl_weight=kl_weight, plate=plate)

    def check(self, structure: Structure) -> None:
        check_scored(structure, "RLOO", "ELBO()")


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


class ReweightedWakeSleep(Objective):
    r"""Reweighted wake-sleep, with separate objectives for model and guide.

    The model ascends the importance-weighted bound, the guide its log density at weighted draws.

    With draws $z_k \sim q(z \mid x)$ and self-normalised weights $\tilde w_k$ of each datum: model
    $\sum_k \tilde w_k \nabla_\theta \log p(x, z_k)$; guide, wake phase, $\sum_k \tilde w_k
    \nabla_\phi \log q(z_k \mid x)$; guide, sleep phase, $\nabla_\phi \log q(z' \mid x')$ with $(x',
    z')$ dreamed by the model. No gradient goes through the latents, of whatever kind. Bornschein
    and Bengio (2015), eqs. 8 and 12; Le et al. (2019). Unlike Pyro's it weights the particles of
    each datum on their own, so that minibatches are right. The value is the bound, `IWELBO`'s.

    Args:
        num_particles: K, for each datum.
        sleep: share of the sleep phase in the guide's gradient, 0 to 1. Dreamed data take the place
            of the arguments that the program observes, one dream for each datum.
        plate: name of the data plate.

    Raises:
        ValueError: for a share outside [0, 1]; a program without guide, or one with point masses;
            in the sleep phase, factors, auxiliary guide variables, or observed values that are not
            arguments of the program as given.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Bernoulli(logits=x - 0.5))  # the posterior
        >>> round(ReweightedWakeSleep(5, sleep=0.5).loss(model, guide, torch.zeros(1)), 4)
        1.138
    """

    @checked
    def __init__(self, num_particles: int, *, sleep: float = 0.0, plate: str = "data") -> None:
        super().__init__(num_particles, plate=plate)
        if not 0 <= sleep <= 1:
            raise ValueError(f"sleep is {sleep}; expected a share between 0 and 1")
        self.sleep = sleep

    def check(self, structure: Structure) -> None:
        fixed = [latent.name for latent in structure.latents if latent.point_mass]
        if not structure.has_guide or not structure.latents or fixed:
            raise ValueError(
                "ReweightedWakeSleep trains a guide that draws latents, but "
                + (f"the guide puts a point mass on {fixed}" if fixed else "no guide draws any")
                + "; give the program one, or use ELBO()"
            )
        check_score(structure, "ReweightedWakeSleep")
        if self.sleep and (
            structure.factors or any(latent.auxiliary for latent in structure.latents)
        ):
            raise ValueError(
                "the sleep phase dreams data and latents from the model, but the program has "
                "factors or its guide has auxiliary variables; use sleep=0"
            )

    def value(self, bound: Bound) -> Tensor:
        with torch.no_grad():
            values = bound.draw(self.num_particles).values
        log_q, joint = bound.log_guide(values), bound.log_joint(values)
        log_w = joint.total - log_q.detach()
        self.record(joint, log_q)
        guide = (1 - self.sleep) * (log_w.detach().softmax(0) * zero_valued(log_q)).sum(0)
        if self.sleep:
            guide = guide + self.sleep * zero_valued(log_guide_of_dream(bound))
        return (log_mean_exp(log_w) + guide) * joint.scale


def log_guide_of_dream(bound: Bound) -> Tensor:
    """Compute the guide's log density at draws of the model.

    It is log q(z' | x') of latents and data, `[data]`, or `[]` for the data set.
    """
    with torch.no_grad(), unvalidated():
        trace: Any = poutine.trace(poutine.uncondition(bound.model)).get_trace(
            *bound.args, **bound.kwargs
        )
    replaced = {name: trace.nodes[name] for name in bound.structure.observed}
    args, kwargs = with_dreamed_data(replaced, bound.args, dict(bound.kwargs))
    values = {
        latent.name: trace.nodes[latent.name]["value"].unsqueeze(0)
        for latent in bound.structure.latents
    }
    return replace(bound, args=args, kwargs=kwargs).log_guide(values)[0]


def with_dreamed_data(
    sites: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Replace the observed arguments by the model's draws."""
    dreamed = {id(site["infer"]["obs"]): as_observed(site) for site in sites.values()}
    given = {id(leaf) for leaf in tree_leaves((args, kwargs))}
    lost = [name for name, site in sites.items() if id(site["infer"]["obs"]) not in given]
    if lost:
        raise ValueError(
            f"the sleep phase hands dreamed data to the guide, but what the sites {lost} observe "
            "is not an argument of the program as it was given; pass obs=x unchanged (convert "
            "data before the call), or use sleep=0"
        )
    return tree_map(lambda leaf: dreamed.get(id(leaf), leaf), (args, kwargs))


def as_observed(site: Any) -> Tensor:
    """Convert a drawn value to the dtype of the data.

    A draw that is not a whole number keeps its dtype where the data are whole numbers.
    """
    dtype = site["infer"]["obs"].dtype
    return (
        site["value"].to(dtype)
        if dtype.is_floating_point or support_of(site["fn"]).is_discrete
        else site["value"]
    )
