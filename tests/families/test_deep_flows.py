"""Flows of 32 layers: fits of 2000 steps stay finite, and so do their draws.

Deep couplings of other packages end in NaN. Slow: half an hour of one core.
"""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ppl_dgm import evidence, fit
from ppl_dgm.families import IAF, MAF, NICE, NSF, Flow, FlowPlusPlus, Glow, RealNVP
from ppl_dgm.transforms import Affine, Coupling, ImageCoupling

IMAGE = (1, 4, 4)
DEEP: dict[str, tuple[int, Callable[[], Flow]]] = {
    "nice": (4, lambda: NICE(4, 32, [8])),
    "realnvp": (4, lambda: RealNVP(4, 32, [8])),
    "maf": (4, lambda: MAF(4, 32, [8])),
    "iaf": (4, lambda: IAF(4, 32, [8])),
    "nsf": (4, lambda: NSF(4, 32, [8], num_bins=4)),
    "coupling nsf": (4, lambda: NSF(4, 32, [8], num_bins=4, layers="coupling")),
    "image realnvp": (16, lambda: RealNVP(IMAGE, 32, [4])),
    "glow": (16, lambda: Glow(IMAGE, 32, [4], levels=1)),
    "flow++": (16, lambda: FlowPlusPlus(IMAGE, 11, 4, 2, 1)),  # in each of three parts
}


def bent(num_dims: int) -> Tensor:
    """Correlated data, bent by a sine, of mean 0 and sd 1 in each dimension."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, num_dims, generator=generator)
    x = x @ torch.randn(num_dims, num_dims, generator=generator) / num_dims**0.5
    x = x + 0.3 * torch.sin(3 * x.roll(1, 1))
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (100.0, 30.0)])
@pytest.mark.parametrize("name", DEEP)
def test_deep_flows_stay_finite(name: str, mean: float, sd: float) -> None:
    torch.manual_seed(0)
    num_dims, make = DEEP[name]
    flow, x = make(), mean + sd * bent(num_dims)
    options = {"batch_size": 64, "seed": 0, "compile": False, "progress": False}
    found = fit(flow, x, steps=2000, **options).history["objective"]
    assert bool(torch.isfinite(found).all())
    assert found[-100:].mean() > found[:100].mean()
    scored = evidence.Exact()(flow, x)
    assert not scored.warnings
    assert bool(torch.isfinite(scored.log_z).all())
    back = flow.from_latents(flow.latents(x))
    assert (back - x).abs().max() < (1e-4 if name == "flow++" else 1e-5) * x.abs().max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = flow.sample(2000)
    assert (draws - mean).abs().max() < 1000 * sd


@pytest.mark.parametrize("name", ["realnvp", "glow"])
def test_deep_couplings_scale_no_number_far(name: str) -> None:
    """Bounds of two each let 32 couplings make e^32 of a number, in a fit's step and in draws."""
    deep, few = scale_bounds(DEEP[name][1]()), scale_bounds(RealNVP(4, 8))
    assert len(deep) == 32
    assert sum(deep) / 2 == pytest.approx(8.0)
    assert few == [2.0] * 8


def scale_bounds(flow: Flow) -> list[float]:
    scalars = [
        part.scalar for part in flow.modules() if isinstance(part, (Coupling, ImageCoupling))
    ]
    return [scalar.max_log_scale for scalar in scalars if isinstance(scalar, Affine)]
