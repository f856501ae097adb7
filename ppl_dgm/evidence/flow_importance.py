"""Importance sampling with a normalising flow as proposal.

The flow follows one posterior that is curved or shaped like a funnel.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.adaptive import AdaptiveImportanceSampling
from ppl_dgm.program import Bound
from ppl_dgm.sampling.flow_proposals import Defended, fit_flow_elbo
from ppl_dgm.sampling.proposals import Fitted
from ppl_dgm.sampling.student_mixtures import StudentMixture
from ppl_dgm.sampling.unconstrained import Unconstrained
from ppl_dgm.validation import check_least

__all__ = ["FlowImportanceSampling"]

DEFENCE = 0.2  # share of the draws that come from the prior
WIDE, WIDENED = 0.5, 1.3  # share of the others from the Student mixture, and its widening


@checked
@dataclass(frozen=True)
class FlowImportanceSampling(AdaptiveImportanceSampling):
    r"""Importance sampling with a flow fitted to the posterior.

    It is for posteriors that are curved or shaped like a funnel, of one data set.

    As `AdaptiveImportanceSampling`, but as many draws come from an inverse autoregressive flow in
    unconstrained space. It starts at the moments of tempered draws and maximises the evidence lower
    bound; what it leaves out in the tails is held by the mixture, widened, and by a fifth of the
    draws from the prior:

    $$\log \hat Z = \log \frac1K \sum_k \frac{p(x, z_k)}{0.4\, q(z_k) + 0.4\, t(z_k) + 0.2\,
    p(z_k)}.$$

    These draws are held out from the fit, so that the error and the Pareto k of their weights are
    those of the estimate. Costs `num_particles + num_rounds * num_fitted + 3 * num_steps *
    num_draws` densities, and the two temperings about 100 gradients for each of `num_chains`
    chains.

    Müller, McWilliams, Rousselle, Gross and Novák (2019), "Neural importance sampling"; Kingma et
    al. (2016) for the flow.

    Args:
        num_particles: draws that make the estimate.
        num_rounds: rounds of fitting the mixture.
        num_fitted: draws of each round.
        num_chains: tempered draws to begin with, and to check with.
        starts: points near modes, `[points, dim]` in unconstrained space, whose modes the mixture
            covers.
        memory: bytes that evaluating densities may allocate.
        compile: whether moves run compiled: True, False, or `"auto"`, where that pays.
        num_steps: of fitting the flow.
        num_draws: of the flow in each step.
        num_layers: of the flow.

    Raises:
        ValueError: for settings out of range, discrete latents that cannot be summed out, or
            latents of each datum.

    Example:
        >>> import math, torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def valley():
        ...     x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        ...     y = pyro.sample("y", dist.Normal(torch.zeros(()), 3.0))
        ...     pyro.factor("f", dist.Normal(x**2, 0.1).log_prob(y))
        >>> result = FlowImportanceSampling(4000, num_steps=100)(ppl_dgm.Program(valley))
        >>> x = torch.linspace(-8, 8, 4001)
        >>> f = dist.Normal(0.0, 1.0).log_prob(x) + dist.Normal(0.0, 9.01**0.5).log_prob(x**2)
        >>> bool((result.log_z - f.logsumexp(0) - math.log(0.004)).abs() < 4 * result.std_error)
        True
    """

    num_rounds: int = 1
    num_steps: int = 400
    num_draws: int = 128
    num_layers: int = 3
    defence: ClassVar[float] = DEFENCE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, num_steps=1, num_draws=2, num_layers=1)

    def check(self, bound: Bound) -> None:
        if bound.structure.per_datum:
            raise ValueError(
                "FlowImportanceSampling fits one flow and this program has an evidence for each "
                "datum; use AdaptiveImportanceSampling, which fits a mixture for each"
            )
        super().check(bound)

    def proposal_from(
        self, target: Unconstrained, mixture: StudentMixture, points: Tensor
    ) -> Fitted:
        """The flow, defended by the mixture."""
        flow = fit_flow_elbo(target, points, self.num_steps, self.num_draws, self.num_layers)
        wide = replace(mixture, scale_tril=WIDENED * mixture.scale_tril)
        return Defended(flow, wide, WIDE)
