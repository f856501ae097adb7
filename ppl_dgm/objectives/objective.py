"""Base of all objectives that fits maximise.

An objective is a differentiable function of a model and a guide.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from numbers import Integral
from typing import Any, ClassVar

import pyro.infer
import torch
from pyro.infer.enum import get_importance_trace
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.program import Bound, LogJoint, Program, Structure, inspect
from ppl_dgm.program.arguments import call_signature
from ppl_dgm.program.checks import refuse_implicit

__all__ = ["KLWeight", "Objective", "check_count", "linear_warmup"]

KLWeight = float | Callable[[int], float]


class Objective(pyro.infer.ELBO):
    """An objective of variational inference, made of log weights.

    A subclass of `pyro.infer.ELBO`, so that `pyro.infer.SVI(model, guide, optim, loss=objective)`
    takes it, and `objective(model, guide)` is a torch module whose call is the loss. To add one,
    implement `value(bound)`, the quantity to maximise: `[data]` (per datum) or `[]` (data set).
    Scales common to all sites of a datum (minibatches, `poutine.scale`) multiply the value of that
    datum; they never enter an exponent.

    `differentiable_loss` reads no tensor on the host, so that it can be captured. The first call
    for a model/guide pair checks them against each other and the data.

    Args:
        num_particles: draws of the latents for each datum.
        kl_weight: factor of log p(z) - log q(z | x); a number, or a function of the step
            (`linear_warmup`), which `fit`, or SVI's calls, advance.
        plate: name of the data plate.
    """

    takes_energies: ClassVar[bool] = False

    def __init__(
        self, num_particles: int = 1, *, kl_weight: KLWeight = 1.0, plate: str = "data"
    ) -> None:
        check_count("num_particles", num_particles)
        if not callable(kl_weight) and not 0 <= kl_weight < math.inf:
            raise ValueError(
                f"kl_weight is {kl_weight}; expected a number >= 0 or a function of the step"
            )
        super().__init__(num_particles=num_particles)
        self.kl_weight = kl_weight
        self.plate = plate
        self._step = 0
        self._annealed = (
            torch.tensor(kl_weight(0), dtype=torch.float64) if callable(kl_weight) else None
        )
        self._structures: dict[Any, Structure] = {}
        self._terms: list[Tensor] | None = None

    @abstractmethod
    def value(self, bound: Bound) -> Tensor:
        """Compute the quantity to maximise, in nats.

        It is `[data]` or `[]`, before scaling.
        """

    def check(self, structure: Structure) -> None:
        """Refuse programs to which the objective does not apply.

        The ValueError names objectives that do.
        """

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Compute minus the objective as a differentiable scalar.

        The objective is scaled and summed over data, in nats.
        """
        structure = self.structure_of(model, guide, args, kwargs)
        bound = Bound(model, guide, structure, args, kwargs, keeps_guide_factors=True)
        return -self.value(bound).sum()

    def loss_and_terms(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        r"""Compute the loss and the terms of the ELBO.

        The terms are $\mathbb{E}_q \log p(x \mid z)$ (reconstruction) and $\mathbb{E}_q \log
        q(z \mid x) / p(z)$ (KL), as the objective counts them, scaled and summed over data, in
        nats, without gradient.

        Returns:
            `[3]`: loss, reconstruction, KL; `[1]`, the loss alone, where no latents are drawn.
        """
        self._terms = []
        try:
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
            drawn = self.structure_of(model, guide, args, kwargs).latents
            return torch.stack([loss, *(self._terms[-2:] if drawn else ())])
        finally:
            self._terms = None

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the objective as a number."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Add gradients to the parameters and return the loss.

        The loss is minus the objective, a number. The call advances the step.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        self.set_step(self._step + 1)
        return loss.item()

    def set_step(self, step: int) -> None:
        """Set the step on which an annealed weight depends."""
        self._step = step
        if callable(self.kl_weight) and self._annealed is not None:
            self._annealed.fill_(self.kl_weight(step))

    def structure_of(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> Structure:
        """Return the structure of a model and guide.

        It is found at the first call with arguments of a kind, in training and in evaluation mode
        separately.
        """
        scope = own_program(model, guide)
        training = scope is None or scope.training
        key = (model, guide, training, call_signature(args, kwargs))
        if key not in self._structures:
            structure = (
                inspect(model, guide, args, kwargs, self.plate, training=True)
                if scope is None
                else scope.structure_at(args, kwargs, self.num_particles)
            )
            check_energies(self, structure)
            for site in structure.deterministic:
                refuse_implicit(structure, site)
            self.check(structure)
            self._structures[key] = structure
        return self._structures[key]

    @property
    def weight(self) -> Any:
        """Factor of the KL term at this step.

        It is a number, or a tensor whose value a captured graph reads anew.
        """
        return self.kl_weight if self._annealed is None else self._annealed

    def log_weights(self, joint: LogJoint, log_q: Any) -> Tensor:
        """Compute the log weights of particles.

        They are log p(x | z) + kl_weight (log p(z) - log q(z | x)), `[particles, data]` or
        `[particles]`.
        """
        self.record(joint, log_q)
        if isinstance(self.weight, float) and self.weight == 1.0:
            return joint.total - log_q
        return joint.likelihood + self.weight * (joint.prior - log_q)

    def record(self, joint: LogJoint, log_q: Any) -> None:
        """Keep the terms of the ELBO for `loss_and_terms`.

        Log densities are as in `log_weights`.
        """
        if self._terms is None:
            return
        with torch.no_grad():
            of_all = torch.zeros_like(joint.total)  # either term may be a number
            terms = joint.likelihood + of_all, log_q - joint.prior + of_all
            self._terms += [(term.mean(0) * joint.scale).sum() for term in terms]

    def _get_trace(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """Pyro's hook: traces of model and guide."""
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


def own_program(model: Any, guide: Any) -> Program | None:
    """Return the program that owns a model and guide.

    It is None if there is no such program.
    """
    scope = getattr(model, "scope", None)
    return scope if isinstance(scope, Program) and scope.guide is guide else None


def check_energies(objective: Objective, structure: Structure) -> None:
    """Refuse unnormalised programs where a normalised density is needed."""
    if structure.energies and not objective.takes_energies:
        raise ValueError(
            f"the factors {list(structure.energies)} depend on the data, so that the program's "
            f"density is unnormalised and {type(objective).__name__} would rise without end; use "
            "ContrastiveDivergence(k), PersistentContrastiveDivergence(k), ScoreMatching(), "
            "NoiseContrastive(noise) or PseudoLikelihood()"
        )


def check_count(name: str, value: int) -> None:
    """Check that a value is a positive whole number."""
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value}; expected at least 1, a whole number")


@checked
def linear_warmup(num_steps: int, start: float = 0.0, end: float = 1.0) -> Callable[[int], float]:
    """Make a weight that changes linearly, then stays constant.

    It goes from `start` to `end` in `num_steps` steps (Bowman et al. 2016).

    Example:
        >>> weight = linear_warmup(100)
        >>> weight(0), weight(50), weight(1000)
        (0.0, 0.5, 1.0)
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; expected at least 1")
    if not min(start, end) >= 0:
        raise ValueError(f"start is {start} and end {end}; expected weights >= 0")
    return lambda step: start + (end - start) * min(step / num_steps, 1.0)
