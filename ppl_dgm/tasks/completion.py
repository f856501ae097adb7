"""Completion of data with missing entries.

It gives the posterior of the missing entries of a datum given the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.program import Bound, Draw, Program
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.log_densities import seen_entries
from ppl_dgm.program.particles import Values
from ppl_dgm.program.seeding import seeded
from ppl_dgm.program.supports import innermost
from ppl_dgm.sampling.convergence import mean_exp_std_error, tail_warnings
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.sampling.importance_resampling import (
    check_latents,
    join_posteriors,
    resample_part,
    storable_parts,
)
from ppl_dgm.sampling.memory import MEMORY
from ppl_dgm.sampling.posterior import Posterior
from ppl_dgm.sampling.smc.resampling import effective_size, resample
from ppl_dgm.sampling.unconstrained import check_continuous
from ppl_dgm.sampling.weight_summary import pareto_k
from ppl_dgm.tasks.chains import LEAST_CHAINS, LEAST_MOVES, move_draws
from ppl_dgm.tasks.conditioning import autoregressive_law, check_mask, filled
from ppl_dgm.tasks.data_chains import HeldEntries, draw_data
from ppl_dgm.watching import watched

__all__ = ["Completion", "check_settings", "complete"]

Method = Literal["resampling", "hmc"]
METHODS = ("resampling", "hmc")


@dataclass(frozen=True, eq=False)
class Completion:
    """Draws of whole data given their observed entries.

    Attributes:
        draws: `[draws, data, *event]`: observed entries as they are, missing ones drawn given them.
        posterior: draws of the latents given the observed entries; None where the program has none.
        diagnostics: `[data]` each: `ess` and `pareto_k` of the weights; or `acceptance` and `r_hat`
            of the chains, over entries, over the log density for bits.
        warnings: why the draws should not be believed; empty if nothing speaks against them.
    """

    draws: Tensor
    posterior: Posterior | None
    diagnostics: Mapping[str, Tensor]
    warnings: tuple[str, ...]

    @property
    def mean(self) -> Tensor:
        """Mean of the draws, `[data, *event]`."""
        return self.draws.mean(0)

    def __repr__(self) -> str:
        mark = "" if not self.warnings else f" UNRELIABLE: {'; '.join(self.warnings)}"
        return f"Completion({self.draws.shape[0]} draws of {list(self.draws.shape[1:])}){mark}"


@checked
def complete(
    program: Program,
    x: Tensor,
    observed: Tensor,
    *args: Any,
    num_particles: int = 1000,
    num_draws: int = 100,
    method: Method = "resampling",
    rounds: int = 3,
    num_fills: int = 16,
    num_moves: int = 100,
    num_leapfrog: int = 10,
    seed: int = 0,
    memory: int = MEMORY,
    progress: bool = True,
    **kwargs: Any,
) -> Completion:
    r"""Draw the missing entries of data given the observed ones.

    Draws are from $p(x_\mathrm{mis} \mid x_\mathrm{obs})$, by importance resampling or HMC.

    Latents proposed by the guide get the weights $p(z)\, p(x_\mathrm{obs} \mid z) / q(z)$, are
    resampled, and the missing entries drawn given them. In the first round $q(z) = q(z \mid x)$
    with x as given, in later ones the guide's mixture $\frac1M \sum_m q(z \mid \hat x_m)$ over M
    completions $\hat x_m$ of the last round, which brings it nearer to the posterior: the
    pseudo-Gibbs of Rezende, Mohamed and Wierstra (2014, appendix F) as population Monte Carlo
    (Cappe et al. 2004), its draws weighted as in Mattei and Frellsen (2018). The weights are right
    for any completions.

    Where even that leaves few effective draws, `method="hmc"` takes the resampled latents as starts
    of Markov chains with $p(z)\, p(x_\mathrm{obs} \mid z)$ as their density, one for each draw,
    whose last points are the draws: Hamiltonian Monte Carlo for all chains and data at once, step
    size and covariance learned for each datum (Neal 2011). It moves far within a mode, but hardly
    from one to another.

    An autoregressive program has no latents: its missing entries are drawn one after the other in
    its order, the observed ones held fast, weighted by the conditionals of the observed ones and
    resampled (see `log_marginal`). The draws are exact where the observed entries come first in the
    order.

    An unnormalised program (`RBM`, `Energy`) has only chains over the missing entries themselves,
    whatever the method: inpainting. Real entries are tempered from near the base measure and moved
    by HMC, which one leapfrog step makes Langevin; bits by Gibbs sampling, block by block in an RBM
    with its visible units clamped, bit by bit elsewhere. The partition function cancels.

    Args:
        program: an autoregressive or unnormalised program, or one with latents in the data plate,
            whose data site is independent over entries given them.
        x: data `[data, *event]`, the first argument of the program; missing entries hold any number
            within the support.
        observed: True where an entry is observed, `[data, *event]` or broadcasting to it.
        *args: further data.
        num_particles: weighted particles for each datum, in each round.
        num_draws: draws to return.
        method: `"resampling"` or `"hmc"`; that needs continuous latents.
        rounds: number of rounds, at least 1; one is enough without guide.
        num_fills: M, completions that the guide is shown in later rounds.
        num_moves: moves of each chain of `"hmc"` or of an unnormalised program, half of them to
            adapt.
        num_leapfrog: leapfrog steps of each of those moves, at most.
        seed: makes the draws repeatable; torch's generator is left as it was.
        memory: bytes that one chunk of particles may allocate.
        progress: show a bar of the densities evaluated, where it takes over two seconds.
        **kwargs: further data.

    Raises:
        ValueError: for a mask that does not fit, or a program without latents to draw or with
            entries that depend on one another given them.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_dgm import Program
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         likelihood = dist.Normal(z.unsqueeze(-1), torch.full((2,), 0.1)).to_event(1)
        ...         pyro.sample("x", likelihood, obs=x)
        >>> x, observed = torch.tensor([[1.0, 0.0]]), torch.tensor([True, False])
        >>> filled = complete(Program(model), x, observed)
        >>> filled.mean.round(decimals=1)
        tensor([[1., 1.]])
    """
    check_settings(
        method,
        num_particles=(num_particles, 2),
        num_draws=(num_draws, 1),
        rounds=(rounds, 1),
        num_fills=(num_fills, 1),
        num_moves=(num_moves, LEAST_MOVES),
        num_leapfrog=(num_leapfrog, 1),
    )
    x = program.as_data(x)
    observed = check_mask(x, observed)
    bound = program.bind(x, *args, **kwargs)
    bar = partial(watched, "completion", progress)
    with bar(), undisturbed(program), seeded(seed, bound.device):
        law = autoregressive_law(bound, program.site)
        if law is not None:
            return complete_in_turn(law, x, observed, num_particles, num_draws)
        if bound.structure.energies and not bound.structure.latents:
            drawn = draw_data(
                bound, HeldEntries(x, observed), num_draws, num_moves, num_leapfrog, memory
            )
            return Completion(drawn.draws, None, drawn.diagnostics, drawn.warnings)
    check_program(bound, program.site)
    starts = num_draws
    if method == "hmc":
        check_continuous(bound)
        starts = max(num_draws, LEAST_CHAINS)
    with bar(), undisturbed(program), seeded(seed, bound.device):
        fills = x.unsqueeze(1)
        for turn in range(rounds if program.has_guide else 1):
            seen = shown(bound, fills, observed, program.site)
            parts = storable_parts(seen, num_particles, memory)
            found = join_posteriors(
                seen, [resample_part(part, num_particles, starts, memory) for part in parts]
            )
            draws = torch.where(observed, x, found.predict(seed + turn)[program.site])
            fills = draws[:num_fills].movedim(0, 1)
        if method == "resampling":
            diagnostics: Any = {"ess": found.ess, "pareto_k": found.pareto_k}
            return Completion(draws, found, diagnostics, found.warnings)
        moved, diagnostics = move_draws(found, num_draws, num_moves, num_leapfrog, memory)
    draws = torch.where(observed, x, moved.predict(seed)[program.site])
    return Completion(draws, moved, diagnostics, moved.warnings)


def complete_in_turn(
    law: Any, x: Tensor, observed: Tensor, num_particles: int, num_draws: int
) -> Completion:
    """Draw missing entries one by one, then weight and resample."""
    found = filled(law, x, observed, max(num_particles, num_draws))
    index = resample(found.log_weights, num_draws)
    draws = found.draws.gather(0, index.unsqueeze(-1).expand(-1, *x.shape))
    shapes, errors = pareto_k(found.log_weights), mean_exp_std_error(found.log_weights)
    diagnostics = {"ess": effective_size(found.log_weights), "pareto_k": shapes}
    return Completion(draws, None, diagnostics, tail_warnings(shapes, errors, num_particles))


def check_settings(method: str, **least: tuple[int, int]) -> None:
    """Refuse an unknown method and numbers below the least."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {METHODS}")
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ValueError(f"{name} is {value}; expected at least {smallest}")


def check_program(bound: Bound, site: str) -> None:
    """Refuse programs that completion cannot handle.

    Their missing entries do not follow from drawn latents.
    """
    check_latents(bound)
    structure = bound.structure
    if structure.enumerated or not structure.per_datum:
        fault = (
            f"{list(structure.enumerated)} are summed out"
            if structure.enumerated
            else "latents are shared by all data"
        )
        raise ValueError(
            f"completion draws every latent of a datum given its observed entries, but {fault}; "
            "let the guide draw all of them, inside the data plate"
        )
    if site not in structure.observed:
        raise ValueError(
            f"the program observes {list(structure.observed)}, not {site!r}; name it: Program(..., "
            "site=...)"
        )


def shown(bound: Bound, fills: Tensor, observed: Tensor, site: str) -> "Refilled":
    """Adapt the program to score only the observed entries.

    Its guide is shown completions `[data, M, *event]`.
    """
    return Refilled(
        model=PartlyObserved(bound.model, site),
        guide=PartlyObserved(bound.guide, site),
        structure=bound.structure,
        args=bound.args,
        kwargs={**bound.kwargs, "observed": observed, "fills": fills},
        num_data=bound.num_data,
        num_dims=bound.num_dims,
        digest=bound.digest,
    )


class PartlyObserved:
    """Model or guide for partly observed data.

    It takes two more arguments, the mask of the observed entries and completions.
    """

    def __init__(self, fn: Callable, site: str) -> None:
        self.fn, self.site = fn, site

    def __call__(self, *args: Any, observed: Tensor, fills: Tensor, **kwargs: Any) -> Any:
        with ScoreObserved(self.site, observed):
            return self.fn(*args, **kwargs)


class Refilled(Bound):
    """Bound program with a mixture of guides as proposal.

    The mixture is that of the guide over completions of each datum.
    """

    @property
    def _at_fills(self) -> list[Bound]:
        """The program with its guide at each of the completions."""
        settings = {**vars(self)}
        fills = self.kwargs["fills"].unbind(1)
        return [Bound(**{**settings, "args": (fill, *self.args[1:])}) for fill in fills]

    def draw(self, num_particles: int) -> Draw:
        """Draw latents from the guides of the completions in turn.

        The first completion is a random one.
        """
        if not self.structure.has_guide:
            return super().draw(num_particles)
        proposals = self._at_fills
        start = int(torch.randint(len(proposals), ()))
        turns = [
            len(range((m - start) % len(proposals), num_particles, len(proposals)))
            for m in range(len(proposals))
        ]
        drawn = [bound.draw(count) for bound, count in zip(proposals, turns, strict=True) if count]
        values = {
            name: torch.cat([part.values[name] for part in drawn]) for name in drawn[0].values
        }
        if any(latent.auxiliary for latent in self.structure.latents):
            return Draw(
                values, torch.cat([part.log_prob for part in drawn])
            )  # each its own: no density at given latents
        return Draw(values, self.log_guide(values))

    def log_guide(self, values: Values) -> Tensor:
        """Log density of the mixture at given latents."""
        if not self.structure.has_guide:
            return super().log_guide(values)
        return log_mean_exp(torch.stack([bound.log_guide(values) for bound in self._at_fills]))


class ScoreObserved(Messenger):
    """Messenger that leaves missing entries out of the density.

    They are those of the data site.
    """

    def __init__(self, site: str, observed: Tensor) -> None:
        super().__init__()
        self.site = site
        self.observed = observed

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != self.site or not msg["is_observed"]:
            return
        entries = innermost(msg["fn"])
        if entries.event_dim:
            raise ValueError(
                f"the entries of data site {self.site!r} ({type(entries).__name__}) depend on one "
                "another given the latents, so that some of them have no density of their own; "
                "use a likelihood that factorises over entries"
            )
        counted = self.observed & seen_entries(msg)
        msg["fn"] = entries.mask(counted).to_event(len(msg["fn"].event_shape))
