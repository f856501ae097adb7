"""Estimators run compiled give the numbers of those run as written, at equal seeds."""

import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program, evidence
from ppl_dgm.compile import CaptureError, Switch, compile_function, repeat
from ppl_dgm.compile.tracing.capture import tensor_leaves
from ppl_dgm.sampling.kernels import HMC, MALA, ULA, RandomWalk, Target
from ppl_dgm.sampling.unconstrained import Unconstrained

X = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 0.1]], dtype=torch.float64)


def local(x: torch.Tensor | None = None) -> None:
    """Each datum has two latents, one of them positive."""
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(X.new_zeros(2), 1.0).to_event(1))
        s = pyro.sample("s", dist.LogNormal(X.new_zeros(()), 0.5))
        pyro.sample("x", dist.StudentT(5.0, z, s.unsqueeze(-1)).to_event(1), obs=x)


def shared(x: torch.Tensor | None = None) -> None:
    """One latent for all data."""
    z = pyro.sample("z", dist.Normal(X.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.StudentT(5.0, z, X.new_ones(())).to_event(1), obs=x)


def stubborn(x: torch.Tensor | None = None) -> None:
    """Reads a value on the host."""
    z = pyro.sample("z", dist.Normal(X.new_zeros(2), 1.0).to_event(1))
    float(X.sum())
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.Normal(z, X.new_ones(())).to_event(1), obs=x)


QUICK = {"num_pilots": 8}
ESTIMATORS = {
    "AIS": lambda **kw: evidence.AIS(num_temperatures=12, num_chains=6, **QUICK, **kw),
    "AIS, random walk": lambda **kw: evidence.AIS(
        num_temperatures=12, num_chains=6, kernel=RandomWalk(), **QUICK, **kw
    ),
    "AIS, unadjusted": lambda **kw: evidence.AIS(
        num_temperatures=12, num_chains=6, kernel=ULA(), **QUICK, **kw
    ),
    "SMC": lambda **kw: evidence.SMC(num_particles=20, num_groups=2, kernel=MALA(), **kw),
    "ThermodynamicIntegration": lambda **kw: evidence.ThermodynamicIntegration(
        num_temperatures=4, num_draws=10, num_warmup=5, **QUICK, **kw
    ),
    "BridgeSampling": lambda **kw: evidence.BridgeSampling(
        num_chains=8, num_draws=10, num_warmup=8, **kw
    ),
    "ImportanceSampling": lambda **kw: evidence.ImportanceSampling(50, **kw),
    "CUBO": lambda **kw: evidence.CUBO(num_particles=50, **kw),
}


@pytest.fixture
def graphs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run captured graphs as they are.

    What is tested is the capture, and machine code takes seconds to make.
    """
    monkeypatch.setattr(Switch.__init__, "__defaults__", ("eager",))


@pytest.mark.parametrize("model", [shared, pytest.param(local, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.usefixtures("graphs_alone")
def test_captured_moves_give_the_same_evidence(name, model):
    program = Program(model)
    written, captured = (
        ESTIMATORS[name](compile=mode)(program, X, seed=3) for mode in (False, True)
    )
    torch.testing.assert_close(captured.log_z, written.log_z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(captured.std_error, written.std_error, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("model", [local, shared])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_machine_code_gives_the_same_evidence(name, model):
    program = Program(model)
    written, compiled = (
        ESTIMATORS[name](compile=mode)(program, X, seed=3) for mode in (False, True)
    )
    torch.testing.assert_close(compiled.log_z, written.log_z, rtol=1e-7, atol=1e-7)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["AIS", "SMC", "BridgeSampling", "ImportanceSampling"])
def test_machine_code_gives_the_same_evidence_on_a_gpu(name):
    def model(x: torch.Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, device="cuda"), 1.0).to_event(1))
            pyro.sample(
                "x", dist.StudentT(5.0, z, torch.ones((), device="cuda")).to_event(1), obs=x
            )

    x = X.float().cuda()
    written, compiled = (
        ESTIMATORS[name](compile=mode)(Program(model), x, seed=3) for mode in (False, True)
    )
    torch.testing.assert_close(compiled.log_z, written.log_z, rtol=1e-3, atol=1e-3)
    assert compiled.log_z.is_cuda


@pytest.mark.usefixtures("graphs_alone")
def test_bidirectional_bounds_are_the_same():
    method = [
        evidence.AIS(num_temperatures=8, num_chains=4, num_pilots=8, compile=mode)
        for mode in (False, True)
    ]
    written, captured = (
        evidence.BDMC(m, num_particles=3)(Program(local), X, seed=0) for m in method
    )
    torch.testing.assert_close(captured.log_z, written.log_z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(captured.upper.log_z, written.upper.log_z, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_one_hmc_move_in_machine_code():
    space = Unconstrained(Program(shared).bind(X))
    target, one = Target(space.split), X.new_ones(())
    kernel = HMC(num_leapfrog=7)
    ends = []
    for mode in (False, True):
        torch.manual_seed(0)
        with torch.no_grad():
            state = target.evaluate(space.sample_prior(5))
            ends.append(Switch(mode)(kernel.move, target, state, 0.7 * one, 0.3 * one, one))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_loop_in_a_graph_takes_any_number_of_turns(count):
    matrix = torch.tensor([[0.5, 1.0], [0.0, 0.5]])  # read by reference

    def power(vector: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        total = vector.sum() / 2  # computed before the loop and read inside
        return (
            repeat(
                count, lambda carry, half: matrix @ carry + half + total, vector, vector.sum() / 2
            )
            * 2
        )

    start = torch.tensor([1.0, 3.0])
    expected = start
    for _ in range(count):
        expected = matrix @ expected + 4.0
    switch = Switch(True, backend="eager")
    assert torch.equal(power(start, torch.tensor(count)), 2 * expected)
    assert torch.allclose(switch(power, start, torch.tensor(count)), 2 * expected)
    assert len(switch._compiled) == 1
    switch(power, start, torch.tensor(count + 1))
    assert len(switch._compiled) == 1


@pytest.mark.usefixtures("graphs_alone")
def test_parts_of_the_data_share_compiled_code(monkeypatch):
    compiled = []

    def counting(fn, inputs, **kwargs):
        compiled.append(inputs)
        return compile_function(fn, inputs, **kwargs)

    monkeypatch.setattr("ppl_dgm.compile.jit.compile_function", counting)
    x = torch.cat([X, X + 0.1, X - 0.2, 2 * X])
    method = {"num_temperatures": 5, "num_chains": 4, "num_pilots": 8}
    in_parts = evidence.AIS(**method, memory=60_000, compile=True)(Program(local), x, seed=1)
    written = evidence.AIS(**method, memory=60_000, compile=False)(Program(local), x, seed=1)
    torch.testing.assert_close(in_parts.log_z, written.log_z, rtol=1e-9, atol=1e-9)
    shapes = {tuple(leaf.shape for leaf in tensor_leaves(inputs)) for inputs in compiled}
    assert (
        len(compiled) == len(shapes) <= 4
    )  # moves of the pilot and temperatures, for parts of two sizes
    assert (
        max(
            leaf.shape[1]
            for inputs in compiled
            for leaf in tensor_leaves(inputs)
            if leaf.dim() == 3
        )
        < len(x) / 2
    )


def test_a_loop_that_writes_in_place_is_refused():
    total = torch.zeros(())

    def count(start: torch.Tensor) -> torch.Tensor:
        return repeat(torch.tensor(2), lambda carry, _: carry + total.add_(1.0), start)

    with pytest.raises(CaptureError, match="in place"):
        Switch(True, backend="eager")(count, torch.zeros(()))


def test_true_raises_and_auto_stays_eager_where_a_program_cannot_be_captured(monkeypatch, caplog):
    program = Program(stubborn)
    with pytest.raises(CaptureError, match="float"):
        evidence.AIS(num_temperatures=3, num_chains=2, num_pilots=8, compile=True)(program, X)
    monkeypatch.setattr("ppl_dgm.compile.inductor.cost.saving", lambda seconds: math.inf)
    with caplog.at_level(logging.WARNING, "ppl_dgm.compile"):
        found = evidence.AIS(num_temperatures=3, num_chains=2, num_pilots=8)(program, X)
    written = evidence.AIS(num_temperatures=3, num_chains=2, num_pilots=8, compile=False)(
        program, X
    )
    assert torch.equal(found.log_z, written.log_z)
    assert "not compiled" in caplog.text


def test_auto_compiles_what_has_taken_long_enough(monkeypatch):
    monkeypatch.setattr("ppl_dgm.compile.inductor.cost._LEAST_SECONDS", 12.0)
    switch = Switch("auto", backend="eager")
    clock = iter(range(100))
    monkeypatch.setattr(
        "ppl_dgm.compile.jit.time.perf_counter", lambda: float(next(clock))
    )  # a second for each call
    for calls in range(1, 40):
        switch(torch.neg, torch.ones(2))
        assert bool(switch._compiled) == (
            calls > 25
        )  # a gain of 12.5 s on as much as has been done


def test_auto_does_not_compile_for_the_little_that_is_left(monkeypatch):
    monkeypatch.setattr("ppl_dgm.compile.inductor.cost._LEAST_SECONDS", 12.0)
    clock = iter(range(100))
    monkeypatch.setattr("ppl_dgm.compile.jit.time.perf_counter", lambda: float(next(clock)))
    few, many = Switch("auto", backend="eager"), Switch("auto", backend="eager")
    for step in range(25):
        few(
            torch.neg, torch.ones(2), left=25 - step
        )  # of 22 s that are left when three calls are timed, 11 s to gain
    for step in range(4):
        many(torch.neg, torch.ones(2), left=60 - step)
    assert many._compiled
    assert not few._compiled


@pytest.mark.parametrize("name", ESTIMATORS)
def test_other_modes_are_refused(name):
    with pytest.raises(ValueError, match="expected 'auto', True or False"):
        ESTIMATORS[name](compile="always")
