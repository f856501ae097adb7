"""Small unnormalised programs whose sums can be had in full."""

from itertools import product

import torch
from torch import Tensor, nn

from ppl_dgm.families import RBM


def states(num_units: int) -> Tensor:
    """All states of binary units, `[2^n, n]`."""
    return torch.tensor(list(product((0.0, 1.0), repeat=num_units)), dtype=torch.float64)


def make_rbm(num_visible: int = 4, num_hidden: int = 3, visible: str = "binary") -> RBM:
    """An RBM with strong weights and a base measure of its own, in double precision."""
    torch.manual_seed(5)
    rbm = RBM(num_visible, num_hidden, visible).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.copy_(torch.randn_like(parameter))
        if visible == "binary":
            rbm.parts.units.base_logits.normal_()
        else:
            rbm.parts.units.log_scale.mul_(0.3)
            rbm.parts.units.base_loc.normal_()
            rbm.parts.units.base_scale.fill_(1.7)
    return rbm


class Ising(nn.Module):
    """Energy of spins on a square lattice with free edges.

    It is `-(h sum_i s_i + J sum_ij s_i s_j)` with s = 2 x - 1.
    """

    def __init__(self, side: int, field: float, coupling: float) -> None:
        super().__init__()
        self.side = side
        self.theta = nn.Parameter(torch.tensor([field, coupling], dtype=torch.float64))

    def statistics(self, x: Tensor) -> Tensor:
        """Sum of spins and of neighbours' products, `[..., 2]`."""
        s = (2 * x - 1).unflatten(-1, (self.side, self.side))
        pairs = (s[..., 1:, :] * s[..., :-1, :]).sum((-1, -2))
        pairs = pairs + (s[..., 1:] * s[..., :-1]).sum((-1, -2))
        return torch.stack([s.sum((-1, -2)), pairs], -1)

    def forward(self, x: Tensor) -> Tensor:
        return -self.statistics(x.double()) @ self.theta


class NormalEnergy(nn.Module):
    """Energy of a normal with a precision matrix and a shift, less that of a standard normal."""

    def __init__(self, precision: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.precision, self.shift = nn.Parameter(precision.clone()), nn.Parameter(shift.clone())

    def forward(self, x: Tensor) -> Tensor:
        symmetric = 0.5 * (self.precision + self.precision.T)
        own = 0.5 * torch.einsum("ni,ij,nj->n", x, symmetric, x) - x @ self.shift
        return own - 0.5 * x.square().sum(-1)
