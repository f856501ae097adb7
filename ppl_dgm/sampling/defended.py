"""Importance sampling from a proposal mixed with the prior.

The proposal is fitted. The prior is a defence against what it leaves out.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.sampling.chains import evaluate
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.sampling.proposals import Fitted
from ppl_dgm.sampling.unconstrained import Unconstrained
from ppl_dgm.sampling.weight_summary import WeightSummary

__all__ = ["Weighted", "defended_weights", "mixture_weights"]

POINT_COPIES = 8  # tensors of the points' size that a chunk of draws holds at once


class Weighted(NamedTuple):
    """Log weights `[n, *batch]` of draws from proposal and prior.

    The last `num_prior` draws are from the prior.

    `at_edge` tells which draws lie at the edge of floats. `points` are the draws
    `[n, *batch, dim]`, or None where they were not kept.
    """

    log_weights: Tensor
    num_prior: int
    at_edge: Tensor
    points: Tensor | None = None

    @property
    def kept(self) -> Tensor:
        """The draws.

        Raises:
            ValueError: if they were not kept.
        """
        if self.points is None:
            raise ValueError(
                "the draws were not kept; expected defended_weights(..., keep_points=True)"
            )
        return self.points

    @property
    def log_mean(self) -> Tensor:
        """Log mean weight `[*batch]`, in nats."""
        return log_mean_exp(self.log_weights)

    @property
    def std_error(self) -> Tensor:
        """Standard error of the log mean weight.

        It is `[*batch]`, in nats.
        """
        return stratified_std_error(self.log_weights, self.num_prior)

    def summarise(self) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Compute log Z, its standard error and diagnostics.

        The first two are `[*batch]`. `prior_share` is the share of the weights that prior draws
        add.
        """
        summary = WeightSummary(len(self.log_weights))
        summary.add(self.log_weights)
        share = self.log_weights.softmax(0)
        diagnostics = {
            "num_particles": len(self.log_weights),
            "edge_share": (share * self.at_edge).sum(0).nan_to_num(0.0),
            "ess": summary.ess,
            "pareto_k": summary.pareto_k,
            "skewness": summary.skewness,
            "prior_share": share[len(share) - self.num_prior :].sum(0),
        }
        return summary.log_mean_exp, self.std_error, diagnostics


def defended_weights(
    target: Unconstrained,
    proposal: Fitted,
    num: int,
    share: float,
    memory: int,
    keep_points: bool = False,
) -> Weighted:
    r"""Draw from proposal and prior, weighted by their mixture.

    Hesterberg (1995).

    $w = p(x, y) / ((1 - s) q(y) + s\, p(y))$ for a fixed number of draws from each: no part of the
    prior is left out, and weights are at most $p(x \mid y) / s$.

    Args:
        target: the program's density.
        proposal: q, in unconstrained space.
        num: draws from both together.
        share: s, of the draws that come from the prior.
        memory: bytes that evaluating densities may allocate.
        keep_points: whether to return the draws too.
    """
    num_prior = math.ceil(share * num)
    size = max(1, int(memory / (8 * POINT_COPIES * target.dim * math.prod(target.batch))))
    weights, points, edges = [], [], []
    for source, count in ((proposal.sample, num - num_prior), (target.sample_prior, num_prior)):
        for done in range(0, count, size):
            point = source(min(size, count - done)).to(target.dtype)
            weights.append(mixture_weights(target, proposal, point, num_prior / num, memory))
            edges.append(target.at_edge(point))
            points.extend([point] if keep_points else [])
    kept = torch.cat(points) if keep_points else None
    return Weighted(torch.cat(weights), num_prior, torch.cat(edges), kept)


def mixture_weights(
    target: Unconstrained, proposal: Fitted, points: Tensor, share: float, memory: int
) -> Tensor:
    """Compute log weights against the mixture of proposal and prior.

    They are `[n, *batch]`.
    """
    densities = evaluate(lambda part: torch.stack(target.split(part), -1), points, memory)
    prior, likelihood = densities.unbind(-1)
    log_q = proposal.log_prob(points.double()).double() + math.log1p(-share)
    if share > 0:
        log_q = torch.logaddexp(log_q, prior + math.log(share))
    return (prior + likelihood - log_q).nan_to_num(nan=-torch.inf, posinf=-torch.inf)


def stratified_std_error(log_weights: Tensor, num_last: int) -> Tensor:
    """Compute the standard error of a stratified log mean weight.

    Weights are `[n, *batch]`, the last `num_last` of them a sample of their own.

    The two samples' sizes are fixed, so that the difference of their means adds nothing:
    sqrt(n1 s1^2 + n2 s2^2) / n.
    """
    weights = (log_weights - log_weights.amax(0)).exp()
    parts = weights.split([len(weights) - num_last, num_last])
    spread = sum(len(part) * part.var(0) for part in parts if len(part) > 1)
    return torch.as_tensor(spread).sqrt() / weights.sum(0)
