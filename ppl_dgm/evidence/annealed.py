"""Annealed importance sampling (AIS) of the evidence.

Chains run forwards from the start of a path; `BDMC` also runs them backwards from an exact
posterior draw.
"""

from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.compile import CompileMode
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.evidence.normalising import ladder_to
from ppl_dgm.program import Bound
from ppl_dgm.program.ladder import Ladder
from ppl_dgm.sampling.checkpoint import Checkpoint, checkpoint_of, switch_of
from ppl_dgm.sampling.convergence import acceptance_alarm, mean_exp_std_error, spread_warnings
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.sampling.kernels import HMC, Kernel
from ppl_dgm.sampling.memory import MEMORY, join_parts
from ppl_dgm.sampling.smc.annealing import Annealing, Walk
from ppl_dgm.sampling.smc.ladder import Pilot, advance, begin
from ppl_dgm.sampling.smc.paths import (
    Path,
    Start,
    check_start,
    clipping_alarm,
    divide,
    linear_temperatures,
    sigmoid_temperatures,
)
from ppl_dgm.sampling.smc.population import Plan, Tempering
from ppl_dgm.sampling.smc.resampling import effective_size
from ppl_dgm.sampling.weight_summary import WeightSummary
from ppl_dgm.validation import check_least

__all__ = ["AIS", "weight_alarms", "weight_diagnostics"]

Schedule = Literal["adaptive", "sigmoid", "linear"]
SPACINGS = {"sigmoid": sigmoid_temperatures, "linear": linear_temperatures}
CHAINS_FOR_TAIL = 100
LOW_ESS = 0.1


@checked
@dataclass(frozen=True)
class AIS(Estimator):
    r"""Annealed importance sampling of the evidence.

    It gives one estimate for each datum, or one for the data set.

    Chains start at exact draws of the prior (or guide), move through `num_temperatures` tempered
    densities, and gather the weight $w = \prod_t f_{\beta_t}(y_{t-1}) / f_{\beta_{t-1}}(y_{t-1})$;
    $\mathbb{E}\, w = Z$ exactly, so that $\log \hat Z = \log \frac1C \sum_c w_c$ is in expectation
    a lower bound that closes with temperatures and chains. A pilot population of its own finds step
    sizes, scales and, for the adaptive schedule, temperatures that are equally far apart (in
    conditional ESS): the weights stay unbiased because no chain adapts to itself. The standard
    error is that of a mean of `num_chains` weights (delta method, with a log-normal tail and
    Student's t for few chains). Chains that begin where the data are impossible are lost: if that
    is most of the prior, begin at a guide, or take `SMC`.

    It costs `num_temperatures` moves of `num_chains` chains for each datum, and the pilot about a
    tenth more.

    Neal (2001), "Annealed importance sampling"; Wu et al. (2017), "On the quantitative analysis of
    decoder-based generative models".

    Args:
        num_temperatures: T; the variance of log w falls as 1/T.
        num_chains: independent chains for each datum.
        start: `"prior"` or `"guide"`; a good guide shortens the path.
        schedule: `"adaptive"` (each datum its own), `"sigmoid"` or `"linear"`.
        kernel: how chains move: HMC, MALA, RandomWalk or ULA of `ppl_dgm.sampling.kernels`.
        num_pilots: particles of the pilot.
        memory: bytes that one evaluation may allocate.
        compile: whether moves run compiled: True, False, or `"auto"`, where that pays.
        checkpoint: a file to continue from if it exists, and to write progress to.

    Raises:
        ValueError: for settings out of range, discrete latents, no latents, or a prior that cannot
            be drawn from.

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

    independent: ClassVar[str | None] = "num_chains"

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
        check_least(self, num_temperatures=1, num_chains=2, num_pilots=8, memory=1)

    def draws_from(self, bound: Bound) -> Start:
        return self.start

    def check(self, bound: Bound) -> None:
        check_start(bound, self.start)

    def with_twice_the_moves(self) -> "AIS":
        """Return a copy with twice as many temperatures.

        This doubles the number of moves.
        """
        return replace(self, num_temperatures=2 * self.num_temperatures)

    def estimate(self, bound: Bound) -> Estimate:
        checkpoint = checkpoint_of(self, bound)
        walks = []
        rows = max(self.num_chains, self.num_pilots)
        for first, path in divide(
            bound, self.start, rows, self.memory, self.kernel, switch_of(self)
        ):
            annealing = self.annealing(path, checkpoint, f"pilot from {first}")
            walks.append(annealing.forwards(checkpoint, f"chains from {first}", self.num_chains))
        log_weights = join_parts([walk.log_weights for walk in walks], True)
        diagnostics = weight_diagnostics(log_weights) | move_diagnostics(walks)
        warnings = clipping_alarm(bound, self.start) + chain_alarms(diagnostics)
        warnings += weight_alarms(log_weights)
        return Estimate(
            log_mean_exp(log_weights), mean_exp_std_error(log_weights), diagnostics, warnings
        )

    def partition(self, free: Bound) -> Estimate:
        ladder = ladder_to(free)
        if ladder is None:
            return super().partition(free)
        checkpoint = checkpoint_of(self, free)
        beta = self.rungs(ladder)
        start = begin(ladder.draw(self.num_chains), 1, self.num_temperatures)
        climb = checkpoint.loop(
            "ladder",
            start,
            lambda climb: advance(ladder, climb, beta),
            lambda climb: climb.step == self.num_temperatures,
        )
        log_weights = climb.log_weights[0]
        diagnostics = weight_diagnostics(log_weights)
        diagnostics |= {"overlap_by_temperature": climb.overlap}
        return Estimate(
            log_mean_exp(log_weights),
            mean_exp_std_error(log_weights),
            diagnostics,
            weight_alarms(log_weights),
        )

    def rungs(self, ladder: Ladder) -> Tensor:
        """Return inverse temperatures on a ladder, `[T + 1]`.

        A pilot learns them if the schedule is adaptive.
        """
        if self.schedule == "adaptive":
            return Pilot.walk(ladder, self.num_pilots).temperatures(self.num_temperatures)
        return SPACINGS[self.schedule](self.num_temperatures)

    def annealing(self, path: Path, checkpoint: Checkpoint, name: str) -> Annealing:
        """Prepare the annealing of one part of the data.

        A pilot population learns the step sizes, the scales and, if the schedule is adaptive, the
        temperatures.
        """
        plan = Plan.learn(Tempering(path, self.kernel, self.num_pilots).run(checkpoint, name))
        if self.schedule == "adaptive":
            beta = plan.temperatures(self.num_temperatures)
        else:
            beta = SPACINGS[self.schedule](self.num_temperatures).to(plan.beta.device)
        return Annealing(path, self.kernel, plan, beta)


def weight_diagnostics(log_weights: Tensor) -> dict[str, Any]:
    """What the chains' log weights `[chains, *batch]` tell."""
    summary = WeightSummary(len(log_weights))
    summary.add(log_weights)
    found = {
        "num_chains": len(log_weights),
        "ess": summary.ess,
        "log_weight_std": log_weights.std(0),
        "skewness": summary.skewness,
    }
    return found | ({"pareto_k": summary.pareto_k} if len(log_weights) >= CHAINS_FOR_TAIL else {})


def move_diagnostics(walks: list[Walk]) -> dict[str, Any]:
    """Summarise acceptance and overlap of the moves.

    Acceptance is given for each datum (a mean) and for each temperature, overlap for each
    temperature.
    """
    moves = max(len(walks[0].overlap) - 1, 1)
    counts = [walk.log_weights[0].numel() for walk in walks]
    shares = torch.tensor(counts, dtype=torch.float64, device=walks[0].overlap.device) / sum(counts)
    return {
        "acceptance": join_parts([(walk.acceptance / moves).mean(0) for walk in walks]),
        "acceptance_by_temperature": torch.stack([walk.by_temperature for walk in walks], -1)
        @ shares,
        "overlap_by_temperature": torch.stack([walk.overlap for walk in walks], -1) @ shares,
    }


def chain_alarms(diagnostics: dict[str, Any]) -> tuple[str, ...]:
    """Warn of moves that hardly ever succeed."""
    moved = len(diagnostics["overlap_by_temperature"]) > 1
    return acceptance_alarm(diagnostics["acceptance"]) if moved else ()


def weight_alarms(log_weights: Tensor) -> tuple[str, ...]:
    """Warn where log weights `[chains, *batch]` are uneven or wide.

    Few of these chains carry all the weight, or chains that were not seen would.
    """
    few = max(2.0, LOW_ESS * len(log_weights))
    uneven = (effective_size(log_weights) < few).double().mean().item()
    if uneven > LOW_ESS / 2:
        where = "" if log_weights.dim() == 1 else f" for {100 * uneven:.2g} % of the data"
        return (f"few chains carry all the weight{where}; use more temperatures",)
    return spread_warnings(log_weights)
