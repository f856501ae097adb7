"""How observed values that move with latents stretch the data."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Stretch", "stretch_alarm", "stretches_of"]

MOST_NUMBERS = 256  # of a site whose entries mix, beyond which no determinant is taken
CLOSE = 1e-4  # nats of each number, as single precision tells them


class Stretch(NamedTuple):
    """Volume of an observed value over an argument.

    `log_volume` is log |d value / d argument| at the latents of one run, in nats: of each number
    where the value is made entry by entry, of all in one number else, NaN where it is unknown.
    """

    log_volume: Tensor

    def agrees(self, other: "Stretch | None") -> bool:
        """Whether the volume stays the same at other latents."""
        return (
            other is not None
            and other.log_volume.shape == self.log_volume.shape
            and bool(torch.allclose(self.log_volume, other.log_volume, rtol=CLOSE, atol=CLOSE))
        )

    @property
    def is_one(self) -> bool:
        """Whether the value is a shift of the argument."""
        return self.agrees(Stretch(torch.zeros_like(self.log_volume)))

    @property
    def is_known(self) -> bool:
        """Whether the volume could be found."""
        return not bool(self.log_volume.isnan().any())


def stretches_of(value: Tensor, seen: Tensor, leaves: Mapping[int, Tensor]) -> dict[int, Stretch]:
    """Find the arguments that an observed value stretches.

    They have as many numbers as the value, each of which moves it. The result is by their places.

    Args:
        value: of an observed site, with its graph.
        seen: which of its entries count, of the same number of entries.
        leaves: arguments that require gradients, by place.
    """
    found = {}
    for place, leaf in leaves.items():
        if value.requires_grad and leaf.numel() == value.numel():
            slope = slopes(value, leaf, torch.ones_like(value))
            if bool((slope[seen.reshape(-1)] != 0).all()):
                found[place] = Stretch(log_volume(value, seen, leaf, slope))
    return found


def log_volume(value: Tensor, seen: Tensor, leaf: Tensor, slope: Tensor) -> Tensor:
    """Compute the log volume, by entry where possible.

    Entries that a mask takes out count for nothing.
    """
    visible = seen.reshape(-1)
    generator = torch.Generator().manual_seed(0)
    mixing = (1 + torch.rand(value.shape, generator=generator)).to(value)
    mixed = slopes(value, leaf, mixing)
    if torch.allclose(mixed, slope * mixing.reshape(-1), rtol=CLOSE):
        return torch.where(visible, slope.abs().double().log(), 0.0)
    if value.numel() > MOST_NUMBERS:
        return slope.new_full((), torch.nan, dtype=torch.float64)
    rows = [slopes(entry, leaf, torch.ones_like(entry)) for entry in value.reshape(-1)[visible]]
    return torch.linalg.slogdet(torch.stack(rows)[:, visible].double()).logabsdet


def slopes(value: Tensor, leaf: Tensor, weights: Tensor) -> Tensor:
    """Derivatives of a weighted sum of a value, flat."""
    (found,) = torch.autograd.grad(value, leaf, weights, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf).reshape(-1) if found is None else found.detach().reshape(-1)


def stretch_alarm(names: Sequence[str]) -> tuple[str, ...]:
    """Warn of sites that observe data stretched by latents.

    Example:
        >>> stretch_alarm(["y"])[0]
        "site 'y' observes data that latents stretch, as in obs=(x - m) / s: ..."
        >>> stretch_alarm([])
        ()
    """
    return tuple(
        f"site {name!r} observes data that latents stretch, as in obs=(x - m) / s: its density "
        "lacks log |d value / d data| and is not one of the data; observe these under a "
        "TransformedDistribution, or add that term by pyro.factor"
        for name in names
    )
