"""Flows over time: events carried along a learned vector field."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.compile import iterate, row_at
from ppl_dgm.nn.conditioned import ContextMLP, tangent_layers, tanh_layers
from ppl_dgm.transforms.bijection import Bijection, Images

__all__ = ["Continuous", "Trace"]

Trace = Literal["exact", "hutchinson"]
State = Any  # the events, and what is carried beside them: tangents, or the estimate of a trace
Layers = Sequence[Tensor]  # one for each
Field = Callable[[Layers, Layers, State], State]
NUM_REFINEMENTS = 6


class Continuous(Bijection):
    r"""Continuous flow along a learned vector field.

    It is y = x(1) of dx/dt = f(t, x), x(0) = x, by `num_steps` steps of Runge and Kutta (Chen et
    al. 2018, and FFJORD of Grathwohl et al. 2019).

    `"exact"`: tangents are carried along, $dT/dt = \partial f / \partial x \; T$, and $\log |\det
    T(1)|$ is the log-determinant of the very map that the steps make, so that densities are
    normalised where this map has an inverse; D tangents for each event. `"hutchinson"`: in training
    the trace is estimated, $d \log p / dt = -\epsilon^\top \partial f / \partial x \; \epsilon$
    with one random sign vector for each event, in expectation right up to the steps' error; in
    evaluation it is exact.

    The inverse goes back in time and is corrected until the steps lead to y; gradients are those of
    the implicit function theorem. Steps that are too few for a steep field fold space: several x
    then lead to one y, densities integrate to more than one, and what is drawn is not what is
    scored. Evidence warns of this, and draws of a program are refused.

    Args:
        num_dims: number D of dimensions.
        hidden: sizes of the field's hidden layers, of tanh units.
        num_steps: of Runge and Kutta's method of order 4.
        trace: `"exact"` or `"hutchinson"`.
        num_context: size of a context that the field sees too; 0 for none.

    Raises:
        ValueError: sizes or steps below one, another trace.

    Example:
        >>> flow, x = Continuous(3, [8], num_steps=4), torch.randn(5, 3)
        >>> torch.allclose(flow.inv(flow(x)), x, atol=1e-5)
        True
    """

    foldable = True

    @checked
    def __init__(
        self,
        num_dims: int,
        hidden: Sequence[int] = (64, 64),
        num_steps: int = 8,
        trace: Trace = "exact",
        num_context: int = 0,
    ) -> None:
        super().__init__((num_dims,), num_context)
        if num_steps < 1:
            raise ValueError(f"num_steps is {num_steps}; expected at least 1")
        if trace not in ("exact", "hutchinson"):
            raise ValueError(f"trace is {trace!r}; expected 'exact' or 'hutchinson'")
        self.num_steps, self.trace = num_steps, trace
        self.field = ContextMLP(num_dims, hidden, num_dims, 1 + num_context, nn.Tanh)

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """Along the field."""
        x, context = self._paired(x, context)
        if self.trace == "hutchinson" and self.training:
            return self._with_trace(x, context)
        y, tangents = self._with_tangents(x, context)
        return y, torch.linalg.slogdet(tangents)[1]

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """Back along the field."""
        y, context = self._paired(y, context)

        def refined(_: Any, x: Tensor, back: Tensor) -> Tensor:
            return x + back - self._moved(self._moved(x, context, 1), context, -1)

        with torch.no_grad():
            back = self._moved(y, context, -1)
            start = iterate(NUM_REFINEMENTS, refined, back, back)
        end, tangents = self._with_tangents(start, context)
        error = (end - y).unsqueeze(-1)
        x = start - torch.linalg.solve(tangents.mT.detach(), error).squeeze(-1)
        return x, -torch.linalg.slogdet(self._with_tangents(x, context)[1])[1]

    def _paired(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Events, one for each context, and the context."""
        context = self.checked(context)
        if context is None:
            return x, None
        shape = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
        return x.expand(*shape, x.shape[-1]), context

    def _moved(self, x: Tensor, context: Tensor | None, sign: int) -> Tensor:
        """Forth (1) or back (-1) in time."""

        def field(weights: Layers, shifts: Layers, state: State) -> State:
            return (tanh_layers(weights, shifts, *state),)

        return self._integrated(field, (x,), context, sign)[0]

    def _with_tangents(self, x: Tensor, context: Tensor | None) -> State:
        """Integrate the field together with its Jacobian.

        The result is y and the rows dy / dx_i of the Jacobian, `[..., D, D]`.
        """
        size = x.shape[-1]
        identity = torch.eye(size, dtype=x.dtype, device=x.device).expand(*x.shape, size)

        def field(weights: Layers, shifts: Layers, state: State) -> State:
            return tangent_layers(weights, shifts, *state)

        return self._integrated(field, (x, identity), context, 1)

    def _with_trace(self, x: Tensor, context: Tensor | None) -> State:
        """Integrate the field and estimate the integral of its divergence.

        The result is y and the estimate, `[...]`.
        """
        signs = torch.randint_like(x, 2) * 2 - 1

        def field(weights: Layers, shifts: Layers, state: State) -> State:
            slope, along = tangent_layers(weights, shifts, state[0], signs.unsqueeze(-2))
            return slope, (along.squeeze(-2) * signs).sum(-1)

        return self._integrated(field, (x, torch.zeros_like(x[..., 0])), context, 1)

    def _integrated(self, field: Field, state: State, context: Tensor | None, sign: int) -> State:
        """Integrate a field by classical Runge-Kutta steps.

        Time goes from 0 to 1, or from 1 to 0.
        """
        size = sign / self.num_steps

        def step(turn: Any, state: State, fixed: Any) -> State:
            weights, *shifts = fixed
            start, middle, end = (_shifts_at(2 * turn + half, *shifts) for half in range(3))
            first = field(weights, start, state)
            second = field(weights, middle, _ahead(state, first, size / 2))
            third = field(weights, middle, _ahead(state, second, size / 2))
            fourth = field(weights, end, _ahead(state, third, size))
            slopes = zip(first, second, third, fourth, strict=True)
            return _ahead(state, tuple((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in slopes), size)

        weights = [layer.weight for layer in self.field.layers]
        fixed = (weights, *self._shifts(state[0], context, sign))
        return iterate(self.num_steps, step, state, fixed)

    def _shifts(self, x: Tensor, context: Tensor | None, sign: int) -> tuple[Layers, Layers]:
        """What the layers add at all times and contexts.

        Times are those of the steps and of their middles: `[2 * num_steps + 1, width]`.
        """
        times = torch.linspace(0, 1, 2 * self.num_steps + 1, dtype=x.dtype, device=x.device)
        times = (times if sign > 0 else times.flip(0)).unsqueeze(-1)
        maps: Any = [layer.weight for layer in self.field.contexts]
        biases: Any = [layer.bias for layer in self.field.layers]
        rows = [b + times * w[:, 0] for b, w in zip(biases, maps, strict=True)]
        return rows, [] if context is None else [context @ w[:, 1:].mT for w in maps]


def _shifts_at(place: Any, rows: Layers, given: Layers) -> Layers:
    """What the field's layers add at a time."""
    now = [row_at(table, place) for table in rows]
    return [row + part for row, part in zip(now, given, strict=True)] if given else now


def _ahead(state: State, slope: State, step: float) -> State:
    """The state after a step along a slope."""
    return tuple(a + step * b for a, b in zip(state, slope, strict=True))
