"""Side-by-side comparison of several programs on the same data.

It shows their evidences and what can be said of the differences.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import eq
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.comparison.estimating import estimate_programs
from ppl_dgm.comparison.rendering import (
    cells,
    html,
    latex,
    notes,
    text_table,
    title,
)
from ppl_dgm.comparison.rows import (
    NAN,
    BayesFactor,
    Row,
    is_ranked,
    make_row,
    probabilities,
    sense_of,
    stack,
)
from ppl_dgm.evidence import Evidence
from ppl_dgm.fitting import Fit
from ppl_dgm.program import Program
from ppl_dgm.program.observed import same_data

__all__ = ["Comparison", "compare"]

PER_DATUM = (
    "log_z",
    "std_error",
    "sampling_error",
    "training_spread",
    "difference",
    "difference_error",
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Evidences of several programs on the same data, best first.

    It is made by `compare`.

    Printed, it is a table with notes; in a notebook an HTML table. `to_dataframe()` has all
    numbers, `plot()` the forest.

    Attributes:
        rows: one for each program, the largest log p first.
        reference: name of the program that differences are taken to.
        target: `"datum"` or `"dataset"`, as in `Evidence`.
        num_data: number of data with an evidence of their own (1 for the evidence of a data set).
        num_dims: observed numbers in all.
        evidences: what was compared, by name.
        improving: names of the programs whose fit ended before they stopped improving; None where
            no fits were given.
    """

    rows: tuple[Row, ...]
    reference: str
    target: Literal["datum", "dataset"]
    num_data: int
    num_dims: int
    evidences: Mapping[str, Evidence] = field(repr=False)
    improving: tuple[str, ...] | None = None

    @property
    def best(self) -> Row | None:
        """First row that is ranked, or None.

        A ranked row has no alarm, is no upper bound, and withholds no datum.
        """
        return next((row for row in self.rows if row.ranked), None)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(
            f"no program {name!r} in this comparison, only {[row.name for row in self.rows]}"
        )

    def bayes_factor(self, numerator: str, denominator: str) -> BayesFactor:
        """Compute the log Bayes factor of two programs.

        It is log p(D | numerator) - log p(D | denominator), with the error of both estimates.

        A Bayes factor where latents were integrated out under their priors; with parameters fitted
        to other data it is the likelihood ratio of the fitted programs.

        Raises:
            KeyError: if a name is not in the comparison.
        """
        one, other = self[numerator], self[denominator]
        error = math.hypot(one.std_error, other.std_error)
        return BayesFactor(
            numerator,
            denominator,
            one.log_z - other.log_z,
            error,
            sense_of(one.bound, other.bound),
            one.reliable and other.reliable,
        )

    def to_dataframe(self) -> Any:
        """Return all figures as a table indexed by program name.

        The columns are described in `Row`. Totals are in nats, and are given per datum too.

        Returns:
            A pandas DataFrame.
        """
        import pandas as pd  # noqa: PLC0415 - seconds of import, for few users

        frame = pd.DataFrame([vars(row) for row in self.rows]).set_index("name")
        frame["improving"] = frame.index.isin(self.improving or ())
        for column in PER_DATUM:
            frame[f"{column}_per_datum"] = (
                frame[column] / self.num_data if self.target == "datum" else NAN
            )
        return frame

    def plot(self, across: int = 2) -> NDArray[Any]:
        """Draw forest plots of the evidences and their differences.

        Differences are taken to the reference. Intervals are 95 %. Returns both axes.

        Args:
            across: 2 puts them side by side, 1 one above the other.
        """
        from ppl_dgm.comparison.drawing import plot_comparison  # noqa: PLC0415 - seconds of import

        return plot_comparison(self, across)

    def __str__(self) -> str:
        header, *body = cells(self)
        table = text_table([header, *body])
        return "\n".join([title(self), "", *table, "", *notes(self)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html(self)

    def to_latex(self) -> str:
        r"""Return the table as LaTeX for a paper.

        It needs `\usepackage{booktabs}`. All that is printed below the table becomes comments above
        it.

        Example:
            >>> import torch
            >>> from ppl_dgm.evidence import Evidence
            >>> number = torch.tensor(-1.5).double()
            >>> error = torch.zeros_like(number)
            >>> exact = Evidence(number, error, "exact", "dataset", "Exact", 2, "")
            >>> print(compare({"one": exact, "two": exact}).to_latex())
            % log p of one data set (2 numbers), nats
            ...
            \toprule
             & log p & bits/dim & log BF & p(M|D) \\
            \midrule
            \textbf{one} & $-1.500$ & $1.082$ & -- & $0.500$ \\
            two & $-1.500$ & $1.082$ & -- & $0.500$ \\
            \bottomrule
            \end{tabular}
        """
        return latex(self)


@checked
def compare(
    candidates: Mapping[str, Evidence | Program],
    *data: Any,
    reference: str | None = None,
    prior: Mapping[str, float] | None = None,
    log_offset: Tensor | float = 0.0,
    fits: Mapping[str, Fit] | None = None,
    refits: Mapping[str, Sequence[Evidence]] | None = None,
    seed: int | None = 0,
    progress: bool = True,
) -> Comparison:
    r"""Compare programs by their evidence on the same data.

    Programs are estimated by `evidence.auto` at `data`; evidences are taken as they are. Where one
    has an evidence of the data set, those of programs without any parameter are pooled to one.

    Where each datum has an evidence of its own, differences are paired: with $d_i = \log p_a(x_i) -
    \log p_b(x_i)$ the standard error of their sum is $\sqrt{N}\,\mathrm{sd}(d)$, much less than
    that of unpaired sums, since data that are improbable under one program are so under the other.
    Programs get stacking weights. Where the data set has one evidence, differences are log Bayes
    factors and programs get probabilities $p(M_m \mid D) \propto p(D \mid M_m)\, p(M_m)$, with
    errors by the delta method that hold where estimates from one seed err alike.

    Args:
        candidates: results of estimators, or programs, by name.
        *data: data of the programs, as their models take them; none where all candidates are
            evidences.
        reference: program that differences are taken to; default the best. A row with an alarm, an
            upper bound and one with data withheld (NaN) are never the best, nor the default
            reference, nor do they get a weight or probability.
        prior: prior odds of the programs by name, for evidences of a data set; default equal.
        log_offset: nats per datum, `[data]` or one number, to be added where programs saw scaled
            data: what turns their densities into those of the original data, `Dataset.log_offset`.
        fits: how programs were fitted, by name; those that were still improving are marked.
        refits: evidences of the same programs trained again from other seeds, by name; their
            standard deviation becomes a column.
        seed: of the estimates made here.
        progress: show a bar of the densities evaluated, where they take over two seconds.

    Raises:
        ValueError: nothing to compare, unlike data or targets, unknown names, priors that are not
            positive.
        TypeError: something that is neither an Evidence nor a Program.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_dgm import Program
        >>> def model(rate):
        ...     def run(x=None):
        ...         with pyro.plate("data", 1 if x is None else len(x)):
        ...             pyro.sample("x", dist.Poisson(rate), obs=x)
        ...     return Program(run)
        >>> counts = torch.tensor([2.0, 3.0, 1.0, 4.0])
        >>> table = compare({f"rate {rate}": model(rate) for rate in (2.5, 5.0)}, counts)
        >>> print(table)
        log p of 4 data (4 numbers), nats per datum ...
        >>> table.best.name
        'rate 2.5'
    """
    evidences = estimate_programs(candidates, data, seed, progress)
    check_comparable(evidences)
    check_names(evidences, reference, prior)
    check_fits(evidences, fits or {})
    refits = refits or {}
    check_refits(evidences, refits)
    evidences = {
        name: in_original_units(evidence, log_offset) for name, evidence in evidences.items()
    }
    order = sorted(evidences, key=lambda name: rank(evidences[name]), reverse=True)
    reference = reference or next((name for name in order if is_ranked(evidences[name])), order[0])
    first = evidences[order[0]]
    weights = stack(evidences) if first.target == "datum" else probabilities(evidences, prior)
    return Comparison(
        rows=tuple(
            make_row(
                name,
                evidences[name],
                evidences[reference],
                weights[name],
                [in_original_units(each, log_offset) for each in refits.get(name, ())],
            )
            for name in order
        ),
        reference=reference,
        target=first.target,
        num_data=first.log_z.numel(),
        num_dims=first.num_dims,
        evidences={name: evidences[name] for name in order},
        improving=None
        if fits is None
        else tuple(name for name in order if name in fits and fits[name].improving),
    )


def in_original_units(evidence: Evidence, log_offset: Tensor | float) -> Evidence:
    """Convert an evidence to the units of the original data.

    `log_offset`, in nats per datum, is added. Where the data set has one evidence, the sum over its
    data is added.
    """
    offset = torch.as_tensor(log_offset).to(evidence.log_z)
    if evidence.target == "dataset" and offset.dim() == 0 and offset != 0:
        raise ValueError(
            f"log_offset is {log_offset}, one number, but the data set has one evidence; give the "
            "sum over its data, as a tensor of shape [data]"
        )
    offset = offset.sum() if evidence.target == "dataset" else offset
    if offset.dim() and offset.shape != evidence.log_z.shape:
        raise ValueError(
            f"log_offset has shape {list(offset.shape)} for {evidence.log_z.numel()} data; "
            "expected one number for each"
        )
    return replace(evidence, log_z=evidence.log_z + offset)


def rank(evidence: Evidence) -> float:
    """What rows are sorted by: the total, NaN last."""
    total = float(evidence.total)
    return -math.inf if math.isnan(total) else total


def check_comparable(evidences: Mapping[str, Evidence]) -> None:
    """Refuse what cannot stand in one table."""
    if not evidences:
        raise ValueError(
            "nothing to compare; give {name: evidence}, e.g. {'vae': ImportanceSampling()(vae, x)}"
        )
    for name, evidence in evidences.items():
        if not isinstance(evidence, Evidence):
            raise TypeError(
                f"{name!r} is a {type(evidence).__name__}; expected a Program, or an Evidence, the "
                "result of an estimator, e.g. ImportanceSampling()(program, x)"
            )
        if not evidence.log_z.numel():
            raise ValueError(f"{name!r} has no data; expected the evidence of one datum or more")
    check_alike({name: evidence.target for name, evidence in evidences.items()}, TARGETS_DIFFER)
    check_alike({name: (e.num_dims, e.log_z.numel()) for name, e in evidences.items()}, DATA_DIFFER)
    check_alike({name: e.digest for name, e in evidences.items()}, DATA_DIFFER, same_data)


TARGETS_DIFFER = (
    "one has an evidence for each datum, the other one for the data set. log p(x_i) given fitted "
    "parameters and log p(D) with shared latents integrated out are different things; if nothing "
    "was fitted to these data, compare with evidence.pooled() of the one per datum"
)
DATA_DIFFER = (
    "they were asked about different data (other values, another scaling, or other observed "
    "sites), so that their densities have different units; evaluate all programs on the same "
    "tensor"
)


def check_alike(
    values: Mapping[str, Any], problem: str, alike: Callable[[Any, Any], bool] = eq
) -> None:
    """Raise if one value differs from the first."""
    first = next(iter(values))
    for name, value in values.items():
        if not alike(value, values[first]):
            raise ValueError(f"{first!r} and {name!r} cannot be compared: {problem}")


def check_names(
    evidences: Mapping[str, Evidence], reference: str | None, prior: Mapping[str, float] | None
) -> None:
    """Check that reference and prior belong to the evidences."""
    names = list(evidences)
    if reference is not None and reference not in evidences:
        raise ValueError(f"the reference {reference!r} is not among the programs {names}")
    if prior is None:
        return
    if next(iter(evidences.values())).target == "datum":
        raise ValueError(
            "prior odds belong to evidences of a data set, but these are one per datum; leave "
            "prior out and read the stacking weights"
        )
    if set(prior) != set(names) or not all(0 < value < math.inf for value in prior.values()):
        raise ValueError(
            f"prior is {dict(prior)}; expected one positive number for each of {names}"
        )


def check_fits(evidences: Mapping[str, Evidence], fits: Mapping[str, Fit]) -> None:
    """Refuse fits of programs that are not compared."""
    unknown = [name for name in fits if name not in evidences]
    if unknown:
        raise ValueError(f"fits are given of {unknown}, which are not among {list(evidences)}")


def check_refits(
    evidences: Mapping[str, Evidence], refits: Mapping[str, Sequence[Evidence]]
) -> None:
    """Refuse refits of other programs or on other data."""
    for name, again in refits.items():
        if name not in evidences:
            raise ValueError(f"refits are given of {name!r}, which is not among {list(evidences)}")
        trained = {f"{name}, training {i}": each for i, each in enumerate(again, 2)}
        check_comparable({name: evidences[name], **trained})
