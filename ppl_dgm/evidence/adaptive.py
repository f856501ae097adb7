"""Adaptive importance sampling with mixtures of Student t distributions.

The mixtures follow the posterior.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.compile import CompileMode, Switch
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.evidence.posterior_estimator import estimate_in_parts
from ppl_dgm.program import Bound
from ppl_dgm.sampling.chains import tempered_points
from ppl_dgm.sampling.climbing import distinct, find_modes
from ppl_dgm.sampling.convergence import UNRELIABLE_K, edge_warnings
from ppl_dgm.sampling.defended import Weighted, defended_weights, mixture_weights
from ppl_dgm.sampling.importance import Proposal
from ppl_dgm.sampling.kernels import HMC
from ppl_dgm.sampling.kernels.targets import take
from ppl_dgm.sampling.memory import MEMORY
from ppl_dgm.sampling.proposals import Fitted
from ppl_dgm.sampling.reach import ABOVE, share_alarm
from ppl_dgm.sampling.smc.resampling import effective_size, next_increment, resample, shuffle
from ppl_dgm.sampling.student_mixtures import (
    StudentMixture,
    both_mixtures,
    fit_student_mixture,
    mode_mixture,
)
from ppl_dgm.sampling.unconstrained import Unconstrained, check_continuous, given_points
from ppl_dgm.sampling.undefined import undefined_alarm
from ppl_dgm.validation import check_least

__all__ = ["AdaptiveImportanceSampling"]

COMPONENTS = (1, 2, 4, 8, 16, 32)
DRAWS_PER_DIMENSION = 8  # of each component at least
EM_STEPS = 20
PATIENCE = 2  # numbers of components in a row that are no better
DEFENCE = 0.1  # share of the draws that come from the prior
DESCENDANTS = 8  # of one draw, about, in a population that was tempered
NUM_STEPS = 80  # of a climb
KNOWN = 0.2  # share of the mixture's draws that stay around the modes of the starts
LEAST_FITTED = 0.1  # effective share of the draws that a mixture is fitted to
MOST_ROUNDS = 3  # times as many rounds as long as fewer draws than that are effective
ENOUGH = 0.5  # effective share of the draws at which the proposal is as good as need be


@checked
@dataclass(frozen=True)
class AdaptiveImportanceSampling(Estimator):
    """Importance sampling with Student t mixtures fitted in rounds.

    The mixtures are fitted to the posterior.

    Prior draws are tempered to the posterior and a mixture of Student t is fitted to them; then
    `num_rounds` times draws of the mixture are weighted, resampled, and the mixture is fitted
    again. The number of components is the one under which draws that were held out are most
    probable; weights of which fewer than a tenth of the draws are effective are flattened for it
    (Koblents and Miguez 2015), and up to three times as many rounds made. Draws of the last mixture
    alone make the estimate, a tenth of them from the prior as a defence (Hesterberg 1995): it is
    consistent, and its standard error is a Monte Carlo error. As many points tempered afresh tell
    whether the mixture has missed a mode. Costs `num_particles + num_rounds * num_fitted`
    densities, and the two temperings about 100 gradients for each of `num_chains` chains.

    Cappé, Douc, Guillin, Marin and Robert (2008), "Adaptive importance sampling in general mixture
    classes"; Bugallo et al. (2017) for a review.

    Args:
        num_particles: draws that make the estimate.
        num_rounds: rounds of fitting.
        num_fitted: draws of each round.
        num_chains: tempered draws to begin with, and to check with.
        starts: points near modes, `[points, dim]` in unconstrained space, whose modes all mixtures
            cover, where the data set has one evidence (`ppl_dgm.sampling.scouting` finds some).
        memory: bytes that evaluating densities may allocate.
        compile: whether moves run compiled: True, False, or `"auto"`, where that pays.

    Raises:
        ValueError: for settings out of range, or discrete latents that cannot be summed out.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> result = AdaptiveImportanceSampling()(ppl_dgm.Program(model), torch.zeros(1))
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(()))
        >>> bool((result.log_z - truth).abs() < 4 * result.std_error)
        True
    """

    num_particles: int = 10_000
    num_rounds: int = 4
    num_fitted: int = 4000
    num_chains: int = 512
    starts: Tensor | None = field(default=None, repr=False, compare=False)
    memory: int = field(default=MEMORY, repr=False)
    compile: CompileMode = "auto"
    defence: ClassVar[float] = DEFENCE

    def __post_init__(self) -> None:
        check_least(self, num_particles=20, num_rounds=0, num_fitted=20, num_chains=8, memory=1)

    def draws_from(self, bound: Bound) -> Proposal | None:
        return "prior"

    def check(self, bound: Bound) -> None:
        check_continuous(bound)

    def estimate(self, bound: Bound) -> Estimate:
        return estimate_in_parts(bound, 8 * self.num_chains, self.memory, self._estimate_part)

    def _estimate_part(self, bound: Bound) -> Estimate:
        target = Unconstrained(bound)
        kernel = HMC(num_leapfrog=5)
        points = tempered_points(kernel, target, self.num_chains, Switch(self.compile))
        known = self._known_modes(target)
        mixture, rounds = with_known(fit_best_mixture(points), known), 0
        for _ in range(MOST_ROUNDS * self.num_rounds):
            drawn = self._weigh(target, mixture, self.num_fitted, True)
            mixture = with_known(fit_best_mixture(resampled(drawn)), known)
            rounds += 1
            share = float((effective_size(drawn.log_weights) / self.num_fitted).min())
            if share > (ENOUGH if rounds < self.num_rounds else LEAST_FITTED):
                break
        proposal = self.proposal_from(target, mixture, points)
        drawn = self._weigh(target, proposal, self.num_particles)
        log_z, error, found = drawn.summarise()
        shape = {"num_components": mixture.weight.shape[-1], "rounds": rounds}
        alarm = edge_warnings(found["edge_share"]) + undefined_alarm(target, points, self.memory)
        if bool((found["pareto_k"] <= UNRELIABLE_K).any()):  # else it has failed already
            fresh = tempered_points(kernel, target, self.num_chains, Switch(self.compile))
            alarm += missed_alarm(target, proposal, fresh, drawn, self.memory)
        return Estimate(log_z, error, found | shape, alarm)

    def proposal_from(
        self, target: Unconstrained, mixture: StudentMixture, points: Tensor
    ) -> Fitted:
        """Make the last proposal of a mixture and tempered points.

        It is the mixture itself.
        """
        return mixture

    def _known_modes(self, target: Unconstrained) -> StudentMixture | None:
        """Build the mixture around modes of the starts."""
        if self.starts is None or not len(self.starts):
            return None
        modes = find_modes(target, given_points(target, self.starts), NUM_STEPS)
        new = distinct(modes)
        return mode_mixture(modes, new) if bool(new.any()) else None

    def _weigh(
        self, target: Unconstrained, proposal: Fitted, num: int, keep: bool = False
    ) -> Weighted:
        return defended_weights(target, proposal, num, self.defence, self.memory, keep)


def missed_alarm(
    target: Unconstrained, proposal: Fitted, fresh: Tensor, drawn: Weighted, memory: int
) -> tuple[str, ...]:
    """Warn where points tempered afresh have larger weights than draws."""
    share = drawn.num_prior / len(drawn.log_weights)
    weights = mixture_weights(target, proposal, fresh, share, memory)
    above = weights > drawn.log_weights.amax(0) + ABOVE
    independent = max(1, len(fresh) // DESCENDANTS)
    return share_alarm(above.double().mean(0), independent, drawn.estimate[1])


def with_known(fitted: StudentMixture, known: StudentMixture | None) -> StudentMixture:
    """Leave a part of the draws to known modes."""
    return fitted if known is None else both_mixtures(fitted, known, KNOWN)


def resampled(drawn: Weighted) -> Tensor:
    """As many equally weighted points, `[n, *batch, dim]`.

    No draw has copies in both halves: those would make the best fit to the first half the one
    under which the second is most probable.
    """
    points = drawn.kept
    halves = []
    weights = flattened(drawn.log_weights)
    for part in (slice(None, None, 2), slice(1, None, 2)):
        chosen = shuffle(resample(weights[part]))
        halves.append(take(points[part], chosen))
    return torch.cat(halves)


def flattened(log_weights: Tensor) -> Tensor:
    """Weights to the power that keeps enough draws effective.

    A mixture fitted to the few draws that carry the weights of a bad proposal is narrower than the
    posterior, and the next one narrower still.
    """
    power = next_increment(
        torch.zeros_like(log_weights), log_weights, torch.ones_like(log_weights[0]), LEAST_FITTED
    )
    return torch.where(log_weights > -torch.inf, power * log_weights, -torch.inf)


def fit_best_mixture(points: Tensor) -> StudentMixture:
    """Fit a mixture and choose its number of components.

    Components are added until draws held out have not become more probable twice.

    Args:
        points: `[n, *batch, dim]`; the number of components is the same for all data.
    """
    half = len(points) // 2
    fitted, held_out = points[:half], points[half:]
    best_score, chosen, failures = -float("inf"), COMPONENTS[0], 0
    for number in COMPONENTS:
        if number > 1 and number * DRAWS_PER_DIMENSION * points.shape[-1] > half:
            break
        mixture = fit_student_mixture(fitted, number, steps=EM_STEPS)
        score = float(mixture.log_prob(held_out).double().mean())
        if score > best_score:
            best_score, chosen, failures = score, number, 0
        else:
            failures += 1
        if failures == PATIENCE:
            break
    return fit_student_mixture(points, chosen, steps=EM_STEPS)
