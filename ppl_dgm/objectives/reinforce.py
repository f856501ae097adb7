"""Baselines and score-function gradients of a single particle."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.objectives.elbo import check_density, without_score
from ppl_dgm.objectives.objective import KLWeight, Objective
from ppl_dgm.objectives.score_gradients import check_scored, zero_valued
from ppl_dgm.program import Bound, Program, Structure

__all__ = ["REINFORCE", "RunningMean"]


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
