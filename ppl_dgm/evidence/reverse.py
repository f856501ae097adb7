"""Reverse annealed importance sampling of partition functions.

Chains run from draws of an unnormalised model down to its base measure.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.annealed import AIS, weight_alarms, weight_diagnostics
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.estimate import BoundKind, Estimate
from ppl_dgm.evidence.exact import draw_gaussian, is_gaussian
from ppl_dgm.evidence.normalising import ladder_to
from ppl_dgm.program import Bound
from ppl_dgm.program.ladder import Ladder
from ppl_dgm.sampling.checkpoint import Checkpoint, checkpoint_of, switch_of
from ppl_dgm.sampling.convergence import mean_exp_std_error, r_hat_warnings, split_r_hat
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.sampling.kernels import State
from ppl_dgm.sampling.memory import join_parts
from ppl_dgm.sampling.smc.annealing import Annealing
from ppl_dgm.sampling.smc.ladder import advance, begin
from ppl_dgm.sampling.smc.paths import divide
from ppl_dgm.sampling.smc.resampling import resample
from ppl_dgm.validation import check_least

__all__ = ["ReverseAIS", "bound_estimate"]

LOOKS = 20  # at the chains while they move, for R-hat


@checked
@dataclass(frozen=True)
class ReverseAIS(Estimator):
    r"""Reverse annealed importance sampling of a partition function.

    It estimates log p(x) of unnormalised programs from the other side than `AIS`.

    Chains start at draws of the model $f_1 / Z$, move down through the densities that `AIS` moves
    up through, to the base measure, and gather $w = \prod_t f_{\beta_{t-1}}(y_t) /
    f_{\beta_t}(y_t)$; $\mathbb{E}\, w = 1 / Z$, so that $-\log \frac1C \sum_c w_c$ is in
    expectation above log Z, and log p(x) below what it is. AIS is in expectation below log Z, so
    that both together hold it between them: `BDMC(method)(program, x)` runs both.

    That is true of exact draws. They are exact where the states of a layer or of the data can be
    summed (up to 20 binary units), where the density is Gaussian, and where you give them; the
    result is then a `"lower"` bound. Elsewhere they are the ends of Markov chains, which start at
    annealed chains resampled by their weights and move `num_moves` times more: the result is an
    `"estimate"`, which may be too high where these chains miss a mode that the model has. Their
    split R-hat (of log f) above 1.05 is an alarm; that no chain has seen a mode is beyond it, but
    where the data, or climbs and chains from elsewhere, show it (`ppl_dgm.evidence.outweighed`).

    It costs as much as AIS; where the draws have to be made, twice that and the moves.

    Burda, Grosse and Salakhutdinov (2015), "Accurate and conservative estimates of MRF
    log-likelihood using reverse annealing"; Grosse, Ghahramani and Adams (2015).

    Args:
        method: the annealing, whose temperatures, chains and kernel are used.
        draws: exact draws of the model, `[chains, *event]`, in place of its own.
        num_moves: moves of the chains at the model, where there are no exact draws.

    Raises:
        ValueError: for settings out of range; on call, for programs without a partition function,
            and draws of another shape.

    Example:
        >>> import torch, ppl_dgm
        >>> rbm, x = ppl_dgm.families.RBM(6, 3), torch.eye(6)
        >>> found = ReverseAIS(AIS(num_temperatures=50))(rbm, x)
        >>> truth = ppl_dgm.evidence.Exact()(rbm, x)
        >>> found.bound, bool((found.log_z - truth.log_z).abs().max() < 0.05)
        ('lower', True)
    """

    bound: ClassVar[BoundKind] = "upper"  # of log Z

    method: AIS = field(default_factory=AIS)
    draws: Tensor | None = None
    num_moves: int = 200

    def __post_init__(self) -> None:
        check_least(self, num_moves=1)
        if self.draws is not None and (self.draws.dim() < 1 or len(self.draws) < 2):
            raise ValueError(
                f"draws have shape {list(self.draws.shape)}; expected [chains, *event] with at "
                "least 2 chains"
            )

    def kind(self, bound: Bound) -> BoundKind:
        exact = self.draws is not None or has_exact_draws(bound)
        return type(self).bound if exact else "estimate"

    def check(self, bound: Bound) -> None:
        raise ValueError(
            "ReverseAIS starts from draws of the model that a partition function is of, but here "
            "the evidence is an integral over drawn latents; use AIS, and BDMC for bounds on "
            "simulated data"
        )

    def partition(self, free: Bound) -> Estimate:
        return self.estimate(free)  # that `check` refuses where data are given

    def estimate(self, bound: Bound) -> Estimate:
        log_weights, r_hats = [], []
        for slope in self._slopes(bound):
            start, r_hat = self._start(slope)
            log_weights.append(slope.down(start))
            r_hats.append(r_hat)
        joined = join_parts(log_weights, True)
        found, r_hat = bound_estimate(-joined, -1.0, {}), join_parts(r_hats)
        return found._replace(
            diagnostics={**found.diagnostics, "num_chains": len(joined), "r_hat": r_hat},
            warnings=weight_alarms(joined) + r_hat_warnings(r_hat, "the model"),
        )

    def _slopes(self, free: Bound) -> Iterator["Slope"]:
        """Yield the way down for each part of the data."""
        method, given = self.method, 0 if self.draws is None else len(self.draws)
        if given and (free.num_data or 1) > 1:
            raise ValueError(
                f"the program has {free.num_data} partition functions, one for each datum's "
                "covariates, so that draws belong to none of them; leave them out, or give data "
                "of one covariate at a time"
            )
        checkpoint = checkpoint_of(method, free, given=self.draws, num_moves=self.num_moves)
        ladder = ladder_to(free)
        if ladder is not None:
            yield LadderSlope(ladder, method.rungs(ladder), checkpoint)
            return
        rows = max(method.num_chains, method.num_pilots, given)
        for first, path in divide(
            free, method.start, rows, method.memory, method.kernel, switch_of(method)
        ):
            annealing = method.annealing(path, checkpoint, f"pilot from {first}")
            yield PathSlope(annealing, checkpoint, first)

    def _start(self, slope: "Slope") -> tuple[Tensor, Tensor]:
        """Return points of the model, with R-hat.

        It is that of the chains that made the points, 1 where these are exact draws.
        """
        count = self.method.num_chains
        point = slope.exact(count) if self.draws is None else slope.given(self.draws)
        if point is not None:
            return point, slope.log_density(point)[0].double() * 0 + 1
        point, series = drawn(*slope.up(count)), []
        for _ in range(LOOKS):
            for _ in range(math.ceil(self.num_moves / LOOKS)):
                point = slope.move(point)
            series.append(slope.log_density(point))
        return point, split_r_hat(torch.stack(series[LOOKS // 2 :], 1))


def has_exact_draws(free: Bound) -> bool:
    """Check whether the model without data can be drawn exactly."""
    ladder = ladder_to(free)
    return is_gaussian(free) if ladder is None else ladder.states() is not None


def drawn(point: Tensor, log_weights: Tensor) -> Tensor:
    """Resample points `[chains, *batch, ...]` by weights `[chains, *batch]`."""
    index = resample(log_weights, len(point))
    index = index.reshape(*index.shape, *[1] * (point.dim() - index.dim()))
    return point.gather(0, index.expand_as(point))


def bound_estimate(log_z: Tensor, sign: float, diagnostics: Mapping[str, Tensor]) -> Estimate:
    """Combine the log Z estimates of chains into a bound.

    The log of the mean of Z (sign 1), or minus the log of the mean of 1/Z (sign -1), over estimates
    `[chains, *batch]`.
    """
    signed = sign * log_z
    found = {**weight_diagnostics(signed), **diagnostics}
    return Estimate(sign * log_mean_exp(signed), mean_exp_std_error(signed), found)


class Slope(ABC):
    """The way between base measure and model, up and down.

    Points are `[chains, ...]`, log weights and densities `[chains, *batch]`.
    """

    @abstractmethod
    def exact(self, num_chains: int) -> Tensor | None:
        """Draw points of the model exactly, or return None."""

    @abstractmethod
    def given(self, draws: Tensor) -> Tensor:
        """Return the points of data `[chains, *event]`."""

    @abstractmethod
    def up(self, num_chains: int) -> tuple[Tensor, Tensor]:
        """Anneal chains to the model: points and log weights."""

    @abstractmethod
    def down(self, point: Tensor) -> Tensor:
        """Anneal chains from points of the model: log weights."""

    @abstractmethod
    def move(self, point: Tensor) -> Tensor:
        """Move points once at the model."""

    @abstractmethod
    def log_density(self, point: Tensor) -> Tensor:
        """Compute log f of points at the model."""


@dataclass(frozen=True)
class LadderSlope(Slope):
    """The way along a model's own ladder of densities."""

    ladder: Ladder
    beta: Tensor
    checkpoint: Checkpoint

    def exact(self, num_chains: int) -> Tensor | None:
        states = self.ladder.states()
        return None if states is None else states.draw(num_chains)

    def given(self, draws: Tensor) -> Tensor:
        example = self.ladder.draw(1)
        check_event(draws, example.shape[1:])
        return draws.to(example)

    def up(self, num_chains: int) -> tuple[Tensor, Tensor]:
        return self._climb("up", self.ladder.draw(num_chains), self.beta)

    def down(self, point: Tensor) -> Tensor:
        return self._climb("down", point, self.beta.flip(0))[1]

    def move(self, point: Tensor) -> Tensor:
        return self.ladder.move(point)

    def log_density(self, point: Tensor) -> Tensor:
        return self.ladder.log_density(point, 1.0)

    def _climb(self, name: str, point: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        climb = self.checkpoint.loop(
            name,
            begin(point, 1, len(beta) - 1),
            lambda climb: advance(self.ladder, climb, beta),
            lambda climb: climb.step == len(beta) - 1,
        )
        return climb.point, climb.log_weights[0]


@dataclass(frozen=True)
class PathSlope(Slope):
    """The way along tempered densities, for real data."""

    annealing: Annealing
    checkpoint: Checkpoint
    first: int  # of the data that the path belongs to

    def exact(self, num_chains: int) -> Tensor | None:
        bound = self.annealing.path.space.bound
        return draw_gaussian(bound, num_chains) if is_gaussian(bound) else None

    def given(self, draws: Tensor) -> Tensor:
        space = self.annealing.path.space
        ((name, value),) = space.bound.draw_prior(1).values.items()
        check_event(draws, value.shape[1 + len(space.batch) :])
        values = {name: draws.to(value).reshape(-1, *[1] * len(space.batch), *draws.shape[1:])}
        return space.unconstrain(values).expand(-1, *space.batch, -1).contiguous()

    def up(self, num_chains: int) -> tuple[Tensor, Tensor]:
        walk = self.annealing.forwards(self.checkpoint, f"up from {self.first}", num_chains)
        return walk.state.point, walk.log_weights

    def down(self, point: Tensor) -> Tensor:
        name = f"down from {self.first}"
        return self.annealing.backwards(self.checkpoint, name, point).log_weights

    def move(self, point: Tensor) -> Tensor:
        annealing, one = self.annealing, point.new_ones(())
        step_size, scale = (part.to(point.dtype) for part in annealing.plan.at(one.double()))
        state = self._state(point)
        target = annealing.path.target
        return annealing.kernel.move(target, state, one, step_size, scale).state.point

    def log_density(self, point: Tensor) -> Tensor:
        state = self._state(point)
        return state.base + state.tilt

    def _state(self, point: Tensor) -> State:
        annealing = self.annealing
        return annealing.path.target.evaluate(point, annealing.kernel.uses_gradient)


def check_event(draws: Tensor, event: torch.Size) -> None:
    """Refuse draws of another shape or not finite."""
    if draws.shape[1:] != event or not bool(torch.isfinite(draws).all()):
        raise ValueError(
            f"draws have shape {list(draws.shape)}; expected finite draws of the model, "
            f"[chains, *{list(event)}]"
        )
