"""Programs and data from the user's files."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppl_dgm.data import Dataset, load_array
from ppl_dgm.program import Program


def load_program(reference: str) -> Program:
    """A program from `path/to/file.py:name`, where `name` is a Program or a function without arguments that makes one.

    The file is run, as by `python file.py`, with its folder first on the path of imports.

    Raises:
        ValueError: a reference of another form, no such file or name, or something else under that name.
    """
    path, name = split_reference(reference)
    module = run_file(path)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ValueError(f"{path} has no {name!r}, only {public}")
    found = getattr(module, name)
    is_maker = callable(found) and not isinstance(found, Program) and takes_nothing(found)
    made = run_lines(path, found) if is_maker else found
    if not isinstance(made, Program):
        raise ValueError(
            f"{name!r} in {path} is a {type(made).__name__}; expected a Program, or a function without arguments that "
            "makes one: program = ppl_dgm.Program(model, guide)"
        )
    return made


def split_reference(reference: str) -> tuple[Path, str]:
    """File and name."""
    path, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier() or not path.endswith(".py"):
        raise ValueError(f"{reference!r} does not name a program; expected path/to/file.py:name")
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    return Path(path).resolve(), name


def run_file(path: Path) -> Any:
    """Import a file as a module."""
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    run_lines(path, lambda: spec.loader.exec_module(module))
    return module


def run_lines(path: Path, run: Callable[[], Any]) -> Any:
    """Run code of a file, its folder first on the path of imports; what goes wrong in it is told with its line."""
    sys.path.insert(0, str(path.parent))
    try:
        return run()
    except Exception as error:
        line = last_line(error, path)
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))


def last_line(error: BaseException, path: Path) -> int | str:
    """The last line of the file that an error passed through."""
    lines, frame = [], error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(path):
            lines.append(frame.tb_lineno)
        frame = frame.tb_next
    return lines[-1] if lines else getattr(error, "lineno", None) or "?"


def takes_nothing(function: Any) -> bool:
    """Whether a function or class can be called without arguments and needs none."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_argcount + code.co_kwonlyargcount == 0


def load_data(path: Path | None) -> Dataset | None:
    """The data in a file: its test split where it has splits, and all of it otherwise."""
    if path is None:
        return None
    data = load_array(path)
    has_test = data.split_sizes is not None and data.split_sizes[2] > 0
    return data.test if has_test else data


def load_state(program: Program, path: Path | None, data: Dataset | None) -> None:
    """Give the program its saved parameters."""
    if path is None:
        return
    if not path.is_file():
        raise ValueError(f"there is no file {path} with parameters; write one with program.save")
    program.initialise(*arguments(data)[0], **arguments(data)[1])
    program.load(path)


def arguments(data: Dataset | None) -> tuple[tuple, dict[str, Any]]:
    """Positional and named arguments for the program."""
    return ((), {}) if data is None else (data.args, dict(data.kwargs))


def program_name(reference: str) -> str:
    """What tables call the program: its name, or its file where it is just called program."""
    path, _, name = reference.rpartition(":")
    return Path(path).stem if name == "program" else name
