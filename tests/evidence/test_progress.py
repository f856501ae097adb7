"""Bars of estimators: after two seconds, with the name of what is running, and none otherwise."""

import sys
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program, bars, posterior, refine, watching
from ppl_dgm.compile import Switch
from ppl_dgm.conditionals.likelihoods import MixtureDensity
from ppl_dgm.evidence import (
    AIS,
    BDMC,
    SMC,
    BridgeSampling,
    ImportanceSampling,
    auto,
    over_particles,
    savage_dickey,
)
from ppl_dgm.families import MADE, VAE, Mixture
from ppl_dgm.sampling.effort import spend
from ppl_dgm.tasks import complete, log_marginal


def model(x=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("x", dist.StudentT(3.0, z, 0.1), obs=x)


X = torch.tensor([1.0, 1.2, -2.0])
ESTIMATORS = {
    "SMC": SMC(num_particles=20),
    "AIS": AIS(num_chains=4, num_temperatures=20),
    "BDMC": BDMC(AIS(num_chains=4, num_temperatures=20)),
    "ImportanceSampling": ImportanceSampling(200),
}


@pytest.fixture
def seen(monkeypatch):
    """Somebody is at a terminal, and impatient."""
    monkeypatch.setattr(watching, "is_seen", lambda: True)
    monkeypatch.setattr(watching, "PATIENCE", -1.0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_bar_names_its_estimator_and_goes(name, seen, capsys):
    ESTIMATORS[name](Program(model), X)
    told = capsys.readouterr().err
    assert f"{name}:" in told
    assert "densities" in told
    assert not told.rsplit("\r", 1)[1].strip()  # nothing stays


def test_auto_says_which_estimator_is_running(seen, capsys):
    auto(Program(model), X, budget=200_000)
    told = capsys.readouterr().err
    assert "auto: " in told
    assert "auto: SMC: " in told
    assert ": :" not in told


def shifted(x=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


OTHERS = {
    "EM": lambda **settings: Mixture(1, 2).fit_em(X.unsqueeze(1), num_steps=3, **settings),
    "refine": lambda **settings: refine(VAE(3, 1, [2]), X[None] * 0, num_steps=3, **settings),
    "Savage-Dickey": lambda **settings: savage_dickey(
        Program(shifted), X, site="mean", num_prior=200, sampler=SAMPLER, **settings
    ),
    "posterior": partial(posterior, Program(model), X, num_particles=2000),
    "completion": partial(complete, VAE(3, 1, [2]), X[None] * 0, X > 0, num_particles=50),
    "marginal": partial(log_marginal, MADE(3, [2], MixtureDensity(2)), X[None] * 0, X > 0),
    "bounds": partial(over_particles, Program(model), X, particles=[1, 2], num_replicates=4),
}
SAMPLER = BridgeSampling(posterior={"mean": torch.randn(2, 200) * 0.5})


@pytest.mark.parametrize("name", OTHERS)
def test_other_work_has_bars_too(name, monkeypatch, capsys):
    monkeypatch.setattr(bars, "is_seen", lambda: True)
    monkeypatch.setattr(bars, "PATIENCE", 0.0)
    monkeypatch.setattr(watching, "is_seen", lambda: True)
    monkeypatch.setattr(watching, "PATIENCE", -1.0)
    work = OTHERS[name]
    work(progress=False)
    assert capsys.readouterr().err == ""
    work()
    assert f"{name}:" in capsys.readouterr().err


def test_silence_where_it_is_asked_for(seen, capsys):
    for estimator in (*ESTIMATORS.values(), auto):
        settings = {"budget": 20_000} if estimator is auto else {}
        estimator(Program(model), X, progress=False, **settings)
    assert capsys.readouterr().err == ""


def test_silence_where_work_is_short_or_nobody_looks(monkeypatch, capsys):
    SMC(num_particles=20)(Program(model), X)  # standard error is no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(watching, "PATIENCE", 60.0)  # on however slow a machine
    ImportanceSampling(200)(Program(model), X)
    assert capsys.readouterr().err == ""


def test_a_bar_counts_what_was_before_it(monkeypatch):
    monkeypatch.setattr(watching, "is_seen", lambda: True)
    now = [0.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    with watching.watched("work", True):
        spend(10)
        watch = watching.WATCH.get()
        assert watch._bar is None
        now[0] = 3.0
        spend(5, 3.0)
        assert watch._bar.n == 25
    assert watching.WATCH.get() is None


def test_compiling_is_told_at_once(monkeypatch, capsys):
    monkeypatch.setattr(watching, "is_seen", lambda: True)
    monkeypatch.setattr(watching, "PATIENCE", 60.0)
    with watching.watched("work", True):
        Switch(True, backend="eager")(torch.add, torch.ones(2), torch.ones(2))
    assert "work, compiling" in capsys.readouterr().err
