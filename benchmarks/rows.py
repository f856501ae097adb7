"""Rows of a benchmark, kept in a CSV file as they come, so that none is made twice."""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, str]


@dataclass(frozen=True)
class Rows:
    """A CSV file of rows, told apart by the columns named `keys`."""

    path: Path
    keys: tuple[str, ...]

    def read(self) -> list[Row]:
        """All rows, as written."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def find(self, *values: Any) -> Row | None:
        """The row with these values of its keys, if it is there."""
        wanted = [str(value) for value in values]
        return next((row for row in self.read() if [row[key] for key in self.keys] == wanted), None)

    def fill(self, runs: Iterable[tuple], make: Callable[..., dict[str, Any]]) -> None:
        """Make the rows that are not there, each named by its keys."""
        for keys in runs:
            if self.find(*keys) is None:
                made = make(*keys)
                self.add(made)
                print(made, flush=True)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row, numbers to four digits after the point."""
        self.path.parent.mkdir(exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(
                {
                    name: round(value, 4) if isinstance(value, float) else value
                    for name, value in row.items()
                }
            )


def markdown(head: list[str], body: list[list[str]]) -> str:
    """A table, its first column to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
