"""Masked and causal nets: autoregressive by construction."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.nn.conv import over_images
from ppl_dgm.nn.mlp import Activation, _check_sizes, hidden_sizes


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
            raise ValueError(
                f"expected a mask [out_features, in_features], got shape {list(mask.shape)}"
            )
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
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        sees_centre: bool,
        dilation: int = 1,
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
        return over_images(
            lambda x: self._conv_forward(x, self.mask * self.weight, self.bias), input
        )


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


def _check_order(order: Tensor | Sequence[int] | None, num_dims: int) -> Tensor:
    if order is None:
        return torch.arange(num_dims)
    order = torch.as_tensor(order).cpu()
    if order.shape != (num_dims,) or not torch.equal(order.sort().values, torch.arange(num_dims)):
        raise ValueError(
            f"expected the order to be a permutation of 0, ..., {num_dims - 1}, got {order.tolist()}"
        )
    return order


def _hidden_degrees(
    size: int, lowest: int, highest: int, generator: torch.Generator | None
) -> Tensor:
    highest = max(highest, lowest)
    if generator is None:
        return torch.linspace(lowest, highest, size).round().long()
    return torch.randint(lowest, highest + 1, (size,), generator=generator)
