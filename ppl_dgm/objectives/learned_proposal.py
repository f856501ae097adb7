"""Maximum likelihood of unnormalised programs with a learned proposal.

The proposal, a flow, draws what the partition function is estimated from.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ppl_dgm.checked import checked
from ppl_dgm.objectives.energies import DataDensity, EnergyObjective
from ppl_dgm.objectives.noise_contrastive import KnownDensity
from ppl_dgm.objectives.objective import check_count
from ppl_dgm.objectives.players import Game, Player
from ppl_dgm.program import Program
from ppl_dgm.sampling.importance import log_mean_exp

__all__ = ["LearnedProposal"]


class LearnedProposal(Game):
    r"""Maximum likelihood of an unnormalised program, beside a learned proposal.

    The program maximises $\log f(x) - \log \hat Z$ with $\hat Z = \frac1K \sum_k f(x_k) / q(x_k)$
    over draws of the proposal q. The gradient is $\nabla \log f(x) - \sum_k w_k \nabla \log f(x_k)$
    with normalised weights $w_k \propto f(x_k) / q(x_k)$: that of the likelihood as K grows, with a
    bias of order 1/K, since $\mathbb{E} \log \hat Z \le \log Z$: the history stands above the log
    likelihood. No Markov chain is run.

    The proposal maximises $\frac12 \log q(x) + \frac12 \sum_k w_k \log q(x_k)$: it follows the data
    and the program's own draws alike, so that it covers both and the weights stay even.

    Players are `"energy"` and `"proposal"`. Bengio and Senécal (2008), "Adaptive importance
    sampling to accelerate training of a neural probabilistic language model"; the weighted
    proposal's gradient is that of Bornschein and Bengio (2015), "Reweighted wake-sleep".

    Args:
        proposal: a program with an exact density that has draws for each entry: a flow, a mixture,
            an autoregressive net.
        num_draws: K, draws of the proposal in a step.
        optimizer: makes the proposal's optimiser, `schedule` its learning-rate scheduler; by
            default as the fit's.
        num_steps: steps of the proposal in a round.
        plate: name of the data plate.

    Raises:
        ValueError: for counts below one; when run, for programs with drawn latents or covariates,
            and proposals without an exact density.
        TypeError: for a proposal that is no program.

    Example:
        >>> import torch, ppl_dgm
        >>> energy = ppl_dgm.families.Energy(torch.nn.Sequential(
        ...     torch.nn.Linear(2, 1), torch.nn.Flatten(0)), 2)
        >>> game = LearnedProposal(ppl_dgm.families.RealNVP(2, 2), num_draws=50)
        >>> ppl_dgm.fit(energy, torch.randn(50, 2), game, steps=3, progress=False).stopped
        'finished'
    """

    @checked
    def __init__(
        self,
        proposal: Program,
        num_draws: int = 256,
        *,
        optimizer: Callable[[Any], Optimizer] | None = None,
        schedule: Callable[[Optimizer], Any] | None = None,
        num_steps: int = 1,
        plate: str = "data",
    ) -> None:
        super().__init__()
        check_count("num_draws", num_draws)
        check_count("num_steps", num_steps)
        self.proposal, self.num_draws = proposal, num_draws
        known = KnownDensity(proposal, "proposal")
        self._likelihood = ImportanceLikelihood(known, num_draws, plate=plate)
        self._follower = Follower(known, num_draws, plate=plate)
        self._moves = {"optimizer": optimizer, "schedule": schedule, "num_steps": num_steps}

    def initialise(self, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """Run the proposal once, so that it has its parameters."""
        x = next(leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor))
        self.proposal.initialise(x)

    def players(self, module: nn.Module | None) -> Sequence[Player]:
        """Name energy and proposal."""
        return (
            Player("energy", module, self._likelihood),
            Player("proposal", self.proposal, self._follower, **self._moves),
        )

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Compute minus the estimated log likelihood, summed over data."""
        return self._likelihood.loss(model, guide, *args, **kwargs)


class ProposalObjective(EnergyObjective):
    """Objective that weighs a proposal's draws by an energy.

    Args:
        proposal: the density that is drawn from.
        num_draws: number of draws.
        plate: name of the data plate.
    """

    def __init__(self, proposal: KnownDensity, num_draws: int, *, plate: str) -> None:
        super().__init__(plate=plate)
        self.proposal, self.num_draws = proposal, num_draws

    def drawn(self, density: DataDensity) -> tuple[Tensor, Tensor]:
        """Draw from the proposal; log densities have its gradient."""
        density.refuse_covariates("draws of the proposal")
        draws = self.proposal.draw(self.num_draws, density.data)
        return draws, self.proposal.log_prob(draws)


class ImportanceLikelihood(ProposalObjective):
    """The energy's side: its estimated log likelihood."""

    def contrast(self, density: DataDensity) -> Tensor:
        draws, log_q = self.drawn(density)
        log_z = log_mean_exp(density(draws) - log_q.detach())
        return density(density.data) - log_z


class Follower(ProposalObjective):
    """The proposal's side: data and weighted draws."""

    def contrast(self, density: DataDensity) -> Tensor:
        draws, log_q = self.drawn(density)
        with torch.no_grad():
            weights = (density(draws) - log_q).softmax(0)
        return 0.5 * (self.proposal.log_prob(density.data) + (weights * log_q).sum())
