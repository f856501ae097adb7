"""What made a table: command, versions, machine and seed, as lines of Markdown."""

import os
import platform
import shlex
import sys
from pathlib import Path

import pyro
import torch

import ppl_dgm


def provenance(seed: str) -> str:
    """Lines that stand under every table, so that whoever reads it can make it again."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    versions = f"ppl_dgm {ppl_dgm.__version__}, torch {torch.__version__}, pyro {pyro.__version__}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return "\n".join(
        [
            f"- command: `{command}`",
            f"- {versions}, Python {platform.python_version()}",
            f"- {device}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s); seed {seed}",
        ]
    )


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
