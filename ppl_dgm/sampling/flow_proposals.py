"""Flows fitted to a posterior, and their defence.

The posterior is that of one data set, in unconstrained space.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_dgm.sampling.effort import GRADIENT, spend
from ppl_dgm.sampling.kernels.targets import Target
from ppl_dgm.sampling.proposals import CentredFlow, Fitted, Wrapped, flow_layers
from ppl_dgm.sampling.unconstrained import Unconstrained
from ppl_dgm.transforms import Affine, MaskedAutoregressive
from ppl_dgm.transforms.bijection import push

__all__ = ["Defended", "fit_flow_elbo"]

LOG_SCALE = 2.0  # of each layer, at most
LEAST_HIDDEN = 32
RATE, LARGEST_GRADIENT = 1e-2, 10.0


@dataclass(frozen=True)
class Defended:
    r"""Mixture of a proposal and a wider one.

    Its density is $(1 - s)\, q(y) + s\, w(y)$, so that weights are at most those under w over s
    (Hesterberg 1995).

    Args:
        narrow: q.
        wide: w.
        share: s, of the draws that come from w.
    """

    narrow: Fitted
    wide: Fitted
    share: float

    def sample(self, num: int) -> Tensor:
        """Draw points `[num, dim]`, in random order."""
        wide = int((torch.rand(num) < self.share).sum())
        points = torch.cat([self.narrow.sample(num - wide), self.wide.sample(wide)])
        return points[torch.randperm(num, device=points.device)]

    def log_prob(self, point: Tensor) -> Tensor:
        """Log density of points `[n, dim]`: `[n]`, in nats."""
        narrow = self.narrow.log_prob(point).nan_to_num(nan=-torch.inf)  # overflow far out
        parts = narrow + math.log1p(-self.share), self.wide.log_prob(point) + math.log(self.share)
        return torch.logaddexp(*parts)


def autoregressive_layers(dim: int, num_layers: int) -> nn.ModuleList:
    """Create affine layers that draw in one pass each.

    They are inverse autoregressive (Kingma et al. 2016), every other one backwards through the
    dimensions; of one dimension, a spline.
    """
    if dim == 1:
        return flow_layers(1)
    hidden = [max(LEAST_HIDDEN, 2 * dim)] * 2
    orders = (range(dim)[:: 1 if place % 2 == 0 else -1] for place in range(num_layers))
    return nn.ModuleList(
        MaskedAutoregressive(dim, Affine(LOG_SCALE), hidden, order) for order in orders
    )


@torch.enable_grad()
def fit_flow_elbo(
    target: Unconstrained, draws: Tensor, num_steps: int, num_draws: int, num_layers: int
) -> Wrapped:
    r"""Fit a flow by the evidence lower bound.

    It maximises $\mathbb{E}_q[\log p(x, y) - \log q(y)]$ from the moments of posterior draws
    (Rezende and Mohamed 2015). Slopes that are not finite count as zero.

    Args:
        target: the program's density; one data set.
        draws: of the posterior, about, `[n, dim]`.
        num_steps: of Adam, its rate falling to zero.
        num_draws: of the flow in each step, whose slopes are evaluated.
        num_layers: of the flow.
    """
    flow = CentredFlow(draws, autoregressive_layers(draws.shape[-1], num_layers))
    density = Target(target.raw_split)
    optimiser = torch.optim.Adam(flow.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    for _ in range(num_steps):
        optimiser.zero_grad()
        negative_elbo(flow, density, num_draws).backward()
        nn.utils.clip_grad_norm_(flow.parameters(), LARGEST_GRADIENT)
        optimiser.step()
        schedule.step()
    return Wrapped(flow.transformed())


def negative_elbo(flow: CentredFlow, density: Target, num_draws: int) -> Tensor:
    """A loss whose gradient is that of minus the bound."""
    spend(num_draws, GRADIENT)
    noise = flow.base.sample(torch.Size((num_draws,)))
    point, log_det = push(flow.transforms(), noise, 1)
    slope = density.slope(point.detach(), point.new_ones(()))
    return -(log_det + (slope * point).sum(-1)).mean()
