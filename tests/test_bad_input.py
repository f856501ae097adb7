"""Bad input of every kind: each error says what was expected, what came, and what to do instead."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, ReweightedWakeSleep, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm import Dataset, Program, compare, evidence, fit, log_weights, posterior
from ppl_dgm.evidence import Exact, ImportanceSampling, PriorSampling
from ppl_dgm.families import VAE
from ppl_dgm.fitting import CheckpointFile, EarlyStopping
from ppl_dgm.objectives import ELBO, IWELBO, Renyi, linear_warmup

X = torch.tensor([0.3, -1.2, 2.0, 0.7])
quietly = partial(fit, progress=False, compile=False)


class Bad(NamedTuple):
    """What is done wrong, and what the error must say."""

    name: str
    call: Callable[[Path], Any]
    message: str
    error: type[Exception] = ValueError


# ---- programs that are right ---------------------------------------------------------------------


def model(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor | None = None) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def learned(x: Tensor | None = None) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def shared(x: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def unnormalised() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("energy", -(x**4))


def implicit(x: Tensor | None = None) -> None:
    with pyro.plate("data", 2):
        pyro.deterministic("x", pyro.sample("z", dist.Normal(0.0, 1.0)) * 2)


# ---- programs that are wrong ---------------------------------------------------------------------


def unobserved(x: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def guide_of(*names: str) -> Callable:
    """A guide with sites of these names."""

    def fn(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            for name in names:
                pyro.sample(name, dist.Normal(0.0, 1.0))

    return fn


def drawing(draw: dist.Distribution) -> Callable:
    """A guide that draws z from a distribution."""

    def fn(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", draw)

    return fn


def positive(x: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def vector_guide(x: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def undeclared(x: Tensor | None = None) -> None:
    pyro.sample("x", dist.Normal(torch.zeros(4), 1.0), obs=x)


def misplaced(x: Tensor | None = None) -> None:
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("x", dist.Normal(torch.zeros(1), 1.0), obs=x.unsqueeze(-1))


def events_undeclared(x: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0), obs=x)


def likelihood(fn: dist.Distribution) -> Program:
    """A program whose data follow a distribution."""

    def observed(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", fn, obs=x)

    return Program(observed)


def listed(x: list | None = None) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def linear(x: Tensor | None = None) -> None:
    net = nn.Linear(3, 1)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x)


def discrete(x: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(1.0 * k, 1.0), obs=x)


def discrete_guide(x: Tensor | None = None) -> None:
    logits = pyro.param("logits", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(logits=logits))


def detached_guide(x: Tensor | None = None) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.testing.fakes.NonreparameterizedNormal(loc, 1.0))


def fixed_size(x: Tensor | None = None) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", 4):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def subsampling(x: Tensor | None = None) -> None:
    with pyro.plate("data", len(x), subsample_size=2) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def unlike_scales(x: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        with poutine.scale(scale=2.0):
            pyro.sample("x", dist.Normal(1.0 * k, 1.0), obs=x)


def two_modules(x: Tensor | None = None) -> None:
    pyro.module("net", nn.Linear(1, 1))
    pyro.module("net", nn.Linear(1, 1))
    model(x)


def interval(x: Tensor | None = None) -> None:
    scale = pyro.param("scale", torch.tensor(-1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, scale), obs=x)


def nan_guide(x: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.tensor(float("nan")), 1.0))


def other_learned(x: Tensor | None = None) -> None:
    level = pyro.param("level", torch.zeros(3))
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.Normal(level.sum(), 1.0), obs=x)


def continue_another(folder: Path, model: Callable = learned, **settings: Any) -> None:
    quietly(Program(learned), X, steps=2, checkpoint=folder / "c.pt")
    quietly(Program(model), X, steps=4, checkpoint=folder / "c.pt", **settings)


def continue_garbage(folder: Path) -> None:
    (folder / "c.pt").write_text("these are no tensors")
    quietly(Program(learned), X, steps=2, checkpoint=folder / "c.pt")


def load_another(folder: Path) -> None:
    Program(learned).initialise(X).save(folder / "p.pt")
    Program(other_learned).initialise(X).load(folder / "p.pt")


# ---- what is done wrong --------------------------------------------------------------------------

PROGRAMS = [
    Bad(
        "model is no callable",
        lambda _: Program(3),
        "model is a int; expected a callable",
        TypeError,
    ),
    Bad(
        "guide is no callable",
        lambda _: Program(model, "mean field"),
        "guide is a str; expected a callable",
        TypeError,
    ),
    Bad(
        "no observed site",
        lambda _: log_weights(Program(unobserved), X),
        "no observed site.*\\['z'\\].*obs=",
    ),
    Bad(
        "data left out",
        lambda _: Program(model).initialise(),
        "no observed site.*call the program with the data",
    ),
    Bad(
        "guide lacks a latent",
        lambda _: Program(model, guide_of()).initialise(X),
        "guide lacks the latent sites \\['z'\\].*Add them",
    ),
    Bad(
        "guide invents a latent",
        lambda _: Program(model, guide_of("z", "w")).initialise(X),
        "guide samples 'w', which is not a latent site.*\\['z'\\].*Rename it",
    ),
    Bad(
        "guide's support is wider",
        lambda _: Program(positive, drawing(dist.Normal(-5.0, 0.1))).initialise(X),
        "support of latent 'z' is .* in the model but .* in the guide",
    ),
    Bad(
        "guide's support is narrower",
        lambda _: Program(model, drawing(dist.Uniform(0.0, 1e-6))).initialise(X),
        "support of latent 'z' is .* expected the guide to cover exactly the model's",
    ),
    Bad(
        "shapes of a latent disagree",
        lambda _: Program(model, vector_guide).initialise(X),
        "latent 'z' has batch and event shape .* in the model but .* in the guide; make them equal",
    ),
    Bad(
        "batch plate is missing",
        lambda _: Program(undeclared).initialise(X),
        "'x' .*no plate declares.*pyro.plate\\('data'",
    ),
    Bad(
        "data plate at a wrong dim",
        lambda _: Program(misplaced).initialise(X),
        "at dim -2 at site 'x'; expected dim -1.*",
    ),
    Bad(
        "event dimensions undeclared",
        lambda _: Program(events_undeclared).initialise(torch.zeros(4, 3)),
        "site x dim -1|site 'x'.*to_event|'x'",
    ),
    Bad(
        "parameter outside its constraint",
        lambda _: Program(interval).initialise(X),
        "model failed on its first run.*|constraint",
    ),
    Bad(
        "one name for two modules",
        lambda _: Program(two_modules).initialise(X),
        "'net'.*two different modules.*own name",
    ),
    Bad(
        "scales of one sum differ",
        lambda _: log_weights(Program(unlike_scales), X),
        "different poutine.scale.*Scale them alike",
    ),
    Bad(
        "guide is NaN",
        lambda _: Program(model, nan_guide).initialise(X),
        "guide failed on its first run.*loc",
    ),
    Bad(
        "structure before data",
        lambda _: Program(model).structure,
        "not seen data yet; call program.initialise",
    ),
]

DATA = [
    Bad(
        "NaN data",
        lambda _: Program(model).initialise(torch.tensor([0.0, float("nan")])),
        "argument 0.*has 1 NaN.*mask",
    ),
    Bad(
        "NaN in named data",
        lambda _: Program(model).initialise(x=X / 0 * 0),
        "argument 'x'.*has 4 NaN",
    ),
    Bad(
        "data outside the support",
        lambda _: likelihood(dist.Bernoulli(0.5)).initialise(X),
        "'x' observes values outside the support .*Bernoulli.*min -1.2.*Transform the data",
    ),
    Bad(
        "negative data of a positive likelihood",
        lambda _: likelihood(dist.Gamma(1.0, 1.0)).initialise(X),
        "'x' observes values outside the support .*Gamma \\(25 % of them",
    ),
    Bad(
        "one datum in many outside the support",
        lambda _: likelihood(dist.Bernoulli(0.5)).initialise(torch.cat([torch.zeros(2500), X[:1]])),
        "'x' observes values outside the support",
    ),
    Bad(
        "data of a wrong shape",
        lambda _: likelihood(dist.Normal(torch.zeros(3), 1.0).to_event(1)).initialise(
            torch.zeros(4, 2)
        ),
        "'x' observes data of shape \\(4, 2\\).*event shape \\(3,\\), so expected \\(4, 3\\)|shape",
    ),
    Bad(
        "one datum without its dimension",
        lambda _: likelihood(dist.Normal(torch.zeros(3), 1.0).to_event(1)).initialise(
            torch.zeros(3)
        ),
        r"'x' observes one value of shape \(3,\) for all 3 data of the plate 'data'; "
        r"expected \(3, 3\).*unsqueeze\(0\)",
    ),
    Bad(
        "labels where vectors are meant",
        lambda _: likelihood(dist.OneHotCategorical(torch.ones(3))).initialise(
            torch.tensor([0, 1, 2])
        ),
        "'x' observes values outside the support OneHot\\(\\) of OneHotCategorical",
    ),
    Bad(
        "wrong dtype for a net",
        lambda _: Program(linear).initialise(torch.zeros(4, 3, dtype=torch.long)),
        "model failed on its first run with Tensor\\(4, 3\\) of torch.int64.*dtype",
    ),
    Bad(
        "wrong width for a net",
        lambda _: Program(linear).initialise(torch.zeros(4, 5)),
        "model failed on its first run with Tensor\\(4, 5\\) of torch.float32.*Check the shape",
    ),
    Bad(
        "too many arguments",
        lambda _: Program(model).initialise(X, X),
        "failed on its first run with Tensor\\(4,\\)",
    ),
    Bad(
        "an unknown argument",
        lambda _: Program(model).initialise(y=X),
        "failed on its first run.*unexpected keyword argument 'y'",
    ),
    Bad(
        "covariates that do not fit",
        lambda _: Program(lambda x, c: model(x + c)).initialise(X, X[:3]),
        "first run.*Tensor\\(3,\\)",
    ),
]

WEIGHTS = [
    Bad(
        "no particles",
        lambda _: log_weights(Program(model), X, num_particles=0),
        "num_particles is 0; expected at least 1",
    ),
    Bad(
        "weights of a function",
        lambda _: log_weights(model, X),
        "takes a Program.*write Program\\(model, guide\\)",
        TypeError,
    ),
    Bad("no samples", lambda _: Program(model).sample(0), "num_samples is 0; expected at least 1"),
    Bad(
        "samples of an unnormalised program",
        lambda _: Program(unnormalised).sample(2),
        "factors \\['energy'\\].*Markov chain",
    ),
    Bad(
        "samples of an unknown site",
        lambda _: Program(model, site="y").sample(2),
        "no site 'y'.*name it",
    ),
    Bad("posterior of a function", lambda _: posterior(model, X), "Program", TypeError),
]

OBJECTIVES = [
    Bad(
        "no particles of an objective", lambda _: ELBO(0), "num_particles is 0; expected at least 1"
    ),
    Bad(
        "negative KL weight",
        lambda _: ELBO(kl_weight=-1.0),
        "kl_weight is -1.0; expected a number >= 0",
    ),
    Bad(
        "unknown gradient of ELBO",
        lambda _: ELBO(gradient="dreg"),
        "gradient is 'dreg'; expected one of 'reparam', 'stl'",
    ),
    Bad(
        "unknown gradient of IWELBO",
        lambda _: IWELBO(4, gradient="vimco"),
        "gradient is 'vimco'; expected one of.*'dreg'",
    ),
    Bad("Renyi of order 1", lambda _: Renyi(1.0), "alpha is 1.*use ELBO\\(\\)"),
    Bad("a warmup of no steps", lambda _: linear_warmup(0), "num_steps is 0; expected at least 1"),
    Bad(
        "IWELBO with a discrete guide",
        lambda _: quietly(Program(discrete, discrete_guide), X, IWELBO(4), steps=1),
        "IWELBO.*needs reparameterised latents.*\\['z'\\].*use VIMCO.*ELBO\\(\\).*enumerate",
    ),
    Bad(
        "Renyi with a discrete guide",
        lambda _: quietly(Program(discrete, discrete_guide), X, Renyi(0.5), steps=1),
        "Renyi needs reparameterised latents.*\\['z'\\]",
    ),
    Bad(
        "sticking the landing without a path",
        lambda _: quietly(Program(model, detached_guide), X, ELBO(gradient="stl"), steps=1),
        "gradient='stl' needs reparameterised latents.*\\['z'\\]",
    ),
    Bad(
        "a guide that lacks a latent, in SVI",
        lambda _: SVI(model, guide_of(), pyro.optim.Adam({"lr": 0.1}), loss=ELBO()).step(X),
        "guide lacks the latent sites \\['z'\\]",
    ),
]

FITS = [
    Bad(
        "fit of a function",
        lambda _: quietly(model, X, steps=1),
        "fit takes a Program, not a function",
        TypeError,
    ),
    Bad(
        "objective as a string",
        lambda _: quietly(Program(learned), X, "elbo", steps=1),
        "objective.*str.*ELBO",
        TypeError,
    ),
    Bad(
        "objective as a class",
        lambda _: quietly(Program(learned), X, ELBO, steps=1),
        "objective.*ELBO\\(\\)",
        TypeError,
    ),
    Bad("neither steps nor epochs", lambda _: quietly(Program(learned), X), "exactly one of them"),
    Bad(
        "steps and epochs",
        lambda _: quietly(Program(learned), X, steps=1, epochs=1),
        "exactly one of them",
    ),
    Bad(
        "negative steps",
        lambda _: quietly(Program(learned), X, steps=-5),
        "steps is -5; expected a positive number",
    ),
    Bad(
        "no data in a minibatch",
        lambda _: quietly(Program(learned), X, steps=1, batch_size=0),
        "batch_size is 0; expected",
    ),
    Bad(
        "negative clip",
        lambda _: quietly(Program(learned), X, steps=1, clip_norm=-1.0),
        "clip_norm is -1.0; expected a positive",
    ),
    Bad(
        "patience of nothing",
        lambda _: quietly(Program(learned), X, steps=1, callbacks=[EarlyStopping(3)]),
        "EarlyStopping stops on validation data, but valid is None; pass valid",
    ),
    Bad(
        "no steps between validations",
        lambda _: quietly(Program(learned), X, steps=1, valid=X, valid_every=-1),
        "valid_every is -1",
    ),
    Bad(
        "no steps between checkpoints",
        lambda folder: CheckpointFile(folder / "c.pt", every=-1),
        "every is -1",
    ),
    Bad(
        "minibatches of an indivisible program",
        lambda _: quietly(Program(fixed_size), X, steps=1, batch_size=2),
        "batch_size is 2 but the program does not take a part of its 4 data.*leave batch_size out",
    ),
    Bad(
        "nothing to fit",
        lambda _: quietly(Program(model), X, steps=1),
        "no parameters to fit; use pyro.param",
    ),
    Bad(
        "unknown compile mode",
        lambda _: fit(Program(learned), X, steps=1, compile="yes"),
        "compile is 'yes'; expected 'auto'",
    ),
    Bad(
        "compiling what cannot be",
        lambda _: fit(
            Program(model, guide), X, ReweightedWakeSleep(), steps=1, compile=True, progress=False
        ),
        "ReweightedWakeSleep has no differentiable loss.*compile=False",
    ),
    Bad(
        "NaN validation data",
        lambda _: quietly(Program(learned), X, steps=1, valid=X / 0 * 0),
        "has 4 NaN",
    ),
    Bad(
        "empty data",
        lambda _: quietly(Program(learned), X[:0], steps=1),
        "failed on its first run with Tensor\\(0,\\).*size cannot be zero.*Check the shape",
    ),
    Bad(
        "empty Dataset", lambda _: quietly(Program(learned), Dataset(X[:0]), steps=1), "has no rows"
    ),
    Bad(
        "no folder for the checkpoint",
        lambda tmp: quietly(Program(learned), X, steps=1, checkpoint=tmp / "none" / "c.pt"),
        "the folder .*none of 'c.pt' does not exist; create it first",
    ),
    Bad(
        "a checkpoint of another fit",
        lambda tmp: continue_another(tmp, batch_size=2),
        "checkpoint .* is of another fit.*batch_size",
    ),
    Bad(
        "a checkpoint of another program",
        lambda tmp: continue_another(tmp, model=other_learned),
        "checkpoint .* is of another program.*level",
    ),
    Bad(
        "a checkpoint that is none",
        continue_garbage,
        "c.pt is no file of parameters.*Give one that",
    ),
]


FILES = [
    Bad(
        "saving nowhere",
        lambda tmp: Program(learned).initialise(X).save(tmp / "no" / "p.pt"),
        "folder .*no.* does not exist; create",
    ),
    Bad(
        "loading another program",
        load_another,
        "does not hold the parameters of this program.*Build the program",
    ),
    Bad(
        "loading nothing",
        lambda tmp: Program(learned).load(tmp / "none.pt"),
        "none.pt",
        FileNotFoundError,
    ),
]


EVIDENCE = [
    Bad(
        "evidence of a function",
        lambda _: Exact()(learned, X),
        "Exact takes a Program, not a function",
        TypeError,
    ),
    Bad(
        "one particle for an error",
        lambda _: ImportanceSampling(1),
        "num_particles is 1; expected at least 2",
    ),
    Bad(
        "no memory",
        lambda _: ImportanceSampling(memory=0),
        "memory is 0 bytes; expected a positive number",
    ),
    Bad(
        "exact evidence of a VAE",
        lambda _: Exact()(VAE(3, 2, [4]), torch.zeros(4, 3)),
        "cannot be integrated out.*ImportanceSampling",
    ),
    Bad(
        "exact evidence of a nonlinear program",
        lambda _: Exact()(Program(positive), X),
        "cannot be integrated out.*\\['z'\\]|\\['z'\\].*cannot",
    ),
    Bad(
        "point mass as proposal",
        lambda _: ImportanceSampling(5)(Program(shared, AutoDelta(shared)), X),
        "point mass on \\['z'\\].*AutoNormal, not AutoDelta",
    ),
    Bad(
        "evidence under subsampling",
        lambda _: evidence.ELBO(5)(Program(subsampling), X),
        "plates \\['data'\\].*without subsample_size",
    ),
    Bad(
        "evidence of a deterministic x",
        lambda _: PriorSampling(5)(Program(implicit)),
        "'x' is deterministic.*observation noise.*with_noise",
    ),
    Bad(
        "posterior of a deterministic x",
        lambda _: posterior(Program(implicit), num_draws=5),
        "'x' is deterministic.*observation noise",
    ),
    *(
        Bad(
            f"a fit of a deterministic x by {type(objective).__name__}",
            lambda _, objective=objective: quietly(Program(implicit), (), objective, steps=1),
            "'x' is deterministic.*use objectives.GAN",
        )
        for objective in (ELBO(), Trace_ELBO())
    ),
    Bad(
        "the ELBO of a deterministic x",
        lambda _: ELBO().loss(implicit, lambda x=None: implicit(), X),
        "'x' is deterministic.*use objectives.GAN",
    ),
    Bad(
        "level of an interval",
        lambda _: Exact()(Program(learned), X).interval(95),
        "level is 95; expected a probability",
    ),
    Bad("nothing to compare", lambda _: compare({}), "nothing to compare"),
    Bad(
        "comparing unlike data",
        lambda _: compare(
            {"a": Exact()(Program(learned), X), "b": Exact()(Program(learned), X + 1)}
        ),
        "'a' and 'b' cannot be compared",
    ),
    Bad(
        "comparing unlike targets",
        lambda _: compare({"a": Exact()(Program(learned), X), "b": Exact()(Program(shared), X)}),
        "'a' and 'b' cannot be compared",
    ),
]

TABLE = PROGRAMS + DATA + WEIGHTS + OBJECTIVES + FITS + FILES + EVIDENCE


def test_there_are_many_kinds() -> None:
    assert len({bad.name for bad in TABLE}) == len(TABLE) >= 40


@pytest.mark.parametrize("bad", TABLE, ids=[bad.name for bad in TABLE])
def test_bad_input(bad: Bad, tmp_path: Path) -> None:
    with pytest.raises(bad.error, match=f"(?s){bad.message}") as caught:
        bad.call(tmp_path)
    assert len(str(caught.value)) > 20
