"""Flows over time: events carried along a learned vector field."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.nn.conditioned import TangentMLP
from ppl_dgm.transforms.bijection import Bijection, Images

__all__ = ["Continuous", "Trace"]

Trace = Literal["exact", "hutchinson"]
State = tuple[Tensor, Tensor]
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
        self.field = TangentMLP(num_dims, hidden, num_dims, 1 + num_context)

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """Along the field."""
        if self.trace == "hutchinson" and self.training:
            return self._with_trace(x, self.checked(context))
        y, tangents = self._with_tangents(x, self.checked(context))
        return y, torch.linalg.slogdet(tangents)[1]

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """Back along the field."""
        context = self.checked(context)
        with torch.no_grad():
            start = back = self._moved(y, context, -1)
            for _ in range(NUM_REFINEMENTS):
                start = start + back - self._moved(self._moved(start, context, 1), context, -1)
        end, tangents = self._with_tangents(start, context)
        error = (end - y).unsqueeze(-1)
        x = start - torch.linalg.solve(tangents.mT.detach(), error).squeeze(-1)
        return x, -torch.linalg.slogdet(self._with_tangents(x, context)[1])[1]

    def _times(self, time: float, x: Tensor, context: Tensor | None) -> Tensor:
        """The time, and the context, as the field sees them."""
        if context is None:
            return x.new_full((1,), time)
        return torch.cat([x.new_full((*context.shape[:-1], 1), time), context], -1)

    def _moved(self, x: Tensor, context: Tensor | None, sign: int) -> Tensor:
        """Forth (1) or back (-1) in time."""

        def field(time: float, state: State) -> State:
            return self.field(state[0], self._times(time, x, context)), state[1]

        return self._integrated(field, (x, x.new_zeros(())), sign)[0]

    def _with_tangents(self, x: Tensor, context: Tensor | None) -> Images:
        """Integrate the field together with its Jacobian.

        The result is y and the rows dy / dx_i of the Jacobian, `[..., D, D]`.
        """
        size = x.shape[-1]
        identity = torch.eye(size, dtype=x.dtype, device=x.device).expand(*x.shape, size)

        def field(time: float, state: State) -> State:
            return self.field.with_tangents(*state, self._times(time, x, context))

        return self._integrated(field, (x, identity), 1)

    def _with_trace(self, x: Tensor, context: Tensor | None) -> Images:
        """Integrate the field and estimate the integral of its divergence.

        The result is y and the estimate, `[...]`.
        """
        signs = torch.randint_like(x, 2) * 2 - 1

        def field(time: float, state: State) -> State:
            given = self._times(time, x, context)
            slope, along = self.field.with_tangents(state[0], signs.unsqueeze(-2), given)
            return slope, (along.squeeze(-2) * signs).sum(-1)

        return self._integrated(field, (x, torch.zeros_like(x[..., 0])), 1)

    def _integrated(self, field: Callable[[float, State], State], state: State, sign: int) -> State:
        """Integrate a field by classical Runge-Kutta steps.

        Time goes from 0 to 1, or from 1 to 0.
        """
        size = sign / self.num_steps
        for step in range(self.num_steps):
            time = step / self.num_steps if sign > 0 else 1 - step / self.num_steps
            first = field(time, state)
            second = field(time + size / 2, _ahead(state, first, size / 2))
            third = field(time + size / 2, _ahead(state, second, size / 2))
            fourth = field(time + size, _ahead(state, third, size))
            mean = [
                (a + 2 * b + 2 * c + d) / 6
                for a, b, c, d in zip(first, second, third, fourth, strict=True)
            ]
            state = _ahead(state, (mean[0], mean[1]), size)
        return state


def _ahead(state: State, slope: State, step: float) -> State:
    """The state after a step along a slope."""
    return state[0] + step * slope[0], state[1] + step * slope[1]
