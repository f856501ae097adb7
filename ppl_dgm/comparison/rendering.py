"""A comparison as text, as HTML and as a forest plot."""

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ppl_dgm.comparison.rows import SENSES, SIGNS, Row
from ppl_dgm.reporting.plots import MUTED, ForestRow, add_key, forest_axes, plot_forest

if TYPE_CHECKING:
    from ppl_dgm.comparison.comparison import Comparison


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
    reference = "best" if best and comparison.reference == best.name else comparison.reference
    header = ["", "log p", "± MC", *(["± data"] if per_datum else []), "bits/dim"]
    header += (
        [f"Δ to {reference}", "± paired", "weight"]
        if per_datum
        else ["log BF", "± MC", "p(M|D)", "± MC"]
    )
    header += ["by"]
    scale = 1 / comparison.num_data if per_datum else 1.0
    digits = decimals([row.difference_error * scale for row in comparison.rows])
    body = [row_cells(row, scale, digits, per_datum) for row in comparison.rows]
    for row in body:
        row[0] += " ↑" if row[0].removesuffix(" !") in (comparison.improving or ()) else ""
    return [header, *body]


def row_cells(row: Row, scale: float, digits: int, per_datum: bool) -> list[str]:
    """One row of the table as strings."""
    number = lambda value: f"{value * scale:.{digits}f}".replace("-", "−")  # noqa: E731
    error = lambda value: "–" if math.isnan(value) or value == 0 else f"{value * scale:.2g}"  # noqa: E731
    is_reference = row.difference == 0 and row.difference_error == 0
    return [
        row.name + ("" if row.reliable else " !"),
        f"{SIGNS[row.bound]} {number(row.log_z)}",
        error(row.std_error),
        *([error(row.sampling_error)] if per_datum else []),
        "–" if math.isnan(row.bits_per_dim) else f"{row.bits_per_dim:.3f}".replace("-", "−"),
        "–" if is_reference else f"{SIGNS[row.difference_sense]} {number(row.difference)}",
        error(row.difference_error),
        "–" if math.isnan(row.weight) else f"{row.weight:.{2 if per_datum else 3}f}",
        *([] if per_datum else [f"{row.weight_error:.2g}" if row.weight_error else "–"]),
        row.estimator,
    ]


def decimals(errors: Sequence[float]) -> int:
    """Digits after the point that show the smallest error with two digits, between 1 and 4."""
    known = [error for error in errors if error > 0 and math.isfinite(error)]
    return min(max(1 - math.floor(math.log10(min(known))), 1), 4) if known else 3


def notes(comparison: "Comparison") -> list[str]:
    """Lines under the table: signs, weights or Bayes factors, and every alarm."""
    used = {row.bound for row in comparison.rows} | {
        row.difference_sense for row in others(comparison)
    }
    lines = [", ".join(f"{sign} {SENSES[sense]}" for sense, sign in SIGNS.items() if sense in used)]
    if comparison.target == "datum":
        lines.append(
            "± MC: of the estimator; ± data: over data; ± paired: of the difference over data; weight: stacking"
        )
    else:
        lines += [
            str(comparison.bayes_factor(comparison.reference, row.name))
            for row in others(comparison)
        ]
        if others(comparison) and used & {"lower", "upper"}:
            lines.append("p(M|D): of bounds as if they were exact; ± MC does not have their gaps")
    unranked = [row.name for row in comparison.rows if not row.ranked]
    if unranked:
        lines.append(f"no weight, nor best: {', '.join(unranked)} (alarm, upper bound or withheld)")
    if comparison.improving:
        lines.append(
            f"↑ still improving when its fit ended, more steps would raise it: {', '.join(comparison.improving)}"
        )
    if comparison.improving is not None:
        lines.append("each program was fitted once: no error has the spread over seeds of training")
    return lines + [
        f"! {row.name}: {warning}" for row in comparison.rows for warning in row.warnings
    ]


def others(comparison: "Comparison") -> list[Row]:
    """All rows but the reference."""
    return [row for row in comparison.rows if row.name != comparison.reference]


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines: names and methods to the left, numbers to the right."""
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


def html_table(
    rows: Sequence[Sequence[str]], caption: str, lines: Sequence[str], reliable: Sequence[bool]
) -> str:
    """The same as HTML, rows not to be believed in red."""
    align = ["left", *["right"] * (len(rows[0]) - 2), "left"]

    def cell(tag: str, text: str, side: str) -> str:
        return f'<{tag} style="text-align:{side};padding:3px 10px">{escape(text)}</{tag}>'

    def line(tag: str, row: Sequence[str]) -> str:
        return "".join(cell(tag, text, side) for text, side in zip(row, align, strict=True))

    body = "".join(
        f"<tr{'' if fine else ' style=' + chr(34) + 'color:#c62828' + chr(34)}>{line('td', row)}</tr>"
        for row, fine in zip(rows[1:], reliable, strict=True)
    )
    below = "<br>".join(escape(text) for text in lines)
    return (
        f'<table class="comparison"><caption style="text-align:left">{escape(caption)}</caption>'
        f"<thead><tr>{line('th', rows[0])}</tr></thead><tbody>{body}</tbody></table>"
        f'<p class="notes" style="font-size:90%">{below}</p>'
    )


def plot_comparison(comparison: "Comparison") -> NDArray[Any]:
    """Two forests side by side: evidences, and their differences to the reference."""
    per_datum = comparison.target == "datum"
    scale = 1 / comparison.num_data if per_datum else 1.0
    unit = "nats per datum" if per_datum else "nats"
    what = "difference to" if per_datum else "log Bayes factor over"
    axes = forest_axes(len(comparison.rows), ["log p", f"{what} {comparison.reference}"])
    plot_forest([evidence_row(row, scale) for row in comparison.rows], unit, axes[0])
    plot_forest([difference_row(row, scale) for row in comparison.rows], unit, axes[1])
    axes[1].set_yticklabels([])
    axes[1].axvline(0.0, color=MUTED, lw=0.9, zorder=1)
    bounds = [row.bound for row in comparison.rows] + [
        row.difference_sense for row in others(comparison)
    ]
    add_key(axes[0].figure, bounds, all(row.reliable for row in comparison.rows))
    return axes


def evidence_row(row: Row, scale: float) -> ForestRow:
    """The line of a program in the forest of evidences."""
    wide = 0.0 if math.isnan(row.sampling_error) else math.hypot(row.sampling_error, row.std_error)
    return ForestRow(
        row.name, row.log_z * scale, row.std_error * scale, wide * scale, row.bound, row.reliable
    )


def difference_row(row: Row, scale: float) -> ForestRow:
    """The line of a program in the forest of differences."""
    error = row.difference_error * scale
    return ForestRow(
        row.name, row.difference * scale, 0.0, error, row.difference_sense, row.reliable
    )
