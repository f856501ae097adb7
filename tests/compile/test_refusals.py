"""What cannot be captured is refused, with the line, the site where known, and the cure."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ReweightedWakeSleep, Trace_ELBO, TraceGraph_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn

from ppl_dgm.compile import CaptureError, TrainStep, capture, differentiable_loss

X = torch.tensor([1.0, -2.0, 3.0])


def branches() -> Any:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    return z if z > 0 else -z


def reads_item() -> Any:
    return torch.zeros(()) + X.std().item()


def reads_numpy() -> Any:
    return torch.zeros(()) + float(X.numpy().std())


def reads_list() -> Any:
    return torch.tensor(X.tolist())


def counts() -> Any:
    return torch.zeros(int(X.sum()))


def formats_a_float() -> Any:
    return torch.tensor(float(X.sum()) + 1.0)


def selects() -> Any:
    return X[X > 0].sum()


def selects_and_computes() -> Any:
    return (X[X > 0] * 2.0).sum()


def finds_nonzero() -> Any:
    return X.nonzero()


def compares() -> Any:
    return X if torch.equal(X, -X) else -X


def validates() -> Any:
    return dist.Normal(X, X.abs(), validate_args=True).log_prob(X)


def replaces_storage() -> Any:
    X.data = X + 1.0
    return X


def subsamples_in_sequence() -> Any:
    return sum(X[i] for i in pyro.plate("data", 3, subsample_size=2))


READS = [
    branches,
    reads_item,
    reads_numpy,
    reads_list,
    counts,
    formats_a_float,
    compares,
    validates,
]
SHAPES = [selects, selects_and_computes, finds_nonzero]


def message(fn: Callable[..., Any]) -> str:
    with pytest.raises(CaptureError) as caught:
        capture(fn, ())
    return str(caught.value)


@pytest.mark.parametrize(
    "fn", [*READS, *SHAPES, replaces_storage, subsamples_in_sequence], ids=lambda fn: fn.__name__
)
def test_the_message_names_the_line(fn: Callable[..., Any]) -> None:
    lines, first = inspect.getsourcelines(fn)
    named = [f"{Path(__file__).name}:{first + i} `{line.strip()}`" for i, line in enumerate(lines)]
    assert any(line in message(fn) for line in named)


@pytest.mark.parametrize("fn", READS, ids=lambda fn: fn.__name__)
def test_host_reads(fn: Callable[..., Any]) -> None:
    assert "reads a tensor's value on the host" in message(fn)
    assert "torch.where" in message(fn)


@pytest.mark.parametrize("fn", SHAPES, ids=lambda fn: fn.__name__)
def test_dynamic_shapes(fn: Callable[..., Any]) -> None:
    assert "depends on values" in message(fn)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dist.VonMises(torch.tensor(0.0), 1.0),
        lambda: dist.Stable(torch.tensor(1.5), 0.0),
    ],
)
def test_samplers_that_loop_until_values_allow_name_their_site(make: Callable[[], Any]) -> None:
    said = message(lambda: pyro.sample("angle", make()))
    assert "'angle'" in said
    assert type(make()).__name__ in said


def test_parameters_born_at_capture() -> None:
    assert "'late' does not exist yet" in message(lambda: pyro.param("late", torch.tensor(1.0)))
    assert not list(pyro.get_param_store())


def test_parameters_of_a_module_that_never_ran() -> None:
    class Scale(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale = PyroParam(torch.tensor(1.0), dist.constraints.positive)

        def forward(self) -> torch.Tensor:
            return self.scale * X

    with pyro.get_param_store().scope():
        scale = Scale()
        assert "'scale' does not exist yet" in message(scale)
        scale()
        torch.testing.assert_close(capture(scale, ())(), X)


def test_lines_of_an_interactive_session_are_named() -> None:
    names: dict[str, Any] = {}
    exec(compile("def typed(x):\n    return x.item()", "<ipython-input-7-c0ffee>", "exec"), names)
    with pytest.raises(CaptureError, match="<ipython-input-7-c0ffee>:2"):
        capture(names["typed"], (torch.tensor(1.0),))


def test_writes_to_the_parameter_store() -> None:
    with pyro.get_param_store().scope():
        store = pyro.get_param_store()
        pyro.param("mean", torch.tensor(1.0))
        kept = store._params["mean"]

        def write() -> Any:
            store["mean"] = 0.9 * pyro.param("mean")
            return torch.zeros(())

        assert "writes to the parameter store during a step ('mean')" in message(write)
        assert store._params["mean"] is kept
        assert store["mean"] == 1.0


def test_decaying_baselines_live_in_the_store() -> None:
    def model() -> None:
        pyro.sample("z", dist.Bernoulli(0.5))

    def guide() -> None:
        baseline = {"use_decaying_avg_baseline": True}
        pyro.sample(
            "z",
            dist.Bernoulli(pyro.param("p", lambda: torch.tensor(0.5))),
            infer={"baseline": baseline},
        )

    with pyro.get_param_store().scope():
        differentiable_loss(TraceGraph_ELBO(), model, guide)
        assert "parameter store" in message(
            lambda: differentiable_loss(TraceGraph_ELBO(), model, guide)
        )


def test_buffers_replaced_instead_of_written() -> None:
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

        def forward(self) -> torch.Tensor:
            self.mean = 0.9 * self.mean + 0.1 * X
            return self.mean

    average = Average()
    kept = average.mean
    assert "assigns to its buffer (Average.mean)" in message(average)
    assert average.mean is kept


def test_results_that_are_not_tensors() -> None:
    assert "returned float" in message(lambda: 1.0)


def test_failures_of_the_program_itself() -> None:
    said = message(lambda: torch.ones(2) @ torch.ones(3))
    assert "cannot be traced: RuntimeError" in said


def test_other_optimisers() -> None:
    weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(
        CaptureError,
        match="NAdam cannot be part of a compiled step. Use one of torch.optim's Adam",
    ):
        TrainStep(weight.sum, torch.optim.NAdam([weight]))


def test_optimisers_without_anything_to_train() -> None:
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        TrainStep(X.sum, torch.optim.SGD([torch.zeros(1)], lr=0.1))


def test_losses_without_a_differentiable_form() -> None:
    with pytest.raises(CaptureError, match="ReweightedWakeSleep has no differentiable loss"):
        differentiable_loss(ReweightedWakeSleep(), lambda: None, lambda: None)
    assert (
        differentiable_loss(
            Trace_ELBO(), lambda: pyro.sample("x", dist.Normal(0.0, 1.0), obs=X[0]), lambda: None
        )
        > 0
    )


def test_losses_that_are_not_scalar() -> None:
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(CaptureError, match="must be a scalar"):
        TrainStep(lambda: weight * 2, torch.optim.SGD([weight], lr=0.1), backend="eager")()
