"""Programs in float64: what is raised, what stays, and what rounding does."""

import math
from collections.abc import Callable
from threading import Thread

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch import Tensor, nn

from ppl_dgm import Program
from ppl_dgm.evidence import SMC, Exact, ImportanceSampling
from ppl_dgm.program.precision import Shaking, in_float64
from ppl_dgm.sampling.memory import allocated_bytes

WEIGHT = torch.tensor([0.1, 1e-3, 16777216.0])
LAYER, NET = nn.Linear(3, 1), nn.Linear(1, 1)
TENTH = torch.tensor(0.1, dtype=torch.float64)

# Ways in which programs come by float32: each must end as the double that Python has, or that the
# tensor stands for.
MAKERS: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
    "literal": (lambda: torch.tensor(0.1), TENTH),
    "list": (lambda: torch.tensor([0.1, 0.2])[0], TENTH),
    "named": (lambda: torch.tensor(0.1, dtype=torch.float32), TENTH),
    "half": (lambda: torch.tensor(0.1, dtype=torch.float16), TENTH),
    "zeros": (lambda: torch.zeros(()) + 0.1, TENTH),
    "full": (lambda: torch.full((), 0.1), TENTH),
    "full of float32": (lambda: torch.full((), 0.1, dtype=torch.float32), TENTH),
    "cast": (TENTH.float, TENTH),
    "to": (lambda: TENTH.to(torch.float32), TENTH),
    "to half": (TENTH.half, TENTH),
    "as": (lambda: TENTH.to(WEIGHT), TENTH),
    "type_as": (lambda: TENTH.type_as(WEIGHT), TENTH),
    "linspace": (lambda: torch.linspace(0.0, 0.2, 3)[1], TENTH),
    "arange": (lambda: torch.arange(0.0, 0.2, 0.1)[1], TENTH),
    "new": (lambda: WEIGHT.new_tensor(0.1), TENTH),
    "new full": (lambda: WEIGHT.new_full((), 0.1), TENTH),
    "closure": (lambda: WEIGHT[0], torch.tensor(0.1).double()),
    "large": (lambda: WEIGHT[2] + 1, torch.tensor(16777217).double()),
    "its dtype": (lambda: torch.tensor(0.1, dtype=WEIGHT.dtype), TENTH),
    "default": (lambda: torch.tensor(0.1, dtype=torch.get_default_dtype()), TENTH),
    "written": (lambda: torch.zeros(1).index_fill_(0, torch.tensor([0]), 0.1)[0], TENTH),
    "set": (lambda: _set(torch.zeros(2), TENTH), TENTH),
    "stack": (lambda: torch.stack([WEIGHT[1], TENTH])[1], TENTH),
    "numpy": (lambda: torch.as_tensor(np.float64(0.1)), TENTH),
    "layer": (lambda: LAYER(WEIGHT.new_zeros(3))[0], LAYER.bias[0].detach().double()),
}


def _set(target: Tensor, value: Tensor) -> Tensor:
    target[torch.tensor([1])] = value
    return target[1]


@pytest.mark.parametrize("name", MAKERS)
def test_all_ways_to_float32_end_in_double(name: str) -> None:
    make, expected = MAKERS[name]
    with in_float64(), torch.no_grad():
        found = make() * 1
    assert found.dtype == torch.float64
    assert found.item() == expected.item()


def test_what_is_outside_stays_as_it_is() -> None:
    buffer = torch.zeros(2)
    with in_float64():
        buffer[0] = torch.tensor(0.1)
        assert LAYER.weight.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    assert buffer.dtype == LAYER.weight.dtype == torch.tensor(0.1).dtype == torch.float32
    assert buffer[0] == torch.tensor(0.1)


def test_a_row_of_a_table_does_not_raise_the_table() -> None:
    table = torch.full((1000, 10), 0.1)
    with in_float64():
        bytes_of = [
            allocated_bytes(lambda: table[7] * 3),
            allocated_bytes(lambda: table.index_select(0, torch.tensor([7])) * 3),
        ]
        assert table[7].dtype == torch.float64
    assert max(bytes_of) < 1000


def test_other_threads_do_not_notice() -> None:
    found = []

    def look() -> None:
        found.append((torch.zeros(1).dtype, torch.get_default_dtype()))

    with in_float64():
        thread = Thread(target=look)
        thread.start()
        thread.join()
    assert found == [(torch.float32, torch.float32)]


def poisson(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(torch.tensor(3e7)), obs=x)


def test_large_counts_to_the_last_digit() -> None:
    x = torch.tensor([3e7, 3.0001e7])
    truth = [k * math.log(3e7) - 3e7 - math.lgamma(k + 1) for k in x.tolist()]
    assert Exact()(Program(poisson), x).log_z.tolist() == pytest.approx(truth, abs=1e-5)


def test_a_bayes_factor_of_wide_data() -> None:
    """Sums of half a million squares of sd 2000.

    In float32 the two models differ by tens of nats.
    """
    x = 2000 * torch.randn(3000, generator=torch.Generator().manual_seed(0))

    def normal(scale: float) -> Program:
        def model(x: Tensor) -> None:
            with pyro.plate("n", len(x)):
                pyro.sample("x", dist.Normal(0.0, scale), obs=x)

        return Program(model)

    one, other = (Exact()(normal(scale), x).total.item() for scale in (2000.0, 2010.0))
    square = x.double().square().sum().item()
    truth = 3000 * math.log(2010 / 2000) - square / 2 * (2000**-2 - 2010**-2)
    assert one - other == pytest.approx(truth, abs=1e-6)


def regression(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 10_000.0))
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, 0.1), obs=y)


def polynomial(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(6), 10.0).to_event(1))
    with pyro.plate("n", len(y)):
        design = torch.stack([x**k for k in range(6)], -1)
        pyro.sample("y", dist.Normal((design @ w.unsqueeze(-1)).squeeze(-1), 0.1), obs=y)


def marginal(columns: Tensor, scales: Tensor, y: Tensor) -> float:
    """log N(y; 0, X diag(s^2) X' + 0.01 I), by the determinant lemma.

    The lemma is used on a factor of the posterior's precision.
    """
    columns, y = columns.double() * scales.double(), y.double()
    root = torch.linalg.qr(torch.cat([columns / 0.1, torch.eye(len(scales)).double()])).R
    known = torch.cat([y / 0.1, torch.zeros(len(scales)).double()])
    left = torch.linalg.lstsq(torch.cat([columns / 0.1, torch.eye(len(scales)).double()]), known)
    rest = known - torch.cat([columns / 0.1, torch.eye(len(scales)).double()]) @ left.solution
    log_det = root.diagonal().abs().log().sum() + len(y) * math.log(0.1)
    return (-0.5 * rest @ rest - log_det - len(y) / 2 * math.log(2 * math.pi)).item()


def test_regressions_on_powers_and_on_years() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 10, 40)
    y = torch.sin(x) + 0.1 * torch.randn(40, generator=generator)
    powers = torch.stack([x.double() ** k for k in range(6)], -1)
    truth = marginal(powers, torch.full((6,), 10.0), y)
    assert truth == pytest.approx(-89.826, abs=1e-3)
    assert Exact()(Program(polynomial), x, y).total.item() == pytest.approx(truth, abs=1e-4)
    years = torch.arange(1960.0, 2020.0)
    y = 3 + 0.02 * (years - 1990) + 0.1 * torch.randn(60, generator=generator)
    truth = marginal(torch.stack([torch.ones(60), years], -1), torch.tensor([1e4, 10.0]), y)
    found = Exact()(Program(regression), years, y)
    assert found.total.item() == pytest.approx(truth, abs=1e-4)
    assert found.reliable
    assert found.diagnostics["rounding"] < 1e-4


@pytest.mark.parametrize("estimator", [ImportanceSampling(4000), SMC()], ids=lambda e: e.name)
def test_sampled_evidence_of_many_trials(estimator: object) -> None:
    """Beta-Binomial with five million trials: float32 is off by whole nats."""

    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        pyro.sample("x", dist.Binomial(5_000_000, p), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("p", dist.Beta(2.5e6, 2.5e6))

    n, k = 5_000_000, 2_500_000
    log_beta = lambda a, b: math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)  # noqa: E731
    truth = log_beta(k + 2, n - k + 2) - log_beta(2, 2) - log_beta(k + 1, n - k + 1)
    truth -= math.log(n + 1)
    program = Program(model, guide if isinstance(estimator, ImportanceSampling) else None)
    found = estimator(program, torch.tensor(2.5e6))  # type: ignore[operator]
    assert abs(found.total.item() - truth) < max(4 * found.std_error.item(), 0.01)
    assert found.std_error < 0.2


def test_numbers_that_doubles_cannot_hold_raise_the_alarm() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(1e15), obs=x)

    found = Exact()(Program(model), torch.tensor([1e15]).double())
    assert found.std_error > 0.1
    assert "rounding moves the log density" in found.warnings[0]


def test_whole_numbers_and_literals_make_numbers_of_full_precision() -> None:
    """Results of both alone have torch's default precision, as a mean of enumerated values."""
    k = torch.arange(1, 300)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            scale = torch.where(k > 100, 0.001, 0.003)
            pyro.sample("x", dist.Normal(1.7 * k + k / 7 + k.log() + (k > 9) / 3, scale), obs=x)

    scale = torch.tensor([0.003, 0.001], dtype=torch.float64)[(k > 100).long()]
    mean = 1.7 * k.double() + k.double() / 7 + k.double().log() + (k > 9).double() / 3
    found = Exact()(Program(model), mean + 0.001)
    truth = torch.distributions.Normal(mean, scale).log_prob(mean + 0.001).sum()
    assert found.reliable
    assert found.total.item() == pytest.approx(truth.item(), abs=1e-6)


def coarse(x: Tensor) -> Tensor:
    """A square of float32 behind torch's back, as compiled code is."""
    with torch._C.DisableTorchFunction():
        return (x.float() ** 2).double()


@pytest.mark.parametrize("far", [0.0, 1e6])
def test_a_program_that_insists_on_float32_is_told_where_it_matters(far: float) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(coarse(z + far) / (1 + far), 1.0), obs=x)

    found = ImportanceSampling(1000)(Program(model), torch.tensor([far]))
    assert any("rounding" in warning for warning in found.warnings) == (far > 0)


def test_shaking_moves_what_is_rounded_and_leaves_whole_numbers() -> None:
    x = torch.tensor([1.0, 2.0, 0.1], dtype=torch.float64)
    with Shaking():
        sums = x + x
        seen = x[2:] * 1.0
    assert sums[:2].tolist() == [2.0, 4.0]
    assert 0 < abs(sums[2].item() - 0.2) < 1e-16
    assert seen.item() == pytest.approx(0.1, abs=1e-16)
    with Shaking():  # the largest number does not become infinite
        assert (torch.full((9,), torch.finfo().min) * 1.0).isfinite().all()
    shifts = []
    for seed in range(20):
        with Shaking(seed):
            shifts.append(((x[2] + 1e8) - 1e8).item() - 0.1)
    spread = torch.tensor(shifts).std().item()
    assert 5e-9 < spread < 5e-8  # a unit in the last place of 1e8 is 1.5e-8


# ---- programs moved before their first run -------------------------------------------------------


def lazy(x: Tensor) -> None:
    """A program whose tensors all come by at its first run."""
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    shift = pyro.param("shift", lambda: torch.zeros(()))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        mean = pyro.module("net", NET)(z).squeeze(-1) + shift
        pyro.sample("x", dist.Normal(mean, scale), obs=x)


@pytest.mark.parametrize(
    "make", [None, autoguide.AutoNormal, autoguide.AutoMultivariateNormal, autoguide.AutoDelta]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_a_first_run_makes_has_the_precision_of_the_program(
    make: Callable | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "NET", nn.Linear(1, 1))
    program = Program(lazy, make(lazy) if make else None).to(dtype)
    if dtype == torch.bfloat16 and make is autoguide.AutoMultivariateNormal:
        return  # Pyro's own has no triangular products in it
    program.initialise(torch.randn(5, dtype=dtype))
    names = {name for name, _ in program.named_parameters()}
    assert {"scale", "shift", "net.weight", "net.bias"} <= names
    assert {parameter.dtype for parameter in program.parameters()} == {dtype}


def test_the_last_move_counts() -> None:
    program = Program(poisson_rate).double().float()
    program.initialise(torch.ones(3))
    assert program.get_parameter("rate").dtype == torch.float32


def poisson_rate(x: Tensor) -> None:
    rate = pyro.param("rate", torch.tensor(2.0).double(), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)
