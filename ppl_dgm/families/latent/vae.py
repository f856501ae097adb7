"""Variational autoencoders (VAEs), made of parts.

The parts are a likelihood, a prior, a guide and nets.
"""

from collections.abc import Sequence
from typing import Any

import pyro
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.guides import AmortisedGuide, DiagonalNormal, PosteriorFamily
from ppl_dgm.conditionals.likelihoods import Likelihood, named_likelihood
from ppl_dgm.conditionals.priors import LatentPrior, StandardNormal
from ppl_dgm.nn.mlp import MLP, Activation, hidden_sizes
from ppl_dgm.program import Program

__all__ = ["VAE", "LatentVectorModel", "ScaledInputs"]


class VAE(Program):
    r"""Variational autoencoder of data vectors.

    Kingma and Welling (2014); Rezende, Mohamed and Wierstra (2014).

    $z \sim p(z)$, $x_d \mid z \sim p(x_d \mid \mathrm{decoder}(z)_d)$, guide $q(z \mid x)$ with
    parameters $\mathrm{encoder}(x)$. Each part may be replaced; none of them knows the others or
    the objective.

    Data with missing entries are `(x, observed)`: a boolean mask `[N, D]`, the missing entries of x
    any value inside the support. They are integrated out exactly, $\log p(x_{obs})$, and set to
    zero for the encoder (Mattei and Frellsen 2019; Nazabal et al. 2020).

    Args:
        num_dims: number D of dimensions.
        num_latents: number L of latent dimensions.
        hidden: sizes of the decoder's hidden layers, and reversed, of the encoder's.
        likelihood: a `Likelihood`, `"bernoulli"` or `"gaussian"`.
        prior: a `LatentPrior` of size L; standard normal by default.
        guide: a `PosteriorFamily` of size L, whose parameters the encoder gives (a diagonal normal
            by default), or a whole guide: a module called with the data that samples `"z"`.
        activation: makes the activation of the default nets.
        encoder: maps `[..., D]` to `[..., guide.num_params]`; an `MLP` by default.
        decoder: maps `[..., L]` to `[..., D * likelihood.num_params]` or `[..., D,
            likelihood.num_params]`; an `MLP` by default.

    Raises:
        ValueError: sizes below one, an unknown likelihood, a prior or guide of another size, an
            encoder beside a whole guide; when run, a decoder whose outputs are not sorted by
            dimension.

    Example:
        >>> import torch
        >>> vae = VAE(6, 2, hidden=[8]).initialise(torch.ones(3, 6))
        >>> vae.density, vae.sample(4).shape
        ('latent', torch.Size([4, 6]))
    """

    vectors = True

    @checked
    def __init__(
        self,
        num_dims: int,
        num_latents: int,
        hidden: Sequence[int] = (200, 200),
        likelihood: str | Likelihood = "bernoulli",
        prior: LatentPrior | None = None,
        guide: nn.Module | None = None,
        activation: Activation = nn.Tanh,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        likelihood = named_likelihood(likelihood)
        prior, guide = prior or StandardNormal(num_latents), guide or DiagonalNormal(num_latents)
        for name, part in (("prior", prior), ("guide", guide)):
            if getattr(part, "num_latents", num_latents) != num_latents:
                raise ValueError(
                    f"the {name} has {part.num_latents} latents; expected num_latents = "
                    f"{num_latents}"
                )
        decoder = decoder or MLP(num_latents, hidden, num_dims * likelihood.num_params, activation)
        if isinstance(guide, PosteriorFamily):
            encoder = encoder or MLP(
                num_dims, hidden_sizes(hidden)[::-1], guide.num_params, activation
            )
            guide = AmortisedGuide(nn.Sequential(ScaledInputs(likelihood), encoder), guide)
        elif encoder is not None:
            raise ValueError(
                "a whole guide has its own nets; give the encoder to it, or a PosteriorFamily "
                "as guide"
            )
        super().__init__(LatentVectorModel(decoder, likelihood, prior, num_dims), guide)


class ScaledInputs(nn.Module):
    """Scaling of data to inputs of a net.

    The likelihood says how.
    """

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self._likelihood = (likelihood,)  # in a tuple: its parameters are the model's

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to `[..., D]`."""
        return self._likelihood[0].inputs(x)


class LatentVectorModel(nn.Module):
    """z ~ prior, x ~ likelihood(decoder(z))."""

    def __init__(
        self, decoder: nn.Module, likelihood: Likelihood, prior: LatentPrior, num_dims: int
    ) -> None:
        super().__init__()
        self.decoder, self.likelihood, self.prior, self.num_dims = (
            decoder,
            likelihood,
            prior,
            num_dims,
        )

    def pixels(self, z: Tensor) -> Any:
        """p(x_d | z) of latents `[..., L]`: batch `[..., D]`."""
        params, sizes = self.decoder(z), (self.num_dims, self.likelihood.num_params)
        given = tuple(params.shape[z.dim() - 1 :])
        if sizes[1] > 1 and given not in (sizes, (sizes[0] * sizes[1],)):
            raise ValueError(
                f"the decoder gives {list(given)} numbers for each latent vector; expected "
                f"{list(sizes)}, the parameters of each of {sizes[0]} dimensions last, or "
                f"[{sizes[0] * sizes[1]}], these flattened"
            )
        return self.likelihood(params.reshape(*z.shape[:-1], *sizes))

    def distribution(self, z: Tensor) -> Any:
        """Return p(x | z) of latents `[..., L]`.

        Its batch shape is `[...]`, its event shape `[D]`.
        """
        return self.pixels(z).to_event(1)

    def forward(self, x: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        """Score data `[data, D]`, or draw one datum.

        With `observed`, only the observed part of the data is scored.
        """
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            law = (
                self.distribution(z)
                if observed is None
                else self.pixels(z).mask(observed).to_event(1)
            )
            return pyro.sample("x", law, obs=x)
