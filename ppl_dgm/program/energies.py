"""Energies: factors that depend on the data.

They make the density of the data unnormalised.
"""

from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_dgm.program.isolation import repeatable
from ppl_dgm.program.log_densities import log_prob_of
from ppl_dgm.program.seeding import seeded
from ppl_dgm.program.sites import is_deterministic, is_factor, random_sites

__all__ = ["find_energies"]

NUM_REDRAWS = 3  # other data, in one of which an energy shows itself


class Redraw(Messenger):
    """Pyro handler that gives observed sites other values.

    They are draws, or the data in reverse order where a site cannot be drawn. Real ones are leaves
    of the graph of gradients, which are kept in `leaves`.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.leaves: list[Tensor] = []
        self.given: list[Tensor] = []  # to the model, as arguments

    def _pyro_sample(self, msg: Any) -> None:
        if is_seen(msg) and not any(msg["value"] is value for value in self.given):
            msg["value"] = self.redrawn(msg)

    def redrawn(self, site: Any) -> Tensor:
        """Return another value of a site."""
        value = site["value"]
        try:
            with seeded(self.seed, value.device):  # dropout after it is as in other runs
                value = site["fn"].sample()
        except NotImplementedError:
            value = value.flip(0) if value.dim() else value
        if not value.is_floating_point():
            return value
        self.leaves.append(value.detach().requires_grad_())
        return self.leaves[-1].clone()  # which the model may write to

    def exchanged(self, trace: Any, args: tuple, kwargs: Any) -> tuple[tuple, Any]:
        """Return arguments, those that a site observes redrawn."""
        leaves, spec = tree_flatten((args, dict(kwargs)))
        for site in (site for _, site in random_sites(trace) if is_seen(site)):
            for place, leaf in enumerate(leaves):
                if leaf is site["value"]:
                    leaves[place] = self.redrawn(site)
                    self.given.append(leaves[place])
        return tree_unflatten(leaves, spec)


def is_seen(site: Any) -> bool:
    """Return whether a site has data of a distribution."""
    return site["is_observed"] and not is_deterministic(site) and not is_factor(site)


def find_energies(model: Any, trace: Any, args: tuple, kwargs: Any) -> tuple[str, ...]:
    """Find the factors that depend on observed values.

    The latents are held fixed. Dependence is a change of the factor with the values, or a gradient
    that parameters can change, as that of a net whose last layer is zero. Values are exchanged at
    their sites and in the arguments that are observed as they are.
    """
    if not factor_values(trace) or not any(is_seen(site) for _, site in random_sites(trace)):
        return ()

    def factors(redraw: Redraw | None) -> dict[str, Tensor]:
        given = (args, kwargs) if redraw is None else redraw.exchanged(trace, args, kwargs)
        with repeatable(model):  # running statistics and dropout are no dependence on the data
            replayed = poutine.trace(poutine.replay(model, trace=trace))
            with redraw or nullcontext():
                return factor_values(replayed.get_trace(*given[0], **given[1]))

    steady = factors(None)
    moved: set[str] = set()
    for seed in range(NUM_REDRAWS):
        redraw = Redraw(seed)
        with torch.enable_grad():
            again = factors(redraw)
            moved |= {
                name
                for name, value in steady.items()
                if differs(value, again.get(name)) or leads(redraw.leaves, again[name])
            }
    return tuple(name for name in steady if name in moved)


def leads(leaves: list[Tensor], value: Tensor) -> bool:
    """Return whether a factor's gradient in data depends on parameters."""
    if not leaves or not value.requires_grad:
        return False
    try:
        found = torch.autograd.grad(value.sum(), leaves, create_graph=True, allow_unused=True)
    except RuntimeError:  # the value has been written to, or has no second derivative
        return False
    return any(gradient is not None and gradient.requires_grad for gradient in found)


def factor_values(trace: Any) -> dict[str, Tensor]:
    """Return the log factors of a trace by name."""
    return {name: log_prob_of(site, 1.0) for name, site in random_sites(trace) if is_factor(site)}


def differs(value: Tensor, other: Tensor | None) -> bool:
    """Return whether a factor is another one."""
    return other is None or value.shape != other.shape or not torch.equal(value, other)
