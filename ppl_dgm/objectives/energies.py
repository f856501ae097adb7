"""Base of the objectives for unnormalised programs.

It gives the log density of other data than those observed.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.objectives.objective import Objective
from ppl_dgm.program import Bound, Structure
from ppl_dgm.program.arguments import tensors_of
from ppl_dgm.program.data_argument import DataArgument
from ppl_dgm.program.supports import is_binary, is_real

__all__ = ["CURES", "DataDensity", "EnergyObjective", "value_kind"]


class DataDensity:
    """Unnormalised log density of a program, a function of data.

    The data take the place of those that the program is bound to.

    Args:
        bound: the program at its data.
        argument: where its data are.

    Attributes:
        scale: the factor by which each datum counts, as the latest evaluation had it.
    """

    def __init__(self, bound: Bound, argument: DataArgument) -> None:
        self.bound, self.argument = bound, argument
        self.scale: Any = 1.0

    @property
    def data(self) -> Tensor:
        """The data: `[data, *event]`."""
        return self.argument.value(self.bound)

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute log f of data `[n, *event]`, in nats.

        The result is `[n]`. With `rows` `[n]`, the covariates are those of the data of these
        numbers.
        """
        joint = self.argument.exchange(self.bound, x, rows).log_joint({})
        self.scale = joint.scale
        return joint.total[0]

    def refuse_covariates(self, what: str) -> None:
        """Refuse programs with covariates, for draws that have none."""
        others = [t for t in tensors_of(self.bound.args, self.bound.kwargs) if t.dim()]
        if len(others) > 1:
            raise ValueError(
                f"the program takes {len(others)} arguments with data, but {what} belong to no "
                "datum, and so to no covariates; use ContrastiveDivergence(k), whose chains start "
                "at the data"
            )

    def repeated(self, x: Tensor) -> Tensor:
        """Compute log f of points `[copies, data, *event]`.

        Each copy goes with the data's own covariates. The result is `[copies, data]`.
        """
        rows = torch.arange(x.shape[1], device=x.device).repeat(len(x))
        return self(x.flatten(0, 1), rows).reshape(x.shape[:2])


class EnergyObjective(Objective):
    """An objective that needs no partition function.

    To add one, implement `contrast(density)`; set `support` to what data it takes. Programs may be
    normalised too.

    Args:
        plate: name of the data plate.
    """

    takes_energies: ClassVar[bool] = True
    support: ClassVar[str | None] = None  # "real", "binary", or any

    @checked
    def __init__(self, *, plate: str = "data") -> None:
        super().__init__(plate=plate)
        self._arguments: dict[Any, DataArgument] = {}

    @abstractmethod
    def contrast(self, density: DataDensity) -> Tensor:
        """Compute the quantity to maximise: `[data]`."""

    def value(self, bound: Bound) -> Tensor:
        density = self.density(bound)
        return self.contrast(density) * density.scale

    def density(self, bound: Bound) -> DataDensity:
        """Return the program as a density of data.

        The argument that holds the data is found at the first call.
        """
        key = (bound.model, bound.guide)
        if key not in self._arguments:
            argument = DataArgument.find(bound)
            self.check_support(argument)
            self._arguments[key] = argument
        return DataDensity(bound, self._arguments[key])

    def check(self, structure: Structure) -> None:
        name = type(self).__name__
        drawn = [latent.name for latent in structure.latents]
        if drawn:
            raise ValueError(
                f"{name} takes programs whose latents are summed out, but {drawn} are drawn; sum "
                "them out (a free energy, infer={'enumerate': 'parallel'}), or use ELBO() where "
                "the program is normalised"
            )
        if not structure.per_datum:
            raise ValueError(
                f"{name} takes independent data, but sites are outside the plate "
                f"{structure.plate!r}; write all of the program in `with "
                f"pyro.plate({structure.plate!r}, len(x)):`"
            )

    def check_support(self, argument: DataArgument) -> None:
        """Refuse data that the objective cannot take.

        The ValueError names objectives that do.
        """
        kind = value_kind(argument.support)
        if self.support is None or kind == self.support:
            return
        raise ValueError(
            f"{type(self).__name__} takes {self.support} data, but site {argument.site!r} has the "
            f"support {argument.support}; use {CURES[kind]}"
        )


CURES = {
    "binary": "PseudoLikelihood(), ContrastiveDivergence() or NoiseContrastive(noise)",
    "real": "ScoreMatching(), ContrastiveDivergence() or NoiseContrastive(noise)",
    "other": "NoiseContrastive(noise)",
}


def value_kind(support: Any) -> str:
    """Return the kind of values that a support allows.

    It is `"real"`, `"binary"` or `"other"`, and holds for each entry.
    """
    if is_binary(support):
        return "binary"
    return "real" if is_real(support) else "other"
