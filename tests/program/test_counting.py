"""What counts in a density.

Guide terms, masks, scales, point masses, zero probabilities, counts.
"""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal

from ppl_dgm import Program, evidence, fit, posterior


def gaussian(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


TWO = torch.tensor([1.0, 0.0])
TRUTH_OF_TWO = dist.Normal(0.0, 2.0**0.5).log_prob(TWO).sum().item()


def exact_guide_with(extra):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            extra(x)

    return guide


@pytest.mark.parametrize(
    "extra",
    [
        lambda x: pyro.factor("aux", -0.7 * torch.ones_like(x), has_rsample=False),
        lambda x: pyro.sample("seen", dist.Normal(0.0, 2.0), obs=x),
        lambda x: pyro.sample("x", dist.Normal(0.0, 2.0), obs=x, infer={"is_auxiliary": True}),
        lambda x: pyro.sample("y", dist.Delta(x), obs=x, infer={"is_auxiliary": True}),
    ],
    ids=["factor", "observed", "observed auxiliary", "observed point"],
)
def test_what_a_guide_observes_is_no_part_of_its_density(extra):
    program = Program(gaussian, exact_guide_with(extra))
    for estimator in (evidence.ImportanceSampling(10), evidence.ELBO(10)):
        assert estimator(program, TWO).total == pytest.approx(TRUTH_OF_TWO, abs=1e-5)


def test_fits_keep_the_factors_of_a_guide():
    weight = torch.nn.Parameter(torch.tensor(0.0))

    def pull(x):
        pyro.factor("aux", (weight - 3.0) ** 2 * torch.ones_like(x) / 2, has_rsample=False)

    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight

        def forward(self, x):
            exact_guide_with(pull)(x)

    adam = partial(torch.optim.Adam, lr=0.03)
    fit(Program(gaussian, Guide()), TWO, optimizer=adam, steps=600, progress=False, compile=False)
    assert weight.item() == pytest.approx(3.0, abs=0.1)


def masked_pair(inside_model, inside_guide):
    mask = torch.tensor([[True, True, False], [True, False, True]])

    def put(base, inside):
        return base.mask(mask).to_event(1) if inside else base.to_event(1).mask(mask.all(-1))

    def model(x):
        with pyro.plate("data", 2):
            z = pyro.sample("z", put(dist.Normal(torch.zeros(2, 3), 1.0), inside_model))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 2):
            pyro.sample("z", put(dist.Normal(torch.zeros(2, 3), 1.0), inside_guide))

    return Program(model, guide)


@pytest.mark.parametrize("inside_model", [True, False])
@pytest.mark.parametrize("inside_guide", [True, False])
def test_masks_count_alike_wherever_they_are_written(inside_model, inside_guide):
    """Masked entries are drawn from their prior: N(0, 1 + 3) is the marginal of each datum."""
    program = masked_pair(inside_model, inside_guide)
    found = evidence.ImportanceSampling(20_000)(program, TWO)
    truth = dist.Normal(0.0, 2.0).log_prob(TWO).sum().item()
    assert abs(found.total - truth) < 4 * found.total_std_error


def test_a_masked_prior_stays_masked_beside_a_point_mass():
    def model(x):
        f = pyro.sample("f", dist.Beta(10.0, 10.0).mask(False))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(f), obs=x)

    program, x = Program(model, AutoDelta(model)), torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0, 0, 0])
    adam = partial(torch.optim.Adam, lr=0.03)
    fit(program, x, optimizer=adam, steps=400, progress=False, compile=False)
    (logit,) = program.parameters()
    assert logit.sigmoid().item() == pytest.approx(0.6, abs=0.001)  # the MAP would be 0.536


@pytest.mark.parametrize("scaled", ["plate", "likelihood", "prior"])
def test_powers_of_densities_have_no_evidence(scaled):
    def model(x):
        with poutine.scale(scale=0.1 if scaled == "prior" else 1.0):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        subsample = torch.arange(5) if scaled == "plate" else None
        size = 10 if scaled == "plate" else 5
        with (
            pyro.plate("data", size, subsample=subsample),
            poutine.scale(scale=0.1 if scaled == "likelihood" else 1.0),
        ):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(ValueError, match="have a scale"):
        evidence.auto(Program(model), torch.zeros(5))


def test_draws_from_a_point_mass_are_no_posterior():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(ValueError, match="guide puts a point mass on \\['mean'\\]"):
        posterior(Program(model, AutoDelta(model)), TWO)


def test_a_point_mass_in_the_model_is_told_from_one_in_a_guide():
    def model(x):
        mean = pyro.sample("mean", dist.Delta(torch.tensor(1.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(ValueError, match="write pyro.deterministic"):
        evidence.auto(Program(model), TWO)


IMPOSSIBLE = {
    "categorical": (lambda: dist.Categorical(torch.tensor([0.5, 0.5, 0.0])), [2.0]),
    "bernoulli": (lambda: dist.Bernoulli(torch.tensor(0.0)), [1.0]),
    "binomial": (lambda: dist.Binomial(3, torch.tensor(1.0)), [2.0]),
    "negative binomial": (lambda: dist.NegativeBinomial(3.0, torch.tensor(0.0)), [1.0]),
    "multinomial": (lambda: dist.Multinomial(2, torch.tensor([0.5, 0.5, 0.0])), [[1.0, 0.0, 1.0]]),
    "one-hot": (lambda: dist.OneHotCategorical(torch.tensor([0.5, 0.5, 0.0])), [[0.0, 0.0, 1.0]]),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_is_impossible_has_no_density(name):
    make, value = IMPOSSIBLE[name]

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", make(), obs=x)

    found = evidence.Exact()(Program(model), torch.tensor(value))
    assert found.total == -math.inf
    assert found.reliable


POSSIBLE = {
    "categorical": (lambda: dist.Categorical(torch.tensor([0.5, 0.5, 0.0])), [1], 0.5),
    "bernoulli": (lambda: dist.Bernoulli(torch.tensor(1.0)), [1], 1.0),
    "rare": (lambda: dist.Bernoulli(torch.tensor(1e-12)), [1], 1e-12),
    "binomial": (lambda: dist.Binomial(3, torch.tensor(1.0)), [3], 1.0),
    "geometric": (lambda: dist.Geometric(torch.tensor(0.5)), [0], 0.5),
    "negative binomial": (lambda: dist.NegativeBinomial(3.0, torch.tensor(0.5)), [0], 0.125),
}


@pytest.mark.parametrize("name", POSSIBLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_what_is_possible_keeps_its_density(name, dtype):
    make, value, probability = POSSIBLE[name]

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", make(), obs=x)

    found = evidence.Exact()(Program(model), torch.tensor(value, dtype=dtype))
    assert found.total == pytest.approx(math.log(probability), abs=1e-6)


def test_a_hidden_chain_that_cannot_go_back_has_no_density_for_going_back():
    """Left to right: states 0 then 1, each told by its symbol; 1 before 0 is impossible."""
    moves, symbols = torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.eye(2)

    def model(x):
        state = 0
        for t in pyro.markov(range(len(x))):
            row = torch.tensor([1.0, 0.0]) if t == 0 else moves[state]
            state = pyro.sample(f"s{t}", dist.Categorical(row), infer={"enumerate": "parallel"})
            pyro.sample(f"x{t}", dist.Categorical(symbols[state]), obs=x[t])

    program = Program(model)
    assert evidence.Exact()(program, torch.tensor([0, 1, 0])).total == -math.inf
    assert evidence.Exact()(program, torch.tensor([0, 0, 1])).total == pytest.approx(
        2 * math.log(0.5)
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.float64])
def test_counts_of_bytes_do_not_wrap(dtype):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Geometric(0.3), obs=x)

    found = evidence.Exact()(Program(model), torch.tensor([0, 1, 5], dtype=dtype))
    assert found.total == pytest.approx(3 * math.log(0.3) + 6 * math.log(0.7), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_truth_values_are_data(dtype):
    def model(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    x = torch.tensor([1, 1, 0]).to(dtype)
    found = evidence.auto(Program(model), x)
    assert found.total == pytest.approx(
        -math.log(12.0), abs=max(0.01, 4 * float(found.total_std_error))
    )
    fit(Program(model, AutoNormal(model)), x, steps=2, progress=False, compile=False)


def test_undefined_densities_raise_an_alarm_that_names_their_site():
    def model(k):
        p = torch.sigmoid(pyro.sample("l", dist.Normal(0.0, 15.0)))
        pyro.factor("hand", k * p.log() + (6 - k) * (1 - p).log())

    torch.manual_seed(1)  # a first run on which it is NaN fails, and says so
    for estimator in (evidence.SMC(num_particles=100), evidence.Laplace()):
        found = estimator(Program(model), torch.tensor(6.0))
        assert any("NaN" in w and "['hand']" in w for w in found.warnings)


def padded(x):
    mask = torch.tensor([True, False])
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).mask(mask))
        pyro.sample("x", dist.Normal(z, 1.0).mask(mask), obs=x)


def test_fits_tell_where_their_losses_are_not_pyros():
    """An autoguide does not repeat a model's masks: Pyro then subtracts log q of what is masked."""
    fitted = fit(Program(padded, AutoNormal(padded)), TWO, steps=1, progress=False, compile=False)
    assert any("sites ['z'] count otherwise" in note for note in fitted.notes)
    plain = Program(gaussian, AutoNormal(gaussian))
    fitted = fit(plain, TWO, steps=1, progress=False, compile=False)
    assert not any("otherwise" in note for note in fitted.notes)
