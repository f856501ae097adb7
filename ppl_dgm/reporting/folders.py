"""Folders of files that appear as a whole.

No two names are alike.
"""

import json
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CONTENTS", "FileNames", "file_part", "written_whole"]

_LONGEST = 80  # bytes of a name's part in a file name, of which file systems take 255 in all
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


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Let a block write a folder that appears whole.

    It writes beside; the new folder then takes the old one's place.

    After an error or an interruption the folder is as it was. One that holds an earlier report
    alone is replaced; into one with other files the new ones are moved, each as a whole.
    """
    target = folder.resolve()
    inside = os.path.ismount(target) or not os.access(target.parent, os.W_OK)
    home = target if inside else target.parent
    _remove_leftovers(home, target.name)
    beside = home / f".{target.name}.{secrets.token_hex(4)}.tmp"
    beside.mkdir()
    try:
        yield beside
        _put_in_place(beside, target, inside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _put_in_place(beside: Path, target: Path, inside: bool) -> None:
    if inside or (target.exists() and not _is_replaceable(target)):
        for path in sorted(beside.iterdir(), key=lambda path: path.suffix == ".html"):
            os.replace(path, target / path.name)  # the page last, which stands for all
        return
    if target.exists():
        shutil.copymode(target, beside)
        before = beside.with_suffix(".old.tmp")
        os.rename(target, before)
        os.rename(beside, target)
        shutil.rmtree(before, ignore_errors=True)
    else:
        os.rename(beside, target)


def _is_replaceable(target: Path) -> bool:
    """Tell whether a folder may be replaced.

    It may if it is empty or holds an earlier report and nothing else.
    """
    there = {path.name for path in target.iterdir()}
    try:
        known = json.loads((target / CONTENTS).read_text(encoding="utf-8"))["own_files"]
    except (OSError, ValueError, KeyError, TypeError):
        known = []
    return there <= {*known, CONTENTS} if CONTENTS in there else not there


def _remove_leftovers(home: Path, name: str) -> None:
    """Remove what killed processes left beside a folder."""
    pattern = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}(\.old)?\.tmp")
    for path in home.iterdir():
        if pattern.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
