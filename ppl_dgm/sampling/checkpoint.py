"""Checkpoints for long computations.

An interrupted computation continues from a file, bit by bit the same.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_dgm.compile import Switch
from ppl_dgm.generators import generator_states, set_generator_states
from ppl_dgm.program import Bound
from ppl_dgm.program.identity import Identity, difference, identify
from ppl_dgm.program.storage import check_target, read_state, remove_leftovers, write_state
from ppl_dgm.pyro_state import deferred_interrupts

__all__ = ["Checkpoint", "checkpoint_of", "switch_of"]

Progress = TypeVar("Progress")
_LOG = logging.getLogger("ppl_dgm.sampling")
SAVE_SECONDS = 20.0  # between two writes of a checkpoint


class Checkpoint:
    """Loop runner that keeps its progress in a file.

    The file also has the state of the random number generators.

    The file holds tensors and numbers only, is written atomically, and is read without unpickling
    code.

    Args:
        path: the file, or None to keep nothing.
        identity: what the computation is, in named parts; a file of another one is refused.
        device: whose random numbers are drawn, beside the CPU's.

    Raises:
        ValueError: if the file belongs to another computation.

    Example:
        >>> import tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "count.pt")
        >>> first = Checkpoint(path, {"task": "counting"})
        >>> first.loop("count", 0, lambda n: n + 1, lambda n: n == 5)
        5
        >>> again = Checkpoint(path, {"task": "counting"})  # done before
        >>> again.loop("count", 0, lambda n: n / 0, lambda n: n == 5)
        5
    """

    def __init__(
        self, path: str | PathLike | None, identity: Identity, device: torch.device | None = None
    ) -> None:
        self.path = path
        self.device = device or torch.device("cpu")
        self.contents: dict[str, Any] = {
            "identity": identity,
            "loops": {},
            "start": self._generators(),
        }
        if path is not None:
            remove_leftovers(check_target(path))
            if Path(path).exists():
                self._read(path, identity)

    def _read(self, path: str | PathLike, identity: Identity) -> None:
        contents = read_state(path, self.device)
        found = difference(contents.get("identity"), identity)
        if found:
            raise ValueError(
                f"{path} is not a checkpoint of this computation: {found}. Delete it, or name "
                "another file"
            )
        self.contents = contents
        set_generator_states(contents["start"])

    def loop(
        self,
        name: str,
        start: Progress,
        step: Callable[[Progress], Progress],
        finished: Callable[[Progress], bool],
    ) -> Progress:
        """Repeat `step` until `finished`, from where the file left off.

        `Progress` is any tree of tensors and numbers. Ctrl-C stops between two steps, keeps what
        was done in the file and raises KeyboardInterrupt. On a full disk an older file stays as it
        was, the logger `ppl_dgm.sampling` warns, and the computation goes on.
        """
        progress = self._saved(name, start)
        saved_at = time.monotonic()
        with deferred_interrupts() as interrupted:
            while not finished(progress) and not interrupted():
                progress = step(progress)
                if self.path is not None and time.monotonic() - saved_at >= SAVE_SECONDS:
                    self._save(name, progress)
                    saved_at = time.monotonic()
        if self.path is not None:
            self._save(name, progress)
        if interrupted():
            raise KeyboardInterrupt
        return progress

    def _saved(self, name: str, start: Progress) -> Progress:
        saved = self.contents["loops"].get(name)
        if saved is None:
            return start
        set_generator_states(saved["generators"])
        return tree_unflatten(saved["leaves"], tree_flatten(start)[1])

    def _save(self, name: str, progress: Any) -> None:
        leaves = [
            leaf.contiguous() if isinstance(leaf, Tensor) else leaf
            for leaf in tree_flatten(progress)[0]
        ]
        self.contents["loops"][name] = {"leaves": leaves, "generators": self._generators()}
        try:
            write_state(str(self.path), self.contents)
        except OSError as error:  # a full disk: the older file is as it was, and the work goes on
            _LOG.warning("the checkpoint %s could not be written: %s", self.path, error)

    def _generators(self) -> dict[str, Tensor]:
        return generator_states(self.device)


def switch_of(estimator: Any) -> Switch:
    """Choose whether an estimator's moves are compiled.

    A computation from a file continues bit by bit, so that the choice must not change on the way.
    """
    return Switch(
        False
        if estimator.checkpoint is not None and estimator.compile == "auto"
        else estimator.compile
    )


def checkpoint_of(estimator: Any, bound: Bound, **settings: Any) -> Checkpoint:
    """Create the checkpoint of an estimator for a bound program.

    `settings` are further parts of its identity, by name.
    """
    path = estimator.checkpoint
    identity = {} if path is None else identity_of(estimator, bound) | identify(settings)
    return Checkpoint(path, identity, bound.device)


def identity_of(estimator: Any, bound: Bound) -> Identity:
    """Collect everything that identifies an estimate.

    This is the settings, program, parameters, buffers, every argument and the seed.
    """
    settings = {field.name: getattr(estimator, field.name) for field in fields(estimator)}
    for how in ("checkpoint", "compile", "memory"):
        settings.pop(how, None)
    named = {f"argument {place}": value for place, value in enumerate(bound.args)}
    roles = {
        role: getattr(fn, "fn", fn) for role, fn in (("model", bound.model), ("guide", bound.guide))
    }
    return identify(
        {"estimator": type(estimator).__name__, **settings, "seed": torch.initial_seed()}
        | named
        | {f"argument {name}": value for name, value in bound.kwargs.items()}
        | _tensors(bound)
        | roles
    )


def _tensors(bound: Bound) -> dict[str, Tensor]:
    """Parameters and buffers of model and guide by name."""
    found: dict[str, Tensor] = {}
    for role in (bound.model, bound.guide):
        if isinstance(role, torch.nn.Module):
            found |= {f"parameter {name}": value for name, value in role.named_parameters()}
            found |= {f"buffer {name}": value for name, value in role.named_buffers()}
    return found
