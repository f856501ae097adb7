"""KL divergences between a flow and a target density.

The density takes the place of data.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_dgm.checked import checked
from ppl_dgm.objectives.energies import DataDensity, EnergyObjective
from ppl_dgm.objectives.objective import check_count
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.data_argument import DataArgument
from ppl_dgm.program.supports import innermost

__all__ = ["ForwardKL", "ReverseKL"]

NUM_CHECKED = 4  # draws whose density is compared with the program's
LARGE_GAP = 0.01  # nats, and of the density


class DensityObjective(EnergyObjective):
    """Objective of a program's draws and a target density.

    The draws are as many for each datum of a minibatch, at the datum's covariates; the data
    themselves only tell how many there are, and start what starts from data.
    """

    target: Any

    def __init__(self, target: Any, num_draws: int = 1, *, plate: str = "data") -> None:
        super().__init__(plate=plate)
        check_count("num_draws", num_draws)
        if not (isinstance(target, Program) or hasattr(target, "log_prob") or callable(target)):
            raise TypeError(
                f"target is a {type(target).__name__}; expected a Program, a distribution of the "
                "data's event shape, or a function from data [n, *event] to log f [n]"
            )
        self.target, self.num_draws = target, num_draws
        self._target: tuple[Bound, DataArgument] | None = None

    @abstractmethod
    def contrast(self, density: DataDensity) -> Tensor: ...

    def density(self, bound: Bound) -> DataDensity:
        new = (bound.model, bound.guide) not in self._arguments
        density = super().density(bound)
        if new:
            self._bind_target(bound)
            self._check_draws(density)
        return density

    def draw(self, density: DataDensity, num_draws: int) -> tuple[Tensor, Tensor]:
        """Draw data `[num_draws, data, *event]` with their log density.

        Both are differentiable in the parameters; the density is `[num_draws, data]`.
        """
        site = self._site(density)
        density.scale = site["scale"]
        shape, inner = torch.Size((num_draws,)), innermost(site["fn"])
        if hasattr(inner, "rsample_and_log_prob"):  # both in one pass
            return inner.rsample_and_log_prob(shape)
        x = site["fn"].rsample(shape)
        return x, site["fn"].log_prob(x)

    def log_target(self, x: Tensor, density: DataDensity) -> Tensor:
        """Compute log f of data `[num_draws, data, *event]`: `[num_draws, data]`."""
        if self._target is not None:
            bound, argument = self._target
            given = {"args": density.bound.args, "kwargs": density.bound.kwargs}
            there = replace(bound, **given, num_data=density.bound.num_data)
            return DataDensity(there, argument).repeated(x)
        if hasattr(self.target, "log_prob"):
            return self.target.log_prob(x)
        return self.target(x.flatten(0, 1)).reshape(x.shape[:2])

    def _site(self, density: DataDensity) -> Any:
        bound = density.bound
        trace = poutine.trace(bound.model).get_trace(*bound.args, **bound.kwargs)
        return trace.nodes[density.argument.site]

    def _bind_target(self, bound: Bound) -> None:
        if isinstance(self.target, Program):
            there = self.target.bind(*bound.args, **bound.kwargs)
            self.check(there.structure)
            self._target = there, DataArgument.find(there)

    def _check_draws(self, density: DataDensity) -> None:
        """Refuse programs whose draws cannot be fitted."""
        law = self._site(density)["fn"]
        if not law.has_rsample:
            raise ValueError(
                f"draws of site {density.argument.site!r} ({type(innermost(law)).__name__}) have "
                "no gradient in the parameters; expected a flow, e.g. families.IAF"
            )
        with torch.no_grad():
            x, log_q = self.draw(density, NUM_CHECKED)
            gap = (density.repeated(x) - log_q).abs()
            shape = self.log_target(x, density).shape
        if not bool((gap <= LARGE_GAP * (1 + log_q.abs())).all()):
            raise ValueError(
                f"the draws of site {density.argument.site!r} do not have the program's density: "
                "its distribution depends on the data that it observes, or other sites do. Give "
                "a flow that draws a datum at once, e.g. families.IAF"
            )
        if shape != log_q.shape:
            raise ValueError(
                f"the target gives log densities {list(shape)} for data {list(x.shape)}; expected "
                f"{list(log_q.shape)}: declare event dimensions, to_event({x.dim() - 2})"
            )


class ReverseKL(DensityObjective):
    r"""KL divergence of a flow from a target density.

    It is taken over the flow's own draws, and distils a slow density into a flow that draws fast.

    The flow q maximises $\mathbb{E}_{x \sim q}[\log f(x) - \log q(x)] = \log Z - \mathrm{KL}(q \|
    f / Z)$ along the path of its draws. With a fitted flow or autoregressive net as target this is
    probability density distillation (van den Oord et al. 2018, Parallel WaveNet, section 3);
    with an unnormalised target the value bounds log Z from below. A q that covers part of the
    target's modes is a local optimum.

    The target's parameters are not fitted. Targets with covariates get the data's: `x, context`.

    Args:
        target: a Program with an exact or unnormalised density, a distribution, or a function from
            data `[n, *event]` to log f `[n]`, differentiable.
        num_draws: of the flow, for each datum of a minibatch.
        plate: name of the data plate.

    Raises:
        TypeError: for a target of another kind.
        ValueError: for a count below one, programs whose draws have no path gradient or another
            density, or drawn latents.

    Example:
        >>> import torch, ppl_dgm, pyro.distributions as dist
        >>> target = dist.Normal(torch.tensor([3.0, -1.0]), 0.5).to_event(1)
        >>> student, start = ppl_dgm.families.IAF(2, length=1), target.sample((64,))
        >>> fit = ppl_dgm.fit(student, start, ReverseKL(target), steps=5, progress=False)
        >>> fit.stopped
        'finished'
    """

    @checked
    def __init__(self, target: Any, num_draws: int = 1, *, plate: str = "data") -> None:
        super().__init__(target, num_draws, plate=plate)

    def contrast(self, density: DataDensity) -> Tensor:
        x, log_q = self.draw(density, self.num_draws)
        return (self.log_target(x, density) - log_q).mean(0)


class ForwardKL(DensityObjective):
    r"""KL divergence of a target density from a flow.

    It is taken over weighted draws of the flow, and covers the target's modes where `ReverseKL` may
    leave some out.

    The flow q maximises $\sum_k \bar w_k \log q(x_k)$ with $x_k \sim q$ and weights $w_k = f(x_k) /
    q(x_k)$, normalised over the draws of a minibatch (of each datum, where the target has
    covariates) and held fixed: the gradient of $-\mathrm{KL}(f / Z \| q)$ but for a bias of order
    1 / K (Bornschein and Bengio 2015, wake phase of q). Draws of the target itself, where they are
    to be had, are better data for `ELBO()`, the likelihood.

    Args:
        target: as of `ReverseKL`; it needs no gradient.
        num_draws: K, of the flow, for each datum of a minibatch.
        plate: name of the data plate.

    Raises:
        TypeError: for a target of another kind.
        ValueError: as `ReverseKL`.

    Example:
        >>> import torch, ppl_dgm
        >>> flow, start = ppl_dgm.families.MAF(2, length=1), torch.randn(64, 2)
        >>> fit = ppl_dgm.fit(flow, start, ForwardKL(lambda x: -(x**4).sum(-1), 4), steps=5,
        ...                   progress=False)
        >>> fit.stopped
        'finished'
    """

    @checked
    def __init__(self, target: Any, num_draws: int = 8, *, plate: str = "data") -> None:
        super().__init__(target, num_draws, plate=plate)

    def contrast(self, density: DataDensity) -> Tensor:
        with torch.no_grad():
            x, log_q = self.draw(density, self.num_draws)
            log_weights = self.log_target(x, density) - log_q
        if len(tree_leaves((density.bound.args, dict(density.bound.kwargs)))) > 1:
            weights = log_weights.softmax(0)  # each datum has a target of its own
        else:
            weights = x.shape[1] * log_weights.flatten().softmax(0).view_as(log_weights)
        return (weights * density.repeated(x)).sum(0)
