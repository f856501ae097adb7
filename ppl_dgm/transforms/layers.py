"""Bijections made of scalar maps: elementwise, coupling and autoregressive."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.nn.conditioned import ContextConvNet, ContextMLP, start_small
from ppl_dgm.nn.masked import MADENet
from ppl_dgm.nn.mlp import Activation, ImageShape
from ppl_dgm.transforms.bijection import Bijection, Images, sum_last
from ppl_dgm.transforms.scalar import Affine, ScalarMap

__all__ = [
    "COUPLING_LOG_SCALE",
    "Coupling",
    "Elementwise",
    "ImageCoupling",
    "MaskedAutoregressive",
    "checkerboard",
    "coupling_log_scale",
    "half_channels",
]

COUPLING_LOG_SCALE = 2.0
GROWTH = 8.0  # nats by which many couplings in a row scale a number, at most


class Elementwise(Bijection):
    """Scalar map of each entry of an event.

    Each entry has parameters of its own, to which a net of the context may add.

    Args:
        event_shape: of what is mapped.
        scalar: the map, affine by default.
        num_context: size of the context; 0 for none.
        hidden: sizes of the hidden layers of the context's net.

    Example:
        >>> Elementwise((3,), num_context=2).condition(torch.zeros(5, 2))(torch.zeros(3)).shape
        torch.Size([5, 3])
    """

    @checked
    def __init__(
        self,
        event_shape: Sequence[int],
        scalar: ScalarMap | None = None,
        num_context: int = 0,
        hidden: Sequence[int] = (64,),
    ) -> None:
        super().__init__(event_shape, num_context)
        self.scalar = scalar or Affine()
        self.params = nn.Parameter(0.1 * torch.randn(*self.event_shape, self.scalar.num_params))
        self.net = ContextMLP(num_context, hidden, self.params.numel()) if num_context else None

    def _params(self, context: Tensor | None) -> Tensor:
        context = self.checked(context)
        if self.net is None:
            return self.params
        return self.params + self.net(context).unflatten(-1, self.params.shape)

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """The map in each place."""
        y, log_slope = self.scalar.call_and_log_det(x, self._params(context))
        return y, sum_last(log_slope, len(self.event_shape))

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """Its inverse in each place."""
        x, log_slope = self.scalar.inverse_and_log_det(y, self._params(context))
        return x, sum_last(log_slope, len(self.event_shape))


class Coupling(Bijection):
    """Coupling layer for vectors (Dinh et al. 2015, 2017).

    Some dimensions stay, and a net of these decides how the others are mapped.

    Args:
        num_dims: number D of dimensions.
        scalar: the map of the others; by default affine, its log-scale within plus and minus 2.
        mask: `[D]`, true where a dimension stays; by default the first half stays.
        flipped: the second half stays instead, where no mask is given.
        hidden: sizes of the net's hidden layers.
        num_context: size of a context that the net sees too; 0 for none.
        activation: makes the net's activation.

    Raises:
        ValueError: fewer than two dimensions, a mask of another length, or one that is all true or
            all false.

    Example:
        >>> Coupling(4)(torch.zeros(5, 4)).shape
        torch.Size([5, 4])
    """

    kept: Tensor
    moved: Tensor
    back: Tensor

    @checked
    def __init__(
        self,
        num_dims: int,
        scalar: ScalarMap | None = None,
        mask: Tensor | None = None,
        flipped: bool = False,
        hidden: Sequence[int] = (64, 64),
        num_context: int = 0,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__((num_dims,), num_context)
        self.scalar = scalar or Affine(COUPLING_LOG_SCALE)
        self.halves, self.flipped = mask is None, flipped
        if mask is None:
            mask = (torch.arange(num_dims) < num_dims // 2) ^ flipped
        kept, moved = checked_partition(mask.to(torch.get_default_device()).bool(), num_dims)
        order = torch.cat([kept, moved])
        for name, index in (("kept", kept), ("moved", moved), ("back", order.argsort())):
            self.register_buffer(name, index)
        outputs = len(moved) * self.scalar.num_params
        start = self.scalar.start
        self.net = ContextMLP(len(kept), hidden, outputs, num_context, activation, start)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The dimensions that stay and those that move."""
        if self.halves:  # slices cost less than gathers
            halves = x.tensor_split([x.shape[-1] // 2], -1)
            return (halves[1], halves[0]) if self.flipped else (halves[0], halves[1])
        return x.index_select(-1, self.kept), x.index_select(-1, self.moved)

    def _joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        parts = [kept.expand(*moved.shape[:-1], -1), moved]
        if self.halves:
            return torch.cat(parts[::-1] if self.flipped else parts, -1)
        return torch.cat(parts, -1).index_select(-1, self.back)

    def _params(self, kept: Tensor, context: Tensor | None) -> Tensor:
        return self.net(kept, self.checked(context)).unflatten(-1, (-1, self.scalar.num_params))

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """Map the others, given those that stay."""
        kept, moved = self._split(x)
        moved, log_slope = self.scalar.call_and_log_det(moved, self._params(kept, context))
        return self._joined(kept, moved), log_slope.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """Map the others back, given those that stay."""
        kept, moved = self._split(y)
        moved, log_slope = self.scalar.inverse_and_log_det(moved, self._params(kept, context))
        return self._joined(kept, moved), log_slope.sum(-1)


class ImageCoupling(Bijection):
    """Coupling layer for images.

    Some pixels or channels stay, and a convolutional net of these decides how the others are
    mapped.

    Args:
        image_shape: (channels, height, width).
        mask: `[channels, height, width]` or what broadcasts to it, true where a number stays:
            `checkerboard`, `half_channels`.
        scalar: the map of the others; by default affine, log-scales within plus and minus 2.
        hidden: channels of the net's hidden layers.
        num_context: size of a context that the net sees too; 0 for none.
        net: maps `[..., channels, height, width]` and the context to `[..., channels *
            scalar.num_params, height, width]`; a `ContextConvNet` by default.
        activation: makes the default net's activation.

    Raises:
        ValueError: sizes below one, a mask that is all true or all false.

    Example:
        >>> ImageCoupling((1, 4, 4), checkerboard((1, 4, 4)))(torch.zeros(5, 1, 4, 4)).shape
        torch.Size([5, 1, 4, 4])
    """

    mask: Tensor

    @checked
    def __init__(
        self,
        image_shape: ImageShape,
        mask: Tensor,
        scalar: ScalarMap | None = None,
        hidden: Sequence[int] = (32, 32),
        num_context: int = 0,
        net: nn.Module | None = None,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__(image_shape, num_context)
        self.scalar = scalar or Affine(COUPLING_LOG_SCALE)
        mask = mask.bool().expand(image_shape).clone()
        if bool(mask.all()) or not bool(mask.any()):
            raise ValueError(
                f"a coupling keeps some numbers and moves the others, but the mask of images "
                f"{list(image_shape)} is all {bool(mask.all())}"
            )
        self.register_buffer("mask", mask, persistent=False)
        channels = image_shape[0]
        outputs = channels * self.scalar.num_params
        start = self.scalar.start
        self.net = net or ContextConvNet(channels, hidden, outputs, num_context, activation, start)

    def _params(self, image: Tensor, context: Tensor | None) -> Tensor:
        params = self.net(torch.where(self.mask, image, 0.0), self.checked(context))
        return params.unflatten(-3, (self.event_shape[0], -1)).movedim(-3, -1)

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """Map the others, given those that stay."""
        y, log_slope = self.scalar.call_and_log_det(x, self._params(x, context))
        return torch.where(self.mask, x, y), sum_last(torch.where(self.mask, 0.0, log_slope), 3)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """Map the others back, given those that stay."""
        x, log_slope = self.scalar.inverse_and_log_det(y, self._params(y, context))
        return torch.where(self.mask, y, x), sum_last(torch.where(self.mask, 0.0, log_slope), 3)


class MaskedAutoregressive(Bijection):
    """Autoregressive transform with a masked net.

    Each dimension is mapped by a scalar map. The net computes its parameters from the dimensions
    before.

    The transform takes one pass of the net, its inverse D. Base to data it is an inverse
    autoregressive flow (Kingma et al. 2016), `Inverse` of it a masked autoregressive flow
    (Papamakarios et al. 2017).

    Args:
        num_dims: number D of dimensions.
        scalar: the map, affine by default.
        hidden: sizes of the masked net's hidden layers.
        order: `[D]`, the dimensions from the first to the last; the natural one by default.
        num_context: size of a context that the net sees too; 0 for none.
        activation: makes the net's activation.

    Raises:
        ValueError: sizes below one, an order that is no permutation.

    Example:
        >>> x = torch.randn(5, 3)
        >>> iaf = MaskedAutoregressive(3, order=[2, 0, 1])
        >>> torch.allclose(iaf.inv(iaf(x)), x, atol=1e-5)
        True
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        scalar: ScalarMap | None = None,
        hidden: Sequence[int] = (64, 64),
        order: Sequence[int] | None = None,
        num_context: int = 0,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__((num_dims,), num_context)
        self.scalar = scalar or Affine()
        self.order = tuple(range(num_dims)) if order is None else tuple(int(d) for d in order)
        self.net = MADENet(
            num_dims,
            hidden,
            self.scalar.num_params,
            self.order,
            num_context=num_context,
            activation=activation,
        )
        start_small(self.net.layers[-1], *self.net.contexts[-1:], factor=self.scalar.start)

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """All dimensions at once."""
        params = self.net(x, self.checked(context))
        y, log_slope = self.scalar.call_and_log_det(x, params)
        return y, log_slope.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """One dimension after the other."""
        context = self.checked(context)
        batch = y.shape[:-1]
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
        columns = [y.new_zeros(batch)] * y.shape[-1]
        log_slopes = []
        for dim in self.order:
            params = self.net(torch.stack(columns, -1), context)[..., dim, :]
            columns[dim], log_slope = self.scalar.inverse_and_log_det(y[..., dim], params)
            log_slopes.append(log_slope)
        return torch.stack(columns, -1), torch.stack(log_slopes, -1).sum(-1)


def coupling_log_scale(num_couplings: int) -> float:
    """Bound the log-scales of couplings in a row.

    Each moves half of the numbers. Bounds of two for all let 16 couplings of a number make e^32 of
    it: fits of such flows met data where one step's loss was 1e16, and their draws reached 1e19.

    Example:
        >>> coupling_log_scale(6), coupling_log_scale(32)
        (2.0, 0.5)
    """
    return min(COUPLING_LOG_SCALE, 2 * GROWTH / max(num_couplings, 1))


def checked_partition(mask: Tensor, num_dims: int) -> tuple[Tensor, Tensor]:
    """Find the indices of dimensions that stay and that move.

    Raises:
        ValueError: a mask of another length, or one that is all true or all false.
    """
    if mask.shape != (num_dims,) or bool(mask.all()) or not bool(mask.any()):
        raise ValueError(
            f"a coupling keeps some of at least 2 dimensions and moves the others; expected a mask "
            f"[{num_dims}], got {mask.tolist()}"
        )
    return mask.nonzero().flatten(), (~mask).nonzero().flatten()


@checked
def checkerboard(image_shape: ImageShape, parity: int = 0) -> Tensor:
    """True on every other pixel: `[1, height, width]`.

    Example:
        >>> checkerboard((3, 2, 2))[0]
        tensor([[ True, False],
                [False,  True]])
    """
    rows, columns = torch.arange(image_shape[1]), torch.arange(image_shape[2])
    return ((rows.unsqueeze(-1) + columns + parity) % 2 == 0).unsqueeze(0)


def half_channels(image_shape: ImageShape, last: bool = False) -> Tensor:
    """Create a mask of half of the channels.

    It is `[channels, 1, 1]`, true for the first half, or for the rest if `last`.

    Raises:
        ValueError: for one channel.

    Example:
        >>> half_channels((3, 2, 2)).flatten()
        tensor([ True, False, False])
    """
    if image_shape[0] < 2:
        raise ValueError(
            f"expected at least 2 channels to halve, got {image_shape[0]}; squeeze first"
        )
    first = torch.arange(image_shape[0]) < image_shape[0] // 2
    return (first ^ last).reshape(-1, 1, 1)
