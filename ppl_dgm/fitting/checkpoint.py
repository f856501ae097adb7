"""Checkpoint file from which a fit resumes exactly.

It goes on bit by bit; the file knows what it must to be recognised as this fit's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.fitting.batches import Batches
from ppl_dgm.fitting.learners import Learner
from ppl_dgm.program import (
    Program,
    check_space,
    check_target,
    difference,
    identify,
    read_state,
    remove_leftovers,
    write_state,
)
from ppl_dgm.program.identity import Identity, digest
from ppl_dgm.program.references import values_referred

__all__ = ["CheckpointFile", "identity_of_fit"]

COPIES = 5  # of the parameters: with the best, two moments, and the older file
_GUESSED = {"max_plate_nesting"}  # what Pyro's objectives find out at their first run


@dataclass
class CheckpointFile:
    """File with the progress of one fit.

    It is written between steps, and refused by every other fit.

    More steps, another progress bar, compile mode, device or rhythm of writing are no other fit.

    Args:
        path: the file.
        every: steps between writes.
        identity: what the fit is, in named parts.
        modules: all modules that are learned, by name.
        resume: whether to go on from the file if it exists.
    """

    path: Path
    every: int
    identity: Identity
    modules: Mapping[str, nn.Module]
    resume: bool = True
    _constants: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = check_target(self.path)
        remove_leftovers(self.path)
        tensors = (
            value for module in self.modules.values() for value in module.state_dict().values()
        )
        check_space(self.path, COPIES * sum(value.nbytes for value in tensors))

    def read(self, device: torch.device | None) -> dict[str, Any] | None:
        """Read the progress, if there is any.

        It is first checked to be this fit's.

        Raises:
            ValueError: for a file of another fit or program, or one that was damaged.
        """
        self._constants = {name: digest(value) for name, value in self._untrained().items()}
        if not (self.resume and self.path.exists()):
            return None
        content = read_state(self.path, device)
        found = difference(content.get("identity"), self.identity)
        if found:
            raise ValueError(
                f"the checkpoint {self.path} is of another fit: {found}. Use the same settings, or "
                "another file"
            )
        self._check_constants(content["constants"])
        return content

    def write(self, content: Mapping[str, Any]) -> None:
        """Write the progress to the file.

        Digests of what no step has changed so far are written with it.
        """
        now = self._untrained()
        for name in list(self._constants):
            if digest(now[name]) != self._constants[name]:
                del self._constants[name]
        extra = {"identity": self.identity, "constants": self._constants}
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

    def _untrained(self) -> dict[str, Tensor]:
        """Buffers and frozen parameters by name."""
        found: dict[str, Tensor] = {}
        for owner, module in self.modules.items():
            frozen = ((n, p) for n, p in module.named_parameters() if not p.requires_grad)
            found |= {
                f"{owner}: {name}": value for name, value in (*frozen, *module.named_buffers())
            }
        return found


def identity_of_fit(
    program: Program,
    objective: Any,
    batches: Batches,
    valid: Batches | None,
    learners: tuple[Learner, ...],
    **settings: Any,
) -> Identity:
    """What must agree for a checkpoint to be this fit's."""
    parts = {"seed": batches.seed, "batch_size": batches.batch_size, **settings}
    parts |= _arguments("data", batches) | (_arguments("validation data", valid) if valid else {})
    parts |= {f"objective: {name}": value for name, value in _settings(objective).items()}
    for role, fn in (("model", program.model), ("guide", program.guide)):
        values = values_referred(getattr(fn, "fn", fn))
        parts |= {f"{role}: {name}": value for name, value in values.items()}
    for learner in learners:
        of = f" of {learner.name}" if len(learners) > 1 else ""
        parts |= {name + of: value for name, value in _ways(learner).items()}
    return identify(parts)


def _arguments(role: str, batches: Batches) -> dict[str, Any]:
    named = {**dict(enumerate(batches.args)), **batches.kwargs}
    return {f"{role}: argument {name}": value for name, value in named.items()}


def _settings(objective: Any) -> dict[str, Any]:
    """Class and settings of an objective, not what it learns."""
    found = {
        name: value
        for name, value in vars(objective).items()
        if not name.startswith("_") and not isinstance(value, (Tensor, nn.Module))
    }
    return {"kind": type(objective).__name__} | {
        name: value for name, value in found.items() if name not in _GUESSED
    }


def _ways(learner: Learner) -> dict[str, Any]:
    """Describe how a learner makes its steps.

    The description has optimiser, rates, schedule, clipping and steps in a round.
    """
    groups = learner.optimizer.param_groups
    rates = [{name: v for name, v in group.items() if name != "params"} for group in groups]
    scheduler = learner.scheduler
    follows = vars(scheduler) if scheduler is not None else {}
    return {
        "optimizer": type(learner.optimizer).__name__,
        **(rates[0] if len(rates) == 1 else {"rates": rates}),
        "schedule": None if scheduler is None else type(scheduler).__name__,
        "settings of the schedule": {
            name: value for name, value in follows.items() if name != "optimizer" and name[0] != "_"
        },
        "clip_norm": learner.stepper.clip_norm,
        "autocast": str(learner.stepper.loss.autocast),
        "steps in a round": learner.num_steps,
        "dtypes": sorted({str(p.dtype) for group in groups for p in group["params"]}),
    }
