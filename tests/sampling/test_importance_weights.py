"""Log weights in bounded memory, and their summaries against the whole sample at once."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from ppl_dgm import Program, log_weights, pareto_k
from ppl_dgm.evidence import ImportanceSampling
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.convergence import mean_std_error, tail_warnings
from ppl_dgm.sampling.importance import expand_particles, log_mean_exp, weight_chunks
from ppl_dgm.sampling.memory import AllocationCounter, allocated_bytes, chunk_plan
from ppl_dgm.sampling.weight_summary import WeightSummary

X = torch.tensor([0.3, -1.2, 2.0, 0.7, 1.1, -0.4, 0.0])
TRUTH = Normal(0.0, math.sqrt(2.0)).log_prob(X)


def model(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.9))


def posterior(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))


def sharp(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def shared(x: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def assert_unbiased(weights: Tensor, truth: Tensor) -> None:
    """E w = Z, within standard errors."""
    ratio = (weights.double() - truth).exp()
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert bool(((ratio.mean(0) - 1).abs() < 4.5 * error + 1e-6).all())


# ---- values --------------------------------------------------------------------------------------


def test_the_posterior_as_guide_has_constant_weights() -> None:
    weights = log_weights(Program(model, posterior), X, num_particles=5)
    assert torch.allclose(weights, TRUTH.expand(5, 7), atol=1e-5)


@pytest.mark.parametrize("proposal", ["guide", "prior"])
def test_weights_are_unbiased_for_the_evidence(proposal: str) -> None:
    weights = log_weights(Program(model, guide), X, num_particles=4000, proposal=proposal, seed=0)
    assert weights.shape == (4000, 7)
    assert_unbiased(weights, TRUTH)


def test_prior_weights_are_likelihoods() -> None:
    """With and without a guide, the prior's weights are log p(x | z).

    They are never more than the likelihood's peak.
    """
    weights = log_weights(Program(model, guide), X, num_particles=3000, proposal="prior", seed=0)
    peak = Normal(0.0, 1.0).log_prob(torch.tensor(0.0))
    assert weights.max() <= peak + 1e-6
    assert weights.max() > peak - 0.01


def test_global_latents_have_one_weight() -> None:
    weights = log_weights(Program(shared), X, num_particles=5000, seed=0)
    assert weights.shape == (5000,)
    covariance = torch.eye(7) + torch.ones(7, 7)
    assert_unbiased(
        weights, torch.distributions.MultivariateNormal(torch.zeros(7), covariance).log_prob(X)
    )


def test_programs_without_latents_repeat_their_likelihood() -> None:
    def exact(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    weights = log_weights(Program(exact), X, num_particles=3)
    assert torch.allclose(weights, Normal(0.0, 1.0).log_prob(X).expand(3, 7))


def test_precision_follows_the_data() -> None:
    assert log_weights(Program(model, guide), X.double()).dtype == torch.float64
    assert log_weights(Program(model, guide), X).dtype == torch.float32


def test_no_gradients_are_kept() -> None:
    def learned(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    assert not log_weights(Program(learned), X).requires_grad


# ---- chunks --------------------------------------------------------------------------------------

LITTLE = 4000  # bytes: a few particles, or a few data, at a time


@pytest.mark.parametrize("program", [Program(model, guide), Program(shared), Program(model)])
@pytest.mark.parametrize("proposal", ["guide", "prior"])
def test_little_memory_changes_neither_shape_nor_law(program: Program, proposal: str) -> None:
    full = log_weights(program, X, num_particles=600, proposal=proposal, seed=0)
    pieces = log_weights(program, X, num_particles=600, proposal=proposal, memory=LITTLE, seed=1)
    assert pieces.shape == full.shape
    scale = ((full.exp().var(0) + pieces.exp().var(0)) / 600).sqrt()
    assert bool(((full.exp().mean(0) - pieces.exp().mean(0)).abs() < 4.5 * scale).all())


def test_data_are_divided_when_one_particle_of_all_is_too_much() -> None:
    bound = Program(model, posterior).bind(X)
    chunks = list(weight_chunks(bound, 5, memory=200))
    assert len({chunk.start for chunk in chunks}) > 1
    starts = sorted({chunk.start for chunk in chunks})
    rows = [torch.cat([c.log_weights for c in chunks if c.start == start]) for start in starts]
    assert torch.allclose(torch.cat(rows, -1), TRUTH.expand(5, 7), atol=1e-5)


def test_indivisible_programs_are_not_divided() -> None:
    def fixed(x: Tensor) -> None:
        with pyro.plate("data", 7):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    bound = Program(fixed).bind(X)
    assert not bound.structure.divisible
    chunks = list(weight_chunks(bound, 4, memory=10))
    assert [chunk.log_weights.shape for chunk in chunks] == [(1, 7)] * 4


def test_covariates_are_divided_with_the_data() -> None:
    def regression(x: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(c)):
            z = pyro.sample("z", dist.Normal(c, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    c = torch.linspace(-2, 2, 7)
    weights = log_weights(Program(regression), X, c, num_particles=3000, memory=30000, seed=0)
    assert_unbiased(weights, Normal(c, math.sqrt(2.0)).log_prob(X))


def test_chunks_keep_to_their_memory() -> None:
    """What one chunk allocates is within the budget, and the budget is used."""
    bound = Program(model, guide).bind(X.repeat(100))
    budget = 2_000_000
    for _, part, particles in chunk_plan(bound, 10_000, budget, lambda b: b.draw(1)):
        spent = allocated_bytes(lambda part=part, particles=particles: part.draw(particles))
        assert 0.3 * budget < spent < 1.3 * budget


class Wide(nn.Module):
    """A decoder through a wide hidden layer: 40 kB for each particle of each datum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(1, 10_000), nn.Linear(10_000, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.outer(self.inner(z).relu())


@pytest.mark.slow
def test_peak_memory_is_bounded() -> None:
    """64 particles of 100 data through 10 000 units would be 256 MB a layer.

    The peak stays near the budget.
    """
    net = Wide()

    def wide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(net(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

    program, live = Program(wide).initialise(torch.zeros(100)), LiveMemory()
    with live:
        log_weights(program, torch.zeros(100), num_particles=64, memory=20 * 2**20)
    assert live.peak < 40 * 2**20


class LiveMemory(torch.utils._python_dispatch.TorchDispatchMode):
    """Largest number of bytes in storages that exist at once."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            storage = out.untyped_storage()
            self.storages[storage.data_ptr()] = (
                torch.multiprocessing.reductions.StorageWeakRef(storage),
                storage.nbytes(),
            )
            self.storages = {k: v for k, v in self.storages.items() if not v[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return out


def test_allocations_are_counted() -> None:
    def work() -> None:
        a = torch.zeros(100)  # 400 bytes
        (a[:50] + 1).reshape(5, 10)  # 200; views are free
        a.double()  # 800

    assert allocated_bytes(work) == 1400
    with AllocationCounter() as counter:
        torch.ones(3).add_(1)
    assert counter.bytes >= 12


# ---- seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [LITTLE, 2**28])
def test_a_seed_repeats_and_leaves_the_generator_alone(memory: int) -> None:
    program = Program(model, guide).initialise(X)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = log_weights(program, X, num_particles=20, seed=5, memory=memory)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(log_weights(program, X, num_particles=20, seed=5, memory=memory), first)
    assert not torch.equal(log_weights(program, X, num_particles=20, seed=6, memory=memory), first)


def test_without_a_seed_torchs_generator_decides() -> None:
    program = Program(model, guide).initialise(X)
    first, second = log_weights(program, X), log_weights(program, X)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    first = log_weights(program, X)
    torch.manual_seed(3)
    assert torch.equal(log_weights(program, X), first)


def test_seeded_restores_on_errors() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="size"), seeded(1):
        torch.rand(3).add_(torch.rand(2, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_modules_are_in_evaluation_mode() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5), nn.BatchNorm1d(1))

    def regularised(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

    program = Program(regularised)
    assert torch.equal(log_weights(program, X), log_weights(program, X))
    assert net[2].num_batches_tracked == 0
    assert net.training


# ---- summaries -----------------------------------------------------------------------------------


def jackknife_error(weights: Tensor) -> Tensor:
    """The jackknife's standard error of log-mean-exp, from all weights at once."""
    share = weights.softmax(0)
    left_out = torch.log1p(-share)
    count = len(weights)
    return ((left_out - left_out.mean(0)).square().sum(0) * (count - 1) / count).sqrt()


def summary_of(weights: Tensor, sizes: list[int]) -> WeightSummary:
    summary = WeightSummary(len(weights))
    for chunk in weights.split(sizes):
        summary.add(chunk)
    return summary


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("sizes", [[1000], [1, 999], [10, 200, 790], [100] * 10])
def test_streaming_equals_the_whole(shape: tuple, sizes: list[int]) -> None:
    weights = 3 * torch.randn(1000, *shape, dtype=torch.float64) - 500
    summary = summary_of(weights, sizes)
    w = (weights + 500).exp()
    assert torch.allclose(summary.log_mean_exp, w.mean(0).log() - 500, rtol=1e-12)
    assert torch.allclose(summary.mean, weights.mean(0), rtol=1e-12)
    assert torch.allclose(summary.mean_std_error, mean_std_error(weights), rtol=1e-10)
    assert torch.allclose(summary.std_error, jackknife_error(weights), rtol=1e-3)
    assert torch.allclose(summary.ess, w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-10)
    assert summary.log_mean_exp.shape == summary.ess.shape == summary.pareto_k.shape == shape
    assert torch.allclose(summary.pareto_k, pareto_k(weights), rtol=1e-12)


def test_single_precision_weights_are_summed_in_double() -> None:
    weights = torch.randn(100_000)
    summary = summary_of(weights, [1000] * 100)
    truth = weights.double().exp().mean().log()
    assert summary.log_mean_exp.dtype == torch.float64
    assert abs(summary.log_mean_exp - truth) < 1e-12


def test_no_overflow() -> None:
    for shift in (-1e5, 1e5):
        weights = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64) + shift
        summary = summary_of(weights, [1, 2])
        assert summary.log_mean_exp.item() - shift == pytest.approx(
            math.log((1 + math.e + math.e**2) / 3), rel=1e-9
        )
        assert 1 <= summary.ess <= 3
        assert (log_mean_exp(weights) - summary.log_mean_exp).abs() < 1e-9


def test_equal_weights() -> None:
    summary = summary_of(torch.full((50, 2), -3.0), [20, 30])
    assert torch.allclose(summary.ess, torch.full((2,), 50.0).double())
    assert torch.allclose(summary.std_error, torch.zeros(2).double(), atol=1e-8)
    assert torch.equal(summary.pareto_k, torch.full((2,), -math.inf).double())


def test_zero_weights_count() -> None:
    """Draws outside the support have log w = -inf and weight 0."""
    weights = torch.tensor([0.0, -math.inf, 0.0, -math.inf], dtype=torch.float64)
    summary = summary_of(weights, [2, 2])
    assert summary.log_mean_exp.item() == pytest.approx(math.log(0.5))
    assert summary.ess.item() == pytest.approx(2.0)
    assert summary.mean.item() == -math.inf


def test_all_weights_zero() -> None:
    summary = summary_of(torch.full((6,), -math.inf), [3, 3])
    assert summary.log_mean_exp.item() == -math.inf


def test_standard_errors_have_the_spread_of_repeats() -> None:
    """Over 400 repeats, the deviation of log Z-hat is the mean standard error within 12 %."""
    weights = torch.randn(1000, 400, generator=torch.Generator().manual_seed(0))
    summary = summary_of(weights, [1000])
    assert (summary.log_mean_exp.std() / summary.std_error.mean() - 1).abs() < 0.12
    assert (summary.mean.std() / summary.mean_std_error.mean() - 1).abs() < 0.12
    assert (summary.log_mean_exp.mean() - 0.5).abs() < 4 * summary.std_error.mean() / 20 + 1e-3


def test_a_repeated_weight() -> None:
    assert torch.equal(
        expand_particles(torch.tensor([[1.0, 2.0]]), 3), torch.tensor([[1.0, 2.0]] * 3)
    )


# ---- Pareto tails --------------------------------------------------------------------------------

KHAT = {
    0.5: 0.9080815512205151,
    0.7: 0.6371459500343336,
    0.9: 0.27494481323913184,
    0.99: 0.08018355166699344,
}


def log_ratio(scale: float, rng: np.random.Generator) -> Tensor:
    """log weights of a standard normal in three dimensions proposed from N(0, scale^2)."""
    z = torch.as_tensor(rng.normal(0.0, scale, (50_000, 3)))
    one = torch.tensor(1.0, dtype=torch.float64)
    return (Normal(0 * one, one).log_prob(z) - Normal(0 * one, scale * one).log_prob(z)).sum(-1)


@pytest.mark.parametrize("sizes", [[50_000], [25_000, 25_000], [1, 49_999], [5000] * 10])
def test_pareto_k_against_reference_values(sizes: list[int]) -> None:
    for scale, expected in KHAT.items():
        weights = log_ratio(scale, np.random.default_rng(42))
        assert summary_of(weights, sizes).pareto_k.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8])
def test_pareto_k_of_pareto_weights(k: float) -> None:
    """Weights (1 - u)^(-k) have a generalised Pareto tail of shape k."""
    u = torch.rand(100_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = pareto_k(-k * torch.log1p(-u))
    assert bool(((found - k).abs() < 0.16).all())


def test_few_particles_have_no_tail_to_fit() -> None:
    assert pareto_k(torch.tensor([0.0, 1.0, 2.0])).item() == math.inf


@pytest.mark.parametrize("count", [2, 3, 10, 100])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_standard_errors_hold_for_few_particles(count: int, spread: float) -> None:
    """The spread of log-mean-exp over many data, by the errors of each."""
    summary = summary_of(spread * torch.randn(count, 20_000, dtype=torch.float64), [count])
    ratio = summary.std_error.square().mean().sqrt() / summary.log_mean_exp.std()
    assert 0.85 < float(ratio) < 1.1


def test_one_weight_that_is_nearly_all_has_the_error_of_its_lead() -> None:
    weights = torch.cat([torch.randn(99, dtype=torch.float64), torch.tensor([60.0])])
    summary = summary_of(weights, [50, 50])
    expected = 60 - float(weights[:-1].logsumexp(0))
    assert float(summary.std_error) == pytest.approx(expected, rel=0.02)


def test_degenerate_tails_have_a_shape() -> None:
    """Ties, atoms and underflow: Pyro's fit divides by zero on some of them."""
    tied = torch.cat([torch.zeros(500), torch.full((100,), 1.0), torch.linspace(1, 3, 5)])
    assert not math.isnan(pareto_k(tied.double()).item())
    assert pareto_k(torch.zeros(1000)).item() == -math.inf
    far = -torch.arange(1000.0).double() * 400
    assert pareto_k(far).item() == math.inf
    geometric = torch.arange(600.0).double() * 1e-14
    assert not math.isnan(pareto_k(geometric).item())


def test_a_few_atoms_are_a_tail() -> None:
    """Counts 1000, 30 and 1 with weights that grow faster than they are rare, and more slowly."""

    def atoms(growth: float) -> Tensor:
        return torch.tensor([0.0] * 9000 + [growth] * 30 + [2 * growth]).double()

    assert pareto_k(atoms(12.0)).item() > 2
    assert pareto_k(atoms(0.5)).item() < 0.5


def test_tail_warnings() -> None:
    assert tail_warnings(torch.tensor(0.3)) == ()
    assert "0.90 > 0.7" in tail_warnings(torch.tensor(0.9))[0]
    many = torch.full((100,), 0.2)
    many[0] = 0.8
    assert tail_warnings(many) == ()  # one in a hundred by chance
    many[:30] = 0.8
    assert "30 of 100 data" in tail_warnings(many)[0]


def test_tails_weigh_by_what_they_can_cost_the_sum() -> None:
    """One datum of two hundred, with the error that it has."""
    k, error = torch.full((200,), 0.2), torch.full((200,), 0.03)
    k[77], error[77] = 0.8, 0.05
    assert tail_warnings(k, error) == ()
    error[77] = 0.5
    assert "1 of 200" in tail_warnings(k, error)[0]
    k[77], error[77] = 3.0, 0.03
    assert "1 of 200" in tail_warnings(k, error)[0]
    k[77], error[77] = 0.9, math.inf
    assert "1 of 200" in tail_warnings(k, error)[0]


def test_one_outlier_under_a_narrow_prior_is_told() -> None:
    """Evidence of 200 data of which one is 25 standard deviations out: 84 nats are missing."""
    x = torch.randn(200, dtype=torch.float64)
    x[77] = 25.0
    found = ImportanceSampling()(Program(sharp), x)
    truth = Normal(0.0, math.sqrt(1.25)).log_prob(x).sum()
    assert float(truth - found.total) > 20
    assert any("of 200 data" in warning for warning in found.warnings)


def test_skewness_of_the_mean_is_that_of_all_weights() -> None:
    weights = torch.randn(1000, 3, dtype=torch.float64) - 500
    w = (weights + 500).exp()
    centred = w - w.mean(0)
    expected = (centred**3).sum(0) / (centred**2).sum(0) ** 1.5
    assert torch.allclose(summary_of(weights, [10, 990]).skewness, expected, rtol=1e-8)
    assert float(summary_of(torch.zeros(20), [20]).skewness) == 0.0
    assert float(summary_of(1e-9 * torch.randn(20).double(), [20]).skewness) == 0.0
