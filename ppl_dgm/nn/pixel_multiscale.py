"""Net of images from coarse to fine, in few groups."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.causal import CausalNet, Step, flat_context
from ppl_dgm.nn.context import ContextImage, ContextSize, context_size, window
from ppl_dgm.nn.mlp import ImageShape, check_widths
from ppl_dgm.nn.pixel import ChannelHead
from ppl_dgm.nn.pixel_gated import GatedConvNet
from ppl_dgm.validation import check_sizes

__all__ = ["MultiscaleNet"]

EVEN, ODD = slice(0, None, 2), slice(1, None, 2)
QUADRANTS = ((EVEN, ODD), (ODD, EVEN), (ODD, ODD))  # rows and columns of new pixels


class MultiscaleNet(CausalNet):
    r"""Causal net over images from coarse to fine.

    (Reed et al. 2017, Parallel multiscale autoregressive density estimation, section 3.)

    Of the pixels at multiples of $2^S$, a small image, each sees those before it (`GatedConvNet`).
    Every finer scale doubles the image: first the pixels to the right of those there are, then
    those below, then those between, and all of a group are independent given the earlier groups,
    but for the channels of one pixel. A draw takes 3 S passes of convolutions, and those of the
    small image.

    Args:
        shape: (channels, height, width); the sides need not be even.
        width: of the residual streams.
        num_layers: residual blocks of each scale.
        num_outputs_per_dim: number P of parameters of each conditional.
        num_scales: S; by default so many that the small image is one pixel.
        num_context: size of a context vector, or the shape of a context image.

    Raises:
        ValueError: a size below one, more scales than the sides can be halved.

    Example:
        >>> net = MultiscaleNet((1, 8, 8), 8, 1)
        >>> net(torch.zeros(3, 64)).shape, len(net.sequences[0])
        (torch.Size([3, 64, 1]), 10)
    """

    takes_groups = True
    scales: Any

    @checked
    def __init__(
        self,
        shape: ImageShape,
        width: int = 32,
        num_layers: int = 3,
        num_outputs_per_dim: int = 1,
        num_scales: int | None = None,
        num_context: ContextSize = 0,
    ) -> None:
        check_widths([*shape, width, num_layers])
        self.strides = strides_of(shape, num_scales)
        dims = torch.arange(shape[0] * shape[1] * shape[2]).reshape(*shape)
        corner = at_stride(dims, self.strides[0])
        size = context_size(num_context)
        spread = ContextImage(num_context, (shape[1], shape[2]), width) if size else None
        seen = 0 if spread is None else spread.width
        settings: Any = (num_outputs_per_dim, None, 3, seen)
        base_shape: Any = tuple(corner.shape)
        base = GatedConvNet(base_shape, width, max(2, *corner.shape[1:]), *settings)
        order: list[Any] = corner.flatten()[base.orders[0]].tolist()
        for stride in self.strides[1:]:
            order.extend(new_groups(at_stride(dims, stride)))
        super().__init__(dims.numel(), num_outputs_per_dim, order, num_context=size)
        self.shape, self.base, self.spread = tuple(shape), base, spread
        self.scales = nn.ModuleList(
            ScaleNet(tuple(at_stride(dims, stride).shape), width, num_layers, settings[0], seen)
            for stride in self.strides[1:]
        )

    def forward(self, x: Tensor, context: Tensor | None = None, member: int | Tensor = 0) -> Tensor:
        """`[..., D]` to `[..., D, P]`."""
        self.check_context(context)
        image, seen = x.reshape(-1, *self.shape), self.seen(context, x)
        params = [self.base.given(self.corner(image), seen[0])[:, self.base.orders[0]]]
        for stride, net, each in zip(self.strides[1:], self.scales, seen[1:], strict=True):
            params.append(net(at_stride(image, stride), each))
        return torch.cat(params, 1)[:, self.ranks[0]].reshape(*x.shape, -1)

    def stepper(self, x: Tensor, context: Tensor | None = None, member: int = 0) -> Step:
        """Run the small image's net, then a pass a group."""
        self.check_context(context)
        channels, num_first, seen = self.shape[0], self.base.num_dims, self.seen(context, x)
        first = self.base.stepper_given(self.corner(x.reshape(-1, *self.shape)), seen[0])
        later = [
            (stride, net, number, each)
            for stride, net, each in zip(self.strides[1:], self.scales, seen[1:], strict=True)
            for number in range(len(net.places))
        ]
        features = x

        def step(t: int, x: Tensor) -> Tensor:
            nonlocal features
            image = x.reshape(-1, *self.shape)
            if t < num_first:
                return first(t, self.corner(image)).reshape(*x.shape[:-1], -1)
            group, channel = divmod(t - num_first, channels)
            stride, net, number, each = later[group]
            lattice = at_stride(image, stride)
            if channel == 0:
                features = net.features(lattice, number, each)
            params = net.params(features, lattice, number)[:, channel]
            params = params.reshape(*x.shape[:-1], *params.shape[1:])
            return params.squeeze(-2)

        return step

    def corner(self, image: Tensor) -> Tensor:
        """The small image, flattened."""
        return at_stride(image, self.strides[0]).flatten(1)

    def seen(self, context: Tensor | None, x: Tensor) -> list[Tensor | None]:
        """Make features of a context for each scale."""
        flat = flat_context(context, x)
        features = flat if flat is None or self.spread is None else self.spread(flat)
        places = [slice(None, None, stride) for stride in self.strides]
        return [window(features, place, place) for place in places]


class ScaleNet(nn.Module):
    """Net of one scale, from known pixels to new ones.

    Args:
        shape: (channels, height, width) of the image at this scale.
        width: of the residual stream.
        num_layers: number of residual blocks.
        num_outputs: number P of parameters.
        num_context: number of features of a context, or 0.
    """

    masks: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        num_layers: int,
        num_outputs: int,
        num_context: int,
    ) -> None:
        super().__init__()
        self.places = [places for places in QUADRANTS if is_there(places, shape)]
        known = torch.zeros(len(self.places), 1, *shape[1:])
        known[:, :, EVEN, EVEN] = 1
        for number, (rows, columns) in enumerate(self.places):
            known[number + 1 :, :, rows, columns] = 1
        self.register_buffer("masks", known, persistent=False)
        self.first = nn.Conv2d(shape[0] + 1, width, 3, padding=1)
        self.context = nn.Conv2d(num_context, width, 1, bias=False) if num_context else None
        self.blocks = nn.Sequential(*(ResidualConv(width) for _ in range(num_layers)))
        self.head = ChannelHead(shape[0], width, num_outputs)

    def forward(self, image: Tensor, context: Tensor | None) -> Tensor:
        """Parameters `[B, new dimensions, P]`, group by group."""
        params = [
            self.params(self.features(image, number, context), image, number).flatten(1, 2)
            for number in range(len(self.places))
        ]
        return torch.cat(params, 1)

    def features(self, image: Tensor, number: int, context: Tensor | None) -> Tensor:
        """Features `[B, pixels, F]` of one group."""
        mask = self.masks[number]
        h = self.first(torch.cat([image * mask, mask.expand(len(image), -1, -1, -1)], 1))
        h = h if self.context is None or context is None else h + self.context(context)
        return pixels_of(self.blocks(h), self.places[number])

    def params(self, features: Tensor, image: Tensor, number: int) -> Tensor:
        """Parameters `[B, C, pixels, P]` of one group of pixels."""
        return self.head(features, pixels_of(image, self.places[number])).transpose(1, 2)


class ResidualConv(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """`[B, width, H, W]` to the same."""
        return h + self.outer(F.elu(self.inner(F.elu(h))))


def strides_of(shape: ImageShape, num_scales: int | None) -> list[int]:
    """List the distances of pixels, scale by scale."""
    most = (max(shape[1:]) - 1).bit_length()
    num_scales = most if num_scales is None else num_scales
    check_sizes(0, num_scales=num_scales)
    if num_scales > most:
        raise ValueError(
            f"the sides {shape[1]} and {shape[2]} cannot be halved {num_scales} times; expected "
            f"num_scales of at most {most}"
        )
    return [2**scale for scale in range(num_scales, -1, -1)]


def at_stride(image: Tensor, stride: int) -> Tensor:
    """The pixels at multiples of a number."""
    return image[..., ::stride, ::stride]


def is_there(places: tuple[slice, slice], shape: tuple[int, ...]) -> bool:
    """Whether an image has pixels at these rows and columns."""
    return all(place is EVEN or side > 1 for place, side in zip(places, shape[1:], strict=True))


def new_groups(dims: Tensor) -> list[list[int]]:
    """Group the new dimensions of a scale, `[C, h, w]`.

    Each quadrant gives a group for every channel.
    """
    return [
        channel[places].flatten().tolist()
        for places in QUADRANTS
        if is_there(places, tuple(dims.shape))
        for channel in dims
    ]


def pixels_of(image: Tensor, places: tuple[slice, slice]) -> Tensor:
    """Pick pixels of `[B, F, H, W]`: `[B, pixels, F]`."""
    return image[:, :, places[0], places[1]].flatten(2).mT
