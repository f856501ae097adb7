"""The command line: `ppl-dgm compare` and `ppl-dgm evidence`."""

from ppl_dgm.cli.main import main

__all__ = ["main"]
