"""Autoregressive families of images: PixelCNNs, transformer, PixelSNAIL."""

from collections.abc import Sequence

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.likelihoods import Likelihood, named_likelihood
from ppl_dgm.families.autoregressive.model import AutoregressiveProgram, context_of
from ppl_dgm.nn.attention import Positions, TransformerNet
from ppl_dgm.nn.context import ContextSize, ContextVectors, context_size
from ppl_dgm.nn.mlp import ImageShape
from ppl_dgm.nn.pixel import raster_order
from ppl_dgm.nn.pixel_cnn import PixelConvNet
from ppl_dgm.nn.pixel_gated import GatedConvNet
from ppl_dgm.nn.pixel_multiscale import MultiscaleNet
from ppl_dgm.nn.pixel_snail import SnailNet

__all__ = ["GatedPixelCNN", "MultiscalePixelCNN", "PixelCNN", "PixelSNAIL", "PixelTransformer"]


class PixelCNN(AutoregressiveProgram):
    """PixelCNN: masked convolutions over images.

    van den Oord et al. (2016), Pixel RNN, section 3.3.

    A mask A, then residual blocks of masks B. It has a blind spot above to the right;
    `GatedPixelCNN` has none.

    Args:
        shape: (channels C, height H, width W); data are flattened, `[N, C * H * W]`.
        width: of the residual stream.
        num_layers: number of residual blocks.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or
            `"gaussian"`.
        order: the dimensions in the order of generation, laid out in raster order for the net; by
            default pixels in raster order, the channels of each one after the other.
        kernel_size: of the blocks, odd; the first layer's has four more.
        num_classes: number of classes, of which each datum then has a label.
        context: what is given with each datum, as labels are: a vector of so many numbers, or a
            small (or large) image of the shape (channels, height, width), in the values of x and
            flattened: super-resolution.

    Raises:
        ValueError: a size below one, an even kernel, an order that is no permutation, an unknown
            likelihood.

    Example:
        >>> PixelCNN((1, 4, 4), width=8, num_layers=2).sample(3).shape
        torch.Size([3, 16])
    """

    @checked
    def __init__(
        self,
        shape: ImageShape,
        width: int = 64,
        num_layers: int = 7,
        likelihood: str | Likelihood = "bernoulli",
        order: Sequence[int] | None = None,
        kernel_size: int = 3,
        num_classes: int | None = None,
        context: ContextSize | None = None,
    ) -> None:
        likelihood = named_likelihood(likelihood)
        settings = (likelihood.num_params, order, kernel_size, context_of(num_classes, context))
        super().__init__(
            PixelConvNet(shape, width, num_layers, *settings), likelihood, num_classes, context
        )


class GatedPixelCNN(AutoregressiveProgram):
    """Two stacks of gated convolutions, without blind spot.

    (van den Oord et al. 2016, Conditional PixelCNN.)

    Args:
        shape: (channels C, height H, width W); data are flattened, `[N, C * H * W]`.
        width: of each stack.
        num_layers: L; all earlier pixels are seen from L * (kernel_size // 2) >= max(H, W) on, and
            by default L is the least such number, at least 2.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or
            `"gaussian"`.
        order: the dimensions in the order of generation, as for `PixelCNN`.
        kernel_size: odd.
        num_classes: number of classes, of which each datum then has a label.
        context: what is given with each datum, as labels are: a vector of so many numbers, or a
            small (or large) image of the shape (channels, height, width), in the values of x and
            flattened: super-resolution.

    Raises:
        ValueError: a size below one, an even kernel, an order that is no permutation, an unknown
            likelihood.

    Example:
        >>> GatedPixelCNN((1, 4, 4), width=8).sample(3).shape
        torch.Size([3, 16])
    """

    @checked
    def __init__(
        self,
        shape: ImageShape,
        width: int = 32,
        num_layers: int | None = None,
        likelihood: str | Likelihood = "bernoulli",
        order: Sequence[int] | None = None,
        kernel_size: int = 5,
        num_classes: int | None = None,
        context: ContextSize | None = None,
    ) -> None:
        likelihood = named_likelihood(likelihood)
        if num_layers is None:
            num_layers = max(2, -(-max(shape[1:]) // max(1, kernel_size // 2)))
        settings = (likelihood.num_params, order, kernel_size, context_of(num_classes, context))
        super().__init__(
            GatedConvNet(shape, width, num_layers, *settings), likelihood, num_classes, context
        )


class MultiscalePixelCNN(AutoregressiveProgram):
    r"""PixelCNN from coarse to fine, drawn in groups of pixels.

    Reed et al. (2017), Parallel multiscale autoregressive density estimation.

    A small image of every $2^S$-th pixel, each given those before; then at each scale three groups
    of pixels, to the right of those there are, below and in between, with the pixels of a group
    independent given all earlier groups. The density is exact, and a draw takes 3 S passes besides
    those of the small image: of 28 x 28 pixels 16 rather than 784.

    Args:
        shape: (channels C, height H, width W); data are flattened, `[N, C * H * W]`.
        width: of the residual streams.
        num_layers: residual blocks of each scale.
        num_scales: S, with 0 all pixels in turn; by default so many that the small image is one
            pixel.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or
            `"gaussian"`.
        num_classes: number of classes, of which each datum then has a label.
        context: what is given with each datum, as for `PixelCNN`.

    Raises:
        ValueError: a size below one, more scales than the sides can be halved, an unknown
            likelihood.

    Example:
        >>> MultiscalePixelCNN((1, 4, 4), width=8, num_layers=1).sample(3).shape
        torch.Size([3, 16])
    """

    @checked
    def __init__(
        self,
        shape: ImageShape,
        width: int = 32,
        num_layers: int = 3,
        num_scales: int | None = None,
        likelihood: str | Likelihood = "bernoulli",
        num_classes: int | None = None,
        context: ContextSize | None = None,
    ) -> None:
        likelihood = named_likelihood(likelihood)
        settings = (likelihood.num_params, num_scales, context_of(num_classes, context))
        net = MultiscaleNet(shape, width, num_layers, *settings)
        super().__init__(net, likelihood, num_classes, context)


class PixelTransformer(AutoregressiveProgram):
    """Decoder-only transformer over pixels, in any order.

    (Parmar et al. 2018; Chen et al. 2020, image GPT.)

    Args:
        shape: (channels C, height H, width W); data are flattened, `[N, C * H * W]`.
        width: of the residual stream.
        num_layers: number of blocks.
        num_heads: of each attention.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or
            `"gaussian"`.
        order: the dimensions in the order of generation; by default pixels in raster order, the
            channels of each one after the other.
        positions: `"learned"` vectors, or `"rotary"` besides.
        dropout: share of the branches' outputs left out in training.
        orders: number K of orders; the density is the mean of theirs.
        seed: draws the orders after the first.
        num_classes: number of classes, of which each datum then has a label.
        context: what is given with each datum, as labels are: a vector of so many numbers, or a
            small (or large) image of the shape (channels, height, width), in the values of x and
            flattened: super-resolution.

    Raises:
        ValueError: a size below one, a width that the heads do not divide, an order that is no
            permutation, an unknown likelihood or kind of positions.

    Example:
        >>> PixelTransformer((1, 4, 4), width=8, num_layers=1, num_heads=2).sample(3).shape
        torch.Size([3, 16])
    """

    @checked
    def __init__(
        self,
        shape: ImageShape,
        width: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
        likelihood: str | Likelihood = "bernoulli",
        order: Sequence[int] | None = None,
        positions: Positions = "learned",
        dropout: float = 0.0,
        orders: int = 1,
        seed: int | None = None,
        num_classes: int | None = None,
        context: ContextSize | None = None,
    ) -> None:
        likelihood = named_likelihood(likelihood)
        raster, given = raster_order(shape), context_of(num_classes, context)
        net = TransformerNet(
            len(raster),
            width,
            num_layers,
            num_heads,
            likelihood.num_params,
            raster if order is None else order,
            positions,
            dropout,
            context_size(given),
            orders,
            seed,
            None if isinstance(given, int) else ContextVectors(given, shape, width),
        )
        super().__init__(net, likelihood, num_classes, context)


class PixelSNAIL(AutoregressiveProgram):
    """PixelSNAIL: alternating causal convolutions and attention.

    Chen, Mishra, Rohaninejad and Abbeel (2018).

    Args:
        shape: (channels C, height H, width W); data are flattened, `[N, C * H * W]`.
        width: of the residual stream.
        num_blocks: number of blocks, each some convolutions and one attention.
        num_layers: convolutions of a block.
        num_heads: of each attention.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or
            `"gaussian"`.
        order: the dimensions in the order of generation, as for `PixelCNN`.
        kernel_size: of the convolutions, odd; the first layer's has two more.
        num_classes: number of classes, of which each datum then has a label.
        context: what is given with each datum, as labels are: a vector of so many numbers, or a
            small (or large) image of the shape (channels, height, width), in the values of x and
            flattened: super-resolution.

    Raises:
        ValueError: a size below one, an even kernel, a width that the heads do not divide, an order
            that is no permutation, an unknown likelihood.

    Example:
        >>> PixelSNAIL((1, 4, 4), width=8, num_blocks=1, num_heads=2).sample(3).shape
        torch.Size([3, 16])
    """

    @checked
    def __init__(
        self,
        shape: ImageShape,
        width: int = 64,
        num_blocks: int = 2,
        num_layers: int = 2,
        num_heads: int = 4,
        likelihood: str | Likelihood = "bernoulli",
        order: Sequence[int] | None = None,
        kernel_size: int = 3,
        num_classes: int | None = None,
        context: ContextSize | None = None,
    ) -> None:
        likelihood = named_likelihood(likelihood)
        sizes = (width, num_blocks, num_layers, num_heads)
        settings = (likelihood.num_params, order, kernel_size, context_of(num_classes, context))
        super().__init__(SnailNet(shape, *sizes, *settings), likelihood, num_classes, context)
