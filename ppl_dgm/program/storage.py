"""Safe reading and writing of files.

No file is ever half written, mistaken for another, or run as code.
"""

import io
import json
import os
import re
import secrets
import shutil
import stat
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ppl_dgm.claims import abandoned, claim
from ppl_dgm.program.identity import digest

__all__ = [
    "PROGRAM_PREFIX",
    "check_space",
    "check_target",
    "leftovers",
    "parameters_in",
    "read_state",
    "read_tensors",
    "remove_leftovers",
    "temporary_name",
    "write_bytes",
    "write_state",
    "write_tensors",
]

_LONGEST_NAME = 255  # bytes, of file systems in use
_CURE = "Give one that Program.save, Fit.save or a checkpoint wrote"
PROGRAM_PREFIX = "program/"  # of the program's tensors in the file of a fit


def write_state(path: str | os.PathLike, state: Mapping[str, Any]) -> None:
    """Write a tree of tensors and numbers atomically, with checksum.

    `read_state` reads the file.

    Raises:
        ValueError: if the folder does not exist or the path is no regular file.
        OSError: if the disk is full; an older file stays as it was.
    """
    content = io.BytesIO()  # in memory first: an interruption inside torch.save leaves no half file
    checked: Any = OrderedDict(state)
    checked.checksum = digest(dict(state))  # an attribute: to torch.load the file is a plain dict
    torch.save(checked, content)
    with content.getbuffer() as saved:  # else an error's traceback holds an open view
        write_bytes(path, saved)


def read_state(path: str | os.PathLike, device: torch.device | None) -> dict[str, Any]:
    """Read a file that `write_state` wrote.

    The tensors are loaded onto `device`. No code is unpickled.

    Raises:
        ValueError: for a file that is empty, cut short, changed, or of another kind.
        OSError: if the file cannot be opened.
    """
    content = Path(path).read_bytes()  # first: damaged bytes may lead torch to errors of files
    if not content:
        raise ValueError(f"{path} is empty. Delete it, or name another file")
    try:
        state = torch.load(io.BytesIO(content), weights_only=True, map_location=device)
    except Exception as error:  # whatever the bytes of another file lead torch to
        raise ValueError(
            f"{path} is no file of parameters or progress, or was cut short or changed since it "
            f"was written. {_CURE}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not named tensors. {_CURE}")
    if getattr(state, "checksum", digest(dict(state))) != digest(dict(state)):
        raise ValueError(
            f"{path} was changed since it was written. Delete it, or name another file"
        )
    return state


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write named tensors to a safetensors file, with a checksum.

    `about` is stored with them as JSON. The file is written atomically.
    """
    kept = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    told = {"about": json.dumps(about), "checksum": content_digest(kept, json.dumps(about))}
    write_bytes(path, safetensors.torch.save(kept, metadata=told))


def content_digest(tensors: Mapping[str, Tensor], about: str | None) -> str:
    """Compute a digest of named tensors and a text.

    The order of the tensors does not matter.
    """
    return digest([sorted(tensors), [tensors[name] for name in sorted(tensors)], about])


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read a file that `write_tensors` wrote.

    The result is None for a file of another kind.

    Raises:
        ValueError: for a file that was changed since it was written, or holds tensors alone.
    """
    content = Path(path).read_bytes()
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError):
        return None
    size = int.from_bytes(content[:8], "little")
    told = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    if told.get("checksum") != content_digest(tensors, told.get("about")):
        raise ValueError(
            f"{path} was changed since it was written, or is no file of a fit. {_CURE}"
        )
    return tensors, json.loads(told["about"])


def parameters_in(path: str | os.PathLike, device: torch.device | None) -> dict[str, Tensor]:
    """Read the parameters of a program from a saved file.

    The file is one of `Program.save`, of `Fit.save`, or a fit's checkpoint.

    A checkpoint gives the best parameters seen, where the fit had validation data.
    """
    saved = read_tensors(path) if os.path.getsize(path) else None
    if saved is not None:
        own = PROGRAM_PREFIX
        found = {n.removeprefix(own): v for n, v in saved[0].items() if n.startswith(own)}
        return {name: value.to(device) for name, value in found.items()}
    state = read_state(path, device)
    if "identity" not in state:
        return state
    return (state["state"]["best"] or state)["program"]


def write_bytes(path: str | os.PathLike, content: bytes | memoryview) -> None:
    """Write a file atomically.

    The content goes to a temporary file in the same folder, which is then renamed.

    A link is followed, the mode of an existing file kept; devices and pipes are refused.
    """
    target = check_target(path)
    beside = temporary_name(target)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask
    try:
        with os.fdopen(handle, "wb") as file:
            claim(handle)
            if target.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def temporary_name(target: Path) -> Path:
    """A new name beside what is to be replaced."""
    return target.with_name(f"{_beginning(target)}{secrets.token_hex(4)}.tmp")


def leftovers(target: Path) -> Iterator[Path]:
    """What killed processes left beside a file or folder.

    Each is held while it is looked at; what a living process writes is not among them.
    """
    return abandoned(target.parent, rf"{re.escape(_beginning(target))}[0-9a-f]{{8}}\.tmp")


def _beginning(target: Path) -> str:
    """How the names of a file's temporary ones begin."""
    kept = os.fsencode(target.name)[: _LONGEST_NAME - len(".") - len(".01234567.tmp")]
    return f".{os.fsdecode(kept)}."


def check_target(path: str | os.PathLike) -> Path:
    """Resolve a path and check that it can be written."""
    if "\0" in os.fspath(path):
        raise ValueError(f"{path!r} is no path: it holds a zero byte")
    try:
        target = Path(path).resolve()
    except (OSError, RuntimeError) as error:  # of links in a circle
        raise ValueError(f"{str(path)!r} cannot be followed: {error}") from error
    if str(path).endswith("/") or len(os.fsencode(target.name)) > _LONGEST_NAME:
        raise ValueError(
            f"{str(path)!r} names no file; expected a name of 1 to {_LONGEST_NAME} bytes"
        )
    if target.is_symlink():  # Python 3.13 resolves a circle to itself
        raise ValueError(f"{str(path)!r} cannot be followed: its links lead in a circle")
    if not target.parent.is_dir():
        raise ValueError(
            f"the folder {target.parent} of {target.name!r} does not exist; create it first"
        )
    if target.exists() and not target.is_file():
        raise ValueError(f"{str(path)!r} is no regular file; name a file to be written")
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"the folder {target.parent} cannot be written; name another one")
    return target


def check_space(target: Path, num_bytes: int) -> None:
    """Refuse a file for which the disk has no room."""
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes:
        raise ValueError(
            f"the disk of {target} has {free:.3g} bytes left, but the file takes about "
            f"{num_bytes:.3g}; make room, or name a file elsewhere"
        )


def remove_leftovers(target: Path) -> None:
    """Remove temporary files that a killed process left.

    They lie in the folder of `target`.
    """
    for other in leftovers(target):
        other.unlink(missing_ok=True)
