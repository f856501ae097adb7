"""Savage-Dickey ratio for point hypotheses.

It gives the Bayes factor of a point hypothesis from one posterior.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.bridge import BridgeSampling
from ppl_dgm.evidence.posterior_estimator import PosteriorEstimator, split_halves
from ppl_dgm.markup import error_text
from ppl_dgm.program import Program
from ppl_dgm.program.seeding import seeded
from ppl_dgm.program.stretching import stretch_alarm
from ppl_dgm.sampling.chains import evaluate
from ppl_dgm.sampling.convergence import UNRELIABLE_K, chain_ess
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.sampling.kernels.adaptation import robust_scale
from ppl_dgm.sampling.missed_modes import modes_alarm
from ppl_dgm.sampling.proposals import moments
from ppl_dgm.sampling.student_mixtures import fit_student_mixture
from ppl_dgm.sampling.unconstrained import Slot, Unconstrained
from ppl_dgm.sampling.weight_summary import WeightSummary, pareto_k
from ppl_dgm.watching import watched

__all__ = ["SavageDickey", "savage_dickey"]

SHRINK = 0.7  # of standard deviations, for a weight with lighter tails than the posterior
NUM_COMPONENTS, NUM_VISITED = 4, 1000  # of the mixture fitted to the draws, and its draws
TRUSTED = 0.3  # share of those that is effective, below which they tell nothing
INFINITE_MEAN_K = 0.9  # about 1, the shape from which a mean is infinite


@dataclass(frozen=True)
class SavageDickey:
    """Log Bayes factor of a point hypothesis, in nats.

    It is against the program, and has a standard error.

    Positive where the data favour the point. `log_posterior` and `log_prior` are the densities at
    the point.
    """

    log_bayes_factor: Tensor
    std_error: Tensor
    log_posterior: Tensor
    log_prior: Tensor
    diagnostics: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        mark = f" UNRELIABLE: {'; '.join(self.warnings)}" if self.warnings else ""
        number = f"{self.log_bayes_factor:.3f} +- {error_text(self.std_error.item())} nats"
        return f"SavageDickey(log BF {number} for the point){mark}"


@checked
def savage_dickey(
    program: Program,
    *args: Any,
    site: str,
    value: float | Tensor = 0.0,
    sampler: PosteriorEstimator | None = None,
    num_prior: int = 20000,
    seed: int | None = 0,
    memory: int | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> SavageDickey:
    r"""Estimate the Bayes factor of a point hypothesis.

    It compares `site = value` with the program that leaves the site free.

    $$\mathrm{BF}_{01} = \frac{p(\theta_0 \mid x)}{p(\theta_0)}$$

    for a nested hypothesis whose other latents have, given $\theta_0$, the prior of the full
    program. Each density is an importance-weighted marginal density estimate: with any normalised
    w, any matrix B and draws of $(\theta, \psi)$,

    $$p(\theta_0 \mid x) = \mathbb{E}\!\left[w(\theta)\,
      \frac{p(x, \theta_0, \psi + B(\theta_0 - \theta))}{p(x, \theta, \psi)}\right],$$

    B the regression of the other latents on $\theta$ and w a normal inside the posterior of
    $\theta$, from the moments of half of the draws; the same from prior draws for $p(\theta_0)$,
    with B = 0 and w a normal of their quartiles, or uniform between quantiles where that is better.
    The standard error is withheld (NaN, with a warning) where Pareto k says that the average has
    none.

    Dickey (1971); Chen (1994), "Importance-weighted marginal Bayesian posterior density
    estimation".

    Args:
        program: the program of the full hypothesis.
        *args: its data.
        site: the latent that the point hypothesis fixes.
        value: where it fixes it; broadcast to the latent's shape.
        sampler: where posterior draws come from: any estimator that uses them, with its settings;
            HMC by default.
        num_prior: draws from the prior.
        seed: makes the result repeatable.
        memory: bytes that evaluating densities may allocate; as the sampler says by default.
        progress: show a bar of the densities evaluated, where it takes over two seconds.
        **kwargs: further data.

    Raises:
        ValueError: for a latent that the program lacks, a value outside its support or of infinite
            prior density, or one evidence for each datum.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> generator = torch.Generator().manual_seed(0)
        >>> posterior = {"mu": 0.5 + 0.5**0.5 * torch.randn(4, 1000, generator=generator)}
        >>> sampler = BridgeSampling(posterior=posterior)
        >>> one = torch.ones(1)
        >>> found = savage_dickey(ppl_dgm.Program(model), one, site="mu", sampler=sampler)
        >>> truth = dist.Normal(0.0, 1.0).log_prob(one) - dist.Normal(0.0, 2.0**0.5).log_prob(one)
        >>> bool((found.log_bayes_factor - truth).abs() < 0.1)
        True
    """
    sampler = sampler or BridgeSampling()
    sampler = sampler if memory is None else replace(sampler, memory=memory)
    bound = program.bind(*args, **kwargs).in_double()
    if bound.structure.per_datum:
        raise ValueError(
            "every datum has latents of its own here; Savage-Dickey fixes a latent shared by all "
            "data"
        )
    with watched("Savage-Dickey", progress), torch.no_grad(), seeded(seed, bound.device):
        target = Unconstrained(bound)
        slot = find_slot(target, site)
        point = unconstrained_value(target, slot, value)
        prior_draws = target.sample_prior(num_prior).unsqueeze(0)
        prior = marginal_density(
            target, slot, point, prior_draws, prior=True, memory=sampler.memory
        )
        check_finite_prior(prior, site, value)
        draws = sampler.posterior_draws(target)
        posterior = marginal_density(
            target, slot, point, draws.points, prior=False, memory=sampler.memory
        )
        missed = missed_alarm(program, target, draws.points, sampler.memory)
    diagnostics = draws.diagnostics | {
        "posterior_k": posterior.pareto_k,
        "prior_k": prior.pareto_k,
    }
    warnings = draws.warnings + density_warnings(posterior, prior) + missed
    warnings += stretch_alarm(bound.structure.stretched)
    error = torch.hypot(posterior.std_error, prior.std_error)
    error = torch.where(posterior.has_error & prior.has_error, error, torch.nan)
    factor = posterior.log_density - prior.log_density
    return SavageDickey(
        factor, error, posterior.log_density, prior.log_density, diagnostics, warnings
    )


def missed_alarm(
    program: Program, target: Unconstrained, draws: Tensor, memory: int
) -> tuple[str, ...]:
    """Warn of modes that outweigh what the draws visit.

    What they visit is found by importance sampling from a mixture fitted to half of the draws
    `[chains, draws, dim]`, where its weights are even enough.
    """
    mixture = fit_student_mixture(split_halves(draws)[0], NUM_COMPONENTS)
    points = mixture.sample(NUM_VISITED)
    visited = WeightSummary(NUM_VISITED)
    visited.add(evaluate(target.log_joint, points, memory) - mixture.log_prob(points))
    if not float(visited.ess) >= TRUSTED * NUM_VISITED:
        return ()
    return modes_alarm(program, target.bound, visited.log_mean_exp, visited.std_error)


@dataclass(frozen=True)
class Density:
    """Estimated log density with its error and Pareto k.

    Pareto k describes the tail of the terms.
    """

    log_density: Tensor
    std_error: Tensor
    pareto_k: Tensor

    @property
    def has_error(self) -> Tensor:
        """Whether the standard error can be trusted.

        It can where the terms have a variance.
        """
        return self.pareto_k <= UNRELIABLE_K


def check_finite_prior(prior: Density, site: str, value: float | Tensor) -> None:
    """Refuse a point with infinite prior density.

    Any data would favour the other hypothesis without limit.
    """
    infinite = bool(prior.log_density.isposinf()) or float(prior.pareto_k) >= INFINITE_MEAN_K
    if infinite or not bool(torch.isfinite(prior.log_density)):
        raise ValueError(
            f"the prior density of {site!r} at {value} is infinite or zero, as far as its draws "
            f"tell (Pareto k of its terms is {float(prior.pareto_k):.2f}), so that the point has "
            "no Bayes factor; compare two programs by evidence.auto"
        )


def find_slot(target: Unconstrained, site: str) -> Slot:
    """Where the latent is in the flat vector."""
    for slot in target.slots:
        if slot.latent.name == site:
            return slot
    raise ValueError(
        f"the program has no continuous latent {site!r}; it has "
        f"{[s.latent.name for s in target.slots]}"
    )


def unconstrained_value(target: Unconstrained, slot: Slot, value: float | Tensor) -> Tensor:
    """The point in unconstrained coordinates, flat."""
    shape = target.constrain(target.sample_prior(1))[slot.latent.name].shape[1:]
    full = torch.as_tensor(value, dtype=target.dtype, device=target.device).expand(shape)
    if not bool(slot.latent.support.check(full).all()):
        raise ValueError(
            f"value {value} is outside the support {slot.latent.support} of {slot.latent.name!r}"
        )
    inverse: Any = slot.transform.inv
    flat = inverse(full).reshape(-1)
    if not bool(torch.isfinite(flat).all()):
        raise ValueError(
            f"value {value} is at the edge of the support of {slot.latent.name!r}, which has no "
            "density"
        )
    return flat


def marginal_density(
    target: Unconstrained, slot: Slot, point: Tensor, draws: Tensor, prior: bool, memory: int
) -> Density:
    """Estimate the density of one latent at a point.

    The draws `[chains, draws, dim]` are of the posterior or the prior.

    In unconstrained coordinates: the Jacobian of the latent's own transform is common to posterior
    and prior.
    """
    fitting, rest = split_halves(draws)
    flat = rest.flatten(0, 1)
    if prior:
        weights = robust_normal(fitting, flat, slot), inner_box(fitting, flat, slot)
        moved = flat.clone()
    else:
        weights = (inner_normal(fitting, flat, slot),)
        moved = along_regression(fitting, flat, slot, point)
    moved[:, slot.start : slot.stop] = point

    def log_density(y: Tensor) -> Tensor:
        split = target.split(y)
        return split.prior if prior else split.total

    change = evaluate(log_density, moved, memory) - evaluate(log_density, flat, memory)
    found = [averaged(weight.double() + change, rest.shape[:2]) for weight in weights]
    return min(found, key=lambda density: (not bool(density.has_error), float(density.std_error)))


def averaged(terms: Tensor, shape: torch.Size) -> Density:
    """Average terms `[chains * draws]` of a density.

    Their shape is that of `[chains, draws]`.
    """
    centred = (terms - terms.amax(0)).exp()
    ess = chain_ess(centred.unflatten(0, shape))
    error = (centred.var(0) / centred.mean(0).square() / ess).log1p().sqrt()
    return Density(log_mean_exp(terms), error, pareto_k(terms))


def along_regression(fitting: Tensor, points: Tensor, slot: Slot, value: Tensor) -> Tensor:
    """Move points along the regression on one latent.

    That latent is moved to a value, and all others follow: `[n, dim]`.
    """
    covariance = moments(fitting)[1]
    own = slice(slot.start, slot.stop)
    slope = torch.linalg.solve(covariance[own, own], covariance[own, :])
    return points + (value - points[:, own]) @ slope


def inner_normal(fitting: Tensor, points: Tensor, slot: Slot) -> Tensor:
    """Compute a latent's log density under a narrow normal: `[n]`.

    The normal has the moments of the draws, shrunk to lie inside theirs.
    """
    mean, covariance = moments(fitting)
    own = slice(slot.start, slot.stop)
    return torch.distributions.MultivariateNormal(
        mean[own], SHRINK**2 * covariance[own, own], validate_args=False
    ).log_prob(points[:, own])


def robust_normal(fitting: Tensor, points: Tensor, slot: Slot) -> Tensor:
    """Compute a latent's log density under a robust normal: `[n]`.

    The normal has the quartiles of the draws, because priors may have no moments.
    """
    own = fitting[:, slot.start : slot.stop]
    reference = torch.distributions.Normal(
        own.median(0).values, robust_scale(own), validate_args=False
    )
    return reference.log_prob(points[:, slot.start : slot.stop]).sum(-1)


def inner_box(fitting: Tensor, points: Tensor, slot: Slot) -> Tensor:
    """Compute a log density uniform over half of draws: `[n]`.

    It is zero outside their quantiles, and so never wider than a prior of light tails, as the
    logarithm of a half-normal variable has.
    """
    own = fitting[:, slot.start : slot.stop]
    tail = 0.5 - 0.5 * 0.5 ** (1 / own.shape[1])
    low, high = own.quantile(tail, 0), own.quantile(1 - tail, 0)
    value = points[:, slot.start : slot.stop]
    inside = ((value > low) & (value < high)).all(-1)
    return torch.where(inside, -(high - low).log().sum(), -torch.inf)


def density_warnings(posterior: Density, prior: Density) -> tuple[str, ...]:
    """Warn of tails too heavy for the averages."""
    found = {"posterior": posterior.pareto_k, "prior": prior.pareto_k}
    return tuple(
        f"the standard error is withheld: Pareto k of the {name} density is {float(k):.2f} > "
        f"{UNRELIABLE_K}"
        for name, k in found.items()
        if float(k) > UNRELIABLE_K
    )
