"""Bijections that change the shape of images.

They are squeezing, chains, and several scales.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.nn.mlp import ImageShape
from ppl_dgm.transforms.bijection import Bijection, Images, condition_all, pull, push

__all__ = ["Chain", "MultiScale", "Squeeze", "check_halvings"]


class Squeeze(Bijection):
    """Bijection that halves image sides and multiplies channels.

    Each square of 2 x 2 pixels becomes one pixel of four times the channels (Dinh et al. 2017,
    section 3.6).

    Args:
        image_shape: (channels, height, width), the sides even.

    Raises:
        ValueError: odd sides.

    Example:
        >>> Squeeze((1, 2, 2))(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).flatten()
        tensor([1., 2., 3., 4.])
        >>> Squeeze((3, 4, 6)).forward_shape((3, 4, 6))
        torch.Size([12, 2, 3])
    """

    @checked
    def __init__(self, image_shape: ImageShape) -> None:
        super().__init__(image_shape)
        check_halvings(image_shape, 1)

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """Half the sides, and zero."""
        return nn.functional.pixel_unshuffle(x, 2), x.new_zeros(x.shape[:-3])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """Twice the sides, and zero."""
        return nn.functional.pixel_shuffle(y, 2), y.new_zeros(y.shape[:-3])

    def forward_shape(self, shape: Any) -> torch.Size:
        """Four times the channels, half the sides."""
        *batch, channels, height, width = shape
        return torch.Size((*batch, 4 * channels, height // 2, width // 2))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """A quarter of the channels, twice the sides."""
        *batch, channels, height, width = shape
        return torch.Size((*batch, channels // 4, 2 * height, 2 * width))


class Chain(Bijection):
    """Bijections one after the other, as one.

    Args:
        parts: the bijections, the first to be applied first.

    Raises:
        ValueError: none, shapes that do not chain, contexts of several sizes.

    Example:
        >>> from ppl_dgm.transforms import ActNorm
        >>> Chain([ActNorm((1, 4, 4)), Squeeze((1, 4, 4)), ActNorm((4, 2, 2))])(
        ...     torch.zeros(3, 1, 4, 4)
        ... ).shape
        torch.Size([3, 4, 2, 2])
    """

    @checked
    def __init__(self, parts: Sequence[Bijection]) -> None:
        if not parts:
            raise ValueError("expected at least one bijection to chain, got none")
        shape = parts[0].event_shape
        super().__init__(shape, context_size(parts))
        for place, part in enumerate(parts):
            if part.event_shape != shape:
                raise ValueError(
                    f"part {place}, {type(part).__name__}, maps events {list(part.event_shape)} "
                    f"but is given events {list(shape)}; make the shapes chain"
                )
            shape = torch.Size(part.forward_shape(shape))
        self.chained = nn.ModuleList(parts)

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """What the first part maps."""
        return self._at(0).domain

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """The images of the last part."""
        return self._at(-1).codomain

    def _at(self, place: int) -> Any:
        return self.chained[place]

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """Through all parts."""
        return push(condition_all(self.chained, context), x, self.domain.event_dim)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """Back through all parts."""
        return pull(condition_all(self.chained, context), y, self.codomain.event_dim)

    def forward_shape(self, shape: Any) -> Any:
        """Shape of the image."""
        for part in self.chained:
            shape = part.forward_shape(shape)  # type: ignore[operator]
        return shape

    def inverse_shape(self, shape: Any) -> Any:
        """Shape of what has an image of this shape."""
        for part in reversed(self.chained):
            shape = part.inverse_shape(shape)  # type: ignore[operator]
        return shape


class MultiScale(Bijection):
    """Multi-scale flow from flat noise to flat images.

    Each scale adds half of its channels as fresh noise (Dinh et al. 2017, section 3.6).

    From data to noise: each scale maps an image, the last half of its channels is noise from then
    on, and the first half goes to the next scale; the last one's image is noise as a whole. The
    vector has the noise of the first scale first.

    Args:
        scales: for each, finest first, a bijection from what is noise or comes from coarser scales
            to the image of the scale.

    Raises:
        ValueError: no scales, shapes that do not chain, contexts of several sizes.

    Example:
        >>> from ppl_dgm.transforms import Inverse
        >>> scales = [Inverse(Squeeze((1, 4, 4))), Inverse(Squeeze((2, 2, 2)))]
        >>> MultiScale(scales)(torch.arange(16.0)).shape
        torch.Size([16])
    """

    @checked
    def __init__(self, scales: Sequence[Bijection]) -> None:
        if not scales:
            raise ValueError("expected at least one scale, got none")
        self.image_shapes = [tuple(scale.event_shape) for scale in scales]
        whole = tuple(scales[0].forward_shape(scales[0].event_shape))
        super().__init__((math.prod(whole),), context_size(scales))
        check_scales(scales)
        self.whole, self.scales = whole, nn.ModuleList(scales)
        sizes = [math.prod(shape) for shape in self.image_shapes]
        self.sizes = [*(size // 2 for size in sizes[:-1]), sizes[-1]]

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """From the coarsest scale to the finest."""
        pieces = x.split(self.sizes, -1)
        image, total = pieces[-1].unflatten(-1, self.image_shapes[-1]), x.new_zeros(())
        for place in reversed(range(len(self.sizes))):
            if place < len(self.sizes) - 1:
                image = self._joined(image, pieces[place])
            scale: Any = self.scales[place]
            image, log_det = scale.call_and_log_det(image, context)
            total = total + log_det
        return image.flatten(-3), total

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """From the finest scale to the coarsest."""
        image, total = y.unflatten(-1, self.whole), y.new_zeros(())
        pieces: list[Tensor] = []
        for place in range(len(self.sizes)):
            scale: Any = self.scales[place]
            image, log_det = scale.inverse_and_log_det(image, context)
            total = total + log_det
            if place < len(self.sizes) - 1:
                image, fresh = image.chunk(2, -3)
                pieces.append(fresh.flatten(-3))
        return torch.cat([*pieces, image.flatten(-3)], -1), total

    @staticmethod
    def _joined(image: Tensor, fresh: Tensor) -> Tensor:
        """Join a coarser image and fresh noise as channels."""
        noise = fresh.unflatten(-1, image.shape[-3:])
        return torch.cat([image, noise.expand(image.shape)], -3)


def context_size(parts: Sequence[Bijection]) -> int:
    """Find the context size of the parts.

    It is 0 if none takes a context.

    Raises:
        ValueError: contexts of several sizes.
    """
    sizes = {part.num_context for part in parts} - {0}
    if len(sizes) > 1:
        raise ValueError(f"expected contexts of one size, got sizes {sorted(sizes)}")
    return max(sizes, default=0)


def check_scales(scales: Sequence[Bijection]) -> None:
    """Refuse scales that do not chain.

    Raises:
        ValueError: a scale that does not make half of the channels of the one before.
    """
    for place, (fine, coarse) in enumerate(pairwise(scales)):
        channels, height, width = fine.event_shape
        given = list(coarse.forward_shape(coarse.event_shape))
        if channels % 2 or given != [channels // 2, height, width]:
            raise ValueError(
                f"scale {place} takes images {list(fine.event_shape)}, half of whose channels are "
                f"to come from scale {place + 1}, which gives images {given}"
            )


def check_halvings(image_shape: ImageShape, times: int) -> None:
    """Refuse images whose sides cannot be halved so often.

    Raises:
        ValueError: a side that is no multiple of 2^times.
    """
    if any(side % 2**times for side in image_shape[1:]):
        raise ValueError(
            f"the sides {list(image_shape[1:])} cannot be halved {times} times; expected multiples "
            f"of {2**times}: pad the images or use fewer levels"
        )
