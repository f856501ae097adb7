"""Gradients of a log density datum by datum."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["scores_of"]

Scores = dict[str, Tensor]
Given = tuple[Tensor, ...]
AT_ONCE = 64  # data whose gradients are taken side by side


class LogDensity(nn.Module):
    """log p(x) of data as a module's output.

    Args:
        model: whose parameters count, under its names for them.
        density: log p of data, `[data]`, of the tensors they are given by.
    """

    def __init__(self, model: nn.Module, density: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.density = model, density

    def forward(self, *data: Tensor) -> Tensor:
        """log p of one datum, `[]`."""
        return self.density(*(part.unsqueeze(0) for part in data)).squeeze(0)


def scores_of(model: nn.Module, density: Callable[..., Tensor], data: Given) -> Scores:
    r"""$\nabla_\theta \log p_\theta(x_n)$ of each datum, `{name: [N, *shape]}`.

    One pass for all data where torch maps every layer over them; recurrent layers, which it does
    not map, take a backward pass for each datum, side by side.
    """
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        parts = zip(*(part.split(AT_ONCE) for part in data), strict=True)
        found = [scores_by_vjp(model, density, part) for part in parts]
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}
    module = LogDensity(model, density)
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    one = partial(torch.func.functional_call, module)
    gradient = torch.func.grad(lambda given, *datum: one(given, datum))
    mapped = torch.func.vmap(gradient, (None, *(0 for _ in data)), chunk_size=AT_ONCE)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no rule for vmap
        found = mapped(parameters, *data)
    return {name.removeprefix("model."): value.detach() for name, value in found.items()}


def scores_by_vjp(model: nn.Module, density: Callable[..., Tensor], data: Given) -> Scores:
    """Compute the scores by a backward pass per datum.

    All passes run at once; the result is that of `scores_of`.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    with torch.enable_grad():
        log_prob = density(*data)
        each = torch.eye(len(log_prob), dtype=log_prob.dtype, device=log_prob.device)
        found = torch.autograd.grad(log_prob, parameters, each, is_grads_batched=True)
    return dict(zip(names, found, strict=True))
