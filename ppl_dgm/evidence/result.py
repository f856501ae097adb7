"""Evidence, the common result of all estimators."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.estimate import BoundKind, own_errors
from ppl_dgm.evidence.rendering import evidence_html, evidence_latex

__all__ = ["Evidence"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Log marginal likelihood of data under a program.

    It comes with its error and a statement of what the number is: exact, a bound or an estimate.

    Attributes:
        log_z: nats, float64: `[data]` (target `"datum"`) or `[]` (target `"dataset"`).
        std_error: Monte Carlo standard error of `log_z`, same shape; zero where exact.
        bound: `"exact"`; `"lower"` or `"upper"` where the expectation is a bound; `"estimate"`
            where it is consistent.
        target: `"datum"`: log p(x_i) of each; `"dataset"`: log p(D) with global latents integrated
            out.
        estimator: name of the method.
        diagnostics: tensors and numbers by standard names (`ess`, `pareto_k`, `acceptance`,
            `r_hat`, `gap`, ...).
        warnings: why the number should not be believed; empty if nothing speaks against it.
        num_dims: observed numbers in all, for bits per dimension.
        digest: identifies the observed values; `compare` refuses unlike ones.
        shared_std_error: the part of every datum's standard error that is common to all: that of
            the log partition function of an unnormalised density. More data do not average it away.
        seconds: time it took.
        measure: whether it is the log of a `"probability"` of discrete values, of a `"density"` in
            the units of the data, or of `"both"`; None where nothing is observed.
    """

    log_z: Tensor
    std_error: Tensor
    bound: BoundKind
    target: Literal["datum", "dataset"]
    estimator: str
    num_dims: int
    digest: str
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    shared_std_error: float = 0.0
    measure: Literal["probability", "density", "both"] | None = None

    @property
    def reliable(self) -> bool:
        """Whether no alarm was raised."""
        return not self.warnings

    @property
    def total(self) -> Tensor:
        """log p of all the data, in nats."""
        return self.log_z.sum()

    @property
    def total_std_error(self) -> Tensor:
        """Monte Carlo standard error of `total`.

        The errors of the data are independent, apart from the part that all share.
        """
        own = own_errors(self.std_error, self.shared_std_error).square().sum()
        return (own + (self.std_error.numel() * self.shared_std_error) ** 2).sqrt()

    def pooled(self) -> "Evidence":
        """Pool the evidence of all data into one number.

        It can then be compared with programs whose latents are shared by all data.

        log p(D) = sum_i log p(x_i), true where nothing about the program was learned from these
        data.
        """
        return replace(
            self,
            log_z=self.total,
            std_error=self.total_std_error,
            shared_std_error=0.0,
            target="dataset",
        )

    @checked
    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Compute a normal confidence interval of `log_z`.

        The level lies between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(
                f"level is {level}; expected a probability strictly between 0 and 1, e.g. 0.95"
            )
        half = (
            torch.distributions.Normal(0.0, 1.0)
            .icdf(torch.tensor(0.5 + level / 2))
            .double()
            .to(self.log_z.device)
        )
        return self.log_z - half * self.std_error, self.log_z + half * self.std_error

    def to_dataframe(self) -> Any:
        """Tabulate the evidence, one row for each datum.

        Columns are `log_z` and `std_error`, in nats, and the diagnostics of each datum; a data set
        has one row.

        Returns:
            A pandas DataFrame, indexed by the number of the datum.
        """
        import pandas as pd  # noqa: PLC0415 - heavy, and evidence is mostly used without

        size = self.log_z.numel()
        each = {
            name: value
            for name, value in self.diagnostics.items()
            if isinstance(value, Tensor) and value.shape == self.log_z.shape
        }
        columns = {"log_z": self.log_z, "std_error": self.std_error, **each}
        frame = {name: v.detach().cpu().reshape(size).numpy() for name, v in columns.items()}
        return pd.DataFrame(frame, index=pd.RangeIndex(size, name=self.target))

    def to_latex(self) -> str:
        r"""Return the evidence as a LaTeX table for a paper.

        It needs `\usepackage{booktabs}`. Of data with an evidence each, log p is per datum. Alarms
        become comments above it.

        Example:
            >>> number = torch.tensor([-1.5, -2.5]).double()
            >>> exact = Evidence(number, torch.zeros(2).double(), "exact", "datum", "Exact", 2, "")
            >>> print(exact.to_latex())
            % log p of 2 data (2 numbers), nats per datum
            \begin{tabular}{lrrrr}
            \toprule
             & log p & $\pm$ MC & $\pm$ data & bits/dim \\
            \midrule
            Exact & $-2.00$ & -- & $0.50$ & $2.885$ \\
            \bottomrule
            \end{tabular}
        """
        return evidence_latex(self)

    def _repr_html_(self) -> str:
        return evidence_html(self)

    def __repr__(self) -> str:
        per = f", {self.total / self.log_z.numel():.3f} per datum" if self.target == "datum" else ""
        mark = "" if self.reliable else f" UNRELIABLE: {'; '.join(self.warnings)}"
        sign = {"exact": "=", "lower": ">=", "upper": "<=", "estimate": "~"}[self.bound]
        error = "" if self.bound == "exact" else f" +- {self.total_std_error:.3g}"
        number = f"log p {sign} {self.total:.3f}{error} nats{per}"
        return f"Evidence({number}; {self.bound} by {self.estimator}){mark}"
