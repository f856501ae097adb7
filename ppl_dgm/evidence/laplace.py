"""Laplace's approximation of the evidence.

It sums over the modes that several starts find.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.evidence.posterior_estimator import estimate_in_parts
from ppl_dgm.program import Bound
from ppl_dgm.sampling.chains import evaluate
from ppl_dgm.sampling.climbing import (
    Modes,
    climb_likelihood,
    distinct,
    find_modes,
    newton_modes,
    same_mode,
    starts_at_once,
)
from ppl_dgm.sampling.convergence import edge_warnings
from ppl_dgm.sampling.defended import Weighted, defended_weights, mixture_densities
from ppl_dgm.sampling.importance import Proposal
from ppl_dgm.sampling.kernels.targets import take
from ppl_dgm.sampling.memory import MEMORY
from ppl_dgm.sampling.reach import walked_alarm
from ppl_dgm.sampling.student_mixtures import StudentMixture, mode_mixture
from ppl_dgm.sampling.unconstrained import Unconstrained, given_points
from ppl_dgm.sampling.undefined import MOST_POINTS, undefined_alarm
from ppl_dgm.validation import check_least

__all__ = ["Laplace"]

NORMAL_DEGREES = 1e6  # of freedom, of a Student t that is normal
FEWEST = 8  # particles of which an error bar can be made
DEFENCE = 0.25  # share of the particles that come from the prior
UNSEEN = 0.03  # share of starts with a mode of their own above which modes are likely missed
STARTS_PER_MODE = 10  # below which modes are likely missed
MOST_ROUNDS = 8  # of `num_starts` starts, where modes are many
HEAVIEST, MOST_RETRIES = 8, 2  # draws that climb, and how often modes that they find are added
MOST_WALKED = 16  # data with latents of their own whose draws are walked from
NORMAL_ERROR = 1e-3  # nats, below which the posterior is normal and nothing is walked to
UNEXPLAINED = 1.5  # weight over that of the normals from which a draw may lead to another mode
MATERIAL = 1e-3  # share of the evidence from which a mode is added
LIKELIHOOD_STARTS = 6  # one of as many starts climbs the likelihood first


def unseen_share(modes: Modes) -> Tensor:
    """Estimate the share of starts at unseen modes: `[*batch]`.

    It is the share of starts whose mode was found once (Good 1953).
    """
    once = modes.valid & (same_mode(modes).sum(1) == 1)
    return once.sum(0) / modes.valid.sum(0).clamp_min(1)


@checked
@dataclass(frozen=True)
class Laplace(Estimator):
    r"""Laplace's approximation over several modes, with importance sampling.

    It is summed over the modes that several starts find, and corrected by importance sampling.

    At each mode $z^*$ in unconstrained space, with $\Lambda = -\nabla^2 \log p(x, z^*)$ and D
    dimensions,

    $$Z^* = p(x, z^*) (2\pi)^{D/2} |\Lambda|^{-1/2}, \qquad \log \hat Z = \log \sum_{\text{modes}}
    Z^*.$$

    With `num_particles` the same normals, widened to Student t with 5 degrees of freedom, are the
    proposal of an importance sampler, with a quarter of its draws from the prior as a defence
    (Hesterberg 1995), and the normals themselves are a control variate (Owen and Zhou 2000): then
    the number is consistent and its standard error is a Monte Carlo error, the smaller the more
    normal the posterior is.
    Without, the number is as good as the posterior is normal, and its error is unknown (NaN). The
    number is withheld (NaN) where no start reaches a mode. Costs `num_starts` L-BFGS climbs at once
    and D backward passes.

    Tierney and Kadane (1986); MacKay (2003), ch. 27.

    Args:
        num_starts: starts of each round; a data set of many modes has up to eight rounds. They are
            draws from the guide (the prior, where there is none), half of them each the best of
            `screened`.
        num_steps: L-BFGS steps at most.
        num_particles: draws of the importance sampler; 0 for the plain approximation.
        screened: draws of which each start of the second half is the best.
        starts: more points to climb from, `[points, dim]` in unconstrained space, where the data
            set has one evidence (`ppl_dgm.sampling.scouting` finds some).
        memory: bytes that evaluating densities may allocate.

    Raises:
        ValueError: for discrete latents that cannot be summed out, no start, or too few particles
            for an error bar.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> result = Laplace(num_particles=0)(ppl_dgm.Program(model), torch.zeros(1))
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(())).double()
        >>> torch.allclose(result.log_z, truth, atol=1e-5)
        True
    """

    num_starts: int = 16
    num_steps: int = 200
    num_particles: int = 2000
    screened: int = 64
    starts: Tensor | None = field(default=None, repr=False, compare=False)
    memory: int = field(default=MEMORY, repr=False)

    def __post_init__(self) -> None:
        check_least(self, num_starts=1, num_steps=1, num_particles=0, screened=1, memory=1)
        if 0 < self.num_particles < FEWEST:
            raise ValueError(
                f"num_particles is {self.num_particles}; expected 0, or at least {FEWEST} for an "
                "error bar"
            )

    def draws_from(self, bound: Bound) -> Proposal | None:
        return "prior" if self.num_particles else None

    def estimate(self, bound: Bound) -> Estimate:
        return estimate_in_parts(
            bound, self.num_starts * self.screened, self.memory, self._estimate_part
        )

    def _estimate_part(self, bound: Bound) -> Estimate:
        target = Unconstrained(bound)
        modes = self.modes(target)
        new = distinct(modes)
        if not self.num_particles or not bool(new.any()):
            return self._plain(modes, new)
        modes, weighted = self._weigh(target, modes)
        new = distinct(modes)
        log_z, error, found = weighted.summarise()
        plain = self._plain(modes, new)
        log_z = torch.where(new.any(0), log_z, torch.nan)
        around = normals(modes, new).sample(MOST_POINTS).to(target.dtype)
        alarms = undefined_alarm(target, around, self.memory) + edge_warnings(found["edge_share"])
        alarms += self._unreached(target, modes, weighted)
        return Estimate(log_z, error, {**plain.diagnostics, **found}, plain.warnings + alarms)

    def _unreached(
        self, target: Unconstrained, modes: Modes, weighted: Weighted
    ) -> tuple[str, ...]:
        """Warn of mass beyond the draws.

        There is none where the normals explain all weights.
        """
        error = weighted.estimate[1]
        if math.prod(target.batch) > MOST_WALKED or not bool((error > NORMAL_ERROR).any()):
            return ()
        proposal = mode_mixture(modes, distinct(modes))

        def weigh(points: Tensor) -> tuple[Tensor, Tensor]:
            log_p, log_q = mixture_densities(target, proposal, points, DEFENCE, self.memory)
            return log_p, log_p - log_q

        return walked_alarm(weigh, weighted.kept, weighted.log_weights, error)

    def _plain(self, modes: Modes, new: Tensor) -> Estimate:
        """The approximation without draws."""
        laplace = torch.where(new, modes.log_z, -torch.inf).logsumexp(0)
        diagnostics = {"laplace": laplace, "num_modes": new.sum(0)}
        warnings = mode_warnings(new) + unseen_warnings(modes, new)
        laplace = torch.where(new.any(0), laplace, torch.nan)
        return Estimate(laplace, torch.full_like(laplace, torch.nan), diagnostics, warnings)

    def _weigh(self, target: Unconstrained, modes: Modes) -> tuple[Modes, Weighted]:
        """Weigh draws around the modes.

        Modes that the heaviest draws climb to are added.
        """
        at_once = starts_at_once(target, self.memory)
        for _ in range(MOST_RETRIES + 1):
            new = distinct(modes)
            weighted = defended_weights(
                target,
                mode_mixture(modes, new),
                self.num_particles,
                DEFENCE,
                self.memory,
                keep_points=True,
                control=normals(modes, new),
            )
            heaviest = weighted.log_weights.topk(min(HEAVIEST, len(weighted.log_weights)), 0)
            if not bool(unexplained(weighted, heaviest.indices).any()):
                break
            starts = take(weighted.kept, heaviest.indices)
            more = find_modes(target, starts, self.num_steps, at_once)
            joined = Modes(*map(torch.cat, zip(modes, more, strict=True)))
            added = distinct(joined)
            added[: len(new)] = False
            gain = torch.where(added, joined.log_z, -torch.inf).logsumexp(0) - weighted.estimate[0]
            if not bool((gain > math.log(MATERIAL)).any()):
                break
            modes = joined
        return modes, weighted

    def modes(self, target: Unconstrained) -> Modes:
        """Modes of the starts, of more starts where many."""
        at_once = starts_at_once(target, self.memory)
        starts = self._starts(target)
        if self.starts is not None:
            starts = torch.cat([starts, given_points(target, self.starts)])
        different, index = starts.unique(dim=0, return_inverse=True)  # equal ones climb once
        modes = find_modes(target, different, self.num_steps, at_once)
        if not bool(modes.valid.any()):  # coordinates of very different scales
            modes = newton_modes(target, modes, at_once)
        modes = Modes(*(part[index] for part in modes))
        most = math.isqrt(self.memory // (8 * target.dim))  # starts whose distances fit into memory
        for _ in range(MOST_ROUNDS - 1):
            new = distinct(modes)
            many = len(modes.point) + self.num_starts > most
            futile = target.batch or many or float(modes.valid.double().mean()) < 0.5
            if futile or not too_few_starts(new):
                break
            more = find_modes(target, self._starts(target), self.num_steps, at_once)
            modes = Modes(*map(torch.cat, zip(modes, more, strict=True)))
        return modes

    def _starts(self, target: Unconstrained) -> Tensor:
        """Choose the starting points, `[num_starts, *batch, dim]`.

        Half of them are plain draws, half the best of many. A part of the plain ones climbs the
        likelihood first: where prior and data are far apart, each has a mode of its own.
        """
        points = target.sample_guide(self.num_starts * self.screened)[0]
        log_joint = evaluate(target.log_joint, points, self.memory).nan_to_num(nan=-torch.inf)
        groups = points.unflatten(0, (self.screened, self.num_starts))
        best = log_joint.unflatten(0, (self.screened, self.num_starts)).argmax(0)
        best[: self.num_starts // 2] = 0
        chosen = groups.gather(0, best.unsqueeze(0).unsqueeze(-1).expand(1, *groups.shape[1:]))[0]
        few = self.num_starts // LIKELIHOOD_STARTS
        if few:
            chosen[:few] = climb_likelihood(target, chosen[:few], self.num_steps)
        return chosen


def normals(modes: Modes, new: Tensor) -> StudentMixture:
    """Build Laplace's normal approximation, at all distinct modes."""
    return mode_mixture(modes, new, NORMAL_DEGREES)


def unexplained(weighted: Weighted, index: Tensor) -> Tensor:
    """Whether draws weigh more than the normals say."""
    said = weighted.estimate[0] + weighted.log_control
    return (weighted.log_weights - said).gather(0, index) > math.log(UNEXPLAINED)


def mode_warnings(new: Tensor) -> tuple[str, ...]:
    """Warn where no start has found a mode.

    A mode has negative curvature.
    """
    share = 1 - float(new.any(0).double().mean())
    if share == 0:
        return ()
    which = "" if new.dim() == 1 else f" for {100 * share:.3g} % of the data"
    return (
        (
            f"withheld: no start has reached a mode with negative curvature{which}: the density "
            "has none, or needs more num_steps"
        ),
    )


def too_few_starts(new: Tensor) -> bool:
    """Whether starts `[starts]` are few for the modes they found."""
    return new.dim() == 1 and len(new) < STARTS_PER_MODE * int(new.sum())


def unseen_warnings(modes: Modes, new: Tensor) -> tuple[str, ...]:
    """Warn where modes are many for their starts."""
    share = float(unseen_share(modes).mean())
    if share > UNSEEN:
        found = f"{100 * share:.2g} % of the starts found a mode of their own"
    elif too_few_starts(new):
        found = f"{len(new)} starts found {int(new.sum())} modes"
    else:
        return ()
    return (f"{found}: others are missed; raise num_starts",)
