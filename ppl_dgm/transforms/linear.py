"""Affine bijections: full matrices, normalisation, permutations."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.transforms.bijection import Bijection, Images
from ppl_dgm.validation import check_positive, check_shares

__all__ = ["ActNorm", "BatchNorm", "LULinear", "Permutation", "starting"]

ROUNDING = 64  # units of rounding that data of one value may seem to spread by


class LULinear(Bijection):
    r"""Affine map with an LU-factorised matrix.

    It is $y = W x + b$ with $W = P L U$, on vectors or on the channels of images (Glow's 1 x 1
    convolution).

    P is a fixed permutation, L unit lower triangular, U upper triangular with diagonal $\pm e^{d}$,
    so that the log-determinant is $\sum d$, for each pixel, and W cannot become singular (Kingma
    and Dhariwal 2018, section 3.2).

    Args:
        event_shape: (D,) or (channels, height, width).
        weight: W to start from, `[D, D]`; a random rotation by default.

    Raises:
        ValueError: a weight of another shape, or a singular one.

    Example:
        >>> linear = LULinear((2,), torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
        >>> linear.call_and_log_det(torch.tensor([3.0, 4.0]))
        (tensor([8., 3.], grad_fn=...), tensor(0.6931, grad_fn=...))
    """

    permutation: Tensor
    signs: Tensor

    @checked
    def __init__(self, event_shape: Sequence[int], weight: Tensor | None = None) -> None:
        super().__init__(event_shape)
        size = self.event_shape[0]
        weight = torch.linalg.qr(torch.randn(size, size))[0] if weight is None else weight
        if weight.shape != (size, size):
            raise ValueError(f"expected a weight [{size}, {size}], got shape {list(weight.shape)}")
        if is_singular(weight.detach()):
            raise ValueError("the weight is singular; expected a matrix that has an inverse")
        permutation, lower, upper = torch.linalg.lu(weight.detach())
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation)
        self.register_buffer("signs", diagonal.sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        self.bias = nn.Parameter(torch.zeros_like(diagonal))

    def _factors(self) -> tuple[Tensor, Tensor]:
        """L and U."""
        identity = torch.eye(len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
        diagonal = torch.diag_embed(self.signs * self.log_diagonal.exp())
        return self.lower.tril(-1) + identity, self.upper.triu(1) + diagonal

    def _log_det(self, x: Tensor) -> Tensor:
        pixels = math.prod(self.event_shape[1:])
        return (pixels * self.log_diagonal.sum()).expand(x.shape[: x.dim() - len(self.event_shape)])

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """W x + b."""
        lower, upper = self._factors()
        dim = -len(self.event_shape)
        y = x.movedim(dim, -1) @ (self.permutation @ lower @ upper).mT + self.bias
        return y.movedim(-1, dim), self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """Two triangular systems."""
        lower, upper = self._factors()
        dim = -len(self.event_shape)
        right = (y.movedim(dim, -1) - self.bias) @ self.permutation
        rows = right.reshape(-1, right.shape[-1]).mT
        half = torch.linalg.solve_triangular(lower, rows, upper=False, unitriangular=True)
        x = torch.linalg.solve_triangular(upper, half, upper=True).mT.reshape(right.shape)
        return x.movedim(-1, dim), -self._log_det(y)


def is_singular(weight: Tensor) -> bool:
    """Tell whether a matrix has no inverse but for rounding.

    Units of rows and columns do not matter.
    """
    scaled = weight.double()
    for dim in (1, 0):
        scaled = scaled / scaled.abs().amax(dim, keepdim=True)
    if not bool(torch.isfinite(scaled).all()):
        return True
    values = torch.linalg.svdvals(scaled)
    return bool(values[-1] <= len(weight) * torch.finfo(weight.dtype).eps * values[0])


class ActNorm(Bijection):
    """Affine map of each dimension or channel, initialised from data.

    It is y = u (s x + b) + c, started so that the data's x have mean 0 and sd 1.

    It starts from data when `starting` runs data backwards through it (Kingma and Dhariwal 2018,
    section 3.1), as a flow does with the first data that it sees: c is their mean and u their sd,
    constants from then on, so that an optimiser's steps of s and b are in the data's units.

    Args:
        event_shape: (D,) or (channels, height, width).

    Example:
        >>> norm = ActNorm((1,))
        >>> with starting(norm):
        ...     norm.inv(torch.tensor([[90.0], [110.0]]))
        tensor([[-0.7071],
                [ 0.7071]], grad_fn=...)
    """

    started: Tensor
    centre: Tensor
    unit: Tensor

    @checked
    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        shape = (self.event_shape[0], *(1,) * (len(self.event_shape) - 1))
        self.loc = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("centre", torch.zeros(shape))
        self.register_buffer("unit", torch.ones(shape))
        self.starting = False

    def _log_det(self, x: Tensor) -> Tensor:
        pixels = math.prod(self.event_shape[1:])
        log_det = pixels * (self.log_scale + self.unit.log()).sum()
        return log_det.expand(x.shape[: x.dim() - len(self.event_shape)])

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """u (s x + b) + c."""
        scaled = x * self.log_scale.exp() + self.loc
        return scaled * self.unit + self.centre, self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """((y - c) / u - b) / s."""
        if self.starting:
            self._start(y)
        scaled = (y - self.centre) / self.unit
        return (scaled - self.loc) * (-self.log_scale).exp(), -self._log_det(y)

    @torch.no_grad()
    def _start(self, y: Tensor) -> None:
        dims = [d for d in range(y.dim()) if d != y.dim() - len(self.event_shape)]
        if y.numel() > math.prod(self.event_shape):
            spread = y.std(dims, keepdim=True).reshape(self.loc.shape)
            size = y.abs().amax(dims).reshape(self.loc.shape)
            least = ROUNDING * torch.finfo(y.dtype).eps * size
            self.unit.copy_(torch.where(spread > least, spread, 1.0))
            self.centre.copy_(y.mean(dims).reshape(self.loc.shape))
            self.started.fill_(True)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load parameters; earlier files have units of 1."""
        state_dict.setdefault(f"{prefix}centre", torch.zeros_like(self.centre))
        state_dict.setdefault(f"{prefix}unit", torch.ones_like(self.unit))
        super()._load_from_state_dict(state_dict, prefix, *args)


@contextmanager
def starting(*modules: nn.Module) -> Iterator[list[ActNorm]]:
    """Initialise new `ActNorm` layers from the data of a block.

    These are the layers in the modules that have not started yet. They are yielded.
    """
    norms = [
        part
        for module in modules
        for part in module.modules()
        if isinstance(part, ActNorm) and not bool(part.started)
    ]
    for norm in norms:
        norm.starting = True
    try:
        yield norms
    finally:
        for norm in norms:
            norm.starting = False


class BatchNorm(Bijection):
    """Batch normalisation as a bijection.

    Data are normalised by the batch's moments in training, by running ones in evaluation (Dinh et
    al. 2017, section 3.7).

    Backwards, data to base, it is $x = (y - m) / s \\cdot e^{g} + b$; forwards the inverse with
    running moments. In training the data of a batch depend on each other; evidence is that of
    evaluation mode.

    Args:
        event_shape: (D,) or (channels, height, width).
        momentum: of the running moments.
        epsilon: added to variances.

    Example:
        >>> norm = BatchNorm((1,)).train()
        >>> norm.inv(torch.tensor([[90.0], [110.0]])).flatten()
        tensor([-1.,  1.], grad_fn=...)
    """

    running_mean: Tensor
    running_variance: Tensor

    @checked
    def __init__(
        self, event_shape: Sequence[int], momentum: float = 0.1, epsilon: float = 1e-5
    ) -> None:
        super().__init__(event_shape)
        shape = (self.event_shape[0], *(1,) * (len(self.event_shape) - 1))
        self.loc = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_variance", torch.ones(shape))
        check_shares(momentum=momentum)
        check_positive(epsilon=epsilon)
        self.momentum, self.epsilon = momentum, epsilon

    def _moments(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the mean and variance for normalising.

        In training they are those of the batch, and update the running ones. In evaluation they are
        the running ones.
        """
        if not self.training:
            return self.running_mean, self.running_variance
        dims = [d for d in range(y.dim()) if d != y.dim() - len(self.event_shape)]
        mean = y.mean(dims).reshape(self.loc.shape)
        variance = (y - mean).square().mean(dims).reshape(self.loc.shape)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_variance.lerp_(variance, self.momentum)
        return mean, variance

    def _log_det(self, variance: Tensor, x: Tensor) -> Tensor:
        pixels = math.prod(self.event_shape[1:])
        log_det = pixels * ((variance + self.epsilon).log() / 2 - self.log_scale).sum()
        return log_det.expand(x.shape[: x.dim() - len(self.event_shape)])

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """Back to the data's scale, by the running moments."""
        spread = (self.running_variance + self.epsilon).sqrt()
        y = (x - self.loc) * (-self.log_scale).exp() * spread + self.running_mean
        return y, self._log_det(self.running_variance, x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """Normalised data."""
        mean, variance = self._moments(y)
        x = (y - mean) * (variance + self.epsilon).rsqrt() * self.log_scale.exp() + self.loc
        return x, -self._log_det(variance, y)


class Permutation(Bijection):
    """Dimensions in another order: y_i = x_order(i).

    Args:
        order: a permutation of 0, ..., D - 1.

    Raises:
        ValueError: if it is none.

    Example:
        >>> Permutation([2, 0, 1])(torch.tensor([5.0, 6.0, 7.0]))
        tensor([7., 5., 6.])
    """

    order: Tensor
    back: Tensor

    @checked
    def __init__(self, order: Sequence[int] | Tensor) -> None:
        order = torch.as_tensor(order).long().to(torch.get_default_device())
        super().__init__((len(order),))
        if not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError(
                f"expected a permutation of 0, ..., {len(order) - 1}, got {order.tolist()}"
            )
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """In the new order, and zero."""
        return x.index_select(-1, self.order), torch.zeros_like(x[..., 0])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """In the old order, and zero."""
        return y.index_select(-1, self.back), torch.zeros_like(y[..., 0])
