"""Distributions with whole numbers for parameters, against SciPy."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import Exact

BYTES = torch.tensor([255, 20, 3], dtype=torch.uint8)
COUNTS = torch.tensor([250, 7, 0])


def observed(make: Callable[[], Any]) -> Program:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", make(), obs=x)

    return Program(model)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize(
    ("make", "known"),
    [
        (lambda n: dist.Normal(0.0, n), lambda n: scipy.stats.norm(0, n).logpdf),
        (lambda n: dist.Normal(n, 2.0), lambda n: scipy.stats.norm(n, 2).logpdf),
        (lambda n: dist.StudentT(n, 0.0, n), lambda n: scipy.stats.t(n, 0, n).logpdf),
        (lambda n: dist.BetaBinomial(2.0, 3.0, n), lambda n: scipy.stats.betabinom(n, 2, 3).logpmf),
    ],
)
def test_densities_have_all_digits(make: Callable, known: Callable, dtype: torch.dtype) -> None:
    found = Exact()(observed(lambda: make(BYTES.to(dtype))), COUNTS)
    truth = torch.as_tensor(known(BYTES.double().numpy())(COUNTS.numpy()))
    assert torch.allclose(found.log_z, truth, rtol=1e-9)
    assert found.reliable


def test_parameters_at_any_depth_of_wrappers() -> None:
    mask = torch.tensor([True, False, True])
    found = Exact()(observed(lambda: dist.Normal(0.0, BYTES[:1]).expand([3]).mask(mask)), COUNTS)
    truth = torch.as_tensor(scipy.stats.norm(0, 255).logpdf(COUNTS.numpy())) * mask
    assert torch.allclose(found.log_z, truth, rtol=1e-9)


@pytest.mark.parametrize(
    "make", [lambda n: dist.Normal(n, 2.5), lambda n: dist.Normal(0.5, n)], ids=["scale", "loc"]
)
def test_numbers_that_torch_would_round_are_refused(make: Callable) -> None:
    with pytest.raises(ValueError, match="is rounded to"):
        observed(lambda: make(COUNTS + 1)).bind(COUNTS)
    assert float(dist.Normal(COUNTS, 2.5).scale[0]) == 2  # torch's own is as it was
