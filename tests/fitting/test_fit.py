"""fit: reaches known optima, unbiased on minibatches, repeatable, in nats per datum."""

import copy
import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm import Dataset, Fit, NonFiniteError, Program, fit
from ppl_dgm.fitting.batches import Batches
from ppl_dgm.fitting.loss import BatchLoss
from ppl_dgm.objectives import ELBO, IWELBO, linear_warmup

X = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 1.5 + 2
quietly = partial(fit, progress=False, compile=False)


def adam(lr: float = 0.05) -> Callable:
    return partial(torch.optim.Adam, lr=lr)


def normal(x: Tensor | None = None) -> None:
    """Mean and scale of a normal: the optimum is the sample's."""
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def shared(x: Tensor | None = None) -> None:
    """A mean shared by all data."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def shared_guide(x: Tensor | None = None) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


def local(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def parameters(program: Program) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in program.named_parameters()}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- optima --------------------------------------------------------------------------------------


def test_maximum_likelihood() -> None:
    program = Program(normal)
    result = quietly(program, X, steps=400, optimizer=adam())
    assert program.get_parameter("loc").item() == pytest.approx(X.mean().item(), abs=1e-3)
    assert program.get_parameter("scale").exp().item() == pytest.approx(
        X.std(correction=0).item(), abs=1e-3
    )
    entropy = 0.5 + 0.5 * math.log(2 * math.pi) + X.std(correction=0).log().item()
    assert result.history["objective"][-1].item() == pytest.approx(-entropy, abs=1e-4)
    assert result.steps == 400
    assert result.stopped == "finished"
    assert result.program is program


def test_posterior_of_a_shared_latent() -> None:
    program = Program(shared, shared_guide)
    quietly(program, X, ELBO(8, gradient="stl"), steps=150, optimizer=adam(0.1))
    precision = 1 + len(X)
    assert program.get_parameter("loc").item() == pytest.approx(
        X.sum().item() / precision, abs=0.01
    )
    assert program.get_parameter("scale").exp().item() == pytest.approx(precision**-0.5, rel=0.02)


def test_posterior_from_minibatches_of_a_shared_latent() -> None:
    """The minibatch counts for all data: the scale is that of twelve data, not of three."""
    program = Program(shared, shared_guide)
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.98)
    quietly(program, X, ELBO(8), steps=300, batch_size=3, optimizer=adam(0.1), schedule=schedule)
    precision = 1 + len(X)
    assert program.get_parameter("loc").item() == pytest.approx(
        X.sum().item() / precision, abs=0.06
    )
    assert program.get_parameter("scale").exp().item() == pytest.approx(precision**-0.5, rel=0.1)


def test_posterior_of_local_latents() -> None:
    program = Program(local, local_guide)
    result = quietly(
        program, X, ELBO(4, gradient="stl"), epochs=50, batch_size=4, optimizer=adam(0.1)
    )
    assert program.get_parameter("slope").item() == pytest.approx(0.5, abs=0.02)
    assert program.get_parameter("scale").exp().item() == pytest.approx(0.5**0.5, rel=0.02)
    assert result.steps == 150
    evidence = torch.distributions.Normal(0.0, math.sqrt(2)).log_prob(X).mean().item()
    assert result.history["objective"][-30:].mean().item() == pytest.approx(evidence, abs=0.1)


PYRO = {
    "Trace_ELBO": pyro.infer.Trace_ELBO(
        num_particles=4, vectorize_particles=True, max_plate_nesting=1
    ),
    "TraceMeanField_ELBO": pyro.infer.TraceMeanField_ELBO(),
    "TraceGraph_ELBO": pyro.infer.TraceGraph_ELBO(),
    "ReweightedWakeSleep": pyro.infer.ReweightedWakeSleep(
        num_particles=5, vectorize_particles=True, max_plate_nesting=1
    ),
    "RenyiELBO": pyro.infer.RenyiELBO(
        num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
}


@pytest.mark.parametrize("name", PYRO)
def test_pyros_objectives(name: str) -> None:
    program = Program(local, local_guide)
    result = quietly(program, X, copy.deepcopy(PYRO[name]), steps=150, optimizer=adam(0.03))
    assert program.get_parameter("slope").item() == pytest.approx(0.5, abs=0.15)
    evidence = torch.distributions.Normal(0.0, math.sqrt(2)).log_prob(X).mean().item()
    assert result.history["objective"][-50:].mean().item() == pytest.approx(evidence, abs=0.35)


def test_pyros_enumerating_elbo() -> None:
    def mixture(x: Tensor | None = None) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            k = pyro.sample(
                "k", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"}
            )
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x: Tensor | None = None) -> None:
        pass

    data = torch.tensor([-3.1, -2.9, 3.0, 3.2])
    ours, theirs = Program(mixture), Program(mixture, guide)
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    histories = [
        quietly(program, data, objective, steps=100, optimizer=adam(0.1)).history["objective"]
        for program, objective in ((ours, None), (theirs, elbo))
    ]
    assert torch.allclose(histories[0], histories[1], atol=1e-5)
    assert torch.allclose(ours.get_parameter("locs"), theirs.get_parameter("locs"), atol=1e-4)


def test_the_importance_weighted_bound_is_closer() -> None:
    finals = [
        quietly(Program(local, local_guide), X, objective, steps=60, optimizer=adam(1e-6))
        .history["objective"]
        .mean()
        for objective in (ELBO(), IWELBO(20))
    ]
    assert finals[1] > finals[0] + 0.05


# ---- minibatches ---------------------------------------------------------------------------------


class ClosedForm(pyro.infer.ELBO):
    """Minus the ELBO of `shared` in closed form, with the minibatch scale of its traces."""

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Tensor) -> Tensor:
        guide_trace = pyro.poutine.trace(guide).get_trace(*args)
        replayed = pyro.poutine.replay(model, trace=guide_trace)
        factor = pyro.poutine.trace(replayed).get_trace(*args).nodes["x"]["scale"]
        loc, scale = (guide_trace.nodes[name]["value"] for name in ("loc", "scale"))
        expected = torch.distributions.Normal(loc, 1.0).log_prob(args[0]) - scale**2 / 2
        posterior, prior = (
            torch.distributions.Normal(loc, scale),
            torch.distributions.Normal(0.0, 1.0),
        )
        return torch.distributions.kl_divergence(posterior, prior) - factor * expected.sum()

    def _get_trace(self, *args: object) -> None:
        """Not used."""


@pytest.mark.parametrize("batch_size", [1, 3, 4, 12])
def test_minibatches_are_unbiased_for_shared_latents(batch_size: int) -> None:
    """The mean over all minibatches of an epoch is the full objective, in closed form."""
    program = Program(shared, shared_guide).initialise(X)
    loss = BatchLoss(program, ClosedForm(), len(X))
    batches = Batches((X,), {}, len(X), batch_size, seed=0)
    whole = loss(12, ((X,), {})).item()
    parts = [loss(size, batch).item() for size, batch in batches.in_order()]
    assert len(parts) == 12 // batch_size
    assert sum(parts) / len(parts) == pytest.approx(whole, rel=1e-5)


def test_gradients_of_minibatches_are_unbiased() -> None:
    program = Program(shared, shared_guide).initialise(X)
    loss, own = BatchLoss(program, ClosedForm(), len(X)), list(program.parameters())
    whole = torch.autograd.grad(loss(12, ((X,), {})), own)
    parts = [torch.autograd.grad(loss(4, ((X[i : i + 4],), {})), own) for i in range(0, 12, 4)]
    for index in range(2):
        assert torch.allclose(sum(part[index] for part in parts) / 3, whole[index], atol=1e-5)


def test_our_objective_scales_minibatches_likewise() -> None:
    """With the same draw of the shared latent, ELBO on minibatches averages to ELBO on all data."""
    program = Program(shared, shared_guide).initialise(X)
    loss = BatchLoss(program, ELBO(), len(X))

    def value(rows: Tensor) -> float:
        torch.manual_seed(0)
        return loss(len(rows), ((rows,), {})).tolist()[0]

    assert sum(value(X[i : i + 3]) for i in range(0, 12, 3)) / 4 == pytest.approx(
        value(X), rel=1e-5
    )


def test_each_epoch_deals_every_datum_once_in_a_new_order() -> None:
    batches = Batches((torch.arange(10.0),), {"y": torch.arange(10)}, 10, 3, seed=1)
    assert batches.per_epoch == 4
    dealt = batches.from_step(0)
    epochs = []
    for _ in range(2):
        sizes, rows = zip(*(next(dealt) for _ in range(4)), strict=True)
        parts = [batches.select(part) for part in rows]
        assert sizes == (3, 3, 3, 1)
        assert all(torch.equal(args[0].long(), kwargs["y"]) for args, kwargs in parts)
        epochs.append(torch.cat([args[0] for args, _ in parts]))
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("step", [0, 2, 4, 7])
def test_minibatches_can_be_dealt_from_any_step(step: int) -> None:
    batches = Batches((torch.arange(10.0),), {}, 10, 3, seed=1)
    dealt = batches.from_step(0)
    for _ in range(step):
        next(dealt)
    resumed = batches.from_step(step)
    for _ in range(6):
        assert torch.equal(next(dealt)[1], next(resumed)[1])


DATA = {"tensor": X, "tuple": (X,), "list": [X], "dict": {"x": X}, "Dataset": Dataset(X)}


@pytest.mark.parametrize("kind", DATA)
def test_forms_of_data(kind: str) -> None:
    program, reference = Program(normal), Program(normal)
    quietly(program, DATA[kind], epochs=3, batch_size=4)
    quietly(reference, X, epochs=3, batch_size=4)
    assert_equal(parameters(program), parameters(reference))


def test_several_tensors_are_divided_together() -> None:
    def regression(x: Tensor | None, c: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("data", len(c)):
            pyro.sample("x", dist.Normal(slope * c, 1.0), obs=x)

    c = torch.linspace(-1, 1, 12)
    program = Program(regression)
    quietly(program, {"x": 3 * c, "c": c}, epochs=100, batch_size=5, optimizer=adam(0.1))
    assert program.get_parameter("slope").item() == pytest.approx(3.0, abs=0.01)


def test_a_program_that_holds_its_data() -> None:
    program = Program(lambda: normal(X))
    quietly(program, steps=300, optimizer=adam(0.1))
    assert program.get_parameter("loc").item() == pytest.approx(X.mean().item(), abs=1e-3)


# ---- history -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "sizes"), [(None, [12]), (4, [4, 4, 4]), (5, [5, 5, 2])])
def test_history_is_in_nats_per_datum(batch_size: int | None, sizes: list[int]) -> None:
    program = Program(normal)
    result = quietly(
        program, X, epochs=1, batch_size=batch_size, optimizer=partial(torch.optim.SGD, lr=0.0)
    )
    history = result.history["objective"]
    mean = sum(size * value.item() for size, value in zip(sizes, history, strict=True)) / 12
    assert mean == pytest.approx(
        torch.distributions.Normal(0.0, 1.0).log_prob(X).mean().item(), rel=1e-5
    )
    assert history.dtype == torch.float64
    assert result.history["step"].tolist() == list(range(1, len(sizes) + 1))


def test_the_fit_says_how_it_went() -> None:
    result = quietly(Program(normal), X, steps=20)
    assert isinstance(result, Fit)
    assert "20 steps, finished" in repr(result)
    assert "nats per datum" in repr(result)
    assert result.seconds > 0
    assert len(result.plot().lines) >= 1
    with pytest.raises(AttributeError):
        result.steps = 3


def test_progress_is_shown_in_nats_per_datum(capsys: pytest.CaptureFixture) -> None:
    fit(Program(normal), X, steps=20, valid=X)
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "nats/datum" in shown
    assert "valid" in shown


# ---- repeatability -------------------------------------------------------------------------------


def test_a_seed_repeats_a_fit_and_leaves_the_generator_alone() -> None:
    runs = [Program(local, local_guide) for _ in range(3)]
    before = torch.get_rng_state()
    results = [
        quietly(p, X, steps=10, batch_size=4, seed=s) for p, s in zip(runs, (1, 1, 2), strict=True)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(parameters(runs[0]), parameters(runs[1]))
    assert torch.equal(results[0].history["objective"], results[1].history["objective"])
    assert not torch.equal(results[0].history["objective"], results[2].history["objective"])


def test_without_a_seed_torchs_generator_decides() -> None:
    histories = []
    for _ in range(2):
        torch.manual_seed(8)
        histories.append(
            quietly(Program(local, local_guide), X, steps=5, batch_size=4, seed=None).history[
                "objective"
            ]
        )
    assert torch.equal(*histories)


# ---- optimiser settings --------------------------------------------------------------------------


def test_schedules_are_stepped() -> None:
    """SGD with a rate of zero after two steps stands still."""
    program, other = Program(normal), Program(normal)
    schedule = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: float(step < 2))
    sgd = partial(torch.optim.SGD, lr=0.1)
    quietly(program, X, steps=2, optimizer=sgd, schedule=schedule)
    quietly(other, X, steps=9, optimizer=sgd, schedule=schedule)
    assert_equal(parameters(program), parameters(other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 2.5}, "steps is 2.5; expected a whole number"),
        ({"steps": 2, "batch_size": 12 / 4}, "batch_size is 3.0; expected a whole number"),
        (
            {"steps": 2, "optimizer": torch.optim.SGD([torch.zeros(1)])},
            "optimizer is a SGD; expected a function",
        ),
        (
            {"steps": 2, "optimizer": pyro.optim.Adam({"lr": 0.1})},
            "optimizer made a NoneType; expected a torch.optim",
        ),
        (
            {"steps": 2, "optimizer": torch.optim.LBFGS},
            "optimizer is LBFGS, .* expected one that steps once",
        ),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict, message: str) -> None:
    program = Program(normal).initialise(X)
    before = parameters(program)
    with pytest.raises((ValueError, TypeError), match=message):
        quietly(program, X, **settings)
    assert_equal(parameters(program), before)


def test_gradients_are_clipped_by_their_joint_norm() -> None:
    program = Program(normal).initialise(X)
    before = parameters(program)
    quietly(program, 100 * X, steps=1, optimizer=partial(torch.optim.SGD, lr=1.0), clip_norm=0.25)
    moved = torch.stack([parameters(program)[name] - value for name, value in before.items()])
    assert moved.norm().item() == pytest.approx(0.25, rel=1e-4)


def test_small_gradients_are_not_clipped() -> None:
    program, other = Program(normal), Program(normal)
    quietly(program, X, steps=3, clip_norm=1e6)
    quietly(other, X, steps=3)
    assert_equal(parameters(program), parameters(other))


def test_frozen_parameters_stay() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = (
                nn.Parameter(torch.ones(())),
                nn.Parameter(torch.ones(()), requires_grad=False),
            )

        def forward(self, x: Tensor | None = None) -> None:
            with pyro.plate("data", 1 if x is None else len(x)):
                pyro.sample("x", dist.Normal(self.weight + self.bias, 1.0), obs=x)

    model = Model()
    quietly(Program(model), X + 9, steps=3)
    assert model.bias.item() == 1.0
    assert model.weight.item() != 1.0


def test_annealed_weights_follow_the_steps() -> None:
    seen = []

    def weight(step: int) -> float:
        seen.append(step)
        return linear_warmup(5)(step)

    quietly(Program(local, local_guide), X, ELBO(kl_weight=weight), steps=4)
    assert list(dict.fromkeys(seen)) == [0, 1, 2, 3]


# ---- NaN -----------------------------------------------------------------------------------------


def test_nan_names_site_step_and_norm_and_keeps_the_parameters() -> None:
    """SGD takes `level` down by 0.1 a step, below zero at the third, where its root is NaN."""

    def falling(x: Tensor | None = None) -> None:
        level = pyro.param("level", torch.tensor(0.25))
        pyro.factor("penalty", -len(x) * level)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            pyro.factor("root", 0.0 * level.sqrt())

    program = Program(falling)
    with pytest.raises(
        NonFiniteError, match="step 3 .*site 'root'.*norm of the parameters is 0.05.*clip_norm"
    ) as caught:
        quietly(program, torch.zeros(4), steps=20, optimizer=partial(torch.optim.SGD, lr=0.1))
    kept = caught.value.fit
    assert kept is not None
    assert kept.stopped == "nonfinite"
    assert kept.steps == 3
    assert len(kept.history["objective"]) == 3
    assert program.get_parameter("level").item() == pytest.approx(-0.05, abs=1e-6)


def test_infinite_gradients_do_not_reach_the_parameters() -> None:
    """The root of zero: a finite loss with an infinite gradient."""

    def model(x: Tensor | None = None) -> None:
        level = pyro.param("level", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(level.sqrt(), 1.0), obs=x)

    program = Program(model)
    with pytest.raises(NonFiniteError, match="step 0 .*gradients of \\['level'\\]"):
        quietly(program, torch.ones(4), steps=5)
    assert program.get_parameter("level").item() == 0.0


def test_nan_of_a_shared_latents_guide_is_blamed_on_it() -> None:
    def guide(x: Tensor | None = None) -> None:
        loc = pyro.param("loc", torch.tensor(0.5))
        pyro.sample("mean", dist.Normal(loc.log(), 1.0))

    program = Program(shared, guide)
    with pytest.raises(NonFiniteError, match="site 'mean' of the guide"):
        quietly(program, -100 * X, steps=50, optimizer=partial(torch.optim.SGD, lr=0.5))
