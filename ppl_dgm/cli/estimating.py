"""Estimators by the names they have on the command line."""

from collections.abc import Callable

from ppl_dgm.cli.loading import arguments
from ppl_dgm.data import Dataset
from ppl_dgm.evidence import ELBO, Estimator, Evidence, Exact, ImportanceSampling, Laplace, PriorSampling
from ppl_dgm.program import Program

ESTIMATORS: dict[str, Callable[[int], Estimator] | None] = {
    "auto": None,
    "exact": lambda particles: Exact(),
    "importance": ImportanceSampling,
    "prior": PriorSampling,
    "elbo": ELBO,
    "laplace": lambda particles: Laplace(),
}


def estimate(program: Program, data: Dataset | None, name: str, particles: int, seed: int) -> Evidence:
    """The evidence of a program by the estimator of that name."""
    args, kwargs = arguments(data)
    make = ESTIMATORS[name]
    if make is not None:
        return make(particles)(program, *args, seed=seed, **kwargs)
    try:
        return Exact()(program, *args, seed=seed, **kwargs)
    except ValueError as error:
        if "closed form" not in str(error):
            raise
        return ImportanceSampling(particles)(program, *args, seed=seed, **kwargs)
