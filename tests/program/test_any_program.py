"""Programs as their authors write them.

Assertions, sizeless plates, host reads, modules of one name, shared arguments.
"""

import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from ppl_dgm import Program, evidence, fit, objectives

X = torch.linspace(-1.0, 1.0, 6)


def normal_evidence(x: Tensor, variance: float) -> Tensor:
    """log p(x) of x_i = m + noise with m ~ N(0, variance) shared, noise N(0, 1)."""
    covariance = torch.eye(len(x)) + variance * torch.ones(len(x), len(x))
    return dist.MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(x)


# ---- programs that look at their data ------------------------------------------------------------


def asserting(x: Tensor) -> None:
    assert x.shape == (6,)
    with pyro.plate("data", 6):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def looking_up(x: Tensor) -> None:
    scale = {6: 1.0}[len(x)]
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, scale), obs=x)


def raising(x: Tensor) -> None:
    if len(x) != 6:
        raise NotImplementedError
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


@pytest.mark.parametrize("model", [asserting, looking_up, raising])
def test_programs_for_one_size_of_data_are_run_on_it_alone(model) -> None:
    bound = Program(model).bind(X)
    assert not bound.structure.divisible
    torch.testing.assert_close(
        evidence.Exact()(Program(model), X).log_z.float(), dist.Normal(0.0, 1.0).log_prob(X)
    )


class Odd(BaseException):
    """An exception of a kind that nobody expects."""


@pytest.mark.parametrize("error", [AssertionError(), KeyError(3), OSError("disk"), Warning("w")])
def test_any_exception_of_the_program_is_a_finding(error) -> None:
    def model(x: Tensor) -> None:
        raise error

    with pytest.raises(ValueError, match=f"model failed on its first run.*{type(error).__name__}"):
        Program(model).initialise(X)


def test_the_program_sees_all_data_first_and_parts_only_when_asked() -> None:
    sizes = []

    def model(x: Tensor) -> None:
        sizes.append(len(x))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    bound = Program(model).bind(X)
    assert set(sizes) == {6}
    assert bound.structure.divisible
    assert min(sizes) < 6


@pytest.mark.parametrize("fails", [False, True])
def test_the_trial_leaves_nothing_behind(fails: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.kept: list[int] = []

        def forward(self, x: Tensor) -> None:
            self.calls += 1
            torch.rand(3), np.random.mtrand._rand.rand(), random.random()
            if len(x) < 6:
                self.kept.append(len(x))
            if fails:
                raise RuntimeError("halfway")
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    model = Model()
    program = Program(model)
    before = torch.get_rng_state(), np.random.mtrand._rand.get_state()[1].copy(), random.getstate()
    if fails:
        with pytest.raises(ValueError, match="halfway"):
            program.bind(X)
    else:
        assert program.bind(X).structure.divisible
    assert model.calls == 0
    assert model.kept == []
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.mtrand._rand.get_state()[1]).all()
    assert before[2] == random.getstate()
    assert program.training


def test_plates_of_an_easy_guide_are_not_left_stale() -> None:
    def model(x: Tensor) -> None:
        assert len(x) == 6
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    class Guide(EasyGuide):
        def guide(self, x: Tensor) -> None:
            with self.plate("data", len(x)):
                assert len(x) == 6
                pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    guide = Guide(model)
    program = Program(model, guide)
    assert not program.bind(X).structure.divisible
    assert dict(guide.plates) == {}
    total = evidence.ImportanceSampling(10)(program, X).total
    assert total.item() == pytest.approx(dist.Normal(0.0, 2**0.5).log_prob(X).sum().item(), 1e-5)


# ---- plates without a size -----------------------------------------------------------------------


def test_a_sizeless_plate_has_the_size_of_the_data() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    bound = Program(model, guide).bind(X)
    assert bound.num_data == 6
    assert bound.structure.per_datum
    assert bound.structure.divisible
    log_z = evidence.ImportanceSampling(7)(Program(model, guide), X).log_z
    torch.testing.assert_close(log_z.float(), dist.Normal(0.0, 2**0.5).log_prob(X))
    result = fit(
        Program(model, Learned()), X, epochs=2, batch_size=2, progress=False, compile=False
    )
    assert result.steps == 6


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(self.weight * x, 1.0))


@pytest.mark.parametrize("plate", ["data", "obs"])
def test_data_in_a_sizeless_plate_share_what_is_drawn_once(plate: str) -> None:
    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 2.0))
        with pyro.plate(plate):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    truth = normal_evidence(X, 4.0).item()
    for inside in (False, True):

        def drawn_inside(x: Tensor) -> None:
            with pyro.plate(plate):
                m = pyro.sample("m", dist.Normal(0.0, 2.0))
                pyro.sample("x", dist.Normal(m, 1.0), obs=x)

        program = Program(drawn_inside if inside else model)
        assert program.bind(X).structure.target == "dataset"
        assert evidence.auto(program, X, seed=0).total.item() == pytest.approx(truth, abs=1e-3)


# ---- shapes that only the density knows, programs that run only under enumeration
# ------------------------------------


def test_a_shape_is_refused_only_where_the_density_refuses_it() -> None:
    """A homogeneous hidden Markov model says one step; its density takes any number."""
    one = torch.eye(1)
    noise = dist.MultivariateNormal(torch.zeros(1), one)
    chain = dist.GaussianHMM(noise, 0.9 * one, noise, one, noise)
    y = torch.randn(30, 1)

    def model(y: Tensor) -> None:
        pyro.sample("y", chain, obs=y)

    result = evidence.auto(Program(model, site="y"), y)
    assert result.total.item() == pytest.approx(chain.log_prob(y).item(), rel=1e-5)


def test_data_that_would_be_repeated_are_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="observes data of shape"):
        Program(model).initialise(torch.zeros(5, 1))


def assigning(x: Tensor) -> None:
    """Indexes the dimension that enumeration makes.

    It runs under enumeration alone, as `tracking_1d` does.
    """
    with pyro.plate("data", len(x)):
        k = pyro.sample(
            "k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"}
        )
        assert k.shape[0] == 2
        assert k.dim() > 1
        loc = torch.tensor([-1.0, 2.0])[k]
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_programs_that_run_only_under_enumeration_are_tried_under_it() -> None:
    truth = -TraceEnum_ELBO(max_plate_nesting=1).loss(assigning, lambda x: None, X)
    assert evidence.Exact()(Program(assigning), X).total.item() == pytest.approx(truth, rel=1e-6)


# ---- modules of one name -------------------------------------------------------------------------


def test_model_and_guide_may_have_modules_of_one_name() -> None:
    ours, theirs = nn.Linear(1, 1), nn.Linear(1, 2)

    def model(x: Tensor) -> None:
        pyro.module("net", ours)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(ours(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", theirs)
        loc, log_scale = theirs(x.unsqueeze(-1)).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    program = Program(model, guide)
    before = [p.detach().clone() for net in (ours, theirs) for p in net.parameters()]
    fit(program, X, steps=2, progress=False, compile=False)
    after = [p for net in (ours, theirs) for p in net.parameters()]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert len(list(program.parameters())) == 4
    assert len(program.state_dict()) == 4


# ---- which arguments are data --------------------------------------------------------------------


def quadratic(x: Tensor, locs: Tensor) -> None:
    """Every datum looks at the whole grid, which may have as many rows as there are data."""
    w = pyro.param("w", torch.zeros(1))
    with pyro.plate("data", len(x)):
        distance = (x.detach().unsqueeze(-1) - locs).square().mean(-1)
        pyro.sample("x", dist.Normal(w + distance, 1.0), obs=x)


@pytest.mark.parametrize("order", ["data first", "grid first"])
def test_an_argument_that_all_data_share_is_not_cut(order: str) -> None:
    locs, x = torch.linspace(-3, 3, 8), torch.randn(8)
    if order == "data first":
        program, data = Program(quadratic), (x, locs)
    else:
        program, data = Program(lambda locs, x: quadratic(x, locs)), (locs, x)
    bound = program.bind(*data)
    assert bound.structure.held == {1 if order == "data first" else 0}
    whole = evidence.Exact()(program, *data).log_z
    part, _ = bound.select(slice(2, 5))
    torch.testing.assert_close(evidence.Exact()(program, *part).log_z, whole[2:5])
    result = fit(
        program, data, epochs=1, batch_size=2, progress=False, compile=False, optimizer=still
    )
    assert result.history["objective"].mean() == pytest.approx(whole.mean().item(), rel=1e-5)


def still(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def test_shared_arguments_can_be_named() -> None:
    x, locs = torch.randn(8), torch.zeros(8)  # of zeros a part is as good as the whole
    program = Program(quadratic)
    settings = {"steps": 1, "batch_size": 2, "progress": False, "compile": False}
    fit(program, (x, locs), shared=["locs"], **settings)
    assert Program(quadratic, shared=["locs"]).bind(x, locs).structure.held == {1}
    assert Program(quadratic).bind(x, locs=locs).structure.held == set()
    with pytest.raises(ValueError, match=r"shared names \['means'\].*\['x', 'locs'\]"):
        fit(program, (x, locs), shared=["means"], **settings)


def test_ambiguous_arguments_are_refused() -> None:
    def model(x: Tensor, a: Tensor, b: Tensor) -> None:
        w = pyro.param("w", torch.zeros(()))
        other = a if len(a) == 8 else b
        assert len(other) == 8
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w + other.mean(), 1.0), obs=x)

    x, same = torch.randn(8), torch.randn(8)
    with pytest.raises(ValueError, match=r"\['a'\], \['b'\].*shared="):
        fit(Program(model), (x, same, same), steps=1, batch_size=2, progress=False, compile=False)
    for name in ("a", "b"):
        program, data = Program(model), (x, same, same)
        fit(program, data, shared=[name], steps=1, batch_size=2, progress=False, compile=False)


def test_coupled_data_are_not_divided() -> None:
    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w + x.detach().mean(), 1.0), obs=x)

    assert not Program(model).bind(torch.randn(8)).structure.divisible
    with pytest.raises(ValueError, match="does not take a part"):
        fit(Program(model), torch.randn(8), steps=1, batch_size=2, progress=False, compile=False)


# ---- one particle at a time ----------------------------------------------------------------------


# Drawn once: in float64, in which evidence is computed, a seed gives other numbers.
WEIGHTS = torch.randn(64, generator=torch.Generator().manual_seed(0))


def recurrent(x: Tensor) -> None:
    cell = nn.LSTMCell(1, 2)
    with torch.no_grad():
        for parameter, row in zip(cell.parameters(), WEIGHTS.split(16), strict=True):
            parameter.copy_(row[: parameter.numel()].reshape(parameter.shape))
    state = torch.zeros(1, 2), torch.zeros(1, 2)
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    state = cell(z.reshape(1, 1), state)
    pyro.sample("x", dist.Normal(state[0].sum(), 0.5), obs=x)


def counting(docs: Tensor) -> None:
    with pyro.plate("data", len(docs)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        assert z.dim() == 2
        total = int(docs.sum(-1).max())
        pyro.sample("x", dist.Multinomial(total, z.softmax(-1)), obs=docs)


def quadrature(model, x: Tensor) -> float:
    """log p(x) by a sum over a fine grid of the one latent."""
    grid = torch.linspace(-8, 8, 801)
    scored = []
    for value in grid:
        trace = poutine.trace(poutine.condition(model, {"z": value})).get_trace(x)
        scored.append(trace.log_prob_sum())
    return torch.logsumexp(torch.stack(scored), 0).item() + math.log(16 / 800)


def test_recurrent_cells_are_run_one_by_one(caplog) -> None:
    x = torch.tensor(0.3)
    result = evidence.PriorSampling(300)(Program(recurrent), x, seed=0)
    error = 4 * result.std_error.item() + 1e-3
    assert result.total.item() == pytest.approx(quadrature(recurrent, x), abs=error)


def test_multinomial_counts_are_run_one_by_one(caplog) -> None:
    docs = torch.tensor([[1.0, 2, 0], [0.0, 1, 2]])
    bound = Program(counting).bind(docs)
    values = bound.draw(4).values
    for i in range(4):
        held = poutine.condition(counting, {"z": values["z"][i]})
        alone = poutine.trace(held).get_trace(docs)
        alone.compute_log_prob()
        expected = alone.nodes["x"]["log_prob"]
        torch.testing.assert_close(bound.log_joint(values).likelihood[i], expected)


def test_one_particle_needs_no_vectorising() -> None:
    """A fit with one particle makes single runs only, of a program that cannot make others."""
    runs = []

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        runs.append(z.dim())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    fit(Program(model, guide), X, steps=3, progress=False, compile=False)
    assert set(runs) == {0}
    program = Program(model, guide)
    fit(program, X, objectives.ELBO(2), steps=1, progress=False, compile=False)
    assert program.structure.model_runs == "plate"


# ---- programs undefined at some draws of their latents -------------------------------------------


def undefined_factor(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("x", z.sqrt() * x.sum())


def undefined_scale(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z.log(), 1.0).expand(x.shape).to_event(1), obs=x)


@pytest.mark.parametrize("model", [undefined_factor, undefined_scale])
def test_the_generator_does_not_decide_whether_a_program_is_taken(model) -> None:
    for seed in range(12):  # half of all first draws are undefined
        torch.manual_seed(seed)
        found = evidence.ImportanceSampling(100)(Program(model), X)
        assert any("NaN" in alarm and "['x']" in alarm for alarm in found.warnings)


def test_a_program_that_no_draw_defines_is_refused() -> None:
    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(x, -1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="Expected parameter scale"):
        Program(model).bind(X)
