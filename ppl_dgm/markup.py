"""Tables of text as HTML and as LaTeX.

HTML is for notebooks and pages, LaTeX with booktabs for papers.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "SIGNS",
    "decimals",
    "error_text",
    "from_template",
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
    """Bind signs to their numbers."""
    return re.sub(r"(?<=[±≈≥≤=?]) (?=[−-]?\d)| (?=±)", "\u00a0", text)


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
    header, *body = rows
    return from_template(
        "table.html",
        header=header,
        body=body,
        caption=caption,
        notes=notes,
        alarmed=alarmed,
        left=left,
        meanings=meanings or {},
    )


def html_facts(title: str, facts: Mapping[str, str], alarms: Sequence[str] = ()) -> str:
    """Render named facts as an HTML table of two columns.

    Alarms stand below it in red.
    """
    return from_template("facts.html", title=title, facts=facts, alarms=alarms)


def from_template(template: str, **values: Any) -> str:
    """Fill a template; text is escaped."""
    return _templates().get_template(template).render(alarm=ALARM, **values)


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader  # noqa: PLC0415 - only pages need it

    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["unbroken"] = _unbroken
    return found


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
    import pandas as pd  # noqa: PLC0415 - only papers need it

    header, *body = rows
    form = [latex_text if place in left else latex_number for place in range(len(header))]
    cells = [[as_(text) for as_, text in zip(form, row, strict=True)] for row in body]
    styler = pd.DataFrame(cells).style.hide(axis="index")
    styler.relabel_index([latex_text(text) for text in header], axis="columns")
    columns = "".join("l" if place in left else "r" for place in range(len(header)))
    table = styler.to_latex(hrules=True, column_format=columns)
    return "\n".join([*(f"% {note}" for note in notes), table.rstrip()])


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
