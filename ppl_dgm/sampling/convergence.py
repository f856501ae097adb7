"""Convergence diagnostics: ESS, R-hat, tails, acceptance."""

import math

import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from scipy import stats
from torch import Tensor

MAX_R_HAT = 1.05
CONSTANT = 1e-12  # relative variance below which a series does not move


def r_hat_warnings(r_hat: Tensor) -> tuple[str, ...]:
    """Warn of chains that disagree."""
    if not bool((r_hat > MAX_R_HAT).any()):
        return ()
    return (f"split R-hat is up to {r_hat.max().item():.3f} > {MAX_R_HAT}: the chains disagree",)


def chain_ess(series: Tensor) -> Tensor:
    """Effective sample size of series `[chains, draws, ...]`, autocorrelation and differences of chains counted.

    Vehtari et al. (2021), eq. 10, by Pyro; at most the number of draws, and all of them where nothing varies.
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


def split_r_hat(series: Tensor) -> Tensor:
    """Split R-hat of series `[chains, draws, ...]`; 1 where nothing varies."""
    value = split_gelman_rubin(series.double(), chain_dim=0, sample_dim=1)
    return value.nan_to_num(1.0, posinf=float("inf")).clamp_min(1.0)


LOW_ACCEPTANCE = 0.1


def mean_exp_std_error(log_values: Tensor) -> Tensor:
    r"""Standard error of log(mean(exp(.))) over the first dimension, for few values: `[*batch]`.

    The delta method, $\mathrm{sd}(w) / (\bar w \sqrt n)$, times the ratio of Student's to the normal 97.5 % quantile. If the
    upper half of the log values is spread more than that tells, as far tails that few draws do not show would be, the
    value of a log-normal distribution with that spread s, $\sqrt{(e^{s^2} - 1) / n}$, but at most s, is taken in its
    place.

    Args:
        log_values: nats, `[n, *batch]`; infinite error where all weights are zero.
    """
    count = len(log_values)
    log_values = log_values.double()
    weights = (log_values - log_values.logsumexp(0)).exp() * count
    moment = weights.var(0)
    median = log_values.median(0).values
    centre = torch.where(
        torch.isfinite(median), median, log_values.amax(0)
    )  # where half the weights are zero
    above = (log_values - centre).clamp_min(0)
    spread = 2 * above.square().mean(0)
    log_normal = torch.minimum(spread.clamp(max=50.0).expm1() / count, spread)
    student = float(stats.t.ppf(0.975, count - 1) / stats.norm.ppf(0.975))
    return (student * torch.maximum(moment / count, log_normal).sqrt()).nan_to_num(nan=torch.inf)


def acceptance_alarm(acceptance: Tensor) -> tuple[str, ...]:
    """A warning where moves are hardly ever accepted."""
    lowest = float(acceptance.min())
    if math.isnan(lowest) or lowest >= LOW_ACCEPTANCE:
        return ()
    return (f"only {100 * lowest:.2g} % of the moves are accepted somewhere; chains hardly move",)


LARGE_R_HAT = 1.05  # of chains at the posterior


def series_ess(series: Tensor) -> Tensor:
    """Effective number of draws of series `[chains, draws, *batch]`, autocorrelation and chains counted."""
    total = float(series.shape[0] * series.shape[1])
    return (
        effective_sample_size(series, chain_dim=0, sample_dim=1).nan_to_num(total).clamp(1.0, total)
    )


def series_std_error(series: Tensor) -> Tensor:
    """Standard error of the mean of series `[chains, draws, *batch]`."""
    return (series.flatten(0, 1).var(0) / series_ess(series)).sqrt()


def r_hat_alarm(
    r_hat: Tensor, place: str = "the posterior", limit: float = LARGE_R_HAT
) -> tuple[str, ...]:
    """A warning where chains at a place of the path disagree."""
    high = (r_hat > limit).double().mean().item()
    if high <= (0 if r_hat.dim() == 0 else 0.05):
        return ()
    return (f"chains at {place} disagree: R-hat is up to {r_hat.max().item():.3g}; run longer",)


UNRELIABLE_K = 0.7  # Pareto shape above which no estimate is to be believed (Vehtari et al. 2024)
CHANCE_SHARE = 0.02  # share of data whose k may exceed that by chance


def tail_warnings(pareto_k: Tensor) -> tuple[str, ...]:
    """Warnings that follow from Pareto shapes, `[data]` or `[]`: single data exceed the threshold by chance.

    Example:
        >>> tail_warnings(torch.tensor(0.9))
        ('Pareto k is 0.90 > 0.7',)
    """
    share = (pareto_k > UNRELIABLE_K).double().mean().item()
    if share <= (CHANCE_SHARE if pareto_k.dim() else 0.0):
        return ()
    worst = f"{pareto_k.max().item():.2f} > {UNRELIABLE_K}"
    return (
        f"Pareto k is up to {worst} for {100 * share:.3g} % of the data"
        if pareto_k.dim()
        else f"Pareto k is {worst}",
    )
