"""Loss of a minibatch, and the search for NaNs.

The loss is in nats per datum; the search is for the site that made it NaN.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import pyro.infer
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_dgm.fitting.batches import Batch, Scaled
from ppl_dgm.fitting.mixed_precision import NarrowProducts
from ppl_dgm.objectives import Objective
from ppl_dgm.program import Program
from ppl_dgm.program.parameters import store_contents
from ppl_dgm.program.pyro_patches import unvalidated

__all__ = ["TERMS", "BatchLoss", "Told", "explain_nonfinite"]

TERMS = ("reconstruction", "kl")
Told = list[float]  # a loss in nats per datum, and the terms of an ELBO if there are any


class BatchLoss:
    """Loss of a minibatch, in nats per datum.

    It is minus the objective, and estimates that of all data.

    Where every datum has its own latents a minibatch is a mean over its data. Where latents are
    shared by all data, the data's sites are scaled up by (number of data) / (minibatch) before the
    whole is divided by the number of data: unbiased for objectives that are linear in the log
    weights, as the ELBO is.
    """

    def __init__(
        self,
        program: Program,
        objective: pyro.infer.ELBO,
        num_data: int,
        per_datum: bool | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.autocast = autocast
        self.program, self.objective, self.num_data = program, objective, num_data
        self.per_datum = program.structure.per_datum if per_datum is None else per_datum
        self._store: tuple[dict, dict] = ({}, {})  # what the objective itself keeps: baselines
        self._pairs: dict[float, tuple[Callable, Callable]] = {1.0: (program.model, program.guide)}

    def __call__(self, size: int, batch: Batch) -> Tensor:
        """Compute the differentiable loss, and the terms of an ELBO.

        `[3]` with them (see `Objective.loss_and_terms`), else `[1]`.
        """
        (model, guide), (args, kwargs) = self._pair(size), batch
        objective: Any = self.objective
        with self._precision(), store_contents(*self._store):
            if isinstance(objective, Objective):
                told = objective.loss_and_terms(model, guide, *args, **kwargs)
            else:
                told = objective.differentiable_loss(model, guide, *args, **kwargs).reshape(1)
        return told / self._divisor(size)

    def backward(self, size: int, batch: Batch) -> Tensor:
        """Add gradients to the parameters and return the loss, `[1]`.

        It is for objectives that do no more than that.
        """
        (model, guide), (args, kwargs) = self._pair(size), batch
        objective: Any = self.objective
        with self._precision(), store_contents(*self._store):
            loss = objective.loss_and_grads(model, guide, *args, **kwargs)
        for parameter in self.program.parameters():
            if parameter.grad is not None:
                parameter.grad /= self._divisor(size)
        value = torch.as_tensor(loss[0] if isinstance(loss, tuple) else loss)
        return value.reshape(1) / self._divisor(size)

    def _precision(self) -> Any:
        return nullcontext() if self.autocast is None else NarrowProducts(self.autocast)

    def numbers(self, size: int, batch: Batch) -> Told:
        """The loss without gradients, and the terms of an ELBO."""
        if isinstance(self.objective, Objective):
            with torch.no_grad():
                return self(size, batch).tolist()
        (model, guide), (args, kwargs) = self._pair(size), batch
        objective: Any = self.objective
        with store_contents(*self._store):
            loss = objective.loss(model, guide, *args, **kwargs)
        return [float(loss[0] if isinstance(loss, tuple) else loss) / self._divisor(size)]

    @property
    def differentiable(self) -> bool:
        """Whether the objective has a differentiable loss.

        Pyro's `ReweightedWakeSleep`, for example, has none.
        """
        return hasattr(self.objective, "differentiable_loss")

    def _divisor(self, size: int) -> int:
        return size if self.per_datum else self.num_data

    def _pair(self, size: int) -> tuple[Callable, Callable]:
        """Return model and guide, scaled where needed.

        Their data are scaled up where there are global latents.
        """
        factor = 1.0 if self.per_datum else self.num_data / size
        if factor not in self._pairs:
            plate = self.program.plate
            self._pairs[factor] = (
                Scaled(self.program.model, plate, factor),
                Scaled(self.program.guide, plate, factor),
            )
        return self._pairs[factor]


def explain_nonfinite(
    program: Program, batch: Batch, parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> str:
    """Name the first value that is NaN or infinite.

    It is a parameter, a site of guide or model, or a gradient.
    """
    args, kwargs = batch
    named = list(parameters)
    for name, parameter in named:
        if not bool(parameter.isfinite().all()):
            return f"parameter {name!r} is not finite"
    with torch.no_grad(), unvalidated():
        guide_trace = poutine.trace(program.guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(program.model, trace=guide_trace)).get_trace(
            *args, **kwargs
        )
        for role, trace in (("guide", guide_trace), ("model", model_trace)):
            fault = first_nonfinite(trace)
            if fault:
                return f"{fault} of the {role}"
    gradients = [n for n, p in named if p.grad is not None and not bool(p.grad.isfinite().all())]
    return (
        f"the gradients of {gradients} are not finite"
        if gradients
        else "no single site; the weights under- or overflow"
    )


def first_nonfinite(trace: Any) -> str:
    """Find the first sample site that is not finite.

    Says whether its value or its log density is not finite; empty if there is no such site.
    """
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        if (
            isinstance(site["value"], Tensor)
            and site["value"].is_floating_point()
            and bool(site["value"].isnan().any())
        ):
            return f"the value of site {name!r}"
        if not bool(torch.isfinite(site["fn"].log_prob(site["value"])).all()):
            return f"the log density of site {name!r}"
    return ""
