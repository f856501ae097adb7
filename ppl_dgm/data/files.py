"""Cached files of published data sets.

Files that are missing are downloaded into the cache, with checksum and progress.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pooch

__all__ = ["Source", "fetch", "missing"]

CACHE_VARIABLE = "PPL_DGM_DATA"


@dataclass(frozen=True)
class Source:
    """Where the files of a data set come from.

    Args:
        name: of the data set and of its folder in the cache.
        mirrors: addresses of folders, tried in this order, each ending in "/".
        sha256: checksum of every file, by file name.
    """

    name: str
    mirrors: tuple[str, ...]
    sha256: dict[str, str]


def cache_folder() -> Path:
    """Return the folder that keeps downloads.

    It is given by the environment variable `PPL_DGM_DATA`, or else lies in the user's cache folder.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("ppl_dgm"))


def fetch(source: Source, download: bool) -> dict[str, Path]:
    """Return the paths of a source's files, by name.

    Files of `source` that are not in the cache are downloaded into it, if `download` is true.

    Raises:
        FileNotFoundError: a file is neither in the cache nor to be had, with both cures.
    """
    folder = cache_folder() / source.name
    return {name: _fetch_file(source, name, folder, download) for name in source.sha256}


def missing(source: Source, folder: Path, reasons: Sequence[str]) -> FileNotFoundError:
    """Build the error for files that cannot be obtained.

    It names the files and both ways to get them.
    """
    return FileNotFoundError(
        f"the files of {source.name} are not in {folder}: {'; '.join(reasons)}. Either run this "
        f"once on a machine with network access, which fills {cache_folder() / source.name} (copy "
        f"that folder, or name another cache by the environment variable {CACHE_VARIABLE}), or put "
        f"{', '.join(source.sha256)} from {source.mirrors[0]} into a folder of your own and pass "
        "it as folder=..."
    )


def _fetch_file(source: Source, name: str, folder: Path, download: bool) -> Path:
    path = folder / name
    if path.is_file() and pooch.file_hash(str(path)) == source.sha256[name]:
        return path
    if not download:
        raise missing(source, folder, [f"{name} is absent or damaged, and download=False"])
    reasons = []
    for mirror in source.mirrors:
        try:
            return _download(mirror + name, source.sha256[name], path)
        except (OSError, ValueError) as error:  # no network, an HTTP error; a wrong checksum
            reasons.append(f"{mirror}{name}: {_first_line(error)}")
    raise missing(source, folder, reasons)


def _download(address: str, sha256: str, path: Path) -> Path:
    return Path(
        pooch.retrieve(address, f"sha256:{sha256}", path.name, path.parent, progressbar=True)
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
