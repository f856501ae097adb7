"""One evidence, estimated by several processes.

Data with latents of their own are divided among them. Of latents that all data share, each process
makes a part of the independent draws.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.program import Bound
from ppl_dgm.ranks import Ranks, alone, ranks_now

__all__ = ["averaged", "join_evidences", "over_ranks"]

Run = Callable[[Any, tuple, dict[str, Any], int | None], Any]
LEAST = 2  # draws of a rank, for a standard error
APART = 5.0  # standard errors between estimates of two ranks that are an alarm
MATERIAL = 0.02  # nats
_SUMS = ("ess", "num_particles", "num_chains")  # diagnostics that draws of all ranks add up to


def over_ranks(bound: Bound, seed: int | None, estimator: Any, run: Run) -> Any | None:
    """Let all ranks estimate one evidence together.

    Every rank returns the whole result; None is returned where there is one rank alone.

    Args:
        bound: the program bound to all data.
        seed: each rank draws from a seed of its own, derived from it.
        estimator: its setting `independent` counts draws whose mean is Z, if there are such.
        run: `run(estimator, args, kwargs, seed)` estimates the evidence of arguments.

    Raises:
        ValueError: where a rank raises, with its message.
    """
    ranks = ranks_now()
    if ranks.size == 1:
        return None
    structure, num_data = bound.structure, bound.num_data or 1
    each = structure.per_datum and structure.divisible and not structure.energies
    draws = getattr(estimator, "independent", None)
    own = ranks.seed(seed) if seed is not None else None
    mine = _with_own_file(estimator, ranks)
    with alone():
        if each and num_data >= ranks.size:
            part = bound.select(ranks.share(num_data))
            return join_evidences(
                bound.num_dims, bound.digest, _gathered(ranks, lambda: run(mine, *part, own))
            )
        whole = bound.args, dict(bound.kwargs)
        if draws is not None and structure.latents and structure.target == "dataset":
            number = max(LEAST, -(-getattr(estimator, draws) // ranks.size))
            fewer = replace(mine, **{draws: number})
            return averaged(_gathered(ranks, lambda: run(fewer, *whole, own)))
        return _gathered(ranks, lambda: run(mine, *whole, seed))[0]


def _with_own_file(estimator: Any, ranks: Ranks) -> Any:
    """Give an estimator a checkpoint of this rank alone."""
    path = getattr(estimator, "checkpoint", None)
    if path is None:
        return estimator
    return replace(estimator, checkpoint=f"{os.fspath(path)}.{ranks.rank}of{ranks.size}")


def _gathered(ranks: Ranks, run: Callable[[], Any]) -> list[Any]:
    """Results of all ranks, after the errors of all."""
    try:
        mine, error = run(), None
    except Exception as raised:
        mine, error = None, raised
    failed = ranks.gather(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    others = [f"rank {rank} raised {text}" for rank, text in enumerate(failed) if text is not None]
    if others:
        raise ValueError("; ".join(others))
    return ranks.gather(mine)


def join_evidences(num_dims: int, digest: str, parts: Sequence[Any]) -> Any:
    """Join evidences of disjoint parts of the data."""
    kinds, names = ({getattr(part, a): None for part in parts} for a in ("bound", "estimator"))
    return replace(
        parts[0],
        log_z=torch.cat([part.log_z for part in parts]),
        std_error=torch.cat([part.std_error for part in parts]),
        bound=next(iter(kinds)) if len(kinds) == 1 else "estimate",
        estimator="; ".join(names),
        num_dims=num_dims,
        digest=digest,
        diagnostics=_of_all(parts, torch.cat) | _places(parts) | _rounding(parts),
        warnings=_warnings(parts),
        seconds=max(part.seconds for part in parts),
    )


def averaged(parts: Sequence[Any]) -> Any:
    r"""Average independent unbiased estimates of Z.

    $\hat Z = \frac1R \sum_r \hat Z_r$; with $w_r = \hat Z_r / \sum \hat Z$ the standard error of
    its logarithm is $(\sum_r w_r^2 s_r^2)^{1/2}$.
    """
    log_z = torch.stack([part.log_z for part in parts])
    weights = log_z.softmax(0)
    errors = torch.stack([part.std_error for part in parts])
    return replace(
        parts[0],
        log_z=log_z.logsumexp(0) - math.log(len(parts)),
        std_error=(weights * errors).square().sum(0).sqrt(),
        diagnostics=_of_all(parts, _largest)
        | {n: sum(part.diagnostics[n] for part in parts) for n in _SUMS if _all_have(parts, n)},
        warnings=_warnings(parts) + _apart(log_z, errors),
        seconds=max(part.seconds for part in parts),
    )


def _apart(log_z: Tensor, errors: Tensor) -> tuple[str, ...]:
    """Warn where estimates differ by more than their errors."""
    low, high = log_z.argmin(), log_z.argmax()
    gap, error = log_z[high] - log_z[low], torch.hypot(errors[low], errors[high])
    if gap <= max(APART * float(error), MATERIAL):
        return ()
    told = f"{gap:.2g} nats, {gap / error:.2g} of their standard errors"
    return (f"estimates of two ranks differ by {told}: draws miss a part of the posterior",)


def _places(parts: Sequence[Any]) -> dict[str, Tensor]:
    """Join the places of data that were moved on."""
    sizes = [0, *(part.log_z.numel() for part in parts)]
    starts = torch.tensor(sizes).cumsum(0).tolist()
    moved = [
        part.diagnostics["moved"] + start
        for part, start in zip(parts, starts, strict=False)
        if "moved" in part.diagnostics
    ]
    return {"moved": torch.cat(moved)} if moved else {}


def _rounding(parts: Sequence[Any]) -> dict[str, float]:
    """Add the rounding errors of parts, as independent ones."""
    if not _all_have(parts, "rounding"):
        return {}
    return {"rounding": math.hypot(*(float(part.diagnostics["rounding"]) for part in parts))}


def _of_all(parts: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> dict[str, Any]:
    """Join each diagnostic.

    Where each datum has one they are joined; else the largest is kept.
    """
    found: dict[str, Any] = {}
    for name, value in parts[0].diagnostics.items():
        if not _all_have(parts, name):
            continue
        values = [part.diagnostics[name] for part in parts]
        if isinstance(value, Tensor):
            own = all(v.shape == part.log_z.shape for v, part in zip(values, parts, strict=True))
            found[name] = join(values) if own and value.dim() else _largest(values)
        elif isinstance(value, (int, float)):
            found[name] = max(values)
        elif isinstance(value, Mapping):
            found[name] = {f"rank {rank}": one for rank, one in enumerate(values)}
        else:
            found[name] = value
    return found


def _largest(values: list[Tensor]) -> Tensor:
    if any(value.shape != values[0].shape for value in values):
        return values[0]
    return torch.stack(values).amax(0)


def _all_have(parts: Sequence[Any], name: str) -> bool:
    return all(name in part.diagnostics for part in parts)


def _warnings(parts: Sequence[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(warning for part in parts for warning in part.warnings))
