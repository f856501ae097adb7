"""A comparison as text, HTML and LaTeX."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ppl_dgm.comparison.rows import SENSES, Row
from ppl_dgm.markup import (
    SIGNS,
    decimals,
    error_text,
    html_table,
    latex_table,
    latex_text,
    minus,
    with_error,
)

if TYPE_CHECKING:
    from ppl_dgm.comparison.comparison import Comparison

__all__ = ["cells", "html", "latex", "notes", "others", "text_table", "title", "words"]

WORDS = {
    "log p": "log probability (density) of the data under the program, in nats; higher is better",
    "± MC": "standard error of the estimator: what more particles would make smaller",
    "± data": "standard error over data: what more data would make smaller",
    "± seeds": "standard deviation of log p over trainings from different seeds",
    "bits/dim": "minus log p in bits for each observed number; lower is better",
    "Δ": "log p minus that of the row it is compared to, on the same data",
    "± paired": "standard error of that difference over data, which both programs share",
    "weight": "stacking weight: its share in the mixture of programs that predicts the data best",
    "log BF": "log Bayes factor: log p minus that of the row it is compared to",
    "p(M|D)": (
        "probability of the program given the data, by prior odds that are even unless others "
        "were given"
    ),
    "by": "the method that gave the number",
}


def title(comparison: "Comparison") -> str:
    """What the table is about."""
    numbers = f"{comparison.num_dims} numbers"
    if comparison.target == "dataset":
        return f"log p of one data set ({numbers}), nats"
    return f"log p of {comparison.num_data} data ({numbers}), nats per datum"


def cells(comparison: "Comparison") -> list[list[str]]:
    """The table as strings, a header first."""
    per_datum = comparison.target == "datum"
    best = comparison.best
    reference = one_line(comparison.reference)
    reference = "best" if best and comparison.reference == best.name else reference
    again = any(not math.isnan(row.training_spread) for row in comparison.rows)
    errors = ["± MC", *(["± data"] if per_datum else []), *(["± seeds"] if again else [])]
    header = ["", "log p", *errors, "bits/dim"]
    header += (
        [f"Δ to {reference}", "± paired", "weight"]
        if per_datum
        else ["log BF", "± MC", "p(M|D)", "± MC"]
    )
    header += ["by"]
    scale = 1 / comparison.num_data if per_datum else 1.0
    digits = decimals([row.difference_error * scale for row in comparison.rows])
    body = [row_cells(row, scale, digits, per_datum, again) for row in comparison.rows]
    for row, shown in zip(comparison.rows, body, strict=True):
        shown[0] += " ↑" if row.name in (comparison.improving or ()) else ""
    return [header, *body]


def row_cells(row: Row, scale: float, digits: int, per_datum: bool, again: bool) -> list[str]:
    """One row of the table as strings."""
    number = lambda value: minus(f"{value * scale:.{digits}f}")  # noqa: E731
    unknown = lambda value: math.isnan(value) or value == 0  # noqa: E731
    error = lambda value: "–" if unknown(value) else error_text(value * scale)  # noqa: E731
    weight_error = "–" if unknown(row.weight_error) else error_text(row.weight_error)
    is_reference = row.difference == 0 and row.difference_error == 0
    return [
        one_line(row.name) + ("" if row.reliable else " !"),
        f"{SIGNS[row.bound]} {number(row.log_z)}",
        "–" if row.bound == "exact" else error(row.std_error),
        *([error(row.sampling_error)] if per_datum else []),
        *([error(row.training_spread)] if again else []),
        "–" if math.isnan(row.bits_per_dim) else minus(f"{row.bits_per_dim:.3f}"),
        "–" if is_reference else f"{SIGNS[row.difference_sense]} {number(row.difference)}",
        error(row.difference_error),
        "–" if math.isnan(row.weight) else f"{row.weight:.{2 if per_datum else 3}f}",
        *([] if per_datum else [weight_error]),
        row.estimator,
    ]


def one_line(text: str) -> str:
    """Join lines: names of programs and warnings may have several."""
    return " ".join(text.split())


def notes(comparison: "Comparison") -> list[str]:
    """Compose the notes below a comparison table.

    They explain signs, give weights or Bayes factors, and list every alarm.
    """
    used = {row.bound for row in comparison.rows} | {
        row.difference_sense for row in others(comparison)
    }
    lines = [", ".join(f"{sign} {SENSES[sense]}" for sense, sign in SIGNS.items() if sense in used)]
    if comparison.target == "datum":
        lines.append(
            "± MC: of the estimator; ± data: over data; ± paired: of the difference over data; "
            "weight: stacking"
        )
    else:
        lines += [
            str(comparison.bayes_factor(comparison.reference, row.name))
            for row in others(comparison)
        ]
        if others(comparison) and used & {"lower", "upper"}:
            lines.append("p(M|D): of bounds as if they were exact; ± MC does not have their gaps")
    lines += measure_notes(comparison)
    lines += weight_notes(comparison)
    if comparison.improving:
        lines.append(
            "↑ still improving when its fit ended, more steps would raise it: "
            f"{', '.join(comparison.improving)}"
        )
    if any(not math.isnan(row.training_spread) for row in comparison.rows):
        lines.append(
            "± seeds: of log p over trainings from different seeds; all else is of the first"
        )
    elif comparison.improving is not None:
        lines.append("each program was fitted once: no error has the spread over seeds of training")
    lines += [f"! {row.name}: {warning}" for row in comparison.rows for warning in row.warnings]
    return [one_line(line) for line in lines]


def measure_notes(comparison: "Comparison") -> list[str]:
    """Say where probabilities stand beside densities."""
    kinds: dict[str, list[str]] = {}
    for name, evidence in comparison.evidences.items():
        if evidence.measure is not None:
            kinds.setdefault(evidence.measure, []).append(name)
    if len(kinds) < 2:
        return []
    told = {"probability": "probabilities", "density": "densities", "both": "both in one"}
    beside = " beside ".join(f"{told[kind]} ({', '.join(kinds[kind])})" for kind in kinds)
    line = (
        f"unlike measures: {beside}. They are comparable where data are one apart and densities "
        "hardly change over that; elsewhere a density exceeds any probability"
    )
    return [line]


def weight_notes(comparison: "Comparison") -> list[str]:
    """Say which rows have no weight, and why."""
    weight, is_among = (
        ("weights", "weights are") if comparison.target == "datum" else ("p(M|D)", "p(M|D) is")
    )
    unranked = [row.name for row in comparison.rows if not row.ranked]
    num_ranked = len(comparison.rows) - len(unranked)
    lines = []
    if unranked:
        among = f"; {is_among} among the other rows alone" if num_ranked > 1 else ""
        lines.append(
            f"no weight, nor best: {', '.join(unranked)} (alarm, upper bound or withheld){among}"
        )
    if num_ranked == 1:
        lines.append(f"no {weight}: one row alone could have it, and a share among one is no news")
    return lines


def others(comparison: "Comparison") -> list[Row]:
    """All rows but the reference."""
    return [row for row in comparison.rows if row.name != comparison.reference]


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows as aligned lines of text.

    Names and methods are aligned to the left, numbers to the right.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = {0, len(widths) - 1}
    lines = [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [lines[0].rstrip(), "-" * max(map(len, lines)), *(line.rstrip() for line in lines[1:])]


def html(comparison: "Comparison") -> str:
    """Render the comparison as an HTML table.

    Unreliable rows are red. Headings are explained where the pointer rests.
    """
    rows = cells(comparison)
    return html_table(
        rows,
        caption=title(comparison),
        notes=notes(comparison),
        alarmed=[i for i, row in enumerate(comparison.rows, 1) if not row.reliable],
        left=(0, len(rows[0]) - 1),
        meanings=words(comparison),
    )


def meanings(header: Sequence[str]) -> dict[str, str]:
    """What each heading of a table means, in a sentence."""
    return {
        name: WORDS[word] for name in header for word in [name.split(" to ")[0]] if word in WORDS
    }


def words(comparison: "Comparison") -> dict[str, str]:
    """Explain the headings of a comparison, one sentence each."""
    return meanings(cells(comparison)[0])


def latex(comparison: "Comparison") -> str:
    """Render the comparison as a LaTeX table for a paper.

    It has only the columns that a paper shows: log p, bits per dimension, difference and weight.
    """
    per_datum = comparison.target == "datum"
    wanted = [
        "log p",
        "bits/dim",
        "Δ" if per_datum else "log BF",
        "weight" if per_datum else "p(M|D)",
    ]
    header, *body = cells(comparison)
    places = [next(i for i, name in enumerate(header) if name.startswith(word)) for word in wanted]
    errors = {places[0]: places[0] + 1 + per_datum, places[2]: places[2] + 1}
    best = comparison.best
    table = [["", *(header[i] for i in places)]]
    for row in body:
        numbers = [with_error(row[i], row[errors[i]] if i in errors else "–") for i in places]
        table.append([row[0], *numbers])
    told = [title(comparison), *notes(comparison)]
    found = latex_table(
        table, [*told, "± of log p: over data" if per_datum else "± of log p: Monte Carlo"]
    )
    name = latex_text(one_line(best.name)) if best else ""
    return found.replace(f"\n{name} &", f"\n\\textbf{{{name}}} &") if best else found
