"""The report's folder.

One page without links, pictures, JSON and netCDF with the numbers of the table.
"""

import json
import re
from dataclasses import replace

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from ppl_dgm import Dataset, Program, compare, evidence, fit, report
from ppl_dgm.families import VAE, IndependentBernoulli
from ppl_dgm.report import Section, figures, write_report


@pytest.fixture(scope="module")
def section():
    torch.manual_seed(0)
    x = (torch.rand(40, 16) < 0.4).float()
    data = Dataset(x, support=2, image_shape=(1, 4, 4), name="noise")
    programs = {"baseline": IndependentBernoulli(16), "VAE <2>": VAE(16, 2, (8,))}
    fits = {
        name: fit(program, data, epochs=3, progress=False, compile=False)
        for name, program in programs.items()
    }
    estimator = evidence.ImportanceSampling(50)
    table = compare({name: estimator(program, x) for name, program in programs.items()})
    return Section("Noise & nets", table, "A note.", fits, programs, data)


@pytest.fixture(scope="module")
def page(section, tmp_path_factory):
    return write_report(
        tmp_path_factory.mktemp("report") / "new" / "folder", section, heading="Title <1>"
    )


def test_all_files_are_there(page):
    names = {path.name for path in page.parent.iterdir()}
    assert names == {
        "report.html",
        "results.json",
        "noise-nets.nc",
        "noise-nets-vae-2.nc",
        "noise-nets-evidence.png",
        "noise-nets-curves.png",
        "noise-nets-samples.png",
    }


def test_page_needs_no_other_file(page):
    html = page.read_text()
    sources = re.findall(r'(?:src|href|srcset)="([^"]{0,30})', html)
    assert len(sources) == 6  # of each picture one for narrow screens
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "Title &lt;1&gt;" in html
    assert "VAE &lt;2&gt;" in html
    assert "Noise &amp; nets" in html
    assert "A note." in html


def test_curves_and_table_have_the_same_unit(section):
    data = replace(section.data, log_offset=-100.0)
    curves = lambda section: figures(section, {})["curves"][1].axes[0].get_lines()  # noqa: E731
    for before, after in zip(curves(section), curves(replace(section, data=data)), strict=True):
        assert after.get_ydata() == pytest.approx(before.get_ydata() - 100.0)
    plt.close("all")


def test_json_has_the_figures_of_the_table(page, section):
    found = json.loads((page.parent / "results.json").read_text(), parse_constant=pytest.fail)
    saved = {row["name"]: row for row in found["noise-nets"]["rows"]}
    for row in section.comparison.rows:
        assert saved[row.name]["log_z"] == row.log_z
        assert saved[row.name]["bound"] == row.bound
        assert saved[row.name]["weight_error"] is None  # NaN is no JSON
    assert found["noise-nets"]["fits"]["baseline"]["steps"] == 3


def test_netcdf_has_the_evidence_of_each_datum(page, section):
    saved = xr.load_dataset(page.parent / "noise-nets.nc", engine="h5netcdf")
    result = section.comparison.evidences["baseline"]
    assert np.array_equal(saved.log_z.sel(program="baseline"), result.log_z.numpy())
    assert saved.bound.sel(program="VAE <2>").item() == "estimate"
    assert saved.attrs["units"] == "nats"


def test_netcdf_of_programs_with_latents_is_arviz(page):
    tree = az.from_netcdf(page.parent / "noise-nets-vae-2.nc")
    assert tree.posterior["z"].shape == (1, 200, 20, 2)
    assert tree.posterior_predictive["x"].shape == (1, 200, 20, 16)


def test_reports_repeat_with_the_seed(page, section, tmp_path):
    again = write_report(tmp_path, section, heading="Title <1>")
    bodies = [path.read_text().partition("<footer>")[0] for path in (again, page)]
    assert bodies[0] == bodies[1]


def test_page_tells_how_its_numbers_were_made(page, section, tmp_path):
    write_report(tmp_path, section, seed=7, settings={"compile": "auto"})
    made = json.loads((tmp_path / "results.json").read_text())["made_by"]
    assert made["seed"] == "7"
    assert made["compile"] == "auto"
    release = torch.__version__.partition("+")[0]  # wheels of the index leave out the build's name
    assert f"torch {release}" in made["versions"]
    html = (tmp_path / "report.html").read_text()
    assert all(name in html for name in made)
    told = json.loads((page.parent / "results.json").read_text())["made_by"]["compile"]
    assert told == f"0 of {len(section.fits)} fits were compiled"
    assert "stacking weight: its share in the mixture" in html


def test_evidence_of_a_data_set_needs_no_programs(tmp_path):
    def model():
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).mask(True))
            pyro.factor("f", -(z**2))

    result = evidence.ImportanceSampling(100)(Program(model)).pooled()
    page = write_report(tmp_path, Section("one", compare({"a": result})))
    assert json.loads((page.parent / "results.json").read_text())["one"]["target"] == "dataset"


UNICODE = [
    "VAE 1",
    "VAE-1",
    "β",
    "γ",
    "🎲",
    "../up",
    "line\nbreak",
    "x" * 300,
    "5 $ or $_",
]


def test_names_of_any_characters_have_files_of_their_own(section, tmp_path):
    program = section.programs["VAE <2>"]
    result = section.comparison.evidences["VAE <2>"]
    same = Section(
        "Größe / 🎲",
        compare(dict.fromkeys(UNICODE, result)),
        data=section.data.select(slice(20)),
        programs=dict.fromkeys(UNICODE[:3], program),
    )
    bare = Section("Größe – 🎲", section.comparison)
    page = write_report(tmp_path / "report", [same, bare])
    found = json.loads((page.parent / "results.json").read_text())
    files = {path.name for path in page.parent.iterdir()} - {"results.json"}
    assert files == {*found["own_files"]}
    assert {"größe-vae-1.nc", "größe-vae-1-2.nc", "größe-β.nc", "größe.nc", "größe-2.nc"} <= files
    assert [part for part in found if "_" not in part] == ["größe", "größe-2"]
    assert list(tmp_path.iterdir()) == [page.parent]


def failing(monkeypatch, error):
    def fail(tree, seed):
        raise error

    monkeypatch.setattr(report, "to_arviz", fail)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left")])
def test_reports_are_there_as_a_whole_or_not_at_all(section, tmp_path, monkeypatch, error):
    few = Section("one", section.comparison)
    page = write_report(tmp_path / "report", few)
    before = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    (tmp_path / ".report.0123abcd.tmp").mkdir()  # what a killed process left
    with monkeypatch.context() as patched:
        failing(patched, error)
        with pytest.raises(error if isinstance(error, type) else type(error)):
            write_report(tmp_path / "report", section)
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == before
    assert list(tmp_path.iterdir()) == [page.parent]
    again = write_report(tmp_path / "report", replace(few, title="two"))
    assert {path.name for path in again.parent.iterdir()} == {
        "report.html",
        "results.json",
        "two.nc",
        "two-evidence.png",
    }


def test_other_files_in_the_folder_are_kept(section, tmp_path):
    few = Section("one", section.comparison)
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        write_report(tmp_path, few)
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert len(list(tmp_path.iterdir())) == 5


def test_bad_targets_are_refused_before_any_work(section, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        write_report(tmp_path / "file", section)
    with pytest.raises(ValueError, match="with different titles"):
        write_report(tmp_path, [section, section])
    with pytest.raises(ValueError, match="expected at least one"):
        write_report(tmp_path, [])
