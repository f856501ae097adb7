"""Comparisons against closed forms, simulation and grid search."""

import math
from dataclasses import replace
from itertools import product

import matplotlib.colors as mcolors
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Fit, Program, compare, evidence
from ppl_dgm.comparison.rendering import cells
from ppl_dgm.comparison.rows import BayesFactor, make_row, sense_of
from ppl_dgm.evidence import Evidence
from ppl_dgm.reporting.arviz import stacking_weights
from ppl_dgm.reporting.plots.style import ALARM


def result(log_z, std_error=0.0, bound="exact", num_dims=8, digest="d", warnings=()):
    """An Evidence made by hand: per datum for a list, of the data set for a number."""
    log_z = torch.as_tensor(log_z, dtype=torch.float64)
    target = "datum" if log_z.dim() else "dataset"
    errors = torch.as_tensor(std_error, dtype=torch.float64).expand_as(log_z)
    return Evidence(log_z, errors, bound, target, "Test", num_dims, digest, warnings=warnings)


def normal_program(loc, scale=1.0):
    def model(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    return Program(model)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


# ---- one evidence for the data set ---------------------------------------------------------------


def test_model_probabilities_of_the_reference_case():
    log_ml = {"H0": -20.8084543022433, "H1": -17.9623077558729, "H2": -19.0}
    table = compare({name: result(value) for name, value in log_ml.items()})
    expected = {"H0": 0.04111453, "H1": 0.70804533, "H2": 0.25084015}
    assert {row.name: row.weight for row in table.rows} == pytest.approx(expected, abs=1e-8)
    assert [row.name for row in table.rows] == ["H1", "H2", "H0"]


def test_prior_odds_multiply_the_evidence():
    table = compare({"a": result(-3.0), "b": result(-4.0)}, prior={"a": 1.0, "b": 5.0})
    assert table["b"].weight / table["a"].weight == pytest.approx(5 * math.exp(-1.0))
    scaled = compare({"a": result(-3.0), "b": result(-4.0)}, prior={"a": 0.1, "b": 0.5})
    assert scaled["a"].weight == pytest.approx(table["a"].weight)


def test_errors_of_probabilities_match_simulation():
    log_z, errors = (
        torch.tensor([-10.0, -10.5, -12.0]).double(),
        torch.tensor([0.02, 0.05, 0.1]).double(),
    )
    table = compare({str(i): result(log_z[i], errors[i], "estimate") for i in range(3)})
    noise = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone = (log_z + errors * noise).softmax(-1).std(0)
    for i in range(3):
        alike = noise[:, [j if j == i else (i + 1) % 3 for j in range(3)]]  # the others err as one
        simulated = (log_z + errors * alike).softmax(-1).std(0)[i].item()
        assert table[str(i)].weight_error == pytest.approx(simulated, rel=0.02)
        assert table[str(i)].weight_error > 0.98 * alone[i]


def test_bayes_factor_has_both_errors_and_is_antisymmetric():
    table = compare({"a": result(-3.0, 0.3, "estimate"), "b": result(-5.5, 0.4, "lower")})
    forward, backward = table.bayes_factor("a", "b"), table.bayes_factor("b", "a")
    assert forward.log == pytest.approx(2.5)
    assert forward.std_error == pytest.approx(0.5)
    assert (forward.sense, backward.sense) == ("upper", "lower")
    assert backward.log == -forward.log
    assert forward.strength == backward.strength == "undetermined"  # at most 2.5: perhaps below 0
    assert table["b"].difference == pytest.approx(backward.log)
    assert table["b"].difference_error == pytest.approx(backward.std_error)


@pytest.mark.parametrize(
    ("log", "std_error", "settled"),
    [
        (2.5, 0.9, True),
        (10.0, 4.0, True),
        (0.1, 0.3, True),
        (2.5, 2.0, False),
        (0.1, 3.0, False),
        (50.0, math.inf, False),
        (50.0, math.nan, False),
    ],
)
def test_words_need_an_error_that_bears_them(log, std_error, settled):
    for factor in (BayesFactor("a", "b", sign * log, std_error) for sign in (1, -1)):
        assert (factor.strength != "undetermined") == settled


@pytest.mark.parametrize("error", [math.inf, math.nan])
def test_rows_without_an_error_are_not_ranked(error):
    table = compare({"a": result(-1.0, error, "estimate"), "b": result(-3.0), "c": result(-4.0)})
    assert table.best.name == table.reference == "b"
    assert math.isnan(table["a"].weight)
    assert table["b"].weight == pytest.approx(1 / (1 + math.exp(-1)))


def test_two_impossible_models_have_no_ratio():
    table = compare({"a": result(-math.inf), "b": result(-math.inf)})
    assert "unknown times as probable" in str(table.bayes_factor("a", "b"))
    assert table.bayes_factor("a", "b").strength == "undetermined"


def test_one_datum_gives_no_stacking_weights():
    table = compare({"a": result([-1.0]), "b": result([-2.0])})
    assert all(math.isnan(row.weight) for row in table.rows)
    assert table.best.name == "a"
    with pytest.raises(ValueError, match="'a' has no data"):
        compare({"a": result([]), "b": result([])})


@pytest.mark.parametrize(
    ("log", "word"),
    [(0.5, "bare mention"), (2.0, "positive"), (4.0, "strong"), (-9.0, "very strong")],
)
def test_strength_in_words(log, word):
    table = compare({"a": result(0.0), "b": result(-log)})
    assert word in table.bayes_factor("a", "b").strength
    assert table.bayes_factor("a", "a").strength == "not worth more than a bare mention"
    assert BayesFactor("a", "b", math.nan, 0.0).strength == "undetermined"


def test_huge_bayes_factors_print_as_powers():
    table = compare({"a": result(-1000.0), "b": result(-2000.0)})
    assert "10^434.3 times" in str(table.bayes_factor("a", "b"))
    assert "10^434.3 times" in str(table)


def test_beta_bernoulli_bayes_factor():
    x = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])

    def coin(fair):
        def model(x=None):
            p = torch.tensor(0.5) if fair else pyro.sample("p", dist.Beta(1.0, 1.0))
            with pyro.plate("data", 5):
                pyro.sample("x", dist.Bernoulli(p), obs=x)

        return Program(model)

    sampler = evidence.PriorSampling(num_particles=10_000)
    biased = sampler(coin(False), x, seed=3)
    fair = evidence.Exact()(coin(True), x)  # without latents: an evidence for each datum
    with pytest.raises(ValueError, match=r"evidence.pooled\(\)"):
        compare({"biased": biased, "fair": fair})
    table = compare({"biased": biased, "fair": fair.pooled()})
    truth = math.log(math.factorial(4) * math.factorial(1) / math.factorial(6)) - 5 * math.log(0.5)
    factor = table.bayes_factor("biased", "fair")
    assert abs(factor.log - truth) < 4 * factor.std_error
    assert factor.std_error < 0.03


def test_trainings_from_other_seeds_tell_their_spread():
    first, *again = (result(value) for value in (-10.0, -12.0, -17.0))
    table = compare({"net": first, "fixed": result(-11.0)}, refits={"net": again})
    assert table["net"].log_z == -10.0
    assert table["net"].training_spread == pytest.approx(13**0.5)
    assert math.isnan(table["fixed"].training_spread)
    header, net, fixed = cells(table)
    column = header.index("± seeds")
    assert (net[column], fixed[column]) == ("3.6", "–")
    assert "± seeds: of log p" in str(table)
    with pytest.raises(ValueError, match="refits are given of 'other'"):
        compare({"net": first}, refits={"other": again})
    with pytest.raises(ValueError, match="training 2' cannot be compared"):
        compare({"net": first}, refits={"net": [replace(again[0], digest="elsewhere")]})


# ---- one evidence for each datum -----------------------------------------------------------------


def test_paired_differences_against_the_closed_form():
    x = torch.randn(500, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3
    table = compare(
        {str(loc): evidence.Exact()(normal_program(loc), x) for loc in (0.0, 0.5)}, reference="0.0"
    )
    # log N(x; m, 1) - log N(x; 0, 1) = m x - m^2 / 2: linear in x
    assert table["0.5"].difference == pytest.approx(float(0.5 * x.sum() - 500 * 0.125), rel=1e-5)
    assert table["0.5"].difference_error == pytest.approx(float(0.5 * x.std() * 500**0.5), rel=1e-5)
    assert table["0.5"].difference_error < 0.5 * table["0.5"].sampling_error  # pairing pays
    assert table["0.0"].difference == 0 == table["0.0"].difference_error


def test_errors_over_data_and_of_monte_carlo_are_told_apart():
    log_z = torch.tensor([-1.0, -3.0, -2.0, -6.0])
    row = compare({"a": result(log_z, torch.tensor([0.1, 0.2, 0.3, 0.4]), "estimate")})["a"]
    assert row.log_z == -12.0
    assert row.std_error == pytest.approx(math.sqrt(0.01 + 0.04 + 0.09 + 0.16))
    assert row.sampling_error == pytest.approx(2.0 * float(log_z.std()))
    assert row.bits_per_dim == pytest.approx(12.0 / (8 * math.log(2)))


def test_paired_intervals_cover_the_expected_difference():
    covered, generator = 0, torch.Generator().manual_seed(0)
    for _ in range(400):
        shared = 5 * torch.randn(100, generator=generator)
        a, b = (result(shared + torch.randn(100, generator=generator) - m) for m in (0.0, 0.3))
        row = make_row("b", b, a, (0.0, 0.0))
        covered += abs(row.difference + 30.0) < 1.96 * row.difference_error
    assert 0.90 <= covered / 400 <= 0.98


@pytest.mark.parametrize(("bound", "other"), list(product(["exact", "lower", "upper"], repeat=2)))
def test_sense_of_a_difference_holds_for_every_truth(bound, other):
    """Numbers whose truth lies where their bounds allow.

    The truth of the difference must lie where its sense says.
    """
    slack = {"exact": [0.0], "lower": [0.0, 0.5, 3.0], "upper": [0.0, -0.5, -3.0]}
    excess = [
        a - b for a, b in product(slack[bound], slack[other])
    ]  # true difference minus stated one
    lies = {"exact": {0}, "lower": {0, 1}, "upper": {0, -1}, "unknown": {0, 1, -1}}[
        sense_of(bound, other)
    ]
    assert {(e > 0) - (e < 0) for e in excess} == lies


def test_estimates_make_differences_estimates():
    assert sense_of("exact", "estimate") == sense_of("estimate", "estimate") == "estimate"


def test_stacking_weights_against_grid_search():
    generator = torch.Generator().manual_seed(0)
    x = torch.where(torch.rand(300, generator=generator) < 0.3, -2.0, 2.0) + torch.randn(
        300, generator=generator
    )
    left, right = (dist.Normal(loc, 1.0).log_prob(x) for loc in (-2.0, 2.0))
    grid = torch.linspace(0, 1, 2001)[1:-1].unsqueeze(1)
    score = torch.logaddexp(grid.log() + left, (1 - grid).log() + right).sum(1)
    best = grid[score.argmax()].item()
    table = compare({"left": result(left), "right": result(right)})
    assert table["left"].weight == pytest.approx(best, abs=6e-3)  # ArviZ 1.x rounds to two digits
    assert table["left"].weight + table["right"].weight == pytest.approx(1.0)
    shifted = stacking_weights({"left": left.double() - 5000, "right": right.double() - 5000})
    assert shifted["left"] == pytest.approx(best, abs=6e-3)  # ArviZ 1.x rounds to two digits


def test_stacking_leaves_out_the_doubtful():
    a, b = result([-1.0, -2.0]), result([-0.5, -1.0], warnings=("Pareto k is 0.9 > 0.7",))
    table = compare({"a": a, "b": b, "c": result([-0.1, -0.1], bound="upper")})
    assert all(math.isnan(row.weight) for row in table.rows)  # one among one is no news
    assert "no weights: one row alone could have it" in str(table)
    more = compare({**table.evidences, "d": result([-3.0, -4.0])})
    assert more["a"].weight == pytest.approx(1.0)
    assert math.isnan(more["b"].weight)
    assert math.isnan(more["c"].weight)


@pytest.mark.parametrize("target", ["datum", "dataset"])
def test_a_share_among_one_is_a_dash(target):
    alone = result([-1.0, -2.0], 0.1, "estimate")
    table = compare({"a": alone if target == "datum" else alone.pooled()})
    assert math.isnan(table["a"].weight)
    assert table.best.name == "a"
    assert "1.00" not in str(table)
    assert "a share among one is no news" in table._repr_html_()


def test_stacking_without_any_finite_density_is_not_a_number():
    weights = stacking_weights(
        {"a": torch.tensor([-1.0, -math.inf]), "b": torch.tensor([-1.0, -math.inf])}
    )
    assert all(math.isnan(weight) for weight in weights.values())


def test_impossible_data_come_last():
    table = compare(
        {
            "nan": result([math.nan, 0.0]),
            "none": result([-math.inf, 0.0]),
            "some": result([-9.0, -9.0]),
        }
    )
    assert table.rows[0].name == "some"
    assert table["none"].difference == -math.inf
    # Stacking: log w + log(w e^-9 + 1 - w) is greatest at 1 / (2 - 2 e^-9).
    assert table["some"].weight == pytest.approx(0.5 / (1 - math.exp(-9)), abs=6e-3)
    assert math.isnan(table["nan"].weight)


def test_one_datum_has_no_spread_over_data():
    table = compare({"a": result([-1.0], 0.1, "estimate"), "b": result([-2.0])})
    assert math.isnan(table["a"].sampling_error)
    assert table["b"].difference_error == pytest.approx(0.1)
    assert "nan" not in str(table)


def test_offsets_state_densities_of_the_original_data():
    x = torch.randn(30, dtype=torch.float64)
    slow, fast = x / 10, evidence.Exact()
    direct = compare({"a": fast(normal_program(0.0, 1.0), x)})["a"]
    scaled = compare({"a": fast(normal_program(0.0, 0.1), slow)}, log_offset=-math.log(10.0))["a"]
    assert scaled.log_z == pytest.approx(direct.log_z)
    assert scaled.bits_per_dim == pytest.approx(direct.bits_per_dim)
    each = compare(
        {"a": fast(normal_program(0.0, 0.1), slow)}, log_offset=torch.full((30,), -math.log(10.0))
    )["a"]
    assert each.log_z == pytest.approx(direct.log_z)


def learned(values, stopped="finished", valid=None):
    """A Fit with this learning curve."""
    curve = torch.as_tensor(values)
    history = {"step": torch.arange(1, len(curve) + 1), "objective": curve}
    return Fit(
        normal_program(0.0),
        history | ({} if valid is None else {"valid": torch.as_tensor(valid)}),
        len(curve),
        stopped,
        1.0,
    )


def test_fits_that_were_still_improving_are_marked():
    noise = 0.1 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    rising, flat = learned(torch.linspace(0, 1, 1000) + noise), learned(noise)
    table = compare(
        {"a": result([-1.0, -2.0]), "b": result([-2.0, -3.0])}, fits={"a": rising, "b": flat}
    )
    assert table.improving == ("a",)
    lines = str(table).splitlines()
    assert any(line.startswith("a ↑") for line in lines)
    assert "↑ still improving when its fit ended, more steps would raise it: a" in lines
    assert any("spread over seeds of training" in line for line in lines)
    assert "seeds of training" not in str(compare({"a": result([-1.0, -2.0])}))
    with pytest.raises(ValueError, match=r"fits are given of \['c'\]"):
        compare({"a": result(-1.0)}, fits={"c": flat})


def test_flat_curves_are_hardly_ever_called_improving():
    noise = torch.randn(400, 500, generator=torch.Generator().manual_seed(1))
    assert sum(learned(row).improving for row in noise) <= 8  # 0.5 % of 400 are 2


def test_validation_decides_where_there_is_one():
    rising, late = torch.linspace(0, 1, 100), torch.linspace(0, 1, 30)
    assert learned(rising, valid=late).improving
    assert not learned(rising, valid=late.clamp(max=0.5)).improving
    assert not learned(rising, "early", late).improving
    assert "finished, still improving" in repr(learned(rising, valid=late))


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evidences", "settings", "message"),
    [
        ({}, {}, "nothing to compare"),
        (
            {"a": result([-1.0, -1.0]), "b": result([-1.0, -1.0], digest="e")},
            {},
            "'a' and 'b' .* different data",
        ),
        ({"a": result([-1.0, -1.0]), "b": result([-1.0])}, {}, "different data"),
        ({"a": result([-1.0, -1.0]), "b": result(-2.0)}, {}, "one has an evidence for each datum"),
        (
            {"a": result(-2.0)},
            {"reference": "b"},
            r"reference 'b' is not among the programs \['a'\]",
        ),
        (
            {"a": result([-2.0])},
            {"prior": {"a": 1.0}},
            "prior odds belong to evidences of a data set",
        ),
        ({"a": result(-2.0)}, {"log_offset": 1.0}, "give the sum over its data"),
        ({"a": result([-2.0, -1.0])}, {"log_offset": torch.zeros(3)}, r"shape \[3\] for 2 data"),
        ({"a": result(-2.0)}, {"prior": {"b": 1.0}}, "expected one positive number for each of"),
        ({"a": result(-2.0)}, {"prior": {"a": -1.0}}, "expected one positive number for each of"),
    ],
)
def test_refusals(evidences, settings, message):
    with pytest.raises(ValueError, match=message):
        compare(evidences, **settings)


def test_real_data_that_differ_in_one_value_are_refused():
    x = torch.zeros(5)
    y = x.clone()
    y[3] = 1e-3
    results = {
        "a": evidence.Exact()(normal_program(0.0), x),
        "b": evidence.Exact()(normal_program(0.0), y),
    }
    with pytest.raises(ValueError, match="different data"):
        compare(results)


def test_numbers_are_no_evidence():
    with pytest.raises(TypeError, match="'a' is a float; expected a Program, or an Evidence"):
        compare({"a": -3.0})  # type: ignore[dict-item]


def test_evidences_without_names_are_refused():
    with pytest.raises(TypeError, match="candidates is .Evidence.*; expected a mapping"):
        compare([result(-1.0)])


def test_unknown_names_are_named():
    with pytest.raises(KeyError, match="no program 'b' in this comparison"):
        compare({"a": result(-1.0)})["b"]


# ---- which rows take part ------------------------------------------------------------------------

DOUBTFUL = {
    "alarm": result(-3.0, 0.2, "estimate", warnings=("Pareto k 1.4",)),
    "upper bound": result(-3.0, 0.2, "upper"),
    "withheld": result(math.nan, math.nan, "estimate", warnings=("withheld",)),
    "withheld without a word": result(math.nan, 0.1, "estimate"),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_doubtful_rows_change_nothing_for_the_others(name):
    """They are shown, and neither the best, nor the reference, nor given a probability."""
    sound = {"a": result(-10.0, 0.1, "estimate"), "c": result(-9.0, 0.1, "estimate")}
    alone, table = compare(sound), compare({**sound, "b": DOUBTFUL[name]})
    assert table.best.name == table.reference == "c"
    assert math.isnan(table["b"].weight)
    assert not table["b"].ranked
    for row in ("a", "c"):
        assert (table[row].weight, table[row].weight_error) == pytest.approx(
            (alone[row].weight, alone[row].weight_error)
        )
    assert "no weight, nor best: b" in str(table)
    assert "is among the other rows alone" in str(table)
    assert math.isnan(DOUBTFUL[name].log_z) == ("nan" in str(table))


@pytest.mark.parametrize("bound", ["upper", "estimate"])
@pytest.mark.parametrize("value", [-0.1, math.nan])
def test_doubtful_rows_change_no_stacking_weights(bound, value):
    sound = {"a": result([-1.0, -2.0, -9.0]), "c": result([-2.0, -1.0, -1.0])}
    warnings = () if bound == "upper" or math.isnan(value) else ("low ESS",)
    odd = result([-0.1, value, -0.1], 0.1, bound, warnings=warnings)
    alone, table = compare(sound), compare({**sound, "b": odd})
    assert [table[row].weight for row in "ac"] == [alone[row].weight for row in "ac"]
    assert math.isnan(table["b"].weight)
    assert table.best.name == alone.best.name == table.reference


def test_without_a_row_to_believe_there_is_no_best():
    table = compare({"a": DOUBTFUL["alarm"], "b": DOUBTFUL["upper bound"]})
    assert table.best is None
    assert all(math.isnan(row.weight) for row in table.rows)
    assert "Pareto k 1.4" in str(table)


def test_bayes_factors_of_doubtful_or_open_sign_have_no_strength():
    table = compare(
        {"a": result(-30.0), "b": DOUBTFUL["alarm"], "low": result(-50.0, bound="lower")}
    )
    assert table.bayes_factor("b", "a").strength == "undetermined"
    assert table.bayes_factor("low", "a").strength == "undetermined"
    assert BayesFactor("a", "b", 20.0, 0.0, "lower").strength == "very strong"
    assert BayesFactor("a", "b", -20.0, 0.0, "lower").strength == "undetermined"
    assert BayesFactor("a", "b", 20.0, 0.0, "unknown").strength == "undetermined"


# ---- what is shown -------------------------------------------------------------------------------


@pytest.fixture
def mixed():
    return compare(
        {
            "made": result([-1.0, -2.0, -3.0]),
            "vae": result([-1.5, -2.0, -4.0], 0.1, "lower"),
            "odd": result(
                [-0.1, -0.2, -0.3], 0.5, "upper", warnings=("Pareto k is up to 0.95 > 0.7",)
            ),
        }
    )


def test_reference_is_the_best_that_can_be_believed(mixed):
    assert mixed.rows[0].name == "odd"
    assert mixed.reference == mixed.best.name == "made"


def test_text_states_bounds_alarms_and_errors(mixed):
    lines = str(mixed).splitlines()
    assert lines[0] == "log p of 3 data (8 numbers), nats per datum"
    made, vae, odd = (
        next(line for line in lines if line.startswith(name)) for name in ("made", "vae", "odd !")
    )
    assert "= −2.0" in made
    assert "≥ −2.5" in vae
    assert "0.058" in vae  # sqrt(3) 0.1 / 3
    assert "≥ −0.5" in vae  # the true difference is at least that
    assert "≤ −0.2" in odd
    assert "! odd: Pareto k is up to 0.95 > 0.7" in lines
    assert repr(mixed) == str(mixed)


def test_names_of_several_lines_stand_on_one_line():
    table = compare({"a\nnet": result(-3.0, bound="exact"), "b": result(-5.0, 0.2, "estimate")})
    table = replace(table, improving=("a\nnet",))
    assert "a net ↑" in str(table)
    assert not [line for line in str(table).splitlines() if line.strip() == "a"]
    assert all("a\n" not in line for line in cells(table)[0])
    latex = table.to_latex().splitlines()
    assert all(line.startswith("%") for line in latex[: latex.index(r"\begin{tabular}{lrrrr}")])
    assert "0.20" in cells(table)[2][2]  # two digits that count


def test_probabilities_made_of_bounds_say_so():
    programs = {"a": result(-3.0, bound="exact"), "b": result(-5.0, 0.1, "lower")}
    assert "p(M|D): of bounds as if they were exact" in str(compare(programs))
    assert "of bounds" not in str(compare({"a": programs["a"], "c": result(-4.0, 0.1, "estimate")}))


def test_html_has_the_same_cells_and_escapes_names(mixed):
    page = mixed._repr_html_()
    assert page.count("<tr") == 4
    assert "≥\u00a0−2.5" in page  # no line ends between them
    assert "color:#c62828" in page
    assert "&lt;b&gt;" in compare({"<b>": result(-1.0)})._repr_html_()


def test_data_frame_has_all_figures(mixed):
    frame = mixed.to_dataframe()
    assert list(frame.index) == ["odd", "made", "vae"]
    assert frame.loc["vae", "log_z"] == -7.5
    assert frame.loc["vae", "log_z_per_datum"] == -2.5
    assert frame.loc["vae", "bound"] == "lower"
    assert frame.loc["odd", "warnings"] == ("Pareto k is up to 0.95 > 0.7",)


def test_forest_shows_intervals_where_they_are(mixed):
    log_p, difference = mixed.plot()
    assert [label.get_text() for label in log_p.get_yticklabels()] == ["odd", "made", "vae"]
    assert mcolors.to_hex(log_p.get_yticklabels()[0].get_color()) == ALARM
    markers = {
        line.get_marker(): line.get_xdata()[0]
        for line in log_p.lines
        if line.get_marker() != "None"
    }
    assert markers == pytest.approx({"<": -0.2, "o": -2.0, ">": -2.5})
    half = 1.96 * mixed["vae"].difference_error / 3
    spans = [tuple(line.get_xdata()) for line in difference.lines if len(line.get_xdata()) == 2]
    assert any(span == pytest.approx((-0.5 - half, -0.5 + half)) for span in spans)


def test_programs_are_estimated_at_the_data_they_are_given():
    def poisson(rate):
        def model(x=None):
            with pyro.plate("data", 1 if x is None else len(x)):
                pyro.sample("x", dist.Poisson(rate), obs=x)

        return Program(model)

    counts = torch.tensor([2.0, 3.0, 1.0])
    table = compare({"two": poisson(2.0), "five": poisson(5.0)}, counts)
    assert table["two"].log_z == pytest.approx(
        dist.Poisson(2.0).log_prob(counts).sum().item(), abs=1e-5
    )
    assert table["two"].bound == table["five"].bound == "exact"
    mixed = compare({"two": poisson(2.0), "five": table.evidences["five"]}, counts)
    assert mixed["five"].log_z == table["five"].log_z


def counts_program(discrete):
    def model(x):
        with pyro.plate("data", len(x)):
            law = dist.Poisson(2.0) if discrete else dist.Normal(2.0, 0.01)
            pyro.sample("x", law, obs=x)

    return Program(model)


def test_probabilities_beside_densities_are_told():
    """A narrow density at whole numbers exceeds any probability, and wins."""
    x = torch.full((5,), 2.0)
    programs = {"counts": counts_program(True), "narrow": counts_program(False)}
    table = compare(programs, x)
    assert table.evidences["counts"].measure == "probability"
    assert table.evidences["narrow"].measure == "density"
    told = "probabilities (counts)", "densities (narrow)", "unlike measures"
    assert all(words in str(table) for words in told)
    alike = compare({"one": programs["counts"], "two": programs["counts"]}, x)
    assert "unlike measures" not in str(alike)
    noisy = [evidence.Exact()(programs["narrow"], x + torch.rand(5)) for _ in range(2)]
    assert evidence.over_noise(noisy).measure == "probability"


def test_errors_of_probabilities_hold_where_estimates_err_alike():
    """Programs estimated from one seed share their draws: ten that err as one, beside an exact."""
    generator = torch.Generator().manual_seed(0)
    scores = []
    for _ in range(400):
        shift = 0.1 * torch.randn((), generator=generator)
        found = {f"like {i}": result(-2.0 + shift, 0.1, "estimate") for i in range(10)}
        row = compare({"exact": result(0.0), **found})["exact"]
        truth = 1 / (1 + 10 * math.exp(-2.0))
        scores.append((row.weight - truth) / row.weight_error)
    assert 0.8 < torch.tensor(scores).square().mean().sqrt() < 1.2
