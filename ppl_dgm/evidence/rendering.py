"""An evidence as HTML and LaTeX."""

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ppl_dgm.markup import SIGNS, decimals, error_text, html_facts, latex_table, minus

if TYPE_CHECKING:
    from ppl_dgm.evidence.result import Evidence

__all__ = ["evidence_html", "evidence_latex"]


def evidence_html(evidence: "Evidence") -> str:
    """Render an evidence as an HTML table of facts."""
    data = evidence.log_z.numel()
    number = minus(f"{evidence.total:.4f} ± {error_text(float(evidence.total_std_error))} nats")
    facts = {
        "log p": f"{number} ({evidence.bound}, by {evidence.estimator})",
        "of": f"{data} data" if evidence.target == "datum" else "one data set",
        "observed numbers": str(evidence.num_dims),
        "seconds": f"{evidence.seconds:.1f}",
    }
    if evidence.target == "datum":
        facts["per datum"] = minus(f"{evidence.total / data:.4f} nats")
    facts |= {name: summary(value) for name, value in evidence.diagnostics.items()}
    return html_facts("Evidence", facts, evidence.warnings)


def evidence_latex(evidence: "Evidence") -> str:
    """Render an evidence as a LaTeX table for a paper."""
    each, data = evidence.target == "datum", evidence.log_z.numel()
    scale = 1 / data if each else 1.0
    of = f"{data} data" if each else "one data set"
    unit = "nats per datum" if each else "nats"
    log_p, error = float(evidence.total) * scale, float(evidence.total_std_error) * scale
    spread = float(evidence.log_z.std()) / math.sqrt(data) if each and data > 1 else 0.0
    digits = decimals([error, spread])
    shown = lambda value: f"{value:.{digits}f}" if value > 0 else "–"  # noqa: E731
    bits = -log_p / scale / evidence.num_dims / math.log(2) if evidence.num_dims else math.nan
    columns = {
        "": evidence.estimator,
        "log p": minus(f"{SIGNS[evidence.bound]} {log_p:.{digits}f}"),
        "± MC": "–" if evidence.bound == "exact" else shown(error),
        **({"± data": shown(spread)} if each else {}),
        "bits/dim": "–" if math.isnan(bits) else minus(f"{bits:.3f}"),
    }
    notes = [f"log p of {of} ({evidence.num_dims} numbers), {unit}"]
    notes += [f"! {warning}" for warning in evidence.warnings]
    return latex_table([list(columns), list(columns.values())], notes)


def summary(value: Any) -> str:
    """Format a diagnostic in a few characters.

    A tensor of many values is shown by its range.
    """
    if not isinstance(value, Tensor):
        return str(value)[:80]
    if value.numel() == 1:
        return minus(f"{value.item():.4g}")
    values = value.detach().double()
    if not values.numel():
        return "none"
    low, high, mean = (minus(f"{one:.4g}") for one in (values.min(), values.max(), values.mean()))
    return f"{low} to {high}, mean {mean} {list(values.shape)}"
