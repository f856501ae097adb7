"""One dictionary of all transforms, conditional and not, for the generic tests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.transforms import (
    ActNorm,
    Affine,
    BatchNorm,
    Chain,
    Continuous,
    Coupling,
    Elementwise,
    ImageCoupling,
    Inverse,
    LogisticMixture,
    LULinear,
    MaskedAutoregressive,
    MultiScale,
    Permutation,
    Planar,
    Radial,
    Shift,
    Spline,
    Squeeze,
    Sylvester,
    checkerboard,
)
from ppl_dgm.transforms.layers import half_channels

IMAGE = (2, 4, 4)


@dataclass(frozen=True)
class Case:
    """A transform of events of some shape, whose inverse is analytic or numerical."""

    make: Callable[[], Any]
    numerical: bool = False

    def build(self, dtype: torch.dtype = torch.float32, moved: float = 0.1) -> Any:
        """The transform, its parameters moved from where they start, the same on each call."""
        torch.manual_seed(3)
        transform = self.make().to(dtype).eval()
        with torch.no_grad():
            for parameter in transform.parameters():
                parameter.add_(moved * torch.randn_like(parameter))
        return transform


def context_of(transform: Any, num_data: int, dtype: torch.dtype) -> Tensor | None:
    """Contexts `[num_data, num_context]`, where the transform takes any."""
    if transform.num_context == 0:
        return None
    generator = torch.Generator().manual_seed(5)
    return torch.randn(num_data, transform.num_context, generator=generator, dtype=dtype)


def squeezed(num_context: int) -> Chain:
    """A scale of four by four pixels, over images of eight channels."""
    coupling = ImageCoupling(
        (8, 2, 2), half_channels((8, 2, 2)), hidden=[4], num_context=num_context
    )
    return Chain([coupling, Inverse(LULinear((8, 2, 2))), Inverse(Squeeze(IMAGE)), ActNorm(IMAGE)])


def two_scales(num_context: int) -> MultiScale:
    """Half of eight channels from a coarser image of one pixel."""
    return MultiScale([squeezed(num_context), Chain([Inverse(Squeeze((4, 2, 2)))])])


VECTORS: dict[str, Case] = {
    "elementwise affine": Case(lambda: Elementwise((2,))),
    "elementwise spline": Case(lambda: Elementwise((2,), Spline(5, 3.0))),
    "elementwise logistic mixture": Case(lambda: Elementwise((2,), LogisticMixture(3)), True),
    "additive coupling": Case(lambda: Coupling(2, Shift())),
    "affine coupling": Case(lambda: Coupling(2, Affine(2.0))),
    "flipped coupling": Case(lambda: Coupling(2, flipped=True)),
    "masked coupling": Case(lambda: Coupling(2, mask=torch.tensor([False, True]))),
    "spline coupling": Case(lambda: Coupling(2, Spline())),
    "logistic-mixture coupling": Case(lambda: Coupling(2, LogisticMixture(3)), True),
    "affine autoregressive": Case(lambda: MaskedAutoregressive(2)),
    "masked autoregressive": Case(lambda: Inverse(MaskedAutoregressive(2, order=[1, 0]))),
    "spline autoregressive": Case(lambda: MaskedAutoregressive(2, Spline())),
    "neural autoregressive": Case(lambda: MaskedAutoregressive(2, LogisticMixture(3)), True),
    "lu linear": Case(lambda: LULinear((2,))),
    "act norm": Case(lambda: ActNorm((2,))),
    "batch norm": Case(lambda: BatchNorm((2,))),
    "permutation": Case(lambda: Permutation([1, 0])),
    "planar": Case(lambda: Planar(2), True),
    "inverse planar": Case(lambda: Inverse(Planar(2)), True),
    "radial": Case(lambda: Radial(2)),
    "sylvester": Case(lambda: Sylvester(2), True),
    "continuous": Case(lambda: Continuous(2, [8, 8], num_steps=3), True),
}
CONDITIONAL: dict[str, Case] = {
    "conditional elementwise": Case(lambda: Elementwise((2,), num_context=3)),
    "conditional coupling": Case(lambda: Coupling(2, num_context=3)),
    "conditional spline coupling": Case(lambda: Coupling(2, Spline(), num_context=3)),
    "conditional autoregressive": Case(lambda: MaskedAutoregressive(2, num_context=3)),
    "conditional masked autoregressive": Case(
        lambda: Inverse(MaskedAutoregressive(2, Spline(), num_context=3))
    ),
    "conditional neural autoregressive": Case(
        lambda: MaskedAutoregressive(2, LogisticMixture(3), num_context=3), True
    ),
    "conditional planar": Case(lambda: Planar(2, 3), True),
    "conditional radial": Case(lambda: Radial(2, 3)),
    "conditional continuous": Case(lambda: Continuous(2, [8], 2, num_context=3), True),
    "conditional sylvester": Case(lambda: Sylvester(2, num_context=3), True),
}
IMAGES: dict[str, Case] = {
    "image act norm": Case(lambda: ActNorm(IMAGE)),
    "image batch norm": Case(lambda: BatchNorm(IMAGE)),
    "invertible convolution": Case(lambda: LULinear(IMAGE)),
    "checkerboard coupling": Case(lambda: ImageCoupling(IMAGE, checkerboard(IMAGE), hidden=[8, 8])),
    "channel coupling": Case(lambda: ImageCoupling(IMAGE, half_channels(IMAGE), hidden=[8, 8])),
    "conditional image coupling": Case(
        lambda: ImageCoupling(IMAGE, half_channels(IMAGE, last=True), hidden=[8, 8], num_context=3)
    ),
    "image spline coupling": Case(
        lambda: ImageCoupling(IMAGE, checkerboard(IMAGE, 1), Spline(4), hidden=[8, 8])
    ),
    "squeezed chain": Case(lambda: Chain([Squeeze(IMAGE), squeezed(0)])),
    "multi-scale": Case(lambda: two_scales(0)),
    "conditional multi-scale": Case(lambda: two_scales(3)),
}
PLANE = VECTORS | CONDITIONAL
ALL = PLANE | IMAGES
