"""The command line, run in this process."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_dgm.cli import commands, estimating, main, parser, studies
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
    few = studies.BINARY.load(0).train.select(slice(90)).split((0.6, 0.2, 0.2))
    monkeypatch.setitem(studies.STUDIES, "binary", replace(studies.BINARY, load=lambda noise: few))
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
            "'coins.npy' is a file; expected a folder",
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
        (["compare", "--seed", "-1"], "-1 is no seed; expected 0 to"),
        (["compare", "--seed", "1.5"], "invalid seed value: '1.5'"),
        (["compare", "--threads", "1e9"], "1e9 threads; expected at most"),
        (["evidence", "a.py:p", "--particles", "1.5"], "1.5 is not a positive whole number"),
        (["compare", "--epochs", "inf"], "inf is not a positive whole number"),
        (["compare", "--epochs", "nan"], "nan is not a positive whole number"),
        (["compare", "--threads", "0"], "0 is not a positive whole number"),
        (["compare", "--seed", "4294967296"], "4294967296 is no seed; expected 0 to"),
        (["compare", "--epochs", "0"], "0 is not a positive whole number"),
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
    told = f"'{tmp_path}/results' is a file; expected a folder to write the report to"
    assert capsys.readouterr().err == f"ppl-dgm: error: {told}\n"


def test_interruption_is_one_line(monkeypatch, capsys, tmp_path):
    def interrupt(noise):
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


LINES = """
from __future__ import annotations
import pickle
import sys
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from ppl_dgm import Program

sys.path.append("elsewhere")


@dataclass
class Prior:
    scale: float = 1.0


pickle.loads(pickle.dumps(Prior()))  # a module that pickle finds


def line(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, Prior().scale))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def level(y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def fitted(y=None):
    mean = pyro.param("mean", torch.tensor(0.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


straight, flat, learned = (Program(model, site="y") for model in (line, level, fitted))
"""
X, Y = [0.0, 1.0, 2.0, -1.0], [0.5, 1.0, 2.5, -1.5]


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "lines.py").write_text(LINES)
    rows = "".join(f"{x},{y}\n" for x, y in zip(X, Y, strict=True))
    (tmp_path / "rows.csv").write_text("x,y\n" + rows)
    return tmp_path


def gaussian(covariance):
    """log N(y; 0, covariance), the evidence of a linear model with a normal prior."""
    zeros = torch.zeros(len(Y), dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(zeros, covariance.double())
    return normal.log_prob(torch.tensor(Y).double()).item()


def test_programs_of_a_table_s_columns_are_compared(lines, capsys, monkeypatch):
    """Each takes the columns that it names; the evidences are those of the closed forms."""
    before = list(sys.path)
    programs = [f"{lines}/lines.py:straight", f"{lines}/lines.py:flat"]
    arguments = ["--data", f"{lines}/rows.csv", "--output", f"{lines}/out"]
    assert main(["compare", *programs, *arguments]) == 0
    rows = json.loads((lines / "out" / "results.json").read_text())["rows"]["rows"]
    found = {row["name"]: row["log_z"] for row in rows}
    x, ones = torch.tensor(X), torch.ones(len(Y), len(Y))
    assert found["straight"] == pytest.approx(gaussian(torch.eye(4) + torch.outer(x, x)), abs=1e-4)
    assert found["flat"] == pytest.approx(gaussian(torch.eye(4) + ones), abs=1e-4)
    assert "straight" in capsys.readouterr().out
    assert sys.path == before


def test_programs_are_fitted_first_where_asked(lines, capsys):
    """A thousand steps of Adam bring the mean to that of y, 0.625."""
    program = f"{lines}/lines.py:learned"
    assert main(["compare", program, "--data", f"{lines}/rows.csv", "--fit", "1500"]) == 0
    best = torch.distributions.Normal(0.625, 1.0).log_prob(torch.tensor(Y)).sum().item()
    out = capsys.readouterr().out
    assert "1500 steps" in out
    assert f"{best / 4:.3f}".replace("-", "−") in out.replace("-", "−")


def test_fits_from_several_seeds_tell_their_spread(lines, capsys):
    command = ["compare", f"{lines}/lines.py:learned", "--data", f"{lines}/rows.csv"]
    assert main([*command, "--fit", "20", "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert "± seeds" in out
    assert out.count("20 steps") == 2
    assert main([*command, "--seeds", "2"]) == 2
    assert "give --fit STEPS" in capsys.readouterr().err


def test_an_alarm_is_exit_status_3(lines, capsys):
    command = ["evidence", f"{lines}/lines.py:straight", "--data", f"{lines}/rows.csv"]
    assert main([*command, "--estimator", "prior", "--particles", "1e1"]) == 3
    assert "UNRELIABLE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit(7)\n", r"p.py, line 2: exits \(7\)"),
        ("def program():\n    raise SystemExit\n", r"p.py, line 2: exits \(None\)"),
        ("def program(:\n", r"p.py, line 1: SyntaxError"),
        ("import absent_module\n", r"p.py, line 1: ModuleNotFoundError"),
        ("class Own(BaseException): ...\nraise Own('hm')\n", r"p.py, line 2: Own: hm"),
    ],
)
def test_files_that_exit_or_fail_say_so(tmp_path, capsys, text, message):
    (tmp_path / "p.py").write_text(text)
    assert main(["evidence", f"{tmp_path}/p.py:program"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err)
    with pytest.raises(ValueError, match=message):
        main(["evidence", f"{tmp_path}/p.py:program", "--traceback"])


WITH_SIBLINGS = """
import os
import sys
import helper
import pyro, pyro.distributions as dist
from ppl_dgm import Program

class Thing: ...

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "lib"))
os.chdir("/")

def model(x=None):
    import late  # as files of one's own may do

    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(late.double(helper.HALF)), obs=x)

program = Program(model)
"""


def test_programs_import_from_their_own_folders_also_late(tmp_path, capsys):
    """Both folders have a module `helper`, each with its own number."""
    np.savez(tmp_path / "coins.npz", x=np.array([1.0, 1.0]))
    for folder, half in (("one", 0.25), ("two", 0.125)):
        (tmp_path / folder / "lib").mkdir(parents=True)
        (tmp_path / folder / f"{folder}.py").write_text(WITH_SIBLINGS)
        (tmp_path / folder / "helper.py").write_text(f"HALF = {half}")
        (tmp_path / folder / "lib" / "late.py").write_text("double = lambda value: 2 * value")
    programs = [f"{tmp_path}/{name}/{name}.py:program" for name in ("one", "two")]
    before, folder = list(sys.path), Path.cwd()
    out = f"{tmp_path}/out"
    assert main(["compare", *programs, "--data", f"{tmp_path}/coins.npz", "--out", out]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["coins"]["rows"]
    found = {row["name"]: row["log_z"] for row in rows}
    assert list(found.values()) == pytest.approx([2 * math.log(0.5), 2 * math.log(0.25)])
    assert (sys.path, Path.cwd()) == (before, folder)
    capsys.readouterr()


def test_pickles_of_a_file_s_classes_are_read_by_the_next_process(tmp_path):
    """Its module has the same name in every process, whatever Python's hashes are."""
    (tmp_path / "p.py").write_text("class Thing: ...")
    told = f"from ppl_dgm.cli.loading import _run_file as run; from pathlib import Path; \
print(run(Path('{tmp_path}/p.py')).__name__)"
    names = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", told],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(names) == 1


LATE = """
import sys
import pyro, pyro.distributions as dist
from ppl_dgm import Program

runs = []

def failing(error):
    def model(x=None):
        runs.append(1)
        if len(runs) > 40:
            raise error
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Program(model)

runtime, key = failing(RuntimeError("a\\nb")), failing(KeyError("k"))
quiet, leaves = failing(ValueError()), failing(SystemExit(5))
own = failing(BaseException("hm"))
"""


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("runtime", 1, "RuntimeError: a b; --traceback shows where"),
        ("key", 1, "KeyError: 'k'; --traceback shows where"),
        ("quiet", 2, "ValueError: ; --traceback shows where"),
        ("leaves", 2, r"a program exits \(5\)"),
        ("own", 1, "BaseException: hm; --traceback shows where"),
    ],
)
def test_programs_that_fail_late_are_one_line(folder, capsys, name, status, message):
    (folder / f"{name}.py").write_text(LATE)
    command = ["evidence", f"{folder}/{name}.py:{name}", "--data", f"{folder}/coins.npy"]
    assert main([*command, "--estimator", "ais"]) == status
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err)
    with pytest.raises(BaseException, match=r"a\nb|k|^$|5|hm"):
        main([*command, "--estimator", "ais", "--traceback"])


def test_programs_without_data_and_data_without_programs_are_refused(lines, capsys):
    assert main(["compare", f"{lines}/lines.py:flat"]) == 2
    assert "--data is missing; name the file" in capsys.readouterr().err
    assert main(["compare", "--data", f"{lines}/rows.csv"]) == 2
    assert "name a program too" in capsys.readouterr().err


def test_the_parser_names_what_the_commands_know():
    assert tuple(studies.STUDIES) == parser.STUDIES
    assert tuple(estimating.ESTIMATORS) == parser.ESTIMATORS
    assert tuple(commands._COMPILE) == parser.COMPILE


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ppl_dgm.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "False"


MIXED = """
import pyro, pyro.distributions as dist
from ppl_dgm import Program

def model(shared):
    def run(exposure, deaths=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0)) if shared else None
        with pyro.plate("data", len(exposure)):
            own = rate if shared else pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("deaths", dist.Poisson(own * exposure), obs=deaths)
    return Program(run, site="deaths")

shared, own = model(True), model(False)
"""


def gamma_poisson(exposure, deaths):
    """Log probability of counts that share a rate with prior Gamma(2, 1)."""
    total = sum(deaths)
    terms = [d * math.log(e) - math.lgamma(d + 1) for e, d in zip(exposure, deaths, strict=True)]
    return sum(terms) + math.lgamma(2 + total) - (2 + total) * math.log(1 + sum(exposure))


def test_a_table_with_names_and_programs_of_either_target(tmp_path, capsys):
    """Columns that no program names may hold text; nothing was learned, so evidence is pooled."""
    exposure, deaths = [1.5, 2.0, 0.5], [2, 5, 0]
    rows = "".join(f"t{e},{e},{d},\n" for e, d in zip(exposure, deaths, strict=True))
    (tmp_path / "towns.csv").write_text("town,exposure,deaths,gaps\n" + rows)
    (tmp_path / "m.py").write_text(MIXED)
    command = ["compare", f"{tmp_path}/m.py:shared", f"{tmp_path}/m.py:own", "--fit", "5"]
    options = ["--estimator", "prior", "--particles", "1e5", "--out", f"{tmp_path}/out"]
    assert main([*command, "--data", f"{tmp_path}/towns.csv", *options]) == 0
    assert capsys.readouterr().out.count("no parameters, nothing to fit") == 2
    table = json.loads((tmp_path / "out" / "results.json").read_text())["towns"]["rows"]
    found = {row["name"]: row["log_z"] for row in table}
    each = [gamma_poisson([e], [d]) for e, d in zip(exposure, deaths, strict=True)]
    assert found["shared"] == pytest.approx(gamma_poisson(exposure, deaths), abs=0.05)
    assert found["own"] == pytest.approx(sum(each), abs=0.05)
