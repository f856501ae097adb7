"""Guides: approximate posteriors of a latent vector for each datum.

An amortised guide is an encoder followed by a posterior family: a module that turns the encoder's
outputs into a distribution. To add a family, subclass `PosteriorFamily`: `num_params` numbers in, a
distribution of event shape `[L]` out.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import conditional_householder
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.conditional import Conditional
from ppl_dgm.transforms import (
    Bijection,
    FlowDistribution,
    Inverse,
    MaskedAutoregressive,
    Planar,
    ScalarMap,
    Spline,
    Sylvester,
)
from ppl_dgm.transforms.bijection import condition_all, push
from ppl_dgm.validation import check_sizes

__all__ = [
    "AmortisedGuide",
    "BernoulliPosterior",
    "DiagonalNormal",
    "FlowPosterior",
    "FullRankNormal",
    "LocalGuide",
    "PosteriorFamily",
]


class PosteriorFamily(Conditional):
    """Family of distributions of a latent vector `[L]`.

    It is indexed by `num_params` numbers.
    """

    def __init__(self, num_latents: int, num_params: int) -> None:
        super().__init__()
        check_sizes(num_latents=num_latents)
        self.num_latents, self.num_params = num_latents, num_params

    @abstractmethod
    def forward(self, params: Tensor) -> Any:
        """The distribution, batch `[...]`, event `[L]`, of parameters `[..., num_params]`."""

    def draw(self, name: str, params: Tensor) -> Tensor:
        """Draw the latent of that name, a Pyro site."""
        return pyro.sample(name, self(params))


class DiagonalNormal(PosteriorFamily):
    """N(loc, diag(scale^2)), parameters loc and log scale.

    Example:
        >>> DiagonalNormal(3)(torch.zeros(5, 6)).event_shape
        torch.Size([3])
    """

    @checked
    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents, 2 * num_latents)

    def forward(self, params: Tensor) -> Any:
        """Normal distributions of parameters `[..., 2 L]`."""
        loc, log_scale = params.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class BernoulliPosterior(PosteriorFamily):
    """Independent binary latents, given by their logits.

    They are for sigmoid belief nets.

    Example:
        >>> BernoulliPosterior(3)(torch.zeros(5, 3)).sample().shape
        torch.Size([5, 3])
    """

    @checked
    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents, num_latents)

    def forward(self, params: Tensor) -> Any:
        """Bernoulli distributions of logits `[..., L]`."""
        return dist.Bernoulli(logits=params).to_event(1)


class FullRankNormal(PosteriorFamily):
    """Normal distribution with a full covariance matrix.

    It is N(loc, T T^T) with T lower triangular. The parameters are loc, the log of T's diagonal,
    and T below it.

    Example:
        >>> FullRankNormal(3)(torch.zeros(5, 9)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    rows: Tensor
    columns: Tensor

    @checked
    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents, 2 * num_latents + num_latents * (num_latents - 1) // 2)
        rows, columns = torch.tril_indices(num_latents, num_latents, -1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, params: Tensor) -> Any:
        """Build normal distributions from their parameters.

        The parameters have shape `[..., 2 L + L (L - 1) / 2]`.
        """
        loc, log_diagonal, below = params.split(
            [self.num_latents, self.num_latents, len(self.rows)], -1
        )
        flat = below.new_zeros(*below.shape[:-1], self.num_latents**2)
        index = (self.rows * self.num_latents + self.columns).expand(below.shape)
        lower = flat.scatter(-1, index, below).unflatten(-1, (self.num_latents, self.num_latents))
        return dist.MultivariateNormal(loc, scale_tril=lower + torch.diag_embed(log_diagonal.exp()))


class FlowPosterior(PosteriorFamily):
    r"""Diagonal normal transformed by a conditional normalising flow.

    The encoder's outputs condition the transforms (Rezende and Mohamed 2015).

    $e \sim N(\mu, \mathrm{diag}(\sigma^2))$, $z = t_n(\dots t_1(e; h) \dots; h)$ with $\mu, \sigma,
    h$ given by the encoder. The noise e is an auxiliary site and z its image, so that no transform
    needs an inverse.

    Args:
        num_latents: size L.
        flow: `"planar"`; `"iaf"`, inverse autoregressive (Kingma et al. 2016); `"maf"`, masked
            autoregressive, drawn in L passes (Papamakarios et al. 2017); `"spline"`, autoregressive
            rational splines (Durkan et al. 2019); `"householder"` reflections (Tomczak and Welling
            2016); `"sylvester"` (van den Berg et al. 2018); or conditional transforms of
            `ppl_dgm.transforms` or Pyro with a context of size `num_context`.
        num_transforms: how many of them.
        num_context: size of h.

    Raises:
        ValueError: for another flow or sizes below one.

    Example:
        >>> posterior = FlowPosterior(3, "planar", num_context=4)
        >>> posterior.draw("z", torch.zeros(5, posterior.num_params)).shape
        torch.Size([5, 3])
    """

    @checked
    def __init__(
        self,
        num_latents: int,
        flow: str | Sequence[nn.Module] = "iaf",
        num_transforms: int = 2,
        num_context: int = 16,
    ) -> None:
        super().__init__(num_latents, 2 * num_latents + num_context)
        if min(num_transforms, num_context) < 1:
            raise ValueError(
                f"expected at least one transform and context, got {num_transforms} and "
                f"{num_context}"
            )
        transforms = (
            named_flow(flow, num_latents, num_transforms, num_context)
            if isinstance(flow, str)
            else flow
        )
        self.transforms = nn.ModuleList(transforms)  # type: ignore[arg-type]

    def _conditioned(self, params: Tensor) -> tuple[Any, list[Any]]:
        """The base distribution and the conditioned transforms."""
        loc, log_scale, context = params.tensor_split([self.num_latents, 2 * self.num_latents], -1)
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        return base, condition_all(self.transforms, context)

    def forward(self, params: Tensor) -> Any:
        """The transformed distribution of parameters `[..., 2 L + num_context]`."""
        base, transforms = self._conditioned(params)
        return FlowDistribution(base, transforms)

    def draw(self, name: str, params: Tensor) -> Tensor:
        """Draw noise and return the latent that it transforms to.

        The noise is an auxiliary site. Its image is the latent of that name.
        """
        base, transforms = self._conditioned(params)
        noise = pyro.sample(f"{name}_noise", base, infer={"is_auxiliary": True})
        value, log_det = push(transforms, noise, 1)
        image_law = dist.Delta(value, log_density=-log_det, event_dim=1)  # type: ignore[arg-type]
        return pyro.sample(name, image_law, infer={"transported": True})  # type: ignore[arg-type]


FLOWS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "planar": lambda size, context, _: Planar(size, context),
    "iaf": lambda size, context, place: autoregressive(size, context, place, None),
    "spline": lambda size, context, place: autoregressive(size, context, place, Spline()),
    "maf": lambda size, context, place: Inverse(autoregressive(size, context, place, None)),
    "householder": lambda size, context, _: conditional_householder(size, context, [2 * size]),
    "sylvester": lambda size, context, _: Sylvester(size, num_context=context),
}


def autoregressive(
    num_latents: int, num_context: int, place: int, scalar: ScalarMap | None
) -> Bijection:
    """Build an autoregressive layer of a flow.

    Every other layer goes through the dimensions backwards.
    """
    order = range(num_latents)[:: 1 if place % 2 == 0 else -1]
    hidden = [2 * num_latents + num_context]
    return MaskedAutoregressive(num_latents, scalar, hidden, order, num_context)


def named_flow(
    name: str, num_latents: int, num_transforms: int, num_context: int
) -> list[nn.Module]:
    """New conditional transforms of that name."""
    if name not in FLOWS:
        raise ValueError(
            f"there is no flow {name!r}; expected one of {sorted(FLOWS)} or a list of conditional "
            "transforms"
        )
    return [FLOWS[name](num_latents, num_context, place) for place in range(num_transforms)]


class AmortisedGuide(nn.Module):
    """Amortised guide with one latent vector for each datum.

    q(z | x) = posterior(encoder(x)).

    Args:
        encoder: maps data `[..., *event]` to `[..., posterior.num_params]`.
        posterior: makes the distribution of its outputs.

    Example:
        >>> guide = AmortisedGuide(nn.Linear(4, 6), DiagonalNormal(3))
        >>> guide(torch.zeros(7, 4)).shape
        torch.Size([7, 3])
    """

    @checked
    def __init__(self, encoder: nn.Module, posterior: PosteriorFamily) -> None:
        super().__init__()
        self.encoder, self.posterior = encoder, posterior

    def distribution(self, x: Tensor) -> Any:
        """Return q(z | x) for the given data.

        For data `[..., *event]` it has batch `[...]` and event `[L]`.
        """
        return self.posterior(self.encoder(x))

    def params(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Compute the posterior's parameters `[data, num_params]` of the data.

        Of data `[data, *event]` only the observed part is seen.
        """
        if observed is None:
            return self.encoder(x)
        if observed.dtype is not torch.bool:
            raise TypeError(
                "the second argument, which part of the data is observed, is a tensor of "
                f"{observed.dtype}; expected torch.bool. Where it holds labels, leave them out of "
                "the data"
            )
        return self.encoder(torch.where(observed, x, 0.0))

    def draw(self, params: Tensor) -> Tensor:
        """Draw latents `[data, L]` from the posterior.

        Its parameters have shape `[data, num_params]`.
        """
        with pyro.plate("data", len(params), dim=-1):
            return self.posterior.draw("z", params)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Draw latents `[data, L]` of data `[data, *event]`.

        Only the observed part of the data is seen.
        """
        return self.draw(self.params(x, observed))


class LocalGuide(nn.Module):
    """Guide with separate variational parameters for each datum.

    q(z | x_i) has parameters of its own for each datum, without an encoder.

    It belongs to one data set, in its order, and is called with all of it.

    Args:
        posterior: the family of q.
        start: the parameters to start from, `[N, posterior.num_params]`: an encoder's outputs, or
            zeros.

    Raises:
        ValueError: parameters of another shape; when called, another number of data.

    Example:
        >>> guide = LocalGuide(DiagonalNormal(3), torch.zeros(7, 6))
        >>> guide(torch.zeros(7, 4)).shape
        torch.Size([7, 3])
    """

    @checked
    def __init__(self, posterior: PosteriorFamily, start: Tensor) -> None:
        super().__init__()
        if start.dim() != 2 or start.shape[1] != posterior.num_params:
            raise ValueError(
                f"expected parameters [N, {posterior.num_params}] to start from, got "
                f"{list(start.shape)}"
            )
        self.posterior = posterior
        self.params = nn.Parameter(start.detach().clone())

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Draw latents `[N, L]` of all data `[N, *event]`."""
        if len(x) != len(self.params):
            raise ValueError(
                f"the guide has parameters for {len(self.params)} data, but was called with "
                f"{len(x)}; give it all of them, or use an AmortisedGuide, which serves any data"
            )
        with pyro.plate("data", len(x), dim=-1):
            return self.posterior.draw("z", self.params)
