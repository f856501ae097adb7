"""Neural nets in plain torch: perceptrons, residual, convolutional, masked and causal nets.

Every net maps the last one or three dimensions and broadcasts over any number of dimensions on the left, since
programs put data, chains and particles there. Parameters take torch's default dtype; `.to` moves all buffers too.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Callable[[], nn.Module]
ImageShape = tuple[int, int, int]


class MLP(nn.Sequential):
    """Multilayer perceptron: x -> W_L a(... a(W_1 x + b_1) ...) + b_L.

    Args:
        in_features: size of the input.
        hidden: sizes of the hidden layers; none of them makes an affine map.
        out_features: size of the output.
        activation: makes the activation a, e.g. `torch.nn.Tanh`.

    Shape:
        `[..., in_features]` to `[..., out_features]`.

    Raises:
        ValueError: a size below one.

    Example:
        >>> MLP(3, [8, 8], 2, nn.Tanh)(torch.zeros(5, 4, 3)).shape
        torch.Size([5, 4, 2])
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int], out_features: int, activation: Activation = nn.ReLU
    ) -> None:
        sizes = _check_sizes([in_features, *hidden_sizes(hidden), out_features])
        layers: list[nn.Module] = []
        for size, next_size in pairwise(sizes):
            layers += [nn.Linear(size, next_size), activation()]
        super().__init__(*layers[:-1])


class ResidualMLP(nn.Module):
    """Residual perceptron with pre-activation blocks: h -> h + W_2 a(W_1 a(h) + b_1) + b_2 (He et al. 2016, figure 4e).

    The second layer of each block starts at zero, so the net starts as an affine map (Zhang et al. 2019, Fixup).

    Args:
        in_features: size of the input.
        width: size of all hidden layers.
        num_blocks: number of residual blocks.
        out_features: size of the output.
        activation: makes the activation a.

    Shape:
        `[..., in_features]` to `[..., out_features]`.

    Raises:
        ValueError: a size below one.

    Example:
        >>> ResidualMLP(3, 16, 2, 5)(torch.zeros(7, 3)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self, in_features: int, width: int, num_blocks: int, out_features: int, activation: Activation = nn.ReLU
    ) -> None:
        super().__init__()
        _check_sizes([in_features, width, num_blocks, out_features])
        self.first = nn.Linear(in_features, width)
        self.blocks = nn.ModuleList(_residual_branch(width, activation) for _ in range(num_blocks))
        self.last = nn.Sequential(activation(), nn.Linear(width, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


class ConvEncoder(nn.Module):
    """Convolutional net from images to vectors: 3 x 3 convolutions of stride two, then an affine map.

    Args:
        image_shape: (channels, height, width), of any size: each layer halves the sides, rounding up.
        channels: of the layers.
        out_features: size of the output.
        activation: makes the activation.

    Shape:
        `[..., channels, height, width]`, or flattened `[..., channels * height * width]`, to `[..., out_features]`.

    Raises:
        ValueError: a size below one, no layers; images of another shape.

    Example:
        >>> encoder = ConvEncoder((1, 28, 28), [16, 32], 10)
        >>> encoder(torch.zeros(3, 5, 784)).shape, encoder(torch.zeros(1, 28, 28)).shape
        (torch.Size([3, 5, 10]), torch.Size([10]))
    """

    def __init__(
        self, image_shape: ImageShape, channels: Sequence[int], out_features: int, activation: Activation = nn.ReLU
    ) -> None:
        super().__init__()
        _check_layers(channels)
        _check_sizes([*image_shape, *channels, out_features])
        self.image_shape = tuple(image_shape)
        sides = _halved_sides(image_shape, len(channels))
        layers: list[nn.Module] = []
        for size, next_size in zip([image_shape[0], *channels[:-1]], channels, strict=True):
            layers += [nn.Conv2d(size, next_size, kernel_size=3, stride=2, padding=1), activation()]
        features = channels[-1] * sides[-1][0] * sides[-1][1]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., channels, height, width]` or `[..., channels * height * width]` to `[..., out_features]`."""
        return over_images(self.layers, unflatten_images(x, self.image_shape))


class ConvDecoder(nn.Module):
    """Convolutional net from vectors to images: an affine map, then transposed convolutions that mirror `ConvEncoder`.

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
        >>> ConvDecoder(10, [32, 16], (1, 7, 9))(torch.zeros(3, 5, 10)).shape
        torch.Size([3, 5, 1, 7, 9])
    """

    def __init__(
        self, in_features: int, channels: Sequence[int], image_shape: ImageShape, activation: Activation = nn.ReLU
    ) -> None:
        super().__init__()
        _check_layers(channels)
        _check_sizes([in_features, *channels, *image_shape])
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


class MaskedLinear(nn.Linear):
    """Affine map with a fixed mask on its weights: x -> (M * W) x + b.

    Args:
        mask: M, `[out_features, in_features]`, zero where an output must not see an input.

    Shape:
        `[..., in_features]` to `[..., out_features]`.

    Raises:
        ValueError: the mask is not a matrix.

    Example:
        >>> MaskedLinear(torch.zeros(2, 3))(torch.randn(4, 3)).unique(dim=0).shape  # sees nothing: a constant
        torch.Size([1, 2])
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        if mask.ndim != 2:
            raise ValueError(f"expected a mask [out_features, in_features], got shape {list(mask.shape)}")
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return F.linear(x, self.mask * self.weight, self.bias)


class MADENet(nn.Module):
    """Masked perceptron: outputs for dimension d depend only on the inputs before d (Germain et al. 2015, section 3).

    Hidden unit k of layer l has a degree m_l(k); with the rank of an input in the ordering as its degree the masks are

        M_l[k, j] = 1(m_l(k) >= m_{l-1}(j)),  and strictly (>) for the outputs.

    No hidden layer makes the fully visible sigmoid belief net (Frey 1998).

    Args:
        num_dims: number D of dimensions.
        hidden: sizes of the hidden layers.
        num_outputs_per_dim: parameters of each conditional, e.g. 1 for a logit, 2 for a mean and a log-scale.
        order: `[D]`, the dimensions in the order of generation; the natural one by default.
        seed: draws the hidden degrees uniformly, as in the paper; without one they are spread evenly.
        num_context: size of a context vector that every output may depend on.
        activation: makes the activation.

    Shape:
        `[..., D]` and context `[..., num_context]` to `[..., D, num_outputs_per_dim]`.

    Raises:
        ValueError: a size below one, or an order that is no permutation of 0, ..., D - 1.

    Example:
        >>> net = MADENet(3, [64])
        >>> torch.autograd.functional.jacobian(lambda x: net(x).squeeze(-1), torch.zeros(3)).ne(0).int()
        tensor([[0, 0, 0],
                [1, 0, 0],
                [1, 1, 0]], dtype=torch.int32)
    """

    def __init__(
        self,
        num_dims: int,
        hidden: Sequence[int],
        num_outputs_per_dim: int = 1,
        order: Tensor | Sequence[int] | None = None,
        seed: int | None = None,
        num_context: int = 0,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        _check_sizes([num_dims, *hidden_sizes(hidden), num_outputs_per_dim])
        masks = autoregressive_masks(num_dims, hidden, num_outputs_per_dim, order, seed)
        self.num_outputs_per_dim = num_outputs_per_dim
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        self.contexts = nn.ModuleList(
            nn.Linear(num_context, len(mask), bias=False) for mask in masks if num_context > 0
        )
        self.activation = activation()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """`[..., D]` to `[..., D, num_outputs_per_dim]`.

        Raises:
            ValueError: a context where the net has none, or none where it has one.
        """
        if (context is None) != (len(self.contexts) == 0):
            raise ValueError(
                f"the net was made with num_context {'> 0' if len(self.contexts) else '= 0'} but was called "
                f"{'without' if context is None else 'with'} a context"
            )
        h = x
        for depth, layer in enumerate(self.layers):
            h = layer(h if depth == 0 else self.activation(h))
            h = h if context is None else h + self.contexts[depth](context)
        return h.unflatten(-1, (-1, self.num_outputs_per_dim))


class CausalConv2d(nn.Conv2d):
    """Convolution that sees only earlier pixels in raster order (van den Oord et al. 2016, Pixel RNN, section 3.4).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd; the image keeps its size.
        sees_centre: whether the pixel itself counts as earlier: False (mask A) in a first layer, True (mask B) after.
        dilation: spacing of the kernel's points.

    Shape:
        `[..., in_channels, height, width]` to `[..., out_channels, height, width]`.

    Raises:
        ValueError: a size below one or an even kernel size.

    Example:
        >>> layer = CausalConv2d(1, 1, 3, sees_centre=False)
        >>> layer.mask[0, 0]
        tensor([[1., 1., 1.],
                [1., 0., 0.],
                [0., 0., 0.]])
    """

    mask: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, sees_centre: bool, dilation: int = 1
    ) -> None:
        _check_sizes([in_channels, out_channels, kernel_size, dilation])
        if kernel_size % 2 == 0:
            raise ValueError(f"expected an odd kernel size, got {kernel_size}")
        padding = dilation * (kernel_size // 2)
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation)
        before = torch.arange(kernel_size**2) < kernel_size**2 // 2 + sees_centre
        self.register_buffer("mask", before.reshape(1, 1, kernel_size, kernel_size).to(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in_channels, height, width]` to `[..., out_channels, height, width]`."""
        return over_images(lambda x: self._conv_forward(x, self.mask * self.weight, self.bias), input)


def autoregressive_masks(
    num_dims: int,
    hidden: Sequence[int],
    num_outputs_per_dim: int = 1,
    order: Tensor | Sequence[int] | None = None,
    seed: int | None = None,
) -> list[Tensor]:
    """The masks of `MADENet`, one `[out, in]` for each layer; their product is strictly triangular in the order.

    Raises:
        ValueError: an order that is no permutation of 0, ..., D - 1.

    Example:
        >>> first, second = autoregressive_masks(3, [4], order=[2, 1, 0])
        >>> (second @ first).gt(0).int()
        tensor([[0, 1, 1],
                [0, 0, 1],
                [0, 0, 0]], dtype=torch.int32)
    """
    ranks = 1 + torch.argsort(_check_order(order, num_dims))
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    degrees = [ranks]
    for size in hidden:
        degrees.append(_hidden_degrees(size, int(degrees[-1].min()), num_dims - 1, generator))
    masks = [after[:, None] >= before for before, after in pairwise(degrees)]
    last = ranks.repeat_interleave(num_outputs_per_dim)[:, None] > degrees[-1]
    return [mask.to(torch.get_default_dtype()) for mask in (*masks, last)]


def over_images(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Applies a map of image batches `[batch, ...]` to images `[..., channels, height, width]`.

    Example:
        >>> over_images(nn.Conv2d(1, 4, 3), torch.zeros(2, 5, 1, 8, 8)).shape
        torch.Size([2, 5, 4, 6, 6])
    """
    out = function(x.reshape(-1, *x.shape[-3:]))
    return out.reshape(*x.shape[:-3], *out.shape[1:])


def unflatten_images(x: Tensor, image_shape: ImageShape | tuple[int, ...]) -> Tensor:
    """Images `[..., channels, height, width]` from these or from flattened ones.

    Raises:
        ValueError: neither the last three dimensions nor the last one fit.

    Example:
        >>> unflatten_images(torch.zeros(5, 64), (1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """
    if tuple(x.shape[-3:]) == tuple(image_shape):
        return x
    if x.shape[-1] != image_shape[0] * image_shape[1] * image_shape[2]:
        raise ValueError(f"expected images [..., {list(image_shape)}], flattened or not, got shape {list(x.shape)}")
    return x.unflatten(-1, image_shape)


def hidden_sizes(hidden: Sequence[int]) -> list[int]:
    """Return the sizes of hidden layers as a list.

    Raises:
        ValueError: one number in place of several.
    """
    try:
        return list(hidden)
    except TypeError:
        raise ValueError(
            f"hidden is {hidden!r}; expected the sizes of all hidden layers, e.g. hidden=[{hidden!r}]"
        ) from None


def _check_sizes(sizes: list[int]) -> list[int]:
    if min(sizes) < 1:
        raise ValueError(f"expected sizes of at least one, got {sizes}")
    return sizes


def _check_layers(channels: Sequence[int]) -> None:
    if not channels:
        raise ValueError("expected the channels of at least one layer, got none")


def _check_order(order: Tensor | Sequence[int] | None, num_dims: int) -> Tensor:
    if order is None:
        return torch.arange(num_dims)
    order = torch.as_tensor(order).cpu()
    if order.shape != (num_dims,) or not torch.equal(order.sort().values, torch.arange(num_dims)):
        raise ValueError(f"expected the order to be a permutation of 0, ..., {num_dims - 1}, got {order.tolist()}")
    return order


def _hidden_degrees(size: int, lowest: int, highest: int, generator: torch.Generator | None) -> Tensor:
    highest = max(highest, lowest)
    if generator is None:
        return torch.linspace(lowest, highest, size).round().long()
    return torch.randint(lowest, highest + 1, (size,), generator=generator)


def _residual_branch(width: int, activation: Activation) -> nn.Sequential:
    last = nn.Linear(width, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(activation(), nn.Linear(width, width), activation(), last)


def _halved_sides(image_shape: ImageShape, num_layers: int) -> list[tuple[int, int]]:
    sides = [(image_shape[1], image_shape[2])]
    for _ in range(num_layers):
        height, width = sides[-1]
        sides.append(((height + 1) // 2, (width + 1) // 2))
    return sides


def _doubling(size: int, next_size: int, side: tuple[int, int], next_side: tuple[int, int]) -> nn.ConvTranspose2d:
    extra = (next_side[0] - 2 * side[0] + 1, next_side[1] - 2 * side[1] + 1)
    return nn.ConvTranspose2d(size, next_size, kernel_size=3, stride=2, padding=1, output_padding=extra)
