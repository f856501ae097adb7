"""Generators: networks that map noise to data.

With an observation noise, a generator is a latent-variable program.
"""

import pyro
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.likelihoods import Gaussian
from ppl_dgm.conditionals.priors import LatentPrior, StandardNormal
from ppl_dgm.families.latent.vae import LatentVectorModel
from ppl_dgm.program import Program
from ppl_dgm.validation import check_sizes

__all__ = ["Generator"]


class Generator(Program):
    r"""Generator of a generative adversarial network (GAN).

    $z \sim p(z)$, $x = g(z)$ (Goodfellow et al. 2014).

    Its density is `"implicit"`: objectives such as `GAN` and `FGAN` fit it, likelihoods and
    evidence do not apply. With a `noise` $\sigma$ it is $x \mid z \sim N(g(z), \sigma^2)$, a
    latent-variable program like any other, whose evidence estimators find (Wu et al. 2017).
    `with_noise` makes that of a fitted generator.

    Args:
        net: maps `[..., L]` to `[..., D]`.
        num_latents: number L of latent dimensions.
        num_dims: number D of dimensions.
        noise: standard deviation of the observation; None for a deterministic x.
        prior: a `LatentPrior` of size L; standard normal by default.

    Raises:
        ValueError: a prior of another size, a noise that is not positive; when run, a net whose
            outputs are not `[..., D]`.

    Example:
        >>> import torch
        >>> generator = Generator(torch.nn.Linear(2, 3), 2, 3)
        >>> generator.density, generator.sample(4).shape
        ('implicit', torch.Size([4, 3]))
        >>> generator.with_noise(0.1).density
        'latent'
    """

    vectors = True

    @checked
    def __init__(
        self,
        net: nn.Module,
        num_latents: int,
        num_dims: int,
        noise: float | None = None,
        prior: LatentPrior | None = None,
    ) -> None:
        prior = prior or StandardNormal(num_latents)
        if prior.num_latents != num_latents:
            raise ValueError(
                f"the prior has {prior.num_latents} latents; expected num_latents = {num_latents}"
            )
        check_sizes(num_dims=num_dims)
        if noise is not None and not noise > 0:
            raise ValueError(
                f"noise is {noise!r}; expected the positive standard deviation of an observation, "
                "or None for a generator without a density"
            )
        net = CheckedNet(net, num_dims)
        super().__init__(
            ImplicitModel(net, prior)
            if noise is None
            else LatentVectorModel(net, Gaussian(noise), prior, num_dims)
        )
        self._parts = (net.net, num_latents, num_dims, prior)

    def with_noise(self, noise: float) -> "Generator":
        """Return the same generator with normal observation noise.

        The parameters are shared; `noise` is the standard deviation.
        """
        net, num_latents, num_dims, prior = self._parts
        return Generator(net, num_latents, num_dims, noise, prior)


class CheckedNet(nn.Module):
    """A net whose outputs are seen to be `[..., D]`."""

    def __init__(self, net: nn.Module, num_dims: int) -> None:
        super().__init__()
        self.net, self.num_dims = net, num_dims

    def forward(self, z: Tensor) -> Tensor:
        """`[..., L]` to `[..., D]`."""
        x, expected = self.net(z), (*z.shape[:-1], self.num_dims)
        if tuple(x.shape) != expected:
            raise ValueError(
                f"the generator's net maps {tuple(z.shape)} to {tuple(x.shape)}; expected "
                f"{expected}: a vector of num_dims = {self.num_dims} for each latent vector"
            )
        return x


class ImplicitModel(nn.Module):
    """z ~ prior, x = net(z)."""

    def __init__(self, net: nn.Module, prior: LatentPrior) -> None:
        super().__init__()
        self.net, self.prior = net, prior

    def forward(self, x: Tensor | None = None) -> Tensor:
        """Draw one datum, or as many as `x` holds.

        The values of `x` `[data, D]` do not matter.
        """
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            return pyro.deterministic("x", self.net(z), event_dim=1)
