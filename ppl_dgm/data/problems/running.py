"""Runs of estimators on problems, and their errors."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.data.problems.problem import FLOAT, Problem
from ppl_dgm.evidence.result import Evidence
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.effort import limited_effort
from ppl_dgm.sampling.unconstrained import Unconstrained

__all__ = ["Outcome", "Vectors", "run_problem", "summarise", "vectors"]

MISS = 0.02  # nats
DIGITS = 1e-5  # nats, to which truths and rows are known


@dataclass(frozen=True)
class Outcome:
    """What one estimator gave for one problem and seed.

    Attributes:
        problem: its name.
        estimator: its name.
        seed: that it was given.
        status: `"fine"`, `"alarm"` (the estimator itself calls the number unreliable), `"raised"`
            or `"late"` (stopped by whoever ran it).
        log_z: nats; NaN where there is none.
        std_error: as the estimator says.
        seconds: of processor time.
        text: warnings, or the error.
        truth: log evidence of the problem.
        reference_error: standard error of the truth.
        densities: that were evaluated, of one point and one datum each; NaN where not counted.
    """

    problem: str
    estimator: str
    seed: int
    status: str
    log_z: float
    std_error: float
    seconds: float
    text: str
    truth: float
    reference_error: float = 0.0
    densities: float = math.nan

    @property
    def error(self) -> float:
        """log_z less the truth, in nats."""
        return self.log_z - self.truth

    @property
    def scale(self) -> float:
        """Standard error of `error`."""
        return math.hypot(self.std_error, self.reference_error)

    @property
    def covered(self) -> bool:
        """Whether the truth is within two standard errors."""
        return abs(self.error) <= 2 * self.scale + DIGITS

    @property
    def missed(self) -> bool:
        """Whether it is far off without alarm: a silent miss."""
        return self.status == "fine" and not abs(self.error) <= max(MISS, 4 * self.scale)


@checked
def run_problem(
    problem: Problem,
    estimator: Callable[..., Evidence | float | tuple[float, float]],
    seed: int = 0,
    name: str | None = None,
) -> Outcome:
    """Give a problem to an estimator.

    Args:
        problem: the problem.
        estimator: called as `estimator(program, *args, seed=seed)`; returns an `Evidence`, a number
            of nats, or a number and its standard error. One of another library needs a few lines
            around it, see `vectors`.
        seed: handed on.
        name: of the estimator, in tables; its own by default.

    Returns:
        The outcome; an error that the estimator raises is its text.

    Example:
        >>> from ppl_dgm.data import problems
        >>> from ppl_dgm.evidence import Laplace
        >>> found = problems.run_problem(problems.load("bs_betabinomial_tutorial"), Laplace())
        >>> found.status, abs(found.error) < 0.05
        ('fine', True)
    """
    kind = getattr(estimator, "__name__", type(estimator).__name__)
    start = time.process_time()
    with limited_effort(math.inf) as effort:
        status, log_z, std_error, text = told_by(problem, estimator, seed)
    return Outcome(
        problem=problem.name,
        estimator=name or kind,
        seed=seed,
        status=status,
        log_z=log_z,
        std_error=std_error,
        seconds=time.process_time() - start,
        text=text,
        truth=problem.log_z,
        reference_error=problem.reference_error,
        densities=effort.spent or math.nan,
    )


def told_by(
    problem: Problem, estimator: Callable[..., Any], seed: int
) -> tuple[str, float, float, str]:
    """Return status, number, standard error and text of a run."""
    try:
        found = estimator(problem.program(), *problem.args, seed=seed)
        if isinstance(found, Evidence):
            text = "; ".join([found.estimator, *found.warnings])
            status = "fine" if found.reliable else "alarm"
            return status, float(found.total), float(found.total_std_error), text
        log_z, std_error = found if isinstance(found, Sequence) else (found, 0.0)
        return "fine", float(log_z), float(std_error), ""
    except Exception as error:  # whatever stops an estimator is its outcome
        return "raised", math.nan, math.nan, f"{type(error).__name__}: {error}"


def summarise(outcomes: Iterable[Outcome]) -> Any:
    """Tabulate outcomes over seeds.

    There is a row for each problem and estimator.

    Returns:
        A pandas DataFrame: `seeds`; `bias`, the mean error of runs with a number, and `bias_error`,
        its standard error; `std_error`, the mean of those told; `covered`, runs within two standard
        errors; `numbers`, runs with a number; `alarms` (and errors); `missed`, silent misses;
        `late`; `seconds` and `densities`, medians.
    """
    import pandas as pd  # noqa: PLC0415 - heavy, and problems are mostly used without

    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.problem, outcome.estimator), []).append(outcome)
    rows = {key: figures(group) for key, group in groups.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.MultiIndex.from_tuples(rows, names=["problem", "estimator"])
    return frame


def figures(group: Sequence[Outcome]) -> dict[str, float]:
    """The row of one problem and estimator."""
    known = [one for one in group if math.isfinite(one.error)]
    errors, times = [one.error for one in known], [o.seconds for o in group if o.status != "late"]
    counts = [one.densities for one in group if math.isfinite(one.densities)]
    return {
        "seeds": len(group),
        "bias": fmean(errors) if known else math.nan,
        "bias_error": stdev(errors) / len(errors) ** 0.5 if len(known) > 1 else math.nan,
        "std_error": fmean(one.scale for one in known) if known else math.nan,
        "covered": sum(one.covered for one in known),
        "numbers": len(known),
        "alarms": sum(one.status in ("alarm", "raised") for one in group),
        "missed": sum(one.missed for one in known),
        "late": sum(one.status == "late" for one in group),
        "seconds": median(times) if times else math.nan,
        "densities": median(counts) if counts else math.nan,
    }


class Vectors:
    """A problem as functions of vectors, for other libraries.

    All latents are one vector of real numbers without constraints, `[points, dim]` in NumPy.

    Attributes:
        dim: its length.
    """

    def __init__(self, target: Unconstrained) -> None:
        self._target = target
        self.dim: int = target.batch.numel() * target.dim

    def log_prior(self, points: NDArray[Any]) -> NDArray[Any]:
        """Log prior density of points, in nats: `[points]`."""
        return self._summed(self._target.split(self._points(points)).prior)

    def log_likelihood(self, points: NDArray[Any]) -> NDArray[Any]:
        """Log likelihood at points, in nats: `[points]`."""
        return self._summed(self._target.split(self._points(points)).likelihood)

    def sample_prior(self, num_points: int, seed: int = 0) -> NDArray[Any]:
        """Draw points from the prior."""
        with seeded(seed, self._target.device), torch.no_grad():
            return self._target.sample_prior(num_points).reshape(num_points, -1).numpy()

    def _points(self, points: NDArray[Any]) -> Tensor:
        shape = (-1, *self._target.batch, self._target.dim)
        return torch.as_tensor(np.asarray(points), dtype=FLOAT).reshape(shape)

    def _summed(self, density: Tensor) -> NDArray[Any]:
        return density.detach().reshape(len(density), -1).sum(-1).numpy()


@checked
def vectors(problem: Problem) -> Vectors:
    r"""View a problem as functions of unconstrained vectors.

    $Z = \int \pi(y) L(y)\, \mathrm d y$ with the prior density $\pi$, its Jacobian included, and
    the likelihood L.

    Raises:
        ValueError: for a problem with discrete latents.

    Example:
        >>> import numpy as np
        >>> from ppl_dgm.data import problems
        >>> problem = problems.load("bs_hier_normal_H0")
        >>> def by_hand(program, *args, seed):  # any library's estimator of an integral
        ...     target = problems.vectors(problem)
        ...     values = target.log_likelihood(target.sample_prior(20_000, seed))
        ...     return np.logaddexp.reduce(values) - np.log(len(values)), 0.1
        >>> abs(problems.run_problem(problem, by_hand).error) < 0.5
        True
    """
    return Vectors(Unconstrained(problem.program().bind(*problem.args).in_double()))
