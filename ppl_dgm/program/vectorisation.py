"""Choice of a correct way to run many particles.

Each way is tested against single runs.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from typing import Any

import torch

from ppl_dgm.program.arguments import tensors_of
from ppl_dgm.program.bound_program import Bound
from ppl_dgm.program.sites import random_sites
from ppl_dgm.program.structure import Structure, Way

__all__ = ["prove_vectorisation"]

PROOF_PARTICLES = 3  # at least
TOGETHER: tuple[tuple[Way, Way], ...] = (
    ("plate", "plate"),
    ("plate", "vmap"),
    ("vmap", "vmap"),
    ("vmap", "plate"),
)
ONE_BY_ONE: tuple[tuple[Way, Way], ...] = (
    ("plate", "loop"),
    ("vmap", "loop"),
    ("loop", "plate"),
    ("loop", "vmap"),
    ("loop", "loop"),
)


def prove_vectorisation(bound: Bound, *traces: Any) -> Structure:
    """Find the fastest correct way to run many particles.

    A way is correct if it gives what single runs give. The structure is returned with that way set.
    The traces, of model and guide, tell the sizes of what they draw.

    Raises:
        ValueError: where even two single runs at the same latents differ, or a single run fails.
    """
    if not bound.structure.latents:
        return bound.structure
    failures: dict[str, str] = {}
    particles = proof_particles(bound, traces)
    together = TOGETHER
    if not bound.structure.has_guide:  # draws run the model too, and its way may waste memory
        together = tuple(sorted(TOGETHER, key=lambda way: way[0] != way[1]))
    for guide_runs, model_runs in (*together, *ONE_BY_ONE):
        structure = replace(bound.structure, guide_runs=guide_runs, model_runs=model_runs)
        error = failure_of(replace(bound, structure=structure), particles)
        if not error and "loop" in (guide_runs, model_runs):
            scored = structure.observed or structure.factors  # else nobody asks for particles
            return replace(structure, slow=reason(failures)) if scored else structure
        if not error:
            return structure
        failures[f"guide by {guide_runs}, model by {model_runs}"] = error
    raise ValueError(
        "the density of the program is random itself, or fails: single runs at the same latents "
        f"disagree ({error}). Draw what is random by pyro.sample, mark it as a latent, or give "
        "every run the same noise"
    )


def proof_particles(bound: Bound, traces: Iterable[Any]) -> int:
    """Choose a number of particles that equals no tensor size.

    Otherwise particles in the place of rows would pass the test.
    """
    drawn = [site["value"] for trace in traces for _, site in random_sites(trace)]
    tensors = (*tensors_of(bound.args, bound.kwargs), *drawn)
    sizes = {size for tensor in tensors for size in tensor.shape}
    return next(number for number in count(PROOF_PARTICLES) if number not in sizes)


def reason(failures: dict[str, str]) -> str:
    """Explain in one line why particles run one by one."""
    together = (error for way, error in failures.items() if "loop" not in way)
    told = "; ".join(dict.fromkeys(error[:120] for error in together))
    return (
        "particles are run one by one, which is slow: neither inside an outer plate nor under "
        f"torch.func.vmap does the program give what single runs give ({told}). Let its operations "
        "broadcast over dimensions on the left, e.g. (w * x).sum(-1) in place of x @ w"
    )


def failure_of(bound: Bound, particles: int) -> str:
    """Describe what is wrong with a way of running particles.

    The text is empty where nothing is wrong.
    """
    try:
        return vectorisation_error(bound, particles)
    except Exception as failure:  # the user's own code may raise anything
        return f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"


def vectorisation_error(bound: Bound, particles: int) -> str:
    """Compare log densities of particles run together and alone.

    The text is empty where they agree.
    """
    values = bound.draw(particles).values
    together = (bound.log_joint(values).total, bound.log_guide(values))
    for i in range(PROOF_PARTICLES):  # of them
        one = {
            name: value[i] if bound.structure.find(name) else value
            for name, value in values.items()
        }
        alone = bound.log_densities_of_one(one)
        for name, many, single in zip(("model", "guide"), together, alone, strict=True):
            if many[i].shape != single.shape or not torch.allclose(
                many[i], single, 1e-3, 1e-3, equal_nan=True
            ):
                return f"log density of the {name} differs"
    return ""
