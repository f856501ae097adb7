"""Energy-based families against sums over all states and quadrature."""

import math
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from energies import make_rbm, states
from scipy import stats
from torch import Tensor
from torch.distributions import Normal

from ppl_dgm import Program, fit
from ppl_dgm.evidence import Exact
from ppl_dgm.families import RBM, Energy
from ppl_dgm.families.energy.units import toss
from ppl_dgm.objectives import PersistentContrastiveDivergence, PseudoLikelihood

BETAS = (0.0, 0.4, 1.0)


def joint(rbm: RBM, v: Tensor, h: Tensor) -> Tensor:
    """-E(v, h) as the docstring has it, pair by pair: `[visible states, hidden states]`."""
    parts = rbm.parts
    units, weight = parts.units, parts.weight
    pairs = torch.empty(len(v), len(h), dtype=v.dtype)
    for i, j in product(range(len(v)), range(len(h))):
        if hasattr(units, "log_scale"):
            scale = units.log_scale.exp()
            own = -(((v[i] - units.bias) / scale) ** 2).sum() / 2
            pairs[i, j] = own + (v[i] / scale) @ weight @ h[j] + parts.hidden_bias @ h[j]
        else:
            pairs[i, j] = units.bias @ v[i] + v[i] @ weight @ h[j] + parts.hidden_bias @ h[j]
    return pairs.detach()


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
def test_the_free_energy_sums_over_hidden_units(visible: str) -> None:
    rbm = make_rbm(visible=visible)
    v = states(4) if visible == "binary" else torch.randn(6, 4, dtype=torch.float64)
    expected = joint(rbm, v, states(3)).logsumexp(1)
    torch.testing.assert_close(-rbm.free_energy(v).detach(), expected)
    bound = rbm.bind(v)
    torch.testing.assert_close(bound.log_joint({}).total[0].detach(), expected)


@pytest.mark.parametrize("sizes", [(4, 3), (3, 22)])
def test_the_partition_function_sums_over_the_smaller_layer(sizes: tuple[int, int]) -> None:
    rbm = make_rbm(*sizes)
    by_visible = (-rbm.free_energy(states(sizes[0]))).logsumexp(0)
    torch.testing.assert_close(rbm.parts.log_partition(), by_visible)


def test_the_partition_function_of_real_units_is_an_integral() -> None:
    rbm = make_rbm(2, 3, "gaussian")
    axis = torch.linspace(-25, 25, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    cell = 2 * math.log(float(axis[1] - axis[0]))
    expected = (-rbm.free_energy(grid)).logsumexp(0) + cell
    torch.testing.assert_close(rbm.parts.log_partition(), expected)


def test_large_layers_have_no_exact_partition_function() -> None:
    assert RBM(30, 21).parts.log_partition() is None
    assert RBM(5, 21, "gaussian").parts.log_partition() is None


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
def test_the_ladder_begins_at_its_base_and_ends_at_the_model(visible: str) -> None:
    rbm = make_rbm(visible=visible)
    v = rbm.parts.draw(7)
    base = rbm.parts.units.base().log_prob(v)
    torch.testing.assert_close(rbm.parts.log_density(v, 0.0), base)
    torch.testing.assert_close(rbm.parts.log_density(v, 1.0), -rbm.free_energy(v))


@pytest.mark.parametrize("beta", BETAS)
def test_moves_leave_the_ladder_invariant(beta: float) -> None:
    rbm, every, count = make_rbm(), states(4), 20_000
    target = rbm.parts.log_density(every, beta).softmax(0).detach()
    torch.manual_seed(1)
    start = every[torch.multinomial(target, count, True)]
    moved = rbm.parts.move(start, beta).detach()
    index = (moved @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long()
    observed = torch.bincount(index, minlength=16)
    assert not torch.equal(start, moved)
    assert stats.chisquare(observed.numpy(), (target * count).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("beta", BETAS)
def test_moves_of_real_units_leave_the_ladder_invariant(beta: float) -> None:
    rbm = make_rbm(1, 2, "gaussian")
    axis = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    density = rbm.parts.log_density(axis.unsqueeze(1), beta).softmax(0).detach()
    torch.manual_seed(2)
    start = axis[torch.multinomial(density, 4000, True)].unsqueeze(1)
    moved = rbm.parts.move(rbm.parts.move(start, beta), beta).detach().squeeze(1)
    cdf = density.cumsum(0)
    uniform = cdf[torch.searchsorted(axis, moved).clamp_max(len(axis) - 1)]
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3


def test_gibbs_samples_follow_the_model() -> None:
    rbm, every = make_rbm(), states(4)
    expected = (-rbm.free_energy(every)).softmax(0).detach()
    torch.manual_seed(3)
    drawn = rbm.sample(8000, num_steps=60)
    index = (drawn @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long()
    observed = torch.bincount(index, minlength=16)
    assert stats.chisquare(observed.numpy(), (expected * 8000).numpy()).pvalue > 1e-3
    assert drawn.dtype == torch.float64


PROBABILITIES = (0.0, 2.0**-18, 1e-3, 0.25, 0.5, 0.7123, 1 - 2.0**-18, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tosses_have_their_probabilities(dtype: torch.dtype) -> None:
    """Alone and in pairs, of a row and of two rows, also where 16 bits do not decide."""
    torch.manual_seed(4)
    p = torch.tensor(PROBABILITIES, dtype=dtype)
    x = toss(p.expand(2**20, -1)).double()
    assert x.unique().tolist() == [0.0, 1.0]
    assert (x[:, 0] == 0).all()
    assert (x[:, -1] == 1).all()
    p, x = p[1:-1].double(), x[:, 1:-1]
    sd = (p * (1 - p)).sqrt()
    assert float(((x.mean(0) - p) / sd).abs().max()) * 2**10 < 4.5
    z = (x - p) / sd
    for other in (z, z.roll(1, 0)):  # the same row, the next one
        correlations = (z.T @ other / 2**20).fill_diagonal_(0)
        assert float(correlations[1:-1, 1:-1].abs().max()) * 2**10 < 4.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tosses_keep_shape_and_dtype(dtype: torch.dtype) -> None:
    p = torch.rand(2, 3, 5, dtype=dtype)
    with torch.device("meta"):  # a default of the user's, of no matter here
        drawn = toss(p)
    assert (drawn.shape, drawn.dtype, drawn.device) == (p.shape, dtype, p.device)


def test_diverged_parameters_give_no_samples() -> None:
    """Odds that are NaN are tossed to zeros, which look like draws."""
    rbm = RBM(4, 2)
    with torch.no_grad():
        rbm.parts.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="expected finite ones: where they have diverged"):
        rbm.sample(3, num_steps=2)


def test_starting_from_data_makes_units_independent() -> None:
    x = states(4)[torch.multinomial(torch.rand(16, dtype=torch.float64), 3000, True)]
    rbm = RBM(4, 2).double().start_from(x)
    torch.testing.assert_close(rbm.parts.draw(20_000).mean(0), x.mean(0), atol=0.02, rtol=0)
    real = RBM(2, 2, "gaussian").double().start_from(3 * torch.randn(4000, 2).double() + 1)
    torch.testing.assert_close(real.parts.units.bias, torch.ones(2).double(), atol=0.2, rtol=0)
    torch.testing.assert_close(
        real.parts.units.scale, torch.full((2,), 3.0).double(), atol=0.15, rtol=0
    )


def test_an_energy_tilts_its_base() -> None:
    images = torch.rand(5, 1, 2, 2)
    model = Energy(lambda x: x.square().sum((1, 2, 3)), (1, 2, 2))
    expected = Normal(0.0, 1.0).log_prob(images).sum((1, 2, 3)) - images.square().sum((1, 2, 3))
    torch.testing.assert_close(model.bind(images).log_joint({}).total[0], expected)
    other = torch.rand(5, 1, 2, 2)
    total = model.bind(other).log_joint({}).total[0]
    torch.testing.assert_close(model.log_ratio(images, other), expected - total)
    assert model.density == "unnormalised"
    assert model.structure.energies == ("energy",)


def test_energies_are_factors_of_the_data() -> None:
    assert RBM(3, 2).initialise(torch.zeros(4, 3)).structure.energies == ("energy",)

    def beside(x: Tensor) -> None:  # the factor is of the parameter alone
        scale = pyro.param("scale", torch.tensor(1.0))
        pyro.factor("penalty", -scale)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    assert Program(beside).initialise(torch.zeros(3)).structure.energies == ()


KINDS = (torch.bool, torch.uint8, torch.long, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shape", [(9,), (1, 3, 3)])
def test_binary_data_of_any_kind_are_taken(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = (torch.rand(6, 9) < 0.5).reshape(6, *shape)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 1), torch.nn.Flatten(0))
    for model in (RBM(9, 2), Energy(net, shape, base="bernoulli")):
        expected = Exact()(model, x.float())
        torch.testing.assert_close(Exact()(model, x.to(dtype)).log_z, expected.log_z)
        settings = {"steps": 1, "progress": False, "compile": False}
        for objective in (PersistentContrastiveDivergence(1), PseudoLikelihood()):
            assert fit(model, x.to(dtype), objective, **settings).stopped == "finished"


def test_the_base_measure_follows_the_dtype_of_the_model() -> None:
    base = dist.Normal(torch.zeros(2), 2.0).to_event(1)
    net = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    model = Energy(net, 2, base).double()
    assert model.model().dtype == torch.float64
    x = torch.randn(4, 2)
    assert model.energy(x).dtype == torch.float64
    with torch.no_grad():  # exp(-w x) tilts a normal of variance 4 to one of mean -4 w
        tilted = Normal(-4 * net[0].weight[0], 2.0).log_prob(x).sum(-1)
    torch.testing.assert_close(Exact()(model, x).log_z, tilted)


def test_classes_stay_whole_numbers() -> None:
    """An embedding's energies, summed over the 3^2 states by hand."""
    table = torch.randn(2, 3)
    base = dist.Categorical(torch.ones(2, 3)).to_event(1)
    model = Energy(lambda x: table[torch.arange(2), x].sum(-1), 2, base)
    x = torch.tensor([[0, 2], [1, 1]])
    log_p = model.log_ratio(x[:1], x[1:])
    assert log_p.item() == pytest.approx(
        float(table[0, 1] + table[1, 1] - table[0, 0] - table[1, 2])
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RBM(0, 3), ValueError, "num_visible is 0"),
        (lambda: RBM(3, 0), ValueError, "num_hidden is 0"),
        (
            lambda: RBM(3, 2, "ternary"),  # type: ignore[arg-type]
            ValueError,
            "visible is 'ternary'; expected one of",
        ),
        (lambda: RBM(3, 2).start_from(torch.zeros(5, 4)), ValueError, r"data \[N, 3\]"),
        (lambda: RBM(3, 2).sample(0), ValueError, "num_samples is 0"),
        (
            lambda: RBM(3, 2).sample(2, start=torch.zeros(2, 4)),
            ValueError,
            r"\[2, 4\]; expected \[2, 3\]",
        ),
        (lambda: Energy(3, 2), TypeError, "net is a int"),
        (lambda: Energy(torch.nn.Linear(2, 1), 0), ValueError, "num_dims is 0"),
        (lambda: Energy(torch.nn.Linear(2, 1), 2, base="cauchy"), ValueError, "base is 'cauchy'"),
        (
            lambda: Energy(torch.nn.Linear(2, 1), 2, base=Normal(0.0, 1.0)),
            ValueError,
            "event shape",
        ),
        (
            lambda: Energy(torch.nn.Linear(2, 1), 2).initialise(torch.zeros(5, 2)),
            ValueError,
            r"returned shape \[5, 1\] for 5 data.*squeeze",
        ),
    ],
)
def test_bad_input(make, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        make()
