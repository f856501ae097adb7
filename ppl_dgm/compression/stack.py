"""Stack of bits for pushing and popping symbols."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BitStack", "Law", "Symbols", "finite_law", "normal_law"]

try:
    import constriction as _constriction  # pyright: ignore[reportMissingImports]
except ImportError:
    _constriction = None

constriction: Any = _constriction

Symbols = NDArray[np.int32]
SUPPLY = 2**14  # words of random bits under the stack, known to both sides


@dataclass(frozen=True, eq=False)
class Law:
    """Distributions of symbols as model kind and parameters.

    The parameters have a row for each symbol.
    """

    kind: Any
    parameters: tuple[NDArray[np.float64], ...]

    def at(self, rows: Any) -> "Law":
        """The laws of some of the symbols."""
        return Law(self.kind, tuple(part[rows] for part in self.parameters))


def finite_law(probs: NDArray[np.float64]) -> Law:
    """Symbols 0, 1, ... of these probabilities, `[symbols, levels]`."""
    return Law(constriction.stream.model.Categorical(perfect=False), (check_finite(probs),))


def normal_law(loc: NDArray[np.float64], scale: NDArray[np.float64], reach: int) -> Law:
    """Return normal distributions of symbols rounded to whole numbers.

    The symbols, `[symbols]`, lie between -reach and reach.
    """
    kind = constriction.stream.model.QuantizedGaussian(-reach, reach)
    return Law(kind, (check_finite(loc), np.maximum(check_finite(scale), 1e-3)))


def check_finite(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Refuse parameters that are not finite."""
    if not np.isfinite(numbers).all():
        raise ValueError("a distribution has parameters that are not finite; check the program's")
    return numbers


class BitStack:
    """Stack of symbols coded by asymmetric numeral systems.

    Each symbol has its own distribution, and the last in is the first out (Duda 2009).

    Popping turns bits into draws, pushing draws into bits. `borrow` lays a supply of random bits
    that both sides know under it, so that popping may come first.

    Args:
        borrowed: words of the supply that were used up; 0 where there is none.
        above: the bytes above the untouched supply.
    """

    def __init__(self, borrowed: int = 0, above: bytes = b"") -> None:
        if constriction is None:
            raise ValueError(
                "compression runs on constriction, which is not installed: "
                "pip install ppl-dgm[compression]"
            )
        words = np.frombuffer(above + b"\0" * (-len(above) % 4), "<u4").astype(np.uint32)
        kept = _supply()[: SUPPLY - borrowed if borrowed else 0]
        self._coder = constriction.stream.stack.AnsCoder(np.concatenate([kept, words]))
        self._borrows = borrowed > 0

    def push(self, law: Law, symbols: Symbols) -> None:
        """Add symbols, so that `pop` gives them back in order."""
        self._coder.encode_reverse(symbols, law.kind, *law.parameters)

    def pop(self, law: Law) -> Symbols:
        """Take symbols off."""
        return self._coder.decode(law.kind, *law.parameters)

    def borrow(self) -> None:
        """Lay the supply under an empty stack, once."""
        if not self._borrows:
            self._coder = constriction.stream.stack.AnsCoder(_supply(), seal=True)
            self._borrows = True

    def content(self) -> tuple[int, bytes]:
        """Return the number of used words and the remaining bytes.

        The words are those of the supply that are used up. The bytes lie above the untouched
        supply.
        """
        words, kept = self._coder.get_compressed(), 0
        if self._borrows:
            length = min(len(words), SUPPLY - 1)
            kept = int(np.append(words[:length] == _supply()[:length], False).argmin())
        above = words[kept:].astype("<u4").tobytes().rstrip(b"\0")
        return (SUPPLY - kept if self._borrows else 0), above

    def is_as_at_the_start(self) -> bool:
        """Return whether the stack is as at the start.

        All that was pushed has been popped, and all that was popped has been pushed back.
        """
        if not self._borrows:
            return self._coder.is_empty()
        return np.array_equal(self._coder.get_compressed(), np.append(_supply(), np.uint32(1)))


def _supply() -> NDArray[np.uint32]:
    """Random words, always the same."""
    return np.random.Generator(np.random.PCG64(0)).integers(0, 2**32, SUPPLY, dtype=np.uint32)
