"""Strict reader of tables of comma-separated values.

No row is lost, invented or rounded.
"""

import csv
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["open_table", "read_table"]

_MISSING = {"", "na", "n/a", "nan", "null", "none"}


def read_table(path: Path) -> dict[str, NDArray]:
    """Read the columns of a table by name.

    Each has shape `[rows]`. Columns without names are called by number.

    A byte-order mark, blank lines at the end and the running number that pandas writes in front
    are taken away; everything that could be read in two ways is refused.

    Raises:
        ValueError: text or a gap where a number should be, rows of different lengths, or a first
            line that may be names or numbers; each with its line.
    """
    return {name: read() for name, read in open_table(path).items()}


def open_table(path: Path) -> dict[str, Callable[[], NDArray]]:
    """Find the columns of a table, yet to be read.

    Text and gaps are no fault of a column that nobody reads.
    """
    lines = _lines(path)
    named = _has_names(path, lines)
    names = lines[0][1] if named else [str(place) for place in range(len(lines[0][1]))]
    rows = lines[1:] if named else lines
    _check_rows(path, names, rows)
    columns = {name: partial(_column, path, rows, i) for i, name in enumerate(names)}
    return _without_index(path, columns)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Read line numbers and fields, without meaningless blank lines."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [
                (n, [f.strip() for f in fields]) for n, fields in enumerate(csv.reader(file), 1)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a table of comma-separated values: {error}") from error
    while lines and not any(lines[-1][1]):
        lines.pop()
    kept = [(number, fields) for number, fields in lines if any(fields)]
    if not kept:
        raise ValueError(f"{path} has no rows")
    if len(kept) < len(lines) and len(kept[0][1]) == 1:
        blank = next(number for number, fields in lines if not any(fields))
        raise ValueError(
            f"{path}, line {blank}: blank, in a table of one column; expected a number. Delete the "
            "line, or the datum that is missing"
        )
    return kept


def _has_names(path: Path, lines: list[tuple[int, list[str]]]) -> bool:
    first = lines[0][1]
    if any(not _is_number(field) and field.lower() not in _MISSING for field in first):
        return True
    if first[0] == "" and all(map(_is_number, first[1:])):  # the corner above pandas' index
        return len(first) > 1
    if _counts_up(first) and not all(_counts_up(fields) for _, fields in lines[1:6]):
        raise ValueError(
            f"{path}, line 1: {','.join(first)[:60]} may be names or a datum. Give the columns "
            "names that are words, or take the line away"
        )
    return False


def _counts_up(fields: list[str]) -> bool:
    """Return whether fields are increasing whole numbers.

    Numbers that serve as column names are like that.
    """
    if len(fields) < 2 or not all(field.isdigit() for field in fields):
        return False
    values = list(map(int, fields))
    return all(low < high for low, high in pairwise(values))


def _check_rows(path: Path, names: list[str], rows: list[tuple[int, list[str]]]) -> None:
    if not rows:
        raise ValueError(f"{path} has a line of names and no rows")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"{path}, line 1: the name {twice!r} stands twice; give each column its own"
        )
    for number, fields in rows:
        if len(fields) != len(names):
            raise ValueError(
                f"{path}, line {number}: {len(fields)} fields; expected {len(names)}, one a column"
            )


def _column(path: Path, rows: list[tuple[int, list[str]]], place: int) -> NDArray:
    """Convert one column to integers, truth values or doubles.

    The type is the one that pandas reads.
    """
    import pandas as pd  # noqa: PLC0415 - seconds of import, for few users

    texts = [fields[place] for _, fields in rows]
    values = pd.Series(texts).map({"True": True, "False": False})
    if not values.isna().any():
        return values.to_numpy(dtype=bool)
    numbers = pd.Series(pd.to_numeric(pd.Series(texts), errors="coerce"))
    for (line, fields), bad in zip(rows, numbers.isna(), strict=True):
        if bad:
            raise ValueError(
                f"{path}, line {line}: expected a number, got {fields[place]!r}. Encode what is "
                "not a number; leave out rows with gaps, or mask them in the program"
            )
    return numbers.to_numpy(copy=True)


def _without_index(
    path: Path, columns: dict[str, Callable[[], NDArray]]
) -> dict[str, Callable[[], NDArray]]:
    first = next(iter(columns))
    if first not in ("", "Unnamed: 0") or len(columns) == 1:
        return columns
    values = columns.pop(first)()
    if not np.array_equal(values, np.arange(len(values))):
        raise ValueError(
            f"{path}, line 1: the first column has no name and is no running number; name it, "
            "or take it away"
        )
    return columns


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return field.lower() not in _MISSING
