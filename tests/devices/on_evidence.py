"""Every estimator of evidence, kernel and objective on a second device."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from second_device import DEVICE, is_there
from torch import Tensor

from ppl_dgm import Program, evidence, fit, objectives
from ppl_dgm.conditionals.guides import BernoulliPosterior
from ppl_dgm.families import IAF, MADE, RBM, VAE, Generator, RealNVP, priors
from ppl_dgm.nn import MLP
from ppl_dgm.sampling.kernels import HMC, MALA, ULA, RandomWalk


def normal_mean(x: Tensor) -> None:
    """Normal data of an unknown mean, for which the evidence is known."""
    mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), x.new_ones(())))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, x.new_ones(())), obs=x)


def exact_evidence(x: Tensor) -> float:
    """The evidence of `normal_mean` in nats."""
    x = x.cpu().double()
    covariance = torch.eye(len(x), dtype=x.dtype, device="cpu") + 1
    mean = torch.zeros(len(x), dtype=x.dtype, device="cpu")
    return float(torch.distributions.MultivariateNormal(mean, covariance).log_prob(x))


SHORT: dict[str, Any] = {"num_temperatures": 30, "num_chains": 16, "compile": False}
LADDER: dict[str, Any] = {
    "num_temperatures": 8,
    "num_chains": 2,
    "num_draws": 40,
    "num_warmup": 20,
    "compile": False,
}
CHAINS: dict[str, Any] = {
    "num_draws": 20,
    "num_chains": 8,
    "num_warmup": 20,
    "num_leapfrog": 3,
    "compile": False,
}
ESTIMATORS: dict[str, Callable[[], Any]] = {
    "prior": lambda: evidence.PriorSampling(2000),
    "importance": lambda: evidence.ImportanceSampling(2000),
    "adaptive": lambda: evidence.AdaptiveImportanceSampling(1000, 2, 500, 32),
    "flow": lambda: evidence.FlowImportanceSampling(1000, 1, 500, 32, num_steps=20),
    "laplace": lambda: evidence.Laplace(4, 50, 500, 16),
    "nested": lambda: evidence.NestedSampling(50, remaining=0.1),
    "elbo": lambda: evidence.ELBO(100),
    "cubo": lambda: evidence.CUBO(1000),
    "jvi": lambda: evidence.JVI(8, num_replicates=16),
    "sumo": lambda: evidence.SUMO(4, num_replicates=50),
    "ais": lambda: evidence.AIS(**SHORT),
    "smc": lambda: evidence.SMC(64, 4, compile=False),
    "thermodynamic": lambda: evidence.ThermodynamicIntegration(**LADDER),
    "stepping stone": lambda: evidence.SteppingStone(**LADDER),
    "bridge": lambda: evidence.BridgeSampling(**CHAINS),
    "harmonic": lambda: evidence.HarmonicMean(**CHAINS),
    "learned harmonic": lambda: evidence.LearnedHarmonicMean(**CHAINS),
    "random walk": lambda: evidence.AIS(kernel=RandomWalk(), **SHORT),
    "MALA": lambda: evidence.AIS(kernel=MALA(), **SHORT),
    "HMC": lambda: evidence.AIS(kernel=HMC(num_leapfrog=3), **SHORT),
    "ULA": lambda: evidence.AIS(kernel=ULA(), **SHORT),
}
ROUGH = {"elbo", "cubo", "jvi", "sumo", "harmonic", "ULA"}  # bounds, and what has no error bar
QUICK = {"prior", "importance", "laplace", "ais", "smc", "bridge", "nested", "stepping stone"}


def some(table: dict[str, Any], quick: set[str]) -> list[Any]:
    """The entries of a table as parameters of a test, the quick ones fast."""
    return [
        pytest.param(value, id=name, marks=() if name in quick else pytest.mark.slow)
        for name, value in table.items()
    ]


@pytest.fixture
def x() -> Tensor:
    return torch.tensor([0.3, -0.4, 1.2, 0.8], device="cpu").to(DEVICE)


@pytest.mark.parametrize("name", some({name: name for name in ESTIMATORS}, QUICK))
def test_estimates_of_evidence(name: str, x: Tensor, device: torch.device) -> None:
    if name == "nested":
        pytest.importorskip("dynesty")
    before = torch.get_device_module(device).get_rng_state(device)
    found = ESTIMATORS[name]()(Program(normal_mean), x)
    assert is_there(found.log_z)
    assert torch.equal(before, torch.get_device_module(device).get_rng_state(device))
    if name not in ROUGH:
        error = float(found.std_error) if found.bound != "exact" else 0.0
        assert float(found.log_z) == pytest.approx(exact_evidence(x), abs=5 * error + 1e-3)


@pytest.mark.slow
def test_auto_and_two_sided_bounds(x: Tensor, device: torch.device) -> None:
    found = evidence.auto(Program(normal_mean), x, budget=20_000)
    assert float(found.log_z) == pytest.approx(exact_evidence(x), abs=0.2)
    both = evidence.BDMC(evidence.AIS(**SHORT))(Program(normal_mean), x)
    assert is_there(both.log_z)
    assert float(both.log_z) < float(both.upper.log_z) + 1.0


@pytest.mark.slow
def test_partition_functions_and_sums(device: torch.device) -> None:
    torch.manual_seed(0)
    rbm, bits = RBM(4, 3).to(DEVICE), torch.eye(4, device="cpu").to(DEVICE)
    truth = evidence.Exact()(rbm, bits)
    found = evidence.ReverseAIS(evidence.AIS(**SHORT))(rbm, bits)
    assert is_there(found.log_z)
    assert float((found.log_z - truth.log_z).abs().max()) < 0.1

    def count(x: Tensor) -> None:
        k = pyro.sample("k", dist.Poisson(3 * x.new_ones(())))
        pyro.sample("x", dist.Poisson(0.5 + 0 * k), obs=x)

    two = torch.tensor(2.0, device="cpu").to(DEVICE)
    summed = evidence.GridSum(200)(Program(count), two)
    assert is_there(summed.log_z)
    assert float(summed.log_z) == pytest.approx(math.log(math.exp(-0.5) / 8), abs=1e-6)


def test_checkpoints_cross_devices(x: Tensor, tmp_path: Any) -> None:
    """A fit and a chain begun on the CPU go on there."""
    method = evidence.AIS(checkpoint=tmp_path / "chain.pt", **SHORT)
    there = method(Program(normal_mean), x.cpu())
    here = method(Program(normal_mean), x)
    assert is_there(here.log_z)
    assert torch.equal(here.log_z.cpu(), there.log_z)
    how: dict[str, Any] = {"compile": False, "progress": False, "checkpoint": tmp_path / "fit.pt"}
    data = (torch.rand(20, 4, device="cpu") < 0.5).float()
    fit(small_vae(), data, steps=2, **how)
    done = fit(small_vae(), data, device=DEVICE, steps=4, **how)
    assert done.steps == 4
    assert all(map(is_there, done.program.parameters()))


def small_vae() -> VAE:
    torch.manual_seed(0)
    with torch.device("cpu"):
        return VAE(4, 2, [5])


def belief_net() -> VAE:
    with torch.device("cpu"):
        prior, guide = priors.BernoulliPrior(3), BernoulliPosterior(3)
        return VAE(4, 3, [], prior=prior, guide=guide)


OBJECTIVES: dict[str, tuple[Callable[[], Program], Callable[[], Any]]] = {
    "elbo": (small_vae, lambda: objectives.ELBO(2)),
    "stl": (small_vae, lambda: objectives.ELBO(2, gradient="stl")),
    "dreg": (small_vae, lambda: objectives.IWELBO(2, gradient="dreg")),
    "ciwae": (small_vae, lambda: objectives.CIWAE(2)),
    "miwae": (small_vae, lambda: objectives.MIWAE(2, 2)),
    "renyi": (small_vae, lambda: objectives.Renyi(0.5)),
    "beta tc": (small_vae, lambda: objectives.BetaTC(20)),
    "free bits": (small_vae, objectives.FreeBits),
    "semi-amortised": (small_vae, lambda: objectives.SemiAmortised(2, 0.1)),
    "warmed up": (small_vae, lambda: objectives.ELBO(kl_weight=objectives.linear_warmup(2))),
    "reinforce": (
        belief_net,
        lambda: objectives.REINFORCE(2, baseline=objectives.RunningMean()),
    ),
    "rloo": (belief_net, lambda: objectives.RLOO(2)),
    "vimco": (belief_net, lambda: objectives.VIMCO(2)),
    "straight through": (belief_net, objectives.StraightThrough),
    "wake-sleep": (small_vae, lambda: objectives.ReweightedWakeSleep(2, sleep=0.5)),
    "gan": (
        lambda: Generator(MLP(2, [5], 4), 2, 4),
        lambda: objectives.GAN(MLP(4, [5], 1), gradient_penalty=1.0, ema=0.9),
    ),
    "f-gan": (
        lambda: Generator(MLP(2, [5], 4), 2, 4),
        lambda: objectives.FGAN(MLP(4, [5], 1)),
    ),
    "score matching": (
        lambda: RealNVP(4, 2, [5]),
        lambda: objectives.ScoreMatching("sliced"),
    ),
    "contrastive divergence": (lambda: RBM(4, 3), objectives.ContrastiveDivergence),
    "persistent": (lambda: RBM(4, 3), objectives.PersistentContrastiveDivergence),
    "pseudo-likelihood": (lambda: RBM(4, 3), objectives.PseudoLikelihood),
    "ratio matching": (lambda: RBM(4, 3), objectives.RatioMatching),
    "learned proposal": (
        lambda: RealNVP(4, 2, [5]),
        lambda: objectives.LearnedProposal(RealNVP(4, 2, [5]).to(DEVICE), 16),
    ),
    "reverse kl": (
        lambda: IAF(4, 2, [5]),
        lambda: objectives.ReverseKL(lambda x: -x.square().sum(-1)),
    ),
    "forward kl": (
        lambda: IAF(4, 2, [5]),
        lambda: objectives.ForwardKL(lambda x: -x.square().sum(-1)),
    ),
    "noise-contrastive": (
        lambda: MADE(4, [5]),
        lambda: objectives.NoiseContrastive(
            dist.Bernoulli(torch.full((4,), 0.5, device=DEVICE)).to_event(1)
        ),
    ),
}
SOON = {"stl", "dreg", "reinforce", "wake-sleep", "gan", "persistent"}


@pytest.mark.parametrize("name", some({name: name for name in OBJECTIVES}, SOON))
def test_fits_by_objective(name: str, device: torch.device) -> None:
    program, objective = (make() for make in OBJECTIVES[name])
    data = (torch.arange(80.0, device="cpu").reshape(20, 4) % 3 > 1).float()
    before = torch.get_device_module(device).get_rng_state(device)
    result = fit(
        *(program, data, objective),
        device=device,
        steps=2,
        batch_size=15,
        compile=False,
        progress=False,
    )
    assert torch.equal(before, torch.get_device_module(device).get_rng_state(device))
    assert bool(result.history["objective"].isfinite().all())
    assert all(map(is_there, program.parameters()))
