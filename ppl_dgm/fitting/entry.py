"""The function `fit`, which learns parameters from data.

One call leads from program, data and objective to learned parameters.
"""

import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import pyro.infer
import torch
from torch.optim import Adam, Optimizer

from ppl_dgm.checked import Limit, checked
from ppl_dgm.compile import CompileMode
from ppl_dgm.data import Dataset
from ppl_dgm.fitting.bar import ProgressBar
from ppl_dgm.fitting.batches import Batches
from ppl_dgm.fitting.callbacks import Callback
from ppl_dgm.fitting.checkpoint import CheckpointFile
from ppl_dgm.fitting.checks import (
    batch_length,
    check_gradients,
    check_last_batch,
    check_makers,
    check_objective,
    check_processes,
    check_rhythms,
    check_steps_or_epochs,
    check_stream,
)
from ppl_dgm.fitting.learners import Maker, players_of
from ppl_dgm.fitting.loss import BatchLoss
from ppl_dgm.fitting.mixed_precision import check_autocast
from ppl_dgm.fitting.result import Fit
from ppl_dgm.fitting.sharing import check_sharing
from ppl_dgm.fitting.streaming import first_read
from ppl_dgm.fitting.training import Training, device_of
from ppl_dgm.generators import seed_generators
from ppl_dgm.objectives import ELBO, Game
from ppl_dgm.program import Program
from ppl_dgm.program.seeding import seeded
from ppl_dgm.pyro_state import import_dynamo, pyro_in_turn
from ppl_dgm.ranks import Ranks, ranks_now
from ppl_dgm.validation import check_device, check_positive

__all__ = ["fit"]

ADAM = partial(Adam, lr=1e-3)


@checked
def fit(
    program: Program,
    data: Any = (),
    objective: pyro.infer.ELBO | Any = None,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    shared: Collection[str] | None = None,
    optimizer: Callable[[Any], Optimizer] = ADAM,
    schedule: Callable[[Optimizer], Any] | None = None,
    clip_norm: Limit | None = None,
    seed: int | None = 0,
    device: torch.device | str | None = None,
    valid: Any = None,
    valid_every: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: bool | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    compile: CompileMode = "auto",
    autocast: torch.dtype | None = None,
) -> Fit:
    """Fit a program to data by stochastic gradient steps.

    Minibatches are taken along the data plate; beside latents shared by all data their sites are
    scaled up, so that the ELBO stays unbiased. Objectives with a logarithm of a mean (`IWELBO`,
    `Renyi`) are then too high, and no bounds: give them all data at once. All figures are in nats
    per datum. Ctrl-C ends the fit and returns what was learned.

    Where the objective has several players (`objectives.Game`), a step is a round of all of them.
    It deals as many minibatches as the busiest player makes steps; each player's k-th step is on
    the k-th of them.

    Under `torch.distributed` (torchrun) the ranks share every minibatch and end with the same
    parameters; the first shows progress and writes.

    Args:
        program: the program; its parameters are changed in place.
        data: a Tensor or array, a tuple or dict of them (positional or named arguments of the
            program), a DataFrame (a named argument for each column), a Dataset, a torch Dataset or
            DataLoader; a `ppl_dgm.data.Stream` for data larger than memory; nothing for a program
            that holds its data.
        objective: one of `ppl_dgm.objectives`, or of Pyro's ELBOs; default `ELBO()`.
        steps: number of optimisation steps (rounds, of a game); or else
        epochs: passes over the data.
        batch_size: data in a minibatch; default all.
        shared: names of arguments that all data share and no minibatch cuts; default those of the
            program. What is not named is learnt from the program, which must give a minibatch the
            densities that it has among all data.
        optimizer: makes a torch optimiser of the parameters, e.g.
            `functools.partial(torch.optim.Adam, lr=1e-3)`; of each player's that brings none of its
            own.
        schedule: makes a torch learning-rate scheduler of the optimiser; stepped after every step,
            but `ReduceLROnPlateau` after every validation, with the loss.
        clip_norm: largest joint norm of the gradient of the loss per datum, of each player.
        seed: of shuffles and draws; torch's generator is left as it was. None draws from torch's
            generator.
        device: where to train; the program and the data are moved there.
        valid: validation data, as `data`; judged by the objective as it is at the last step,
            annealed weights included. The fit ends with the best parameters seen.
        valid_every: steps between validations; default one epoch.
        checkpoint: file to resume from, if it exists, and to write once an epoch; short for the
            callback `ppl_dgm.fitting.CheckpointFile`, which can have another rhythm.
        resume: True goes on from the checkpoint, which must exist; False starts anew and overwrites
            it; None goes on if it exists.
        progress: show a progress bar, by the callback `ppl_dgm.fitting.ProgressBar`.
        callbacks: what to call before, after steps and validations, and at the end:
            `ppl_dgm.fitting.EarlyStopping`, `CheckpointFile`, `CSVLog`, `TensorBoard`, `Log`, or
            subclasses of `Callback`, which can end the fit.
        compile: `"auto"` compiles the step after a few eager ones where the rest takes long enough
            for that to pay, and stays eager (see `Fit.notes`) where it cannot; True compiles or
            raises; False stays eager.
        autocast: torch.bfloat16 runs the products of nets (linear layers, convolutions, attention)
            in it. Parameters, densities, validation and evidence keep their dtype.

    Returns:
        The fit: program, history, timings, `.plot()`.

    Raises:
        ValueError: for settings, data or a program that do not fit each other, before any work.
        CaptureError: with `compile=True`, for a program that cannot be captured.
        NonFiniteError: when the objective or a gradient becomes NaN or infinite.
        Exception: what programs and callbacks raise. Its `.fit`, as that of a NonFiniteError, has
            what was learned.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> program = ppl_dgm.Program(model)
        >>> adam = lambda parameters: torch.optim.Adam(parameters, lr=0.1)
        >>> x = torch.full((10,), 3.0)
        >>> result = fit(program, x, steps=300, optimizer=adam, progress=False)
        >>> round(program.get_parameter("loc").item(), 2), result.stopped
        (3.0, 'finished')
    """
    check_gradients()
    check_objective(objective)
    check_steps_or_epochs(steps, epochs)
    check_makers(optimizer=optimizer, schedule=schedule)
    check_device(device)
    check_positive(clip_norm=clip_norm, steps=steps, epochs=epochs, batch_size=batch_size)
    check_positive(valid_every=valid_every)
    ranks = ranks_now()
    heard = all_callbacks(callbacks, checkpoint, resume, progress, ranks)
    check_processes(compile, ranks.size)
    if device is not None:
        program.to(device)
    (args, kwargs), streamed, bright = first_read(program, data, device, batch_size)
    import_dynamo()
    with (
        pyro_in_turn(),
        seeded(seed, torch.device(device) if device is not None else None, apart=False),
    ):
        objective = objective if objective is not None else ELBO(plate=program.plate)
        found = program.examine_at(
            args,
            kwargs,
            shared=shared,
            particles=None if isinstance(objective, Game) else objective.num_particles,
            training=program.training,
        )
        args, kwargs = program.adapt(args, kwargs)  # to what it was found to run on
        check_autocast(program, autocast)
        players = players_of(objective, program, device, args, kwargs)
        num_data = found.num_data or 1
        size = num_data if streamed else batch_length(found, batch_size)
        check_sharing(ranks, program, found.structure.divisible, num_data)
        held = found.structure.held if size < num_data or ranks.size > 1 else frozenset()
        seed_of_all = ranks.first(draw_seed(seed))
        batches = Batches(args, kwargs, num_data, size, seed_of_all, held)
        if streamed:
            batches = streamed(seed_of_all)
            check_stream(batches, found, epochs, ranks.size)
            num_data = batches.num_data
        loss = BatchLoss(program, objective, num_data, found.structure.per_datum)
        check_last_batch(loss, batches)
        width = max(player.num_steps for player in players)
        num_rounds = steps if steps is not None else -(-(epochs or 1) * batches.per_epoch // width)
        rounds_per_epoch = -(-batches.per_epoch // width)
        make_learner = Maker(
            program=program,
            num_data=num_data,
            per_datum=found.structure.per_datum,
            batches=batches,
            num_rounds=num_rounds,
            optimizer=optimizer,
            schedule=schedule,
            clip_norm=clip_norm,
            compile=compile,
            valid=valid,
            ranks=ranks,
            autocast=autocast,
        )
        training = Training(
            loss=loss,
            batches=batches,
            learners=tuple(map(make_learner, players)),
            num_steps=num_rounds,
            valid=validation_batches(program, valid, device, batches.batch_size, shared, bright),
            valid_every=valid_every or rounds_per_epoch,
            callbacks=heard,
            ranks=ranks,
        )
        if ranks.size > 1:
            ranks.equalise(learner.module for learner in training.learners)
            seed_generators(ranks.seed(seed_of_all), device_of(program))
        return training.run()


def all_callbacks(
    given: Sequence[Callback],
    checkpoint: str | os.PathLike | None,
    resume: bool | None,
    progress: bool,
    ranks: Ranks,
) -> tuple[Callback, ...]:
    """The callbacks of a fit in this process.

    A checkpoint comes first, since it changes where the fit is; the bar last.
    """
    if checkpoint is None and resume is not None:
        raise ValueError(
            f"resume is {resume} but there is no checkpoint; name its file, checkpoint=..., or "
            "give it to the callback, CheckpointFile(..., resume=...)"
        )
    check_rhythms(given)
    kept = [] if checkpoint is None else [CheckpointFile(checkpoint, resume=resume)]
    progress = progress and not any(isinstance(one, ProgressBar) for one in given)
    ordered = sorted([*kept, *given], key=lambda one: not isinstance(one, CheckpointFile))
    heard = [*ordered, *([ProgressBar()] if progress else [])]
    return tuple(one for one in heard if one.everywhere or ranks.is_first)


def draw_seed(seed: int | None) -> int:
    """The seed, or one drawn from torch's generator."""
    return int(torch.randint(2**31, ())) if seed is None else seed


def validation_batches(
    program: Program,
    valid: Any,
    device: Any,
    batch_size: int,
    shared: Collection[str] | None,
    bright: bool | None,
) -> Batches | None:
    """Validation data in minibatches, checked against the program."""
    if valid is None:
        return None
    if isinstance(valid, Dataset) and len(valid) == 0:
        raise ValueError(
            "the validation data are empty; pass a split with data, or leave valid out"
        )
    (args, kwargs), streamed, _ = first_read(program, valid, device, batch_size, bright)
    if streamed:
        return streamed(0)
    found = program.examine_at(args, kwargs, shared=shared)
    num_data = found.num_data or 1
    if batch_size >= num_data or not found.structure.divisible:
        return Batches(args, kwargs, num_data, num_data, 0)
    return Batches(args, kwargs, num_data, batch_size, 0, found.structure.held)
