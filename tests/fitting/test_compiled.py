"""Compiled fits give what eager ones give, and say why when they cannot."""

import gc
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ReweightedWakeSleep

import ppl_dgm.fitting.stepping as stepping
from ppl_dgm import NonFiniteError, Program, fit
from ppl_dgm.compile import CaptureError, TrainStep
from ppl_dgm.compile.inductor import cost
from ppl_dgm.objectives import ELBO, IWELBO, linear_warmup

X = torch.randn(25, 3, generator=torch.Generator().manual_seed(0))


def make_program(read_on_host=False):
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(3, 4), torch.nn.Linear(2, 3)

    def model(x=None):
        pyro.module("decoder", decoder)
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            noise = 0.5 if not read_on_host else 0.5 * float(x.isfinite().all().item())
            pyro.sample("x", dist.Normal(decoder(z), noise).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    return Program(model, guide)


def run(compile, objective, program=None, **settings):
    program = program or make_program()
    settings = {"steps": 40, "batch_size": 10, "clip_norm": 1.0, "progress": False} | settings
    return fit(
        program,
        X,
        objective,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.02),
        compile=compile,
        **settings,
    )


def test_compiled_equals_eager_with_odd_minibatches_annealing_and_a_schedule():
    def schedule(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)

    make = lambda: IWELBO(3, gradient="dreg", kl_weight=linear_warmup(20))  # noqa: E731
    eager, compiled = (run(mode, make(), schedule=schedule) for mode in (False, True))
    assert compiled.compile_seconds > 0
    assert torch.allclose(eager.history["objective"], compiled.history["objective"], atol=1e-4)
    for mine, theirs in zip(eager.program.parameters(), compiled.program.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def captured_alone(monkeypatch):
    """Steps are captured graphs, run as they are: no code is made for them."""
    monkeypatch.setattr(stepping, "TrainStep", partial(TrainStep, backend="eager"))


def test_auto_leaves_short_fits_eager():
    result = run("auto", ELBO())
    assert result.compile_seconds == 0
    assert result.notes == ()


def test_auto_compiles_the_full_minibatches_whichever_comes_when_it_decides(monkeypatch):
    """Three steps an epoch, the last of 5 data.

    27 of the 40 steps have all 10, 12 of which are for trial.
    """
    monkeypatch.setattr(cost, "saving", lambda seconds: math.inf)
    captured_alone(monkeypatch)
    sizes = []
    make_steps = TrainStep.repeat

    def counted(self, count, *batch, rows, between):
        sizes.extend([rows.shape[1]] * count)
        return make_steps(self, count, *batch, rows=rows, between=between)

    monkeypatch.setattr(TrainStep, "repeat", counted)
    assert run("auto", ELBO()).compile_seconds > 0
    assert sizes == [10] * 15


def test_auto_falls_back_with_a_reason_and_true_raises(monkeypatch):
    monkeypatch.setattr(cost, "saving", lambda seconds: math.inf)
    result = run("auto", ELBO(), make_program(read_on_host=True))
    assert result.steps == 40
    assert len(result.notes) == 1
    assert "not compiled" in result.notes[0]
    assert "test_compiled.py" in result.notes[0]
    with pytest.raises(CaptureError, match="item"):
        run(True, ELBO(), make_program(read_on_host=True))


class Temperature(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.value = 1.0

    def forward(self, x):
        return x / self.value


def annealed_program():
    torch.manual_seed(0)
    temperature, decoder = Temperature(), torch.nn.Linear(1, 3)

    def model(x=None):
        pyro.module("decoder", decoder)
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample(
                "x", dist.Normal(temperature(decoder(torch.ones(1))), 1.0).to_event(1), obs=x
            )

    class Anneal:
        def __init__(self, optimizer):
            pass

        def step(self):
            temperature.value *= 0.97

    return Program(model), Anneal


def test_auto_gives_up_where_a_module_is_set_anew_at_every_step_and_true_raises(monkeypatch):
    monkeypatch.setattr(cost, "saving", lambda seconds: math.inf)
    captured_alone(monkeypatch)
    results = []
    for mode in (False, "auto"):
        program, schedule = annealed_program()
        results.append(run(mode, ELBO(), program, schedule=schedule, batch_size=None))
    eager, auto = results
    assert torch.allclose(eager.history["objective"], auto.history["objective"], atol=1e-5)
    assert len(auto.notes) == 1
    assert "Temperature.value was" in auto.notes[0]
    assert auto.compile_seconds > 0
    program, schedule = annealed_program()
    with pytest.raises(CaptureError, match=r"Temperature\.value was .* buffer .* compile=False"):
        run(True, ELBO(), program, schedule=schedule, batch_size=None)


def test_auto_stays_eager_with_an_optimiser_that_cannot_be_compiled(monkeypatch):
    monkeypatch.setattr(cost, "saving", lambda seconds: math.inf)
    result = fit(make_program(), X, ELBO(), steps=20, optimizer=torch.optim.NAdam, progress=False)
    assert result.steps == 20
    assert [note.split(" cannot")[0] for note in result.notes] == ["not compiled: NAdam"]


def test_an_optimiser_goes_on_from_a_compiled_fit(monkeypatch):
    """Adam's correction of bias counts the compiled steps.

    Nothing of the fit is left but its optimiser.
    """
    captured_alone(monkeypatch)
    histories = []
    for compile in (False, True):
        program = make_program()
        optimizers = []

        def kept(parameters, optimizers=optimizers):
            optimizers.append(
                optimizers[0] if optimizers else torch.optim.Adam(parameters, lr=0.02)
            )
            return optimizers[0]

        fit(program, X, steps=15, optimizer=kept, progress=False, compile=compile)
        assert {state["step"].item() for state in optimizers[0].state.values()} == {15.0}
        gc.collect()
        histories.append(
            fit(program, X, steps=5, optimizer=kept, progress=False, compile=False).history[
                "objective"
            ]
        )
    assert torch.allclose(*histories, atol=1e-4)


def test_objectives_without_a_differentiable_loss_stay_eager(monkeypatch):
    with pytest.raises(ValueError, match="no differentiable loss"):
        run(True, ReweightedWakeSleep(num_particles=2, vectorize_particles=False))
    monkeypatch.setattr(cost, "saving", lambda seconds: math.inf)
    result = run("auto", ReweightedWakeSleep(num_particles=2, vectorize_particles=False))
    assert result.compile_seconds == 0
    assert [note.split(" so that")[0] for note in result.notes] == [
        "not compiled: ReweightedWakeSleep has no differentiable loss,"
    ]


@pytest.mark.parametrize("compile", [False, True])
def test_a_step_to_nan_is_not_made(compile, monkeypatch):
    """The scale of the data, free to become negative, does so under steps that are too long."""
    captured_alone(monkeypatch)

    def model(x):
        scale = pyro.param("scale", torch.tensor(3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    program = Program(model)
    with pytest.raises(
        NonFiniteError,
        match="at step .*the log density of site 'x' of the model.*norm of the parameters",
    ) as caught:
        fit(
            program, X[:, 0], ELBO(), steps=60, progress=False, compile=compile,
            optimizer=lambda p: torch.optim.SGD(p, lr=3.0),
        )  # fmt: skip
    result = caught.value.fit
    assert result.stopped == "nonfinite"
    assert 0 < result.steps == len(result.history["objective"]) < 60
    assert bool(result.history["objective"].isfinite().all())
    assert bool(program.get_parameter("scale").isfinite())


@pytest.mark.parametrize("compile", [False, True])
def test_infinite_gradients_are_named(compile, monkeypatch):
    """The root of zero.

    A finite loss with an infinite gradient, of which a compiled step tells no more than NaN.
    """
    captured_alone(monkeypatch)

    def model(x=None):
        level = pyro.param("level", torch.tensor(4.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(level.sqrt(), 1.0), obs=x)

    class ToZero:
        """A schedule that sets the level to zero after the third step."""

        def __init__(self, optimizer):
            self.level, self.steps = optimizer.param_groups[0]["params"][0], 0

        def step(self):
            self.steps += 1
            if self.steps == 3:
                self.level.data.zero_()

    program = Program(model)
    with pytest.raises(
        NonFiniteError, match="at step 3 .*gradients of \\['level'\\] are not finite"
    ):
        fit(program, torch.ones(4), steps=9, schedule=ToZero, progress=False, compile=compile)
