"""The importance-weighted bound over its number of particles."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.iwelbo import IWELBO
from ppl_dgm.evidence.result import Evidence
from ppl_dgm.markup import decimals, error_text, html_table, latex_table, minus
from ppl_dgm.program import Program
from ppl_dgm.watching import watched

__all__ = ["BoundCurve", "over_particles"]

CAPTION = "importance-weighted bounds over the number of particles m, nats per datum"


@dataclass(frozen=True, eq=False)
class BoundCurve:
    """Importance-weighted bounds of the same data, by number of particles.

    Attributes:
        bounds: evidence by number of particles m, each a lower bound in nats.
    """

    bounds: dict[int, Evidence]

    @property
    def particles(self) -> Tensor:
        """The numbers of particles m, `[sizes]`."""
        return torch.tensor(list(self.bounds))

    @property
    def per_datum(self) -> Tensor:
        """Mean bound in nats per datum, `[sizes]`."""
        return torch.stack([found.log_z.mean() for found in self.bounds.values()])

    @property
    def std_error(self) -> Tensor:
        """Monte Carlo standard errors of `per_datum`, `[sizes]`."""
        found = self.bounds.values()
        return torch.stack([one.total_std_error / one.log_z.numel() for one in found])

    def to_dataframe(self) -> Any:
        """Tabulate the bounds, a row for each m.

        Returns:
            A pandas DataFrame with `bound` and `std_error` in nats per datum, indexed by `m`.
        """
        import pandas as pd  # noqa: PLC0415 - heavy, and evidence is mostly used without

        columns = {"bound": self.per_datum.tolist(), "std_error": self.std_error.tolist()}
        return pd.DataFrame(columns, index=pd.Index(list(self.bounds), name="m"))

    def _table(self) -> list[list[str]]:
        digits = decimals(self.std_error.tolist())
        rows = zip(self.bounds, self.per_datum, self.std_error.tolist(), strict=True)
        cells = [[str(m), minus(f"≥ {x:.{digits}f}"), error_text(error)] for m, x, error in rows]
        return [["m", "log p", "± MC"], *cells]

    def to_latex(self) -> str:
        r"""Return the bounds as a LaTeX table for a paper.

        It needs `\usepackage{booktabs}`.
        """
        return latex_table(self._table(), [CAPTION])

    def _repr_html_(self) -> str:
        return html_table(self._table(), caption=CAPTION)

    def plot(self, ax: Any = None) -> Any:
        """Plot the bound over m, on a logarithmic axis."""
        # Seconds of import, for few users:
        from ppl_dgm.reporting.plots import plot_bounds  # noqa: PLC0415

        return plot_bounds(self.particles, self.per_datum.cpu(), self.std_error.cpu(), ax)

    def __repr__(self) -> str:
        rows = zip(self.bounds, self.per_datum, self.std_error, strict=True)
        lines = [f"{m:>8} {bound:>12.4f} {error:>9.4f}" for m, bound, error in rows]
        return "\n".join([f"{'m':>8} {'nats/datum':>12} {'±':>9}", *lines])


@checked
def over_particles(
    program: Program,
    *args: Any,
    particles: Sequence[int] = (1, 4, 16, 64, 256),
    num_replicates: int = 32,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> BoundCurve:
    r"""Compute the importance-weighted bound for several numbers of particles.

    $\mathcal L_m = E \log \frac1m \sum_{k=1}^m w_k$ rises with m, from the ELBO to $\log Z$ (Burda,
    Grosse and Salakhutdinov 2016, theorem 1). Costs `num_replicates * sum(particles)` runs.

    Args:
        program: the program, with its parameters as they are.
        *args: data, as its model takes them.
        particles: numbers m.
        num_replicates: independent replicates for each, for the standard errors.
        seed: makes the result repeatable.
        progress: show a bar of the densities evaluated, where it takes over two seconds.
        **kwargs: further data.

    Raises:
        ValueError: for a number below one.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> curve = over_particles(ppl_dgm.Program(model), torch.ones(100), particles=[1, 100])
        >>> bool(curve.per_datum[0] < curve.per_datum[1])
        True
    """
    estimators = {m: IWELBO(m, num_replicates) for m in particles}
    with watched("bounds", progress):
        found = {m: run(program, *args, seed=seed, **kwargs) for m, run in estimators.items()}
    return BoundCurve(found)
