"""Where a result comes from: versions, device, command and date."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

__all__ = ["run_environment"]

__version__ = "0.1.0"

PACKAGES = ("torch", "pyro-ppl", "numpy")  # whose releases change numbers


def run_environment(seed: int | None = None) -> dict[str, str]:
    """Describe the environment needed to repeat a result.

    Each entry is a short text, by name.

    Example:
        >>> list(run_environment(seed=3))
        ['seed', 'versions', 'device', 'command', 'date']
    """
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    own = [f"ppl_dgm {__version__}", f"Python {platform.python_version()}"]
    return {
        "seed": "not given" if seed is None else str(seed),
        "versions": ", ".join([*own, *versions]),
        "device": device_name(),
        "command": command(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def device_name() -> str:
    """The processor, and the accelerator where torch has one."""
    import torch  # noqa: PLC0415 - the command line asks for the version alone, at once

    threads = torch.get_num_threads()
    cpu = f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
    return f"{torch.cuda.get_device_name()}, {cpu}" if torch.cuda.is_available() else cpu


def command() -> str:
    """Return the command line of this process.

    The folder of the program is left out.
    """
    program, *rest = sys.argv or [""]
    name = Path(program).name or "an interactive session"
    return shlex.join([name, *rest]) if rest else name
