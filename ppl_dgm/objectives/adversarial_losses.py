"""Losses of critic and generator as functions of scores."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import relu, softplus

from ppl_dgm.checked import checked

__all__ = ["LOSSES", "AdversarialLoss", "named_loss"]

Function = Callable[[Tensor], Tensor]


@checked
@dataclass(frozen=True)
class AdversarialLoss:
    """Losses of critic and generator, functions of the scores.

    They act elementwise on the critic's scores `[...]`.

    To add one, make an instance and hand it to `GAN`.

    Args:
        real: the critic's loss on data.
        fake: the critic's loss on draws.
        generator: the generator's loss on its draws.
        lipschitz: whether the critic must be kept Lipschitz, by a gradient penalty or spectral
            norm.
    """

    real: Function
    fake: Function
    generator: Function
    lipschitz: bool = False


def negated(scores: Tensor) -> Tensor:
    """Minus the scores."""
    return -scores


LOSSES = {
    "minimax": AdversarialLoss(lambda s: softplus(-s), softplus, lambda s: -softplus(s)),
    "nonsaturating": AdversarialLoss(lambda s: softplus(-s), softplus, lambda s: softplus(-s)),
    "least_squares": AdversarialLoss(
        lambda s: (s - 1).square() / 2, lambda s: s.square() / 2, lambda s: (s - 1).square() / 2
    ),
    "hinge": AdversarialLoss(lambda s: relu(1 - s), lambda s: relu(1 + s), negated),
    "wasserstein": AdversarialLoss(negated, lambda s: s, negated, lipschitz=True),
}


def named_loss(loss: str | AdversarialLoss) -> AdversarialLoss:
    """A loss, or the one of that name.

    Raises:
        ValueError: for another name.
    """
    if isinstance(loss, AdversarialLoss):
        return loss
    if loss not in LOSSES:
        raise ValueError(
            f"loss is {loss!r}; expected one of {sorted(LOSSES)}, or an AdversarialLoss of your "
            "own. f-divergences are FGAN's"
        )
    return LOSSES[loss]
