"""MADE: a masked perceptron that computes all conditionals of an autoregressive density in one pass."""

from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn

from ppl_dgm.conditionals.likelihoods import Likelihood, named_likelihood
from ppl_dgm.distributions.discretised import Autoregressive
from ppl_dgm.nn.masked import MADENet
from ppl_dgm.nn.mlp import Activation
from ppl_dgm.program import Program


class MADE(Program):
    r"""Masked autoencoder for distribution estimation (Germain, Gregor, Murray and Larochelle 2015).

    $\log p(x) = \sum_d \log p(x_d \mid x_{<d})$, every conditional an output of one masked perceptron. The density is
    exact; a draw takes D passes. Without hidden layers it is the fully visible sigmoid belief net (Frey 1998).

    Args:
        num_dims: number D of dimensions.
        hidden: sizes of the hidden layers.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or `"gaussian"`.
        order: the dimensions in the order of generation; 0 to D - 1 by default.
        seed: draws the degrees of the hidden units, as in the paper; without one they are spread evenly.
        activation: makes the activation.

    Raises:
        ValueError: a size below one, an order that is no permutation, an unknown likelihood.

    Example:
        >>> made = MADE(5, hidden=[16])
        >>> made.density, made.sample(3).shape
        ('exact', torch.Size([3, 5]))
    """

    def __init__(
        self,
        num_dims: int,
        hidden: Sequence[int] = (500,),
        likelihood: str | Likelihood = "bernoulli",
        order: Sequence[int] | None = None,
        seed: int | None = None,
        activation: Activation = nn.ReLU,
    ) -> None:
        likelihood = named_likelihood(likelihood)
        net = MADENet(num_dims, hidden, likelihood.num_params, order, seed, activation=activation)
        super().__init__(AutoregressiveModel(net, likelihood, num_dims, order))


class AutoregressiveModel(nn.Module):
    """Data whose dimensions follow one another: x ~ prod_d p(x_d | x_<d)."""

    start: Tensor

    def __init__(
        self,
        net: nn.Module,
        likelihood: Likelihood,
        num_dims: int,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.likelihood = net, likelihood
        self.order = order
        self.register_buffer("start", torch.zeros(num_dims), persistent=False)

    def distribution(self) -> Autoregressive:
        """The density of one datum: event shape `[D]`."""
        return Autoregressive(self._params, self.likelihood, self.start, self.order)

    def _params(self, x: Tensor) -> Tensor:
        return self.net(self.likelihood.inputs(x))

    def forward(self, x: Tensor | None = None) -> Tensor:
        """Score data `[data, D]`, or draw one datum."""
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            return pyro.sample("x", self.distribution(), obs=x)
