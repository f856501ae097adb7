"""Bridge sampling: evidence from posterior draws and a proposal.

The proposal must overlap the posterior.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.evidence.posterior_estimator import PosteriorEstimator, split_halves
from ppl_dgm.program import Bound
from ppl_dgm.sampling.chains import PosteriorDraws, evaluate
from ppl_dgm.sampling.convergence import chain_ess
from ppl_dgm.sampling.proposals import Fitted, fit_flow, fit_normal
from ppl_dgm.sampling.student_mixtures import fit_student_mixture
from ppl_dgm.sampling.symmetries import try_mirrors
from ppl_dgm.sampling.unconstrained import Unconstrained
from ppl_dgm.sampling.weight_summary import WeightSummary
from ppl_dgm.validation import check_least

__all__ = ["BridgeSampling", "bridge_iteration"]

BridgeProposal = Literal["normal", "warp3", "student_mixture", "guide", "flow"]
DISAGREEMENT = 4.0  # standard errors between the bridge and importance sampling from its proposal
RELIABLE_K = 0.5


class Bridge(NamedTuple):
    """Fixed point of the bridge iteration, with its error.

    The log evidence in nats, its standard error, and whether the fixed point was reached are each
    `[*batch]`.

    `numerator` and `denominator` are the terms whose means' ratio is the estimate, `[draws,
    *batch]`.
    """

    log_z: Tensor
    std_error: Tensor
    converged: Tensor
    iterations: int
    numerator: Tensor
    denominator: Tensor


def bridge_iteration(
    q11: Tensor,
    q12: Tensor,
    q21: Tensor,
    q22: Tensor,
    ess: Tensor | None = None,
    num_chains: int | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 1000,
) -> Bridge:
    r"""Iterate the optimal bridge to its fixed point.

    The bridge is that of Meng and Wong; the Monte Carlo standard error is returned too.

    With $l_1 = q_{11} - q_{12}$ at $N_1$ posterior draws and $l_2 = q_{21} - q_{22}$ at $N_2$
    proposal draws,

    $$r \leftarrow \frac{\frac1{N_2} \sum_j e^{l_{2j}} / (s_1 e^{l_{2j}} + s_2 r)}
                        {\frac1{N_1} \sum_i 1 / (s_1 e^{l_{1i}} + s_2 r)},
      \quad s_1 = \frac{n}{n + N_2},\ s_2 = 1 - s_1,$$

    n being the effective number of posterior draws. The standard error of log r is $\sqrt{\log(1 +
    \mathrm{var}(r) / r^2)}$ by the delta method, the variance of the denominator divided by its
    effective sample size.

    Meng and Wong (1996), eq. 4.1; Gronau et al. (2017); Micaletto and Vehtari (2025).

    Args:
        q11: log unnormalised posterior at the posterior draws `[N_1, *batch]`, nats.
        q12: log proposal at the posterior draws `[N_1, *batch]`.
        q21: log unnormalised posterior at the proposal draws `[N_2, *batch]`.
        q22: log proposal at the proposal draws `[N_2, *batch]`.
        ess: effective number of posterior draws `[*batch]`; N_1 by default.
        num_chains: the posterior draws are that many chains, end to end; None where they are
            independent.
        tolerance: relative change of r at which the iteration stops.
        max_iterations: after which it has not converged.

    Example:
        >>> import torch
        >>> rows = [[0.1, 0.2, 0.3, 0.4], [0.02, 0.09, 0.1, 0.15]]
        >>> rows += [[0.05, 0.18, 0.22, 0.28], [0.01, 0.07, 0.11, 0.12]]
        >>> found = bridge_iteration(*torch.tensor(rows, dtype=torch.float64))
        >>> print(f"{found.log_z:.12f} {found.std_error:.12f}")
        0.132489796182 0.023532332847
    """
    l1, l2 = (q11 - q12).double(), (q21 - q22).double()
    centre = l1.median(0).values
    a1, a2 = l1 - centre, l2 - centre
    count = a1.new_tensor(float(len(a1))) if ess is None else ess.double()
    s1 = count / (count + len(a2))
    log_r, step, iterations = torch.zeros_like(centre), torch.full_like(centre, math.inf), 0
    while bool((step > tolerance).any()) and iterations < max_iterations:
        numerator, denominator = bridge_terms(a1, a2, s1, log_r)
        update = numerator.mean(0).log() - denominator.mean(0).log()
        step = (1 - (log_r - update).exp()).abs().nan_to_num(math.inf)
        log_r, iterations = update, iterations + 1
    numerator, denominator = bridge_terms(a1, a2, s1, log_r)
    error = bridge_error(numerator, denominator, ess, num_chains)
    return Bridge(log_r + centre, error, step <= tolerance, iterations, numerator, denominator)


def bridge_terms(a1: Tensor, a2: Tensor, s1: Tensor, log_r: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the terms of the bridge ratio at r.

    These are the terms of its numerator and denominator; infinite log densities do no harm.
    """
    numerator = 1 / (s1 + (1 - s1) * (log_r - a2).exp())
    return numerator, (-log_r).exp() / (s1 * (a1 - log_r).exp() + (1 - s1))


def bridge_error(
    numerator: Tensor, denominator: Tensor, ess: Tensor | None, num_chains: int | None
) -> Tensor:
    """Compute the standard error of the log bridge ratio.

    The formula for the log ratio of means is by Micaletto and Vehtari (2025).
    """
    count = torch.as_tensor(float(len(denominator))).to(denominator) if ess is None else ess
    if num_chains is not None:
        count = chain_ess(denominator.unflatten(0, (num_chains, -1)))
    relative = numerator.var(0) / numerator.mean(0).square() / len(numerator)
    relative = relative + denominator.var(0) / denominator.mean(0).square() / count
    return relative.log1p().sqrt()


@checked
@dataclass(frozen=True)
class BridgeSampling(PosteriorEstimator):
    r"""Bridge sampling of the evidence from posterior draws.

    The standard error is that of Micaletto and Vehtari.

    $$Z = \frac{\mathbb{E}_{q}[\alpha(z)\, p(x, z)]}{\mathbb{E}_{p(z \mid x)}[\alpha(z)\, q(z)]},$$

    with the $\alpha$ of least variance (see `bridge_iteration`). Half of the chains fits the
    proposal q, the other half is averaged over; of fewer than eight chains, the halves of each.
    Sign flips and label swaps are tried on the draws, which are moved between the mirrored modes so
    found (`diagnostics["mirrored"]`). The number is withheld (NaN, with a
    warning) where the iteration does not converge. Costs the sampler's gradients and two densities
    for each draw.

    Meng and Wong (1996); Meng and Schilling (2002), warp-3; Gronau, Singmann and Wagenmakers
    (2020); Micaletto and Vehtari (2025).

    Args:
        proposal: `"normal"`; `"warp3"`: normal, the posterior symmetrised around its mean;
            `"student_mixture"`: for skewed, heavy-tailed and bimodal posteriors; `"guide"`;
            `"flow"`: splines, data-set evidence only.
        num_components: of the Student mixture.
        num_refresh: Metropolis moves of the averaged draws that propose from q: they pass between
            modes, and along what slow chains have not yet walked.
        mirror: whether to try mirrored modes.
        posterior, num_draws, num_chains, num_warmup, num_leapfrog, memory: where the draws come
            from, see `PosteriorEstimator`. As many draws of the proposal are made as posterior
            draws are averaged over.

    Raises:
        ValueError: for discrete latents that cannot be summed out; draws that lack a site, are
            outside its support or fewer than 8; unknown settings.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> generator = torch.Generator().manual_seed(0)
        >>> posterior = {"mu": 0.5**0.5 * torch.randn(2, 500, generator=generator)}
        >>> bridge = BridgeSampling(posterior=posterior, proposal="normal")
        >>> result = bridge(ppl_dgm.Program(model), torch.zeros(1))
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(()))
        >>> bool((result.log_z - truth).abs() < 0.01)
        True
    """

    proposal: BridgeProposal = "student_mixture"
    num_components: int = 4
    num_refresh: int = 20
    mirror: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, num_components=1, num_refresh=0)

    def check(self, bound: Bound) -> None:
        if self.proposal == "flow" and bound.structure.per_datum:
            raise ValueError(
                "proposal='flow' fits one flow and this program has an evidence for each datum; "
                "use proposal='student_mixture', which fits all data at once, or 'guide'"
            )
        if self.proposal == "guide" and not bound.structure.has_guide:
            raise ValueError(
                "proposal='guide' needs a program with a guide; use proposal='student_mixture'"
            )

    def estimate_part(self, bound: Bound) -> Estimate:
        target = Unconstrained(bound)
        draws = self.posterior_draws(target)
        points, mirrored = draws.points, {}
        if self.mirror:
            moved, mirrored = try_mirrors(target, draws.flat, self.memory)
            points = moved.unflatten(0, points.shape[:2])
        fitting, rest = split_halves(points)
        proposal, log_joint = self._proposal(target, fitting)
        rest = refresh(target, proposal, rest, self.num_refresh, self.memory)
        return self._bridge(draws._replace(points=rest), proposal, log_joint, mirrored)

    def _proposal(
        self, target: Unconstrained, fitting: Tensor
    ) -> tuple[Fitted, Callable[[Tensor], Tensor]]:
        """Return the proposal and the target log density.

        The bridge leads from the proposal to the target.
        """
        if self.proposal == "guide":
            return GuideProposal(target), target.log_joint
        if self.proposal == "flow":
            return fit_flow(fitting), target.log_joint
        if self.proposal == "student_mixture":
            return fit_student_mixture(fitting, self.num_components), target.log_joint
        if self.proposal == "warp3":
            return fit_normal(fitting), symmetrised(target, fitting.mean(0))
        return fit_normal(fitting), target.log_joint

    def _bridge(
        self,
        draws: PosteriorDraws,
        proposal: Fitted,
        log_joint: Callable[[Tensor], Tensor],
        mirrored: dict,
    ) -> Estimate:
        first, second = draws.flat, proposal.sample(len(draws.flat))
        q11, q21 = evaluate(log_joint, first, self.memory), evaluate(log_joint, second, self.memory)
        q12, q22 = proposal.log_prob(first).double(), proposal.log_prob(second).double()
        chains = None if draws.ess is not None else draws.points.shape[0]
        ess = chain_ess(draws.points).median(-1).values if draws.ess is None else draws.ess / 2
        found = bridge_iteration(q11, q12, q21, q22, ess, chains)
        diagnostics = bridge_diagnostics(draws, found, q21 - q22) | {
            "ess": ess,
            "mirrored": mirrored,
        }
        log_z = torch.where(found.converged, found.log_z, math.nan)
        warnings = draws.warnings + bridge_warnings(found, diagnostics)
        return Estimate(log_z, found.std_error, diagnostics, warnings)


class GuideProposal:
    """The program's guide, in unconstrained space."""

    def __init__(self, target: Unconstrained) -> None:
        self.target = target

    def sample(self, num: int) -> Tensor:
        """Draw points `[num, *batch, dim]`."""
        return self.target.sample_guide(num)[0]

    def log_prob(self, point: Tensor) -> Tensor:
        """Log density of points: `[num, *batch]`."""
        return self.target.log_guide(point)


def symmetrised(target: Unconstrained, centre: Tensor) -> Callable[[Tensor], Tensor]:
    """Symmetrise the joint density around a centre.

    Returns the log of the mean of the density at a point and at its reflection in the centre (Meng
    and Schilling 2002).
    """

    def log_density(point: Tensor) -> Tensor:
        return torch.logaddexp(
            target.log_joint(point), target.log_joint(2 * centre - point)
        ) - math.log(2)

    return log_density


def refresh(
    target: Unconstrained, proposal: Fitted, points: Tensor, num_moves: int, memory: int
) -> Tensor:
    """Move posterior draws by independence Metropolis steps.

    The draws are `[chains, draws, *batch, dim]` (Tierney 1994).
    """
    here = points.flatten(0, 1)
    weight = (
        evaluate(target.log_joint, here, memory) - proposal.log_prob(here) if num_moves else here
    )
    for _ in range(num_moves):
        there = proposal.sample(len(here))
        other = evaluate(target.log_joint, there, memory) - proposal.log_prob(there)
        accept = torch.rand_like(weight).log() < other - weight
        here = torch.where(accept.unsqueeze(-1), there, here)
        weight = torch.where(accept, other, weight)
    return here.unflatten(0, points.shape[:2])


def bridge_diagnostics(draws: PosteriorDraws, found: Bridge, log_weights: Tensor) -> dict[str, Any]:
    """Collect the diagnostics of bridge sampling.

    They are R-hat of the draws, importance sampling from the proposal, and its Pareto tail.
    """
    weights = WeightSummary(len(log_weights))
    weights.add(log_weights)
    diagnostics = {
        "iterations": found.iterations,
        "importance_log_z": weights.log_mean_exp,
        "importance_std_error": weights.std_error,
        "proposal_k": weights.pareto_k,
    }
    return draws.diagnostics | diagnostics


def bridge_warnings(found: Bridge, diagnostics: Mapping[str, Any]) -> tuple[str, ...]:
    """What speaks against the number."""
    warnings: list[str] = []
    if not bool(found.converged.all()):
        warnings.append(
            f"withheld: the bridge iteration has not converged after {found.iterations} steps; the "
            "proposal does not overlap the posterior"
        )
    difference = (found.log_z - diagnostics["importance_log_z"]).abs()
    error = torch.hypot(found.std_error, diagnostics["importance_std_error"])
    trusted = diagnostics["proposal_k"] < RELIABLE_K
    if bool((trusted & (difference > DISAGREEMENT * error + 1e-9)).any()):
        warnings.append(
            "bridge and importance sampling from its proposal differ by "
            f"{difference[trusted].max().item():.3g} nats: the posterior draws miss a mode, or "
            "visit modes in the wrong proportion"
        )
    return tuple(warnings)
