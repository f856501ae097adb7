"""Energy-based models: a net's energy tilts a base measure."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.program import Program
from ppl_dgm.program.supports import is_binary
from ppl_dgm.transforms.distribution import Held
from ppl_dgm.validation import check_sizes

__all__ = ["Energy"]

BASES = ("normal", "bernoulli")


class Energy(Program):
    r"""Energy-based model with a base measure.

    $p(x) = \mathrm{base}(x)\, e^{-E(x)} / Z$ with $Z = \int \mathrm{base}(x)\, e^{-E(x)}\, dx$.

    The energy is any net; the base measure is a normalised density that the energy tilts, so that Z
    is finite where E is bounded from below, and chains have where to begin. Its density is
    unnormalised: fit it with `ContrastiveDivergence`, `PersistentContrastiveDivergence`,
    `ScoreMatching`, `NoiseContrastive` or (binary data) `PseudoLikelihood`.

    LeCun et al. (2006), "A tutorial on energy-based learning".

    Args:
        net: maps data `[N, *shape]` to energies `[N]`, in nats.
        num_dims: number of dimensions of the data, or their shape, such as `(1, 28, 28)`.
        base: `"normal"` (standard), `"bernoulli"` (even odds), or a distribution with the data's
            event shape.

    Raises:
        ValueError: for sizes below one, an unknown base, or one of another event shape; on call,
            for a net whose output is not `[N]`.

    Example:
        >>> import torch, ppl_dgm
        >>> model = Energy(lambda x: 0.5 * x.square().sum(-1), 2)  # a normal of variance 1/2
        >>> result = ppl_dgm.evidence.Exact()(model, torch.zeros(1, 2))
        >>> torch.allclose(result.log_z.exp(), torch.tensor(1 / torch.pi).double())
        True
    """

    @checked
    def __init__(self, net: Any, num_dims: int | Sequence[int], base: str | Any = "normal") -> None:
        shape = (num_dims,) if isinstance(num_dims, int) else tuple(num_dims)
        for size in shape:
            check_sizes(num_dims=size)
        if not callable(net):
            raise TypeError(f"net is a {type(net).__name__}; expected a function or module")
        check_base(base, shape)
        super().__init__(EnergyModel(net, BaseMeasure(base, shape), len(shape)))

    def adapt(
        self, args: tuple, kwargs: Mapping[str, Any], bright: bool | None = None
    ) -> tuple[tuple, dict[str, Any]]:
        """Take data in the base measure's dtype."""
        numbers = self.model.fn.base.numbers  # type: ignore[attr-defined]
        named = {name: numbers(v) if name == self.site else v for name, v in kwargs.items()}
        return (*map(numbers, args[:1]), *args[1:]), named

    def energy(self, x: Tensor) -> Tensor:
        """Compute energies of data `[..., *shape]`, in nats: `[...]`."""
        return self.model.fn.energy(x)  # type: ignore[attr-defined]

    def log_ratio(self, x: Tensor, other: Tensor) -> Tensor:
        r"""Compute log density ratios of data, in nats: `[N]`.

        $\log p(x) / p(x')$ of data `[N, *shape]` each, which needs no Z.
        """
        base = self.model.fn.base.distribution()  # type: ignore[attr-defined]
        return base.log_prob(x) - base.log_prob(other) - self.energy(x) + self.energy(other)


def check_base(base: Any, shape: tuple[int, ...]) -> None:
    """Refuse an unknown base measure or a wrong event shape."""
    if isinstance(base, str):
        if base not in BASES:
            raise ValueError(f"base is {base!r}; expected one of {BASES}, or a distribution")
        return
    if tuple(base.event_shape) != shape or tuple(base.batch_shape):
        raise ValueError(
            f"base has batch shape {list(base.batch_shape)} and event shape "
            f"{list(base.event_shape)}; expected [] and {list(shape)}. Declare event dimensions, "
            f"base.to_event({len(shape)})"
        )


class BaseMeasure(nn.Module):
    """A normalised density over data of one shape."""

    zeros: Tensor

    def __init__(self, kind: str | Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.kind = kind if isinstance(kind, str) else Held(kind)
        self.register_buffer("zeros", torch.zeros(shape), persistent=False)

    def numbers(self, x: Any) -> Any:
        """Return data in the dtype of the module, classes aside."""
        support = self.distribution().support
        kept = support.is_discrete and not is_binary(support)
        return x if kept or not isinstance(x, Tensor) else x.to(self.zeros.dtype)

    def distribution(self) -> Any:
        """Return the density, of the data's event shape."""
        if self.kind == "normal":
            return dist.Normal(self.zeros, torch.ones_like(self.zeros)).to_event(self.zeros.dim())
        if self.kind == "bernoulli":
            return dist.Bernoulli(logits=self.zeros).to_event(self.zeros.dim())
        return self.kind.held  # type: ignore[union-attr]


class EnergyModel(nn.Module):
    """x ~ base(x), times exp(-E(x))."""

    def __init__(self, net: Any, base: BaseMeasure, event_dim: int) -> None:
        super().__init__()
        self.net, self.base, self.event_dim = net, base, event_dim

    def energy(self, x: Tensor) -> Tensor:
        """Compute energies of data `[..., *shape]`: `[...]`."""
        batch = x.shape[: x.dim() - self.event_dim]
        flat = x.reshape(-1, *x.shape[x.dim() - self.event_dim :])
        energy = self.net(self.base.numbers(flat))
        if tuple(energy.shape) != (len(flat),):
            raise ValueError(
                f"the energy net returned shape {list(energy.shape)} for {len(flat)} data; "
                f"expected one energy each, [{len(flat)}]. Sum over what is left, or drop it: "
                "net(x).squeeze(-1)"
            )
        return energy.reshape(batch)

    def forward(self, x: Tensor | None = None) -> Tensor:
        """Score data `[data, *shape]`, or draw from the base measure.

        The draws are weighted by the factor.
        """
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            x = pyro.sample("x", self.base.distribution(), obs=x)
            pyro.factor("energy", -self.energy(x))
        return x
