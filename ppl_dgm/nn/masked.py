"""Masked and causal nets: autoregressive by construction."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.causal import CausalNet, Order, Step, pick, step_ranks
from ppl_dgm.nn.conv import over_images
from ppl_dgm.nn.mlp import Activation, check_widths, hidden_sizes

__all__ = ["CausalConv2d", "MADENet", "MaskedLinear", "autoregressive_masks"]


class MaskedLinear(nn.Linear):
    """Affine map with a fixed mask on its weights.

    It maps x -> (M * W) x + b.

    Args:
        mask: M, `[out_features, in_features]`, zero where an output must not see an input; or
            several of them, `[K, out_features, in_features]`, of which each call names one.
        bias: whether there is a b.

    Shape:
        `[..., in_features]` to `[..., out_features]`.

    Raises:
        ValueError: the mask is not a matrix.

    Example:
        >>> MaskedLinear(torch.zeros(2, 3))(torch.randn(4, 3)).unique(dim=0).shape  # a constant
        torch.Size([1, 2])
    """

    mask: Tensor

    @checked
    def __init__(self, mask: Tensor, bias: bool = True) -> None:
        if mask.ndim not in (2, 3):
            raise ValueError(
                f"expected a mask [out_features, in_features], got shape {list(mask.shape)}"
            )
        super().__init__(mask.shape[-1], mask.shape[-2], bias)
        self.register_buffer("mask", mask.to(self.weight))

    def masked_weight(self, member: int | Tensor = 0) -> Tensor:
        """M * W, `[out_features, in_features]`."""
        return self.weight * (self.mask if self.mask.ndim == 2 else pick(self.mask, member))

    def forward(self, x: Tensor, member: int | Tensor = 0) -> Tensor:
        """Apply the affine map under mask number `member`.

        It takes `[..., in_features]` to `[..., out_features]`.
        """
        return F.linear(x, self.masked_weight(member), self.bias)


class MADENet(CausalNet):
    """Masked perceptron, autoregressive in a given order.

    Germain et al. (2015), section 3.

    Hidden unit k of layer l has a degree m_l(k); with the rank of an input in the ordering as its
    degree the masks are

        M_l[k, j] = 1(m_l(k) >= m_{l-1}(j)),  and strictly (>) for the outputs.

    No hidden layer makes the fully visible sigmoid belief net (Frey 1998). In an order with groups
    the degree of an input is the number of its group, so that those of a group do not see one
    another.

    Args:
        num_dims: number D of dimensions.
        hidden: sizes of the hidden layers.
        num_outputs_per_dim: parameters of each conditional, e.g. 1 for a logit, 2 for a mean and a
            log-scale.
        order: `[D]`, the dimensions in the order of generation; the natural one by default. An item
            may be a group of dimensions.
        seed: draws the hidden degrees uniformly, as in the paper; without one they are spread
            evenly.
        num_context: size of a context vector that every output may depend on.
        activation: makes the activation.
        num_orders: number of orders, each with masks of its own; those after the first are drawn.
        direct: whether the outputs also see the earlier inputs past the hidden layers, as they do
            without any.

    Shape:
        `[..., D]` and context `[..., num_context]` to `[..., D, num_outputs_per_dim]`.

    Raises:
        ValueError: a size below one, or an order that is no permutation of 0, ..., D - 1.

    Example:
        >>> net = MADENet(3, [64])
        >>> jacobian = torch.autograd.functional.jacobian(net, torch.zeros(3)).squeeze(1)
        >>> jacobian.ne(0).int()
        tensor([[0, 0, 0],
                [1, 0, 0],
                [1, 1, 0]], dtype=torch.int32)
    """

    takes_groups = True
    layers: Any
    contexts: Any

    @checked
    def __init__(
        self,
        num_dims: int,
        hidden: Sequence[int],
        num_outputs_per_dim: int = 1,
        order: Order = None,
        seed: int | None = None,
        num_context: int = 0,
        activation: Activation = nn.ReLU,
        num_orders: int = 1,
        direct: bool = False,
    ) -> None:
        check_widths([num_dims, *hidden_sizes(hidden), num_outputs_per_dim])
        super().__init__(num_dims, num_outputs_per_dim, order, num_orders, seed, num_context)
        seeds = [seed if seed is None else seed + k for k in range(num_orders)]
        self.degrees = [
            layer_degrees(hidden, self.steps[ranks] + 1, member_seed)
            for ranks, member_seed in zip(self.ranks, seeds, strict=True)
        ]
        masks = [masks_of(degrees, num_outputs_per_dim) for degrees in self.degrees]
        self.layers = nn.ModuleList(
            MaskedLinear(one_or_all(list(each))) for each in zip(*masks, strict=True)
        )
        past = [masks_of(degrees[:1], num_outputs_per_dim)[0] for degrees in self.degrees]
        direct = direct and len(self.layers) > 1
        self.direct = MaskedLinear(one_or_all(past), bias=False) if direct else None
        self.contexts = nn.ModuleList(
            nn.Linear(num_context, layer.out_features, bias=False)
            for layer in self.layers
            if num_context > 0
        )
        self.activation = activation()

    def forward(self, x: Tensor, context: Tensor | None = None, member: int | Tensor = 0) -> Tensor:
        """`[..., D]` to `[..., D, num_outputs_per_dim]`.

        Raises:
            ValueError: a context where the net has none, or none where it has one.
        """
        self.check_context(context)
        h = x
        for depth, layer in enumerate(self.layers):
            h = layer(h if depth == 0 else self.activation(h), member)
            h = h if context is None else h + self.contexts[depth](context)
        h = h if self.direct is None else h + self.direct(x, member)
        return h.unflatten(-1, (-1, self.num_outputs_per_dim))

    def stepper(self, x: Tensor, context: Tensor | None = None, member: int = 0) -> Step:
        """Make a stepper that computes each hidden unit once.

        A unit is computed as soon as its inputs are known.
        """
        self.check_context(context)
        order, degrees = self.sequences[member], self.degrees[member][1:]
        weights = [layer.masked_weight(member) for layer in self.layers]
        shifts = [
            layer.bias if context is None else layer.bias + self.contexts[depth](context)
            for depth, layer in enumerate(self.layers)
        ]
        hidden = [x.new_zeros(*x.shape[:-1], len(each)) for each in degrees]
        last = weights[-1].unflatten(0, (-1, self.num_outputs_per_dim))
        past = (
            None
            if self.direct is None
            else self.direct.masked_weight(member).unflatten(0, last.shape[:2])
        )
        last_shift = shifts[-1].unflatten(-1, (-1, self.num_outputs_per_dim))

        def step(t: int, x: Tensor) -> Tensor:
            below = x
            for depth, each in enumerate(degrees):
                units = (each == t).nonzero().squeeze(-1).to(x.device)
                fresh = F.linear(below, weights[depth][units]) + shifts[depth][..., units]
                hidden[depth][..., units] = self.activation(fresh)
                below = hidden[depth]
            params = by_rows(below, last[order[t]]) + last_shift[..., order[t], :]
            return params if past is None else params + by_rows(x, past[order[t]])

        return step


class CausalConv2d(nn.Conv2d):
    """Convolution that sees only earlier pixels in raster order.

    (van den Oord et al. 2016, Pixel RNN, section 3.4.)

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd; the image keeps its size.
        sees_centre: whether the pixel itself counts as earlier: False (mask A) in a first layer,
            True (mask B) after.
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

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        sees_centre: bool,
        dilation: int = 1,
    ) -> None:
        check_widths([in_channels, out_channels, kernel_size, dilation])
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


@checked
def autoregressive_masks(
    num_dims: int,
    hidden: Sequence[int],
    num_outputs_per_dim: int = 1,
    order: Order = None,
    seed: int | None = None,
) -> list[Tensor]:
    """Make the masks `[out, in]` of the layers of `MADENet`.

    Their product is strictly triangular in the order.

    Raises:
        ValueError: an order that is no permutation of 0, ..., D - 1.

    Example:
        >>> first, second = autoregressive_masks(3, [4], order=[2, 1, 0])
        >>> (second @ first).gt(0).int()
        tensor([[0, 1, 1],
                [0, 0, 1],
                [0, 0, 0]], dtype=torch.int32)
    """
    ranks = 1 + step_ranks(order, num_dims)
    return masks_of(layer_degrees(hidden, ranks, seed), num_outputs_per_dim)


def one_or_all(masks: list[Tensor]) -> Tensor:
    """Make one tensor of the masks of all orders."""
    return torch.stack(masks) if len(masks) > 1 else masks[0]


def by_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Multiply `[..., H]` with rows `[*, H]`: `[..., *]`."""
    return F.linear(x, rows.flatten(0, -2)).unflatten(-1, rows.shape[:-1])


def layer_degrees(hidden: Sequence[int], ranks: Tensor, seed: int | None) -> list[Tensor]:
    """Compute the degrees of the inputs and hidden units.

    The inputs have their ranks, from 1 on. Each hidden layer follows.
    """
    highest = int(ranks.max()) - 1
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    degrees = [ranks]
    for size in hidden:
        degrees.append(_hidden_degrees(size, int(degrees[-1].min()), highest, generator))
    return degrees


def masks_of(degrees: list[Tensor], num_outputs_per_dim: int) -> list[Tensor]:
    """Make the masks of layers with these degrees.

    The mask of the outputs is the last.
    """
    masks = [after[:, None] >= before for before, after in pairwise(degrees)]
    last = degrees[0].repeat_interleave(num_outputs_per_dim)[:, None] > degrees[-1]
    return [mask.to(torch.get_default_dtype()) for mask in (*masks, last)]


def _hidden_degrees(
    size: int, lowest: int, highest: int, generator: torch.Generator | None
) -> Tensor:
    highest = max(highest, lowest)
    if generator is None:
        return torch.linspace(lowest, highest, size).round().long()
    drawn = torch.randint(lowest, highest + 1, (size,), generator=generator, device="cpu")
    return drawn.to(torch.get_default_device())
