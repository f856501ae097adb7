r"""Normalisation of unnormalised densities of data.

The program at its data is divided by the same program without data.

Where factors depend on the data, $\log p(x) = \log f(x) - \log Z$ with $Z = \int f(x)\, dx$, which
is the evidence of the program whose data site is one more latent. Every estimator estimates it so;
one $\log Z$ serves all data.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.program import Bound, Program
from ppl_dgm.program.arguments import tensors_of
from ppl_dgm.program.handlers import Prior, is_given_or_summed_out
from ppl_dgm.program.inspection import examine
from ppl_dgm.program.ladder import MAX_SUMMED, Ladder, States, ladder_of
from ppl_dgm.program.sampling import Uncondition
from ppl_dgm.program.supports import is_binary, is_real
from ppl_dgm.sampling.kernels.flips import BitFlips
from ppl_dgm.sampling.memory import MEMORY, chunk_plan

__all__ = [
    "FlipLadder",
    "ladder_to",
    "score_exactly",
    "squeezed",
    "sum_out",
    "tails_alarm",
    "without_data",
]

NUM_DIRECTIONS = 64  # in which a density's tails are looked at
INFINITE = (
    "the density does not fall off far from its base measure, so that its partition function is "
    "infinite and no estimate of it means anything; bound the energy from below, or give it a base "
    "measure whose tails outweigh it"
)


class WithoutData(nn.Module):
    """Model whose observed sites are drawn instead.

    `fn` is the model as its author wrote it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def fn(self) -> Any:
        """The callable within."""
        return getattr(self.model, "fn", self.model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with Uncondition():
            return self.model(*args, **kwargs)


def without_data(program: Program, bound: Bound, sum_out: bool) -> Bound:
    """Bind the same program without its data.

    One datum is drawn, or one for each datum's covariates.

    Raises:
        ValueError: where latents shared by all data would have a partition function for each of
            their values.
    """
    shared = [latent.name for latent in bound.structure.latents if not latent.local]
    if bound.structure.batched and shared:
        raise ValueError(
            f"the factors {list(bound.structure.energies)} depend on the data and the latents "
            f"{shared} are shared by all of them, so that every value of these has a partition "
            "function of its own; fit them as parameters"
        )
    model = WithoutData(program.model)
    args, kwargs = (bound.args, dict(bound.kwargs)) if keeps_arguments(bound) else ((), {})
    found = examined(model, args, kwargs, program.plate, sum_out, bound.structure.energies)
    proposal = Prior(model, is_given_or_summed_out)
    return Bound(model, proposal, found.structure, args, kwargs, found.num_data)


def examined(
    model: WithoutData,
    args: tuple,
    kwargs: dict[str, Any],
    plate: str,
    sum_out: bool,
    energies: tuple[str, ...],
) -> Any:
    """Examine a program without its data.

    Raises:
        ValueError: saying why it is run so, where it does not run without arguments.
    """
    try:
        return examine(model, None, args, kwargs, plate, sum_out)
    except ValueError as error:
        if args or kwargs:
            raise
        raise ValueError(
            f"the factors {list(energies)} depend on the data, so that the program is run without "
            "data for its partition function, and that failed; give the data a default, "
            "def model(x=None), draw one datum there, and write the factors of what the site "
            f"returns, x = pyro.sample('x', ..., obs=x). {error}"
        ) from error


def keeps_arguments(bound: Bound) -> bool:
    """Check whether the partition function depends on arguments.

    It does where there are covariates, or data that are not independent.
    """
    tensors = tensors_of(bound.args, bound.kwargs)
    return not bound.structure.per_datum or len(tensors) > len(bound.structure.observed)


def score_exactly(bound: Bound, memory: int = MEMORY) -> Tensor:
    """Compute log p(x) with all latents summed out.

    The result is `[data]` or `[]`.
    """
    parts = [sum_out(part) for _, part, _ in chunk_plan(bound, 1, memory, sum_out)]
    return parts[0] if parts[0].dim() == 0 else torch.cat(parts)


def sum_out(bound: Bound) -> Tensor:
    """Compute log p(x) of some data, all latents summed out.

    The result is `[data]` or `[]`.
    """
    return bound.log_joint(bound.draw(1).values).total[0].double()


class FlipLadder(Ladder):
    r"""Ladder of densities of binary data, moved bit by bit.

    The densities are $\mathrm{base}(x)\, e^{\beta\, \mathrm{factors}(x)}$.

    Args:
        free: the program without data, which draws one binary site.
    """

    def __init__(self, free: Bound) -> None:
        self.free, self.name = free, free.structure.latents[0].name

    def draw(self, num_draws: int) -> Tensor:
        return self._first(self.free.draw_prior(num_draws).values[self.name])

    def log_density(self, x: Tensor, beta: Any) -> Tensor:
        value = x.unsqueeze(1) if self.free.structure.per_datum else x
        joint = self.free.log_joint({self.name: value})
        return self._first(joint.prior + beta * joint.likelihood)

    def move(self, x: Tensor, beta: Any = 1.0) -> Tensor:
        return BitFlips(lambda x: self.log_density(x, beta)).move(x)

    def states(self) -> States | None:
        example = self.draw(1)
        if example.numel() > MAX_SUMMED:
            return None
        shaped = lambda x: x.reshape(-1, *example.shape[1:])  # noqa: E731
        log_weight = lambda x: self.log_density(shaped(x), 1.0)  # noqa: E731
        return States(example.numel(), example, log_weight, shaped)

    def _first(self, values: Tensor) -> Tensor:
        """Drop the dimension of the only datum."""
        return values[:, 0] if self.free.structure.per_datum else values


def ladder_to(free: Bound) -> Ladder | None:
    """Return the ladder to a program without data.

    It is the model's own, or that of binary data, or None for real data.

    Raises:
        ValueError: for discrete data that are not binary, or not alone.
    """
    own = ladder_of(free.model)
    latents = free.structure.model_latents
    if own is not None or not any(latent.discrete for latent in latents):
        return own
    if len(latents) == 1 and is_binary(latents[0].support) and (free.num_data or 1) == 1:
        return FlipLadder(free)
    raise ValueError(
        f"the sites {[latent.name for latent in latents]} are drawn without data, and are not one "
        "binary vector, so that no chains move in them; use ImportanceSampling, from the base "
        "measure, or give the model a Ladder"
    )


def tails_alarm(free: Bound) -> tuple[str, ...]:
    r"""Warn where a density does not fall off far away.

    An integrable density has $r^D f \to 0$ at distances r from its base measure, in all
    directions, of which some are tried; where that is higher at a million deviations than at a
    thousand, the partition function is infinite.
    """
    latents = free.structure.model_latents
    if not latents or not all(is_real(latent.support) for latent in latents):
        return ()
    values = free.draw_prior(NUM_DIRECTIONS).values
    size = sum(value[0].numel() for value in values.values()) // (free.num_data or 1)
    ways = {name: value.std(0) * torch.randn_like(value) for name, value in values.items()}
    near, far = (free.log_joint(moved_out(values, ways, 10.0**power)).total for power in (3, 6))
    rises = (far > -torch.inf) & (far + size * math.log(1e3) > near)
    return (INFINITE,) if bool(rises.any()) else ()


def moved_out(
    values: dict[str, Tensor], ways: dict[str, Tensor], distance: float
) -> dict[str, Tensor]:
    """Return points so far from the mean of draws."""
    return {name: value.mean(0) + distance * ways[name] for name, value in values.items()}


def squeezed(value: Any) -> Any:
    """Remove the data dimension of a result for one datum."""
    one = isinstance(value, Tensor) and value.dim() and value.shape[-1] == 1
    return value.squeeze(-1) if one else value
