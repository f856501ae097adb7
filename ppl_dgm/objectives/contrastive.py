"""Contrastive divergence, with Markov chains for the negative phase.

It approximates the gradient of the likelihood.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.compile import repeat
from ppl_dgm.objectives.energies import CURES, DataDensity, EnergyObjective, value_kind
from ppl_dgm.objectives.objective import check_count
from ppl_dgm.program.data_argument import DataArgument
from ppl_dgm.program.ladder import ladder_of
from ppl_dgm.sampling.kernels import MALA, Kernel, Target
from ppl_dgm.sampling.kernels.flips import BitFlips

__all__ = ["ContrastiveDivergence", "PersistentContrastiveDivergence"]

GAIN = 0.05  # of the step size's adaptation, per call


class ContrastiveDivergence(EnergyObjective):
    r"""Contrastive divergence (CD-k), with chains started at the data.

    Each chain makes k moves.

    $\nabla \log f(x_i) - \nabla \log f(x_i')$ with $x_i'$ the end of a chain from $x_i$: the
    gradient of the log likelihood as k grows, biased for small k. Models that know moves of their
    own (`RBM`) are moved by these, block Gibbs; binary data by a Gibbs sweep over all bits for each
    move; real data by a kernel whose step size adapts to its target acceptance. The value is a
    difference of energies in nats, no likelihood.

    Hinton (2002), "Training products of experts by minimizing contrastive divergence", eq. 5.

    Args:
        k: moves of each chain.
        kernel: moves of real data: MALA, ULA (Langevin), HMC or RandomWalk of
            `ppl_dgm.sampling.kernels`.
        step_size: of the kernel at first, in units of the data; kept where the kernel never rejects
            (ULA).
        plate: name of the data plate.

    Raises:
        ValueError: for counts below one, latents that are drawn, or data that are neither real nor
            binary.

    Example:
        >>> import torch, ppl_dgm
        >>> rbm = ppl_dgm.families.RBM(4, 2)
        >>> x = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]).repeat(50, 1)
        >>> result = ppl_dgm.fit(rbm, x, ContrastiveDivergence(1), steps=5, progress=False)
        >>> result.stopped
        'finished'
    """

    @checked
    def __init__(
        self,
        k: int = 1,
        *,
        kernel: Kernel | None = None,
        step_size: float = 0.1,
        plate: str = "data",
    ) -> None:
        super().__init__(plate=plate)
        check_count("k", k)
        if kernel is not None and not isinstance(kernel, Kernel):
            raise TypeError(f"kernel is a {type(kernel).__name__}; expected MALA(), ULA() or HMC()")
        if not step_size > 0:
            raise ValueError(f"step_size is {step_size}; expected a positive number")
        self.k, self.kernel, self.step_size = k, kernel or MALA(), step_size
        self.memory = nn.Module()  # buffers, which captured steps may write to

    def check_support(self, argument: DataArgument) -> None:
        if value_kind(argument.support) == "other":
            raise ValueError(
                f"{type(self).__name__} moves real and binary data, but site {argument.site!r} has "
                f"the support {argument.support}; transform the data, or use {CURES['other']}"
            )

    def contrast(self, density: DataDensity) -> Tensor:
        fantasy = self.moved(density, density.data)
        return density(density.data) - density(fantasy)

    @torch.no_grad()
    def moved(self, density: DataDensity, x: Tensor) -> Tensor:
        """Move chains from `[n, *event]` k times."""
        ladder = ladder_of(density.bound.model)
        if ladder is not None:
            return self._repeated(ladder.move, x, x.device)
        if value_kind(density.argument.support) == "binary":
            return self._repeated(BitFlips(density).move, x, x.device)
        return self._moved_by_kernel(density, x)

    def _repeated(self, move: Callable[[Any], Any], start: Any, device: torch.device) -> Any:
        """Apply a move k times.

        In captured code, many moves are a loop.
        """
        count = self.k if self.k == 1 else torch.full((), self.k, dtype=torch.long, device=device)
        return repeat(count, lambda state, _: move(state), start)

    def _moved_by_kernel(self, density: DataDensity, x: Tensor) -> Tensor:
        target = Target(flattened(density, x.shape[1:]))
        step_size, one = self._step_size(x), x.new_ones(())

        def move(carry: tuple[Any, Tensor]) -> tuple[Any, Tensor]:
            made = self.kernel.move(target, type(first)(*carry[0]), one, step_size, one)
            return tuple(made.state), carry[1] + made.acceptance.mean() / self.k

        first = target.evaluate(x.reshape(len(x), -1), self.kernel.uses_gradient)
        state, acceptance = self._repeated(move, (tuple(first), x.new_zeros(())), x.device)
        if self.kernel.adjusted:
            step_size.mul_((GAIN * (acceptance - self.kernel.target_acceptance)).exp())
        return state[0].reshape(x.shape)

    def _step_size(self, x: Tensor) -> Tensor:
        """Return the adapted step size, a buffer `[]`."""
        return self._buffer("steps", lambda: x.new_full((), self.step_size))

    def _buffer(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Return a buffer, made at its first use."""
        if name not in self.memory._buffers:
            self.memory.register_buffer(name, make())
        return self.memory.get_buffer(name)


def flattened(density: Callable[[Tensor], Tensor], shape: torch.Size) -> Callable:
    """Convert a density to one of points `[n, dim]`.

    Kernels take a base and a tilt, and all of the density is in the base.
    """

    def split(point: Tensor) -> tuple[Tensor, Tensor]:
        log_density = density(point.reshape(-1, *shape))
        return log_density, log_density.detach().new_zeros(log_density.shape)

    return split


class PersistentContrastiveDivergence(ContrastiveDivergence):
    r"""Persistent contrastive divergence, with chains kept between steps.

    Each chain makes k moves from where it was left.

    $\frac1N \sum_i \nabla \log f(x_i) - \frac1M \sum_m \nabla \log f(x'_m)$. The chains are kept in
    a buffer; each step moves a random part of it, as many as there are data in the minibatch (all
    of it, where it is that small), and puts them back. Chains that follow slow changes of the
    parameters are nearly draws of the model, so that the gradient is nearly the likelihood's. Moves
    are those of `ContrastiveDivergence`.

    Tieleman (2008), "Training restricted Boltzmann machines using approximations to the likelihood
    gradient"; replay buffers with restarts: Du and Mordatch (2019), "Implicit generation and
    modeling with energy-based models".

    Args:
        k: moves of each chain in a step.
        buffer_size: number of chains; by default as many as the first minibatch has data.
        restart: probability that a chain begins anew, at a random datum of the minibatch, before it
            moves.
        kernel: moves of real data, as in `ContrastiveDivergence`.
        step_size: of the kernel at first.
        plate: name of the data plate.

    Raises:
        ValueError: for counts below one, a probability outside [0, 1], a buffer smaller than a
            minibatch, programs with covariates, or what `ContrastiveDivergence` refuses.

    Example:
        >>> import torch, ppl_dgm
        >>> rbm = ppl_dgm.families.RBM(4, 2)
        >>> x = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]).repeat(50, 1)
        >>> objective = PersistentContrastiveDivergence(1, buffer_size=200)
        >>> result = ppl_dgm.fit(rbm, x, objective, steps=5, progress=False)
        >>> objective.chains.shape
        torch.Size([200, 4])
    """

    @checked
    def __init__(
        self,
        k: int = 1,
        *,
        buffer_size: int | None = None,
        restart: float = 0.0,
        kernel: Kernel | None = None,
        step_size: float = 0.1,
        plate: str = "data",
    ) -> None:
        super().__init__(k, kernel=kernel, step_size=step_size, plate=plate)
        if buffer_size is not None:
            check_count("buffer_size", buffer_size)
        if not 0 <= restart <= 1:
            raise ValueError(f"restart is {restart}; expected a probability between 0 and 1")
        self.buffer_size, self.restart = buffer_size, restart

    @property
    def chains(self) -> Tensor:
        """The chains as the last step left them, `[buffer_size, *event]`.

        Raises:
            ValueError: before the first step.
        """
        if "chains" not in self.memory._buffers:
            raise ValueError("there are no chains yet; they begin at the data of the first step")
        return self.memory.get_buffer("chains")

    def contrast(self, density: DataDensity) -> Tensor:
        fantasy = self.advanced(density)
        return density(density.data) - density(fantasy).mean()

    def advanced(self, density: DataDensity) -> Tensor:
        """Move a random part of the chains.

        The moved chains are `[data, *event]`. Without gradients, all chains are returned unmoved.
        """
        x = density.data
        chains = self._buffer("chains", lambda: self._first(x, density))
        if chains.shape[1:] != x.shape[1:] or chains.dtype != x.dtype:
            raise ValueError(
                f"the chains are of data {list(chains.shape[1:])} in {chains.dtype}, which an "
                f"earlier fit left, but the data are {list(x.shape[1:])} in {x.dtype}; make a new "
                f"{type(self).__name__} for another program"
            )
        if len(chains) < len(x):
            raise ValueError(
                f"the buffer holds {len(chains)} chains for minibatches of {len(x)} data; expected "
                f"at least as many chains. Give buffer_size={len(x)} or more, or a smaller "
                "batch_size"
            )
        if not torch.is_grad_enabled():  # validation looks on
            return chains
        with torch.no_grad():
            return self._advance(chains, x, density)

    def _advance(self, chains: Tensor, x: Tensor, density: DataDensity) -> Tensor:
        if len(chains) == len(x):
            moved = self.moved(density, self._restarted(chains, x))
            chains.copy_(moved)
            return moved
        rows = torch.rand(len(chains), device=x.device).argsort()[: len(x)]
        moved = self.moved(density, self._restarted(chains[rows], x))
        chains.index_copy_(0, rows, moved)
        return moved

    def _first(self, x: Tensor, density: DataDensity) -> Tensor:
        """Return where chains begin: at the data, repeated as needed."""
        density.refuse_covariates("persistent chains")
        size = self.buffer_size or len(x)
        return x[torch.arange(size, device=x.device) % len(x)].detach().clone()

    def _restarted(self, chains: Tensor, x: Tensor) -> Tensor:
        """Put a random share of the chains back to data."""
        if not self.restart:
            return chains
        anew = torch.rand(len(chains), device=x.device) < self.restart
        return torch.where(anew.reshape(-1, *[1] * (x.dim() - 1)), shuffled(x), chains)


def shuffled(x: Tensor) -> Tensor:
    """Return the data in a random order."""
    return x[torch.rand(len(x), device=x.device).argsort()]
