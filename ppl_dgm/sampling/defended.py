"""Importance sampling from a proposal mixed with the prior.

The proposal is fitted. The prior is a defence against what it leaves out.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.sampling.chains import evaluate
from ppl_dgm.sampling.convergence import student_factor
from ppl_dgm.sampling.proposals import Fitted
from ppl_dgm.sampling.unconstrained import Unconstrained
from ppl_dgm.sampling.weight_summary import WeightSummary

__all__ = ["Weighted", "defended_weights", "mixture_densities", "mixture_weights"]

LEAST_FREE = 1e-9  # of a draw, where the others leave the line to it alone
POINT_COPIES = 8  # tensors of the points' size that a chunk of draws holds at once


class Weighted(NamedTuple):
    """Log weights `[n, *batch]` of draws from proposal and prior.

    The last `num_prior` draws are from the prior.

    `log_control` `[n, *batch]` is the log ratio of a normalised density to the proposal mixed with
    the prior; zero where none was given. `at_edge` tells which draws lie at the edge of floats.
    `points` are the draws `[n, *batch, dim]`, or None where they were not kept.
    """

    log_weights: Tensor
    log_control: Tensor
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
    def estimate(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log mean weight, its standard error and skewness.

        Each is `[*batch]`, the first two in nats.
        """
        largest = self.log_weights.amax(0).clamp_min(torch.finfo(self.log_weights.dtype).min)
        weights, control = (self.log_weights - largest).exp(), self.log_control.exp()
        mean, error, skewness = controlled_mean(weights, control, self.num_prior)
        return largest + mean.log(), error / mean, skewness

    def summarise(self) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Compute log Z, its standard error and diagnostics.

        The first two are `[*batch]`. `prior_share` is the share of the weights that prior draws
        add.
        """
        summary = WeightSummary(len(self.log_weights))
        summary.add(self.log_weights)
        share = self.log_weights.softmax(0)
        log_z, error, skewness = self.estimate
        diagnostics = {
            "num_particles": len(self.log_weights),
            "edge_share": (share * self.at_edge).sum(0).nan_to_num(0.0),
            "ess": summary.ess,
            "pareto_k": summary.pareto_k,
            "skewness": skewness,
            "prior_share": share[len(share) - self.num_prior :].sum(0),
        }
        return log_z, error, diagnostics


def defended_weights(
    target: Unconstrained,
    proposal: Fitted,
    num: int,
    share: float,
    memory: int,
    keep_points: bool = False,
    control: Fitted | None = None,
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
        control: a normalised density that is nearly the posterior's, as a control variate.
    """
    num_prior = math.ceil(share * num)
    size = max(1, int(memory / (8 * POINT_COPIES * target.dim * math.prod(target.batch))))
    weights, points, edges, controls = [], [], [], []
    for source, count in ((proposal.sample, num - num_prior), (target.sample_prior, num_prior)):
        for done in range(0, count, size):
            point = source(min(size, count - done)).to(target.dtype)
            log_p, log_q = mixture_densities(target, proposal, point, num_prior / num, memory)
            weights.append(ratio(log_p, log_q))
            edges.append(target.at_edge(point))
            points.extend([point] if keep_points else [])
            log_n = log_q if control is None else control.log_prob(point.double())
            controls.append(ratio(log_n, log_q))
    kept = torch.cat(points) if keep_points else None
    return Weighted(torch.cat(weights), torch.cat(controls), num_prior, torch.cat(edges), kept)


def mixture_weights(
    target: Unconstrained, proposal: Fitted, points: Tensor, share: float, memory: int
) -> Tensor:
    """Compute log weights against the mixture of proposal and prior.

    They are `[n, *batch]`.
    """
    return ratio(*mixture_densities(target, proposal, points, share, memory))


def mixture_densities(
    target: Unconstrained, proposal: Fitted, points: Tensor, share: float, memory: int
) -> tuple[Tensor, Tensor]:
    """Compute log densities of joint and of mixed proposal.

    Both are `[n, *batch]`.
    """
    densities = evaluate(lambda part: torch.stack(target.split(part), -1), points, memory)
    prior, likelihood = densities.unbind(-1)
    log_q = proposal.log_prob(points.double()).double() + math.log1p(-share)
    if share > 0:
        log_q = torch.logaddexp(log_q, prior + math.log(share))
    return prior + likelihood, log_q


def ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Log ratio of densities, -inf where undefined."""
    return (log_p - log_q).nan_to_num(nan=-torch.inf, posinf=-torch.inf)


class Mean(NamedTuple):
    """Mean of weights, its standard error and skewness, `[*batch]`."""

    mean: Tensor
    std_error: Tensor
    skewness: Tensor


def controlled_mean(weights: Tensor, control: Tensor, num_last: int) -> Mean:
    """Mean of weights `[n, *batch]` and its standard error.

    The control variate is used where its error is the smaller one: a line through few draws may be
    worse than none.
    """
    plain = regressed_mean(weights, torch.ones_like(control), num_last)
    moved = regressed_mean(weights, control, num_last)
    better = (moved.mean > 0) & (moved.std_error < plain.std_error)
    return Mean(*(torch.where(better, *both) for both in zip(moved, plain, strict=True)))


def regressed_mean(weights: Tensor, control: Tensor, num_last: int) -> Mean:
    r"""Mean of weights under a control variate, and its error.

    A normalised density n has $\mathbb E_q[n / q] = 1$. What the mean of n / q over the draws is
    away from one, that of the weights is too, as far as both go together: little error is left
    where n is nearly the posterior. Owen and Zhou (2000), "Safe and effective importance sampling".

    Weights are `[n, *batch]`; the last `num_last` are a sample of their own. The error is the
    jackknife's of the regression: each draw is held against the line through the others (Hinkley
    1977), since a line through few draws runs close to all, and to a lone one through it. What it
    leaves of the weights may be more skewed than they are, and makes the skewness, of 0 to 1.
    """
    own, other = (centred(part, num_last) for part in (weights, control))
    square = other.square().sum(0)
    slope = ((own * other).sum(0) / square).nan_to_num(0.0, 0.0, 0.0)
    away = control.mean(0) - 1
    size = sizes(weights, num_last)
    leverage = 1 / size + (other.square() / square).nan_to_num(0.0, 0.0, 0.0)
    counted = 1 / len(weights) - (away * other / square).nan_to_num(0.0, 0.0, 0.0)
    without = counted * (own - slope * other) / (1 - leverage).clamp_min(LEAST_FREE)
    variance = ((1 - 1 / size) * without.square()).sum(0)
    skewness = (without.pow(3).sum(0) / without.square().sum(0) ** 1.5).nan_to_num(0.0).clamp(0, 1)
    few = student_factor(max(len(weights) - 2, 2))  # both means and the slope are fitted
    return Mean(weights.mean(0) - slope * away, few * variance.sqrt(), skewness)


def sizes(values: Tensor, num_last: int) -> Tensor:
    """Size of each draw's sample, `[n, *1]`."""
    counts = torch.tensor([len(values) - num_last, num_last], device=values.device)
    return counts.repeat_interleave(counts).double().reshape(-1, *[1] * (values.dim() - 1))


def centred(values: Tensor, num_last: int) -> Tensor:
    """Subtract the means of both samples from values `[n, *batch]`."""
    parts = values.split([len(values) - num_last, num_last])
    return torch.cat([part - part.mean(0) for part in parts if len(part)])
