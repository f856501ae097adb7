"""Folders of files that appear as a whole.

No two names are alike.
"""

import ctypes
import json
import math
import os
import re
import secrets
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

from ppl_dgm.claims import abandoned, claimed
from ppl_dgm.program.storage import leftovers, temporary_name
from ppl_dgm.pyro_state import deferred_interrupts

__all__ = ["CONTENTS", "PAGE", "FileNames", "file_part", "make_folder", "written_whole"]

_LONGEST = 80  # bytes of a name's part in a file name, of which file systems take 255 in all
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
PAGE = "report.html"
CONTENTS = "results.json"  # tells under "own_files" what else a folder holds


class FileNames:
    """File names, each given once.

    Example:
        >>> names = FileNames()
        >>> names("VAE 1"), names("VAE-1"), names("β", ending=".nc"), names("??")
        ('vae-1', 'vae-1-2', 'β.nc', 'unnamed')
    """

    def __init__(self) -> None:
        self.given: list[str] = []

    def __call__(self, *names: str, ending: str = "") -> str:
        """Return a file name for names of any characters."""
        part, count = "-".join(map(file_part, names)), 1
        found = part + ending
        while found in self.given:
            count += 1
            found = f"{part}-{count}{ending}"
        self.given.append(found)
        return found


def file_part(name: str) -> str:
    """Return the letters and digits of a name.

    They are in lower case and joined by hyphens.
    """
    plain = unicodedata.normalize("NFKC", name).lower().encode(errors="replace").decode()
    part = re.sub(r"[\W_]+", "-", plain).strip("-")
    return part.encode()[:_LONGEST].decode(errors="ignore").strip("-") or "unnamed"


def make_folder(folder: str | os.PathLike) -> Path:
    """Make a folder for a report.

    Raises:
        ValueError: for a file, a link in a circle, a folder that cannot be made or written.
    """
    target = Path(folder)
    try:
        target.resolve().mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:  # also of links in a circle, zero bytes
        is_file = isinstance(error, FileExistsError) and target.exists()
        why = "is a file" if is_file else f"cannot be made ({error})"
        raise ValueError(
            f"{str(folder)!r} {why}; expected a folder to write the report to"
        ) from error
    if not os.access(target, os.W_OK | os.X_OK):
        raise ValueError(f"the folder {str(folder)!r} cannot be written; name another one")
    _check_free(target, {PAGE, CONTENTS})
    return target


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Let a block write a folder that appears whole.

    It writes beside; the new folder then takes the old one's place.

    After an error or an interruption, a kill included, the folder is as it was. One that holds an
    earlier report alone is exchanged for the new one. Into one with other files, or that cannot be
    exchanged, the new ones are moved one by one; what a kill leaves of that the next start does.
    """
    target = folder.resolve()
    beside = temporary_name(target)
    if not _is_movable(target):
        beside = target / beside.name
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, beside, ignore_errors=True)
        with claimed(target.parent):  # by one process at a time
            _clear_up(target)
            beside.mkdir()
            stack.enter_context(claimed(beside))
        yield beside
        with claimed(target.parent):
            _put_in_place(beside, target)


def _is_movable(target: Path) -> bool:
    """Tell whether another folder can take a folder's place.

    None can take that of a mount, or of a folder that programs are in: they would stay in the old
    one.
    """
    is_fixed = os.path.ismount(target) or not os.access(target.parent, os.W_OK)
    return not is_fixed and target not in (here := Path(os.path.realpath(".")), *here.parents)


def _put_in_place(beside: Path, target: Path) -> None:
    if beside.parent == target.parent and _is_replaceable(target):
        shutil.copymode(target, beside)
        if _exchange(beside, target):
            return
    _check_free(target, {path.name for path in beside.iterdir()})
    ready = target / f".{secrets.token_hex(4)}.ready.tmp"
    with deferred_interrupts(most=math.inf) as interrupted:
        os.rename(beside, ready)  # from here on the report will be whole, if not by this process
        _move_from(ready, target)
    if interrupted():
        raise KeyboardInterrupt


def _check_free(target: Path, names: set[str]) -> None:
    """Refuse a folder where others have files of these names.

    Raises ValueError.
    """
    own = _own_files(target)
    there = [path for path in target.iterdir() if path.name in names]
    taken = [path.name for path in there if path.name not in own or path.is_dir()]
    if taken:
        raise ValueError(
            f"the folder {target} has {sorted(taken)} that no report wrote, and that one would "
            "replace; name another folder"
        )


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders at once.

    False where the system does not know how to.
    """
    if sys.platform == "win32":  # has no library of the process itself
        return False
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = (_HERE, os.fsencode(one), _HERE, os.fsencode(other))
    return exchange is not None and exchange(*paths, _EXCHANGE) == 0


def _move_from(ready: Path, target: Path) -> None:
    """Move a whole report to its place.

    What an earlier one alone had there goes. The list of files comes after them, the page last.
    """
    if (ready / CONTENTS).exists():
        for name in _own_files(target) - _own_files(ready):
            (target / name).unlink(missing_ok=True)
    last = {CONTENTS: 1, PAGE: 2}
    for path in sorted(ready.iterdir(), key=lambda path: last.get(path.name, 0)):
        os.replace(path, target / path.name)
    ready.rmdir()


def _own_files(folder: Path) -> set[str]:
    """Names of the files of the report in a folder."""
    try:
        names = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))["own_files"]
        return {CONTENTS, *(name for name in names if name == Path(name).name)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _is_replaceable(target: Path) -> bool:
    """Tell whether a folder may be replaced.

    It may if it is empty or holds an earlier report and nothing else.
    """
    return {path.name for path in target.iterdir()} <= _own_files(target)


def _clear_up(target: Path) -> None:
    """Finish and remove what killed processes left."""
    for ready in abandoned(target, r"\.[0-9a-f]{8}\.ready\.tmp"):
        _move_from(ready, target)
    for beside in chain(leftovers(target), leftovers(target / target.name)):
        shutil.rmtree(beside, ignore_errors=True)
