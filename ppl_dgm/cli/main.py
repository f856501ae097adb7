"""Entry point of the command line.

Errors are reported in one line, with an exit status.
"""

import sys
from collections.abc import Sequence
from pkgutil import resolve_name

from ppl_dgm.cli.parser import parser

__all__ = ["main"]

# NonFiniteError of a fit is an ArithmeticError.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, ArithmeticError)
FAILED, BAD_INPUT = 1, 2  # exit statuses
INTERRUPTED = 130  # the exit status of a program ended by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 where all went well; 2 where the input was at fault and 1 where a run failed otherwise, said
    in one line on stderr; 3 where an alarm speaks against a number; 130 after Ctrl-C.

    Example:
        >>> main(["evidence", "absent.py:program", "--data", "x.npz"])
        2
    """
    args = parser().parse_args(argv)
    try:
        run = resolve_name(f"ppl_dgm.cli.commands:run_{args.run}")  # heavy: not needed for --help
        return run(args)
    except BrokenPipeError:  # whoever read the output has seen enough
        return 0
    except KeyboardInterrupt:
        print("ppl-dgm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BaseException as error:  # whatever the user's programs raise
        if args.traceback:
            raise
        print(f"ppl-dgm: error: {_told(error)}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, (*USER_ERRORS, SystemExit)) else FAILED


def _told(error: BaseException) -> str:
    """Tell an error in one line.

    Its class is named where it is not of the usual kind.
    """
    message = " ".join(str(error).partition("Trace Shapes:")[0].split())  # without Pyro's table
    if isinstance(error, SystemExit):
        return f"a program exits ({message})"
    named = f"{type(error).__name__}: {message}; --traceback shows where"
    return message if message and isinstance(error, USER_ERRORS) else named
