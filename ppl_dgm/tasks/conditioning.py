"""Marginals and conditionals of autoregressive programs.

They are those of any part of a datum, given any other.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.distributions.autoregressive import Autoregressive, EqualMixture
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.seeding import seeded
from ppl_dgm.program.supports import innermost
from ppl_dgm.sampling.convergence import mean_exp_std_error, tail_warnings
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.sampling.weight_summary import pareto_k
from ppl_dgm.watching import watched

__all__ = [
    "Marginal",
    "autoregressive_law",
    "check_mask",
    "filled",
    "log_conditional",
    "log_marginal",
]

AT_ONCE = 2**14  # particles of all data together that are drawn side by side
ENUMERABLE = 2**12  # completions that are summed over rather than drawn


@dataclass(frozen=True, eq=False)
class Marginal:
    """log p of parts of data.

    Attributes:
        log_prob: nats, `[data]`.
        std_error: of `log_prob`, zero where all completions were summed over.
        exact: whether they were.
        warnings: why the estimate should not be believed; empty if nothing speaks against it.
    """

    log_prob: Tensor
    std_error: Tensor
    exact: bool
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        how = "exact" if self.exact else f"+- up to {self.std_error.max().item():.2g}"
        mark = f" UNRELIABLE: {'; '.join(self.warnings)}" if self.warnings else ""
        return f"Marginal({self.log_prob.numel()} data, {how}){mark}"


@checked
def log_marginal(
    program: Program,
    x: Tensor,
    observed: Tensor,
    *args: Any,
    num_particles: int = 1000,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> Marginal:
    r"""Compute the marginal log density of the observed entries.

    It is $\log p(x_\mathrm{obs})$ of an autoregressive program, the other entries summed out.

    Over all their values, where these are few; otherwise by importance sampling: with observed
    entries held fast the others are drawn one after the other, and weigh
    $\prod_{d\,\mathrm{observed}} p(x_d \mid x_{<d})$, whose mean is $p(x_\mathrm{obs})$. All
    weights of a datum are equal where its observed entries come first in the order.

    Args:
        program: an autoregressive program, with its parameters as they are.
        x: data `[data, D]`; other entries hold any number within the support.
        observed: True where an entry is observed, `[D]` or `[data, D]`.
        *args: further data.
        num_particles: draws of the other entries for each datum.
        seed: makes the draws repeatable; torch's generator is left as it was.
        progress: show a bar of the densities evaluated, where it takes over two seconds.
        **kwargs: further data.

    Raises:
        ValueError: for a program that is not autoregressive, or a mask that does not fit.

    Example:
        >>> import torch
        >>> from ppl_dgm.families import MADE
        >>> log_marginal(MADE(3, [8]), torch.ones(2, 3), torch.tensor([False, True, True]))
        Marginal(2 data, exact)
    """
    x = program.as_data(x)
    observed = check_mask(x, observed)
    if num_particles < 2:
        raise ValueError(f"num_particles is {num_particles}; expected at least 2")
    bound = program.bind(x, *args, **kwargs)
    bar = watched("marginal", progress)
    with bar, undisturbed(program), seeded(seed, bound.device):
        law = autoregressive_law(bound, program.site)
        if law is None:
            raise ValueError(
                "the program is not autoregressive, so that its entries cannot be drawn one after "
                "the other; ask a BayesNet by its query, and a program with latents by complete"
            )
        values = levels(law)
        if values is not None and num_completions(observed, len(values)) <= ENUMERABLE:
            log_prob = summed_out(law, x, observed, values)
            return Marginal(log_prob, torch.zeros_like(log_prob), True)
        log_weights = filled(law, x, observed, num_particles).log_weights
    errors = mean_exp_std_error(log_weights)
    warnings = tail_warnings(pareto_k(log_weights), errors, num_particles)
    return Marginal(log_mean_exp(log_weights), errors.to(x), False, warnings)


@checked
def log_conditional(
    program: Program,
    x: Tensor,
    query: Tensor,
    given: Tensor,
    *args: Any,
    num_particles: int = 1000,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> Marginal:
    r"""Compute the log density of some entries given others.

    It is $\log p(x_a \mid x_b) = \log p(x_a, x_b) - \log p(x_b)$ of an autoregressive program.

    Args:
        program: an autoregressive program.
        x: data `[data, D]`; entries in neither part hold any number within the support.
        query: True for the entries a, `[D]` or `[data, D]`.
        given: True for the entries b.
        *args: further data.
        num_particles: see `log_marginal`.
        seed: see `log_marginal`.
        progress: likewise.
        **kwargs: further data.

    Raises:
        ValueError: as `log_marginal`, and for an entry in both parts.

    Example:
        >>> import torch
        >>> from ppl_dgm.families import MADE
        >>> first, last = torch.tensor([True, False, False]), torch.tensor([False, False, True])
        >>> x = [torch.full((1, 3), value) for value in (0.0, 1.0)]
        >>> both = [log_conditional(MADE(3, []), row, last, first) for row in x]
        >>> both[0].exact, both[1].std_error
        (True, tensor([0.]))
    """
    x = program.as_data(x)
    query, given = check_mask(x, query), check_mask(x, given)
    if bool((query & given).any()):
        raise ValueError("an entry is both asked for and given; expected query and given apart")
    settings = {"num_particles": num_particles, "progress": progress, **kwargs}
    joint = log_marginal(program, x, query | given, *args, seed=seed, **settings)
    below = log_marginal(program, x, given, *args, seed=seed + 1, **settings)
    return Marginal(
        joint.log_prob - below.log_prob,
        torch.hypot(joint.std_error, below.std_error),
        joint.exact and below.exact,
        tuple(dict.fromkeys(joint.warnings + below.warnings)),
    )


class Filled(NamedTuple):
    """Data with drawn missing entries, and their log weights.

    Data are `[particles, data, D]`, log weights `[particles, data]`.
    """

    draws: Tensor
    log_weights: Tensor


def filled(
    law: Autoregressive | EqualMixture, x: Tensor, observed: Tensor, num_particles: int
) -> Filled:
    """Draw missing entries one by one, with observed entries fixed."""
    laws = law.laws if isinstance(law, EqualMixture) else (law,)
    each = -(-num_particles // len(laws))
    size = max(1, AT_ONCE // len(x))
    parts = [
        filled_in_turn(member, x, observed, min(size, each - start))
        for member in laws
        for start in range(0, each, size)
    ]
    return Filled(*(torch.cat(kind) for kind in zip(*parts, strict=True)))


def filled_in_turn(law: Any, x: Tensor, observed: Tensor, num_particles: int) -> Filled:
    """`filled` under one order."""
    law = law.expand([num_particles, len(x)])
    items, log_weights = iter(law.order), x.new_zeros(num_particles, len(x))

    def draw(params: Tensor) -> Tensor:
        nonlocal log_weights
        at = next(items)  # a dimension, or a group of them
        spend(num_particles * len(x), 1 / len(law.order))
        conditional, given = law.conditional(params.unsqueeze(-2)), x[:, at]
        log_prob = conditional.log_prob(given.unsqueeze(-1).expand(num_particles, *given.shape, 1))
        weights = torch.where(observed[:, at], log_prob.squeeze(-1), 0.0)
        log_weights = log_weights + weights.reshape(*log_weights.shape, -1).sum(-1)
        return torch.where(observed[:, at], given, conditional.sample().squeeze(-1))

    settings = (law.net, law.conditional, law.start, law.order, law.stepper, draw)
    return Filled(Autoregressive(*settings, validate_args=False).sample(), log_weights)


def autoregressive_law(bound: Bound, site: str) -> Any:
    """Return the distribution of the data if it is autoregressive.

    It is a product of conditionals, or a mixture of such. Otherwise the result is None.
    """
    if bound.structure.latents or bound.structure.observed != (site,):
        return None
    law = innermost(bound.model_trace().nodes[site]["fn"])
    return law if isinstance(law, (Autoregressive, EqualMixture)) else None


def levels(law: Any) -> Tensor | None:
    """List the values that every entry may take.

    They are `[levels]`. The result is None if there are not finitely many.
    """
    first = law.laws[0] if isinstance(law, EqualMixture) else law
    conditional = first.conditional(first.net(first.start))
    if not conditional.has_enumerate_support:
        return None
    return conditional.enumerate_support(expand=False).flatten().to(first.start)


def num_completions(observed: Tensor, num_levels: int) -> float:
    """Count the possible completions of the data.

    Those of equal masks are counted once.
    """
    missing = (~observed.unique(dim=0)).sum(-1).tolist()
    return sum(float(num_levels) ** count if count < 64 else math.inf for count in missing)


def summed_out(law: Any, x: Tensor, observed: Tensor, values: Tensor) -> Tensor:
    """log p of the observed entries by enumeration, `[data]`."""
    log_prob = x.new_zeros(len(x))
    for mask in observed.unique(dim=0):
        rows = (observed == mask).all(-1)
        sums = [
            law.log_prob(completions).logsumexp(0) for completions in completed(x, mask, values)
        ]
        log_prob = torch.where(rows, torch.stack(sums).logsumexp(0), log_prob)
    return log_prob


def completed(x: Tensor, mask: Tensor, values: Tensor) -> Iterator[Tensor]:
    """Yield every completion of data in chunks.

    Chunks are `[completions, data, D]`.
    """
    missing = (~mask).nonzero().flatten()
    if not len(missing):
        yield x.unsqueeze(0)
        return
    grid = torch.cartesian_prod(*[values] * len(missing)).reshape(-1, len(missing))
    for part in grid.split(max(1, AT_ONCE // len(x))):
        completions = x.expand(len(part), *x.shape).clone()
        completions[..., missing] = part.unsqueeze(1)
        yield completions


def check_mask(x: Tensor, observed: Tensor) -> Tensor:
    """The mask in the shape of the data."""
    if observed.dtype != torch.bool:
        raise TypeError(
            f"observed is {observed.dtype}; expected torch.bool, True where an entry is observed"
        )
    try:
        return observed.to(x.device).expand(x.shape)
    except RuntimeError as error:
        raise ValueError(
            f"observed is {list(observed.shape)} but the data are {list(x.shape)}; expected one "
            "mask entry for each entry of the data, or for each entry of one datum"
        ) from error
