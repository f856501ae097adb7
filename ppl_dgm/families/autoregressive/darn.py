"""Deep autoregressive network (DARN) with binary latents.

Each latent and each dimension of the data is given by a net of all that come before.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.guides import AmortisedGuide, BernoulliPosterior
from ppl_dgm.conditionals.likelihoods import Bernoulli, Likelihood, named_likelihood
from ppl_dgm.distributions.autoregressive import Autoregressive
from ppl_dgm.families.autoregressive.model import check_temperature
from ppl_dgm.families.latent.vae import ScaledInputs
from ppl_dgm.nn.causal import Groups, Step
from ppl_dgm.nn.masked import MADENet
from ppl_dgm.nn.mlp import MLP
from ppl_dgm.program import Program

__all__ = ["DARN"]


class DARN(Program):
    r"""Deep autoregressive network with one stochastic layer.

    Gregor et al. (2014).

    $h \sim \prod_j p(h_j \mid h_{<j})$, binary, $x \sim \prod_d p(x_d \mid x_{<d}, h)$, both nets
    linear as in a sigmoid belief net, and $q(h \mid x)$ independent given x. The latents are summed
    over by Monte Carlo: fit it by `VIMCO`, `RLOO` or `ReweightedWakeSleep`, and ask
    `ImportanceSampling` for its evidence.

    Args:
        num_dims: number D of dimensions.
        hidden: number H of binary latents.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or
            `"gaussian"`.
        order: the dimensions in the order of generation; 0 to D - 1 by default. An item may be a
            group of dimensions, independent given the latents and earlier ones.
        encoder_hidden: sizes of the hidden layers of the guide's net; none makes it linear.

    Raises:
        ValueError: a size below one, an order that is no permutation, an unknown likelihood.

    Example:
        >>> import torch
        >>> darn = DARN(5, hidden=4).initialise(torch.ones(2, 5))
        >>> darn.density, darn.sample(3).shape
        ('latent', torch.Size([3, 5]))
    """

    vectors = True

    @checked
    def __init__(
        self,
        num_dims: int,
        hidden: int = 100,
        likelihood: str | Likelihood = "bernoulli",
        order: Groups | None = None,
        encoder_hidden: Sequence[int] = (),
    ) -> None:
        likelihood = named_likelihood(likelihood)
        model = DARNModel(num_dims, hidden, likelihood, order)
        encoder = nn.Sequential(ScaledInputs(likelihood), MLP(num_dims, encoder_hidden, hidden))
        super().__init__(model, AmortisedGuide(encoder, BernoulliPosterior(hidden)))

    @checked
    def sample(
        self, num_samples: int, *args: Any, temperature: float = 1.0, **kwargs: Any
    ) -> Tensor:
        r"""Draw latents and data, one dimension after the other.

        Args:
            num_samples: number n of independent draws.
            *args: as the model takes them; data do not matter.
            temperature: T; each conditional, of latents and data, is drawn from $p^{1 / T}$,
                normalised.
            **kwargs: as `args`, by name.

        Returns:
            Draws `[n, D]`.

        Raises:
            ValueError: a temperature that is not positive.
        """
        check_temperature(temperature)
        return super().sample(num_samples, *args, temperature=temperature, **kwargs)


class DARNModel(nn.Module):
    """Model of `DARN`: autoregressive latents and data.

    h ~ prod_j p(h_j | h_<j), x ~ prod_d p(x_d | x_<d, h).
    """

    latents: Tensor
    start: Tensor

    def __init__(
        self, num_dims: int, hidden: int, likelihood: Likelihood, order: Groups | None
    ) -> None:
        super().__init__()
        self.prior, self.prior_likelihood = MADENet(hidden, []), Bernoulli()
        self.decoder = MADENet(num_dims, [], likelihood.num_params, order, num_context=hidden)
        self.likelihood = likelihood
        self.register_buffer("latents", torch.zeros(hidden), persistent=False)
        self.register_buffer("start", torch.zeros(num_dims), persistent=False)

    def forward(self, x: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Score data `[data, D]`, or draw one datum."""
        prior = Autoregressive(
            self.prior,
            self.prior_likelihood,
            self.latents,
            stepper=self.prior.stepper,
            draw=partial(self.prior_likelihood.draw, temperature=temperature),
        )
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            h = pyro.sample("z", prior)
            return pyro.sample("x", self.conditional(h, temperature), obs=x)

    def conditional(self, h: Tensor, temperature: float = 1.0) -> Autoregressive:
        """Return p(x | h) of latents `[..., H]`.

        Its batch shape is `[...]`, its event shape `[D]`.
        """
        inputs = self.likelihood.inputs

        def stepper(x: Tensor) -> Step:
            step = self.decoder.stepper(inputs(x), h)
            return lambda t, x: step(t, inputs(x))

        return Autoregressive(
            lambda x: self.decoder(inputs(x), h),
            self.likelihood,
            self.start.expand(*h.shape[:-1], -1),
            self.decoder.sequences[0],
            stepper=stepper,
            draw=partial(self.likelihood.draw, temperature=temperature),
        )
