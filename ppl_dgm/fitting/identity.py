"""What makes two fits the same."""

from typing import Any

from torch import Tensor, nn

from ppl_dgm.fitting.batches import Batches
from ppl_dgm.fitting.learners import Learner
from ppl_dgm.program import Program
from ppl_dgm.program.identity import Identity, identify
from ppl_dgm.program.references import values_referred

__all__ = ["identity_of_fit"]

_GUESSED = {"max_plate_nesting"}  # what Pyro's objectives find out at their first run


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
