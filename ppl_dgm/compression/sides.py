"""Sender and receiver that code values of distributions."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Normal

from ppl_dgm.compression.stack import BitStack, Law, Symbols, finite_law, normal_law
from ppl_dgm.distributions.autoregressive import Autoregressive, EqualMixture
from ppl_dgm.program.sites import is_deterministic, is_subsample
from ppl_dgm.program.supports import innermost, support_of

__all__ = ["Coded", "Receiver", "Sender", "Side"]

GRID = 2.0**-7  # distance of the values that a real latent may take
REACH = 2**12  # how many of them lie on each side of its prior mean
TAILS = 8.0  # standard deviations of its posterior that they go to


@dataclass(frozen=True)
class Channel:
    """How symbols get from one side to the other.

    Args:
        code: codes symbols, None where they are to be found.
        drawn: whether the sender draws them.
        rows: which data's to code, `[data]`; all by default.
    """

    code: Callable[[Law, Symbols | None], Symbols]
    drawn: bool = False
    rows: Any = None

    def __call__(self, law: Law, symbols: Symbols | None) -> Symbols:
        """Code the selected symbols and return all of them.

        Symbols that are left out are zero where they are not known.
        """
        if self.rows is None:
            return self.code(law, symbols)
        rows = self.rows.repeat(len(law.parameters[0]) // len(self.rows))  # groups have several
        found = np.zeros(len(rows), np.int32) if symbols is None else symbols.copy()
        part = None if symbols is None else symbols[rows]
        found[rows] = self.code(law.at(rows), part)
        return found


class Side(ABC):
    """One side of a code, sender or receiver.

    The sender pushes what the receiver pops, and the other way round.

    Each pops all that it pops of a datum before it pushes anything.
    """

    def __init__(self, stack: BitStack) -> None:
        self.stack = stack
        self._due: list[tuple[Law, Symbols]] = []

    @abstractmethod
    def told(self, law: Law, symbols: Symbols | None) -> Symbols:
        """Code symbols that the sender tells the receiver.

        The receiver does not have them before.
        """

    @abstractmethod
    def drawn(self, law: Law, symbols: Symbols | None) -> Symbols:
        """Code symbols that the sender draws from the bits.

        The sender does not have them before.
        """

    @abstractmethod
    def mixture(self, law: EqualMixture, value: Tensor | None) -> Tensor:
        """Code data under a mixture.

        The sender draws the component from its posterior.
        """

    def under(self, law: EqualMixture, components: Symbols, value: Tensor | None) -> Tensor:
        """Code data, each under its own mixture component.

        The data are coded in the order of the components.
        """
        whole = law.laws[0].start
        for k in np.unique(components):
            rows = components == k
            found = code(Channel(self.told, rows=rows), law.laws[k], value)
            whole = torch.where(torch.from_numpy(rows).to(whole.device).unsqueeze(-1), found, whole)
        return whole

    def finish(self) -> None:
        """Push what is due, in reverse."""
        for law, symbols in reversed(self._due):
            self.stack.push(law, symbols)
        self._due.clear()

    def _push(self, law: Law, symbols: Symbols | None) -> Symbols:
        if symbols is None:
            raise ValueError("there is no value to push")
        self._due.append((law, symbols))
        return symbols


class Sender(Side):
    """Pushes data, pops latents."""

    def told(self, law: Law, symbols: Symbols | None) -> Symbols:
        """Push at the end."""
        return self._push(law, symbols)

    def drawn(self, law: Law, symbols: Symbols | None) -> Symbols:
        """Pop."""
        self.stack.borrow()
        return self.stack.pop(law)

    def mixture(self, law: EqualMixture, value: Any) -> Tensor:
        """Draw the components, then send them and the data.

        The data are coded under their components.
        """
        components = self.drawn(component_law(law, value), None)
        self.told(prior(law), components)
        return self.under(law, components, value)


class Receiver(Side):
    """Pops data, pushes latents back."""

    def told(self, law: Law, symbols: Symbols | None) -> Symbols:
        """Pop."""
        return self.stack.pop(law)

    def drawn(self, law: Law, symbols: Symbols | None) -> Symbols:
        """Push at the end."""
        return self._push(law, symbols)

    def mixture(self, law: EqualMixture, value: Any) -> Tensor:
        """Receive components and data, then return the components' bits.

        The data are coded under their components.
        """
        components = self.told(prior(law), None)
        value = self.under(law, components, None)
        self.drawn(component_law(law, value), components)
        return value


class Coded(Messenger):
    """Effect handler that codes random sites instead of drawing them.

    Args:
        side: which side runs.
        drawn: whether the sites are latents that a guide proposes, not the model's.
        values: those that are known, by site.
    """

    def __init__(self, side: Side, drawn: bool, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.side = side
        self.channel = Channel(side.drawn, drawn=True) if drawn else Channel(side.told)
        self.given, self.found = values, dict[str, Tensor]()

    def _pyro_sample(self, msg: Any) -> None:
        if is_subsample(msg) or is_deterministic(msg):
            return
        value, law = self.given.get(msg["name"]), innermost(msg["fn"])
        if msg["is_observed"]:
            check_lossless(law)
        mixed = isinstance(law, EqualMixture)
        found = self.side.mixture(law, value) if mixed else code(self.channel, msg["fn"], value)
        self.found[msg["name"]] = msg["value"] = found
        msg["done"] = True


def check_lossless(law: Any) -> None:
    """Refuse data that are real numbers.

    The grid of latents would round them.
    """
    if not support_of(law).is_discrete:
        raise ValueError(
            f"the data are real numbers ({type(law).__name__}), which cannot be coded without "
            "loss; expected finitely many values, e.g. levels and likelihoods.DiscretisedLogistic"
        )


def code(channel: Channel, fn: Any, value: Tensor | None) -> Tensor:
    """Code a value of a distribution.

    The value is `[*batch, *event]`, or None where it is to be found.
    """
    law = innermost(fn)
    if isinstance(law, Autoregressive):
        return code_in_turn(channel, law, value)
    shape = fn.shape()
    if isinstance(law, Normal):
        return code_normal(channel, law.expand(shape), value)
    if law.event_shape or not law.has_enumerate_support:
        raise ValueError(
            f"a {type(law).__name__} cannot be coded; expected data and latents that are "
            "independent with finitely many values, autoregressive, or (latents) normal"
        )
    return code_finite(channel, law.expand(shape), value)


def code_in_turn(channel: Channel, law: Autoregressive, value: Tensor | None) -> Tensor:
    """Code one dimension, or group of them, after the other.

    The steps are those that draws take.
    """
    turns = iter(law.order)

    def draw(params: Tensor) -> Tensor:
        at = next(turns)
        given = None if value is None else value[..., at]
        fn = law.conditional(params.unsqueeze(-2))
        return code(channel, fn, None if given is None else given.unsqueeze(-1)).squeeze(-1)

    return Autoregressive(
        law.net, law.conditional, law.start, law.order, law.stepper, draw, validate_args=False
    ).sample()


def code_normal(channel: Channel, law: Normal, value: Tensor | None) -> Tensor:
    """Code real numbers on a grid.

    They are counted from the grid point next to the mean.
    """
    loc, scale = (flat(part / GRID) for part in (law.loc, law.scale))
    reach = int(np.ceil(TAILS * scale.max())) + 1 if channel.drawn else REACH
    centre = loc.round()
    given = None if value is None else flat(value / GRID).round() - centre
    if given is not None and (np.abs(given) > reach).any():
        raise ValueError(
            f"a latent lies {np.abs(given).max() * GRID:.3g} from its mean; expected it within "
            f"{reach * GRID:.3g}, of order one"
        )
    symbols = None if given is None else given.astype(np.int32)
    found = channel(normal_law(loc - centre, scale, reach), symbols)
    return torch.from_numpy((centre + found) * GRID).to(law.loc).reshape(law.loc.shape)


def code_finite(channel: Channel, law: Any, value: Tensor | None) -> Tensor:
    """Code values out of finitely many."""
    levels = law.enumerate_support(expand=False)
    log_probs = law.log_prob(levels).double().movedim(0, -1)
    levels = levels.flatten()
    probs = log_probs.softmax(-1).reshape(-1, len(levels)).cpu().numpy()
    given = None if value is None else torch.searchsorted(levels, value.contiguous().to(levels))
    symbols = None if given is None else given.flatten().cpu().numpy().astype(np.int32)
    found = channel(finite_law(probs), symbols)
    return levels[torch.from_numpy(found).long().to(levels.device)].reshape(log_probs.shape[:-1])


def flat(numbers: Tensor) -> Any:
    """A tensor as a vector of doubles."""
    return numbers.double().flatten().cpu().numpy()


def component_law(law: EqualMixture, value: Tensor) -> Law:
    """The components of a mixture given data `[data, D]`."""
    log_probs = torch.stack([part.log_prob(value) for part in law.laws], -1).double()
    return finite_law(log_probs.softmax(-1).cpu().numpy())


def prior(law: EqualMixture) -> Law:
    """The components of a mixture."""
    return finite_law(np.full((law.batch_shape.numel(), len(law.laws)), 1 / len(law.laws)))
