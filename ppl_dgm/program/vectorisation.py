"""Prove how many particles of a program can be run at once."""

from dataclasses import replace

import torch

from ppl_dgm.program.bound_program import Bound
from ppl_dgm.program.structure import Structure, Way

PROOF_PARTICLES = 3
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


def prove_vectorisation(bound: Bound) -> Structure:
    """Return the structure with the fastest way of running many particles that gives what single runs give.

    Raises:
        ValueError: where even two single runs at the same latents differ, or a single run fails.
    """
    if not bound.structure.latents:
        return bound.structure
    failures: dict[str, str] = {}
    for guide_runs, model_runs in (*TOGETHER, *ONE_BY_ONE):
        structure = replace(bound.structure, guide_runs=guide_runs, model_runs=model_runs)
        error = failure_of(replace(bound, structure=structure))
        if not error and "loop" in (guide_runs, model_runs):
            return replace(structure, slow=reason(failures))
        if not error:
            return structure
        failures[f"guide by {guide_runs}, model by {model_runs}"] = error
    raise ValueError(
        f"the density of the program is random itself, or fails: single runs at the same latents disagree ({error}). Draw "
        "what is random by pyro.sample, mark it as a latent, or give every run the same noise"
    )


def reason(failures: dict[str, str]) -> str:
    """Why the program is run one particle at a time, in one line."""
    together = (error for way, error in failures.items() if "loop" not in way)
    told = "; ".join(dict.fromkeys(error[:120] for error in together))
    return (
        "particles are run one by one, which is slow: neither inside an outer plate nor under "
        f"torch.func.vmap does the program give what single runs give ({told}). Let its operations "
        "broadcast over dimensions on the left, e.g. (w * x).sum(-1) in place of x @ w"
    )


def failure_of(bound: Bound) -> str:
    """What is wrong with a way of running particles; empty where nothing is."""
    try:
        return vectorisation_error(bound)
    except Exception as failure:  # the user's own code may raise anything
        return f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"


def vectorisation_error(bound: Bound) -> str:
    """Compare log densities of particles run together and one by one; empty where they agree."""
    values = bound.draw(PROOF_PARTICLES).values
    together = (bound.log_joint(values).total, bound.log_guide(values))
    for i in range(PROOF_PARTICLES):
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
