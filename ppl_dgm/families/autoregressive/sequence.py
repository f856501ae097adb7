"""Autoregressive families over sequences: recurrent nets and WaveNet."""

from collections.abc import Sequence
from typing import Any

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.likelihoods import Likelihood, named_likelihood
from ppl_dgm.families.autoregressive.model import AutoregressiveProgram, context_of
from ppl_dgm.nn.sequence import Cell, RecurrentSequenceNet, WaveNetNet

__all__ = ["RecurrentNet", "WaveNet"]


class RecurrentNet(AutoregressiveProgram):
    r"""GRU or LSTM over the dimensions.

    $h_t = f(h_{t-1}, x_{t-1}, e_t)$ and $x_t \sim p(\cdot \mid V h_t + b)$.

    e_t is a learned vector of the t-th place, so that on images the net knows where it is.

    Args:
        num_dims: number D of dimensions.
        hidden: size of the state.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or
            `"gaussian"`.
        order: the dimensions in the order of generation; 0 to D - 1 by default.
        num_layers: of the recurrent net.
        cell: `"gru"` or `"lstm"`.
        num_classes: number of classes, of which each datum then has a label.
        context: size of a vector that is given with each datum, as labels are.

    Raises:
        ValueError: a size below one, an order that is no permutation, an unknown likelihood or
            cell.

    Example:
        >>> RecurrentNet(5, hidden=8).sample(3).shape
        torch.Size([3, 5])
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        hidden: int = 128,
        likelihood: str | Likelihood = "bernoulli",
        order: Sequence[int] | None = None,
        num_layers: int = 1,
        cell: Cell = "gru",
        num_classes: int | None = None,
        context: int | None = None,
    ) -> None:
        likelihood = named_likelihood(likelihood)
        settings: Any = (
            likelihood.num_params,
            order,
            num_layers,
            cell,
            context_of(num_classes, context),
        )
        super().__init__(
            RecurrentSequenceNet(num_dims, hidden, *settings), likelihood, num_classes, context
        )


class WaveNet(AutoregressiveProgram):
    """WaveNet: dilated causal convolutions with gates and skips.

    van den Oord et al. (2016).

    Each place has a learned vector, so that on images the net knows where it is.

    Args:
        num_dims: number D of dimensions.
        width: of the residual stream.
        num_layers: L, with a receptive field of 2^L inputs; by default just enough to see
            everything.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or
            `"gaussian"`.
        order: the dimensions in the order of generation; 0 to D - 1 by default.
        cycle: dilations double up to 2^(cycle - 1) and begin again; never by default.
        skip_width: of the skips.
        num_classes: number of classes, of which each datum then has a label.
        context: size of a vector that is given with each datum, as labels are.

    Raises:
        ValueError: a size below one, an order that is no permutation, an unknown likelihood.

    Example:
        >>> WaveNet(5, width=8).sample(3).shape
        torch.Size([3, 5])
    """

    @checked
    def __init__(
        self,
        num_dims: int,
        width: int = 32,
        num_layers: int | None = None,
        likelihood: str | Likelihood = "bernoulli",
        order: Sequence[int] | None = None,
        cycle: int | None = None,
        skip_width: int = 64,
        num_classes: int | None = None,
        context: int | None = None,
    ) -> None:
        likelihood = named_likelihood(likelihood)
        settings: Any = (
            likelihood.num_params,
            order,
            num_layers,
            cycle,
            skip_width,
            context_of(num_classes, context),
        )
        super().__init__(WaveNetNet(num_dims, width, *settings), likelihood, num_classes, context)
