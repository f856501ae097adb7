"""Nets with a context, for coupling and continuous flows."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.nn.conv import over_images
from ppl_dgm.nn.mlp import Activation, ImageShape, check_widths, hidden_sizes

__all__ = [
    "BesideImage",
    "ContextConvNet",
    "ContextMLP",
    "start_small",
    "tangent_layers",
    "tanh_layers",
]


class ContextMLP(nn.Module):
    """Perceptron whose layers all see a context.

    Each layer is h -> a(W h + V c + b).

    The last layer starts small, so that the net starts near zero.

    Args:
        in_features: size of the input.
        hidden: sizes of the hidden layers.
        out_features: size of the output.
        num_context: size of the context c; 0 for none.
        activation: makes the activation.
        start: share of their usual size that the last layer's parameters start with.

    Shape:
        `[..., in_features]` and `[..., num_context]`, which broadcast, to `[..., out_features]`.

    Raises:
        ValueError: a size below one.

    Example:
        >>> import torch
        >>> ContextMLP(3, [8], 2, num_context=4)(torch.zeros(7, 5, 3), torch.zeros(5, 4)).shape
        torch.Size([7, 5, 2])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        num_context: int = 0,
        activation: Activation = nn.ReLU,
        start: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = check_widths([in_features, *hidden_sizes(hidden), out_features])
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.contexts = nn.ModuleList(context_maps(num_context, sizes[1:]))
        self.activation = activation()
        start_small(self.layers[-1], *self.contexts[-1:], factor=start)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        for depth, layer in enumerate(self.layers):
            x = layer(x if depth == 0 else self.activation(x))
            x = x if context is None else x + self.contexts[depth](context)
        return x


class ContextConvNet(nn.Module):
    """Convolutional net that keeps an image's height and width.

    The kernels have sides of 3, 1, ..., 1 and 3 pixels: Kingma and Dhariwal (2018), Glow, section
    5.1.

    Args:
        in_channels: of the input.
        hidden: channels of the hidden layers.
        out_channels: of the output.
        num_context: size of a context vector that all pixels of the hidden layers see; 0 for none.
        activation: makes the activation.
        start: share of their usual size that the last layer's parameters start with.

    Shape:
        `[..., in_channels, height, width]` and `[..., num_context]` to `[..., out_channels, height,
        width]`.

    Raises:
        ValueError: a size below one.

    Example:
        >>> import torch
        >>> ContextConvNet(1, [8, 8], 4)(torch.zeros(7, 1, 5, 6)).shape
        torch.Size([7, 4, 5, 6])
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        hidden: Sequence[int],
        out_channels: int,
        num_context: int = 0,
        activation: Activation = nn.ReLU,
        start: float = 0.1,
    ) -> None:
        super().__init__()
        channels = check_widths([in_channels, *hidden_sizes(hidden), out_channels])
        sizes = [3, *[1] * (len(channels) - 3), 3] if len(channels) > 2 else [3]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, size, padding=size // 2)
            for before, after, size in zip(channels[:-1], channels[1:], sizes, strict=True)
        )
        self.contexts = nn.ModuleList(context_maps(num_context, channels[1:]))
        self.activation = activation()
        start_small(self.layers[-1], *self.contexts[-1:], factor=start)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """`[..., in_channels, height, width]` to `[..., out_channels, height, width]`."""
        for depth, layer in enumerate(self.layers):
            x = over_images(layer, x if depth == 0 else self.activation(x))
            x = x if context is None else x + self.contexts[depth](context)[..., None, None]
        return x


class BesideImage(nn.Module):
    """Convolutional net of an image beside a second one.

    The second image is given flattened, as a context.

    Args:
        image_shape: (channels, height, width) of both.
        hidden: channels of the hidden layers.
        out_channels: of the output.
        activation: makes the activation.

    Shape:
        `[..., channels, height, width]` and `[..., channels * height * width]` to `[...,
        out_channels, height, width]`.

    Raises:
        ValueError: a size below one.

    Example:
        >>> import torch
        >>> BesideImage((1, 4, 4), [8], 2)(torch.zeros(5, 1, 4, 4), torch.zeros(16)).shape
        torch.Size([5, 2, 4, 4])
    """

    @checked
    def __init__(
        self,
        image_shape: ImageShape,
        hidden: Sequence[int],
        out_channels: int,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.net = ContextConvNet(2 * image_shape[0], hidden, out_channels, 0, activation)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`[..., channels, height, width]` to `[..., out_channels, height, width]`."""
        other = context.unflatten(-1, self.image_shape)
        return self.net(torch.cat(torch.broadcast_tensors(x, other), -3))


def tanh_layers(weights: Sequence[Tensor], shifts: Sequence[Tensor], x: Tensor) -> Tensor:
    """Run a perceptron of tanh units.

    Args:
        weights: of the layers, `[after, before]`.
        shifts: what each layer adds, `[..., after]`.
        x: the input, `[..., before]`.
    """
    for depth, (weight, shift) in enumerate(zip(weights, shifts, strict=True)):
        x = (x if depth == 0 else x.tanh()) @ weight.mT + shift
    return x


def tangent_layers(
    weights: Sequence[Tensor], shifts: Sequence[Tensor], x: Tensor, tangents: Tensor
) -> tuple[Tensor, Tensor]:
    """Run a perceptron of tanh units, and along tangents.

    Args:
        weights: of the layers, `[after, before]`.
        shifts: what each layer adds, `[..., after]`.
        x: the input, `[..., before]`.
        tangents: `[..., K, before]`.
    """
    for depth, (weight, shift) in enumerate(zip(weights, shifts, strict=True)):
        if depth > 0:
            x = x.tanh()
            tangents = tangents * (1 - x.square()).unsqueeze(-2)
        x, tangents = x @ weight.mT + shift, tangents @ weight.mT
    return x, tangents


def context_maps(num_context: int, sizes: Sequence[int]) -> list[nn.Linear]:
    """Make linear maps of a context, one per size.

    There are none without a context.
    """
    return [nn.Linear(num_context, size, bias=False) for size in sizes if num_context > 0]


def start_small(*layers: nn.Module, factor: float = 0.1) -> None:
    """Shrink the initial weights and biases of layers.

    Gradients still reach the layers before these.
    """
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data.mul_(factor)
