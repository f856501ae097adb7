"""Checkpoint file from which a fit resumes exactly.

It goes on bit by bit; the file knows what it must to be recognised as this fit's.
"""

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.fitting.callbacks import Callback, Progress, Running
from ppl_dgm.program.identity import Identity, difference, digest
from ppl_dgm.program.storage import (
    check_space,
    check_target,
    read_state,
    remove_leftovers,
    write_state,
)
from ppl_dgm.validation import check_positive

__all__ = ["CheckpointFile"]

COPIES = 5  # of the parameters: with the best, two moments, and the older file


class CheckpointFile(Callback):
    """Callback that keeps the progress in a file.

    The fit goes on from the file if it exists, bit by bit. The file is written between steps, at
    the end and at Ctrl-C, and refused by every other fit; more steps, another progress bar, compile
    mode, device or rhythm of writing are no other fit. `fit(..., checkpoint=path, resume=...)` is
    short for it.

    Args:
        path: the file.
        every: steps between writes; default one epoch.
        resume: True goes on from the file, which must exist; False starts anew and overwrites it;
            None goes on if it exists.

    Raises:
        ValueError: where the file cannot be written, or resumed; at the start of a fit, for a file
            of another fit or program, or one that was damaged.

    Example:
        >>> import tempfile, torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for steps in (3, 5):
        ...         kept = CheckpointFile(f"{folder}/normal.pt", every=2)
        ...         found = ppl_dgm.fit(ppl_dgm.Program(model), torch.ones(3), steps=steps,
        ...                             progress=False, callbacks=[kept])
        >>> found.steps
        5
    """

    everywhere = True

    @checked
    def __init__(
        self, path: str | os.PathLike, every: int | None = None, resume: bool | None = None
    ) -> None:
        check_positive(every=every)
        self.path, self.every, self.resume = check_target(path), every, resume
        self._is_by_epoch = every is None
        if resume and not self.path.is_file():
            raise ValueError(
                f"resume is True but there is no file {path}; leave resume out to start"
            )

    def on_start(self, progress: Progress) -> None:
        running = progress.running
        if self._is_by_epoch:
            self.every = progress.epoch_steps
        remove_leftovers(self.path)
        tensors = (v for module in running.modules.values() for v in module.state_dict().values())
        check_space(self.path, COPIES * sum(value.nbytes for value in tensors))
        self._identity: Identity = running.identity()
        self._constants = {
            name: digest(value) for name, value in _untrained(running.modules).items()
        }
        self._written: int | None = None
        if self.resume is not False and self.path.exists():
            self._go_on(progress)

    def on_step(self, progress: Progress) -> None:
        running, self._written = progress.running, progress.step
        content = running.snapshot()  # of every process
        if not running.writes:
            return
        try:
            self._write(running, content)
        except OSError as error:  # a full disk: the older file is as it was, and the fit goes on
            running.note(f"the checkpoint {self.path} could not be written: {error}")

    def on_stop(self, progress: Progress) -> None:
        if progress.step != self._written:
            self.on_step(progress)

    def _go_on(self, progress: Progress) -> None:
        running = progress.running
        content = read_state(self.path, running.device)
        found = difference(content.get("identity"), self._identity)
        if found:
            raise ValueError(
                f"the checkpoint {self.path} is of another fit: {found}. Use the same settings, or "
                "another file"
            )
        self._check_constants(content["constants"])
        if content["state"]["step"] < progress.step:  # another file is further
            return
        try:
            running.restore(content)
        except RuntimeError as error:
            raise ValueError(
                f"the checkpoint {self.path} is of another program: {error}. Build the program as "
                "it was, or use another file"
            ) from error

    def _write(self, running: Running, content: Mapping[str, Any]) -> None:
        """Write the progress to the file.

        Digests of what no step has changed so far are written with it.
        """
        now = _untrained(running.modules)
        for name in list(self._constants):
            if digest(now[name]) != self._constants[name]:
                del self._constants[name]
        extra = {"identity": self._identity, "constants": self._constants}
        write_state(self.path, {**content, **extra})

    def _check_constants(self, saved: Mapping[str, str]) -> None:
        """Refuse a program with other buffers or frozen parameters.

        Those of the file would replace them in silence.
        """
        other = [name for name in saved if self._constants.get(name) != saved[name]]
        if other:
            raise ValueError(
                f"the checkpoint {self.path} is of another program: {', '.join(other)} had other "
                "values. Build the program as it was, or use another file"
            )
        self._constants = dict(saved)


def _untrained(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Buffers and frozen parameters by name."""
    found: dict[str, Tensor] = {}
    for owner, module in modules.items():
        frozen = ((n, p) for n, p in module.named_parameters() if not p.requires_grad)
        found |= {f"{owner}: {name}": value for name, value in (*frozen, *module.named_buffers())}
    return found
