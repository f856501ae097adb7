"""Gibbs updates of discrete latents by enumeration.

The values of one entry are enumerated at a time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.program import Bound, Latent
from ppl_dgm.program.particles import Values

__all__ = ["Gibbs", "values_of"]


@checked
@dataclass(frozen=True)
class Gibbs:
    r"""Gibbs sampler of a program's discrete latents.

    Each entry is drawn from its full conditional, given everything else.

    $z_j \sim p(z_j \mid z_{-j}, x) \propto p(x, z)$, by evaluating the joint density at every value
    of $z_j$. Entries are visited in order; where each datum has latents of its own, those of all
    data are drawn at once, and chains always are. Geman and Geman (1984). It is a transition for
    discrete draws alone: annealing works on continuous latents with the discrete ones summed out.

    Args:
        bound: the program with its data.

    Raises:
        ValueError: if the program has no discrete latents that are drawn, or one with infinitely
            many values.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_dgm import Program
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(20 * z, 1.0), obs=x)
        >>> bound = Program(model).bind(torch.tensor([0.0, 20.0]))
        >>> Gibbs(bound).move({"z": torch.tensor([[1.0, 1.0]])})["z"]
        tensor([[0., 1.]])
    """

    bound: Bound

    def __post_init__(self) -> None:
        if not self.latents:
            raise ValueError(
                "the program draws no discrete latents; use HMC, MALA or RandomWalk for "
                "continuous ones"
            )
        for latent in self.latents:
            values_of(latent, torch.zeros(()))

    @property
    def latents(self) -> tuple[Latent, ...]:
        """The discrete latents."""
        return tuple(latent for latent in self.bound.structure.model_latents if latent.discrete)

    def move(self, values: Values) -> Values:
        """Update all discrete latents once.

        `values` are `[chains, *shape]` by name and are not changed.
        """
        for latent in self.latents:
            for entry in range(self._columns(latent, values[latent.name]).shape[-1]):
                values = values | {latent.name: self._update(latent, values, entry)}
        return values

    def _columns(self, latent: Latent, value: Tensor) -> Tensor:
        """Reshape values `[chains, *shape]` to `[chains, data, entries]`.

        `data` is 1 where latents are not each datum's own.
        """
        per_datum = self.bound.structure.per_datum
        value = value.movedim(latent.batch_dim, 1) if per_datum else value.unsqueeze(1)
        return value.reshape(*value.shape[:2], -1)

    def _update(self, latent: Latent, values: Values, entry: int) -> Tensor:
        value = values[latent.name]
        options = values_of(latent, value)
        trials = torch.stack([self._with_entry(latent, value, entry, option) for option in options])
        repeated = {
            name: v.repeat(len(options), *(1,) * (v.dim() - 1)) for name, v in values.items()
        }
        joint = self.bound.log_joint(repeated | {latent.name: trials.flatten(0, 1)}).total
        logits = joint.reshape(len(options), len(value), -1).movedim(0, -1)
        chosen = options[torch.distributions.Categorical(logits=logits).sample()]
        return self._with_entry(latent, value, entry, chosen)

    def _with_entry(self, latent: Latent, value: Tensor, entry: int, new: Tensor) -> Tensor:
        """Replace one entry of each chain and datum.

        The value itself is not changed.
        """
        columns = self._columns(latent, value).clone()
        columns[..., entry] = new
        if not self.bound.structure.per_datum:
            return columns.reshape(value.shape)
        moved = value.movedim(latent.batch_dim, 1)
        return columns.reshape(moved.shape).movedim(1, latent.batch_dim)


def values_of(latent: Latent, like: Tensor) -> Tensor:
    """List the values that one entry of a latent takes."""
    support: Any = latent.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    lower, upper = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if type(support).__name__ == "_Boolean":
        lower, upper = 0, 1
    bounds = [torch.as_tensor(bound).unique() for bound in (lower, upper) if bound is not None]
    if [len(bound) for bound in bounds] != [1, 1]:
        raise ValueError(
            f"latent {latent.name!r} with support {support} cannot be enumerated; expected "
            "finitely many integers, as many for every entry, as of Bernoulli, Categorical or "
            "Binomial"
        )
    return torch.arange(int(bounds[0]), int(bounds[1]) + 1, dtype=like.dtype, device=like.device)
