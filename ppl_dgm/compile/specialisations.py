"""Compiled code for each kind of call and module settings.

There is one version for each way in which the modules that run are set.
"""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from ppl_dgm.compile.errors import CaptureError
from ppl_dgm.compile.tracing.capture import Captured

__all__ = ["Versions"]

VERSIONS = 4  # of one kind of call; a setting that takes more values is taken to change for ever

Code = TypeVar("Code")


class Versions(Generic[Code]):
    """Compiled code by kind of call and module settings.

    For each kind, the version captured with the present settings of its modules is found.

    Args:
        captured: what a piece of code was made of.
    """

    def __init__(self, captured: Callable[[Code], Captured]) -> None:
        self._captured = captured
        self._versions: dict[Hashable, list[Code]] = {}

    def __len__(self) -> int:
        """Return the number of versions of all kinds of calls."""
        return sum(map(len, self._versions.values()))

    def find(self, key: Hashable) -> Code | None:
        """Return the code for a kind of call, or None.

        The code must have been captured with the present settings.
        """
        versions = self._versions.get(key, [])
        for place, code in enumerate(versions):
            if self._captured(code).is_current():
                if place:
                    versions.insert(0, versions.pop(place))
                return code
        return None

    def add(self, key: Hashable, make: Callable[[], Code]) -> Code:
        """Make the code for a kind of call.

        It holds for the present settings.

        Raises:
            CaptureError: there are many versions already, and so a setting that keeps changing.
        """
        versions = self._versions.setdefault(key, [])
        if len(versions) >= VERSIONS:
            changes = (self._captured(code).settings.changed() for code in versions)
            raise CaptureError(
                f"compiled for {VERSIONS} settings of the program's modules, and they have changed "
                f"again: {'; '.join(dict.fromkeys(filter(None, changes)))}. Make it a tensor, "
                "registered as a buffer and updated in place with `copy_`, or run with "
                "compile=False."
            )
        versions.insert(0, make())
        return versions[0]

    def clear(self) -> None:
        """Forget all code."""
        self._versions.clear()
