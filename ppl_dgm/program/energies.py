"""Energies: factors that depend on the data.

They make the density of the data unnormalised.
"""

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_dgm.program.isolation import repeatable
from ppl_dgm.program.log_densities import log_prob_of
from ppl_dgm.program.seeding import seeded
from ppl_dgm.program.sites import is_deterministic, is_factor, random_sites

__all__ = ["find_energies"]

NUM_REDRAWS = 3  # other data, in one of which an energy shows itself


class Redraw(Messenger):
    """Pyro handler that gives observed sites other values.

    They are draws, or the data in reverse order where a site cannot be drawn.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] or is_deterministic(msg) or is_factor(msg):
            return
        try:
            with seeded(self.seed, msg["value"].device):  # dropout after it is as in other runs
                msg["value"] = msg["fn"].sample()
        except NotImplementedError:
            msg["value"] = msg["value"].flip(0) if msg["value"].dim() else msg["value"]


def find_energies(model: Any, trace: Any, args: tuple, kwargs: Any) -> tuple[str, ...]:
    """Find the factors that depend on observed values.

    The latents are held fixed.
    """
    if not factor_values(trace) or all(
        is_factor(s) or not s["is_observed"] for _, s in random_sites(trace)
    ):
        return ()

    def factors() -> dict[str, Tensor]:
        with repeatable(model):  # running statistics and dropout are no dependence on the data
            replayed = poutine.trace(poutine.replay(model, trace=trace))
            return factor_values(replayed.get_trace(*args, **kwargs))

    steady = factors()
    moved: set[str] = set()
    for seed in range(NUM_REDRAWS):
        with Redraw(seed):
            again = factors()
        moved |= {name for name, value in steady.items() if differs(value, again.get(name))}
    return tuple(name for name in steady if name in moved)


def factor_values(trace: Any) -> dict[str, Tensor]:
    """Return the log factors of a trace by name."""
    return {name: log_prob_of(site, 1.0) for name, site in random_sites(trace) if is_factor(site)}


def differs(value: Tensor, other: Tensor | None) -> bool:
    """Return whether a factor is another one."""
    return other is None or value.shape != other.shape or not torch.equal(value, other)
