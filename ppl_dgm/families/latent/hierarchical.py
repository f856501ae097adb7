"""VAEs with several layers of latents."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.guides import DiagonalNormal
from ppl_dgm.conditionals.likelihoods import Likelihood, named_likelihood
from ppl_dgm.conditionals.priors import StandardNormal
from ppl_dgm.families.latent.vae import LatentVectorModel
from ppl_dgm.nn.mlp import MLP, Activation, hidden_sizes
from ppl_dgm.program import Program

__all__ = ["HierarchicalVAE"]


class HierarchicalVAE(Program):
    r"""VAE with several layers of latents.

    The layers are z1 (nearest to the data) to zL, each a diagonal normal given the one above.

    $z_L \sim N(0, I)$, $z_l \sim N(\mu_l(z_{l+1}), \sigma_l^2(z_{l+1}))$, $x \sim p(x \mid z_1)$
    (Burda et al. 2016, section 5: two layers). The guide goes bottom-up, $q(z_1 \mid x) \prod_l
    q(z_{l+1} \mid z_l)$, or top-down, $q(z_L \mid x) \prod_l q(z_l \mid x, z_{l+1})$.

    Args:
        num_dims: number D of dimensions.
        num_latents: sizes of the layers z1, z2, ...
        hidden: hidden layers of the nets between x and z1, between z1 and z2, ...
        likelihood: a `Likelihood`, `"bernoulli"` or `"gaussian"`.
        top_down: the direction of the guide.
        activation: makes the activation.

    Raises:
        ValueError: if there is not one entry of `hidden` for each layer, or a size below one.

    Example:
        >>> vae = HierarchicalVAE(6, num_latents=(4, 2), hidden=((8,), (5,)))
        >>> vae = vae.initialise(torch.ones(3, 6))
        >>> [latent.name for latent in vae.structure.latents], vae.sample(2).shape
        (['z2', 'z1'], torch.Size([2, 6]))
    """

    vectors = True

    @checked
    def __init__(
        self,
        num_dims: int,
        num_latents: Sequence[int] = (100, 50),
        hidden: Sequence[Sequence[int]] = ((200, 200), (100, 100)),
        likelihood: str | Likelihood = "bernoulli",
        top_down: bool = False,
        activation: Activation = nn.Tanh,
    ) -> None:
        if len(num_latents) != len(hidden) or not num_latents:
            raise ValueError(
                f"expected hidden layers for each of {len(num_latents)} layers of latents, got "
                f"{len(hidden)}"
            )
        likelihood = named_likelihood(likelihood)
        decoder = MLP(num_latents[0], hidden[0], num_dims * likelihood.num_params, activation)
        bottom = LatentVectorModel(decoder, likelihood, StandardNormal(num_latents[-1]), num_dims)
        between = zip(pairwise(num_latents), hidden[1:], strict=True)
        layers = [NormalLayer(above, sizes, below, activation) for (below, above), sizes in between]
        inputs = guide_inputs(num_dims, num_latents, top_down)
        guides = [
            NormalLayer(i, hidden_sizes(h)[::-1], o, activation)
            for i, h, o in zip(inputs, hidden, num_latents, strict=True)
        ]
        super().__init__(
            HierarchicalModel(bottom, layers), HierarchicalGuide(guides, likelihood, top_down)
        )


def guide_inputs(num_dims: int, num_latents: Sequence[int], top_down: bool) -> list[int]:
    """Return the input size of each layer's guide.

    A guide sees the layer below, or the data and the layer above.
    """
    if top_down:
        return [num_dims + above for above in [*num_latents[1:], 0]]
    return [num_dims, *num_latents[:-1]]


class NormalLayer(nn.Module):
    """Vector of normal variables with parameters from a perceptron.

    Its outputs are the means and scales.
    """

    def __init__(
        self, num_inputs: int, hidden: Sequence[int], num_outputs: int, activation: Activation
    ) -> None:
        super().__init__()
        self.normal = DiagonalNormal(num_outputs)
        self.net = MLP(num_inputs, hidden, self.normal.num_params, activation)

    def forward(self, x: Tensor) -> Any:
        """The distribution, event `[num_outputs]`, given `[..., num_inputs]`."""
        return self.normal(self.net(x))


class HierarchicalModel(nn.Module):
    """Model of `HierarchicalVAE`, from the top layer down.

    zL ~ N(0, I), each layer given the one above, x given z1.
    """

    def __init__(self, bottom: LatentVectorModel, layers: Sequence[NormalLayer]) -> None:
        super().__init__()
        self.bottom = bottom
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor | None = None) -> Tensor:
        """Score data `[data, D]`, or draw one datum."""
        depth = len(self.layers) + 1
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            z = pyro.sample(f"z{depth}", self.bottom.prior())
            for i in reversed(range(depth - 1)):
                z = pyro.sample(f"z{i + 1}", self.layers[i](z))
            return pyro.sample("x", self.bottom.distribution(z), obs=x)


class HierarchicalGuide(nn.Module):
    """Guide of `HierarchicalVAE`, bottom-up or top-down.

    Every layer is given the one below, or the data and the one above.
    """

    def __init__(
        self, layers: Sequence[NormalLayer], likelihood: Likelihood, top_down: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.top_down = top_down
        self._likelihood = (likelihood,)  # in a tuple: its parameters are the model's

    def forward(self, x: Tensor) -> None:
        """Draw all layers of data `[data, D]`."""
        seen = self._likelihood[0].inputs(x)
        with pyro.plate("data", len(x), dim=-1):
            if self.top_down:
                self._downwards(seen)
            else:
                self._upwards(seen)

    def _upwards(self, h: Tensor) -> None:
        for i, layer in enumerate(self.layers):
            h = pyro.sample(f"z{i + 1}", layer(h))

    def _downwards(self, x: Tensor) -> None:
        h = x
        for i in reversed(range(len(self.layers))):
            z = pyro.sample(f"z{i + 1}", self.layers[i](h))
            h = torch.cat([x.expand(*z.shape[:-1], -1), z], -1)
