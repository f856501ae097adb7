"""What results look like in notebooks and papers."""

import shutil
from html.parser import HTMLParser
from importlib.util import find_spec

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program, compare, evidence, fit, posterior
from ppl_dgm.markup import html_table, latex_number, latex_table, latex_text


class Cells(HTMLParser):
    """The text of all cells; unbalanced tags are an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def model(x=None):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z<1>", dist.Normal(loc, 1.0))
        pyro.deterministic("double", 2 * z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


X = torch.tensor([0.0, 1.0, 6.0])


def test_programs_show_sites_and_parameters():
    program = Program(model)
    assert "not yet run on data" in program._repr_html_()
    cells = Cells(program.initialise(X)._repr_html_()).cells
    assert cells[:4] == ["site", "is", "belongs to", "values"]
    assert cells[4:7] == ["z<1>", "latent", "each datum (plate 'data')"]
    assert cells[cells.index("x") + 1] == "observed"
    assert cells[cells.index("double") + 1] == "deterministic"
    assert cells[cells.index("loc") :] == ["loc", "[]", "yes"]
    frame = program.to_dataframe()
    assert frame["site"].tolist() == ["z<1>", "x", "double"]
    assert r"x & observed &  &  \\" in program.to_latex()


@pytest.mark.skipif(find_spec("graphviz") is None, reason="no graphviz to draw with")
def test_programs_draw_their_graph():
    program = Program(model).initialise(X)
    drawn = program.render(X).source
    assert '"z<1>" -> double' in drawn
    assert '"z<1>" -> x' in drawn
    assert "x [label=x fillcolor=gray" in drawn
    assert "label=data" in drawn
    picture = program._repr_html_()
    assert ("<svg" in picture) == (shutil.which("dot") is not None)


def test_evidences_show_what_they_are_and_their_alarms():
    result = evidence.ImportanceSampling(5)(Program(model), X)
    assert not result.reliable
    page = result._repr_html_()
    cells = Cells(page).cells
    assert cells[1].endswith("nats (estimate, by ImportanceSampling)")
    assert result.warnings[0].replace(">", "&gt;") in page
    frame = result.to_dataframe()
    assert frame["log_z"].tolist() == result.log_z.tolist()
    assert {"std_error", "ess", "pareto_k"} <= set(frame)
    paper = result.to_latex().splitlines()
    assert paper[0] == "% log p of 3 data (3 numbers), nats per datum"
    assert paper[1] == f"% ! {result.warnings[0]}"
    assert f"approx {result.total / 3:.2f}$" in paper[-3]


def test_fits_show_how_they_ended():
    result = fit(Program(model), X, steps=4, valid=X, valid_every=2, progress=False)
    cells = Cells(result._repr_html_()).cells
    assert cells[cells.index("ended") + 1] == "finished"
    assert "fit & $4$ & finished &" in result.to_latex()
    frame = result.to_dataframe()
    assert list(frame) == ["step", "quantity", "value"]
    assert frame.query("quantity == 'valid'")["step"].tolist() == [2, 4]
    assert (
        frame.query("quantity == 'objective'")["value"].tolist()
        == result.history["objective"].tolist()
    )


def test_posteriors_show_their_latents():
    draws = posterior(Program(model), X, num_particles=50)
    cells = Cells(draws._repr_html_()).cells
    assert cells[4:6] == ["z<1>", "[3]"]
    assert f"{draws.mean['z<1>'].max():.3g}" in cells[6]
    frame = draws.to_dataframe()
    assert list(frame) == ["latent", "index", "mean", "sd", "5%", "50%", "95%"]
    assert frame["mean"].tolist() == pytest.approx(draws.mean["z<1>"].tolist())
    assert frame["50%"].tolist() == pytest.approx(draws.draws["z<1>"].quantile(0.5, 0).tolist())
    assert draws.to_latex().count("z<1>[") == 3


def test_tables_say_what_headings_mean():
    table = compare({"a & b": evidence.PriorSampling(10_000)(Program(model), X)})
    page = table._repr_html_()
    assert 'title="standard error of the estimator' in page
    assert Cells(page).cells[:3] == ["", "log p", "± MC"]
    paper = table.to_latex()
    assert r"a \& b" in paper
    assert paper.count(r"\\") == 2
    assert paper.count(r"\toprule") == paper.count(r"\bottomrule") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 %_{x}", r"50 \%\_\{x\}"),
        ("a\\b^~", r"a\textbackslash{}b\textasciicircum{}\textasciitilde{}"),
    ],
)
def test_commands_of_latex_are_escaped(text, expected):
    assert latex_text(text) == expected


def test_numbers_are_mathematics():
    assert latex_number("≥ −2.5 ± 0.1") == r"$\ge -2.5 \pm 0.1$"
    assert latex_number("–") == "--"
    assert latex_table([["", "n"], ["a", "= 1"]]).splitlines()[4] == r"a & $1$ \\"


def test_cells_are_escaped_and_alarms_red():
    page = html_table([["", "n"], ["<b>", "1"]], alarmed=[1])
    assert Cells(page).cells == ["", "n", "<b>", "1"]
    assert page.count("color:#c62828") == 1


def test_signs_stay_with_their_numbers():
    page = html_table([["", "n"], ["a", "≥ −1 ± 0.1"]], notes=["log B ≈ −2 ± 1, so"])
    assert "≥\u00a0−1\u00a0±\u00a00.1" in page
    assert "B ≈\u00a0−2\u00a0±\u00a01, so" in page
