"""Pyro's NeuTra with a latent that has a density.

Pyro masks the shared latent z and gives the density at it, Jacobian included, to the first of the
model's sites: then draws of z from its law have no weight, the Jacobian counts once for each entry
of a site in a plate, and a Jacobian of several entries, that of `AutoDiagonalNormal`, makes the
site count as often. Here z keeps its law, whose density is taken back where the Jacobian is added,
and both count once: where Pyro is right, the joint density is Pyro's.
"""

import math
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.reparam import NeuTraReparam
from pyro.poutine.plate_messenger import block_plate
from torch import Tensor
from torch.distributions import biject_to

__all__ = ["apply_with_density"]

_APPLY = NeuTraReparam.apply


def apply_with_density(self: Any, msg: Any) -> Any:
    """Reparametrise a site, in place of `NeuTraReparam.apply`."""
    name, fn, sites = msg["name"], msg["fn"], self.guide.prototype_trace.nodes
    if msg["is_observed"] or name not in sites:
        return _APPLY(self, msg)
    once: Any = 0.0
    if name not in self.x_unconstrained:
        once = _share(self, msg)
    _, unconstrained = self.x_unconstrained.pop(name)
    transform = biject_to(fn.support)
    value: Any = transform(unconstrained)
    log_density: Any = 0.0
    if poutine.get_mask() is not False:
        slope = transform.log_abs_det_jacobian(unconstrained, value)
        slope = sum_rightmost(slope, slope.dim() - value.dim() + fn.event_dim)
        entries = math.prod(f.full_size for f in sites[name]["cond_indep_stack"] if f.vectorized)
        log_density = fn.log_prob(value) + slope + once / entries
    law = dist.Delta(value, log_density, event_dim=fn.event_dim)
    return {"fn": law, "value": value, "is_observed": True}


def _share(self: Any, msg: Any) -> Tensor:
    """Draw z for all sites.

    The result is its log Jacobian less its own log density.
    """
    try:
        self.transform = self.guide.get_transform()
    except (NotImplementedError, TypeError):
        _APPLY(self, msg)  # raises its own error
    base = self.guide.get_base_dist()
    with ExitStack() as stack:
        for plate in self.guide.plates.values():
            stack.enter_context(block_plate(dim=plate.dim, strict=False))
        z: Any = pyro.sample(f"{msg['name']}_shared_latent", base)
    x = self.transform(z)
    self.x_unconstrained = {site["name"]: (site, v) for site, v in self.guide._unpack_latent(x)}
    slope = self.transform.log_abs_det_jacobian(z, x)
    return sum_rightmost(slope, slope.dim() - z.dim() + 1) - base.log_prob(z)
