"""Thermodynamic integration and stepping-stone sampling.

Both estimate log Z from chains at all temperatures at once.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.compile import CompileMode
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.program import Bound
from ppl_dgm.sampling.checkpoint import Checkpoint, checkpoint_of, switch_of
from ppl_dgm.sampling.convergence import (
    acceptance_alarm,
    chain_ess,
    divergence_warnings,
    r_hat_warnings,
    series_std_error,
    split_r_hat,
)
from ppl_dgm.sampling.kernels import HMC, Kernel
from ppl_dgm.sampling.memory import MEMORY, join_parts
from ppl_dgm.sampling.smc.parallel_tempering import Ladders, Rungs
from ppl_dgm.sampling.smc.paths import Path, Start, check_start, clipping_alarm, divide
from ppl_dgm.sampling.smc.population import Plan, Population, Tempering
from ppl_dgm.sampling.smc.resampling import resample, shuffle
from ppl_dgm.validation import check_least

__all__ = ["SteppingStone", "ThermodynamicIntegration"]

BIASED = 4.0  # standard errors of a sum over data that the error of a rule may be
STUCK_R_HAT = 1.2  # of chains at any temperature, of which there are many


class Integral(NamedTuple):
    """Estimate of log Z with its error terms.

    log Z is `[*batch]`. The mean of its linearised series `[chains, draws, *batch]` has the error
    of log Z; a quadrature rule leaves out another error, `[*batch]`, by which log Z is too high.
    """

    log_z: Tensor
    series: Tensor
    quadrature_error: Tensor


class Part(NamedTuple):
    """What one part of the data gives, `[*batch]` each."""

    log_z: Tensor
    std_error: Tensor
    quadrature_error: Tensor
    diagnostics: dict[str, Tensor]


@dataclass(frozen=True)
class TemperedChains(Estimator):
    """Base class of estimators from chains at all temperatures.

    Thermodynamic integration and stepping stones share it; all chains run at once.

    To add an estimator, implement `integrate`.
    """

    num_temperatures: int = 24
    num_chains: int = 4
    num_draws: int = 500
    num_warmup: int = 200
    start: Start = "prior"
    kernel: Kernel = field(default_factory=HMC)
    num_pilots: int = 48
    memory: int = MEMORY
    compile: CompileMode = "auto"
    checkpoint: str | PathLike | None = None

    def __post_init__(self) -> None:
        check_least(
            self,
            num_temperatures=2,
            num_chains=2,
            num_draws=8,
            num_warmup=1,
            num_pilots=8,
            memory=1,
        )
        if not self.kernel.adjusted:
            raise ValueError(
                f"{type(self.kernel).__name__} leaves no density invariant, so that means over its "
                "chains are biased; use HMC, MALA or RandomWalk, or give it to AIS, which weights "
                "its error away"
            )

    def draws_from(self, bound: Bound) -> Start:
        return self.start

    def check(self, bound: Bound) -> None:
        check_start(bound, self.start)

    def with_twice_the_moves(self) -> "TemperedChains":
        """The same with twice as many draws and warm-up moves."""
        return replace(self, num_draws=2 * self.num_draws, num_warmup=2 * self.num_warmup)

    @abstractmethod
    def integrate(self, beta: Tensor, tilts: Tensor) -> Integral:
        """log Z from the draws at all temperatures.

        Args:
            beta: inverse temperatures, `[rungs, *batch]`.
            tilts: log f_1 - log f_0 at the draws, `[draws, chains, rungs, *batch]`.
        """

    def estimate(self, bound: Bound) -> Estimate:
        checkpoint = checkpoint_of(self, bound)
        rows = max(self.num_pilots, self.num_chains * (self.num_temperatures + 1))
        parts = [
            self._part(path, checkpoint, first)
            for first, path in divide(
                bound, self.start, rows, self.memory, self.kernel, switch_of(self)
            )
        ]
        log_z, error, quadrature = (
            join_parts([getattr(part, name) for part in parts])
            for name in ("log_z", "std_error", "quadrature_error")
        )
        diagnostics: dict[str, Any] = {
            name: join_parts([part.diagnostics[name] for part in parts])
            for name in parts[0].diagnostics
        }
        diagnostics["quadrature_error"] = quadrature.abs()
        warnings = clipping_alarm(bound, self.start) + acceptance_alarm(diagnostics["acceptance"])
        warnings += quadrature_alarm(quadrature, error)
        warnings += r_hat_warnings(diagnostics["r_hat"])
        warnings += r_hat_warnings(diagnostics["largest_r_hat"], "some temperature", STUCK_R_HAT)
        if isinstance(self.kernel, HMC):
            warnings += divergence_warnings(diagnostics["divergent"], "some temperature")
        return Estimate(log_z, error, diagnostics, warnings)

    def _part(self, path: Path, checkpoint: Checkpoint, first: int) -> Part:
        pilot = Tempering(path, self.kernel, self.num_pilots).run(checkpoint, f"pilot from {first}")
        plan = Plan.learn(pilot)
        beta = plan.temperatures(self.num_temperatures)
        rungs = Rungs(
            path, self.kernel, plan, beta, self.num_chains, self.num_warmup, self.num_draws
        )
        ladders = rungs.run(checkpoint, f"chains from {first}", self._first_points(path, pilot))
        found = self.integrate(beta, ladders.tilts)
        error = (series_std_error(found.series).square() + found.quadrature_error.square()).sqrt()
        diagnostics = self._diagnostics(ladders, found.series)
        return Part(found.log_z, error, found.quadrature_error, diagnostics)

    def _first_points(self, path: Path, pilot: Population) -> Tensor:
        """Choose the first point of each chain.

        The lower half of the rungs gets prior draws, the upper half those of the pilot: `[chains *
        rungs, *batch, dim]`.

        Prior draws that the data rule out are the pilot's too: chains that must first find the
        support learn no step.
        """
        rungs = self.num_temperatures + 1
        prior = path.draw(self.num_chains * rungs)
        chosen = shuffle(resample(pilot.log_weights.squeeze(1), len(prior))).unsqueeze(-1)
        ruled_out = path.target.evaluate(prior, gradient=False).tilt == -torch.inf
        rung = (
            torch.arange(len(prior), device=prior.device).reshape(-1, *(1,) * (ruled_out.dim() - 1))
            % rungs
        )
        posterior = pilot.state.point.gather(0, chosen.expand(prior.shape))
        return torch.where(((2 * rung >= rungs) | ruled_out).unsqueeze(-1), posterior, prior)

    def _diagnostics(self, ladders: Ladders, series: Tensor) -> dict[str, Tensor]:
        r_hat = split_r_hat(ladders.tilts[:, :, 1:].transpose(0, 1))
        return {
            "acceptance": ladders.acceptance.mean(0) / self.num_draws,
            "divergent": ladders.divergent.mean(0) / self.num_draws,
            "swaps": 2 * ladders.swaps.amin(0) / self.num_draws,
            "ess": chain_ess(series),
            "r_hat": r_hat[-1],
            "largest_r_hat": r_hat.amax(0),
        }


@checked
@dataclass(frozen=True)
class ThermodynamicIntegration(TemperedChains):
    r"""Thermodynamic integration along tempered posteriors.

    $\log Z = \int_0^1 \mathbb{E}_\beta[\log p(x \mid y)]\, d\beta$, by the trapezoid rule with the
    end correction of Friel, Hurn and Wyse (2014), "Improving power posterior estimation of
    statistical evidence", eq. 10: $\sum_i \tfrac{\Delta_i}{2}(E_i + E_{i+1}) -
    \tfrac{\Delta_i^2}{12}(V_{i+1} - V_i)$, at temperatures that a pilot finds. The first interval
    is a stepping stone, because under a heavy-tailed prior $\mathbb{E}_0$ need not exist. Chains at
    all temperatures run at once, neighbours exchanging points. The standard error counts
    autocorrelation and the dependence between temperatures, and the rule's own error, a seventh of
    what half as many nodes change (a rule of fourth order, which few nodes do not reach). It costs
    `num_chains * num_temperatures * (num_draws + num_warmup)` moves for each datum.

    Gelman and Meng (1998), "Simulating normalizing constants"; Lartillot and Philippe (2006).

    Args:
        num_temperatures: intervals of the rule, 3 or more.
        num_chains: independent chains at each temperature.
        num_draws: moves kept of each chain.
        num_warmup: moves that adapt the step sizes.
        start: `"prior"` or `"guide"`.
        kernel: how chains move.
        num_pilots: particles of the pilot.
        memory: bytes that one evaluation may allocate.
        compile: whether moves run compiled: True, False, or `"auto"`, where that pays.
        checkpoint: a file to continue from if it exists, and to write progress to.

    Raises:
        ValueError: for settings out of range, a kernel that never rejects, or latents that are
            discrete.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        >>> integration = ThermodynamicIntegration(num_draws=100)
        >>> result = integration(ppl_dgm.Program(model), torch.zeros(1), seed=0)
        >>> truth = dist.Normal(0.0, 1.25**0.5).log_prob(torch.zeros(1))
        >>> bool((result.log_z - truth).abs() < 4 * result.std_error)
        True
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, num_temperatures=3)  # of which half as many tell the rule's error

    def integrate(self, beta: Tensor, tilts: Tensor) -> Integral:
        first, first_series = stepping_stones(beta[:2], tilts[:, :, :2])
        beta, tilts = beta[1:], tilts[:, :, 1:]
        mean, variance = tilts.mean((0, 1)), tilts.flatten(0, 1).var(0)
        rest, node = corrected_trapezoid(beta, mean, variance)
        every_second = torch.arange(len(beta)) % 2 == 0
        every_second[-1] = True
        coarse = corrected_trapezoid(
            beta[every_second], mean[every_second], variance[every_second]
        )[0]
        series = first_series + (tilts * node).sum(2).transpose(0, 1)
        return Integral(first + rest, series, (coarse - rest) / 7)


def quadrature_alarm(quadrature_error: Tensor, std_error: Tensor) -> tuple[str, ...]:
    """Warn where errors of the rule add up over data.

    They are alike for all data, and outweigh the error of the sum.

    Args:
        quadrature_error: by which log Z is too high, nats, `[data]` or `[]`.
        std_error: of log Z, same shape.
    """
    bias, error = float(quadrature_error.sum()), float(std_error.square().sum().sqrt())
    if not abs(bias) > BIASED * error:
        return ()
    warning = (
        f"the integral over temperatures is off by some {abs(bias):.2g} nats in all, beside an "
        f"error of {error:.2g}; raise num_temperatures, or use SteppingStone"
    )
    return (warning,)


def corrected_trapezoid(beta: Tensor, mean: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Integrate by the trapezoid rule with end correction.

    The function has values `mean` and derivatives `slope` at `beta`, `[nodes, *batch]`; the weights
    are returned too.
    """
    width = beta[1:] - beta[:-1]
    none = torch.zeros_like(width[:1])
    node = (torch.cat([width, none]) + torch.cat([none, width])) / 2
    correction = (width.square() / 12 * (slope[1:] - slope[:-1])).sum(0)
    return (node * mean).sum(0) - correction, node


@checked
@dataclass(frozen=True)
class SteppingStone(TemperedChains):
    r"""Stepping-stone sampling: importance-sampling ratios between neighbouring temperatures.

    $\log Z = \sum_i \log \mathbb{E}_{\beta_i}[p(x \mid y)^{\beta_{i+1} - \beta_i}]$: no error of
    integration. The standard error is the delta method's on the sum, autocorrelation and dependence
    between temperatures counted. Chains are those of `ThermodynamicIntegration`, at the same cost.

    Xie, Lewis, Fan, Kuo and Chen (2011), "Improving marginal likelihood estimation for Bayesian
    phylogenetic model selection".

    Args:
        num_temperatures: number of ratios.
        num_chains: independent chains at each temperature.
        num_draws: moves kept of each chain.
        num_warmup: moves that adapt the step sizes.
        start: `"prior"` or `"guide"`.
        kernel: how chains move.
        num_pilots: particles of the pilot.
        memory: bytes that one evaluation may allocate.
        compile: whether moves run compiled: True, False, or `"auto"`, where that pays.
        checkpoint: a file to continue from if it exists, and to write progress to.

    Raises:
        ValueError: for settings out of range, a kernel that never rejects, or latents that are
            discrete.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        >>> result = SteppingStone(num_draws=100)(ppl_dgm.Program(model), torch.zeros(1), seed=0)
        >>> truth = dist.Normal(0.0, 1.25**0.5).log_prob(torch.zeros(1))
        >>> bool((result.log_z - truth).abs() < 4 * result.std_error)
        True
    """

    def integrate(self, beta: Tensor, tilts: Tensor) -> Integral:
        log_z, series = stepping_stones(beta, tilts)
        return Integral(log_z, series, torch.zeros_like(log_z))


def stepping_stones(beta: Tensor, tilts: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log Z by stepping stones.

    It is the log of the product of ratios between neighbours; its linearised series `[chains,
    draws, *batch]` is returned too.
    """
    exponents = (beta[1:] - beta[:-1]) * tilts[:, :, :-1]
    log_ratios = exponents.flatten(0, 1).logsumexp(0) - math.log(tilts.shape[0] * tilts.shape[1])
    return log_ratios.sum(0), (exponents - log_ratios).exp().sum(2).transpose(0, 1)
