"""Programs and data from the user's files."""

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from ppl_dgm.arrays import as_argument
from ppl_dgm.data import Dataset, load_array
from ppl_dgm.data.tables import open_table
from ppl_dgm.program import Program

__all__ = [
    "CallArguments",
    "arguments_for",
    "kept_import_path",
    "load_data",
    "load_program",
    "load_state",
    "program_names",
]

Table = dict[str, Callable[[], np.ndarray]]
_LOADED: list[Path] = []  # folders of files that were run


class CallArguments(NamedTuple):
    """What a program is called with."""

    args: tuple
    kwargs: dict[str, Any]

    @property
    def data(self) -> Any:
        """As `fit` takes it: positional or named arguments."""
        return self.kwargs or self.args


def load_program(reference: str) -> Program:
    """Load a program from a reference `path/to/file.py:name`.

    The name is that of a Program, or of a function that makes one.

    The file is run as a module of its own, its folder first on the path of imports. What it changes
    in that path stays, for imports in its models, to the end of `kept_import_path`.

    Raises:
        ValueError: a reference of another form, no such file or name, something else under that
            name, or a file that raises or exits, with the line.
    """
    path, name = _split_reference(reference)
    module = _run_file(path)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ValueError(f"{path} has no {name!r}, only {public}")
    found = getattr(module, name)
    is_maker = callable(found) and not isinstance(found, Program) and _takes_nothing(found)
    made = _run_lines(path, found) if is_maker else found
    if not isinstance(made, Program):
        raise ValueError(
            f"{name!r} in {path} is a {type(made).__name__}; expected a Program, or a function "
            "without arguments that makes one: program = ppl_dgm.Program(model, guide)"
        )
    return made


def _split_reference(reference: str) -> tuple[Path, str]:
    path, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier() or not path.endswith(".py"):
        raise ValueError(f"{reference!r} does not name a program; expected path/to/file.py:name")
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    return Path(path).resolve(), name


def _run_file(path: Path) -> Any:
    """Import a file as a module with a unique name.

    The module is known by that name, as dataclasses and pickle need.
    """
    name = f"_program_{path.stem}_{crc32(bytes(path)):x}"  # no other module's, and ever the same
    if name in sys.modules:
        return sys.modules[name]
    _forget_siblings(path.parent)
    spec: Any = spec_from_file_location(name, path)
    module = sys.modules[name] = module_from_spec(spec)
    _LOADED.append(path.parent)
    try:
        _run_lines(path, lambda: spec.loader.exec_module(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _forget_siblings(folder: Path) -> None:
    """Forget modules imported from the folder of another file.

    Only those are forgotten whose names this folder has too.
    """
    others = {str(other) for other in _LOADED if other != folder}
    own = {entry.stem for entry in folder.iterdir()}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name.partition(".")[0] in own and any(map(Path(file).is_relative_to, others)):
            del sys.modules[name]


def _run_lines(path: Path, run: Callable[[], Any]) -> Any:
    """Run a file's code and report errors with their line.

    Its folder stands first on the path of imports from then on, since models may import too.
    """
    folder = os.getcwd()
    sys.path.insert(0, str(path.parent))
    try:
        return run()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        code = f"exits ({error.code})" if isinstance(error, SystemExit) else None
        told = code or f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}, line {_last_line(error, path)}: {told}") from error
    finally:
        os.chdir(folder)


@contextmanager
def kept_import_path() -> Iterator[None]:
    """Undo what programs change in the path of imports."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


def _last_line(error: BaseException, path: Path) -> int | str:
    """Return the file's last line that an error passed through."""
    lines, frame = [], error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(path):
            lines.append(frame.tb_lineno)
        frame = frame.tb_next
    return lines[-1] if lines else getattr(error, "lineno", None) or "?"


def _takes_nothing(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_argcount + code.co_kwonlyargcount == 0


def load_data(path: Path | None) -> Dataset | Table | None:
    """Load the data in a file.

    A table gives its columns by name, to be read when wanted. Arrays in splits give the test split.
    """
    if path is None:
        return None
    if path.suffix == ".csv" and path.is_file():
        return open_table(path)
    data = load_array(path)
    has_test = data.split_sizes is not None and data.split_sizes[2] > 0
    return data.test if has_test else data


def _number(column: np.ndarray) -> Tensor:
    """Convert a column to a tensor without loss of digits.

    It has torch's default precision where that is exact, else double.
    """
    value = as_argument(column)
    rounded = value.to(torch.get_default_dtype())
    return rounded if bool((rounded.double() == value.double()).all()) else value.double()


def arguments_for(program: Program, data: Dataset | Table | None) -> CallArguments:
    """Select the data that a program takes as arguments.

    Of a table these are the columns that its model names. If it names none, all columns are stacked
    to one argument.
    """
    if data is None:
        return CallArguments((), {})
    if isinstance(data, Dataset):
        return CallArguments(data.args, dict(data.kwargs))
    fn: Any = program.model.fn
    names = inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn).parameters
    taken = {name: _number(read()) for name, read in data.items() if name in names}
    if taken:
        return CallArguments((), taken)
    return CallArguments((torch.stack([_number(read()) for read in data.values()], -1),), {})


def load_state(program: Program, path: Path | None, given: CallArguments) -> None:
    """Give the program its saved parameters."""
    if path is None:
        return
    if not path.is_file():
        raise ValueError(f"there is no file {path} with parameters; write one with program.save")
    program.initialise(*given.args, **given.kwargs)
    program.load(path)


def program_names(references: Sequence[str]) -> list[str]:
    """Return the names of programs for use in tables.

    These are the programs' own names, or their references where names are alike.

    Example:
        >>> program_names(["a.py:line", "b.py:program"]), program_names(["a.py:line", "b.py:line"])
        (['line', 'b'], ['a.py:line', 'b.py:line'])
    """
    parts = [reference.rpartition(":") for reference in references]
    short = [Path(path).stem if name == "program" else name for path, _, name in parts]
    return short if len(set(short)) == len(short) else list(references)
