"""Planar, radial and Sylvester flows with inverses.

They are residual bijections of few units. Pyro's have no inverses.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.nn.conditioned import ContextMLP
from ppl_dgm.transforms.bijection import Bijection, Images
from ppl_dgm.transforms.solving import solve_increasing

__all__ = ["Planar", "Radial", "Sylvester"]


class Parametric(Bijection):
    """Bijection of vectors with a given number of parameters.

    A net of the context may add to the parameters.

    Args:
        num_dims: number D of dimensions.
        num_params: how many numbers.
        num_context: size of the context; 0 for none.
        hidden: sizes of the hidden layers of the context's net.
    """

    def __init__(
        self, num_dims: int, num_params: int, num_context: int = 0, hidden: tuple[int, ...] = (64,)
    ) -> None:
        super().__init__((num_dims,), num_context)
        self.params = nn.Parameter(torch.randn(num_params) / num_dims**0.5)
        self.net = ContextMLP(num_context, hidden, num_params) if num_context else None

    def numbers(self, context: Tensor | None, *sizes: int) -> tuple[Tensor, ...]:
        """The numbers `[..., size]` in pieces of these sizes."""
        context = self.checked(context)
        numbers = self.params if self.net is None else self.params + self.net(context)
        return numbers.split(sizes, -1)


class Planar(Parametric):
    r"""Planar flow (Rezende and Mohamed 2015, section 4.1).

    It is $y = x + \hat u \tanh(w^\top x + b)$.

    $\hat u$ is u moved along w so that $w^\top \hat u = \mathrm{softplus}(w^\top u) - 1 > -1$
    (their appendix A.1), which makes the map invertible. The inverse solves $a + w^\top \hat u
    \tanh(a + b) = w^\top y$ for $a = w^\top x$.

    Args:
        num_dims: number D of dimensions.
        num_context: size of a context whose net gives u, w and b; 0 for none.

    Example:
        >>> planar, x = Planar(3), torch.randn(5, 3)
        >>> torch.allclose(planar.inv(planar(x)), x, atol=1e-5)
        True
    """

    @checked
    def __init__(self, num_dims: int, num_context: int = 0) -> None:
        super().__init__(num_dims, 2 * num_dims + 1, num_context)

    def _parts(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the constrained parameters of the flow.

        They are u, w, b, and the product of the first two plus one.
        """
        size = self.event_shape[0]
        u, w, b = self.numbers(context, size, size, 1)
        product, squared = (u * w).sum(-1), w.square().sum(-1)
        above = F.softplus(product)
        least = torch.finfo(w.dtype).tiny
        u = u + ((above - 1 - product) / squared.clamp_min(least)).unsqueeze(-1) * w
        return u, w, b.squeeze(-1), above

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """x bent along a plane."""
        u, w, b, above = self._parts(context)
        bend = ((x * w).sum(-1) + b).tanh()
        return x + u * bend.unsqueeze(-1), _log_rise(bend, above)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """By one equation for each vector."""
        u, w, b, above = self._parts(context)
        along, reach = torch.broadcast_tensors((y * w).sum(-1), above - 1)

        def function(a: Tensor) -> tuple[Tensor, Tensor]:
            bend = (a + b).tanh()
            return a + reach * bend, _log_rise(bend, above).exp()

        a = solve_increasing(function, along, along - reach.abs(), along + reach.abs())
        bend = (a + b).tanh()
        return y - u * bend.unsqueeze(-1), -_log_rise(bend, above)


def _log_rise(bend: Tensor, above: Tensor) -> Tensor:
    """Compute the log-determinant of one tanh unit.

    It is log(1 + (above - 1) (1 - tanh^2)), of positive terms.
    """
    return (bend.square() + above * (1 - bend.square())).log()


class Radial(Parametric):
    r"""Radial flow (Rezende and Mohamed 2015, equation 14).

    It is $y = x + \frac{\beta}{\alpha + r} (x - x_0)$ with $r = |x - x_0|$.

    $\alpha > 0$ and $\beta > -\alpha$ make it invertible; r solves a quadratic equation of the
    image's distance.

    Args:
        num_dims: number D of dimensions.
        num_context: size of a context whose net gives the centre, alpha and beta; 0 for none.

    Example:
        >>> radial, x = Radial(3), torch.randn(5, 3)
        >>> torch.allclose(radial.inv(radial(x)), x, atol=1e-5)
        True
    """

    @checked
    def __init__(self, num_dims: int, num_context: int = 0) -> None:
        super().__init__(num_dims, num_dims + 2, num_context)

    def _parts(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, alpha and alpha + beta."""
        centre, alpha, total = self.numbers(context, self.event_shape[0], 1, 1)
        return centre, F.softplus(alpha).squeeze(-1), F.softplus(total).squeeze(-1)

    def _stretch(self, r: Tensor, alpha: Tensor, total: Tensor) -> Images:
        """By how much distances r grow, and log |det|."""
        factor = (total + r) / (alpha + r)
        slope = (r * (r + 2 * alpha) + alpha * total) / (alpha + r).square()
        return factor, (self.event_shape[0] - 1) * factor.log() + slope.log()

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """x stretched around the centre."""
        centre, alpha, total = self._parts(context)
        factor, log_det = self._stretch(_distance(x - centre), alpha, total)
        return centre + factor.unsqueeze(-1) * (x - centre), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """By the root of a quadratic equation."""
        centre, alpha, total = self._parts(context)
        far = _distance(y - centre)
        half = (total - far) / 2
        root = (half.square() + alpha * far).sqrt()
        r = torch.where(half > 0, alpha * far / (half.abs() + root), root - half)
        factor, log_det = self._stretch(r, alpha, total)
        return centre + (y - centre) / factor.unsqueeze(-1), -log_det


def _distance(offset: Tensor) -> Tensor:
    """Length of vectors, with a gradient at zero."""
    return (offset.square().sum(-1) + torch.finfo(offset.dtype).tiny).sqrt()


class Sylvester(Parametric):
    r"""Householder Sylvester flow (van den Berg et al. 2018).

    It is $y = x + Q R \tanh(\tilde R Q^\top x + b)$.

    Q is a product of Householder reflections, R and $\tilde R$ are upper triangular with diagonals
    in (-1, 1), so that $\log|\det| = \sum_i \log(1 + r_{ii} \tilde r_{ii} \tanh'_i)$. The inverse
    solves one equation after the other.

    Args:
        num_dims: number D of dimensions.
        num_reflections: of Q; D or more reach every rotation up to sign.
        num_context: size of a context whose net gives all numbers; 0 for none.

    Raises:
        ValueError: sizes below one.

    Example:
        >>> sylvester, x = Sylvester(3), torch.randn(5, 3)
        >>> torch.allclose(sylvester.inv(sylvester(x)), x, atol=1e-5)
        True
    """

    @checked
    def __init__(self, num_dims: int, num_reflections: int = 4, num_context: int = 0) -> None:
        if num_reflections < 1:
            raise ValueError(f"num_reflections is {num_reflections}; expected at least 1")
        self.num_reflections = num_reflections
        count = num_dims * (2 * num_dims + 1 + num_reflections)
        super().__init__(num_dims, count, num_context)

    def _parts(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Q, R, the other R and b."""
        size = self.event_shape[0]
        first, second, b, vectors = self.numbers(
            context, size**2, size**2, size, size * self.num_reflections
        )
        first, second = (
            _bounded_triangle(part.unflatten(-1, (size, size))) for part in (first, second)
        )
        return reflections(vectors.unflatten(-1, (-1, size))), first, second, b

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """x moved along the rotated axes."""
        rotation, first, second, b = self._parts(context)
        bend = (_times(second, _times(rotation.mT, x)) + b).tanh()
        product = _diagonal(first) * _diagonal(second)
        log_det = _log_rise(bend, 1 + product).sum(-1)
        return x + _times(rotation, _times(first, bend)), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """Along the rotated axes, from the last to the first."""
        rotation, first, second, b = self._parts(context)
        turned = _times(rotation.mT, y)
        size = turned.shape[-1]
        solved: list[Tensor] = [torch.zeros_like(turned[..., 0])] * size
        bends: list[Tensor] = [torch.zeros_like(turned[..., 0])] * size
        for i in reversed(range(size)):
            seen = (second[..., i, :] * torch.stack(solved, -1)).sum(-1) + b[..., i]
            rest = turned[..., i] - (first[..., i, :] * torch.stack(bends, -1)).sum(-1)
            solved[i] = _solve_unit(first[..., i, i], second[..., i, i], seen, rest)
            bends[i] = (second[..., i, i] * solved[i] + seen).tanh()
        bend = torch.stack(bends, -1)
        log_det = _log_rise(bend, 1 + _diagonal(first) * _diagonal(second)).sum(-1)
        return y - _times(rotation, _times(first, bend)), -log_det


def _solve_unit(outer: Tensor, inner: Tensor, shift: Tensor, y: Tensor) -> Tensor:
    """Solve a + outer tanh(inner a + shift) = y."""
    outer, inner, y = torch.broadcast_tensors(outer, inner, y)

    def function(a: Tensor) -> tuple[Tensor, Tensor]:
        bend = (inner * a + shift).tanh()
        return a + outer * bend, 1 + outer * inner * (1 - bend.square())

    return solve_increasing(function, y, y - outer.abs(), y + outer.abs())


def reflections(vectors: Tensor) -> Tensor:
    """Compute products of Householder reflections.

    Vectors are `[..., K, D]`, products are orthogonal matrices `[..., D, D]`.

    Example:
        >>> reflections(torch.tensor([[1.0, 0.0]]))
        tensor([[-1.,  0.],
                [ 0.,  1.]])
    """
    size = vectors.shape[-1]
    unit = vectors / _distance(vectors).unsqueeze(-1)
    identity = torch.eye(size, dtype=vectors.dtype, device=vectors.device)
    product = identity.expand(*vectors.shape[:-2], size, size)
    for vector in unit.unbind(-2):
        along = _times(product, vector)
        product = product - 2 * along.unsqueeze(-1) * vector.unsqueeze(-2)
    return product


def _bounded_triangle(matrix: Tensor) -> Tensor:
    """The upper triangle, its diagonal squeezed into (-1, 1)."""
    return matrix.triu(1) + torch.diag_embed(_diagonal(matrix).tanh())


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
