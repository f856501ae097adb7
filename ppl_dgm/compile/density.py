"""Compiled log densities and their gradients.

Markov chains and annealed paths evaluate them millions of times.
"""

from collections.abc import Callable
from typing import Any

import torch

from ppl_dgm.compile.inductor.backend import Backend, Compiled, compile_function

__all__ = ["compile_density", "value_and_gradient"]

LogDensity = Callable[..., torch.Tensor]


def value_and_gradient(log_density: LogDensity) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    r"""Build a function that returns log density and gradient.

    The function is $(z, \ldots) \mapsto (\log p(z), \nabla_z \log p(z))$.

    Args:
        log_density: of points `[*batch, dim]` (and further tensors) gives nats `[*batch]`, each
            entry a function of its own point alone.

    Example:
        >>> import torch
        >>> from ppl_dgm.compile import value_and_gradient
        >>> value_and_gradient(lambda z: -0.5 * (z**2).sum(-1))(torch.ones(2, 3))
        (tensor([-1.5000, -1.5000]), tensor([[-1., -1., -1.], [-1., -1., -1.]]))
    """

    def evaluate(point: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            value = log_density(point, *others)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), gradient

    return evaluate


def compile_density(
    log_density: LogDensity, point: torch.Tensor, *others: Any, backend: Backend = "inductor"
) -> Compiled:
    """Compile the value and gradient of a log density.

    All leading dimensions are evaluated at once.

    Args:
        log_density: as in `value_and_gradient`; `[chains, data, dim]` to `[chains, data]`, say. It
            may run a program under handlers, and `torch.func.vmap` inside.
        point: example of the points; its shape is that of the compiled function.
        others: examples of further arguments.
        backend: as in `compile_function`.

    Returns:
        A callable of `(point, *others)` that gives `(value, gradient)`.

    Raises:
        CaptureError: the density cannot be captured, or the compiler fails.

    Example:
        >>> import torch
        >>> from ppl_dgm.compile import compile_density
        >>> normal = lambda z: -0.5 * (z**2).sum(-1)
        >>> density = compile_density(normal, torch.zeros(2, 1), backend="eager")
        >>> density(torch.tensor([[1.0], [2.0]]))
        (tensor([-0.5000, -2.0000]), tensor([[-1.],
                [-2.]]))
    """
    return compile_function(value_and_gradient(log_density), (point, *others), backend=backend)
