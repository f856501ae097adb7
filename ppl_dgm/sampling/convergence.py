"""Convergence diagnostics and the warnings that follow.

The diagnostics are ESS, R-hat, weight tails and acceptance.
"""

import math

import scipy  # loads its parts when they are used
import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

__all__ = [
    "DIVERGENT_SHARE",
    "UNRELIABLE_K",
    "acceptance_alarm",
    "bfmi_warnings",
    "chain_ess",
    "copies_warnings",
    "divergence_warnings",
    "dominates",
    "edge_warnings",
    "energy_bfmi",
    "few_draws_warnings",
    "is_divergent",
    "mean_exp_std_error",
    "mean_std_error",
    "r_hat_warnings",
    "series_std_error",
    "split_r_hat",
    "spread_warnings",
    "stein_warnings",
    "student_factor",
    "tail_warnings",
    "widened_by_skew",
]

MAX_R_HAT = 1.05
R_HAT_CHANCE = 0.05  # by which the largest R-hat grows for each tenfold of data
CONSTANT = 1e-12  # relative variance below which a series does not move
FEW_DRAWS = 100  # effective ones, of which the error of a mean is uncertain by a tenth or more
LOW_ACCEPTANCE = 0.1
DIVERGENT = 20.0  # nats of energy error of a move that has diverged
DIVERGENT_SHARE = 0.001  # of the moves
FEW_DATA_MORE = 10  # times that share is no alarm where few of many data have it
LOW_BFMI = 0.2
EDGE_SHARE = 1e-3  # of the posterior
STEIN_APART = 6.0  # standard errors
OFTEN = 1.5  # times that an average draw may occur; errors are then a fifth too small
UNRELIABLE_K = 0.7  # Pareto shape above which no estimate is to be believed (Vehtari et al. 2024)
SKEW_FACTOR = 1.5  # of a standard error, for each unit of its skewness
SPREAD_CHANCE = 0.1  # that log weights are spread still more than the bound that raises an alarm
SPREAD_CHANCE_EACH = 0.5  # the same where the errors of several data average out
MOST_SKEWED = 2.0  # times the upper half's variance, more of which is that of lost chains
SPREAD_ERROR = 1.0  # nats of standard error that this bound may mean
ALARMING_SHARE = 0.2  # of the variance of a sum over data, above which failing data raise an alarm


# ---- chains ----------------------------------------------------------------------------------


def chain_ess(series: Tensor) -> Tensor:
    """Compute the effective sample size of Markov chains.

    Series are `[chains, draws, ...]`. Autocorrelation and differences between chains count.

    Vehtari et al. (2021), eq. 10, by Pyro; at most the number of draws, and all of them where
    nothing varies or draws are antithetic.
    """
    chains, draws = series.shape[:2]
    values = series.double()
    total = float(chains * draws)
    spread = values.flatten(0, 1).var(0)
    moves = spread > CONSTANT * values.flatten(0, 1).square().mean(0)
    ess = effective_sample_size(values, chain_dim=0, sample_dim=1).nan_to_num(1.0)
    ess = torch.where(
        ess > 0, ess.clamp(1.0, total), total
    )  # negative: antithetic beyond the estimate's reach
    return torch.where(moves, ess, total)


def series_std_error(series: Tensor) -> Tensor:
    """Standard error of the mean of series `[chains, draws, *batch]`."""
    return (series.flatten(0, 1).var(0) / chain_ess(series)).sqrt()


def split_r_hat(series: Tensor) -> Tensor:
    """Compute split R-hat of series `[chains, draws, ...]`.

    It is 1 where nothing varies.
    """
    value = split_gelman_rubin(series.double(), chain_dim=0, sample_dim=1)
    return value.nan_to_num(1.0, posinf=float("inf")).clamp_min(1.0)


def r_hat_warnings(
    r_hat: Tensor, place: str = "the posterior", limit: float = MAX_R_HAT
) -> tuple[str, ...]:
    """Warn where chains disagree, according to R-hat.

    R-hat, `[data]` or `[]`, must be above what chance makes the largest.

    Example:
        >>> r_hat_warnings(torch.tensor(1.3))
        ('chains at the posterior disagree: split R-hat is 1.300 > 1.05; run longer',)
    """
    allowed = limit + R_HAT_CHANCE * math.log10(max(r_hat.numel(), 1))
    high = r_hat > allowed
    if not bool(high.any()):
        return ()
    where = "" if r_hat.dim() == 0 else f" for {int(high.sum())} of {r_hat.numel()} data"
    size = f"{'up to ' if r_hat.dim() else ''}{r_hat.max().item():.3f} > {limit}{where}"
    return (f"chains at {place} disagree: split R-hat is {size}; run longer",)


def few_draws_warnings(ess: Tensor) -> tuple[str, ...]:
    """Warn where given chains are worth few draws.

    `ess`, `[*batch]`, is that of the slowest coordinate. What is fitted to so few draws, and the
    error of what is averaged over them, are too uncertain for an error bar (Vehtari et al. 2021).

    Example:
        >>> few_draws_warnings(torch.tensor(24.0))
        ('the posterior draws are worth 24 independent ones in their slowest coordinate, fewer
        than 100; run longer',)
    """
    if not dominates(ess < FEW_DRAWS, ess.rsqrt()):
        return ()
    text = f"the posterior draws are worth {float(ess.min()):.0f} independent ones"
    where = "their slowest coordinate" if ess.numel() == 1 else "the slowest coordinate of a datum"
    return (f"{text} in {where}, fewer than {FEW_DRAWS}; run longer",)


def acceptance_alarm(acceptance: Tensor) -> tuple[str, ...]:
    """A warning where moves are hardly ever accepted."""
    lowest = float(acceptance.min())
    if math.isnan(lowest) or lowest >= LOW_ACCEPTANCE:
        return ()
    return (f"only {100 * lowest:.2g} % of the moves are accepted somewhere; chains hardly move",)


def is_divergent(log_ratio: Tensor) -> Tensor:
    """Check whether Hamiltonian moves diverged.

    Such moves lost their energy. Those that ended at zero density, at an edge, do not count.
    """
    return (log_ratio < -DIVERGENT) & torch.isfinite(log_ratio)


def energy_bfmi(log_density: Tensor, dim: int) -> Tensor:
    r"""Compute the energy Bayesian fraction of missing information.

    Log densities are `[draws, chains, *batch]`, the result is `[*batch]`.

    $2\, \mathrm{Var}(K) / (\mathrm{Var}(K) + \mathrm{Var}(U))$ with U minus the log density and K
    the kinetic energy, drawn afresh before each move, of variance D / 2: 1 for a normal density.
    Where it is small the chains pass between energies by small steps. Betancourt (2016),
    "Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo", eq. 8, which has
    the same expectation.
    """
    return dim / (0.5 * dim + log_density.double().flatten(0, 1).var(0))


def divergence_warnings(divergent: Tensor, place: str = "the posterior") -> tuple[str, ...]:
    """Warn where Hamiltonian moves diverged: their share, `[*batch]`.

    Example:
        >>> divergence_warnings(torch.tensor(0.02))
        ('2 % of the moves at the posterior diverged: chains miss places of high curvature;
        reparameterise, or use SMC',)
    """
    allowed = DIVERGENT_SHARE * (1 if divergent.numel() == 1 else FEW_DATA_MORE)
    largest = float(divergent.max())
    if largest <= allowed and float(divergent.mean()) <= DIVERGENT_SHARE:
        return ()
    warning = (
        f"{100 * largest:.2g} % of the moves at {place} diverged: chains miss places of high "
        "curvature; reparameterise, or use SMC"
    )
    return (warning,)


def bfmi_warnings(bfmi: Tensor) -> tuple[str, ...]:
    """Warn where Hamiltonian chains change their energy too slowly.

    E-BFMI is `[*batch]`.

    Example:
        >>> bfmi_warnings(torch.tensor(0.1))
        ('chains move between energies too slowly: E-BFMI is 0.1 < 0.2; reparameterise,
        or use SMC',)
    """
    lowest = float(bfmi.min())
    if not lowest < LOW_BFMI:
        return ()
    text = f"chains move between energies too slowly: E-BFMI is {lowest:.2g} < {LOW_BFMI}"
    return (f"{text}; reparameterise, or use SMC",)


def edge_warnings(share: Tensor) -> tuple[str, ...]:
    """Warn where posterior mass lies at the edge of floats.

    Example:
        >>> edge_warnings(torch.tensor(0.05))[0]
        '5 % of the posterior lies at the edge of floats, beyond which its density is cut off'
    """
    largest = float(share.max())
    if largest <= EDGE_SHARE:
        return ()
    text = "of the posterior lies at the edge of floats, beyond which its density is cut off"
    return (f"{100 * largest:.2g} % {text}",)


def stein_warnings(distance: Tensor) -> tuple[str, ...]:
    """Warn where given draws do not follow the posterior.

    `distance`, `[*batch]`, is by how many standard errors Stein's identity fails.

    Example:
        >>> stein_warnings(torch.tensor(20.0))
        ("the posterior draws are not this program's at these data: Stein's identity fails
        by 20 standard errors",)
    """
    largest = float(distance.max())
    if largest <= STEIN_APART:
        return ()
    text = "the posterior draws are not this program's at these data"
    return (f"{text}: Stein's identity fails by {largest:.2g} standard errors",)


def copies_warnings(copies: Tensor) -> tuple[str, ...]:
    """Warn where given draws are copies of each other.

    `copies`, `[*batch]`, is how often an average draw occurs.

    Example:
        >>> copies_warnings(torch.tensor(4.0))
        ('posterior draws are copies of each other: an average one occurs 4 times, so that
        errors are 2 times too small; give each draw once',)
    """
    most = float(copies.max())
    if most <= OFTEN:
        return ()
    text = f"posterior draws are copies of each other: an average one occurs {most:.3g} times"
    return (f"{text}, so that errors are {most**0.5:.2g} times too small; give each draw once",)


# ---- weights ---------------------------------------------------------------------------------


def student_factor(count: int) -> float:
    """Return by how much few values widen an error bar.

    It is the ratio of Student's to the normal 97.5 % quantile: a standard error found from the
    spread of `count` values, times it, covers as often as one that is known.

    Example:
        >>> [round(student_factor(count), 2) for count in (2, 10, 1000)]
        [6.48, 1.15, 1.0]
    """
    return float(scipy.special.stdtrit(count - 1, 0.975) / scipy.special.ndtri(0.975))


def mean_std_error(values: Tensor) -> Tensor:
    """Estimate the standard error of the mean of independent values.

    Values are `[n, *batch]`, of which there may be few: it is widened by `student_factor`.
    """
    return student_factor(len(values)) * values.std(0) / math.sqrt(len(values))


def mean_exp_std_error(log_values: Tensor) -> Tensor:
    r"""Estimate the standard error of log(mean(exp(log_values))).

    The mean is over the first dimension, which may have few values. The result is `[*batch]`.

    The delta method, $\mathrm{sd}(w) / (\bar w \sqrt n)$, times the ratio of Student's to the
    normal 97.5 % quantile. If the upper half of the log values is spread more than that tells, as
    far tails that few draws do not show would be, the value of a log-normal distribution with that
    spread s, $\sqrt{(e^{s^2} - 1) / n}$, but at most s, is taken in its place.

    Args:
        log_values: nats, `[n, *batch]`; infinite error where all weights are zero.
    """
    count = len(log_values)
    log_values = log_values.double()
    weights = (log_values - log_values.logsumexp(0)).exp() * count
    moment = weights.var(0)
    spread = upper_spread(log_values)
    log_normal = torch.minimum(spread.clamp(max=50.0).expm1() / count, spread)
    error = student_factor(count) * torch.maximum(moment / count, log_normal).sqrt()
    return error.nan_to_num(nan=torch.inf)


def upper_spread(log_values: Tensor) -> Tensor:
    """Variance of log values as their upper half tells it.

    It is that of a symmetric distribution, about the median: `[*batch]` of `[n, *batch]`.
    """
    median = log_values.median(0).values
    finite = torch.isfinite(median)  # unless half the weights are zero
    above = (log_values - torch.where(finite, median, log_values.amax(0))).clamp_min(0)
    return 2 * above.square().mean(0)


def spread_warnings(log_weights: Tensor) -> tuple[str, ...]:
    r"""Warn where few log weights are spread too far.

    Weights `[n, *batch]`, log-normal with a variance $s^2$ of their logs, have a mean with a
    relative error of $\sqrt{(e^{s^2} - 1) / n}$, that of weights which n draws do not show. An
    error above one nat must be less likely than 10 % (of several data: than not) where $s^2$ is
    uncertain as that of n / 2 normal draws; the number would be off by nats, and its error bar
    too small.

    Example:
        >>> spread_warnings(torch.linspace(-4.0, 4.0, 25))[0]
        'log weights of 25 chains are spread by 2.5 nats: chains that were not seen may carry all
        the weight; use more temperatures or chains'
    """
    count, spread = len(log_weights), upper_spread(log_weights.double())
    whole = log_weights.double().var(0).nan_to_num(nan=torch.inf)
    spread = torch.maximum(spread, torch.minimum(whole, MOST_SKEWED * spread))
    half = count / 2
    chance = SPREAD_CHANCE if spread.numel() == 1 else SPREAD_CHANCE_EACH
    least = float(scipy.special.chdtri(half, 1 - chance)) / half
    failing = spread / least > math.log1p(SPREAD_ERROR**2 * count)
    if not dominates(failing, mean_exp_std_error(log_weights)):
        return ()
    where = "" if spread.dim() == 0 else f" for {int(failing.sum())} of {failing.numel()} data"
    text = f"log weights of {count} chains are spread by {spread.max().sqrt():.2g} nats{where}"
    advice = "chains that were not seen may carry all the weight; use more temperatures or chains"
    return (f"{text}: {advice}",)


def widened_by_skew(std_error: Tensor, skewness: Tensor | float) -> Tensor:
    r"""Widen standard errors for the skewness of weights.

    The mean of weights that are skewed to the right falls short of the truth by many of its own
    standard errors oftener than a normal variable: its quantile at u is about $u - \kappa (2 u^2 +
    1) / 6$, with $\kappa$ the skewness of the sum over data. The factor is for u = -4.

    Johnson (1978), "Modified t tests and confidence intervals for asymmetrical populations".

    Args:
        std_error: of log Z, nats, `[data]` or `[]`.
        skewness: of the mean weights, same shape.
    """
    of_sum = (std_error**3 * skewness).sum() / std_error.square().sum() ** 1.5
    return std_error * (1 + SKEW_FACTOR * of_sum.nan_to_num(0.0, 0.0, 0.0))


def tail_cost(pareto_k: Tensor, std_error: Tensor, num_particles: int) -> Tensor:
    r"""Estimate the error in log Z from a heavy tail.

    It is in nats, $\log(1 + \mathrm{se}\, K^{\max(k - 1, 0)})$.

    The mean of K draws with a Pareto tail of shape k > 1 grows as $K^{k - 1}$ for ever.
    """
    return (std_error * float(num_particles) ** (pareto_k - 1).clamp(0, 100)).log1p()


def dominates(failing: Tensor, cost: Tensor) -> bool:
    """Check whether failing data dominate the error of the sum.

    They do if they make up a large part of the variance of the sum over data.

    Single data exceed any threshold by chance; what counts is what they can cost the sum.

    Args:
        failing: which data fail, `[data]` or `[]`.
        cost: error of each datum in nats, same shape; infinite or NaN where it is unknown.
    """
    both = torch.broadcast_tensors(failing, cost.double())
    failing, cost = map(torch.atleast_1d, both)
    if not bool(torch.isfinite(cost[failing]).all()):
        return True
    squares = cost.nan_to_num(0.0, 0.0, 0.0).square()
    if not bool(failing.any()):
        return False
    part, total = float(squares[failing].sum()), float(squares.sum())
    share = part / total if total else float(failing.double().mean())
    return share > ALARMING_SHARE


def tail_warnings(
    pareto_k: Tensor, std_error: Tensor | None = None, num_particles: int = 1000
) -> tuple[str, ...]:
    """Warn where Pareto shapes are too large.

    Shapes are `[data]` or `[]`. What counts is how much the data can cost their sum.

    Args:
        pareto_k: shapes of the weights' tails.
        std_error: nats, same shape; equal for all data where not given.
        num_particles: draws behind each shape.

    Example:
        >>> tail_warnings(torch.tensor(0.9))
        ('Pareto k is 0.90 > 0.7',)
    """
    error = torch.ones_like(pareto_k) if std_error is None else std_error
    failing = pareto_k > UNRELIABLE_K
    if not dominates(failing, tail_cost(pareto_k, error, num_particles)):
        return ()
    worst = f"{pareto_k.max().item():.2f} > {UNRELIABLE_K}"
    if not pareto_k.dim():
        return (f"Pareto k is {worst}",)
    count = f"{int(failing.sum())} of {pareto_k.numel()} data"
    return (f"Pareto k is up to {worst} for {count}, which make up most of the error of the sum",)
