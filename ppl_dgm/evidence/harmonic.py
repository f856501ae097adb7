"""Harmonic mean estimators of the evidence.

The harmonic mean of the likelihood fails; its learned version works.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.evidence.posterior_estimator import PosteriorEstimator, split_halves
from ppl_dgm.program import Bound
from ppl_dgm.sampling.chains import PosteriorDraws, evaluate
from ppl_dgm.sampling.convergence import chain_ess
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.sampling.student_mixtures import fit_student_mixture
from ppl_dgm.sampling.symmetries import try_mirrors
from ppl_dgm.sampling.unconstrained import Unconstrained
from ppl_dgm.sampling.weight_summary import pareto_k
from ppl_dgm.validation import check_least

__all__ = ["HarmonicMean", "LearnedHarmonicMean"]

NEARLY_NORMAL = 1e4  # degrees of freedom
UNFIT = (
    "the harmonic mean of the likelihood has infinite variance for almost every model, and its "
    "error bar is no guide; use LearnedHarmonicMean or BridgeSampling with the same draws"
)


def reciprocal_mean(draws: PosteriorDraws, log_ratio: Tensor) -> Estimate:
    """Estimate log Z by the reciprocal of a mean ratio.

    The log ratios at posterior draws are `[chains * draws, *batch]` in nats; the standard error is
    estimated too.
    """
    centred = (log_ratio - log_ratio.amax(0)).exp()
    ess = (
        chain_ess(centred.unflatten(0, draws.points.shape[:2]))
        if draws.ess is None
        else draws.ess / 2
    )
    relative = centred.var(0) / centred.mean(0).square() / ess
    diagnostics = draws.diagnostics | {"ess": ess, "pareto_k": pareto_k(log_ratio)}
    return Estimate(-log_mean_exp(log_ratio), relative.log1p().sqrt(), diagnostics, draws.warnings)


@checked
@dataclass(frozen=True)
class HarmonicMean(PosteriorEstimator):
    r"""Harmonic mean of the likelihood, an unreliable estimator.

    The mean over posterior draws is known to fail. It is here for comparison, with a warning.

    $1 / \hat Z = \mathbb{E}_{p(z \mid x)}[1 / p(x \mid z)]$. The variance is infinite unless the
    posterior's tails are as heavy as the prior's, and the number is too high in practice. Always
    marked unreliable.

    Newton and Raftery (1994); Neal's reply in the same discussion: "the worst Monte Carlo method
    ever".

    Args:
        posterior, num_draws, num_chains, num_warmup, num_leapfrog, memory: where the draws come
            from, see `PosteriorEstimator`.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> generator = torch.Generator().manual_seed(0)
        >>> posterior = {"mu": 0.5**0.5 * torch.randn(2, 50, generator=generator)}
        >>> HarmonicMean(posterior=posterior)(ppl_dgm.Program(model), torch.zeros(1)).reliable
        False
    """

    def estimate_part(self, bound: Bound) -> Estimate:
        target = Unconstrained(bound)
        draws = self.posterior_draws(target)
        log_likelihood = evaluate(
            lambda point: target.split(point).likelihood, draws.flat, self.memory
        )
        estimate = reciprocal_mean(draws, -log_likelihood)
        return estimate._replace(warnings=(UNFIT, *estimate.warnings))


@checked
@dataclass(frozen=True)
class LearnedHarmonicMean(PosteriorEstimator):
    r"""Learned harmonic mean estimator of the evidence.

    A normalised density inside the posterior takes the place of the prior.

    $$\frac1Z = \mathbb{E}_{p(z \mid x)}\!\left[\frac{\varphi(z)}{p(x, z)}\right]$$

    for any normalised $\varphi$. A mixture of normals is fitted to half of the draws and its scales
    are shrunk, so that $\varphi$ lies inside the posterior and the ratio is bounded; the other half
    is averaged over. Pareto k of the ratio tells where it is not. Needs no draws but the
    posterior's.

    Gelfand and Dey (1994); McEwen, Wallis, Price and Spurio Mancini (2021), "Machine learning
    assisted Bayesian model comparison: learnt harmonic mean estimator", eq. 10; Polanska et al.
    (2024) for the shrinking.

    Args:
        num_components: of the mixture.
        shrink: factor of its standard deviations, in (0, 1].
        mirror: whether to try mirrored modes, as `BridgeSampling` does.
        posterior, num_draws, num_chains, num_warmup, num_leapfrog, memory: where the draws come
            from, see `PosteriorEstimator`.

    Raises:
        ValueError: for a shrink outside (0, 1], or posterior draws that do not fit the program.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> generator = torch.Generator().manual_seed(0)
        >>> posterior = {"mu": 0.5**0.5 * torch.randn(2, 500, generator=generator)}
        >>> learned = LearnedHarmonicMean(posterior=posterior)
        >>> result = learned(ppl_dgm.Program(model), torch.zeros(1))
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(()))
        >>> bool((result.log_z - truth).abs() < 0.05)
        True
    """

    num_components: int = 4
    shrink: float = 0.7
    mirror: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, num_components=1)
        if not 0 < self.shrink <= 1:
            raise ValueError(
                f"shrink is {self.shrink}; expected more than 0 and at most 1, e.g. 0.7"
            )

    def estimate_part(self, bound: Bound) -> Estimate:
        target = Unconstrained(bound)
        draws = self.posterior_draws(target)
        points, mirrored = draws.points, {}
        if self.mirror:
            moved, mirrored = try_mirrors(target, draws.flat, self.memory)
            points = moved.unflatten(0, points.shape[:2])
        fitting, rest = split_halves(points)
        inside = fit_student_mixture(fitting, self.num_components, NEARLY_NORMAL, self.shrink)
        estimate = self._average(draws._replace(points=rest), target.log_joint, inside.log_prob)
        return estimate._replace(diagnostics={**estimate.diagnostics, "mirrored": mirrored})

    def _average(
        self,
        draws: PosteriorDraws,
        log_joint: Callable[[Tensor], Tensor],
        inside: Callable[[Tensor], Tensor],
    ) -> Estimate:
        with torch.no_grad():
            log_ratio = inside(draws.flat).double() - evaluate(log_joint, draws.flat, self.memory)
        return reciprocal_mean(draws, log_ratio)
