"""Common interface to Pyro's losses as differentiable scalars."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO, TraceGraph_ELBO

from ppl_dgm.compile.errors import CaptureError
from ppl_dgm.compile.tracing.provenance import TrackProvenance

__all__ = ["differentiable_loss"]


def differentiable_loss(
    elbo: ELBO, model: Callable, guide: Callable, *args: Any, **kwargs: Any
) -> torch.Tensor:
    r"""Return one of Pyro's losses as a differentiable scalar.

    Its value is the loss (nats), and its gradient is that of Pyro's surrogate loss.

    $L + (S - \mathrm{stop}(S))$ for loss $L$ and surrogate $S$; they differ for latents that cannot
    be reparameterised. `TraceGraph_ELBO` has no such method of its own.

    Raises:
        CaptureError: the loss has no differentiable form (Pyro's `RenyiELBO`,
            `ReweightedWakeSleep`).

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from ppl_dgm.compile import differentiable_loss
        >>> model = lambda x: pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> differentiable_loss(Trace_ELBO(), model, lambda x: None, torch.tensor(0.0))
        tensor(0.9189)
    """
    if isinstance(elbo, TraceGraph_ELBO):
        with TrackProvenance():
            value: Any
            value, surrogate = elbo._loss_and_surrogate_loss(model, guide, args, kwargs)
        return surrogate - (surrogate + value).detach()
    loss: Any = elbo
    if not hasattr(loss, "differentiable_loss"):
        raise CaptureError(
            f"{type(elbo).__name__} has no differentiable loss, so it cannot be compiled. Use one "
            "of ppl_dgm.objectives, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO or "
            "TraceGraph_ELBO."
        )
    return loss.differentiable_loss(model, guide, *args, **kwargs)
