"""Evidence from independent weighted draws.

The estimators are importance sampling, prior sampling, and the ELBO.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.compile import CompileMode
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.estimate import BoundKind, Estimate
from ppl_dgm.program import Bound
from ppl_dgm.sampling.importance import Proposal, weight_chunks
from ppl_dgm.sampling.memory import MEMORY
from ppl_dgm.sampling.reach import unreached_alarm
from ppl_dgm.sampling.weight_summary import WeightSummary

__all__ = ["ELBO", "ImportanceSampling", "PriorSampling", "weighted_estimate"]


def summarise(
    bound: Bound, num_particles: int, proposal: Proposal, memory: int, compile: CompileMode
) -> list[WeightSummary]:
    """Summarise the log weights of all data.

    Weights are streamed; there is one summary for each part of the data, in order.
    """
    summaries: dict[int, WeightSummary] = {}
    for chunk in weight_chunks(bound, num_particles, proposal, memory, compile):
        summaries.setdefault(chunk.start, WeightSummary(num_particles)).add(chunk.log_weights)
    return list(summaries.values())


def gather(summaries: list[WeightSummary], quantity: Callable[[WeightSummary], Tensor]) -> Tensor:
    """One quantity of all data: `[data]` or `[]`."""
    parts = [quantity(summary) for summary in summaries]
    return parts[0] if parts[0].dim() == 0 else torch.cat(parts)


def weighted_estimate(summaries: list[WeightSummary], num_particles: int) -> Estimate:
    """Estimate log Z from weights and their tail."""
    diagnostics = {
        "num_particles": num_particles,
        "ess": gather(summaries, lambda s: s.ess),
        "pareto_k": gather(summaries, lambda s: s.pareto_k),
        "skewness": gather(summaries, lambda s: s.skewness),
    }
    error = gather(summaries, lambda s: s.std_error)
    return Estimate(gather(summaries, lambda s: s.log_mean_exp), error, diagnostics)


@checked
@dataclass(frozen=True)
class ImportanceSampling(Estimator):
    r"""Importance sampling with the guide as proposal.

    $\log \hat Z = \log \frac1K \sum_k p(x, z_k) / q(z_k \mid x)$, consistent, and in expectation a
    lower bound that tightens with K. The standard error is the delta method's; trust it where
    Pareto k < 0.7. One call costs K runs of guide and model.

    Kloek and van Dijk (1978); Burda, Grosse and Salakhutdinov (2016), eq. 8.

    Args:
        num_particles: K, draws for each datum (or for the data set).
        memory: bytes that one chunk of draws may allocate.
        compile: whether chunks run compiled: True, False, or `"auto"`, where that pays.

    Raises:
        ValueError: for fewer than 2 particles.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> sampling = ImportanceSampling(num_particles=4000)
        >>> result = sampling(ppl_dgm.Program(model), torch.zeros(1), seed=0)
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(1))
        >>> bool((result.log_z - truth).abs() < 4 * result.std_error)
        True
    """

    num_particles: int = 1000
    memory: int = MEMORY
    compile: CompileMode = "auto"
    proposal: ClassVar[Proposal] = "guide"
    independent: ClassVar[str | None] = "num_particles"

    def __post_init__(self) -> None:
        if self.num_particles < 2:
            raise ValueError(
                f"num_particles is {self.num_particles}; expected at least 2, for a standard error"
            )
        if self.memory < 1:
            raise ValueError(f"memory is {self.memory} bytes; expected a positive number")

    def draws_from(self, bound: Bound) -> Proposal | None:
        return self.proposal

    def kind(self, bound: Bound) -> BoundKind:
        return "estimate" if bound.structure.latents else "exact"

    def estimate(self, bound: Bound) -> Estimate:
        summaries = summarise(bound, self.num_particles, self.proposal, self.memory, self.compile)
        found = weighted_estimate(summaries, self.num_particles)
        return found._replace(warnings=self._unreached(bound, summaries, found))

    def _unreached(
        self, bound: Bound, summaries: list[WeightSummary], found: Estimate
    ) -> tuple[str, ...]:
        """Warn of posterior mass that only chains reach."""
        return unreached_alarm(
            bound,
            gather(summaries, lambda s: s.largest),
            *found[:2],
            self.proposal,
            self.num_particles,
            self.memory,
        )


@checked
@dataclass(frozen=True)
class PriorSampling(ImportanceSampling):
    r"""Naive Monte Carlo with draws from the prior.

    The likelihood is averaged over the draws; a guide is ignored.

    $\log \hat Z = \log \frac1K \sum_k p(x \mid z_k)$ with $z_k \sim p(z)$. Right for priors close
    to the posterior (few, weak data); its effective sample size says so.

    Args:
        num_particles: K, draws for each datum (or for the data set).
        memory: bytes that one chunk of draws may allocate.
        compile: whether chunks run compiled: True, False, or `"auto"`, where that pays.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     pyro.sample("x", dist.Binomial(10, p), obs=x)
        >>> sampling = PriorSampling(num_particles=4000)
        >>> result = sampling(ppl_dgm.Program(model), torch.tensor(2.0), seed=0)
        >>> bool((result.log_z.exp() - 1 / 11).abs() < 0.01)
        True
    """

    proposal: ClassVar[Proposal] = "prior"

    def check(self, bound: Bound) -> None:
        if bound.structure.latents and not bool(torch.isfinite(bound.draw_prior(2).log_prob).all()):
            raise ValueError(
                "the prior has no finite density, so that nothing can be drawn from it; give the "
                "program a proper prior, or a guide and ImportanceSampling"
            )


@checked
@dataclass(frozen=True)
class ELBO(ImportanceSampling):
    r"""Evidence lower bound (ELBO), estimated by Monte Carlo.

    The bound is $\mathbb{E}_q[\log p(x, z) - \log q(z \mid x)]$.

    Its distance to log Z is KL(q || p(z | x)). Jordan et al. (1999); Kingma and Welling (2014), eq.
    3.

    Args:
        num_particles: draws for each datum (or for the data set).
        memory: bytes that one chunk of draws may allocate.
        compile: whether chunks run compiled: True, False, or `"auto"`, where that pays.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> ELBO(num_particles=100)(ppl_dgm.Program(model), torch.zeros(3), seed=0).bound
        'lower'
    """

    independent: ClassVar[str | None] = None

    def kind(self, bound: Bound) -> BoundKind:
        return "lower" if bound.structure.latents else "exact"

    def estimate(self, bound: Bound) -> Estimate:
        summaries = summarise(bound, self.num_particles, self.proposal, self.memory, self.compile)
        mean, error = (
            gather(summaries, lambda s: s.mean),
            gather(summaries, lambda s: s.mean_std_error),
        )
        return Estimate(mean, error, {"num_particles": self.num_particles})
