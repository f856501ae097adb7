"""Read and write files of tensors safely."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch


def read_written(path: str | os.PathLike, device: torch.device | None) -> Any:
    """Read what `write_atomically` wrote, its tensors onto a device, without unpickling code."""
    try:
        return torch.load(path, weights_only=True, map_location=device)
    except OSError:
        raise
    except Exception as error:  # whatever the bytes of another file lead torch to
        raise ValueError(
            f"{path} is no file of parameters: {error}. Give one that Program.save or a fit's checkpoint wrote"
        ) from error


def write_atomically(path: str | os.PathLike, state: Any) -> None:
    """Write a state with `torch.save` to a temporary file beside `path`, then rename: never half a file."""
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(
            f"the folder {target.parent} of {target.name!r} does not exist; create it first"
        )
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
