"""Who sees whom in autoregressive programs, and what their draws follow."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from ppl_dgm import Program

Make = Callable[..., Program]


def built(make: Make, **settings: Any) -> Any:
    """A program with parameters far from their start, in double and evaluation mode."""
    torch.manual_seed(3)
    program = make(**settings)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return program.double().eval()


def seen(program: Any, x: Tensor, member: int = 0, **given: Any) -> Tensor:
    """Which inputs each conditional depends on, `[D, D]`, both in the order of generation."""
    net, order = program.model.fn.net, program.model.fn.net.orders[member]
    inputs = program.model.fn.likelihood.inputs
    size = jacobian(lambda v: net(inputs(v), member=member, **given), x).abs().sum(-2)
    return size[order][:, order] > 0


def naively(program: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Draws by whole passes of the net."""
    net = program.model.fn.net
    remembering, net.stepper = (
        net.stepper,
        lambda x, context=None, member=0: net.naive_stepper(context, member),
    )
    try:
        return program.sample(*args, **kwargs)
    finally:
        net.stepper = remembering


def frequencies_agree(draws: Tensor, probs: Tensor) -> bool:
    """Whether draws of binary vectors follow probabilities, within 4.5 standard errors."""
    weights = 2 ** torch.arange(draws.shape[-1] - 1, -1, -1)
    counts = torch.bincount((draws.long() * weights).sum(-1), minlength=len(probs)).double()
    std_error = (len(draws) * probs * (1 - probs)).sqrt()
    return bool(((counts - len(draws) * probs).abs() < 4.5 * std_error + 1).all())
