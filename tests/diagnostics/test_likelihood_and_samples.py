"""Likelihood and samples are different things: the two examples of Theis et al. (2016), section 3.

A mixture of the truth with 99 % of noise has a fine likelihood and bad samples; normals at the
training data have good samples and a bad likelihood.
"""

import math

import pyro
import pyro.distributions as dist
import torch

from ppl_dgm import Program
from ppl_dgm.diagnostics import energy_test, memorisation, precision_recall
from ppl_dgm.evidence import Exact

DIMS, SIZE = 10, 200


def normals(locs: torch.Tensor, scales: torch.Tensor, weights: torch.Tensor) -> Program:
    """A mixture of round normals: means `[parts, DIMS]`, deviations and weights `[parts]`."""

    def model(x: torch.Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            parts = dist.Normal(locs, scales.unsqueeze(-1)).to_event(1)
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)

    return Program(model)


def test_each_is_fine_where_the_other_fails() -> None:
    torch.manual_seed(0)
    train, held_out = torch.randn(2, SIZE, DIMS)
    zeros, one = torch.zeros(1, DIMS), torch.ones(1)
    truth = normals(zeros, one, one)
    noisy = normals(zeros.expand(2, -1), torch.tensor([1.0, 10.0]), torch.tensor([0.01, 0.99]))
    memory = normals(train, torch.full((SIZE,), 0.01), torch.ones(SIZE))
    best, with_noise, by_heart = (
        Exact()(program, held_out).log_z.mean() for program in (truth, noisy, memory)
    )
    assert best - math.log(100) <= with_noise <= best
    assert by_heart < best - 1000
    noise, copies = noisy.sample(SIZE), memory.sample(SIZE)
    assert float(precision_recall(held_out, noise).precision) < 0.1
    assert energy_test(noise, held_out, seed=0).p_value < 0.01
    assert energy_test(copies, held_out, seed=0).p_value > 0.01
    assert memorisation(copies, train, held_out).p_value < 1e-6
