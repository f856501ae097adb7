"""The command line, run in this process."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from ppl_dgm.cli import main, studies
from ppl_dgm.cli.loading import load_program

SCHOOLS = """
import pyro, pyro.distributions as dist, torch
from ppl_dgm import Program

def model(y=None, sigma=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", 8):
        pyro.sample("y", dist.Normal(mu, (sigma**2 + tau**2).sqrt()), obs=y)

def coin(x=None):
    p = pyro.param("p", torch.tensor(0.5))
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)

program = Program(model, site="y")
flip = Program(coin)
number = 3

def make():
    return Program(coin)

def broken():
    return 1 / 0
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "schools.py").write_text(SCHOOLS)
    (tmp_path / "broken.py").write_text("x = 1\ny = x / 0\n")
    y, sigma = [28.0, 8, -3, 7, -1, 1, 18, 12], [15.0, 10, 16, 11, 9, 11, 10, 18]
    np.savez(tmp_path / "schools.npz", y=np.array(y), sigma=np.array(sigma))
    np.save(tmp_path / "coins.npy", np.array([1.0, 0.0, 1.0, 1.0]))
    np.savez(tmp_path / "split.npz", train=np.zeros(5), test=np.ones(3))
    return tmp_path


def test_compare_writes_a_report_and_prints_the_table(tmp_path, capsys, monkeypatch):
    few = studies.BINARY.load().train.select(slice(90)).split((0.6, 0.2, 0.2))
    monkeypatch.setitem(studies.STUDIES, "binary", replace(studies.BINARY, load=lambda: few))
    assert (
        main(["compare", "--data", "binary", "--quick", "--epochs", "1", "--out", str(tmp_path)])
        == 0
    )
    out = capsys.readouterr().out
    rows = {
        row["name"]: row
        for row in json.loads((tmp_path / "results.json").read_text())["binary-digits"]["rows"]
    }
    assert set(rows) == {
        "independent pixels",
        "mixture of 40 Bernoullis",
        "MADE",
        "VAE",
        "VAE by IWELBO",
    }
    assert rows["MADE"]["bound"] == "exact"
    assert rows["VAE"]["bound"] == "estimate"
    assert all(f"\n{name}" in out for name in rows)
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_the_main_job_orders_the_families(tmp_path):
    assert main(["compare", "--out", str(tmp_path)]) == 0
    sections = json.loads((tmp_path / "results.json").read_text())
    for slug, baseline in (
        ("binary-digits", "independent pixels"),
        ("grey-digits", "independent Gaussians"),
    ):
        assert sections[slug]["rows"][-1]["name"] == baseline


def test_evidence_of_eight_schools(folder, capsys):
    command = [
        "evidence",
        f"{folder}/schools.py:program",
        "--data",
        f"{folder}/schools.npz",
        "--out",
        f"{folder}/out",
    ]
    assert main([*command, "--estimator", "importance", "--particles", "20000"]) == 0
    row = json.loads((folder / "out" / "results.json").read_text())["schools"]["rows"][0]
    assert abs(row["log_z"] + 31.311347) < 4 * row["std_error"] + 1e-9
    assert "one data set" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "data", "total"),
    [("flip", "coins.npy", 4), ("make", "coins.npy", 4), ("flip", "split.npz", 3)],
)
def test_evidence_is_exact_where_it_can_be(folder, capsys, name, data, total):
    assert main(["evidence", f"{folder}/schools.py:{name}", "--data", f"{folder}/{data}"]) == 0
    assert f"log p = {-total * math.log(2):.3f} nats" in capsys.readouterr().out


def test_evidence_with_saved_parameters(folder, capsys):
    program = load_program(f"{folder}/schools.py:flip").initialise(torch.ones(2))
    with torch.no_grad():
        next(program.parameters()).fill_(0.75)
    program.save(folder / "state.pt")
    command = ["evidence", f"{folder}/schools.py:flip", "--data", f"{folder}/split.npz"]
    assert main([*command, "--state", f"{folder}/state.pt"]) == 0
    assert f"log p = {3 * math.log(0.75):.3f} nats" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        ("schools.py", [], "expected path/to/file.py:name"),
        ("absent.py:program", [], "there is no file"),
        ("schools.py:absent", [], "has no 'absent', only"),
        ("schools.py:number", [], "'number' in .* is a int; expected a Program"),
        ("schools.py:model", [], "'model' in .* is a function; expected a Program"),
        ("broken.py:program", [], "broken.py, line 2: ZeroDivisionError: division by zero"),
        ("schools.py:broken", [], r"schools.py, line \d+: ZeroDivisionError: division by zero"),
        (
            "schools.py:flip",
            ["--data", "coins.npy", "--out", "coins.npy"],
            "coins.npy is a file; expected a folder",
        ),
        ("schools.py:flip", ["--data", "absent.npz"], "absent.npz"),
        (
            "schools.py:flip",
            ["--data", "coins.npy", "--state", "absent.pt"],
            "there is no file .*absent.pt",
        ),
        ("schools.py:flip", ["--data", "schools.npz"], "the model failed"),
        (
            "schools.py:program",
            ["--data", "schools.npz", "--estimator", "exact"],
            "cannot be integrated out",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder, monkeypatch, capsys, program, options, message):
    monkeypatch.chdir(folder)
    assert main(["evidence", program, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ppl-dgm: error: ")
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required"),
        (["compare", "--data", "mnist"], "invalid choice: 'mnist'"),
        (["compare", "--epochs", "0"], "0 is not a positive number"),
        (["compare", "--epochs", "many"], "invalid positive integer value: 'many'"),
        (["evidence"], "required: PROGRAM"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_folder_that_is_a_file_is_refused_before_fitting(tmp_path, capsys):
    (tmp_path / "results").write_text("")
    assert main(["compare", "--out", f"{tmp_path}/results"]) == 2
    assert (
        capsys.readouterr().err
        == f"ppl-dgm: error: {tmp_path}/results is a file; expected a folder to write the report to\n"
    )


def test_interruption_is_one_line(monkeypatch, capsys, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setitem(studies.STUDIES, "binary", replace(studies.BINARY, load=interrupt))
    assert main(["compare", "--data", "binary", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "ppl-dgm: interrupted\n"


@pytest.mark.parametrize("command", [[], ["compare"], ["evidence"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: ppl-dgm" in capsys.readouterr().out
