"""Tables of text as HTML and as LaTeX.

HTML is for notebooks and pages, LaTeX with booktabs for papers.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape

__all__ = [
    "SIGNS",
    "decimals",
    "error_text",
    "html_facts",
    "html_table",
    "latex_table",
    "latex_text",
    "minus",
    "with_error",
]

ALARM = "#c62828"
SIGNS: dict[str, str] = {"exact": "=", "lower": "≥", "upper": "≤", "estimate": "≈", "unknown": "?"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
_SIGNS = {
    "−": "-",
    "±": r"\pm ",
    "≈": r"\approx ",
    "≥": r"\ge ",
    "≤": r"\le ",
    "=": "",
    "?": r"\mathrel{?} ",
    "Δ": r"\Delta",
}


def minus(text: str) -> str:
    """Write negative numbers with a minus sign."""
    return text.replace("-", "−")


def with_error(number: str, error: str) -> str:
    """A number and its error in one cell."""
    return number if "–" in (number, error) else f"{number} ± {error}"


def decimals(errors: Sequence[float]) -> int:
    """Choose the number of decimals for a set of errors.

    It shows the smallest error with two digits, and is between 1 and 4.
    """
    known = [error for error in errors if error > 0 and math.isfinite(error)]
    return min(max(1 - math.floor(math.log10(min(known))), 1), 4) if known else 3


def error_text(error: float) -> str:
    """Write an error with two digits that count.

    Example:
        >>> error_text(0.2), error_text(123.4), error_text(0.00321)
        ('0.20', '123', '0.0032')
    """
    if not 1e-4 <= error < 1e5:
        return f"{error:.2g}"
    return f"{error:.{max(1 - math.floor(math.log10(error)), 0)}f}"


def _unbroken(text: str) -> str:
    """Escape text, with signs bound to their numbers."""
    return re.sub(r"(?<=[±≈≥≤=?]) (?=[−-]?\d)| (?=±)", "\u00a0", escape(text))


def html_table(
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    notes: Sequence[str] = (),
    alarmed: Collection[int] = (),
    left: Collection[int] = (0,),
    meanings: Mapping[str, str] | None = None,
) -> str:
    """Render rows of text as an HTML table.

    The first row is the header. The table scrolls where it is too wide, and is readable on light
    and dark backgrounds.

    Args:
        rows: the cells; a sign never breaks from its number.
        caption: above the table.
        notes: lines below it.
        alarmed: numbers of the rows, the header being 0, that are not to be believed: in red.
        left: columns that are text, aligned to the left; all others are numbers.
        meanings: what a heading means, shown where the pointer rests on it.
    """
    told = meanings or {}
    lines = []
    for place, row in enumerate(rows):
        cells = [
            _cell("td" if place else "th", text, i in left, told.get(text, "") if not place else "")
            for i, text in enumerate(row)
        ]
        colour = f' style="color:{ALARM}"' if place in alarmed else ""
        lines.append(f"<tr{colour}>{''.join(cells)}</tr>")
    above = (
        f'<p class="caption" style="margin:8px 0 2px">{_unbroken(caption)}</p>' if caption else ""
    )
    below = "<br>".join(map(_unbroken, notes))
    return (
        f'{above}<div class="scrolls" style="overflow-x:auto"><table class="ppl-dgm">'
        f"<thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody></table></div>"
        + (f'<p class="notes" style="font-size:90%">{below}</p>' if below else "")
    )


def html_facts(title: str, facts: Mapping[str, str], alarms: Sequence[str] = ()) -> str:
    """Render named facts as an HTML table of two columns.

    Alarms stand below it in red.
    """
    body = "".join(
        f"<tr>{_cell('th', name, True)}{_cell('td', value, True)}</tr>"
        for name, value in facts.items()
    )
    red = "".join(
        f'<p style="color:{ALARM};margin:2px 10px">! {_unbroken(text)}</p>' for text in alarms
    )
    return (
        f'<p class="caption" style="margin:8px 0 2px"><b>{escape(title)}</b></p>'
        '<div class="scrolls" style="overflow-x:auto"><table class="ppl-dgm">'
        f"<tbody>{body}</tbody></table></div>{red}"
    )


def _cell(tag: str, text: str, left: bool, meaning: str = "") -> str:
    side = "left" if left else "right"
    told = f' title="{escape(meaning)}"' if meaning else ""
    wrap = "" if left else ";white-space:nowrap"
    return (
        f'<{tag}{told} style="text-align:{side};padding:3px 10px{wrap}">{_unbroken(text)}</{tag}>'
    )


def latex_table(
    rows: Sequence[Sequence[str]], notes: Sequence[str] = (), left: Collection[int] = (0,)
) -> str:
    r"""Render rows of text as a LaTeX table.

    The first row is the header. The document needs `\usepackage{booktabs}`.

    Args:
        rows: the cells.
        notes: lines that become comments above the table.
        left: columns that are text; all others are mathematics.

    Example:
        >>> print(latex_table([["", "log p"], ["a_1", "≈ −2.0 ± 0.1"]]))
        \begin{tabular}{lr}
        \toprule
         & log p \\
        \midrule
        a\_1 & $\approx -2.0 \pm 0.1$ \\
        \bottomrule
        \end{tabular}
    """
    header, *body = rows
    columns = "".join("l" if place in left else "r" for place in range(len(header)))
    form = [latex_text if place in left else latex_number for place in range(len(header))]
    lines = [
        *(f"% {note}" for note in notes),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_line([latex_text(text) for text in header]),
        r"\midrule",
        *(_latex_line([as_(text) for as_, text in zip(form, row, strict=True)]) for row in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def latex_text(text: str) -> str:
    """Escape text for LaTeX, with signs as mathematics."""
    escaped = "".join(_LATEX.get(sign, sign) for sign in text)
    for sign in "Δ±≈≥≤−":
        escaped = escaped.replace(sign, f"${_SIGNS[sign].strip()}$")
    return escaped.replace("↑", r"$\uparrow$")


def latex_number(text: str) -> str:
    """Format a number with sign and error as mathematics.

    A dash stands for no number.
    """
    if text in ("", "–"):
        return text.replace("–", "--")
    spaced = "".join(_SIGNS.get(sign, sign) for sign in text)
    return f"${' '.join(spaced.split())}$"
