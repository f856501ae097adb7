"""The table of example programs: accepted, fitted as by SVI, compiled, right, exported.

    python benchmarks/acceptance.py [--columns eager compiled] [--page]

Programs and checks are those of `tests/acceptance`. Cells go to a CSV file as they are made, so
that none is made twice; `--page` writes the page of what is there.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from provenance import provenance
from rows import Rows, markdown

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from acceptance import checks  # noqa: E402

CELLS = Rows(HERE / "results" / "acceptance.csv", ("program", "column"))
PAGE = HERE / "results" / "acceptance.md"
HEADS = {
    "accepted": "accepted",
    "eager": "steps of SVI",
    "captured": "captured",
    "compiled": "compiled",
    "right": "log evidence",
    "exported": "ArviZ",
}
NOTE = """\
Programs written anew after Pyro's examples and tutorials and NumPyro's gallery, with small data.
*accepted*: model, guide and data pass all checks. *steps of SVI*: five eager steps of `fit` have
the losses and end at the parameters of `pyro.infer.SVI` at the same seeds, in double; the figure is
the largest relative difference of a loss. *captured*: the same steps by a captured graph against
eager ones. *compiled*: by machine code, `compile=True`. *log evidence*: by `evidence.auto`, within
four standard errors and 0.02 nats of the truth by quadrature, enumeration or closed form, where one
is known. *ArviZ*: posterior draws exported by `to_arviz`, of so many sites."""


def cell(column: str, name: str) -> tuple[str, bool]:
    """What stands in a cell, and whether the check was passed."""
    try:
        return checks.column(column, name), True
    except Exception as error:
        text = str(error).replace(f"{HERE.resolve().parent}/", "")
        return f"{type(error).__name__}: {' '.join(text.split())[:120]}", False


def fill(columns: list[str]) -> None:
    """Make the cells that are not there."""
    for column in columns:
        for name in checks.NAMES:
            if CELLS.find(name, column) is None:
                start = time.perf_counter()
                text, passed = cell(column, name)
                seconds = time.perf_counter() - start
                row = {"program": name, "column": column, "passed": passed, "cell": text}
                CELLS.add({**row, "seconds": seconds})


def page() -> str:
    """The table and its counts."""
    made = {(row["program"], row["column"]): row for row in CELLS.read()}
    counts = []
    for column, head in HEADS.items():
        cells = [made[name, column] for name in checks.NAMES if (name, column) in made]
        refused = sum(row["cell"].startswith("refused") for row in cells)
        passed = sum(row["passed"] == "True" for row in cells) - refused
        empty = sum(row["cell"] in ("unknown", "nothing to draw") for row in cells)
        row = [head, passed - empty, refused, len(cells) - passed - refused, empty]
        counts.append([*map(str, row), str(len(checks.NAMES) - len(cells))])
    body = [
        [name, *(made.get((name, column), {}).get("cell", "") for column in HEADS)]
        for name in checks.NAMES
    ]
    parts = [
        f"# {len(checks.NAMES)} example programs",
        NOTE,
        markdown(["column", "passed", "refused", "failed", "not applicable", "not run"], counts),
        markdown(["program", *HEADS.values()], body),
        provenance("1 to 3, in every program"),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Fill the table and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", nargs="*", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--page", action="store_true", help="make no cells")
    args = parser.parse_args()
    torch.set_num_threads(1)
    fill([] if args.page else args.columns)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
