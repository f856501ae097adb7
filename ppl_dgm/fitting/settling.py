"""Whether the training of a game has come to rest."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["restless", "swings"]

OWN = {"step", "objective", "valid_step", "valid", "reconstruction", "kl"}  # of any fit
LEAST_STEPS = 80
LARGE = 0.1  # of the whole range of a curve
KEPT = 0.5  # of the swing in the quarter before


def restless(history: Mapping[str, Tensor]) -> list[str]:
    """Name the curves of a game that swing on.

    Watched are the loss of each player and, with validation data, the validation (of `GAN` the
    energy distance between held-out data and draws). The history of a single objective has none.
    """
    players = sorted(name for name in history if name not in OWN and not name.startswith("valid"))
    if not players:
        return []
    watched = [*players, *(["valid"] if "valid" in history else [])]
    return [name for name in watched if swings(history[name])]


def swings(curve: Tensor) -> bool:
    r"""Check whether a curve ends swinging, and no less.

    Of a part of the curve, $\tfrac12 \overline{(s_{t+1} - s_t)^2}$ is the variance of what changes
    from step to step, the noise of minibatches; what the variance has beyond it is slow. A curve
    swings if the slow standard deviation of its last quarter is larger than that noise, than a
    tenth of the whole curve's range, and than half of what it was in the quarter before.

    That does not see: swings within a few steps, or smaller than the noise; a steady drift; players
    that are at rest where they should not be, as a critic that has lost its gradient or a generator
    at rest on a few modes.

    Example:
        >>> swings(torch.arange(1000.0).mul(0.1).sin())
        True
        >>> swings(torch.arange(1000.0).mul(0.1).sin() * torch.linspace(0, -8, 1000).exp())
        False
        >>> swings(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
        False
    """
    if len(curve) < LEAST_STEPS or not bool(torch.isfinite(curve).all()):
        return False
    curve = curve.double()
    before, end = curve[len(curve) // 2 :].tensor_split(2)
    slow, noise = slow_and_fast(end)
    span = curve.max() - curve.min()
    return bool(slow > torch.stack([noise, LARGE * span, KEPT * slow_and_fast(before)[0]]).max())


def slow_and_fast(curve: Tensor) -> tuple[Tensor, Tensor]:
    """Split a curve's standard deviation into slow and fast."""
    fast = 0.5 * curve.diff().square().mean()
    return (curve.var() - fast).clamp_min(0.0).sqrt(), fast.sqrt()
