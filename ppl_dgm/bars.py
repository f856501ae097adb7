"""Progress bars of work that lasts."""

import sys
from importlib.util import find_spec

from tqdm.auto import tqdm

__all__ = ["PATIENCE", "counted_steps", "is_seen"]

PATIENCE = 2.0  # seconds without a bar


def is_seen() -> bool:
    """Whether somebody may look at a bar.

    In a notebook bars are widgets; without these every change would be a line of its output.
    """
    return sys.stderr.isatty() or (
        "ipykernel" in sys.modules and find_spec("ipywidgets") is not None
    )


def counted_steps(num_steps: int, name: str, progress: bool) -> tqdm:
    """Iterate over steps, with a bar once they last.

    Nothing is shown where standard error is no terminal and this is no notebook, and nothing stays.
    """
    shown = progress and is_seen()
    return tqdm(range(num_steps), name, unit="step", delay=PATIENCE, leave=False, disable=not shown)
