"""Bayes nets declared from a graph and conditional distributions."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.tables import NodeConditional, Table
from ppl_dgm.families.bayesnet.columns import (
    Data,
    check_lengths,
    check_states,
    columns_of,
    numbered,
)
from ppl_dgm.families.bayesnet.elimination import log_marginal_of, prototype
from ppl_dgm.families.bayesnet.graph import d_separated
from ppl_dgm.families.bayesnet.model import BayesNetModel
from ppl_dgm.generators import unmoved_generators
from ppl_dgm.program import Program
from ppl_dgm.validation import check_sizes

__all__ = ["BayesNet", "markov_chain", "naive_bayes"]


class BayesNet(Program):
    r"""Bayes net with one site for each variable.

    $p(x) = \prod_i p(x_i \mid \mathrm{parents}(x_i))$ (Pearl 1988).

    Data are a tensor `[N, number of nodes]` with columns in the order of the nodes, or a mapping
    from names to columns `[N]`, or a DataFrame with these columns. Discrete variables that these
    leave out are summed out exactly: the evidence of partly observed data.

    Args:
        nodes: the conditional distribution of each variable by name, which names its parents.
        states: names of a variable's states, where they have any.

    Raises:
        ValueError: for a cycle, unknown parents, tables that do not fit their parents, wrong
            numbers of state names.

    Example:
        >>> net = BayesNet({
        ...     "rain": Table([0.8, 0.2]),
        ...     "wet": Table([[0.9, 0.1], [0.2, 0.8]], parents=["rain"]),
        ... })
        >>> net.query(["rain"], {"wet": 1})
        tensor([0.3333, 0.6667])
        >>> net.num_free_parameters, net.sample(3).shape, net.density
        (3, torch.Size([3, 2]), 'exact')
    """

    @checked
    def __init__(
        self,
        nodes: Mapping[str, NodeConditional],
        states: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        model = BayesNetModel(nodes, states)
        super().__init__(model)
        self.states = model.states
        with unmoved_generators(), torch.no_grad():
            self.initialise(dict(model().items()))

    @classmethod
    @checked
    def from_edges(
        cls, num_states: Mapping[str, int], edges: Iterable[tuple[str, str]]
    ) -> "BayesNet":
        """Make a net of uniform tables from its edges.

        It takes numbers of states and edges (parent, child); the tables are to be fitted.

        Example:
            >>> BayesNet.from_edges({"a": 2, "b": 3}, [("a", "b")]).num_free_parameters
            5
        """
        edges = list(edges)
        unknown = {node for edge in edges for node in edge} - num_states.keys()
        if unknown:
            raise ValueError(
                f"the edges name {sorted(unknown)}, whose numbers of states are not given"
            )
        parents = {
            name: [parent for parent, child in edges if child == name] for name in num_states
        }
        return cls(
            {
                n: Table.uniform(k, {parent: num_states[parent] for parent in parents[n]})
                for n, k in num_states.items()
            }
        )

    @property
    def nodes(self) -> dict[str, NodeConditional]:
        """Conditional distributions by name, in the order of columns."""
        return self.model.fn.conditionals  # type: ignore[attr-defined,return-value]

    @property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """The graph: the parents of each node."""
        return {name: node.parents for name, node in self.nodes.items()}

    @property
    def num_free_parameters(self) -> int:
        """Number of free parameters of all conditional distributions.

        It is 2^n - 1 for the full table of n binary variables, 2n - 1 for a chain. Tables that
        several nodes share count once.
        """
        return sum(self.nodes[names[0]].num_free_parameters for names in self._tied)

    @property
    def _tied(self) -> list[list[str]]:
        """Names of the nodes, those that share their parameters together."""
        groups: dict[Any, list[str]] = {}
        for name, node in self.nodes.items():
            groups.setdefault(next(map(id, node.parameters()), name), []).append(name)
        return list(groups.values())

    def adapt(
        self, args: tuple, kwargs: Mapping[str, Any], bright: bool | None = None
    ) -> tuple[tuple, dict[str, Any]]:
        """Take named columns, as of a DataFrame, for the data."""
        if args or not kwargs or not kwargs.keys() <= self.nodes.keys():
            return super().adapt(args, kwargs, bright)
        return (dict(kwargs),), {}

    def sample(self, num_samples: int, *args: Any, **kwargs: Any) -> Tensor:
        """Draw all variables by ancestral sampling.

        Draws are `[num_samples, number of nodes]`, columns in the order of the nodes.
        """
        draws = self.sample_sites(num_samples, *args, **kwargs)
        columns = [draws[name].reshape(num_samples) for name in self.nodes]
        return torch.stack([column.to(prototype(self.nodes).dtype) for column in columns], -1)

    def d_separated(
        self,
        first: str | Iterable[str],
        second: str | Iterable[str],
        given: str | Iterable[str] = (),
    ) -> bool:
        """Check whether the graph separates two sets of nodes.

        They are then independent given a third set in every net with this graph. One name stands
        for the set of that node.
        """
        return d_separated(self.parents, first, second, given)

    def query(self, query: Sequence[str], evidence: Mapping[str, Any] | None = None) -> Tensor:
        """p(query | evidence), exactly.

        Args:
            query: names of discrete variables.
            evidence: values, state names, or columns `[N]` of values by name.

        Returns:
            Probabilities with one dimension for each query variable; `[N, ...]` where the evidence
                is columns.

        Raises:
            ValueError: for unknown or repeated variables, states outside the classes, or evidence
                of probability zero.
        """
        return self.log_query(query, evidence).exp()

    def log_query(self, query: Sequence[str], evidence: Mapping[str, Any] | None = None) -> Tensor:
        """log p(query | evidence); see `query`."""
        values = self._evidence(query, evidence or {})
        with torch.no_grad():
            joint = log_marginal_of(self.nodes, query, values)
        total = joint.reshape(len(joint), -1).logsumexp(1)
        if not bool(torch.isfinite(total).all()):
            raise ValueError(
                f"the evidence {dict(evidence or {})} has probability zero, so that nothing "
                "follows from it"
            )
        joint = (joint - total.reshape(-1, *(1,) * len(query))).to(prototype(self.nodes))
        return joint if any(v.dim() for v in values.values()) else joint.squeeze(0)

    def log_evidence(self, evidence: Mapping[str, Any]) -> Tensor:
        """Compute log p(evidence) in nats, other variables summed out.

        It is float64, `[]`, or `[N]` for columns; see `query`.
        """
        values = self._evidence((), evidence)
        with torch.no_grad():
            log_z = log_marginal_of(self.nodes, (), values)
        return log_z if any(v.dim() for v in values.values()) else log_z.squeeze(0)

    @checked
    def fit_counts(self, x: Data, smoothing: float = 1.0) -> "BayesNet":
        r"""Fit every node in closed form; returns itself.

        Tables by counting, $p_{jk} = (n_{jk} + \alpha) / (n_j + K \alpha)$: the posterior mean
        under a symmetric Dirichlet prior (Heckerman 1995, equation 13); linear Gaussians by least
        squares.

        Args:
            x: data of all variables.
            smoothing: alpha, a pseudo-count for each entry; 0 is maximum likelihood.

        Raises:
            ValueError: for values outside the classes, missing variables, or conditionals without
                closed form.
        """
        if smoothing < 0:
            raise ValueError(f"smoothing is {smoothing}; expected a pseudo-count of at least 0")
        columns = self._complete(x)
        for names in self._tied:
            self.nodes[names[0]].fit(*self._cases(names, columns), smoothing)
        return self

    def _cases(
        self, names: Sequence[str], columns: Mapping[str, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Join the cases of nodes that share parameters."""
        parents = zip(*(self.nodes[name].parents for name in names), strict=True)
        joined = [torch.cat([columns[name] for name in each]) for each in parents]
        return torch.cat([columns[name] for name in names]), joined

    @checked
    def dirichlet_evidence(self, x: Data, smoothing: float = 1.0) -> Tensor:
        r"""Compute log p(data | graph) in nats.

        All tables are integrated out under symmetric Dirichlet priors.

        $\sum_{i,j} \log \frac{\Gamma(K\alpha)}{\Gamma(n_{ij} + K\alpha)} \prod_k
        \frac{\Gamma(n_{ijk} + \alpha)}{\Gamma(\alpha)}$ (Cooper and Herskovits 1992, equation 8,
        for alpha = 1): compares graphs, not fitted nets.

        Raises:
            ValueError: for nodes that are no tables, a smoothing that is not positive, or values
                outside the classes.
        """
        others = [name for name, node in self.nodes.items() if not isinstance(node, Table)]
        if others or not smoothing > 0:
            raise ValueError(
                f"expected tables only and a positive smoothing; got others at {others}, "
                f"{smoothing}"
            )
        columns, total = self._complete(x), 0.0
        for names in self._tied:
            node: Any = self.nodes[names[0]]
            counts = node.counts(*self._cases(names, columns)).double()
            total = total + dirichlet_multinomial(counts, smoothing)
        return torch.as_tensor(total)

    @checked
    def classify(self, x: Data, label: str = "y") -> Tensor:
        r"""Compute p(label | x) of each datum, exactly.

        Args:
            x: data of the other variables: `[N, number of nodes - 1]`, their columns in the order
                of the nodes, or columns by name, where those left out are summed out.
            label: name of the discrete variable that is asked for.

        Returns:
            Probabilities `[N, classes]`.

        Raises:
            ValueError: as `query`.

        Example:
            >>> net = naive_bayes(2, 3)
            >>> x = torch.tensor([[0.0, 0, 0, 1], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 1]])
            >>> net.fit_counts(x).classify(torch.tensor([[1.0, 1.0, 0.0]])).argmax(-1)
            tensor([1])
        """
        others = [name for name in self.nodes if name != label]
        given = columns_of(others, x, self.states)
        return self.query([label], {n: column for n, column in given.items() if n != label})

    def _complete(self, x: Data) -> dict[str, Tensor]:
        """Columns of all variables, checked."""
        columns = columns_of(self.nodes, x, self.states)
        missing = [name for name in self.nodes if name not in columns]
        if missing:
            raise ValueError(f"the data lack the variables {missing}; counting needs all of them")
        for name, column in columns.items():
            check_states(name, self.nodes[name].num_states, column)
        return columns

    def _evidence(self, query: Sequence[str], evidence: Mapping[str, Any]) -> dict[str, Tensor]:
        """Convert evidence to tensors and check it.

        They are on the net's device, and checked together with the query.
        """
        if isinstance(query, str):
            raise ValueError(
                f"query is the string {query!r}; expected a list of names, [{query!r}]"
            )
        names = [*query, *evidence]
        unknown = [name for name in names if name not in self.nodes]
        if unknown or len(set(names)) < len(names):
            raise ValueError(f"expected different variables among {list(self.nodes)}; got {names}")
        values = {name: self._value(name, value) for name, value in evidence.items()}
        for name, value in values.items():
            check_states(name, self.nodes[name].num_states, value)
        check_lengths({name: value for name, value in values.items() if value.numel() > 1})
        return values

    def _value(self, name: str, value: Any) -> Tensor:
        if isinstance(value, str):
            if value not in self.states[name]:
                raise ValueError(
                    f"{name!r} has no state {value!r}; its states are {list(self.states[name])}"
                )
            value = self.states[name].index(value)
        like = prototype(self.nodes)
        # Numbers of Python would be rounded to single precision.
        value = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        return numbered(name, self.states[name], value).to(like.device, torch.float64)


def dirichlet_multinomial(counts: Tensor, smoothing: float) -> Tensor:
    """Compute the log probability of observations with given counts.

    The observations are in order; the counts are `[..., K]`, and rows are summed.
    """
    alpha = torch.full_like(counts, smoothing)
    rows = alpha.sum(-1).lgamma() - (counts + alpha).sum(-1).lgamma()
    return (rows + ((counts + alpha).lgamma() - alpha.lgamma()).sum(-1)).sum()


@checked
def markov_chain(num_steps: int, num_states: int = 2, homogeneous: bool = False) -> BayesNet:
    """Make a Markov chain of uniform tables.

    x1 -> x2 -> ... has one table for each step, to be fitted; or, where it is homogeneous, one
    table for all steps.

    Example:
        >>> markov_chain(5).num_free_parameters  # 2 n - 1
        9
        >>> markov_chain(5, homogeneous=True).num_free_parameters
        3
    """
    check_sizes(num_steps=num_steps, num_states=num_states)
    names = [f"x{i + 1}" for i in range(num_steps)]
    if not homogeneous:
        return BayesNet.from_edges(dict.fromkeys(names, num_states), pairwise(names))
    step = Table.uniform(num_states, {"before": num_states})
    nodes = {after: step.with_parents([before]) for before, after in pairwise(names)}
    return BayesNet({names[0]: Table.uniform(num_states), **nodes})


@checked
def naive_bayes(num_classes: int, num_features: int, num_states: int = 2) -> BayesNet:
    """Make a naive Bayes net of uniform tables.

    Features x1, x2, ... are independent given the class "y"; the tables are to be fitted.

    Example:
        >>> naive_bayes(10, 64).num_free_parameters  # 9 + 10 * 64
        649
    """
    check_sizes(num_classes=num_classes, num_features=num_features, num_states=num_states)
    names = [f"x{i + 1}" for i in range(num_features)]
    return BayesNet.from_edges(
        {"y": num_classes, **dict.fromkeys(names, num_states)}, [("y", name) for name in names]
    )
