"""Marks of files and folders in use.

A process marks what it writes. The mark ends with the process, however that ends.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such marks
    fcntl = None

__all__ = ["abandoned", "claim", "claimed"]

_AT_ONCE = getattr(os, "O_NONBLOCK", 0)


def claim(handle: int, wait: bool = True) -> bool:
    """Mark an open file or folder until it is closed.

    The result is False where somebody else holds it. File systems without marks hold nothing.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def claimed(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a file or folder for a block.

    What is yielded tells whether it is there and is nobody else's.
    """
    try:
        handle = os.open(path, os.O_RDONLY | _AT_ONCE)  # a pipe would wait for a writer
    except OSError:
        yield False
        return
    try:
        yield claim(handle, wait) and path.exists()
    finally:
        os.close(handle)


def abandoned(folder: Path, pattern: str) -> Iterator[Path]:
    r"""Yield what killed processes left, each held meanwhile.

    Args:
        folder: where to look.
        pattern: regular expression of the names.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = [(folder / name).touch() for name in ("a.tmp", "b.tmp", "c.txt")]
        >>> with claimed(folder / "a.tmp"):
        ...     [path.name for path in abandoned(folder, r".*\.tmp")]
        ['b.tmp']
    """
    for path in folder.iterdir():
        if re.fullmatch(pattern, path.name):
            with claimed(path, wait=False) as is_free:
                if is_free:
                    yield path
