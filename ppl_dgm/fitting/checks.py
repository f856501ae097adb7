"""Checks of what `fit` is given, before any work."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ppl_dgm.compile import CompileMode
from ppl_dgm.fitting.batches import Batches
from ppl_dgm.fitting.callbacks import Callback
from ppl_dgm.fitting.loss import BatchLoss
from ppl_dgm.fitting.streaming import StreamedBatches
from ppl_dgm.objectives import Game
from ppl_dgm.program.inspection import Examination
from ppl_dgm.program.isolation import repeatable

__all__ = [
    "batch_length",
    "check_gradients",
    "check_last_batch",
    "check_makers",
    "check_objective",
    "check_processes",
    "check_rhythms",
    "check_steps_or_epochs",
    "check_stream",
]


def check_gradients() -> None:
    """Raise ValueError where gradients are switched off."""
    if not torch.is_grad_enabled():
        raise ValueError(
            "gradients are off, by torch.no_grad() or torch.inference_mode(), but fit needs them; "
            "call it outside of that block"
        )


def check_processes(compile: CompileMode, num_processes: int) -> None:
    """Refuse compiled steps in several processes.

    Raises ValueError.
    """
    if compile is True and num_processes > 1:
        raise ValueError(
            f"compile is True but {num_processes} processes share the fit, whose steps are made "
            "eagerly; leave compile out"
        )


def check_steps_or_epochs(steps: Any, epochs: Any) -> None:
    """Refuse steps beside epochs, or neither.

    Raises ValueError.
    """
    if (steps is None) == (epochs is None):
        raise ValueError(
            f"steps is {steps} and epochs is {epochs}; give exactly one of them, e.g. epochs=100"
        )


def check_rhythms(callbacks: Sequence[Callback]) -> None:
    """Refuse callbacks whose `every` is no number of steps.

    Raises ValueError.
    """
    for one in callbacks:
        if one.every is not None and (not isinstance(one.every, int) or one.every < 1):
            raise ValueError(
                f"every of the callback {type(one).__name__} is {one.every!r}; expected a whole "
                "number of steps, at least 1, or None"
            )


def check_makers(**makers: Any) -> None:
    """Refuse optimisers and schedulers that are not functions.

    Raises TypeError. Each is given by name, and must be a function that makes one.
    """
    for name, make in makers.items():
        if make is not None and not callable(make):
            raise TypeError(
                f"{name} is a {type(make).__name__}; expected a function that makes one, e.g. "
                "optimizer=functools.partial(torch.optim.Adam, lr=1e-3) or schedule=lambda o: "
                "StepLR(o, 100)"
            )


def check_objective(objective: Any) -> None:
    """Refuse what is not an instance of an objective.

    Raises TypeError, for instance for a name or a class.
    """
    if objective is None or (
        hasattr(objective, "loss_and_grads") and not isinstance(objective, type)
    ):
        return
    given = (
        f"the class {objective.__name__}"
        if isinstance(objective, type)
        else f"a {type(objective).__name__}"
    )
    raise TypeError(
        f"objective is {given}; expected an instance such as ELBO() or IWELBO(num_particles=10)"
    )


def batch_length(found: Examination, batch_size: int | None) -> int:
    """Return the number of data in a minibatch.

    It is checked against what the program can do.
    """
    num_data = found.num_data or 1
    if batch_size is None or batch_size >= num_data:
        return num_data
    if not found.structure.divisible:
        raise ValueError(
            f"batch_size is {batch_size} but the program does not take a part of its {num_data} "
            "data: its data plate has a fixed size, its data are not tensor arguments, or data "
            "have other densities in a part than among all (as with a mean over the data). Open "
            "pyro.plate('data', len(x)), name arguments that all data share (shared=[...]), or "
            "leave batch_size out"
        )
    return batch_size


def check_stream(
    batches: StreamedBatches, found: Examination, epochs: int | None, num_processes: int
) -> None:
    """Refuse streams that cannot stand for all data.

    Raises ValueError.
    """
    stream = batches.stream
    if stream.num_data is None and (epochs is not None or not found.structure.per_datum):
        why = "epochs are counted" if epochs is not None else "latents are shared by all data"
        raise ValueError(
            f"{why}, which takes the number of data, but the {stream!r} does not tell it; give "
            "Stream(source, num_data=...)"
        )
    if not found.structure.divisible:
        raise ValueError(
            f"the data are a {stream!r}, but the program does not take a part of them; open "
            "pyro.plate('data', len(x))"
        )
    if num_processes > 1:
        raise ValueError(
            f"the data are a {stream!r}, which {num_processes} processes cannot share; fit in one"
        )


def check_last_batch(loss: BatchLoss, batches: Batches) -> None:
    """Refuse a last minibatch too small for batch norm."""
    program, size = loss.program, batches.batch_size
    norms = any(isinstance(m, _BatchNorm) and m.training for m in program.modules())
    if (
        not norms
        or batches.is_streamed
        or isinstance(loss.objective, Game)
        or batches.num_data % size != 1
        or size == 1
    ):
        return
    try:
        with repeatable(program.model, program.guide):
            loss.numbers(*next(batches.from_step(batches.per_epoch - 1)))
    except ValueError as error:
        reason = str(error).partition("Trace Shapes:")[0].strip()
        raise ValueError(
            f"batch_size is {size}, which leaves one of the {batches.num_data} data for the last "
            f"minibatch of an epoch, too few for batch norm: {reason}. Choose a batch_size that "
            "leaves none or several"
        ) from error
