"""Convolutional nets over flattened images."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.nn.mlp import Activation, ImageShape, check_widths

__all__ = ["ConvDecoder", "ConvEncoder", "over_images", "unflatten_images"]


class ConvEncoder(nn.Module):
    """Convolutional net from images to vectors.

    Convolutions of 3 x 3 pixels and stride two are followed by an affine map.

    Args:
        image_shape: (channels, height, width), of any size: each layer halves the sides, rounding
            up.
        channels: of the layers.
        out_features: size of the output.
        activation: makes the activation.

    Shape:
        `[..., channels, height, width]`, or flattened `[..., channels * height * width]`, to `[...,
        out_features]`.

    Raises:
        ValueError: a size below one, no layers; images of another shape.

    Example:
        >>> import torch
        >>> encoder = ConvEncoder((1, 28, 28), [16, 32], 10)
        >>> encoder(torch.zeros(3, 5, 784)).shape, encoder(torch.zeros(1, 28, 28)).shape
        (torch.Size([3, 5, 10]), torch.Size([10]))
    """

    @checked
    def __init__(
        self,
        image_shape: ImageShape,
        channels: Sequence[int],
        out_features: int,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        _check_layers(channels)
        check_widths([*image_shape, *channels, out_features])
        self.image_shape = tuple(image_shape)
        sides = _halved_sides(image_shape, len(channels))
        layers: list[nn.Module] = []
        for size, next_size in zip([image_shape[0], *channels[:-1]], channels, strict=True):
            layers += [nn.Conv2d(size, next_size, kernel_size=3, stride=2, padding=1), activation()]
        features = channels[-1] * sides[-1][0] * sides[-1][1]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Encode images as vectors `[..., out_features]`.

        Images are `[..., channels, height, width]` or `[..., channels * height * width]`.
        """
        return over_images(self.layers, unflatten_images(x, self.image_shape))


class ConvDecoder(nn.Module):
    """Convolutional net from vectors to images.

    An affine map is followed by transposed convolutions that mirror `ConvEncoder`.

    `torch.nn.Sequential(decoder, torch.nn.Flatten(-3))` gives flattened images.

    Args:
        in_features: size of the input.
        channels: of the layers, the smallest image first.
        image_shape: (channels, height, width) of the output, of any size.
        activation: makes the activation.

    Shape:
        `[..., in_features]` to `[..., channels, height, width]`.

    Raises:
        ValueError: a size below one, or no layers.

    Example:
        >>> import torch
        >>> ConvDecoder(10, [32, 16], (1, 7, 9))(torch.zeros(3, 5, 10)).shape
        torch.Size([3, 5, 1, 7, 9])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        channels: Sequence[int],
        image_shape: ImageShape,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        _check_layers(channels)
        check_widths([in_features, *channels, *image_shape])
        sides = _halved_sides(image_shape, len(channels))[::-1]
        self.first_shape = (channels[0], *sides[0])
        self.first = nn.Linear(in_features, channels[0] * sides[0][0] * sides[0][1])
        layers: list[nn.Module] = []
        steps = zip(channels, [*channels[1:], image_shape[0]], sides[:-1], sides[1:], strict=True)
        for size, next_size, side, next_side in steps:
            layers += [activation(), _doubling(size, next_size, side, next_side)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., channels, height, width]`."""
        return over_images(self.layers, self.first(z).unflatten(-1, self.first_shape))


def over_images(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a map of batches to images of any batch.

    The images are `[..., channels, height, width]`; the map takes images `[batch, ...]`.

    Example:
        >>> import torch
        >>> over_images(torch.nn.Conv2d(1, 4, 3), torch.zeros(2, 5, 1, 8, 8)).shape
        torch.Size([2, 5, 4, 6, 6])
    """
    out = function(x.reshape(-1, *x.shape[-3:]))
    return out.reshape(*x.shape[:-3], *out.shape[1:])


def unflatten_images(x: Tensor, image_shape: ImageShape | tuple[int, ...]) -> Tensor:
    """Reshape flattened images to `[..., channels, height, width]`.

    Images that have this shape already are returned as they are.

    Raises:
        ValueError: neither the last three dimensions nor the last one fit.

    Example:
        >>> import torch
        >>> unflatten_images(torch.zeros(5, 64), (1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """
    if tuple(x.shape[-3:]) == tuple(image_shape):
        return x
    if x.shape[-1] != image_shape[0] * image_shape[1] * image_shape[2]:
        raise ValueError(
            f"expected images [..., {list(image_shape)}], flattened or not, got shape "
            f"{list(x.shape)}"
        )
    return x.unflatten(-1, image_shape)


def _check_layers(channels: Sequence[int]) -> None:
    if not channels:
        raise ValueError("expected the channels of at least one layer, got none")


def _halved_sides(image_shape: ImageShape, num_layers: int) -> list[tuple[int, int]]:
    sides = [(image_shape[1], image_shape[2])]
    for _ in range(num_layers):
        height, width = sides[-1]
        sides.append(((height + 1) // 2, (width + 1) // 2))
    return sides


def _doubling(
    size: int, next_size: int, side: tuple[int, int], next_side: tuple[int, int]
) -> nn.ConvTranspose2d:
    extra = (next_side[0] - 2 * side[0] + 1, next_side[1] - 2 * side[1] + 1)
    return nn.ConvTranspose2d(
        size, next_size, kernel_size=3, stride=2, padding=1, output_padding=extra
    )
