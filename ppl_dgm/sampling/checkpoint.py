"""Long computations that continue from a file where they were interrupted, bit by bit the same."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_dgm.compile import Switch
from ppl_dgm.program import Bound, write_atomically

Progress = TypeVar("Progress")
SAVE_SECONDS = 20.0  # between two writes of a checkpoint


class Checkpoint:
    """Runs loops whose progress is kept in a file, with the state of the random number generators.

    The file holds tensors and numbers only, is written atomically, and is read without unpickling code.

    Args:
        path: the file, or None to keep nothing.
        fingerprint: what the computation is; a file of another one is refused.
        device: whose random numbers are drawn, beside the CPU's.

    Raises:
        ValueError: if the file belongs to another computation.

    Example:
        >>> import tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "count.pt")
        >>> Checkpoint(path, "counting").loop("count", 0, lambda n: n + 1, lambda n: n == 5)
        5
        >>> Checkpoint(path, "counting").loop("count", 0, lambda n: n / 0, lambda n: n == 5)  # done before
        5
    """

    def __init__(
        self, path: str | PathLike | None, fingerprint: str, device: torch.device | None = None
    ) -> None:
        self.path = path
        self.device = device if device is not None and device.type == "cuda" else None
        self.contents: dict[str, Any] = {
            "fingerprint": fingerprint,
            "loops": {},
            "start": self._generators(),
        }
        if path is not None and Path(path).exists():
            self._read(path, fingerprint)

    def _read(self, path: str | PathLike, fingerprint: str) -> None:
        contents = torch.load(path, weights_only=True, map_location=self.device or "cpu")
        if not isinstance(contents, dict) or contents.get("fingerprint") != fingerprint:
            raise ValueError(
                f"{path} is not a checkpoint of this computation: its settings, data, seed or parameters differ. Delete "
                "it, or name another file"
            )
        self.contents = contents
        self._set_generators(contents["start"])

    def loop(
        self,
        name: str,
        start: Progress,
        step: Callable[[Progress], Progress],
        finished: Callable[[Progress], bool],
    ) -> Progress:
        """Repeat `step` until `finished`, from where the file left off; `Progress` is any tree of tensors and numbers."""
        progress = self._saved(name, start)
        saved_at = time.monotonic()
        while not finished(progress):
            progress = step(progress)
            if self.path is not None and time.monotonic() - saved_at >= SAVE_SECONDS:
                self._save(name, progress)
                saved_at = time.monotonic()
        if self.path is not None:
            self._save(name, progress)
        return progress

    def _saved(self, name: str, start: Progress) -> Progress:
        saved = self.contents["loops"].get(name)
        if saved is None:
            return start
        self._set_generators(saved["generators"])
        return tree_unflatten(saved["leaves"], tree_flatten(start)[1])

    def _save(self, name: str, progress: Any) -> None:
        leaves = [
            leaf.contiguous() if isinstance(leaf, Tensor) else leaf
            for leaf in tree_flatten(progress)[0]
        ]
        self.contents["loops"][name] = {"leaves": leaves, "generators": self._generators()}
        write_atomically(str(self.path), self.contents)

    def _generators(self) -> list[Tensor]:
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device else []
        return [torch.get_rng_state(), *cuda]

    def _set_generators(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0].cpu())
        if self.device:
            torch.cuda.set_rng_state(states[1].cpu(), self.device)


def switch_of(estimator: Any) -> Switch:
    """How an estimator runs its moves; what is kept in a file is continued bit by bit, so it does not change on the way."""
    return Switch(
        False
        if estimator.checkpoint is not None and estimator.compile == "auto"
        else estimator.compile
    )


def fingerprint(estimator: Any, bound: Bound) -> str:
    """Identify a computation: the estimator's settings, the program's parameters, the data and the seed."""
    digest = hashlib.blake2b(digest_size=16)
    settings = repr(replace(estimator, checkpoint=None))
    structure = bound.structure
    for part in (
        settings,
        bound.digest,
        repr(structure.latents),
        repr(structure.observed),
        torch.initial_seed(),
    ):
        digest.update(repr(part).encode())
    for role in (bound.model, bound.guide):
        for parameter in role.parameters() if isinstance(role, torch.nn.Module) else ():
            digest.update(
                parameter.detach()
                .cpu()
                .contiguous()
                .reshape(-1)
                .view(torch.uint8)
                .numpy()
                .tobytes()
            )
    return digest.hexdigest()
