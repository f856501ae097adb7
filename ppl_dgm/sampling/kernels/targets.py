"""Target densities and states of Markov chains.

A target is a family of densities between a start and an end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["LogDensityGradient", "State", "Target", "power", "take"]

LogDensityGradient = Callable[[Tensor], tuple[Tensor, Tensor]]


class State(NamedTuple):
    r"""Points of Markov chains with cached densities and gradients.

    A new temperature needs no new evaluation.

    $\log f_\beta = \mathrm{base} + \beta\, \mathrm{tilt}$. `point` and the gradients are `[chains,
    *batch, dim]`, `base` and `tilt` `[chains, *batch]` in nats; gradients are None where the kernel
    needs none. Densities that are NaN or plus infinity count as zero, gradients that are not finite
    as zero.
    """

    point: Tensor
    base: Tensor
    tilt: Tensor
    base_grad: Tensor | None = None
    tilt_grad: Tensor | None = None

    def log_density(self, beta: Tensor) -> Tensor:
        """log f at inverse temperatures that broadcast to `[chains, *batch]`."""
        return (self.base + power(self.tilt, beta)).nan_to_num(
            nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf
        )

    def grad(self, beta: Tensor) -> Tensor:
        """Compute the gradient of log f at inverse temperatures.

        They broadcast to `[chains, *batch]`, the gradient is `[chains, *batch, dim]`.
        """
        if self.base_grad is None or self.tilt_grad is None:
            raise ValueError(
                "the state was evaluated without gradients; evaluate the target with gradient=True"
            )
        return self.base_grad + beta.unsqueeze(-1) * self.tilt_grad

    def where(self, condition: Tensor, other: "State") -> "State":
        """This state where `condition` `[chains, *batch]` holds, the other elsewhere."""
        parts: Any = (
            choose(condition, mine, yours) for mine, yours in zip(self, other, strict=True)
        )
        return State(*parts)

    def gather(self, index: Tensor) -> "State":
        """The states of chains `index` `[chains, *batch]`, datum by datum."""
        parts: Any = (None if part is None else take(part, index) for part in self)
        return State(*parts)


def power(log_f: Tensor, beta: Tensor) -> Tensor:
    r"""Compute $\log f^\beta$, with $0^0 = 1$.

    At $\beta = 0$ it does not matter what the data rule out.
    """
    return torch.where(beta == 0, 0.0, beta * log_f)


class Target(NamedTuple):
    """Family of densities indexed by inverse temperature.

    `density` maps points `[chains, *batch, dim]` to (base, tilt), each `[chains, *batch]`.

    `chains_at_once` bounds the memory of one evaluation; it changes no result but by rounding.

    Example:
        >>> import torch
        >>> normal = Target(lambda y: (-0.5 * y.square().sum(-1), -2 * (y - 1).square().sum(-1)))
        >>> state = normal.evaluate(torch.ones(3, 2))
        >>> state.log_density(torch.tensor(0.5)).tolist(), state.grad(torch.tensor(1.0))[0].tolist()
        ([-1.0, -1.0, -1.0], [-1.0, -1.0])
    """

    density: LogDensityGradient
    chains_at_once: int | None = None

    def evaluate(self, point: Tensor, gradient: bool = True) -> State:
        """Evaluate densities and, by default, their gradients.

        Each of the two gradients takes one backward pass.
        """
        if self.chains_at_once is None or self.chains_at_once >= len(point):
            return self._evaluate_piece(point, gradient)
        states = [
            self._evaluate_piece(piece, gradient) for piece in point.split(self.chains_at_once)
        ]
        joined: Any = (
            None if part[0] is None else torch.cat(part) for part in zip(*states, strict=True)
        )
        return State(*joined)

    def slope(self, point: Tensor, beta: Tensor) -> Tensor:
        r"""Compute only the gradient of $\log f_\beta$.

        It is `[chains, *batch, dim]`, at inverse temperatures `[chains, *batch]`.

        It takes one backward pass, and no value is computed but for its sake.
        """
        beta = beta.expand(point.shape[:-1])
        if self.chains_at_once is None or self.chains_at_once >= len(point):
            return self._slope_of_piece(point, beta)
        pieces = zip(point.split(self.chains_at_once), beta.split(self.chains_at_once), strict=True)
        return torch.cat([self._slope_of_piece(*piece) for piece in pieces])

    def _slope_of_piece(self, point: Tensor, beta: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = point.detach().requires_grad_()
            base, tilt = self.density(leaf)
            return gradient_of(base + beta * tilt, leaf)

    def _evaluate_piece(self, point: Tensor, gradient: bool) -> State:
        if not gradient:
            return State(
                point, *(proper(log_density, point) for log_density in self.density(point))
            )
        with torch.enable_grad():
            leaf = point.detach().requires_grad_()
            base, tilt = self.density(leaf)
            gradients = gradient_of(base, leaf, retain=True), gradient_of(tilt, leaf)
        return State(leaf.detach(), proper(base, point), proper(tilt, point), *gradients)


def proper(log_density: Tensor, point: Tensor) -> Tensor:
    """Replace invalid log densities by minus infinity.

    Overflow far out gives NaN or plus infinity, which would trap chains. Every point gets a
    density.
    """
    return (
        log_density.detach()
        .expand(point.shape[:-1])
        .nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    )


def gradient_of(log_density: Tensor, leaf: Tensor, retain: bool = False) -> Tensor:
    """Compute the gradient of the sum of a density.

    It is with respect to the points, and zero where it is not finite or the density is constant.
    """
    if not log_density.requires_grad:
        return torch.zeros_like(leaf)
    (grad,) = torch.autograd.grad(log_density.sum(), leaf, retain_graph=retain, allow_unused=True)
    return (
        torch.zeros_like(leaf) if grad is None else grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    )


def choose(condition: Tensor, mine: Tensor | None, yours: Tensor | None) -> Tensor | None:
    """`torch.where` over chains and data, whatever event dimensions follow."""
    if mine is None or yours is None:
        return None
    return torch.where(
        condition if mine.dim() == condition.dim() else condition.unsqueeze(-1), mine, yours
    )


def take(part: Tensor, index: Tensor) -> Tensor:
    """Gather along chains, datum by datum, whatever event dimensions follow."""
    if part.dim() > index.dim():
        index = index.unsqueeze(-1).expand(*index.shape, part.shape[-1])
    return part.gather(0, index)
