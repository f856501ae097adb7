"""Terms of the ELBO in a fit's history, against closed forms and the objective itself."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import ppl_dgm.fitting.stepping as stepping
from ppl_dgm import Fit, Program, fit
from ppl_dgm.compile import TrainStep
from ppl_dgm.families import VAE, Mixture
from ppl_dgm.fitting import Callback, EarlyStopping
from ppl_dgm.objectives import (
    ELBO,
    IWELBO,
    REINFORCE,
    VIMCO,
    BetaTC,
    FreeBits,
    ReweightedWakeSleep,
    linear_warmup,
)

X = torch.randn(30, generator=torch.Generator().manual_seed(0)) + 1.0
SGD = lambda parameters: torch.optim.SGD(parameters, lr=0.0)  # noqa: E731
TERMS = ("reconstruction", "kl")


def model(x=None):
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x=None):
    loc = pyro.param("loc", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.8))


KL = float(torch.distributions.kl_divergence(dist.Normal(0.5, 0.8), dist.Normal(0.0, 1.0)))
RECONSTRUCTION = float(dist.Normal(0.5, 1.0).log_prob(X).mean() - 0.8**2 / 2)


def shared(x=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 30 if x is None else len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared_guide(x=None):
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 0.8))


def test_terms_of_each_datum_against_closed_forms():
    settings = {"steps": 20, "optimizer": SGD, "progress": False, "compile": False}
    history = fit(Program(model, guide), X, ELBO(200), valid=X[:7], **settings).history
    assert float(history["kl"].mean()) == pytest.approx(KL, abs=0.005)
    assert float(history["reconstruction"].mean()) == pytest.approx(RECONSTRUCTION, abs=0.005)
    seven = float(dist.Normal(0.5, 1.0).log_prob(X[:7]).mean() - 0.8**2 / 2)
    assert float(history["valid_reconstruction"].mean()) == pytest.approx(seven, abs=0.05)
    assert torch.allclose(history["valid"], history["valid_reconstruction"] - history["valid_kl"])


@pytest.mark.parametrize("batch_size", [30, 7])
def test_latents_shared_by_all_data_count_once(batch_size):
    history = fit(
        Program(shared, shared_guide),
        X,
        ELBO(100),
        epochs=20,
        batch_size=batch_size,
        optimizer=SGD,
        progress=False,
        compile=False,
    ).history
    assert float(history["kl"].mean()) == pytest.approx(KL / 30, abs=0.002)
    whole = [float(v) for v in history["reconstruction"]]
    assert sum(whole) / len(whole) == pytest.approx(RECONSTRUCTION, abs=0.06)
    assert torch.allclose(history["objective"], history["reconstruction"] - history["kl"])


@pytest.mark.parametrize("weight", [0.25, linear_warmup(10)], ids=["constant", "annealed"])
def test_the_weight_of_the_kl_is_not_in_its_term(weight):
    history = fit(
        Program(model, guide), X, ELBO(kl_weight=weight), steps=10, progress=False, compile=False
    ).history
    weights = torch.tensor([weight if isinstance(weight, float) else weight(i) for i in range(10)])
    expected = history["reconstruction"] - weights * history["kl"]
    assert torch.allclose(history["objective"], expected, atol=1e-5)


OBJECTIVES = {
    "IWELBO": IWELBO(5),
    "dreg": IWELBO(5, gradient="dreg"),
    "stl": ELBO(gradient="stl"),
    "FreeBits": FreeBits(0.0),
    "BetaTC": BetaTC(30, beta=1.0),
    "wake-sleep": ReweightedWakeSleep(5),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_terms_of_other_objectives(name):
    settings = {"steps": 60, "optimizer": SGD, "progress": False, "compile": False}
    history = fit(Program(model, guide), X, OBJECTIVES[name], **settings).history
    assert float(history["kl"].mean()) == pytest.approx(KL, abs=0.1)
    assert float(history["reconstruction"].mean()) == pytest.approx(RECONSTRUCTION, abs=0.1)


def test_programs_that_draw_no_latents_have_no_terms():
    x = torch.randn(20, 2)
    for program, objective in ((Mixture(2, 2), ELBO()), (Program(model, guide), Trace_ELBO())):
        data = x if isinstance(program, Mixture) else X
        history = fit(program, data, objective, steps=2, progress=False).history
        assert set(history) == {"step", "objective"}


def test_compiled_loops_keep_the_terms(monkeypatch):
    """Many steps in one call tell the same terms as single steps."""
    monkeypatch.setattr(stepping, "TrainStep", partial(TrainStep, backend="eager"))

    class Each(Callback):
        def on_step(self, progress):
            pass

    def run(callbacks):
        program = Program(model, guide)
        return fit(
            program, X, steps=40, batch_size=10, progress=False, compile=True, callbacks=callbacks
        ).history

    loops, single = run([]), run([Each()])
    for name in ("objective", *TERMS):
        assert torch.allclose(loops[name], single[name], atol=1e-6), name
    assert torch.allclose(loops["objective"], loops["reconstruction"] - loops["kl"], atol=1e-5)


def test_epochs_and_files_keep_the_terms(tmp_path):
    vae, x = VAE(4, 2, [3]), (torch.rand(20, 4) < 0.5).float()
    found = fit(vae, x, epochs=3, batch_size=6, valid=x[:5], progress=False, compile=False)
    epochs = found.per_epoch()
    assert list(epochs.index) == [1, 2, 3]
    assert epochs.kl[2] == pytest.approx(float(found.history["kl"][4:8].mean()))
    assert epochs.valid_kl[3] == pytest.approx(float(found.history["valid_kl"][2]))
    found.save(tmp_path / "vae.safetensors")
    again = Fit.load(tmp_path / "vae.safetensors", VAE(4, 2, [3]))
    assert again.per_epoch()[epochs.columns].equals(epochs)


def test_a_checkpoint_keeps_the_terms(tmp_path):
    settings = {"progress": False, "compile": False, "checkpoint": tmp_path / "c"}
    fit(Program(model, guide), X, steps=3, **settings)
    resumed = fit(Program(model, guide), X, steps=6, **settings).history
    settings["checkpoint"] = tmp_path / "d"
    whole = fit(Program(model, guide), X, steps=6, **settings).history
    assert all(torch.equal(resumed[name], whole[name]) for name in TERMS)


@pytest.mark.parametrize("objective", [VIMCO(5), REINFORCE(4)], ids=["VIMCO", "REINFORCE"])
def test_terms_of_discrete_latents(objective):
    """z of a half, q of 0.3: KL in closed form, reconstruction by enumeration."""

    def coin(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guess(x=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor(0.3))))

    settings = {"steps": 60, "optimizer": SGD, "progress": False, "compile": False}
    history = fit(Program(coin, guess), X, objective, **settings).history
    kl = torch.distributions.kl_divergence(dist.Bernoulli(0.3), dist.Bernoulli(0.5))
    each = [dist.Normal(z, 1.0).log_prob(X).mean() for z in (0.0, 1.0)]
    assert float(history["kl"].mean()) == pytest.approx(float(kl), abs=0.03)
    expected = float(0.7 * each[0] + 0.3 * each[1])
    assert float(history["reconstruction"].mean()) == pytest.approx(expected, abs=0.05)


def test_the_bar_closes_with_how_the_fit_ended(capsys):
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.5)  # noqa: E731
    settings = {"optimizer": adam, "compile": False, "valid": X, "valid_every": 1}
    found = fit(
        Program(model, guide), X, ELBO(4), steps=300, callbacks=[EarlyStopping(3)], **settings
    )
    best = int(found.history["valid_step"][found.history["valid"].argmax()])
    last = capsys.readouterr().err.rsplit("\r", 1)[1]
    assert f"stopped early at {found.steps}, best at {best} restored" in last
    fit(Program(model, guide), X, steps=3, compile=False)
    assert "finished" in capsys.readouterr().err.rsplit("\r", 1)[1]
