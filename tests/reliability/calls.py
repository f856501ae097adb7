"""Public calls on one small program, and all that they must leave as they found it."""

import os
import random
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.poutine import runtime
from torch import Tensor
from torch.distributions import Distribution

from ppl_dgm import (
    Program,
    compare,
    context_patches,
    diagnostics,
    evidence,
    fit,
    kernels,
    log_weights,
    objectives,
    posterior,
    pyro_state,
    tasks,
    to_arviz,
)
from ppl_dgm.report import Section, write_report

X = torch.tensor([[0.3, -1.2], [2.0, 0.7], [0.1, 0.4]])


def model(x: Tensor | None = None) -> None:
    scale = pyro.param("scale", torch.tensor(0.8), constraint=dist.constraints.positive)
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), scale).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x.sum(-1), 0.7))


class Flaky:
    """A model that raises in one of its runs."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at, self.error, self.runs = at, error, 0

    def __call__(self, x: Tensor | None = None) -> None:
        self.runs += 1
        with pyro.poutine.scale(scale=1.0):
            if self.runs == self.at:
                _ = torch.rand(3), np.random.mtrand._rand.rand(3), random.random()
                raise self.error("on purpose")
            model(x)


Call = Callable[[Callable, int], Any]
CALLS: dict[str, Call] = {}


def call(work: Callable[[Program, int], Any], name: str | None = None) -> None:
    """Note a call on a program with a seed; it gives tensors."""
    CALLS[name or work.__name__] = lambda fn, seed: work(Program(fn, guide), seed)


def estimate(estimator: Any, guided: bool = True) -> None:
    def work(fn: Callable, seed: int) -> Tensor:
        program = Program(fn, guide) if guided else Program(fn)
        return estimator(program, X, seed=seed).log_z

    CALLS[type(estimator).__name__] = work


annealing = {"num_temperatures": 4, "num_pilots": 8}
tempering = annealing | {"num_chains": 2, "num_draws": 20, "num_warmup": 10}
drawing = {"num_draws": 8, "num_chains": 4, "num_warmup": 5}
for made in (
    evidence.ELBO(20),
    evidence.ImportanceSampling(20),
    evidence.PriorSampling(20),
    evidence.IWELBO(4, num_replicates=4),
    evidence.CUBO(20),
    evidence.JVI(4, num_replicates=4),
    evidence.SUMO(4, num_replicates=8),
    evidence.AIS(**annealing, num_chains=4),
    evidence.SMC(num_particles=20, num_groups=2),
    evidence.ThermodynamicIntegration(**tempering),
    evidence.SteppingStone(**tempering),
    evidence.BridgeSampling(**drawing),
    evidence.HarmonicMean(**drawing),
    evidence.LearnedHarmonicMean(**drawing, num_components=1),
):
    estimate(made)
for made in (evidence.Exact(), evidence.Laplace(num_starts=2, num_steps=10, num_particles=10)):
    estimate(made, guided=False)
estimate(evidence.AdaptiveImportanceSampling(100, num_rounds=1, num_fitted=50), guided=False)

quietly = partial(fit, progress=False, compile=False)


def fitted(program: Program, seed: int, **settings: Any) -> Tensor:
    return quietly(program, X, steps=3, seed=seed, **settings).history["objective"]


def kept(program: Program, seed: int) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        settings = {"valid": X, "batch_size": 2, "checkpoint": Path(folder) / "c.pt"}
        return fitted(program, seed, **settings)


def saved(program: Program, seed: int) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        program.initialise(X).save(Path(folder) / "p.pt")
        return (
            Program(model, guide).load(Path(folder) / "p.pt").initialise(X).get_parameter("slope")
        )


def reported(program: Program, seed: int) -> Tensor:
    table = compare({"one": evidence.ImportanceSampling(10)(program, X, seed=seed)})
    with tempfile.TemporaryDirectory() as folder:
        size = write_report(folder, Section("one", table), seed=seed).stat().st_size
    return torch.tensor(size > 1000)


call(lambda p, seed: p.inspect(X).nesting, "inspect")
call(lambda p, seed: p.initialise(X).sample(5).shape, "sample")
call(lambda p, seed: p.model(X), "model")
call(lambda p, seed: p.initialise(X).sample_sites(3)["x"].shape, "sample_sites")
call(lambda p, seed: log_weights(p, X, num_particles=5, seed=seed), "log_weights")
call(lambda p, seed: posterior(p, X, num_particles=20, num_draws=5, seed=seed).draws, "posterior")
call(lambda p, seed: evidence.auto(p, X, seed=seed, budget=1000).log_z, "auto")
call(fitted, "fit")
call(partial(fitted, objective=objectives.IWELBO(3)), "fit of IWELBO")
call(kept, "fit with a checkpoint")
call(saved, "save and load")
call(reported, "report")
call(
    lambda p, seed: evidence.BDMC(evidence.AIS(**annealing, num_chains=4))(p, X, seed=seed).gap,
    "BDMC",
)
call(
    lambda p, seed: to_arviz(posterior(p, X, num_particles=20, num_draws=5, seed=seed)) and None,
    "to_arviz",
)
call(lambda p, seed: tasks.reconstruct(p, X, num_draws=2, seed=seed), "reconstruct")
call(lambda p, seed: tasks.interpolate(p, X[:1], X[1:2], num_steps=3, seed=seed), "interpolate")
call(
    lambda p, seed: tasks.complete(p, X, X > 0, num_particles=20, num_draws=5, seed=seed).draws,
    "complete",
)
call(lambda p, seed: diagnostics.latent_use(p, X, num_particles=10, seed=seed).signal, "latent_use")
call(lambda p, seed: diagnostics.code_length(p, X, num_particles=10, seed=seed).data, "code_length")
call(
    lambda p, seed: (
        evidence.check_moves(
            evidence.SMC(num_particles=20, num_groups=2, kernel=kernels.RandomWalk()),
            p,
            X,
            seed=seed,
        ).reliable
    ),
    "check_moves",
)


def state() -> dict[str, Any]:
    """What belongs to all of the process."""
    store = pyro.get_param_store()
    return {
        "torch's generator": torch.get_rng_state().tolist(),
        "numpy's generator": str(np.random.mtrand._rand.get_state()),
        "Python's generator": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "threads of torch": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomalies": torch.is_anomaly_enabled(),
        "store": sorted(store.keys()),
        "validation": (Distribution._validate_args, pyro.poutine.is_validation_enabled()),
        "handlers": list(runtime._PYRO_STACK),
        "dimensions": list(runtime._DIM_ALLOCATOR._stack),
        "functions": (Distribution.__init__, Distribution._validate_sample, torch.linalg.cholesky),
        "sys.path": list(sys.path),
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "locks": (pyro_state.PYRO_LOCK._is_owned(), context_patches._LOCK._is_owned()),
        "Ctrl-C": signal.getsignal(signal.SIGINT),
        "plots": dict(mpl.rcParams),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what is not the same."""
    return [name for name in before if before[name] != after[name]]
