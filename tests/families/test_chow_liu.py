"""Chow-Liu trees: the best of all trees, mutual information, roots, names, bad input."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from cases import all_vectors
from sklearn.metrics import mutual_info_score
from torch import Tensor

from ppl_dgm.evidence import Exact
from ppl_dgm.families.bayesnet import BayesNet, Table, chow_liu
from ppl_dgm.families.bayesnet.chow_liu import mutual_information


def data(num_states: int = 2, num_data: int = 300) -> Tensor:
    """Five dependent variables, one of them a function of two others."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(num_states, (num_data, 5), generator=generator)
    keep = torch.rand(num_data, 5, generator=generator)
    x[:, 2] = torch.where(keep[:, 2] < 0.6, x[:, 0], x[:, 2])
    x[:, 1] = torch.where(keep[:, 1] < 0.5, x[:, 2], x[:, 1])
    x[:, 4] = (x[:, 3] + x[:, 0]) % num_states
    x[:, 3] = torch.where(keep[:, 3] < 0.3, x[:, 1], x[:, 3])
    return x.float()


def likelihood(net: BayesNet, x: Tensor) -> float:
    """Log likelihood of data, in nats."""
    return Exact()(net, x).log_z.sum().item()


def spanning_trees(names: list[str]) -> list[list[tuple[str, str]]]:
    """All trees over nodes, edges away from the first."""
    found = []
    for chosen in combinations(combinations(names, 2), len(names) - 1):
        reached, edges, left = {names[0]}, [], list(chosen)
        while left:
            nearest = next((edge for edge in left if len(reached & set(edge)) == 1), None)
            if nearest is None:
                break
            left.remove(nearest)
            child = next(node for node in nearest if node not in reached)
            edges.append((next(node for node in nearest if node in reached), child))
            reached.add(child)
        if len(reached) == len(names):
            found.append(edges)
    return found


@pytest.mark.parametrize("num_states", [2, 3])
def test_no_tree_is_more_likely(num_states: int) -> None:
    x = data(num_states)
    found = likelihood(chow_liu(x, num_states, smoothing=0.0), x)
    names = [f"x{i}" for i in range(1, 6)]
    trees = spanning_trees(names)
    assert len(trees) == 125  # 5^3, Cayley's formula
    sizes = dict.fromkeys(names, num_states)
    rivals = [
        likelihood(BayesNet.from_edges(sizes, edges).fit_counts(x, 0.0), x) for edges in trees[::5]
    ]
    best = max(
        trees, key=lambda edges: sum(pair_information(x, a, b) for a, b in edges)
    )  # by scikit-learn
    top = likelihood(BayesNet.from_edges(sizes, best).fit_counts(x, 0.0), x)
    assert found == pytest.approx(top, abs=1e-3)
    assert found >= max(rivals) - 1e-3
    assert found > sorted(rivals)[-2] + 1


def pair_information(x: Tensor, first: str, second: str) -> float:
    """Mutual information of two columns by scikit-learn."""
    columns = (x[:, int(name[1:]) - 1].numpy() for name in (first, second))
    return float(mutual_info_score(*columns))


@pytest.mark.parametrize("num_states", [2, 3])
def test_mutual_information_is_scikit_learns(num_states: int) -> None:
    x = data(num_states)
    found = mutual_information(x.long(), num_states)
    for i in range(5):
        for j in range(5):
            expected = pair_information(x, f"x{i + 1}", f"x{j + 1}")
            assert found[i, j].item() == pytest.approx(expected, abs=1e-10)


def test_mutual_information_with_pseudo_counts() -> None:
    x = torch.tensor([[0, 0], [1, 0]])
    joint = torch.tensor([[2.0, 1.0], [2.0, 1.0]]).double() / 6
    marginals = joint.sum(1, keepdim=True) * joint.sum(0)
    expected = (joint * (joint / marginals).log()).sum()
    assert torch.allclose(mutual_information(x, 2, 1.0)[0, 1], expected)


@pytest.mark.parametrize("root", range(5))
def test_every_root_gives_one_likelihood(root: int) -> None:
    x = data(3)
    net = chow_liu(x, smoothing=0.0, root=root)
    assert net.parents[f"x{root + 1}"] == ()
    assert likelihood(net, x) == pytest.approx(likelihood(chow_liu(x, smoothing=0.0), x), abs=1e-3)


def test_the_tree_that_made_the_data_is_found() -> None:
    keep = [[0.85, 0.15], [0.15, 0.85]]
    true = BayesNet(
        {
            "a": Table([0.4, 0.6]),
            "b": Table(keep, ["a"]),
            "c": Table(keep, ["b"]),
            "d": Table(keep, ["b"]),
        }
    )
    torch.manual_seed(0)
    columns = dict(zip("abcd", true.sample(5000).unbind(-1), strict=True))
    net = chow_liu(columns, root=0)
    assert net.parents == true.parents
    x = all_vectors(2, 4)
    assert Exact()(net, x).log_z.exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(Exact()(net, x).log_z, Exact()(true, x).log_z, atol=0.2)


def test_constant_and_single_columns() -> None:
    assert chow_liu(torch.ones(4, 1), 2).parents == {"x1": ()}
    net = chow_liu(torch.zeros(4, 3), 2)
    assert sorted(map(len, net.parents.values())) == [0, 1, 1]


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "vector": (lambda: chow_liu(torch.ones(3)), "expected data \\[N, D\\]"),
    "no data": (lambda: chow_liu(torch.ones(0, 3)), "at least one each"),
    "states": (lambda: chow_liu(torch.tensor([[0.0, 2.0]]), 2), "outside its classes"),
    "fractions": (lambda: chow_liu(torch.tensor([[0.5, 1.0]])), "outside its classes"),
    "lengths": (
        lambda: chow_liu({"a": torch.ones(2), "b": torch.ones(3)}),
        "different lengths",
    ),
    "no columns": (lambda: chow_liu({}), "got none"),
    "smoothing": (lambda: chow_liu(torch.ones(2, 2), smoothing=-1.0), "smoothing is -1.0"),
    "root": (lambda: chow_liu(torch.ones(2, 2), root=2), "root 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
