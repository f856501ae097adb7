"""Problems of evidence with known answers.

Each is a program, its data, their log evidence, and how that is known (after posteriordb, which
collects posteriors). `load_all` gives them by name; `run_problem` gives one to an estimator, of
this library or of another, and `summarise` tells bias, coverage and misses.
"""

from functools import cache

from ppl_dgm.data.problems.densities import counted, dependent, digits, locals_and_counts
from ppl_dgm.data.problems.problem import Problem
from ppl_dgm.data.problems.published import published
from ppl_dgm.data.problems.running import Outcome, Vectors, run_problem, summarise, vectors
from ppl_dgm.data.problems.shapes import edges, large, modes, shapes

__all__ = [
    "Outcome",
    "Problem",
    "Vectors",
    "load",
    "load_all",
    "run_problem",
    "summarise",
    "vectors",
]

PARTS = (
    published,
    counted,
    digits,
    dependent,
    shapes,
    modes,
    edges,
    large,
    locals_and_counts,
)


@cache
def _collection() -> dict[str, Problem]:
    return {problem.name: problem for part in PARTS for problem in part()}


def load_all() -> dict[str, Problem]:
    """Return all problems by name.

    The first call computes their answers, some by quadrature, in a second or two.

    Example:
        >>> found = load_all()
        >>> found["banana"].log_z, found["banana"].known
        (-7.149..., 'closed form')
    """
    return dict(_collection())


def load(name: str) -> Problem:
    """Return the problem of that name.

    Raises:
        ValueError: for a name that none has.

    Example:
        >>> load("eight_schools_posteriordb").source
        'posteriordb; Rubin (1981)'
    """
    found = _collection()
    if name not in found:
        raise ValueError(f"there is no problem {name!r}; there are {', '.join(found)}")
    return found[name]
