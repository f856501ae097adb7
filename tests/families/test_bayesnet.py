"""Bayes nets against enumeration, published marginals, and counting by hand."""

import copy
import json
import math
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_dgm import fit, log_weights
from ppl_dgm.evidence import Exact, ImportanceSampling
from ppl_dgm.families import IndependentBernoulli, bayesnet
from ppl_dgm.families.bayesnet import BayesNet, Function, LinearGaussian, Logistic, Neural, Table
from ppl_dgm.families.bayesnet.graph import ancestors, d_separated, reachable, topological_order
from ppl_dgm.sampling.memory import allocated_bytes


def random_table(shape: list[int], parents: list[str]) -> Table:
    return Table(torch.rand(shape, dtype=torch.float64).softmax(-1), parents)


def random_net() -> BayesNet:
    """A loopy net of tables, a logistic and a neural conditional, in double precision."""
    torch.manual_seed(0)
    return BayesNet(
        {
            "e": Neural(nn.Linear(2, 3), ["c", "d"], 3),
            "a": random_table([2], []),
            "b": random_table([2, 3], ["a"]),
            "c": random_table([2, 3, 2], ["a", "b"]),
            "d": Logistic(["a", "b"], [1.0, -0.7], bias=0.3),
        }
    ).double()


def joint_table(net: BayesNet) -> Tensor:
    """p(x) of every configuration, one conditional after the other.

    The result is `[*states]` in the order of the nodes.
    """
    sizes = [node.num_states for node in net.nodes.values()]
    table = torch.zeros(sizes, dtype=torch.float64)
    for states in product(*map(range, sizes)):
        value = dict(zip(net.nodes, map(torch.tensor, states), strict=True))
        terms = [
            node(*(value[parent].double() for parent in node.parents)).log_prob(
                value[name].double()
            )
            for name, node in net.nodes.items()
        ]
        table[states] = sum(term.item() for term in terms)
    return table.exp()


def test_queries_agree_with_the_full_table() -> None:
    net = random_net()
    table = joint_table(net)
    assert table.sum().item() == pytest.approx(1.0, abs=1e-12)
    axes = {name: i for i, name in enumerate(net.nodes)}
    for query, evidence in [
        (["b"], {"e": 2}),
        (["d", "a"], {}),
        (["a", "c"], {"e": 0, "d": 1}),
        (["e"], {"b": 1}),
    ]:
        part = table
        for name, value in evidence.items():
            part = part.index_select(axes[name], torch.tensor([value]))
        kept = part.sum([axes[n] for n in axes if n not in query], keepdim=True)
        order = [axes[n] for n in query] + [axes[n] for n in axes if n not in query]
        expected = (kept / kept.sum()).permute(order).flatten(len(query) - 1).squeeze(-1)
        assert torch.allclose(
            net.query(query, evidence),
            expected.reshape(net.query(query, evidence).shape),
            atol=1e-12,
        )


def test_queries_with_columns_of_evidence_are_row_by_row() -> None:
    net = random_net()
    rows = {"e": torch.tensor([0, 1, 2, 1]), "a": torch.tensor([1, 0, 1, 1])}
    together = net.query(["b", "d"], rows)
    alone = [
        net.query(["b", "d"], {name: int(column[i]) for name, column in rows.items()})
        for i in range(4)
    ]
    assert together.shape == (4, 3, 2)
    assert torch.allclose(together, torch.stack(alone), atol=1e-12)
    assert torch.allclose(
        net.query(["b"], {"e": rows["e"], "a": 1})[1],
        net.query(["b"], {"e": 1, "a": 1}),
        atol=1e-12,
    )


def test_evidence_of_partly_observed_data_three_ways() -> None:
    net = random_net()
    columns = {"e": torch.tensor([0, 1, 2, 2]), "b": torch.tensor([2, 0, 1, 1])}
    expected = joint_table(net).sum([1, 3, 4])[columns["e"], columns["b"]].log()
    assert torch.allclose(net.log_evidence(columns), expected, atol=1e-12)
    assert torch.allclose(Exact()(net, columns).log_z, expected, atol=1e-10)
    assert torch.allclose(log_weights(net, columns).squeeze(0), expected, atol=1e-10)


def test_asia_has_the_published_marginals() -> None:
    net = bayesnet.asia()
    published = {
        "asia": 0.01, "tub": 0.0104, "smoke": 0.5, "lung": 0.055, "bronc": 0.45,
        "either": 0.064828, "xray": 0.11029, "dysp": 0.43597,
    }  # fmt: skip
    for name, probability in published.items():
        assert net.query([name])[0].item() == pytest.approx(probability, abs=5e-6)
    assert net.num_free_parameters == 18
    after = net.query(["tub"], {"asia": "yes", "dysp": "yes", "xray": "yes"})[0].item()
    table = joint_table(net.double())
    kept = table[0, :, :, :, :, :, 0, 0]
    assert after == pytest.approx((kept[0].sum() / kept.sum()).item(), abs=1e-6)


def test_the_burglary_posterior_of_the_textbook() -> None:
    posterior = bayesnet.burglary().query(["burglary"], {"john_calls": "yes", "mary_calls": "yes"})
    assert posterior[0].item() == pytest.approx(0.284171835, abs=1e-6)


PEER = json.loads(Path(__file__).with_name("pgmpy_marginals.json").read_text())
PEER_CASES = [(name, case) for name in ("asia", "alarm") for case in range(2)]


def assert_marginals(
    net: BayesNet, evidence: dict[str, str], marginals: dict[str, dict[str, float]]
) -> None:
    """Every marginal agrees to 1e-6, state by state."""
    assert marginals.keys() == net.nodes.keys() - evidence.keys()
    for name, expected in marginals.items():
        found = dict(zip(net.states[name], net.query([name], evidence).tolist(), strict=True))
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "case"), PEER_CASES)
def test_marginals_agree_with_those_that_pgmpy_gave(name: str, case: int) -> None:
    assert_marginals(getattr(bayesnet, name)(), **PEER[name][case])


@pytest.mark.parametrize(("name", "case"), PEER_CASES)
def test_marginals_agree_with_pgmpy_on_the_written_file(
    name: str, case: int, tmp_path: Path
) -> None:
    net, evidence = getattr(bayesnet, name)(), PEER[name][case]["evidence"]
    text = bayesnet.write_bif(net, tmp_path / "net.bif").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its deprecations are not ours
        pytest.importorskip("pgmpy")
        reader = pytest.importorskip("pgmpy.readwrite").BIFReader(string=text)
        elimination = pytest.importorskip("pgmpy.inference").VariableElimination(reader.get_model())
        marginals = {}
        for variable in net.nodes.keys() - evidence.keys():
            factor = elimination.query([variable], evidence=evidence, show_progress=False)
            marginals[variable] = dict(
                zip(factor.state_names[variable], factor.values.tolist(), strict=True)
            )
    assert_marginals(net, evidence, marginals)


def test_alarm_has_the_published_size() -> None:
    net = bayesnet.alarm()
    assert len(net.nodes) == 37
    assert sum(len(parents) for parents in net.parents.values()) == 46
    assert net.num_free_parameters == 509
    assert sorted(len(states) for states in net.states.values()) == [2] * 13 + [3] * 17 + [4] * 7


def test_alarm_queries_agree_with_enumeration_of_the_ancestors() -> None:
    net = bayesnet.alarm().double()
    evidence = {"CVP": "HIGH", "PCWP": "NORMAL", "STROKEVOLUME": "LOW"}
    family = ancestors(net.parents, ["HISTORY", *evidence])
    part = BayesNet({name: node for name, node in net.nodes.items() if name in family})
    assert set(part.nodes) == {
        "HISTORY",
        "CVP",
        "PCWP",
        "HYPOVOLEMIA",
        "LVEDVOLUME",
        "LVFAILURE",
        "STROKEVOLUME",
    }
    index = tuple(
        net.states[name].index(evidence[name]) if name in evidence else slice(None)
        for name in part.nodes
    )
    joint = joint_table(part)[index]  # [HISTORY, HYPOVOLEMIA, LVEDVOLUME, LVFAILURE]
    assert torch.allclose(
        net.query(["HISTORY"], evidence), joint.sum((1, 2, 3)) / joint.sum(), atol=1e-12
    )
    expected = joint.sum((0, 2)) / joint.sum()
    assert torch.allclose(net.query(["HYPOVOLEMIA", "LVFAILURE"], evidence), expected, atol=1e-12)


def test_alarm_marginals_are_those_of_its_draws() -> None:
    torch.manual_seed(0)
    net, n = bayesnet.alarm(), 40_000
    draws = net.sample(n).long()
    for i, name in enumerate(net.nodes):
        probs = net.query([name])
        frequencies = draws[:, i].bincount(minlength=len(probs)) / n
        assert bool(((frequencies - probs).abs() < 4.5 * (probs * (1 - probs) / n).sqrt()).all())
    names = list(net.nodes)
    kept = draws[draws[:, names.index("BP")] == 0]
    probs = net.query(["CATECHOL"], {"BP": "LOW"})
    frequency = (kept[:, names.index("CATECHOL")] == 0).float().mean()
    assert abs(frequency - probs[0]) < 4.5 * (probs.prod() / len(kept)).sqrt()


def test_alarm_takes_little_memory_whatever_is_asked() -> None:
    """The full table has 2^13 3^17 4^7 = 1.7e16 entries."""
    net = bayesnet.alarm()
    for query, evidence in [
        ("HYPOVOLEMIA", {"BP": "LOW", "EXPCO2": "HIGH", "HRSAT": "LOW"}),
        ("MINVOL", {"BP": "HIGH"}),
    ]:
        assert allocated_bytes(lambda q=query, e=evidence: net.query([q], e)) < 2**20


def test_elimination_is_not_exponential_in_the_number_of_variables() -> None:
    chain = bayesnet.markov_chain(200, 3)
    torch.manual_seed(0)
    with torch.no_grad():
        for node in chain.double().nodes.values():
            node.logits.copy_(torch.randn_like(node.logits))
    message = chain.nodes["x1"].probs
    for i in range(2, 201):
        message = message @ chain.nodes[f"x{i}"].probs
    assert torch.allclose(chain.query(["x200"]), message, atol=1e-12)


def test_hidden_chain_is_summed_out_by_the_program_too() -> None:
    chain = bayesnet.markov_chain(12, 3).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for node in chain.nodes.values():
            node.logits.copy_(torch.randn_like(node.logits))
    ends = {"x1": torch.tensor([0, 1]), "x12": torch.tensor([2, 0])}
    assert torch.allclose(Exact()(chain, ends).log_z, chain.log_evidence(ends), atol=1e-10)


def test_numbers_of_free_parameters() -> None:
    n = 6
    names = [f"v{i}" for i in range(n)]
    full = BayesNet.from_edges(
        dict.fromkeys(names, 2), [(a, b) for i, b in enumerate(names) for a in names[:i]]
    )
    assert full.num_free_parameters == 2**n - 1
    assert bayesnet.markov_chain(n).num_free_parameters == 2 * n - 1
    assert bayesnet.naive_bayes(3, 5).num_free_parameters == 2 + 3 * 5
    assert bayesnet.sachs_graph().num_free_parameters == 178
    assert random_net().num_free_parameters == 9 + 1 + 4 + 6 + 3


def test_counting_gives_frequencies_and_recovers_the_truth() -> None:
    net = random_net()
    x = torch.tensor([[0, 0, 0], [0, 1, 2], [1, 1, 2], [1, 1, 0]], dtype=torch.float64)
    small = BayesNet.from_edges({"a": 2, "b": 2, "c": 3}, [("a", "b"), ("b", "c")]).double()
    assert torch.allclose(
        small.fit_counts(x, 0.0).nodes["b"].probs, torch.tensor([[0.5, 0.5], [0.0, 1.0]]).double()
    )
    expected = torch.tensor([[2.0, 1.0, 1.0], [2.0, 1.0, 3.0]]).double()
    assert torch.allclose(
        small.fit_counts(x).nodes["c"].probs, expected / expected.sum(-1, keepdim=True)
    )
    del net
    source = bayesnet.burglary()
    with torch.no_grad():
        source.nodes["burglary"].logits.copy_(torch.tensor([0.4, 0.6]).log())
        source.nodes["earthquake"].logits.copy_(torch.tensor([0.3, 0.7]).log())
    edges = [(parent, name) for name, parents in source.parents.items() for parent in parents]
    fitted = BayesNet.from_edges(dict.fromkeys(source.nodes, 2), edges).fit_counts(
        source.sample(40_000), 0.0
    )
    for name, node in source.nodes.items():
        assert torch.allclose(fitted.nodes[name].probs, node.probs, atol=0.025)


def test_the_maximum_likelihood_fit_is_a_stationary_point() -> None:
    net = BayesNet.from_edges(
        {"a": 2, "b": 2, "c": 3}, [("a", "b"), ("a", "c"), ("b", "c")]
    ).double()
    x = torch.stack(
        [torch.randint(2, (60,)), torch.randint(2, (60,)), torch.randint(3, (60,))], -1
    ).double()
    net.fit_counts(x, 0.0)
    (-net.bind(x).log_joint({}).likelihood.sum()).backward()
    assert all(parameter.grad.abs().max() < 1e-8 for parameter in net.parameters())


def test_dirichlet_evidence_is_the_chain_rule_of_predictives() -> None:
    """p(data) is the product of each datum's probability given those before it."""
    x = torch.stack([torch.randint(2, (12,)), torch.randint(3, (12,))], -1).double()
    net = BayesNet.from_edges({"a": 2, "b": 3}, [("a", "b")]).double()
    total = 0.0
    for i in range(12):
        net.fit_counts(x[:i], 0.5)
        total += net.log_evidence({"a": x[i, 0], "b": x[i, 1]}).item()
    assert net.dirichlet_evidence(x, 0.5).item() == pytest.approx(total, abs=1e-9)


def test_gaussian_net_is_a_multivariate_normal() -> None:
    net = BayesNet(
        {
            "a": LinearGaussian(scale=2.0, bias=1.0),
            "b": LinearGaussian(["a"], [0.5], scale=0.7),
            "c": LinearGaussian(["a", "b"], [1.0, -2.0], bias=0.2, scale=0.3),
        }
    ).double()
    weights = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [1.0, -2.0, 0]], dtype=torch.float64)
    solve = torch.linalg.inv(torch.eye(3, dtype=torch.float64) - weights)
    loc = solve @ torch.tensor([1.0, 0.0, 0.2], dtype=torch.float64)
    covariance = solve @ torch.diag(torch.tensor([4.0, 0.49, 0.09], dtype=torch.float64)) @ solve.T
    x = torch.randn(5, 3, dtype=torch.float64)
    truth = torch.distributions.MultivariateNormal(loc, covariance)
    assert torch.allclose(Exact()(net, x).log_z, truth.log_prob(x), atol=1e-6)
    draws = net.sample(50_000)
    assert torch.allclose(draws.mean(0), loc, atol=0.05)
    assert torch.allclose(torch.cov(draws.T), covariance, atol=0.3)
    fitted = net.fit_counts(draws)
    assert fitted.nodes["c"].weights.tolist() == pytest.approx([1.0, -2.0], abs=0.02)
    assert fitted.nodes["b"].log_scale.exp().item() == pytest.approx(0.7, abs=0.01)


def test_a_hidden_continuous_variable_is_estimated() -> None:
    net = BayesNet(
        {
            "cause": Table([0.3, 0.7]),
            "level": Function(lambda c: dist.Normal(2.0 * c, 1.0), ["cause"]),
            "sign": Logistic(["level"], [1.5]),
        }
    )
    grid = torch.linspace(-9, 11, 20_001, dtype=torch.float64)
    density = (
        0.3 * dist.Normal(0.0, 1.0).log_prob(grid).exp()
        + 0.7 * dist.Normal(2.0, 1.0).log_prob(grid).exp()
    )
    truth = ((density * (1.5 * grid).sigmoid()).sum() * (grid[1] - grid[0])).log()
    with pytest.raises(ValueError, match=r"\['level'\] are continuous"):
        net.query(["cause"], {"sign": 1})
    evidence = ImportanceSampling(num_particles=20_000)(net, {"sign": torch.tensor([1.0])})
    assert abs(evidence.log_z.item() - truth.item()) < 4 * evidence.std_error.item()
    expected = (
        0.7 * math.exp(-0.5) / (0.7 * math.exp(-0.5) + 0.3 * math.exp(-0.5))
    )  # halfway between both means
    assert net.query(["cause"], {"level": 1.0, "sign": 1})[1].item() == pytest.approx(
        expected, abs=1e-6
    )


def test_d_separation_holds_exactly_where_the_full_table_factorises() -> None:
    """Random tables have no independences but those of the graph."""
    torch.manual_seed(1)
    names = ["a", "b", "c", "d", "e"]
    edges = [("a", "b"), ("b", "d"), ("c", "d"), ("d", "e")]
    net = BayesNet.from_edges(dict.fromkeys(names, 2), edges).double()
    with torch.no_grad():
        for node in net.nodes.values():
            node.logits.copy_(2 * torch.randn_like(node.logits))
    for x, y in product(names, names):
        for given in product([False, True], repeat=5):
            z = [name for name, chosen in zip(names, given, strict=True) if chosen]
            if x < y and x not in z and y not in z:
                assert net.d_separated([x], [y], z) == independent(net, x, y, z), (x, y, z)


def independent(net: BayesNet, x: str, y: str, z: list[str]) -> bool:
    joint = net.query([x, y, *z])
    px, py, pz = (
        joint.sum(1, keepdim=True),
        joint.sum(0, keepdim=True),
        joint.sum((0, 1), keepdim=True),
    )
    return bool(torch.allclose(joint * pz, px * py, atol=1e-10))


def test_bif_round_trip_and_whole_tables(tmp_path: Any) -> None:
    net = bayesnet.asia()
    again = bayesnet.read_bif(bayesnet.write_bif(net, tmp_path / "asia.bif"))
    assert again.parents == net.parents
    assert again.states == net.states
    for name, node in net.nodes.items():
        assert torch.allclose(again.nodes[name].probs, node.probs, atol=1e-7)
    (tmp_path / "two.bif").write_text(
        'network "n" { property author x; } // a comment\n'
        "variable a { type discrete [ 2 ] { lo, hi }; }\n"
        "variable b { type discrete [ 3 ] { r, g, b }; }\n"
        "probability ( a ) { table 0.25, 0.75; }\n"
        "probability ( b | a ) { table 0.1 0.2 0.3 0.3 0.6 0.5; }\n"
    )
    two = bayesnet.read_bif(tmp_path / "two.bif")
    assert torch.allclose(two.nodes["b"].probs, torch.tensor([[0.1, 0.3, 0.6], [0.2, 0.3, 0.5]]))
    assert two.query(["b"], {"a": "hi"}).tolist() == pytest.approx([0.2, 0.3, 0.5])


def test_bif_takes_names_in_quotes_properties_and_defaults(tmp_path: Any) -> None:
    states = {"light on": ("very low", "5,6", "{z} // (x); |"), "b": ("table", "<5%")}
    nodes = {
        "light on": Table([0.2, 0.3, 0.5]),
        "b": Table([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3]], ["light on"]),
    }
    path = bayesnet.write_bif(BayesNet(nodes, states), tmp_path / "quoted.bif")
    again = bayesnet.read_bif(path)
    assert again.states == states
    assert again.query(["b"], {"light on": "5,6"}).tolist() == pytest.approx([0.2, 0.8])
    text = path.read_text().replace("{\n", '{ property "position = (73, 165); 8" ;\n')
    path.write_text(
        text.replace('("5,6")', 'property "p (1)"; default').replace('("very low")', "//")
    )
    defaulted = bayesnet.read_bif(path).nodes["b"].probs
    assert torch.allclose(defaulted, torch.tensor([[0.2, 0.8], [0.2, 0.8], [0.7, 0.3]]))
    with pytest.raises(ValueError, match="has a quote"):
        bayesnet.write_bif(BayesNet({"a": Table([1.0])}, {"a": ('5"',)}), path)


def test_evidence_of_nothing_is_one_and_of_columns_of_booleans_their_own() -> None:
    net = bayesnet.asia()
    assert net.log_evidence({}).item() == net.log_query([], {"smoke": 1}).item() == 0.0
    smoke = torch.tensor([True, False, True])
    assert torch.equal(
        net.log_evidence({"smoke": smoke}), net.log_evidence({"smoke": smoke.float()})
    )
    flags = BayesNet({"a": Table([0.5, 0.5])}).fit_counts(smoke.unsqueeze(-1), smoothing=0.0)
    assert flags.nodes["a"].probs.tolist() == pytest.approx([1 / 3, 2 / 3])


def test_maximum_likelihood_of_constant_pixels_is_finite() -> None:
    x = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    program = IndependentBernoulli(3).fit_counts(x, smoothing=0.0)
    assert log_weights(program, x).squeeze(0).tolist() == pytest.approx([math.log(0.5)] * 2)


def test_drawing_puts_every_edge_downwards() -> None:
    figure, both = plt.subplots(1, 2, layout="constrained")
    bayesnet.draw_graph(bayesnet.asia(), both[0])
    axes = bayesnet.draw_graph(bayesnet.sachs_graph(), both[1])
    figure.canvas.draw()
    height = {text.get_text(): text.get_position()[1] for text in axes.texts if text.get_text()}
    assert len(height) == 11
    assert all(
        height[parent] > height[name]
        for name, ps in bayesnet.sachs_graph().parents.items()
        for parent in ps
    )
    assert len([text for text in axes.texts if not text.get_text()]) == 17
    plt.close(figure)


def test_reachability_does_not_pass_an_unopened_collider() -> None:
    parents = {"a": [], "b": [], "c": ["a", "b"], "d": ["c"]}
    assert reachable(parents, {"a"}, set()) == {"a", "c", "d"}
    assert reachable(parents, {"a"}, {"d"}) == {"a", "b", "c"}
    assert d_separated(parents, ["a"], ["b"])


BAD_NETS = {
    "cycle": (
        lambda: BayesNet.from_edges({"a": 2, "b": 2}, [("a", "b"), ("b", "a")]),
        "directed cycle among",
    ),
    "self loop": (lambda: topological_order({"a": ["a"]}), "directed cycle"),
    "unknown parent": (lambda: BayesNet({"a": Table([[1.0]], ["zz"])}), "unknown parents"),
    "unknown edge": (
        lambda: BayesNet.from_edges({"a": 2}, [("q", "a")]),
        "numbers of states are not given",
    ),
    "rows": (lambda: Table([[0.5, 0.5], [0.5, 0.6]], ["a"]), "do not sum to one"),
    "negative": (lambda: Table([1.5, -0.5]), "negative entries"),
    "no numbers": (lambda: Table([0.5, float("nan")]), "no numbers"),
    "dimensions": (lambda: Table([0.5, 0.5], ["a"]), "one dimension for each of the parents"),
    "parent states": (
        lambda: BayesNet(
            {"a": Table([0.2, 0.3, 0.5]), "b": Table([[0.5, 0.5], [0.1, 0.9]], ["a"])}
        ),
        "have \\[3\\] states",
    ),
    "continuous parent": (
        lambda: BayesNet({"a": LinearGaussian(), "b": Table([[0.5, 0.5], [0.1, 0.9]], ["a"])}),
        "have \\[None\\] states",
    ),
    "weights": (lambda: Logistic(["a"], [1.0, 2.0]), "2 weights for the parents"),
    "scale": (lambda: LinearGaussian(scale=0.0), "positive standard deviation"),
    "state names": (
        lambda: BayesNet({"a": Table([0.5, 0.5])}, {"a": ["x"]}),
        "2 different state names",
    ),
    "parents twice": (
        lambda: topological_order({"a": [], "b": ["a", "a"]}),
        "names a parent twice",
    ),
    "no net": (lambda: bayesnet.asia().query(["nobody"]), "different variables among"),
    "string": (lambda: bayesnet.asia().query("dysp"), "expected a list of names, \\['dysp'\\]"),
    "lengths": (
        lambda: bayesnet.asia().query(["dysp"], {"smoke": torch.zeros(3), "asia": torch.zeros(2)}),
        "different lengths",
    ),
    "data lengths": (
        lambda: bayesnet.asia().fit_counts(
            dict.fromkeys(bayesnet.asia().nodes, torch.zeros(3)) | {"asia": torch.ones(1)}
        ),
        "different lengths",
    ),
    "state": (lambda: bayesnet.asia().query(["lung"], {"smoke": "maybe"}), "has no state 'maybe'"),
    "class": (
        lambda: bayesnet.asia().query(["lung"], {"smoke": 2}),
        "outside its classes 0, ..., 1",
    ),
    "impossible": (lambda: point_net().query(["a"], {"b": 1}), "probability zero"),
    "label": (lambda: bayesnet.asia().fit_counts(torch.full((3, 8), 2.0)), "outside its classes"),
    "bound label": (lambda: bayesnet.asia().bind(torch.full((3, 8), 2.0)), "outside the support"),
    "columns": (lambda: bayesnet.asia().bind(torch.zeros(3, 7)), "expected data"),
    "missing": (lambda: bayesnet.asia().fit_counts({"asia": torch.zeros(3)}), "lack the variables"),
    "unknown column": (lambda: bayesnet.asia().bind({"nope": torch.zeros(3)}), "unknown variables"),
    "smoothing": (lambda: bayesnet.asia().fit_counts(torch.zeros(3, 8), -1.0), "at least 0"),
    "no count": (lambda: random_net().fit_counts(torch.zeros(3, 5)), "no closed-form fit"),
    "no bif": (lambda: bayesnet.write_bif(random_net(), "x.bif"), "no tables"),
    "separation": (lambda: bayesnet.asia().d_separated(["x"], ["y"]), "there are no nodes"),
    "drop": (lambda: random_net().dirichlet_evidence(torch.zeros(2, 5)), "expected tables only"),
}  # fmt: skip


def point_net() -> BayesNet:
    """b is never 1."""
    return BayesNet({"a": Table([0.5, 0.5]), "b": Table([[1.0, 0.0], [1.0, 0.0]], ["a"])})


@pytest.mark.parametrize("name", BAD_NETS)
def test_bad_nets_are_refused(name: str) -> None:
    make, message = BAD_NETS[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="num_states is .*; expected a mapping"):
        BayesNet.from_edges([("a", "b")], {"a": 2, "b": 2})
    with pytest.raises(ValueError, match="num_states is 2.5; expected a whole number"):
        BayesNet.from_edges({"a": 2, "b": 2.5}, [("a", "b")])
    with pytest.raises(ValueError, match="num_states is 0; expected at least 1"):
        BayesNet.from_edges({"a": 2, "b": 0}, [("a", "b")])
    with pytest.raises(TypeError, match="parents is .*; expected a collection, each text"):
        Table([[0.5, 0.5]], "a")
    with pytest.raises(TypeError, match="expected a NodeConditional"):
        BayesNet({"a": [0.5, 0.5]})


BAD_FILES = {
    "empty": ("nothing", "declares no variables"),
    "undeclared": (
        "variable a { type discrete [ 2 ] { x, y }; } probability ( b ) { table 1; }",
        "undeclared",
    ),
    "missing": ("variable a { type discrete [ 2 ] { x, y }; }", "gives no probabilities"),
    "size": (
        "variable a { type discrete [ 2 ] { x, y }; } probability ( a ) { table 1; }",
        "expected 2 probabilities",
    ),
    "row": (
        (
            "variable a { type discrete [ 1 ] { x }; } variable b { type discrete [ 1 ] { x }; "
            "} probability ( b | a ) { }"
        ),
        "lack rows",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused(name: str, tmp_path: Any) -> None:
    text, message = BAD_FILES[name]
    (tmp_path / "bad.bif").write_text(text)
    with pytest.raises(ValueError, match=message):
        bayesnet.read_bif(tmp_path / "bad.bif")


@pytest.mark.parametrize("names", [("yes", "no"), ("no", "yes"), ("0", "1"), ("True", "False")])
def test_truth_values_are_states_by_meaning(names):
    net = BayesNet({"rain": Table([0.8, 0.2])}, states={"rain": names})
    yes = next(i for i, name in enumerate(names) if name in ("yes", "1", "True"))
    for value in (True, torch.tensor(True)):
        assert net.log_evidence({"rain": value}) == net.log_evidence({"rain": yes})
    column = torch.tensor([True, False, True])
    numbers = torch.where(column, yes, 1 - yes)
    by_value = Exact()(net, {"rain": column}).log_z
    assert torch.equal(by_value, Exact()(net, {"rain": numbers}).log_z)
    fitted = BayesNet({"rain": Table([0.5, 0.5])}, states={"rain": names})
    assert fitted.fit_counts({"rain": column}, 0.0).query(["rain"])[yes] == pytest.approx(2 / 3)


def test_truth_values_of_states_with_other_names_are_refused():
    net = BayesNet({"rain": Table([0.8, 0.2])}, states={"rain": ("drizzle", "dry")})
    with pytest.raises(ValueError, match="True or False, but its states are"):
        net.log_evidence({"rain": True})
    with pytest.raises(ValueError, match="True or False, but its states are"):
        Exact()(net, {"rain": torch.tensor([True])})


# ---- homogeneous chains and classes --------------------------------------------------------------


def test_homogeneous_chain_counts_all_steps_together():
    x = (torch.rand(200, 4, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    chain = bayesnet.markov_chain(4, homogeneous=True).fit_counts(x, smoothing=0.0)
    before, after = x[:, :-1].flatten(), x[:, 1:].flatten()
    rates = torch.stack([after[before == state].mean() for state in (0, 1)])
    assert torch.allclose(chain.nodes["x3"].probs[:, 1], rates, atol=1e-6)
    assert chain.num_free_parameters == 3
    assert len(list(chain.parameters())) == 2
    start = torch.tensor([[0.0, 1, 1, 0]])
    factors = [1 - x[:, 0].mean(), rates[0], rates[1], 1 - rates[1]]
    assert torch.allclose(Exact()(chain, start).log_z.exp(), math.prod(factors).double())
    copied = copy.deepcopy(chain).double()
    assert copied.nodes["x2"].logits is copied.nodes["x4"].logits


def test_homogeneous_chain_fits_by_gradients_to_the_counts():
    x = (torch.rand(100, 4, generator=torch.Generator().manual_seed(2)) < 0.3).float()
    counted = bayesnet.markov_chain(4, homogeneous=True).fit_counts(x, smoothing=0.0)
    learned = bayesnet.markov_chain(4, homogeneous=True)
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.1)  # noqa: E731
    fit(learned, x, steps=200, optimizer=adam, progress=False, compile=False)
    assert torch.allclose(learned.nodes["x4"].probs, counted.nodes["x4"].probs, atol=1e-3)


def test_marginal_likelihood_of_a_homogeneous_chain():
    """One Polya urn for all steps, datum by datum."""
    x = torch.tensor([[0.0, 1, 1], [1, 1, 0]])
    counts, total = torch.ones(2, 2), math.log(1 / 2 * 1 / 3)  # the first column: 0, then 1
    for before, after in ((0, 1), (1, 1), (1, 1), (1, 0)):
        total += math.log(counts[before, after] / counts[before].sum())
        counts[before, after] += 1
    found = bayesnet.markov_chain(3, homogeneous=True).dirichlet_evidence(x)
    assert float(found) == pytest.approx(total, abs=1e-6)


def test_classes_of_naive_bayes_by_the_rule_of_bayes():
    x = (torch.rand(60, 4, generator=torch.Generator().manual_seed(3)) < 0.4).float()
    net = bayesnet.naive_bayes(2, 3).fit_counts(x)
    joint = torch.stack(
        [
            Exact()(net, torch.cat([torch.full((60, 1), float(y)), x[:, 1:]], 1)).log_z
            for y in (0, 1)
        ],
        1,
    )
    assert torch.allclose(net.classify(x[:, 1:]).double(), joint.softmax(1), atol=1e-5)
    with pytest.raises(ValueError, match="unknown"):
        net.classify({"colour": x[:, 0]})


def test_one_name_is_a_node_and_not_its_letters():
    net = bayesnet.asia()
    assert net.d_separated("asia", "smoke")
    assert not net.d_separated("asia", "smoke", "dysp")
    assert net.d_separated("xray", ["dysp"], ["either", "bronc"])


def clues(num_clues: int, sure: float) -> dict[str, Table]:
    """A cause with clues, and its copy with clues of its own."""
    tables = {
        "cause": Table([0.5, 0.5]),
        "copy": Table([[1.0, 0.0], [0.0, 1.0]], parents=["cause"]),
    }
    told = [[sure, 1 - sure], [1 - sure, sure]]
    for parent in list(tables):
        for i in range(num_clues):
            tables[f"{parent}{i}"] = Table(told, parents=[parent])
    return tables


@pytest.mark.parametrize("num_clues", [60, 360])
def test_clues_that_contradict_each_other_are_weighed(num_clues):
    """Where they favour states by hundreds of nats no product of exponentials is left."""
    net = BayesNet(clues(num_clues, 0.9))
    against = {f"cause{i}": 0 for i in range(num_clues)}
    against |= {f"copy{i}": 1 for i in range(num_clues)}
    truth = num_clues * (math.log(0.9) + math.log(0.1))
    assert net.log_evidence(against).item() == pytest.approx(truth, rel=1e-7)
    assert torch.allclose(net.query(["cause"], against), torch.tensor([0.5, 0.5]), atol=1e-4)


def test_queries_are_of_double_precision():
    net = BayesNet(clues(150, 0.9))
    mixed = {f"cause{i}": i % 2 for i in range(150)} | {f"copy{i}": i % 2 for i in range(150)}
    truth = 150 * (math.log(0.9) + math.log(0.1))
    assert net.log_evidence(mixed).item() == pytest.approx(truth, rel=2e-7)
    far = BayesNet({"x": LinearGaussian(bias=2.0**27)})
    value = 2.0**27 + 1  # no number of single precision
    assert far.log_evidence({"x": value}).item() == pytest.approx(-0.5 - math.log(2 * math.pi) / 2)


def test_more_latents_than_dimensions_are_named():
    chain = bayesnet.markov_chain(150)
    ends = {"x1": torch.zeros(2), "x150": torch.ones(2)}
    assert chain.log_evidence(ends).tolist() == pytest.approx([-2 * math.log(2)] * 2)
    with pytest.raises(ValueError, match="148 latents are summed out.*log_evidence"):
        Exact()(chain, ends)
