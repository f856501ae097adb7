"""Conditional distributions of Bayes net nodes given their parents.

They are tables, logistic, neural, Gaussian, or any other.

To add a kind, subclass `NodeConditional` and write `forward`, which makes a distribution of the
parents' values; with `fit` it can be fitted by counting.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.conditional import Conditional
from ppl_dgm.validation import check_sizes

__all__ = ["Function", "LinearGaussian", "Logistic", "Neural", "NodeConditional", "Table"]


class NodeConditional(Conditional):
    """Conditional distribution of a scalar variable given its parents.

    It is p(x | parents). `num_states` is None for a continuous variable.
    """

    def __init__(self, parents: Sequence[str], num_states: int | None) -> None:
        super().__init__()
        if isinstance(parents, str):
            raise TypeError(
                f"parents is the string {parents!r}; expected a list of names, [{parents!r}]"
            )
        if num_states is not None and num_states < 1:
            raise ValueError(
                f"num_states is {num_states}; expected at least 1, or None for a continuous "
                "variable"
            )
        self.parents, self.num_states = tuple(parents), num_states

    @abstractmethod
    def forward(self, *parents: Tensor) -> Any:
        """Return the distribution for the given values of the parents.

        The values broadcast. The distribution has batch `[...]` and event `[]`.
        """

    @property
    def num_free_parameters(self) -> int:
        """Number of numbers that may be chosen freely."""
        return sum(parameter.numel() for parameter in self.parameters())

    def fit(self, x: Tensor, parents: Sequence[Tensor], smoothing: float) -> None:
        """Fit the parameters in closed form.

        The node and each parent have values `[N]`.
        """
        raise ValueError(
            f"a {type(self).__name__} conditional has no closed-form fit; fit the net by "
            "gradients, or use a Table"
        )

    def check_parents(self, states: Mapping[str, int | None]) -> None:
        """Check that the parents suit the conditional.

        ValueError is raised where they do not. `states` gives their numbers of states.
        """


class Table(NodeConditional):
    """Conditional probability table of a discrete variable.

    It has one row of probabilities for each state of the parents.

    Args:
        probs: `[*parent_states, K]`, rows that sum to one.
        parents: names of the parents, in the order of the table's dimensions.

    Raises:
        ValueError: for negative entries, rows that do not sum to one, or a dimension too many or
            too few.

    Example:
        >>> wet = Table([[0.9, 0.1], [0.2, 0.8]], parents=["rain"])
        >>> wet(torch.tensor([0, 1])).probs.tolist() == wet.probs.tolist(), wet.num_free_parameters
        (True, 2)
    """

    @checked
    def __init__(self, probs: Tensor | Sequence, parents: Sequence[str] = ()) -> None:
        probs = torch.as_tensor(probs)
        probs = probs if probs.is_floating_point() else probs.to(torch.get_default_dtype())
        check_rows(probs)
        super().__init__(parents, probs.shape[-1])
        if probs.dim() != 1 + len(self.parents):
            raise ValueError(
                f"the table has shape {list(probs.shape)}; expected one dimension for each of the "
                f"parents {list(self.parents)} and one for the states"
            )
        self.logits = nn.Parameter(log_rows(probs))

    @classmethod
    @checked
    def uniform(cls, num_states: int, parents: Mapping[str, int] | None = None) -> "Table":
        """Create a table of equal probabilities.

        `parents` maps names to numbers of states, of at least one.
        """
        parents = parents or {}
        check_sizes(num_states=num_states)
        check_sizes(**parents)
        return cls(torch.full((*parents.values(), num_states), 1.0 / num_states), tuple(parents))

    def with_parents(self, parents: Sequence[str]) -> "Table":
        """Return the same table for another node, its numbers shared.

        Example:
            >>> step = Table([[0.9, 0.1], [0.2, 0.8]], parents=["x1"])
            >>> step.with_parents(["x2"]).logits is step.logits
            True
        """
        twin = Table(self.probs, parents)
        twin.logits = self.logits
        return twin

    @property
    def probs(self) -> Tensor:
        """The table, `[*parent_states, K]`."""
        return self.logits.detach().softmax(-1)

    @property
    def num_free_parameters(self) -> int:
        """K - 1 for each state of the parents."""
        return self.logits[..., 1:].numel()

    def forward(self, *parents: Tensor) -> Any:
        """Categorical distributions of the rows that the parents' states select."""
        states = zip(parents, self.logits.shape, strict=False)
        rows = tuple(value.long().clamp(0, size - 1) for value, size in states)
        return dist.Categorical(
            logits=Vindex(self.logits)[(*rows, slice(None))] if rows else self.logits
        )

    def counts(self, x: Tensor, parents: Sequence[Tensor]) -> Tensor:
        """Count how often each entry of the table occurs.

        Values are `[N]`, counts `[*parent_states, K]`.
        """
        flat = torch.zeros_like(x, dtype=torch.long)
        for value, size in zip((*parents, x), self.logits.shape, strict=True):
            flat = flat * size + value.long()
        return (
            torch.bincount(flat, minlength=self.logits.numel())
            .reshape(self.logits.shape)
            .to(self.logits)
        )

    def fit(self, x: Tensor, parents: Sequence[Tensor], smoothing: float) -> None:
        r"""Set the probabilities to smoothed relative frequencies.

        $p_{jk} = (n_{jk} + \alpha) / (n_j + K \alpha)$, where $\alpha$ is the smoothing. Rows never
        seen become uniform.
        """
        counts = self.counts(x, parents) + smoothing
        counts = torch.where(counts.sum(-1, keepdim=True) > 0, counts, torch.ones_like(counts))
        with torch.no_grad():
            self.logits.copy_(log_rows(counts / counts.sum(-1, keepdim=True)))

    def check_parents(self, states: Mapping[str, int | None]) -> None:
        """Check that the parents have the table's numbers of states.

        They must be discrete.
        """
        given = [states[parent] for parent in self.parents]
        if given != list(self.logits.shape[:-1]):
            raise ValueError(
                f"the table's parents {list(self.parents)} have {given} states (None: continuous), "
                f"but its dimensions are {list(self.logits.shape[:-1])}"
            )


class Logistic(NodeConditional):
    r"""Logistic regression of a binary variable on its parents.

    $\mathrm{logit}\, p(x = 1 \mid u) = b + \sum_i w_i u_i$.

    Args:
        parents: names of the parents.
        weights: one for each parent; zeros by default.
        bias: b.

    Raises:
        ValueError: not one weight for each parent.

    Example:
        >>> Logistic(["a", "b"], [2.0, 0.0])(torch.tensor(1.0), torch.tensor(5.0)).probs
        tensor([0.1192, 0.8808], grad_fn=...)
    """

    @checked
    def __init__(
        self, parents: Sequence[str], weights: Sequence[float] | None = None, bias: float = 0.0
    ) -> None:
        super().__init__(parents, 2)
        self.weights = nn.Parameter(weights_of(self.parents, weights))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, *parents: Tensor) -> Any:
        """Return distributions over 0 and 1.

        The logit of 1 is the weighted sum of the parents, plus the bias.
        """
        logit = weighted_sum(parents, self.weights, self.bias)
        return dist.Categorical(logits=torch.stack([torch.zeros_like(logit), logit], -1))


class LinearGaussian(NodeConditional):
    r"""Linear regression of a real variable with normal noise.

    $x \mid u \sim N(b + \sum_i w_i u_i, \sigma^2)$ for parents u.

    Args:
        parents: names of the parents.
        weights: one for each parent; zeros by default.
        bias: b.
        scale: sigma.

    Raises:
        ValueError: not one weight for each parent, or a scale that is not positive.

    Example:
        >>> LinearGaussian(["a"], [2.0], bias=1.0)(torch.tensor(3.0)).loc
        tensor(7., grad_fn=...)
    """

    @checked
    def __init__(
        self,
        parents: Sequence[str] = (),
        weights: Sequence[float] | None = None,
        bias: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__(parents, None)
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a positive standard deviation")
        self.weights = nn.Parameter(weights_of(self.parents, weights))
        self.bias = nn.Parameter(torch.tensor(float(bias)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, *parents: Tensor) -> Any:
        """Normal distributions around the weighted sum of the parents."""
        return dist.Normal(weighted_sum(parents, self.weights, self.bias), self.log_scale.exp())

    def fit(self, x: Tensor, parents: Sequence[Tensor], smoothing: float) -> None:
        """Least squares; `smoothing` plays no part."""
        design = torch.stack(
            [torch.ones_like(x), *(parent.to(x) for parent in parents)], -1
        ).double()
        solution = (
            torch.linalg.lstsq(design.cpu(), x.double().cpu().unsqueeze(-1))
            .solution.squeeze(-1)
            .to(x.device)
        )
        variance = (x - design @ solution).square().mean()
        with torch.no_grad():
            self.bias.copy_(solution[0])
            self.weights.copy_(solution[1:])
            self.log_scale.copy_(variance.clamp_min(torch.finfo(x.dtype).tiny).log() / 2)


class Neural(NodeConditional):
    """Discrete variable whose logits are a neural net's outputs.

    The net takes the vector of the parents' values.

    Args:
        net: maps `[..., number of parents]` to `[..., num_states]`.
        parents: names of the parents.
        num_states: number of states.

    Example:
        >>> Neural(nn.Linear(2, 3), ["a", "b"], 3)(torch.zeros(5), torch.zeros(4, 1)).batch_shape
        torch.Size([4, 5])
    """

    @checked
    def __init__(self, net: nn.Module, parents: Sequence[str], num_states: int) -> None:
        super().__init__(parents, num_states)
        self.net = net

    def forward(self, *parents: Tensor) -> Any:
        """Categorical distributions of the net's outputs."""
        weight = next(self.net.parameters())
        vector = torch.stack(torch.broadcast_tensors(*parents), -1).to(weight.dtype)
        return dist.Categorical(logits=self.net(vector))


class Function(NodeConditional):
    """Conditional given by a function that returns a distribution.

    The function, or module, takes the parents' values. The distribution may be any of Pyro's.

    Args:
        function: takes one tensor for each parent and returns a distribution of scalars.
        parents: names of the parents.
        num_states: number of states, 0 to num_states - 1, of a discrete variable.

    Example:
        >>> waiting = Function(lambda busy: dist.Exponential(1.0 / (1.0 + busy)), ["busy"])
        >>> waiting(torch.tensor([0.0, 1.0])).mean
        tensor([1., 2.])
    """

    @checked
    def __init__(
        self,
        function: Callable[..., Any],
        parents: Sequence[str] = (),
        num_states: int | None = None,
    ) -> None:
        super().__init__(parents, num_states)
        self.function = function

    def forward(self, *parents: Tensor) -> Any:
        """The function's distribution."""
        return self.function(*parents)


def check_rows(probs: Tensor) -> None:
    """Refuse tables whose rows are no probabilities."""
    if probs.dim() == 0:
        raise ValueError(
            "the table is a single number; expected a row of probabilities for each state of the "
            "parents"
        )
    if not bool((probs >= 0).all()):
        raise ValueError(
            "the table has negative entries, or such that are no numbers (the least is "
            f"{probs.min().item():.6g})"
        )
    sums = probs.sum(-1)
    wrong = (sums - 1).abs() > 1e-4
    if bool(wrong.any()):
        where = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{int(wrong.sum())} rows of the table do not sum to one; the first, at the parents' "
            f"states {where}, sums to {sums[tuple(where)].item():.6g}. The last dimension is the "
            "variable's own states"
        )


def log_rows(probs: Tensor) -> Tensor:
    """Normalise rows of probabilities and take their logarithm.

    It is minus infinity where a probability is zero.
    """
    return F.normalize(probs, 1.0, -1).log()


def weights_of(parents: Sequence[str], weights: Sequence[float] | None) -> Tensor:
    """One weight for each parent; zeros by default."""
    values = (
        torch.zeros(len(parents)) if weights is None else torch.tensor([float(w) for w in weights])
    )
    if len(values) != len(parents):
        raise ValueError(
            f"there are {len(values)} weights for the parents {list(parents)}; expected one for "
            "each"
        )
    return values


def weighted_sum(values: Sequence[Tensor], weights: Tensor, bias: Tensor) -> Tensor:
    """b + sum_i w_i u_i, the values broadcasting."""
    total = bias
    for value, weight in zip(values, weights, strict=True):
        total = total + weight * value
    return total
