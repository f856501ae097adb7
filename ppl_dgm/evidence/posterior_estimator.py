"""Base of estimators that need posterior draws."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_dgm.compile import CompileMode, Switch
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.program import Bound
from ppl_dgm.sampling.chains import (
    POINTS_AT_ONCE,
    PosteriorDraws,
    guide_draws,
    hmc_draws,
    nuts_draws,
)
from ppl_dgm.sampling.given_draws import given_draws
from ppl_dgm.sampling.memory import MEMORY, part_of, spans
from ppl_dgm.sampling.unconstrained import Unconstrained
from ppl_dgm.sampling.undefined import undefined_alarm
from ppl_dgm.validation import check_least

__all__ = ["PosteriorEstimator", "estimate_in_parts", "split_halves"]

MANY_CHAINS = 8  # of which one half sees all modes that the other does
PosteriorSource = Literal["hmc", "nuts", "guide"]


@dataclass(frozen=True)
class PosteriorEstimator(Estimator):
    """Base class of estimators that use posterior draws.

    The settings say where the draws come from.

    Args:
        posterior: `"hmc"` (all chains and data at once), `"nuts"` (Pyro's, chain by chain),
            `"guide"` (draws from the guide, resampled by importance), or the user's: a dict of
            `[chains, draws, *site]` (or `[draws, *site]`) by latent.
        num_draws: draws of each chain.
        num_chains: chains that are run; draws of `"guide"` are independent, `num_chains *
            num_draws` of them.
        num_warmup: steps of each chain that adapt it and are discarded.
        num_leapfrog: steps of each move of `"hmc"`.
        memory: bytes that evaluating densities may allocate.
        compile: whether moves of `"hmc"` run compiled: True, False, or `"auto"`, where that pays.
    """

    posterior: PosteriorSource | Mapping[str, Tensor] = "hmc"
    num_draws: int = 100
    num_chains: int = 64
    num_warmup: int = 100
    num_leapfrog: int = 5
    memory: int = field(default=MEMORY, repr=False)
    compile: CompileMode = "auto"

    def __post_init__(self) -> None:
        check_least(self, num_draws=8, num_chains=1, num_warmup=0, num_leapfrog=1, memory=1)

    @abstractmethod
    def estimate_part(self, bound: Bound) -> Estimate:
        """Estimate log Z of a part of the data.

        For one evidence of the data set, the part is all of the data.
        """

    def estimate(self, bound: Bound) -> Estimate:
        if isinstance(self.posterior, Mapping):
            return self.estimate_part(bound)
        return estimate_in_parts(
            bound, POINTS_AT_ONCE * self.num_chains, self.memory, self.estimate_part
        )

    def posterior_draws(self, target: Unconstrained) -> PosteriorDraws:
        """Draws from the posterior, by the settings."""
        draws = self._draw(target)
        return draws._replace(
            edge_share=target.at_edge(draws.flat).double().mean(0),
            undefined=undefined_alarm(target, draws.flat, self.memory),
        )

    def _draw(self, target: Unconstrained) -> PosteriorDraws:
        if isinstance(self.posterior, Mapping):
            return given_draws(target, self.posterior)
        if self.posterior == "guide":
            return guide_draws(target, self.num_chains * self.num_draws)
        if self.posterior == "nuts":
            return nuts_draws(target, self.num_chains, self.num_draws, self.num_warmup)
        switch = Switch(self.compile)
        return hmc_draws(
            target, self.num_chains, self.num_draws, self.num_warmup, self.num_leapfrog, switch
        )


def split_halves(points: Tensor) -> tuple[Tensor, Tensor]:
    """Split chains: half to fit, half to average.

    Of many chains one half is fitted, as the halves of a slow chain resemble each other: a proposal
    fitted to the first would cover the second better than the posterior. Of few chains it is the
    first half of each.

    Returns points `[draws, *batch, dim]` and chains `[chains, draws, *batch, dim]`.
    """
    num_chains, num_draws = points.shape[:2]
    if num_chains >= MANY_CHAINS:
        fitted = num_chains // 2
        return points[:fitted].flatten(0, 1), points[fitted:]
    half = num_draws // 2
    return points[:, :half].flatten(0, 1), points[:, half:]


def estimate_in_parts(
    bound: Bound, num_points: int, memory: int, run: Callable[[Bound], Estimate]
) -> Estimate:
    """Run an estimator on parts of the data, within memory.

    It holds `num_points` points for each datum.
    """
    parts = spans(bound, num_points, memory)
    if len(parts) == 1:
        return run(bound)
    return join_estimates([run(part_of(bound, *part)) for part in parts])


def join_estimates(parts: Sequence[Estimate]) -> Estimate:
    """One estimate of all data from those of its parts."""
    first = parts[0].diagnostics
    diagnostics = {name: join_values([part.diagnostics[name] for part in parts]) for name in first}
    warnings = tuple(dict.fromkeys(warning for part in parts for warning in part.warnings))
    return Estimate(
        torch.cat([part.log_z for part in parts]),
        torch.cat([part.std_error for part in parts]),
        diagnostics,
        warnings,
    )


def join_values(values: Sequence[Any]) -> Any:
    """Join one diagnostic of all parts of the data.

    Tensors are concatenated and tables merged; of numbers the largest is kept.
    """
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    if isinstance(values[0], dict):
        return {key: value for table in values for key, value in table.items()}
    return max(values)
