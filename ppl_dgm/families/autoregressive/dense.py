"""Dense autoregressive families: FVSBN, NADE, MADE."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.likelihoods import Likelihood, named_likelihood
from ppl_dgm.families.autoregressive.model import AutoregressiveProgram, context_of
from ppl_dgm.nn.causal import Groups
from ppl_dgm.nn.masked import MADENet
from ppl_dgm.nn.mlp import Activation
from ppl_dgm.nn.nade import NADENet

__all__ = ["FVSBN", "MADE", "NADE"]


class MADE(AutoregressiveProgram):
    r"""Masked autoencoder for distribution estimation (Germain et al. 2015).

    $\log p(x) = \sum_d \log p(x_d \mid x_{<d})$, every conditional an output of one masked
    perceptron. The density is exact; a draw computes each hidden unit once. Without hidden layers
    it is the fully visible sigmoid belief net.

    Args:
        num_dims: number D of dimensions.
        hidden: sizes of the hidden layers.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or
            `"gaussian"`.
        order: the dimensions in the order of generation; 0 to D - 1 by default. An item may be a
            group of dimensions, independent given the earlier ones and drawn together.
        seed: draws the degrees of the hidden units, as in the paper; without one they are spread
            evenly.
        activation: makes the activation.
        orders: number K of orders, each with masks of its own; the density is the mean of theirs.
        num_classes: number of classes, of which each datum then has a label.
        context: size of a vector that is given with each datum, as labels are.
        direct: whether the outputs also see the earlier dimensions past the hidden layers, as they
            do without any.

    Raises:
        ValueError: a size below one, an order that is no permutation, an unknown likelihood.

    Example:
        >>> made = MADE(5, hidden=[16])
        >>> made.density, made.sample(3).shape
        ('exact', torch.Size([3, 5]))
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        hidden: Sequence[int] = (500,),
        likelihood: str | Likelihood = "bernoulli",
        order: Groups | None = None,
        seed: int | None = None,
        activation: Activation = nn.ReLU,
        orders: int = 1,
        num_classes: int | None = None,
        context: int | None = None,
        direct: bool = False,
    ) -> None:
        likelihood = named_likelihood(likelihood)
        settings: Any = (
            likelihood.num_params,
            order,
            seed,
            context_of(num_classes, context),
            activation,
            orders,
            direct,
        )
        super().__init__(MADENet(num_dims, hidden, *settings), likelihood, num_classes, context)


class FVSBN(MADE):
    r"""Fully visible sigmoid belief net (Frey 1998).

    $\mathrm{logit}\, p(x_d = 1 \mid x_{<d}) = b_d + w_d^\top x_{<d}$.

    Args:
        num_dims: number D of dimensions.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or
            `"gaussian"`.
        order: the dimensions in the order of generation; 0 to D - 1 by default. An item may be a
            group of dimensions, independent given the earlier ones and drawn together.
        orders: number K of orders; the density is the mean of theirs.
        seed: draws the orders after the first.
        num_classes: number of classes, of which each datum then has a label.
        context: size of a vector that is given with each datum, as labels are.

    Raises:
        ValueError: a size below one, an order that is no permutation, an unknown likelihood.

    Example:
        >>> FVSBN(5).sample(3).shape
        torch.Size([3, 5])
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        likelihood: str | Likelihood = "bernoulli",
        order: Groups | None = None,
        orders: int = 1,
        seed: int | None = None,
        num_classes: int | None = None,
        context: int | None = None,
    ) -> None:
        super().__init__(
            num_dims,
            [],
            likelihood,
            order,
            seed,
            orders=orders,
            num_classes=num_classes,
            context=context,
        )


class NADE(AutoregressiveProgram):
    r"""Neural autoregressive distribution estimator (Larochelle and Murray 2011).

    The conditionals share hidden units $\mathrm{act}(c + W_{:, <d} x_{<d})$, whose inputs each
    dimension changes by one column: O(D H) for a datum. With `likelihoods.MixtureDensity` it is
    RNADE (Uria, Murray and Larochelle 2013), with several orders, of which training draws one a
    step or any (`all_orders`), EoNADE (Uria, Murray and Larochelle 2014).

    Args:
        num_dims: number D of dimensions.
        hidden: number H of hidden units.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or
            `"gaussian"`.
        order: the dimensions in the order of generation; 0 to D - 1 by default. An item may be a
            group of dimensions, independent given the earlier ones and drawn together.
        orders: number K of orders; the density is the mean of theirs.
        seed: draws the orders after the first.
        activation: makes the activation.
        num_classes: number of classes, of which each datum then has a label.
        context: size of a vector that is given with each datum, as labels are.
        all_orders: whether training draws from all orders, not from the K, and the net is told
            which dimensions it knows.

    Raises:
        ValueError: a size below one, an order that is no permutation, an unknown likelihood.

    Example:
        >>> NADE(5, hidden=16).sample(3).shape
        torch.Size([3, 5])
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        hidden: int = 500,
        likelihood: str | Likelihood = "bernoulli",
        order: Groups | None = None,
        orders: int = 1,
        seed: int | None = None,
        activation: Activation = nn.Sigmoid,
        num_classes: int | None = None,
        context: int | None = None,
        all_orders: bool = False,
    ) -> None:
        likelihood = named_likelihood(likelihood)
        settings: Any = (
            likelihood.num_params,
            order,
            seed,
            context_of(num_classes, context),
            activation,
            orders,
            all_orders,
        )
        super().__init__(NADENet(num_dims, hidden, *settings), likelihood, num_classes, context)
