"""Posterior draws by importance resampling.

Diagnostics say whether to believe them.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_dgm.markup import html_table, latex_table, minus
from ppl_dgm.program import Bound
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.particles import Values
from ppl_dgm.program.sampling import draw_sites
from ppl_dgm.program.seeding import seeded

__all__ = ["Posterior"]

QUANTILES = (0.05, 0.5, 0.95)  # of summaries


@dataclass(frozen=True, eq=False)
class Posterior:
    """Equally weighted draws of a program's latents given data.

    They are on the latents' own (constrained) scale.

    `Posterior(program.bind(*data), draws)` holds the draws of another sampler, e.g. those of Pyro's
    NUTS.

    Attributes:
        bound: the program at its data.
        draws: `[draws, *shape]` by latent site; latents in the data plate are resampled for each
            datum on its own.
        mean: weighted means over all particles, `[*shape]` by site; those of the draws where not
            given.
        std: weighted standard deviations over all particles, likewise.
        ess: effective sample size of the weights, `[data]` or `[]`; None for draws of another
            sampler.
        pareto_k: shape of the weights' tail, `[data]` or `[]`; above 0.7 the draws do not represent
            the posterior.
        num_particles: particles for each datum (or data set) that were weighted.
        warnings: why the draws should not be believed; empty if nothing speaks against them.
    """

    bound: Bound
    draws: Values
    mean: Values = field(default_factory=dict)
    std: Values = field(default_factory=dict)
    ess: Tensor | None = None
    pareto_k: Tensor | None = None
    num_particles: int = 0
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_draws(self.bound, self.draws)
        object.__setattr__(
            self,
            "mean",
            self.mean or {name: draw.double().mean(0) for name, draw in self.draws.items()},
        )
        object.__setattr__(
            self,
            "std",
            self.std or {name: spread_of(draw) for name, draw in self.draws.items()},
        )

    @property
    def num_draws(self) -> int:
        """Number of draws."""
        return next(iter(self.draws.values())).shape[0]

    @property
    def reliable(self) -> bool:
        """Whether no alarm was raised."""
        return not self.warnings

    def predict(self, seed: int = 0) -> Values:
        """Draw every site of the model given each posterior draw.

        Sites are latents, deterministic sites, and new data. Latents that are summed out are drawn
        from their posterior given the others and the data.

        Args:
            seed: makes the draws repeatable; torch's generator is left as it was.

        Returns:
            `{site: [draws, *shape]}`, latents as they are.

        Raises:
            ValueError: for a program with factors, whose density ancestral draws do not follow.
        """
        bound = self.bound
        if bound.structure.factors:
            raise ValueError(
                f"the program has factors {list(bound.structure.factors)}, so that ancestral draws "
                "do not follow its density; draw new data by Markov chain Monte Carlo"
            )
        with undisturbed(bound.model), seeded(seed, bound.device):
            return draw_sites(
                bound.model,
                bound.structure,
                self.num_draws,
                bound.args,
                bound.kwargs,
                self.draws,
                at_data=True,
            )

    def to_dataframe(self) -> Any:
        """Summarise the draws in tidy form.

        There is a row for each number, with its `latent`, its `index` in it, its weighted `mean`
        and `sd`, and quantiles of the draws.

        Returns:
            A pandas DataFrame.
        """
        import pandas as pd  # noqa: PLC0415 - heavy, and posteriors are mostly used without

        parts = []
        for name, draws in self.draws.items():
            flat = draws.detach().cpu().double().reshape(self.num_draws, -1).numpy()
            index = [",".join(map(str, place)) for place in np.ndindex(*draws.shape[1:])]
            moments = {"mean": self.mean[name], "sd": self.std[name]}
            columns = {key: value.flatten().cpu().numpy() for key, value in moments.items()}
            columns |= {f"{100 * q:g}%": np.quantile(flat, q, axis=0) for q in QUANTILES}
            parts.append(pd.DataFrame({"latent": name, "index": index, **columns}))
        return pd.concat(parts, ignore_index=True)

    def to_latex(self) -> str:
        r"""Return the summary of the draws as a LaTeX table.

        It needs `\usepackage{booktabs}`. Alarms become comments above it.
        """
        frame = self.to_dataframe()
        rows = [["", *frame.columns[2:]]]
        for row in frame.itertuples(index=False):
            place = f"[{row.index}]" if row.index else ""
            rows.append([f"{row.latent}{place}", *(minus(f"{value:.3g}") for value in row[2:])])
        return latex_table(rows, [f"! {warning}" for warning in self.warnings])

    def _repr_html_(self) -> str:
        rows = [["latent", "shape", "mean", "sd"]]
        for name in self.draws:
            shape = list(self.draws[name].shape[1:])
            rows.append([name, str(shape), shown(self.mean[name]), shown(self.std[name])])
        ess = "" if self.ess is None else f"; ESS {shown(self.ess)} of {self.num_particles}"
        return html_table(
            rows,
            caption=f"Posterior: {self.num_draws} draws{ess}",
            notes=[f"! {warning}" for warning in self.warnings],
            alarmed=() if self.reliable else range(1, len(rows)),
        )

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}{list(draw.shape[1:])}" for name, draw in self.draws.items())
        ess = (
            ""
            if self.ess is None
            else f", ESS {self.ess.double().mean():.0f} of {self.num_particles}"
        )
        mark = "" if self.reliable else f" UNRELIABLE: {'; '.join(self.warnings)}"
        return f"Posterior({self.num_draws} draws of {shapes}{ess}){mark}"


def spread_of(draws: Tensor) -> Tensor:
    """Standard deviation of draws, NaN of a single one."""
    return draws.double().std(0) if len(draws) > 1 else draws[0].double() * torch.nan


def shown(values: Tensor) -> str:
    """A number, or the range of several."""
    values = values.detach().double()
    if values.numel() == 1:
        return minus(f"{values.item():.3g}")
    return minus(f"{values.min():.3g} to {values.max():.3g}") if values.numel() else "none"


def check_draws(bound: Bound, draws: Values) -> None:
    """Refuse draws that do not match the program's latents.

    They may lack a latent, have dimensions it has not, or disagree in number.
    """
    expected = {latent.name for latent in bound.structure.model_latents}
    if draws.keys() != expected:
        raise ValueError(
            f"the draws are of {sorted(draws)}; expected the program's latents {sorted(expected)}"
        )
    for latent in bound.structure.model_latents:
        shape, num_dims = list(draws[latent.name].shape), 1 + latent.batch_dim + latent.event_dim
        if len(shape) != num_dims:
            raise ValueError(
                f"the draws of {latent.name!r} are {shape}; expected [draws, *shape of the "
                f"latent], in dimensions {num_dims}; chains that are a dimension of their own are "
                "joined by draws.flatten(0, 1)"
            )
    counts = {name: draw.shape[0] for name, draw in draws.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(
            f"the sites have unequal numbers of draws {counts}; expected one leading dimension for "
            "all"
        )
