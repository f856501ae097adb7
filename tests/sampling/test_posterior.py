"""Importance-resampled posteriors against conjugate posteriors, quadrature and enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from ppl_dgm import Posterior, Program, log_weights, posterior
from ppl_dgm.program.log_likelihoods import log_likelihoods


def local_model(x=None):
    """z ~ N(0, 1), x ~ N(z 1, I) of two dimensions: z | x ~ N(sum x / 3, 1 / 3)."""
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 1.0).to_event(1), obs=x)


def wide_guide(x=None):
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.2).expand([len(x)]))


def global_model(x=None):
    """loc ~ N(0, 1), x_i ~ N(loc, 1)."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def data(num_data=5, num_dims=2):
    return torch.randn(num_data, num_dims, generator=torch.Generator().manual_seed(4))


# ---- draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [256 * 2**20, 200_000])
def test_local_posterior_is_the_conjugate_one(memory):
    x = data()
    result = posterior(
        Program(local_model, wide_guide), x, num_particles=20_000, num_draws=4000, memory=memory
    )
    draws = result.draws["z"]
    assert draws.shape == (4000, 5)
    truth = dist.Normal(x.sum(1) / 3, (1 / 3) ** 0.5)
    error = 1 / (3 * result.ess) ** 0.5
    assert bool(((result.mean["z"] - truth.loc).abs() < 4 * error).all())
    assert torch.allclose(result.std["z"], truth.scale.double(), rtol=0.04)
    assert torch.allclose(draws.mean(0), truth.loc, atol=0.04)
    level = (
        truth.cdf(draws).sort(0).values
    )  # uniform if the draws are right: the Kolmogorov-Smirnov distance is small
    distance = (level - torch.linspace(0, 1, 4000).unsqueeze(1)).abs().max(0).values
    assert bool((distance < 1.95 * (1 / 4000 + 1 / result.ess) ** 0.5).all())
    assert result.reliable


def test_parts_of_the_data_are_put_together_in_order():
    x = torch.linspace(-3, 3, 50).unsqueeze(1).expand(50, 2)
    result = posterior(Program(local_model), x, num_particles=500, num_draws=50, memory=60_000)
    assert result.draws["z"].shape == (50, 50)
    assert torch.allclose(result.mean["z"].float(), x.sum(1) / 3, atol=0.35)


def test_global_posterior_resamples_whole_particles():
    x = data(20, 1).squeeze(1)

    def model(x=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("twice", dist.Normal(2 * loc, 1e-6))
        with pyro.plate("data", 20):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    result = posterior(Program(model), x, num_particles=20_000, num_draws=2000)
    assert result.draws["loc"].shape == (2000,)
    assert result.ess.shape == ()
    assert torch.allclose(result.draws["twice"], 2 * result.draws["loc"], atol=1e-4)
    assert float(result.mean["loc"]) == pytest.approx(
        float(x.sum() / 21), abs=4 / (21 * float(result.ess)) ** 0.5
    )
    assert float(result.std["loc"]) == pytest.approx(21**-0.5, rel=0.05)


def test_latents_of_several_dimensions_stay_with_their_datum():
    def model(x=None):
        with pyro.plate("data", 3):
            w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
            pyro.sample("x", dist.Multinomial(10, w), obs=x)

    counts = torch.tensor([[10.0, 0.0], [5.0, 5.0], [0.0, 10.0]])
    result = posterior(Program(model), counts, num_particles=20_000, num_draws=500)
    assert result.draws["w"].shape == (500, 3, 2)
    assert torch.allclose(
        result.draws["w"].sum(-1), torch.ones(500, 3), atol=1e-5
    )  # constrained, and not mixed up
    assert torch.allclose(result.mean["w"].float(), (counts + 1) / 12, atol=0.01)


def test_nested_plates_are_resampled_by_datum():
    def model(x=None):
        with pyro.plate("data", 4, dim=-1):
            with pyro.plate("inner", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.sum(-2), 1.0), obs=x)

    x = torch.tensor([-2.0, 0.0, 1.0, 4.0])
    result = posterior(Program(model), x, num_particles=20_000, num_draws=400)
    assert result.draws["z"].shape == (400, 3, 4)
    assert torch.allclose(result.mean["z"].float(), (x / 4).expand(3, 4), atol=0.06)


def test_auxiliary_latents_of_autoguides_are_left_out():
    x = data(20, 1).squeeze(1)
    guide = pyro.infer.autoguide.AutoMultivariateNormal(global_model, init_scale=0.5)
    result = posterior(Program(global_model, guide), x, num_particles=3000)
    assert set(result.draws) == {"loc"}
    assert float(result.mean["loc"]) == pytest.approx(float(x.sum() / 21), abs=0.05)


def test_draws_repeat_with_the_seed_and_leave_the_generator_alone():
    program, x = Program(local_model), data()
    before = torch.get_rng_state()
    first, again, other = (
        posterior(program, x, num_particles=100, seed=seed).draws["z"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_moments_are_those_of_the_draws_for_other_samplers():
    x = data(20, 1).squeeze(1)
    loc = torch.randn(500, generator=torch.Generator().manual_seed(0))
    result = Posterior(Program(global_model).bind(x), {"loc": loc})
    assert float(result.mean["loc"]) == pytest.approx(float(loc.mean()))
    assert float(result.std["loc"]) == pytest.approx(float(loc.std()))
    assert result.ess is None
    assert repr(result) == "Posterior(500 draws of loc[])"


# ---- alarms and refusals -------------------------------------------------------------------------


def test_a_guide_beside_the_posterior_raises_the_alarm():
    def narrow(x=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(-2.0, 0.2).expand([len(x)]))

    result = posterior(Program(local_model, narrow), data() + 1.0, num_particles=1000)
    assert not result.reliable
    assert "Pareto k" in repr(result)


def one_of_two(x: torch.Tensor | None = None) -> None:
    """A guide at one of the two modes of `folded`."""
    pyro.sample("z", dist.Normal(3.0, 0.4))


def folded(x: torch.Tensor | None = None) -> None:
    """Two modes, mirror images of each other: the posterior mean is zero."""
    z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 3.0))
    pyro.sample("x", dist.Normal(z.abs(), 0.3), obs=x)


def spiked(x: torch.Tensor | None = None) -> None:
    """Half of the mass in a spike far out: the posterior mean is ten."""
    reference = dist.Normal(torch.zeros(()).double(), 6.0)
    z = pyro.sample("z", reference)
    wide, spike = dist.Normal(0.0, 1.0).log_prob(z), dist.Normal(20.0, 0.01).log_prob(z)
    pyro.factor("f", torch.logaddexp(wide, spike) - math.log(2) - reference.log_prob(z))


@pytest.mark.parametrize(
    ("program", "warning"),
    [
        (Program(folded, one_of_two), "lies where no draw came"),
        (Program(spiked), "some modes alone outweigh"),
    ],
)
def test_a_mode_that_no_particle_came_near_raises_the_alarm(program, warning):
    """Effective sample sizes and Pareto k know nothing of it: all draws agree."""
    found = posterior(program, *([torch.tensor(3.0)] if program.guide else []))
    assert float(found.pareto_k) < 0.7
    assert float(found.ess) > 200
    assert any(warning in text for text in found.warnings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_particles": 1}, "num_particles is 1"), ({"num_draws": 0}, "num_draws 0")],
)
def test_settings_that_cannot_be_meant(settings, message):
    with pytest.raises(ValueError, match=message):
        posterior(Program(local_model), data(), **settings)


def test_programs_without_latents_are_refused():
    def exact(x=None):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def mixture(x=None):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(k.float(), 1.0), obs=x)

    with pytest.raises(ValueError, match="the program has none"):
        posterior(Program(exact), torch.zeros(3))
    with pytest.raises(ValueError, match="are summed out"):
        posterior(Program(mixture), torch.zeros(3))


def test_draws_with_chains_of_their_own_are_refused():
    bound = Program(local_model).bind(data())
    draws = torch.randn(4, 25, len(data()))
    with pytest.raises(ValueError, match=r"the draws of 'z' are \[4, 25, .*in dimensions 2"):
        Posterior(bound, {"z": draws})
    assert Posterior(bound, {"z": draws.flatten(0, 1)}).num_draws == 100


def test_draws_of_undefined_density_count_as_impossible_and_are_told():
    """Beta(1, 2) prior, density NaN where p > 0.9: the posterior is the prior cut there."""

    def model():
        p = pyro.sample("p", dist.Beta(1.0, 2.0))
        pyro.factor("cut", (0.9 - p).sqrt() * 0)

    found = posterior(Program(model), num_particles=20_000)
    truth = (0.9**2 - 2 / 3 * 0.9**3) / (2 * 0.9 - 0.9**2)
    assert (found.draws["p"] <= 0.9).all()
    assert found.mean["p"].item() == pytest.approx(truth, abs=4 * 0.23 / math.sqrt(20_000))
    assert any("NaN at" in told and "['cut']" in told for told in found.warnings)


def test_weights_are_computed_in_double_and_draws_are_the_programs():
    """Counts of 3e7: in float32 the density is the same for all rates near."""
    count = torch.tensor(3e7)

    def model(count):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(1.0), torch.tensor(1e-9)))
        pyro.sample("count", dist.Poisson(rate), obs=count)

    def guide(count):
        pyro.sample("rate", dist.Normal(count, 2 * count.sqrt()))

    found = posterior(Program(model, guide), count, num_particles=4000)
    assert found.draws["rate"].dtype == torch.float32
    assert found.std["rate"].item() == pytest.approx(math.sqrt(3e7), rel=0.1)


def test_impossible_data_are_refused():
    def model(x=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0))
            pyro.factor("gate", torch.where(z > 2.0, 0.0, -math.inf) + 0.0 * x)

    with pytest.raises(ValueError, match="all weights are zero"):
        posterior(Program(model), torch.zeros(3), num_particles=10)


def test_sequential_data_plates_are_refused():
    def model(x=None):
        for i in pyro.plate("data", 3):
            z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])

    with pytest.raises(ValueError, match="sequential"):
        posterior(Program(model), torch.zeros(3))


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({}, r"draws are of \[\]; expected the program's latents \['loc'\]"),
        ({"other": torch.zeros(3)}, "expected the program's latents"),
    ],
)
def test_draws_of_other_latents_are_refused(draws, message):
    with pytest.raises(ValueError, match=message):
        Posterior(Program(global_model).bind(torch.zeros(4)), draws)


# ---- predictions and pointwise likelihoods -------------------------------------------------------


def test_predictions_follow_the_posterior_predictive():
    x = data(20, 1).squeeze(1)
    result = posterior(Program(global_model), x, num_particles=20_000, num_draws=4000)
    new = result.predict(seed=1)
    assert new["x"].shape == (4000, 20)
    assert torch.equal(new["loc"], result.draws["loc"])
    assert float(new["x"].mean()) == pytest.approx(float(x.sum() / 21), abs=0.03)
    assert float(new["x"].var()) == pytest.approx(1 + 1 / 21, rel=0.03)
    assert torch.equal(new["x"], result.predict(seed=1)["x"])


def test_programs_with_factors_have_no_ancestral_predictions():
    def model(x=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("energy", -0.5 * (x - z) ** 2)

    result = posterior(Program(model), torch.ones(2), num_particles=5000)
    assert torch.allclose(result.mean["z"].float(), torch.full((2,), 0.5), atol=0.06)
    with pytest.raises(ValueError, match=r"factors \['energy'\]"):
        result.predict()


def test_pointwise_likelihood_of_shared_latents():
    x = data(6, 1).squeeze(1)
    loc = torch.tensor([0.0, 1.0, -2.0])
    values = log_likelihoods(Program(global_model).bind(x), {"loc": loc})
    assert torch.allclose(values["x"], dist.Normal(loc.unsqueeze(1), 1.0).log_prob(x), atol=1e-6)


def test_pointwise_likelihood_keeps_plates_and_masks_but_no_scale():
    def model(x=None, y=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3), pyro.poutine.scale(scale=7.0):
            with pyro.poutine.mask(mask=torch.tensor([True, False, True])):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
            with pyro.plate("inner", 2, dim=-2):
                pyro.sample(
                    "y", dist.Normal(loc.unsqueeze(-1), 1.0).expand([2, 3, 4]).to_event(1), obs=y
                )

    x, y, loc = torch.randn(3), torch.randn(2, 3, 4), torch.tensor([0.5, -1.0])
    values = log_likelihoods(Program(model).bind(x, y), {"loc": loc})
    expected = dist.Normal(loc.unsqueeze(1), 1.0).log_prob(x) * torch.tensor([1.0, 0.0, 1.0])
    assert torch.allclose(values["x"], expected, atol=1e-6)
    expected = dist.Normal(loc.reshape(2, 1, 1, 1), 1.0).log_prob(y).sum(-1)
    assert torch.allclose(values["y"], expected, atol=1e-5)


@pytest.mark.parametrize("num_draws", [3, 6])
def test_pointwise_likelihood_sums_out_the_discrete(num_draws):
    def model(x=None):
        locs = pyro.sample("locs", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", 6):
            k = pyro.sample(
                "k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"}
            )
            pyro.sample(
                "x", dist.Normal(locs[..., k] if locs.dim() == 1 else pick(locs, k), 1.0), obs=x
            )

    def pick(locs, k):
        return torch.where(k == 0, locs[..., 0], locs[..., 1])

    x, locs = data(6, 1).squeeze(1), torch.randn(num_draws, 2)
    values = log_likelihoods(Program(model).bind(x), {"locs": locs})
    each = [
        math.log(w) + dist.Normal(locs[:, i : i + 1], 1.0).log_prob(x)
        for i, w in ((0, 0.3), (1, 0.7))
    ]
    assert torch.allclose(values["x"], torch.logaddexp(*each), atol=1e-5)


def test_pointwise_likelihood_of_programs_run_by_vmap():
    def model(x=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        shift = torch.stack([loc[0], loc[1]]).sum()  # indexes from the front: does not broadcast
        with pyro.plate("data", 5):
            pyro.sample("x", dist.Normal(shift, 1.0), obs=x)

    bound = Program(model).bind(torch.ones(5))
    assert bound.structure.model_runs == "vmap"
    loc = torch.randn(4, 2)
    values = log_likelihoods(bound, {"loc": loc})
    assert torch.allclose(
        values["x"], dist.Normal(loc.sum(1, keepdim=True), 1.0).log_prob(torch.ones(5)), atol=1e-5
    )


def test_log_weights_are_computed_in_double():
    """A count of 3e7 about its own rate, whose density in float32 is off by nats; zeros stay."""

    def counts(count):
        with pyro.plate("data", 1):
            rate = pyro.sample("rate", dist.Uniform(3e7, 3e7 + 4))
            pyro.sample("count", dist.Poisson(rate), obs=count)

    def impossible(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 1):
            pyro.sample("x", dist.Categorical(torch.tensor([0.5, 0.5, 0.0])), obs=x)

    found = log_weights(Program(counts), torch.tensor([3e7]), num_particles=9, seed=0)
    assert found.dtype == torch.float32
    expected = [scipy.stats.poisson.logpmf(3e7, 3e7)] * 9
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-5)
    found = log_weights(Program(impossible), torch.tensor([2]), num_particles=3, seed=0)
    assert (found == -math.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_that_their_precision_rounds_raise_an_alarm(dtype: torch.dtype) -> None:
    """Numbers about 1e8 are 8 apart in float32."""

    def model(x: torch.Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(torch.tensor(1e8, dtype=dtype), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    found = posterior(Program(model), torch.tensor(1e8 + 2, dtype=torch.float64))
    spread = found.draws["z"].double().std()
    assert (spread - 0.5**0.5).abs() < 0.1 or "rounded to torch.float32" in str(found.warnings)
    assert found.reliable == (dtype == torch.float64)
