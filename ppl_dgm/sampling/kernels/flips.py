"""Gibbs sampling of binary vectors from a log density.

Nothing else about the density needs to be known.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_dgm.compile import repeat

__all__ = ["BitFlips"]


@dataclass(frozen=True)
class BitFlips:
    r"""Gibbs sampler of the bits of binary vectors.

    Each bit of each chain is drawn from its full conditional, one bit after the other in a random
    order.

    $x_i \leftarrow 1 - x_i$ with probability $\sigma(\log f(x^{(i)}) - \log f(x))$, where $x^{(i)}$
    has bit i flipped. Each chain has an order of its own, backwards as likely as forwards, so that
    a sweep is reversible. It costs an evaluation of the density for each bit. Geman and Geman
    (1984).

    Args:
        log_density: of data `[n, *event]` in {0, 1}: `[n]` in nats.

    Example:
        >>> import torch
        >>> heads = BitFlips(lambda x: 50 * x.sum(-1))
        >>> heads.move(torch.zeros(2, 3)).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    log_density: Callable[[Tensor], Tensor]

    def move(self, x: Tensor) -> Tensor:
        """Sweep once over all bits of data `[n, *event]`."""
        return self.sweep(x, self.log_density(x))[0]

    def sweep(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        """Sweep once from data `[n, *event]` of known log density.

        `log_density` is `[n]`. New data and their log densities are returned.
        """
        flat = x.reshape(len(x), -1)
        order = torch.rand_like(flat).argsort(1)
        first = torch.zeros((), dtype=torch.long, device=x.device)
        size = torch.full((), flat.shape[1], dtype=torch.long, device=x.device)

        def turn(carry: tuple[Tensor, Tensor, Tensor], order: Tensor) -> tuple:
            flat, log_density, step = carry
            bit = order.gather(1, step.expand(len(order), 1))
            other = flat.scatter(1, bit, 1 - flat.gather(1, bit))
            proposed = self.log_density(other.reshape(x.shape))
            taken = torch.rand_like(proposed) < (proposed - log_density).sigmoid()
            flat = torch.where(taken.unsqueeze(1), other, flat)
            return flat, torch.where(taken, proposed, log_density), step + 1

        flat, log_density, _ = repeat(size, turn, (flat, log_density, first), order)
        return flat.reshape(x.shape), log_density
