"""Log importance weights and their summaries.

They are the central quantity here, drawn for many particles in bounded memory.

log w = log p(x, z) - log q(z | x) with z drawn from q. Their mean is the ELBO, their log-mean-exp
the importance-weighted bound, and their tail says when to believe neither.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.compile import CompileMode, Switch
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.isolation import evaluating
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.memory import MEMORY, chunk_plan, some_of

__all__ = [
    "Proposal",
    "all_weights",
    "expand_particles",
    "log_mean_exp",
    "log_weights",
    "weight_chunks",
]

Proposal = Literal["guide", "prior"]


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
