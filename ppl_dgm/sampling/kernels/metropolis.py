"""Markov transitions vectorised over chains and data.

Each chain and datum accepts or rejects on its own.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_dgm.checked import Limit, checked
from ppl_dgm.compile import repeat
from ppl_dgm.sampling.effort import GRADIENT
from ppl_dgm.sampling.kernels.targets import State, Target

__all__ = ["HMC", "MALA", "ULA", "Kernel", "Move", "RandomWalk", "leapfrog"]


class Move(NamedTuple):
    r"""One transition of all chains.

    `acceptance` is the Metropolis probability $\min(1, e^r)$, `[chains, *batch]`. `correction`,
    same shape, is what an importance weight must be multiplied with (in nats): 0 for a kernel that
    leaves the density invariant, $r$ for one that skips the accept step. `log_ratio`, same shape,
    is r itself: minus the energy error of Hamiltonian moves.
    """

    state: State
    acceptance: Tensor
    correction: Tensor
    log_ratio: Tensor


@dataclass(frozen=True)
class Kernel(ABC):
    r"""Markov transition that leaves $f_\beta$ invariant.

    It moves any number of chains and data at once.

    To add one, write a frozen dataclass with `propose` and `first_step_size`. The proposal must be
    reversible up to its own densities: `propose` returns the log of the Metropolis-Hastings ratio
    with it.

    Attributes:
        target_acceptance: mean acceptance that adaptation of the step size aims at.
        adjusted: whether the proposal is accepted or rejected; if not, the ratio is handed on as a
            correction of importance weights (Geffner and Domke 2021, "MCMC variational inference
            via uncorrected Hamiltonian annealing"; Thin et al. 2021, "Monte Carlo variational
            auto-encoders").
    """

    target_acceptance: float = 0.65
    adjusted: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"target_acceptance is {self.target_acceptance}; expected between 0 and 1, e.g. "
                "0.65"
            )

    @property
    def uses_gradient(self) -> bool:
        """Whether states must hold gradients."""
        return True

    def cost(self, step_size: Tensor) -> float:
        """Densities that a move of one chain costs."""
        return 1.0

    @abstractmethod
    def propose(
        self, target: Target, state: State, beta: Tensor, step_size: Tensor, scale: Tensor
    ) -> tuple[State, Tensor]:
        """Propose new states and the log Metropolis-Hastings ratio `[chains, *batch]`."""

    @abstractmethod
    def first_step_size(self, dim: int) -> float:
        """Return the initial step size for adaptation.

        It is in units of the scale, for a density of `dim` dimensions.
        """

    def move(
        self, target: Target, state: State, beta: Tensor, step_size: Tensor, scale: Tensor
    ) -> Move:
        r"""Move every chain once.

        Args:
            target: the family of densities.
            state: where the chains are.
            beta: inverse temperature, broadcasts to `[chains, *batch]`.
            step_size: step size, broadcasts to `[chains, *batch]`.
            scale: standard deviations of the coordinates (the inverse square root of the mass),
                broadcasts to `[chains, *batch, dim]`.

        Returns:
            New states, acceptance probabilities and corrections.
        """
        proposal, log_ratio = self.propose(target, state, beta, step_size, scale)
        log_ratio = log_ratio.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        acceptance = log_ratio.exp().clamp(max=1.0)
        if not self.adjusted:
            return Move(proposal, acceptance, log_ratio, log_ratio)
        accepted = torch.rand_like(acceptance) < acceptance
        state = proposal.where(accepted, state)
        return Move(state, acceptance, torch.zeros_like(acceptance), log_ratio)


@checked
@dataclass(frozen=True)
class HMC(Kernel):
    r"""Hamiltonian Monte Carlo with full refreshment of the momentum.

    $v \leftarrow v + \tfrac{\epsilon}{2} s \nabla \log f$, $y \leftarrow y + \epsilon s v$, ...
    with $v \sim N(0, I)$ and scales $s$; accepted with probability $\min(1, e^{-\Delta H})$. The
    step size of each chain is jittered by up to `jitter` of itself, against orbits that return to
    their start. Neal (2011), "MCMC using Hamiltonian dynamics".

    Args:
        target_acceptance: what step-size adaptation aims at; 0.65 is optimal in high dimensions for
            a fixed cost (Beskos et al. 2013), 0.8 more robust (Betancourt, Byrne and Girolami
            2014).
        adjusted: whether to accept or reject.
        num_leapfrog: largest number of leapfrog steps, each one evaluation of the density and its
            gradient.
        trajectory: steps are taken until they add up to this many scales. A quarter of a normal
            density's period, pi / 2 less what discretisation adds, makes its next draw independent;
            `math.inf` always takes `num_leapfrog` steps.
        jitter: largest relative change of a chain's step size, in [0, 1).

    Raises:
        ValueError: for settings outside their range.

    Example:
        >>> import torch
        >>> from ppl_dgm.sampling.kernels import HMC, Target
        >>> target = Target(lambda y: (-0.5 * y.square().sum(-1), y.new_zeros(y.shape[:-1])))
        >>> one = torch.ones(())
        >>> start = target.evaluate(torch.zeros(5, 2))
        >>> move = HMC(num_leapfrog=3).move(target, start, one, 0.1 * one, one)
        >>> bool((move.acceptance > 0.9).all())
        True
    """

    target_acceptance: float = 0.8
    num_leapfrog: int = 10
    trajectory: Limit = 1.2
    jitter: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_leapfrog < 1:
            raise ValueError(f"num_leapfrog is {self.num_leapfrog}; expected at least 1")
        if not self.trajectory > 0:
            raise ValueError(
                f"trajectory is {self.trajectory}; expected a positive number of scales, e.g. 1.2"
            )
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter is {self.jitter}; expected at least 0 and less than 1")

    def first_step_size(self, dim: int) -> float:
        """The step shrinks with dim^(-1/4) (Beskos et al. 2013)."""
        return dim**-0.25

    def cost(self, step_size: Tensor) -> float:
        """A gradient for each leapfrog step."""
        return GRADIENT * float(self._num_steps(step_size))

    def _num_steps(self, step_size: Tensor) -> Tensor | int:
        """Compute how many steps make up the trajectory.

        It is one number for all chains, from their typical step size.
        """
        if self.num_leapfrog == 1:
            return 1
        wanted = self.trajectory / step_size.log().mean().exp().clamp_min(1e-30)
        return wanted.clamp(1.0, self.num_leapfrog).ceil().long()

    def propose(
        self, target: Target, state: State, beta: Tensor, step_size: Tensor, scale: Tensor
    ) -> tuple[State, Tensor]:
        """Follow the Hamiltonian flow."""
        jitter = 1 + self.jitter * (2 * torch.rand_like(state.base) - 1)
        stride = (step_size * jitter).unsqueeze(-1) * scale
        momentum = torch.randn_like(state.point)
        end, last = leapfrog(target, state, momentum, beta, stride, self._num_steps(step_size))
        kinetic = 0.5 * (momentum.square() - last.square()).sum(-1)
        return end, end.log_density(beta) - state.log_density(beta) + kinetic


def leapfrog(
    target: Target,
    state: State,
    momentum: Tensor,
    beta: Tensor,
    stride: Tensor,
    num_steps: Tensor | int,
) -> tuple[State, Tensor]:
    """Take `num_steps` leapfrog steps.

    Their sizes `stride` are `[chains, *batch, dim]`. The final state and momentum are returned.

    The map is volume-preserving, and reversible by turning the momentum round. Only the last step
    needs the density itself.
    """

    def step(carry: tuple[Tensor, Tensor], fixed: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        (point, momentum), (stride, beta) = carry, fixed
        point = point + stride * momentum
        return point, momentum + stride * target.slope(point, beta)

    momentum = momentum + 0.5 * stride * state.grad(beta)
    point, momentum = repeat(num_steps - 1, step, (state.point, momentum), (stride, beta))
    state = target.evaluate(point + stride * momentum)
    return state, momentum + 0.5 * stride * state.grad(beta)


@checked
@dataclass(frozen=True)
class MALA(HMC):
    """Metropolis-adjusted Langevin algorithm: HMC with one leapfrog step.

    Roberts and Tweedie (1996), "Exponential convergence of Langevin distributions and their
    discrete approximations"; the optimal acceptance is 0.574.

    Example:
        >>> MALA().num_leapfrog
        1
    """

    target_acceptance: float = 0.574
    num_leapfrog: int = 1

    def first_step_size(self, dim: int) -> float:
        """The step shrinks with dim^(-1/6)."""
        return 1.4 * dim ** (-1 / 6)


@checked
@dataclass(frozen=True)
class ULA(MALA):
    """Unadjusted Langevin algorithm, which never rejects.

    Its error goes into importance weights as the correction of its moves.

    By itself it leaves no density invariant; AIS and SMC with it are still unbiased, because the
    weights are corrected.

    Example:
        >>> ULA().adjusted
        False
    """

    target_acceptance: float = 0.9
    adjusted: bool = False


@checked
@dataclass(frozen=True)
class RandomWalk(Kernel):
    """Random-walk Metropolis: a normal step, no gradient.

    The optimal acceptance is 0.234 in high dimensions (Roberts, Gelman and Gilks 1997), 0.44 in
    one.

    Example:
        >>> import torch
        >>> from ppl_dgm.sampling.kernels import RandomWalk, Target
        >>> target = Target(lambda y: (-0.5 * y.square().sum(-1), y.new_zeros(y.shape[:-1])))
        >>> one, start = torch.ones(()), target.evaluate(torch.zeros(5, 2), gradient=False)
        >>> RandomWalk().move(target, start, one, one, one).state.point.shape
        torch.Size([5, 2])
    """

    target_acceptance: float = 0.3

    @property
    def uses_gradient(self) -> bool:
        """It needs none."""
        return False

    def first_step_size(self, dim: int) -> float:
        """2.38 / sqrt(dim)."""
        return 2.38 * dim**-0.5

    def propose(
        self, target: Target, state: State, beta: Tensor, step_size: Tensor, scale: Tensor
    ) -> tuple[State, Tensor]:
        """Add normal noise."""
        stride = step_size.unsqueeze(-1) * scale
        end = target.evaluate(state.point + stride * torch.randn_like(state.point), gradient=False)
        return end, end.log_density(beta) - state.log_density(beta)
