"""Annealed importance sampling, forwards from the start of a path and backwards from an exact posterior draw."""

from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.compile import CompileMode, check_compile
from ppl_dgm.evidence.base import Estimate, Estimator
from ppl_dgm.evidence.checkpoint import Checkpoint, fingerprint, switch_of
from ppl_dgm.evidence.paths import (
    Path,
    Start,
    check_start,
    clipping_alarm,
    divide,
    linear_temperatures,
    sigmoid_temperatures,
)
from ppl_dgm.evidence.smc import acceptance_alarm, check_at_least, join, mean_exp_std_error
from ppl_dgm.evidence.tempering import Plan, Tempering
from ppl_dgm.kernels import HMC, Kernel, State, power
from ppl_dgm.program import Bound
from ppl_dgm.resampling import effective_size
from ppl_dgm.weights import MEMORY, log_mean_exp, pareto_k

Schedule = Literal["adaptive", "sigmoid", "linear"]
SCHEDULES = ("adaptive", "sigmoid", "linear")
CHAINS_FOR_TAIL = 100
LOW_ESS = 0.1


class Walk(NamedTuple):
    """Chains on their way along a path.

    `log_weights` are `[chains, *batch]`, `acceptance` sums over the moves for each chain and datum, both float64;
    `by_temperature` and `overlap` are `[temperatures]`, means over chains and data.
    """

    step: int
    state: State
    log_weights: Tensor
    acceptance: Tensor
    by_temperature: Tensor
    overlap: Tensor


@dataclass(frozen=True)
class Annealing:
    r"""Chains along a fixed sequence of temperatures, either way.

    Forwards, $\log w = \sum_t (\beta_t - \beta_{t-1})\,[\log f_1 - \log f_0](y_{t-1})$ with $y_t \sim K_t(\cdot \mid
    y_{t-1})$; backwards the negative of that, with the same transitions in the opposite order. The temperatures, step
    sizes and scales are fixed beforehand, so that $\mathbb{E}\, w = Z$ forwards from $f_0$ and $\mathbb{E}\, w = 1/Z$
    backwards from the posterior, for any number of temperatures.

    Args:
        path: the path of densities.
        kernel: transitions.
        plan: step sizes and scales along the path.
        beta: inverse temperatures, `[T + 1]` or `[T + 1, *batch]`, from 0 to 1.
    """

    path: Path
    kernel: Kernel
    plan: Plan
    beta: Tensor

    def forwards(self, checkpoint: Checkpoint, name: str, num_chains: int) -> Walk:
        """Anneal chains from fresh draws at the start of the path."""
        return self._run(checkpoint, name, self.path.draw(num_chains), self.beta)

    def backwards(self, checkpoint: Checkpoint, name: str, point: Tensor) -> Walk:
        """Anneal chains from points `[chains, *batch, dim]` of the posterior to the start of the path."""
        return self._run(checkpoint, name, point, self.beta.flip(0))

    def _run(self, checkpoint: Checkpoint, name: str, point: Tensor, beta: Tensor) -> Walk:
        last = len(beta) - 1
        start = self.begin(point, last)
        return checkpoint.loop(name, start, lambda walk: self.advance(walk, beta), lambda walk: walk.step == last)

    def begin(self, point: Tensor, num_temperatures: int) -> Walk:
        """Chains at their first points, with weights of one."""
        state = self.path.target.evaluate(point, self.kernel.uses_gradient)
        zero = torch.zeros_like(state.base, dtype=torch.float64)
        return Walk(0, state, zero, zero, zero.new_ones(num_temperatures), zero.new_ones(num_temperatures))

    def advance(self, walk: Walk, beta: Tensor) -> Walk:
        """One temperature further: weight, then move (not at the end, where no weight depends on it)."""
        step = walk.step
        if step + 2 == len(beta):
            increments, walk.overlap[step] = reweigh(walk.state, beta[step], beta[step + 1])
            return walk._replace(step=step + 1, log_weights=walk.log_weights + increments)
        now = walk.state, walk.log_weights, walk.acceptance
        given = self.kernel, self.plan, *now, beta[step], beta[step + 1]
        moved = self.path.run(temperature, *given, step=step, last=len(beta) - 2)
        state, log_weights, acceptance, walk.overlap[step], walk.by_temperature[step + 1] = moved
        return walk._replace(step=step + 1, state=state, log_weights=log_weights, acceptance=acceptance)


def temperature(
    path: Path,
    kernel: Kernel,
    plan: Plan,
    state: State,
    log_weights: Tensor,
    acceptance: Tensor,
    beta: Tensor,
    new_beta: Tensor,
) -> tuple[State, Tensor, Tensor, Tensor, Tensor]:
    """Weight and move: new states, weights and sums of acceptances, and the means of overlap and acceptance."""
    increments, overlap = reweigh(state, beta, new_beta)
    step_size, scale = (part.to(state.point.dtype) for part in plan.at(new_beta))
    move = kernel.move(path.target, state, new_beta.to(state.point.dtype), step_size, scale)
    accepted = move.acceptance.double()
    return move.state, log_weights + increments + move.correction, acceptance + accepted, overlap, accepted.mean()


def reweigh(state: State, beta: Tensor, new_beta: Tensor) -> tuple[Tensor, Tensor]:
    """Increments of the log weights `[chains, *batch]` and their evenness `[]`, from one temperature to the next."""
    increments = power(state.tilt.double(), new_beta - beta)
    return increments, evenness(increments)


def evenness(increments: Tensor) -> Tensor:
    """Effective share of chains `[chains, *batch]` after one increment of their weights, averaged over the data."""
    return (effective_size(increments) / len(increments)).mean()


@dataclass(frozen=True)
class AIS(Estimator):
    r"""Annealed importance sampling, for each datum or for the data set.

    Chains start at exact draws of the prior (or guide), move through `num_temperatures` tempered densities, and gather
    the weight $w = \prod_t f_{\beta_t}(y_{t-1}) / f_{\beta_{t-1}}(y_{t-1})$; $\mathbb{E}\, w = Z$ exactly, so that
    $\log \hat Z = \log \frac1C \sum_c w_c$ is in expectation a lower bound that closes with temperatures and chains. A
    pilot population of its own finds step sizes, scales and, for the adaptive schedule, temperatures that are equally
    far apart (in conditional ESS): the weights stay unbiased because no chain adapts to itself. The standard error is
    that of a mean of `num_chains` weights (delta method, with a log-normal tail and Student's t for few chains). Chains that
    begin where the data are impossible are lost: if that is most of the prior, begin at a guide, or take `SMC`.

    It costs `num_temperatures` moves of `num_chains` chains for each datum, and the pilot about a tenth more.

    Neal (2001), "Annealed importance sampling"; Wu et al. (2017), "On the quantitative analysis of decoder-based generative
    models".

    Args:
        num_temperatures: T; the variance of log w falls as 1/T.
        num_chains: independent chains for each datum.
        start: `"prior"` or `"guide"`; a good guide shortens the path.
        schedule: `"adaptive"` (each datum its own), `"sigmoid"` or `"linear"`.
        kernel: how chains move: HMC, MALA, RandomWalk or ULA of `ppl_dgm.kernels`.
        num_pilots: particles of the pilot.
        memory: bytes that one evaluation may allocate.
        compile: whether moves run compiled: True, False, or `"auto"`, where that pays.
        checkpoint: a file to continue from if it exists, and to write progress to.

    Raises:
        ValueError: for settings out of range, discrete latents, no latents, or a prior that cannot be drawn from.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        >>> result = AIS(num_temperatures=50)(ppl_dgm.Program(model), torch.zeros(1), seed=0)
        >>> truth = dist.Normal(0.0, 1.25**0.5).log_prob(torch.zeros(1))
        >>> bool((result.log_z - truth).abs() < 4 * result.std_error)
        True
    """

    num_temperatures: int = 1000
    num_chains: int = 16
    start: Start = "prior"
    schedule: Schedule = "adaptive"
    kernel: Kernel = field(default_factory=HMC)
    num_pilots: int = 48
    memory: int = MEMORY
    compile: CompileMode = "auto"
    checkpoint: str | PathLike | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_temperatures", 1), ("num_chains", 2), ("num_pilots", 8), ("memory", 1)):
            check_at_least(name, getattr(self, name), least)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; expected one of {SCHEDULES}")
        check_compile(self.compile)

    def check(self, bound: Bound) -> None:
        check_start(bound, self.start)

    def with_twice_the_moves(self) -> "AIS":
        """The same with twice as many temperatures, and so twice the moves."""
        return replace(self, num_temperatures=2 * self.num_temperatures)

    def estimate(self, bound: Bound) -> Estimate:
        checkpoint = Checkpoint(self.checkpoint, fingerprint(self, bound), bound.device)
        walks = []
        rows = max(self.num_chains, self.num_pilots)
        for first, path in divide(bound, self.start, rows, self.memory, self.kernel, switch_of(self)):
            annealing = self.annealing(path, checkpoint, f"pilot from {first}")
            walks.append(annealing.forwards(checkpoint, f"chains from {first}", self.num_chains))
        log_weights = join([walk.log_weights for walk in walks], True)
        diagnostics = weight_diagnostics(log_weights) | move_diagnostics(walks)
        warnings = clipping_alarm(bound, self.start) + chain_alarms(diagnostics, self.num_chains)
        return Estimate(log_mean_exp(log_weights), mean_exp_std_error(log_weights), diagnostics, warnings)

    def annealing(self, path: Path, checkpoint: Checkpoint, name: str) -> Annealing:
        """Temperatures, step sizes and scales for one part of the data, learnt by a pilot population."""
        plan = Plan.learn(Tempering(path, self.kernel, self.num_pilots).run(checkpoint, name))
        if self.schedule == "adaptive":
            beta = plan.temperatures(self.num_temperatures)
        else:
            spacing = sigmoid_temperatures if self.schedule == "sigmoid" else linear_temperatures
            beta = spacing(self.num_temperatures).to(plan.beta.device)
        return Annealing(path, self.kernel, plan, beta)


def weight_diagnostics(log_weights: Tensor) -> dict[str, Any]:
    """What the chains' log weights `[chains, *batch]` tell."""
    found = {"num_chains": len(log_weights), "ess": effective_size(log_weights), "log_weight_std": log_weights.std(0)}
    return found | ({"pareto_k": pareto_k(log_weights)} if len(log_weights) >= CHAINS_FOR_TAIL else {})


def move_diagnostics(walks: list[Walk]) -> dict[str, Any]:
    """Mean acceptance of each datum, and acceptance and overlap of each temperature."""
    moves = max(len(walks[0].overlap) - 1, 1)
    counts = [walk.log_weights[0].numel() for walk in walks]
    shares = torch.tensor(counts, dtype=torch.float64, device=walks[0].overlap.device) / sum(counts)
    return {
        "acceptance": join([(walk.acceptance / moves).mean(0) for walk in walks]),
        "acceptance_by_temperature": torch.stack([walk.by_temperature for walk in walks], -1) @ shares,
        "overlap_by_temperature": torch.stack([walk.overlap for walk in walks], -1) @ shares,
    }


def chain_alarms(diagnostics: dict[str, Any], num_chains: int) -> tuple[str, ...]:
    """Warnings where moves fail or few chains carry all the weight."""
    found = acceptance_alarm(diagnostics["acceptance"]) if len(diagnostics["overlap_by_temperature"]) > 1 else ()
    uneven = (diagnostics["ess"] < max(2.0, LOW_ESS * num_chains)).double().mean().item()
    if uneven > LOW_ESS / 2:
        where = "" if diagnostics["ess"].dim() == 0 else f" for {100 * uneven:.2g} % of the data"
        found += (f"few chains carry all the weight{where}; use more temperatures",)
    return found
