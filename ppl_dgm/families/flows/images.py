"""Flows of images, built from scales of couplings.

Each has the name of its model; data are flattened.

From data to noise each scale squeezes squares of pixels into channels, and half of the channels it
ends with are noise from there on. All `ActNorm`s start from the first data.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ppl_dgm.checked import checked
from ppl_dgm.families.flows.flow import Flow, standard_normal
from ppl_dgm.nn.image_attention import AttentionImageNet
from ppl_dgm.nn.mlp import Activation, ImageShape
from ppl_dgm.transforms import (
    ActNorm,
    Affine,
    Bijection,
    Chain,
    ImageCoupling,
    Inverse,
    LogisticMixture,
    LULinear,
    MultiScale,
    Squeeze,
    checkerboard,
)
from ppl_dgm.transforms.images import check_halvings
from ppl_dgm.transforms.layers import coupling_log_scale, half_channels

__all__ = ["FlowPlusPlus", "Glow", "check_sides", "checked_length", "realnvp_images"]

CoupleImages = Callable[[ImageShape, Any], Bijection]  # of a shape, and the mask of what stays


class Glow(Flow):
    """Glow, a multi-scale flow of images.

    Its steps are `ActNorm`, an invertible 1 x 1 convolution and an affine coupling of channels
    (Kingma and Dhariwal 2018).

    Each scale squeezes, takes its steps, and maps the half of the channels that becomes noise
    affinely given the other half: their learned prior of split variables. Log-scales are bounded as
    in `RealNVP`.

    Args:
        image_shape: (channels, height, width); data are `[N, channels * height * width]`.
        length: number of steps in each scale.
        hidden: channels of the nets' hidden layers.
        num_context: size of a context that the density depends on; 0 for none.
        activation: makes the nets' activation.
        levels: number of scales.

    Raises:
        ValueError: sizes below one, sides that are no multiples of 2^levels.

    Example:
        >>> glow = Glow((1, 8, 8), length=2, hidden=[8, 8])
        >>> glow.sample(3).shape, glow.latents(glow.sample(3)).shape
        (torch.Size([3, 64]), torch.Size([3, 64]))
    """

    @checked
    def __init__(
        self,
        image_shape: ImageShape,
        length: int = 4,
        hidden: Sequence[int] = (64, 64),
        num_context: int = 0,
        activation: Activation = nn.ReLU,
        levels: int = 2,
    ) -> None:
        scalar = Affine(coupling_log_scale(length * levels))

        def couple(shape: ImageShape, mask: Any) -> Bijection:
            return ImageCoupling(shape, mask, scalar, hidden, num_context, None, activation)

        def scale(place: int, shape: ImageShape) -> list[Bijection]:
            inner = squeezed(shape)
            steps = [
                step for _ in range(checked_length(length)) for step in glow_step(inner, couple)
            ]
            last = [] if place == levels - 1 else [couple(inner, half_channels(inner))]
            return [*last, *steps, Inverse(Squeeze(shape))]

        check_sides(image_shape, levels, levels)
        super().__init__(*from_scales(image_shape, levels, scale))


class FlowPlusPlus(Flow):
    """Flow++, a flow of images with logistic-mixture couplings.

    The couplings are mixtures of logistic distribution functions, their parameters from nets with
    self-attention (Ho et al. 2019).

    From data to noise: checkerboard couplings at full size, a squeeze, couplings of channels, and
    checkerboards again, each after an `ActNorm` and, of channels, an invertible 1 x 1 convolution;
    the images keep one scale. Data are scored in closed form; a draw inverts the mixtures
    numerically, within brackets that are known. For whole numbers take `Dequantised` of it with
    `VariationalNoise`.

    Args:
        image_shape: (channels, height, width); data are `[N, channels * height * width]`.
        length: number of couplings in each of the three parts.
        width: channels of the nets.
        num_components: of each mixture.
        num_blocks: of each net, a convolution and an attention each.
        num_context: size of a context that the density depends on; 0 for none.

    Raises:
        ValueError: sizes below one, odd sides, a width that is no multiple of 4, the heads.

    Example:
        >>> flow = FlowPlusPlus((1, 4, 4), length=1, width=8, num_components=2, num_blocks=1)
        >>> flow.sample(3).shape, flow.latents(flow.sample(3)).shape
        (torch.Size([3, 16]), torch.Size([3, 16]))
    """

    @checked
    def __init__(
        self,
        image_shape: ImageShape,
        length: int = 2,
        width: int = 32,
        num_components: int = 8,
        num_blocks: int = 2,
        num_context: int = 0,
    ) -> None:
        mixture = LogisticMixture(num_components, coupling_log_scale(3 * length))

        def couple(shape: ImageShape, mask: Any) -> Bijection:
            outputs = shape[0] * mixture.num_params
            net = AttentionImageNet(shape, width, outputs, num_blocks, num_context=num_context)
            return Inverse(ImageCoupling(shape, mask, mixture, num_context=num_context, net=net))

        def boards(shape: ImageShape) -> list[Bijection]:
            masks = [checkerboard(shape, step % 2) for step in range(length)]
            return [part for mask in masks for part in (couple(shape, mask), ActNorm(shape))]

        def scale(place: int, shape: ImageShape) -> list[Bijection]:
            inner = squeezed(shape)
            steps = [step for _ in range(length) for step in glow_step(inner, couple)]
            return [*boards(inner), *steps, Inverse(Squeeze(shape)), *boards(shape)]

        checked_length(length)
        check_sides(image_shape, 1, 1)
        super().__init__(*from_scales(image_shape, 1, scale))


def glow_step(shape: ImageShape, couple: CoupleImages) -> list[Bijection]:
    """Make one step of Glow, from noise to data.

    It is a coupling of channels, a 1 x 1 convolution, and `ActNorm`.
    """
    return [couple(shape, half_channels(shape)), Inverse(LULinear(shape)), ActNorm(shape)]


def realnvp_images(
    image_shape: ImageShape, length: int, levels: int, couple: CoupleImages
) -> tuple[Any, list[Bijection]]:
    """Make base and transforms of RealNVP for images.

    Dinh et al. (2017), section 3.6.

    From data to noise each scale has checkerboard couplings, squeezes, and couples channels; the
    last one has checkerboards only, one more of them.
    """

    def layers(shape: ImageShape, masks: list[Any]) -> list[Bijection]:
        return [part for mask in masks for part in (couple(shape, mask), ActNorm(shape))]

    def scale(place: int, shape: ImageShape) -> list[Bijection]:
        last, inner = place == levels - 1, squeezed(shape)
        boards = [checkerboard(shape, step % 2) for step in range(length // 2 + last)]
        if last:
            return layers(shape, boards)
        halves = [half_channels(inner, step % 2 == 1) for step in range(length - length // 2)]
        return [*layers(inner, halves), Inverse(Squeeze(shape)), *layers(shape, boards)]

    checked_length(length)
    check_sides(image_shape, levels, levels - 1)
    return from_scales(image_shape, levels, scale)


def from_scales(
    image_shape: ImageShape, levels: int, scale: Callable[[int, ImageShape], list[Bijection]]
) -> tuple[Any, list[Bijection]]:
    """Make base and transforms of a flow with scales.

    `scale` makes the transforms of each scale at its shape, from noise to data.
    """
    scales, shape = [], image_shape
    for place in range(levels):
        scales.append(Chain(scale(place, shape)))
        channels, height, width = scales[-1].event_shape
        shape = (channels // 2, height, width)
    return standard_normal(math.prod(image_shape)), [MultiScale(scales)]


def squeezed(shape: ImageShape) -> ImageShape:
    """The shape with half the sides."""
    channels, height, width = shape
    return 4 * channels, height // 2, width // 2


def check_sides(image_shape: Any, levels: int, halvings: int) -> None:
    """Refuse wrong image shapes, levels, and indivisible sides.

    Each halving needs sides that are even.

    Raises:
        ValueError: any of these.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(
            f"expected an image shape (channels, height, width) of sizes of at least 1, got "
            f"{tuple(image_shape)}"
        )
    if levels < 1:
        raise ValueError(f"levels is {levels}; expected at least 1")
    check_halvings(image_shape, halvings)


def checked_length(length: int) -> int:
    """A number of layers.

    Raises:
        ValueError: fewer than one.
    """
    if length < 1:
        raise ValueError(f"length is {length}; expected at least 1")
    return length
