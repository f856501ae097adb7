"""Posterior draws in unconstrained space.

They come from Markov chains or from the guide.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ppl_dgm.compile import Switch
from ppl_dgm.sampling.convergence import (
    DIVERGENT_SHARE,
    bfmi_warnings,
    copies_warnings,
    divergence_warnings,
    edge_warnings,
    energy_bfmi,
    few_draws_warnings,
    is_divergent,
    r_hat_warnings,
    split_r_hat,
    stein_warnings,
)
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.kernels import HMC, DualAveraging, Target
from ppl_dgm.sampling.kernels.adaptation import nudge_step_size, robust_scale
from ppl_dgm.sampling.kernels.targets import power
from ppl_dgm.sampling.memory import MEMORY, allocated_bytes
from ppl_dgm.sampling.proposals import moments
from ppl_dgm.sampling.smc.resampling import effective_size, next_increment, resample, shuffle
from ppl_dgm.sampling.unconstrained import SplitDensity, Unconstrained, rule_out_overflow
from ppl_dgm.sampling.weight_summary import pareto_k

__all__ = [
    "LEAST_DRAWS",
    "POINTS_AT_ONCE",
    "Frame",
    "PosteriorDraws",
    "Splits",
    "adapted_chains",
    "evaluate",
    "guide_draws",
    "hmc_draws",
    "nuts_draws",
    "tempered_points",
]

LEAST_DRAWS = 8
POINTS_AT_ONCE = 8  # for each chain: an evaluation with its gradient, and the draws kept
WARMUP_ROUNDS = (0.4, 0.6)
CLOUD_FITS = 3  # of the first frame, which so forgets its axes where the draws are many
MIN_TEMPERED = 256  # draws that are tempered, so that few modes are lost
MAX_TEMPERATURES, MOVES_PER_TEMPERATURE = 200, 3
KEPT = 0.5  # share of the draws that is effective after a step in temperature
EAGER = Switch(False)


class Splits(Protocol):
    """What chains need to know of a density.

    It has a prior, to start from, and a likelihood.
    """

    @property
    def dim(self) -> int:
        """Number of coordinates of a point."""
        ...

    @property
    def device(self) -> torch.device:
        """Where points are."""
        ...

    def raw_split(self, point: Tensor) -> SplitDensity:
        """Evaluate both at points `[chains, *batch, dim]`."""
        ...

    def sample_prior(self, num_chains: int) -> Tensor:
        """Draw points from the prior: `[num_chains, *batch, dim]`."""
        ...


class PosteriorDraws(NamedTuple):
    """Posterior draws `[chains, draws, *batch, dim]` with their diagnostics.

    Where draws were resampled, `ess` is how many independent ones they are worth.

    `ess` and `pareto_k` are `[*batch]`, or None for Markov chains, whose draws are correlated
    instead. `divergent`, the share of moves that diverged, and `bfmi` are those of Hamiltonian
    chains, `[*batch]`. `stein` is by how many standard errors given draws fail Stein's identity,
    `copies` how often an average one of them occurs, `edge_share` the share of the draws at the
    edge of floats, `slowest` the effective number of given draws in their slowest coordinate,
    `[*batch]`. `undefined` warns of densities that are NaN around them.
    """

    points: Tensor
    ess: Tensor | None = None
    pareto_k: Tensor | None = None
    divergent: Tensor | None = None
    bfmi: Tensor | None = None
    stein: Tensor | None = None
    copies: Tensor | None = None
    edge_share: Tensor | None = None
    slowest: Tensor | None = None
    undefined: tuple[str, ...] = ()

    @property
    def flat(self) -> Tensor:
        """All draws: `[chains * draws, *batch, dim]`."""
        return self.points.flatten(0, 1)

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """Diagnostics of the draws, by standard names.

        R-hat is always there, the others where Hamiltonian chains or resampled draws have them.
        """
        others = ("points", "ess", "undefined")
        fields = self._asdict().items()
        found = {name: value for name, value in fields if name not in others and value is not None}
        return {"r_hat": split_r_hat(self.points).amax(-1)} | found

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against the draws: chains that disagree or diverged."""
        found = self.undefined + r_hat_warnings(self.diagnostics["r_hat"])
        found += () if self.slowest is None else few_draws_warnings(self.slowest)
        found += () if self.divergent is None else divergence_warnings(self.divergent)
        found += () if self.stein is None else stein_warnings(self.stein)
        found += () if self.copies is None else copies_warnings(self.copies)
        found += () if self.edge_share is None else edge_warnings(self.edge_share)
        return found + (() if self.bfmi is None else bfmi_warnings(self.bfmi))


class Chains(NamedTuple):
    """Markov chains with log densities and step sizes.

    Points are `[draws, chains, *batch, dim]`, log densities `[draws, chains, *batch]`. `divergent`
    is the share of moves that diverged.
    """

    points: Tensor
    log_density: Tensor
    step_size: Tensor
    divergent: Tensor

    @property
    def draws(self) -> PosteriorDraws:
        """The points with what the chains tell of themselves."""
        bfmi = energy_bfmi(self.log_density, self.points.shape[-1])
        return PosteriorDraws(self.points.transpose(0, 1), divergent=self.divergent, bfmi=bfmi)


def evaluate(
    log_density: Callable[[Tensor], Tensor], points: Tensor, memory: int = MEMORY
) -> Tensor:
    """Evaluate log densities at points `[n, *batch, dim]` in chunks.

    The result is `[n, *batch]` in float64. The chunks bound the memory.
    """
    spend(points.shape[:-1].numel())
    size = max(1, int(memory / (allocated_bytes(lambda: log_density(points[:1])) + 1)))
    with torch.no_grad():
        first, *parts = points.split(size)
        result = log_density(first).double()
        # One tensor for all: small results kept between large tensors would pin their memory.
        found = result.new_empty((len(points), *result.shape[1:]))
        for part, place in zip((first, *parts), found.split(size), strict=True):
            place.copy_(result if part is first else log_density(part))
    return rule_out_overflow(found)


# ---- sources -------------------------------------------------------------------------------------


class Frame(NamedTuple):
    """Affine coordinates with zero mean and unit covariance.

    A cloud of points y has these moments in z, where y = mean + L z.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def axes(cls, points: Tensor) -> "Frame":
        """Take coordinates' scales and means of points `[n, *batch, dim]`."""
        return cls(points.mean(0), robust_scale(points).diag_embed())

    def fitted(self, points: Tensor) -> "Frame":
        """Learn moments of points, drawn towards those of this frame.

        This frame counts as `dim` of the points `[n, *batch, dim]`: those of few chains span
        fewer dimensions than there are, and chains would never leave what they span.
        """
        count, dim = points.shape[0], points.shape[-1]
        mean, covariance = moments(self.inward(points))
        one = torch.eye(dim, dtype=points.dtype, device=points.device)
        factor = torch.linalg.cholesky((count * covariance + dim * one) / (count + dim))
        return Frame(self.outward(mean), self.factor @ factor)

    def outward(self, point: Tensor) -> Tensor:
        """z -> y."""
        return self.mean + (self.factor @ point.unsqueeze(-1)).squeeze(-1)

    def inward(self, point: Tensor) -> Tensor:
        """y -> z."""
        return torch.linalg.solve_triangular(
            self.factor, (point - self.mean).unsqueeze(-1), upper=False
        ).squeeze(-1)


def hmc_draws(
    target: Unconstrained,
    num_chains: int,
    num_draws: int,
    num_warmup: int,
    num_leapfrog: int,
    switch: Switch = EAGER,
) -> PosteriorDraws:
    """Draw from the posterior by Hamiltonian Monte Carlo.

    All chains and data move at once, with a dense mass pooled over chains.

    The chains start at tempered draws from the prior; the covariance and the step size of each
    datum are learned in two rounds of warm-up. Where moves diverge, all chains go on with shorter
    steps, twice as many of them.
    """
    kernel = HMC(target_acceptance=0.8, num_leapfrog=num_leapfrog)
    cloud = tempered_points(kernel, target, max(num_chains, MIN_TEMPERED), switch)
    frame, points = Frame.axes(cloud), cloud[:num_chains]
    for _ in range(CLOUD_FITS):
        frame = frame.fitted(cloud)
    chains = adapted_chains(kernel, target, frame, points, num_warmup, num_draws, switch)
    if float(chains.divergent.max()) > DIVERGENT_SHARE:
        careful = replace(kernel, target_acceptance=0.95, num_leapfrog=2 * num_leapfrog)
        again = chains.points[-1], num_warmup, num_draws, switch
        chains = adapted_chains(careful, target, frame, *again)
    return chains.draws


def adapted_chains(
    kernel: HMC,
    target: Splits,
    frame: Frame,
    points: Tensor,
    num_warmup: int,
    num_draws: int,
    switch: Switch = EAGER,
) -> Chains:
    """Chains from points `[chains, *batch, dim]`, after warm-up rounds."""
    step_size = points.new_full(points.shape[:-1], kernel.first_step_size(target.dim))
    for share in WARMUP_ROUNDS:
        num_moves = max(4, int(share * num_warmup))
        chains = run_chains(kernel, target, frame, points, step_size, num_moves, True, switch)
        points = chains.points[-1]
        frame = frame.fitted(chains.points[len(chains.points) // 2 :].flatten(0, 1))
        step_size = chains.step_size.mean(0, keepdim=True).expand_as(step_size)
    return run_chains(kernel, target, frame, points, step_size, num_draws, False, switch)


def tempered_points(kernel: HMC, target: Splits, num_chains: int, switch: Switch) -> Tensor:
    r"""Move prior draws to the posterior by tempering.

    The path is $p(z) p(x \mid z)^\beta$, the result is `[num_chains, *batch, dim]`.

    $\beta$ rises so that half of the effective draws remain at each step; draws are resampled and
    moved (Del Moral, Doucet and Jasra 2006). Modes are so represented in about the right
    proportion.
    """
    tempered = Target(target.raw_split)
    state = tempered.evaluate(target.sample_prior(max(num_chains, MIN_TEMPERED)))
    beta = state.base.new_zeros(state.base.shape[1:])
    step_size = state.base.new_full(state.base.shape, kernel.first_step_size(target.dim))
    for _ in range(MAX_TEMPERATURES):
        increment = next_increment(torch.zeros_like(state.tilt), state.tilt, 1 - beta, KEPT)
        beta = (beta + increment).clamp_max(1.0)
        state = state.gather(resample(power(state.tilt, increment)))
        scale = robust_scale(state.point)
        for _ in range(MOVES_PER_TEMPERATURE):
            spend(step_size.numel(), kernel.cost(step_size))
            move = switch(kernel.move, tempered, state, beta, step_size, scale)
            state = move.state
            step_size = nudge_step_size(
                step_size, move.acceptance.mean(0).expand_as(step_size), 0.7
            )
        if bool((beta >= 1).all()):
            break
    return state.point[torch.randperm(len(state.point), device=target.device)[:num_chains]]


def run_chains(
    kernel: HMC,
    target: Splits,
    frame: Frame,
    points: Tensor,
    step_size: Tensor,
    num_moves: int,
    adapt: bool,
    switch: Switch = EAGER,
) -> Chains:
    """Move all chains, learning step sizes where told so."""

    def density(z: Tensor) -> tuple[Tensor, Tensor]:
        log_joint = target.raw_split(frame.outward(z)).total
        return log_joint, torch.zeros_like(log_joint).detach()

    whitened = Target(density)
    one = points.new_ones(())
    state, steps = whitened.evaluate(frame.inward(points)), DualAveraging.start(step_size)
    visited, densities, diverged = [], [], []
    for _ in range(num_moves):
        spend(step_size.numel(), kernel.cost(step_size))
        move = switch(
            kernel.move, whitened, state, one, steps.step_size if adapt else step_size, one
        )
        state = move.state
        steps = steps.update(move.acceptance, kernel.target_acceptance) if adapt else steps
        visited.append(frame.outward(state.point))
        densities.append(state.base)
        diverged.append(is_divergent(move.log_ratio))
    divergent = torch.stack(diverged).double().mean((0, 1))
    learned = steps.final if adapt else step_size
    return Chains(torch.stack(visited), torch.stack(densities), learned, divergent)


def nuts_draws(
    target: Unconstrained, num_chains: int, num_draws: int, num_warmup: int
) -> PosteriorDraws:
    """Draw from the posterior by Pyro's No-U-Turn sampler.

    Chains run one after the other, each with all data.
    """

    def potential(state: Mapping[str, Tensor]) -> Tensor:
        return -target.log_joint(state["point"].unsqueeze(0)).sum()

    chains, diverged = [], 0
    for start in target.sample_guide(num_chains)[0]:
        mcmc = MCMC(
            NUTS(potential_fn=potential),
            num_draws,
            warmup_steps=num_warmup,
            initial_params={"point": start},
            disable_progbar=True,
        )
        with torch.enable_grad():
            mcmc.run()
        chains.append(mcmc.get_samples()["point"])
        diverged += sum(map(len, mcmc.diagnostics()["divergences"].values()))
    points = torch.stack(chains)
    share = points.new_tensor(diverged / (num_chains * num_draws))
    return PosteriorDraws(points, divergent=share)


def guide_draws(target: Unconstrained, num_draws: int) -> PosteriorDraws:
    """Draw from the guide and resample by importance weights.

    The result is one row of independent draws (Rubin 1988).
    """
    points, log_q = target.sample_guide(num_draws)
    log_weights = evaluate(target.log_joint, points) - log_q.double()
    chosen = shuffle(resample(log_weights)).unsqueeze(-1).expand(points.shape)
    ess = 1 / (1 / effective_size(log_weights) + 1 / num_draws)
    return PosteriorDraws(points.gather(0, chosen).unsqueeze(0), ess, pareto_k(log_weights))
