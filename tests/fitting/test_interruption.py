"""Fits that stop: early, by Ctrl-C, by a crash; checkpoints that continue them bit by bit."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, ReweightedWakeSleep, TraceGraph_ELBO
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm import Program, fit
from ppl_dgm.fitting import CheckpointFile, EarlyStopping
from ppl_dgm.fitting.state import since_best
from ppl_dgm.objectives import ELBO, linear_warmup
from ppl_dgm.program import Bound

X = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 1.5 + 2
quietly = partial(fit, progress=False, compile=False)
sgd = partial(torch.optim.SGD, lr=0.02)


def local(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def located(x: Tensor | None = None) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def amortised() -> Program:
    return Program(local, local_guide)


def parameters(program: Program) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in program.named_parameters()}


def equal_states(first: object, second: object) -> bool:
    """Whether nested states are equal, tensors bit for bit."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            equal_states(first[k], second[k]) for k in first
        )
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal_states, first, second))
    return first == second


# ---- validation ----------------------------------------------------------------------------------


def test_early_stopping_restores_the_best() -> None:
    """Training goes through the validation data's mean and on: loc = 5 (1 - 0.98^step)."""
    train, valid = torch.full((8,), 5.0), torch.full((4,), 0.5)
    program = Program(located)
    result = quietly(
        program,
        train,
        steps=500,
        optimizer=sgd,
        valid=valid,
        valid_every=1,
        callbacks=[EarlyStopping(7)],
    )
    loc = [5 * (1 - 0.98**step) for step in range(1, 30)]
    best = min(range(len(loc)), key=lambda i: abs(loc[i] - 0.5))
    assert result.stopped == "early"
    assert program.get_parameter("loc").item() == pytest.approx(loc[best], rel=1e-4)
    assert result.steps == best + 1 + 7
    truth = torch.distributions.Normal(torch.tensor(loc[: result.steps]), 1.0).log_prob(
        torch.tensor(0.5)
    )
    assert torch.allclose(result.history["valid"].float(), truth, atol=1e-5)
    assert result.history["valid_step"].tolist() == list(range(1, result.steps + 1))


def test_a_schedule_on_plateaus_follows_validations() -> None:
    """Training leads away from the validation data.

    From the third validation, two worse in a row, it stands still.
    """
    train, valid = torch.full((8,), 5.0), torch.zeros(4)
    stop = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, factor=0.0, patience=1, eps=0.0)
    result = quietly(
        Program(located), train, steps=20, optimizer=sgd, schedule=stop, valid=valid, valid_every=2
    )
    loc = torch.tensor([5 * (1 - 0.98 ** min(step, 6)) for step in range(2, 21, 2)])
    truth = torch.distributions.Normal(loc, 1.0).log_prob(torch.tensor(0.0))
    assert torch.allclose(result.history["valid"].float(), truth, atol=1e-5)
    with pytest.raises(ValueError, match="valid is None"):
        quietly(Program(located), train, steps=20, optimizer=sgd, schedule=stop)


def test_the_best_is_restored_without_patience_too() -> None:
    program = Program(located)
    result = quietly(
        program,
        torch.full((8,), 5.0),
        steps=60,
        optimizer=sgd,
        valid=torch.full((4,), 0.5),
        valid_every=1,
    )
    assert result.stopped == "finished"
    assert result.steps == 60
    assert program.get_parameter("loc").item() == pytest.approx(0.5, abs=0.06)


def test_validation_once_an_epoch_and_at_the_end() -> None:
    result = quietly(Program(located), X, steps=7, batch_size=4, valid=X[:5])
    assert result.history["valid_step"].tolist() == [3, 6, 7]


def test_validations_share_the_last_step_s_weight() -> None:
    """While the weight of the KL grows its own value falls.

    The same program would look best at the first validation.
    """
    settings = {
        "steps": 4,
        "optimizer": partial(torch.optim.SGD, lr=0.0),
        "valid": X,
        "valid_every": 1,
    }
    program = amortised().initialise(X)
    program.get_parameter("slope").data.fill_(1.0)
    annealed = quietly(program, X, ELBO(kl_weight=linear_warmup(4)), **settings).history
    plain = quietly(program, X, ELBO(), **settings).history
    assert torch.allclose(annealed["valid"], plain["valid"])
    assert (annealed["objective"] > plain["objective"]).all()


@pytest.mark.parametrize(
    "objective", [RenyiELBO(num_particles=2), ReweightedWakeSleep(), TraceGraph_ELBO()]
)
def test_validation_by_objectives_of_pyro_without_a_differentiable_loss(objective: ELBO) -> None:
    """At the posterior, N(x / 2, 1/2), every weight is the evidence, N(x; 0, 2)."""
    program = amortised().initialise(X)
    program.get_parameter("slope").data.fill_(0.5)
    program.get_parameter("scale").data.fill_(-0.5 * math.log(2.0))
    settings = {"steps": 1, "optimizer": partial(torch.optim.SGD, lr=0.0), "valid": X}
    found = quietly(program, X, objective, **settings).history["valid"].item()
    assert found == pytest.approx(dist.Normal(0.0, 2**0.5).log_prob(X).mean().item(), rel=1e-4)


def test_validations_that_are_not_finite_are_never_the_best() -> None:
    program, other = Program(located), Program(located)
    quietly(other, X, steps=5, optimizer=sgd)
    result = quietly(
        program, X, steps=5, optimizer=sgd, valid=torch.full((2,), 1e30), valid_every=1
    )
    assert result.history["valid"].isinf().all()
    assert torch.equal(program.get_parameter("loc"), other.get_parameter("loc"))
    assert since_best([math.nan, -1.0]) == 0


def test_validation_changes_no_draw() -> None:
    first = quietly(amortised(), X, steps=8, batch_size=4).history["objective"]
    second = quietly(amortised(), X, steps=8, batch_size=4, valid=X, valid_every=2).history[
        "objective"
    ]
    assert torch.equal(first, second)


class Normalised(nn.Module):
    """A model with batch norm, that notes the mode in which it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> None:
        self.modes.append(self.training)
        mean = self.norm(torch.randn(len(x), 1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_validation_is_in_evaluation_mode() -> None:
    model = Normalised()
    program = Program(model).initialise(X)
    assert set(model.modes) == {False}
    quietly(program, X, steps=2, valid=X, valid_every=1)
    assert sum(model.modes) == 2  # the two steps, nothing else
    assert model.norm.num_batches_tracked <= 2  # those of the best step
    assert program.training


def test_validation_data_of_another_size_beside_a_shared_latent() -> None:
    """Nats per validation datum.

    The shared latent's KL is divided by the number of validation data.
    """

    def model(x: Tensor | None = None) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor | None = None) -> None:
        loc = pyro.param("loc", torch.tensor(1.0))
        pyro.sample("mean", dist.Delta(loc))

    valid = torch.tensor([0.0, 2.0, 1.0])
    frozen = partial(torch.optim.SGD, lr=0.0)
    result = quietly(Program(model, guide), X, steps=1, batch_size=4, optimizer=frozen, valid=valid)
    normal = torch.distributions.Normal(0.0, 1.0)
    truth = (normal.log_prob(torch.tensor(1.0)) + normal.log_prob(valid - 1.0).sum()) / 3
    assert result.history["valid"].item() == pytest.approx(truth.item(), rel=1e-5)


# ---- interruption --------------------------------------------------------------------------------


class Interrupted(ELBO):
    """An objective that is interrupted in one of its steps."""

    def __init__(self, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self._after, self._calls, self._error = after, 0, error

    def as_elbo(self) -> ELBO:
        """Under the name by which a checkpoint knows its objective."""
        self.__class__ = type("ELBO", (Interrupted,), {})
        return self

    def value(self, bound: Bound) -> Tensor:
        self._calls += 1
        if self._calls > self._after:
            raise self._error
        return super().value(bound)


def test_ctrl_c_returns_what_was_learned() -> None:
    program, reference = amortised(), amortised()
    result = quietly(program, X, Interrupted(6), steps=100)
    expected = quietly(reference, X, steps=6)
    assert result.stopped == "interrupted"
    assert result.steps == 6
    assert torch.equal(result.history["objective"], expected.history["objective"])
    assert equal_states(parameters(program), parameters(reference))


def test_ctrl_c_is_announced(capsys: pytest.CaptureFixture) -> None:
    fit(amortised(), X, Interrupted(3), steps=10, compile=False)
    assert "interrupted at step 3" in "".join(capsys.readouterr())


def test_ctrl_c_restores_the_best() -> None:
    program = Program(located)
    far = torch.full((8,), 5.0)
    result = quietly(
        program, far, Interrupted(60), steps=100, optimizer=sgd, valid=torch.zeros(3), valid_every=1
    )
    assert result.stopped == "interrupted"
    assert program.get_parameter("loc").item() == pytest.approx(
        0.1, rel=1e-4
    )  # after the first step


def test_ctrl_c_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    quietly(amortised(), X, Interrupted(2), steps=10)
    assert torch.equal(torch.get_rng_state(), before)


# ---- checkpoints ---------------------------------------------------------------------------------


def halving(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)


def momentum(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adam(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05)


@pytest.mark.parametrize("optimizer", [adam, momentum])
@pytest.mark.parametrize("interrupted_at", [1, 4, 7])
def test_resuming_is_bit_exact(tmp_path: Path, interrupted_at: int, optimizer: Callable) -> None:
    """Stopped after k steps and resumed, a fit ends with the numbers of one that ran through."""
    settings = {
        "batch_size": 5,
        "optimizer": optimizer,
        "schedule": halving,
        "clip_norm": 10.0,
        "seed": 3,
    }
    settings |= {"valid": X[:6], "valid_every": 2}
    go = lambda path, steps: quietly(  # noqa: E731
        amortised(), X, ELBO(), steps=steps, callbacks=[CheckpointFile(path, every=1)], **settings
    )
    expected = go(tmp_path / "whole.pt", 10)
    go(tmp_path / "half.pt", interrupted_at)
    torch.manual_seed(99)
    result = go(tmp_path / "half.pt", 10)
    assert result.steps == 10
    assert torch.equal(result.history["objective"], expected.history["objective"])
    first, second = (
        torch.load(tmp_path / f"{run}.pt", weights_only=True) for run in ("whole", "half")
    )
    for kind in ("program", "optimizer", "scheduler", "generators"):
        assert equal_states(first[kind], second[kind]), kind


def test_resuming_an_interrupted_fit_is_bit_exact(tmp_path: Path) -> None:
    """After Ctrl-C the fit goes on from its last checkpoint, as if it had run through."""
    settings: dict = {"batch_size": 5}
    kept = settings | {"callbacks": [CheckpointFile(tmp_path / "c.pt", every=4)]}
    reference, program = amortised(), amortised()
    expected = quietly(reference, X, ELBO(), steps=10, **settings)
    quietly(amortised(), X, Interrupted(7).as_elbo(), steps=10, **kept)
    result = quietly(program, X, ELBO(), steps=10, **kept)
    assert torch.equal(result.history["objective"], expected.history["objective"])
    assert equal_states(parameters(program), parameters(reference))


def test_resuming_after_a_crash(tmp_path: Path) -> None:
    settings: dict = {"batch_size": 5}
    kept = settings | {"callbacks": [CheckpointFile(tmp_path / "c.pt", every=4)]}
    reference, program = amortised(), amortised()
    expected = quietly(reference, X, ELBO(), steps=10, **settings)
    objective = Interrupted(7, MemoryError).as_elbo()
    with pytest.raises(MemoryError):
        quietly(amortised(), X, objective, steps=10, **kept)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["state"]["step"] == 4
    result = quietly(program, X, ELBO(), steps=10, **kept)
    assert torch.equal(result.history["objective"], expected.history["objective"])
    assert equal_states(parameters(program), parameters(reference))


def test_the_best_survives_a_restart(tmp_path: Path) -> None:
    """The best parameters before the interruption are restored after it."""
    far, near = torch.full((8,), 5.0), torch.zeros(3)
    settings = {
        "optimizer": sgd,
        "valid": near,
        "valid_every": 1,
        "callbacks": [CheckpointFile(tmp_path / "c.pt", every=1)],
    }
    quietly(Program(located), far, steps=5, **settings)
    program = Program(located)
    result = quietly(program, far, steps=9, **settings)
    assert result.steps == 9
    assert len(result.history["valid"]) == 9
    assert program.get_parameter("loc").item() == pytest.approx(0.1, rel=1e-4)


def test_a_fit_that_stopped_early_is_not_continued(tmp_path: Path) -> None:
    settings = {
        "steps": 500,
        "optimizer": sgd,
        "valid": torch.full((4,), 0.5),
        "valid_every": 1,
        "callbacks": [EarlyStopping(7), CheckpointFile(tmp_path / "c.pt", every=1)],
    }
    first = quietly(Program(located), torch.full((8,), 5.0), **settings)
    again = quietly(Program(located), torch.full((8,), 5.0), **settings)
    assert first.stopped == again.stopped == "early"
    assert first.steps == again.steps


def test_a_checkpoint_is_of_one_schedule(tmp_path: Path) -> None:
    quietly(amortised(), X, steps=2, checkpoint=tmp_path / "c.pt")
    with pytest.raises(ValueError, match="of another fit: .*schedule is 'StepLR', not None"):
        quietly(amortised(), X, steps=4, checkpoint=tmp_path / "c.pt", schedule=halving)


def test_a_finished_fit_is_not_repeated(tmp_path: Path) -> None:
    first = quietly(amortised(), X, steps=6, checkpoint=tmp_path / "c.pt")
    program = amortised()
    again = quietly(
        program,
        X,
        Interrupted(0).as_elbo(),
        steps=6,
        checkpoint=tmp_path / "c.pt",
    )
    assert again.stopped == "finished"
    assert again.steps == 6
    assert torch.equal(first.history["objective"], again.history["objective"])
    assert equal_states(parameters(program), parameters(first.program))


def test_checkpoints_hold_no_pickled_code(tmp_path: Path) -> None:
    quietly(amortised(), X, steps=2, checkpoint=tmp_path / "c.pt")
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    assert {"program", "optimizer", "state", "generators"} <= content.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
