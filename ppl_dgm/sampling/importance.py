"""Log importance weights and their summaries.

They are the central quantity here, drawn for many particles in bounded memory.

log w = log p(x, z) - log q(z | x) with z drawn from q. Their mean is the ELBO, their log-mean-exp
the importance-weighted bound, and their tail says when to believe neither.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.compile import CompileMode, Switch
from ppl_dgm.program import Bound, Program, evaluating
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.memory import MEMORY, chunk_plan, some_of

__all__ = [
    "Proposal",
    "WeightSummary",
    "all_weights",
    "expand_particles",
    "log_mean_exp",
    "log_weights",
    "pareto_k",
    "weight_chunks",
]

Proposal = Literal["guide", "prior"]
FEW_ATOMS = 4  # different weights in a tail that make no curve
NEARLY_EQUAL = 1e-6  # relative variance of weights below which their skewness is rounding
ROWS_AT_ONCE = 10_000  # weights whose tails are fitted together


@checked
def log_weights(
    program: Program,
    *args: Any,
    num_particles: int = 1,
    proposal: Proposal = "guide",
    memory: int = MEMORY,
    seed: int | None = None,
    **kwargs: Any,
) -> Tensor:
    r"""Draw log importance weights of a program at its data.

    $\log w_{ki} = \log p(x_i, z_{ki}) - \log q(z_{ki} \mid x_i)$ with $z_{ki} \sim q$, discrete
    latents that are enumerated summed out exactly. Weights are computed in float64 and rounded to
    the precision of the program. Modules are in evaluation mode and gradients are not kept;
    objectives are for that.

    Args:
        program: the program.
        *args: its data, as its model takes them.
        num_particles: number of weights for each datum (or for the data set).
        proposal: `"guide"` or `"prior"`.
        memory: bytes that one chunk of particles may allocate.
        seed: makes the draw repeatable and leaves torch's generator as it was; None draws from
            torch's generator.
        **kwargs: further data.

    Returns:
        Nats: `[num_particles, data]` where every latent is inside the data plate, else
            `[num_particles]`.

    Raises:
        ValueError: if the program does not fit itself or the data, or `num_particles` is less than
            1.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_dgm import Program, log_weights
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> log_weights(Program(model), torch.zeros(3), num_particles=5, seed=0).shape
        torch.Size([5, 3])
    """
    with evaluating(program), torch.no_grad():
        bound = program.bind(*args, **kwargs)
        draw = draw_weights_prior if proposal == "prior" else draw_weights
        with seeded(0, bound.device):
            own = draw(some_of(bound, 1)[0], 1).dtype
        with seeded(seed, bound.device):
            return all_weights(bound.in_double(), num_particles, proposal, memory).to(own)


def all_weights(
    bound: Bound,
    num_particles: int,
    proposal: Proposal = "guide",
    memory: int = MEMORY,
    compile: CompileMode = False,
) -> Tensor:
    """Draw log weights of all data in bounded memory.

    They are `[num_particles, data]` or `[num_particles]`, in float64.
    """
    parts, done = [], num_particles
    for _, log_w in weight_chunks(bound, num_particles, proposal, memory, compile):
        if done == num_particles:
            # One tensor for all: small ones kept between large ones would pin their memory.
            shape = num_particles, *log_w.shape[1:]
            parts.append(torch.empty(shape, dtype=torch.float64, device=log_w.device))
            done = 0
        parts[-1][done : done + len(log_w)] = log_w
        done += len(log_w)
    return torch.cat(parts, -1)


class WeightChunk(NamedTuple):
    """One chunk of log weights.

    They are `[particles, data]` of the data from `start` on, or `[particles]` of the data set.
    """

    start: int
    log_weights: Tensor


def weight_chunks(
    bound: Bound,
    num_particles: int,
    proposal: Proposal = "guide",
    memory: int = MEMORY,
    compile: CompileMode = False,
) -> Iterator[WeightChunk]:
    """Yield log weights in chunks of bounded memory.

    A chunk has a bounded number of particles and data. Data come in order.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles is {num_particles}; expected at least 1")
    draw = draw_weights_prior if proposal == "prior" else draw_weights
    # compiled code takes any data as arguments, so that it would sum over all
    switch = Switch(compile if bound.rows is None else False)

    def weights(args: Any, kwargs: Any, num_data: int | None, count: int) -> Tensor:
        return draw(replace(bound, args=args, kwargs=kwargs, num_data=num_data), count)

    for start, part, particles in chunk_plan(bound, num_particles, memory, lambda b: draw(b, 1)):
        done = 0
        while done < num_particles:
            count = min(particles, num_particles - done)
            spend(count * (part.num_data or 1 if bound.structure.per_datum else 1))
            yield WeightChunk(
                start, switch(weights, part.args, dict(part.kwargs), part.num_data, count)
            )
            done += count


def draw_weights(bound: Bound, num_particles: int) -> Tensor:
    """Log weights with the guide as proposal."""
    values, log_q = bound.draw(num_particles)[:2]
    return expand_particles(bound.log_joint(values).total - log_q, num_particles)


def draw_weights_prior(bound: Bound, num_particles: int) -> Tensor:
    """Draw log weights with the prior as proposal.

    They are the log likelihoods of prior draws.
    """
    return expand_particles(
        bound.log_joint(bound.draw_prior(num_particles).values).likelihood, num_particles
    )


def expand_particles(log_weights: Tensor, num_particles: int) -> Tensor:
    """Repeat the one weight of a program without drawn latents."""
    return log_weights.expand(num_particles, *log_weights.shape[1:])


def log_mean_exp(values: Tensor, dim: int = 0) -> Tensor:
    """log(mean(exp(values))) along a dimension, without overflow."""
    return values.logsumexp(dim) - math.log(values.shape[dim])


@dataclass
class WeightSummary:
    r"""Streaming summary of log weights in float64.

    It gives mean, log-mean-exp, their standard errors, ESS and Pareto k.

    Feed it `[particles, ...]` chunks with `add`; it keeps a constant number of numbers for each
    datum, and the largest weights for the tail. $\mathrm{ESS} = (\sum w)^2 / \sum w^2$.
    """

    num_particles: int
    count: int = 0
    log_sum: Any = -math.inf
    log_square_sum: Any = -math.inf
    log_cube_sum: Any = -math.inf
    mean: Any = 0.0
    squares: Any = 0.0
    tail: Any = None

    def add(self, log_weights: Tensor) -> None:
        """Add a chunk of log weights `[particles, ...]`."""
        log_w = log_weights.detach().double()
        self.log_sum = log_add(self.log_sum, log_w)
        self.log_square_sum = log_add(self.log_square_sum, 2 * log_w)
        self.log_cube_sum = log_add(self.log_cube_sum, 3 * log_w)
        self._add_moments(log_w)
        tail = log_w if self.tail is None else torch.cat([self.tail, log_w])
        self.tail = tail.topk(min(self.tail_size + 1, tail.shape[0]), 0).values

    def _add_moments(self, log_w: Tensor) -> None:
        """Update the mean and the sum of squares.

        Means and sums of squares of two samples are combined as in Chan et al. (1979).
        """
        n, m = self.count, log_w.shape[0]
        mean = log_w.mean(0)
        delta = mean - self.mean
        self.squares = (
            self.squares + (log_w - mean).square().sum(0) + delta.square() * (n * m / (n + m))
        )
        self.mean = self.mean * (n / (n + m)) + mean * (m / (n + m))  # -inf once a weight is zero
        self.count = n + m

    @property
    def tail_size(self) -> int:
        """Number of largest weights for the Pareto fit.

        It is min(K / 5, 3 sqrt(K)), rounded up.
        """
        return math.ceil(min(self.num_particles / 5, 3 * math.sqrt(self.num_particles)))

    @property
    def log_mean_exp(self) -> Tensor:
        """Log of the mean weight, in nats.

        It is the importance sampling estimate of log Z.
        """
        return self.log_sum - math.log(self.count)

    @property
    def std_error(self) -> Tensor:
        r"""Standard error of `log_mean_exp`, by the jackknife.

        $\sqrt{\frac{K-1}{K} \sum_k (\ell_k - \bar\ell)^2}$ with $\ell_k = \log(1 - w_k / \sum w)$:
        that of the delta method where no weight has a large share, and honest where one has. Exact
        for the largest weights, to second order for the others. Efron and Stein (1981).
        """
        even, count = 1 / self.count, self.count
        if count == 1:
            return torch.full_like(self.log_sum, math.inf)
        share = (self.tail - self.log_sum).exp()
        largest = log_rest(self.tail, self.log_sum) - math.log1p(-even)
        left, rest = count - len(self.tail), 1 - share.sum(0)
        squares = (self.log_square_sum - 2 * self.log_sum).exp() - share.square().sum(0)
        spread = (squares - 2 * even * rest + left * even**2).clamp_min(0) / (1 - even) ** 2
        mean = largest.sum(0) - (rest - left * even) / (1 - even)
        variance = largest.square().sum(0) + spread - mean.square() * even
        return (variance.clamp_min(0) * (1 - even)).sqrt().nan_to_num(torch.inf)

    @property
    def skewness(self) -> Tensor:
        r"""Skewness of the mean weight, between 0 and 1.

        $\sum_k (w_k - \bar w)^3 / (\sum_k (w_k - \bar w)^2)^{3/2}$; 0 where weights are nearly
        equal or their skew is to the left.
        """
        even = 1 / self.count
        squares = (self.log_square_sum - 2 * self.log_sum).exp()
        cubes = (self.log_cube_sum - 3 * self.log_sum).exp()
        spread = squares - even
        skewness = (cubes - 3 * even * squares + 2 * even**2) / spread**1.5
        uneven = spread > NEARLY_EQUAL * even
        return torch.where(uneven, skewness, 0.0).nan_to_num(0.0).clamp(0.0, 1.0)

    @property
    def mean_std_error(self) -> Tensor:
        """Standard error of `mean`."""
        return (self.squares / (max(self.count - 1, 1) * self.count)).sqrt()

    @property
    def ess(self) -> Tensor:
        """Effective sample size of the weights (Kong 1992).

        It is between 1 and the number of particles.
        """
        return (2 * self.log_sum - self.log_square_sum).exp()

    @property
    def pareto_k(self) -> Tensor:
        """Shape of the generalised Pareto tail of the weights.

        Above 0.7 the estimate is unreliable (Vehtari et al. 2024).
        """
        shape = self.tail.shape[1:]
        return tail_shapes(self.tail.reshape(self.tail.shape[0], -1).T).reshape(shape)


def log_add(log_sum: Any, log_terms: Tensor) -> Tensor:
    """Add terms `[n, ...]` to a sum, all in logs."""
    return torch.logaddexp(torch.as_tensor(log_sum).to(log_terms), log_terms.logsumexp(0))


def log_rest(largest: Tensor, log_sum: Tensor) -> Tensor:
    """Compute log(1 - w / sum) of the largest weights.

    Weights are `[n, *batch]`, sorted downwards. The result is exact where one weight is nearly all.
    """
    share = (largest - log_sum).exp()
    rest = torch.log1p(-share.clamp(max=1.0))
    if len(largest) > 1:
        rest[0] = torch.maximum(rest[0], largest[1:].logsumexp(0) - log_sum)
    return rest


def tail_shapes(largest: Tensor) -> Tensor:
    """Estimate Pareto shapes from rows of the largest log weights.

    Rows are `[rows, n]`. The shape is that of the weights above the smallest one.

    Rows are sorted downwards. -inf where all are equal, inf where fewer than five differ from zero,
    and the growth of the weights with their rarity where they are a few atoms, as discrete latents
    make them.
    """
    log_w = largest - largest[:, :1]
    excess = (log_w[:, :-1].exp() - log_w[:, -1:].exp()).flip(1)
    smooth = (excess > 0).all(1) & (excess.diff(dim=1) > 0).all(1) & (excess.shape[1] > 4)
    shapes = log_w.new_full(log_w.shape[:1], math.inf)
    rows = torch.nonzero(smooth).squeeze(1)
    for part in rows.split(max(1, ROWS_AT_ONCE // max(1, excess.shape[1]))):
        shapes[part] = generalised_pareto_shape(excess[part])
    for row in torch.nonzero(~smooth).squeeze(1).tolist():
        shapes[row] = uneven_shape(log_w[row], excess[row])
    return shapes


def uneven_shape(log_w: Tensor, excess: Tensor) -> float:
    """Estimate the Pareto shape where weights coincide or vanish.

    `log_w` and `excess` are one row of `tail_shapes`.
    """
    excess = excess[excess > 0]
    if bool(log_w[-1] > -1e-9):
        return -math.inf  # all weights equal: no tail
    if len(excess.unique()) <= FEW_ATOMS:
        return atom_shape(log_w)
    return float(generalised_pareto_shape(excess.unsqueeze(0)))


def atom_shape(log_w: Tensor) -> float:
    r"""Estimate the Pareto shape of weights with few values.

    It is the growth of weights with their rarity, $\max \Delta \log w / \Delta \log n$, from the
    largest atom down.

    n counts the weights at least as large as an atom: a Pareto tail of shape k has the slope k
    everywhere.
    """
    atoms, counts = torch.unique_consecutive(log_w, return_counts=True)
    if len(atoms) == len(log_w):
        return math.inf  # too few to tell
    rarer = (counts.cumsum(0).double() / counts[0]).log()
    return float(((atoms[0] - atoms[1:]) / rarer[1:]).max())


def generalised_pareto_shape(excess: Tensor) -> Tensor:
    """Estimate the shapes of generalised Pareto distributions.

    Rows `[rows, n]` hold positive excesses, sorted upwards.

    Zhang and Stephens (2009), with the prior of Vehtari et al. (2024), appendix C; Pyro's
    `fit_generalized_pareto`, for many rows at once, and where the scale degenerates too.
    """
    count = excess.shape[1]
    excess = excess.double() / excess[:, -1:]
    grid = torch.arange(1, 31 + int(math.sqrt(count)), dtype=torch.float64, device=excess.device)
    quartile = excess[:, int(count / 4 - 0.5), None].clamp_min(torch.finfo(torch.float64).tiny)
    b = (1 - math.sqrt(len(grid)) / (grid - 0.5).sqrt()) / (3 * quartile) + 1
    shape = torch.log1p(-b.unsqueeze(-1) * excess.unsqueeze(1)).mean(-1)
    likelihood = count * ((-b / shape).log() - (shape + 1))
    weight = likelihood.nan_to_num(nan=-torch.inf, posinf=-torch.inf).softmax(-1)
    mean = (b * weight).sum(-1, keepdim=True)
    found = torch.log1p(-mean * excess).mean(-1)
    return ((found * count + 5) / (count + 10)).nan_to_num(nan=torch.inf)


@checked
def pareto_k(log_weights: Tensor) -> Tensor:
    """Estimate the Pareto shape of log weights `[particles, ...]`.

    It is along the first dimension. See `WeightSummary.pareto_k`.

    Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling". The fit
    is Pyro's.

    Example:
        >>> import torch
        >>> log_weights = 0.1 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
        >>> bool(pareto_k(log_weights) < 0.5)
        True
    """
    summary = WeightSummary(log_weights.shape[0])
    summary.add(log_weights)
    return summary.pareto_k
