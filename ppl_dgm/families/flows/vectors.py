"""Flows of vectors with a standard normal base.

Each has the name of its model, and is a recipe of transforms.

All end with an `ActNorm` on the side of the data, which takes their location and scale.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.families.flows.flow import Flow, standard_normal
from ppl_dgm.families.flows.images import checked_length, realnvp_images
from ppl_dgm.nn.mlp import Activation, ImageShape
from ppl_dgm.transforms import (
    ActNorm,
    Affine,
    Bijection,
    Continuous,
    Coupling,
    ImageCoupling,
    Inverse,
    LULinear,
    MaskedAutoregressive,
    Planar,
    ScalarMap,
    Shift,
    Spline,
)
from ppl_dgm.transforms.continuous import Trace
from ppl_dgm.transforms.layers import coupling_log_scale
from ppl_dgm.validation import check_sizes

__all__ = ["FFJORD", "IAF", "MAF", "NICE", "NSF", "PlanarFlow", "RealNVP"]


class PlanarFlow(Flow):
    """Flow of planar transforms, from data to noise.

    Data are therefore scored in closed form (Rezende and Mohamed 2015).

    A draw solves one equation for each transform.

    Args:
        num_dims: number D of dimensions.
        length: number of transforms.
        num_context: size of a context that the density depends on; 0 for none.

    Raises:
        ValueError: sizes below one.

    Example:
        >>> PlanarFlow(2, length=4).sample(3).shape
        torch.Size([3, 2])
    """

    @checked
    def __init__(self, num_dims: int, length: int = 16, num_context: int = 0) -> None:
        steps = repeated(length, lambda _: [Inverse(Planar(num_dims, num_context))])
        super().__init__(standard_normal(num_dims), [*steps, ActNorm((num_dims,))])


class NICE(Flow):
    """NICE: a flow of additive couplings and one rescaling.

    All but the rescaling keeps volumes (Dinh, Krueger and Bengio 2015).

    Each pair of layers draws a partition of the dimensions; the first moves one part, the second
    the other.

    Args:
        num_dims: number D of dimensions, at least 2.
        length: number of couplings.
        hidden: sizes of the nets' hidden layers.
        num_context: size of a context that the density depends on; 0 for none.
        activation: makes the nets' activation.
        seed: draws the partitions.

    Raises:
        ValueError: sizes below one, fewer than two dimensions.

    Example:
        >>> NICE(3).sample(5).shape
        torch.Size([5, 3])
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        length: int = 6,
        hidden: Sequence[int] = (64, 64),
        num_context: int = 0,
        activation: Activation = nn.ReLU,
        seed: int = 0,
    ) -> None:
        check_sizes(num_dims=num_dims)
        masks = drawn_partitions(num_dims, checked_length(length), seed)

        def layer(step: int) -> list[Any]:
            parts = (num_dims, Shift(), masks[step], False, hidden, num_context, activation)
            return [Coupling(*parts)]

        super().__init__(
            standard_normal(num_dims), [*repeated(length, layer), ActNorm((num_dims,))]
        )


class RealNVP(Flow):
    """RealNVP: affine couplings of vectors or of images.

    Halves are coupled in turn, each coupling after an `ActNorm` (Dinh, Sohl-Dickstein and Bengio
    2017).

    Images have several scales: checkerboard couplings, a squeeze, couplings of channels, half of
    which are noise from there on; the last scale has checkerboards only. Log-scales are bounded, by
    depth: all couplings together scale a number by about e^8 at most.

    Args:
        size: number D of dimensions, at least 2, or (channels, height, width) of images, given
            flattened.
        length: number of couplings; of images in each scale, half of them checkerboards.
        hidden: sizes, or channels, of the nets' hidden layers.
        num_context: size of a context that the density depends on; 0 for none.
        activation: makes the nets' activation.
        levels: number of scales of images, 2 by default; None for vectors.

    Raises:
        ValueError: sizes below one, fewer than two dimensions, sides that are no multiples of
            2^(levels - 1), levels of vectors.

    Example:
        >>> RealNVP(3).sample(5).shape
        torch.Size([5, 3])
        >>> RealNVP((1, 4, 4), hidden=[8]).sample(5).shape
        torch.Size([5, 16])
    """

    @checked
    def __init__(
        self,
        size: int | ImageShape,
        length: int = 6,
        hidden: Sequence[int] = (64, 64),
        num_context: int = 0,
        activation: Activation = nn.ReLU,
        levels: int | None = None,
    ) -> None:
        if not isinstance(size, int):
            scales = 2 if levels is None else levels
            scalar = Affine(coupling_log_scale(length * scales))

            def couple(shape: ImageShape, mask: Any) -> Bijection:
                return ImageCoupling(shape, mask, scalar, hidden, num_context, None, activation)

            super().__init__(*realnvp_images(size, length, scales, couple))
            return
        if levels is not None:
            raise ValueError(f"levels is {levels}, but vectors have no scales; leave it out")

        bounded = Affine(coupling_log_scale(length))

        def layer(step: int) -> list[Any]:
            flipped = step % 2 == 1
            coupling = Coupling(size, bounded, None, flipped, hidden, num_context, activation)
            return [coupling, ActNorm((size,))]

        super().__init__(standard_normal(size), repeated(length, layer))


class MAF(Flow):
    """Masked autoregressive flow of vectors.

    It is a row of MADEs with Gaussian conditionals (Papamakarios, Pavlakou and Murray 2017).

    Data are scored in one pass of each net; a draw takes D. Every other net goes through the
    dimensions backwards.

    Args:
        num_dims: number D of dimensions.
        length: number of nets.
        hidden: sizes of the nets' hidden layers.
        num_context: size of a context that the density depends on; 0 for none.
        activation: makes the nets' activation.

    Raises:
        ValueError: sizes below one.

    Example:
        >>> MAF(3).sample(5).shape
        torch.Size([5, 3])
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        length: int = 5,
        hidden: Sequence[int] = (64, 64),
        num_context: int = 0,
        activation: Activation = nn.ReLU,
    ) -> None:
        def layer(step: int) -> list[Any]:
            net = autoregressive(step, num_dims, None, hidden, num_context, activation)
            return [Inverse(net), ActNorm((num_dims,))]

        super().__init__(standard_normal(num_dims), repeated(length, layer))


class IAF(Flow):
    """Inverse autoregressive flow of vectors.

    A draw takes one pass of each net; scoring data takes D (Kingma et al. 2016).

    As a model it is for distillation (van den Oord et al. 2018); to fit data, use `MAF`.

    Args:
        num_dims: number D of dimensions.
        length: number of nets.
        hidden: sizes of the nets' hidden layers.
        num_context: size of a context that the density depends on; 0 for none.
        activation: makes the nets' activation.

    Raises:
        ValueError: sizes below one.

    Example:
        >>> IAF(3).sample(5).shape
        torch.Size([5, 3])
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        length: int = 5,
        hidden: Sequence[int] = (64, 64),
        num_context: int = 0,
        activation: Activation = nn.ReLU,
    ) -> None:
        def layer(step: int) -> list[Any]:
            return [autoregressive(step, num_dims, None, hidden, num_context, activation)]

        super().__init__(
            standard_normal(num_dims), [*repeated(length, layer), ActNorm((num_dims,))]
        )


class FFJORD(Flow):
    """FFJORD: a continuous flow along a learned vector field.

    The field joins noise and data (Grathwohl et al. 2019).

    Data are scored along the field by fixed steps of Runge and Kutta; a draw goes back, corrected.
    The tangents that make the density exact cost D products of the net for each datum; with
    `trace="hutchinson"` fits estimate it by one.

    Args:
        num_dims: number D of dimensions.
        length: number of fields in a row.
        hidden: sizes of the fields' hidden layers, of tanh units.
        num_steps: of Runge and Kutta's method, for each field.
        trace: `"exact"`, or `"hutchinson"`: estimated in training, exact in evaluation.
        num_context: size of a context that the density depends on; 0 for none.

    Raises:
        ValueError: sizes below one, another trace.

    Example:
        >>> FFJORD(2, hidden=[8], num_steps=2).sample(5).shape
        torch.Size([5, 2])
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        length: int = 1,
        hidden: Sequence[int] = (64, 64),
        num_steps: int = 8,
        trace: Trace = "exact",
        num_context: int = 0,
    ) -> None:
        def layer(step: int) -> list[Any]:
            field = Continuous(num_dims, hidden, num_steps, trace, num_context)
            return [Inverse(field), ActNorm((num_dims,))]

        super().__init__(standard_normal(num_dims), repeated(length, layer))


class NSF(Flow):
    """Neural spline flow of vectors.

    The splines are monotone and rational quadratic (Durkan, Bekasov, Murray and Papamakarios 2019).

    Args:
        num_dims: number D of dimensions.
        length: number of spline layers.
        hidden: sizes of the nets' hidden layers.
        num_bins: of each spline.
        bound: of the splines, in standard deviations: outside they are the identity.
        layers: `"autoregressive"`, scored in one pass and drawn in D; `"coupling"`, one pass each
            way, after linear maps and for at least two dimensions.
        num_context: size of a context that the density depends on; 0 for none.
        activation: makes the nets' activation.

    Raises:
        ValueError: sizes below one, other layers.

    Example:
        >>> NSF(3).sample(5).shape, NSF(3, layers="coupling").sample(5).shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        length: int = 3,
        hidden: Sequence[int] = (64, 64),
        num_bins: int = 8,
        bound: float = 5.0,
        layers: Literal["autoregressive", "coupling"] = "autoregressive",
        num_context: int = 0,
        activation: Activation = nn.ReLU,
    ) -> None:
        if layers not in ("autoregressive", "coupling"):
            raise ValueError(f"layers is {layers!r}; expected 'autoregressive' or 'coupling'")
        spline = Spline(num_bins, bound)

        def layer(step: int) -> list[Any]:
            norm = ActNorm((num_dims,))
            if layers == "autoregressive":
                net = autoregressive(step, num_dims, spline, hidden, num_context, activation)
                return [Inverse(net), norm]
            flipped = step % 2 == 1
            coupling = Coupling(num_dims, spline, None, flipped, hidden, num_context, activation)
            return [coupling, Inverse(LULinear((num_dims,))), norm]

        super().__init__(standard_normal(num_dims), repeated(length, layer))


def drawn_partitions(num_dims: int, length: int, seed: int) -> list[Tensor]:
    """Draw a partition, masks `[D]`, for each pair of couplings.

    No coupling keeps what the one before keeps: two in a row would be one.
    """
    generator = torch.Generator().manual_seed(seed)
    masks: list[Tensor] = []
    for _ in range(0, length, 2):
        mask = torch.randperm(num_dims, generator=generator, device="cpu") < num_dims // 2
        again = bool(masks) and torch.equal(mask, masks[-1])
        masks += [mask ^ again, ~mask ^ again]
    return masks


def autoregressive(
    step: int,
    num_dims: int,
    scalar: ScalarMap | None,
    hidden: Sequence[int],
    num_context: int,
    activation: Activation,
) -> Bijection:
    """Make one autoregressive layer of a flow.

    Every other layer goes through the dimensions backwards.
    """
    order = range(num_dims)[:: 1 if step % 2 == 0 else -1]
    return MaskedAutoregressive(num_dims, scalar, hidden, order, num_context, activation)


def repeated(length: int, layer: Callable[[int], list[Any]]) -> list[Any]:
    """The transforms of so many layers, one after the other.

    Raises:
        ValueError: fewer layers than one.
    """
    return list(chain.from_iterable(map(layer, range(checked_length(length)))))
