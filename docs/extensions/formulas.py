"""Formulas of pages and notebooks as MathML, which browsers draw without a script."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

MARKED = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.S
)
CELL = re.compile(r'<div class="[^"]*jp-MarkdownOutput.*?</div>', re.S)
NAMED = re.compile(r"(<mi>(?:log|exp)</mi>)(?=<m(?:i|n|over|sub|sup|frac|o>&#x02211;)\b)")
DOLLARS = re.compile(r"(?P<marks>\$\$?)(?P<tex>[^$]+)(?P=marks)")


def on_page_content(html: str, **kwargs: Any) -> str:
    """Convert the formulas of a page."""
    drawn = MARKED.sub(lambda found: _drawn(found["tex"], found["tag"] == "div"), html)
    in_cell = lambda found: _drawn(found["tex"], found["marks"] == "$$")  # noqa: E731
    return CELL.sub(lambda cell: DOLLARS.sub(in_cell, cell[0]), drawn)


def _drawn(tex: str, alone: bool = False) -> str:
    formula = convert(unescape(tex), display="block" if alone else "inline")
    formula = NAMED.sub(r'\1<mspace width="0.17em"/>', formula)  # log p, not logp
    return f'<div class="formula">{formula}</div>' if alone else formula
