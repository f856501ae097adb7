"""Progress bar of estimators, where their work lasts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm.auto import tqdm

from ppl_dgm.bars import PATIENCE, is_seen

__all__ = ["WATCH", "Watch", "compiling", "watched"]


class Watch:
    """Count of densities that is shown once work has lasted.

    Args:
        name: of the work.
        shown: whether anything is to be seen.
    """

    def __init__(self, name: str, shown: bool) -> None:
        self.name, self.shown = name, shown
        self.count, self.start = 0.0, time.monotonic()
        self._bar: tqdm | None = None

    def add(self, densities: float) -> None:
        """Count densities, and show them if it is time."""
        if not self.shown:
            return
        self.count += densities
        if self._bar is not None:
            self._bar.update(densities)
        elif time.monotonic() - self.start > PATIENCE:
            self.show()

    def show(self) -> None:
        """Show the bar."""
        if self.shown and self._bar is None:
            self._bar = tqdm(
                desc=self.name,
                initial=self.count,
                unit=" densities",
                unit_scale=True,
                leave=False,
            )

    def rename(self, name: str) -> None:
        """Say what is running now."""
        self.name = name
        if self._bar is not None:
            self._bar.set_description_str(name)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(name: str, progress: bool) -> Iterator[None]:
    """Show the densities evaluated inside, after two seconds.

    Inside of other work that is watched, its bar says what is running. Nothing is shown where
    standard error is no terminal and this is no notebook.
    """
    outer = WATCH.get()
    if outer is not None:
        whole = outer.name
        outer.rename(f"{whole}: {name}")
        try:
            yield
        finally:
            outer.rename(whole)
        return
    watch = Watch(name, progress and is_seen())
    token = WATCH.set(watch)
    try:
        yield
    finally:
        WATCH.reset(token)
        watch.close()


@contextmanager
def compiling() -> Iterator[None]:
    """Say that the work that is watched compiles.

    Compiling counts no densities, and mostly lasts: it is told at once.
    """
    watch = WATCH.get()
    if watch is None:
        yield
        return
    name = watch.name
    watch.rename(f"{name}, compiling")
    watch.show()
    try:
        yield
    finally:
        watch.rename(name)
