"""Data, guides and targets that cannot be meant, at every entry point; masked data are taken."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from ppl_dgm import Program, compare, evidence, fit, log_weights, posterior
from ppl_dgm.families import MADE, ConditionalVAE, SemiSupervisedVAE

X = torch.tensor([0.3, -1.2, 2.0, 0.7])
quietly = partial(fit, steps=1, progress=False, compile=False)


def located(x: Tensor | None = None) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def following(law: Any) -> Callable[..., None]:
    """A model whose data follow a distribution, with a parameter to fit."""

    def model(x: Tensor | None = None) -> None:
        pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    return model


ENTRIES: dict[str, Callable[[Program, Any], Any]] = {
    "initialise": lambda program, x: program.initialise(x),
    "fit": quietly,
    "Exact": evidence.Exact(),
    "importance": evidence.ImportanceSampling(10),
    "log_weights": log_weights,
    "auto": evidence.auto,
}
THREE = following(dist.Normal(torch.zeros(3), 1.0).to_event(1))
DATA: dict[str, tuple[Callable[..., None], Any, str]] = {
    "complex": (located, X + 0j, "data are complex; expected real numbers"),
    "sparse": (located, X.to_sparse(), "sparse tensor; expected a dense one"),
    "on no device": (located, X.to("meta"), "meta device, which holds no values"),
    "objects": (located, np.array([1, "a", None], dtype=object), "holds object, not numbers"),
    "words": (located, np.array(["a", "b"]), "holds <U1, not numbers"),
    "one number": (located, 3.5, "data are a float; expected|failed on its first run with 3.5"),
    "no dimension": (located, torch.tensor(3.0), r"failed on its first run with Tensor\(\)"),
    "no data": (located, X[:0], r"first run with Tensor\(0,\).*they hold no datum"),
    "NaN": (located, X.clone().fill_(torch.nan), "argument 0.*has 4 NaN that no mask takes out"),
    "infinite": (located, X / 0, "'x' observes infinite values; expected finite data"),
    "wide": (THREE, torch.zeros(4, 5), r"'x' observes data of shape \(4, 5\).*expected \(4, 3\)"),
    "narrow": (THREE, torch.zeros(4, 1), r"'x' observes data of shape \(4, 1\).*so expected"),
    "one vector": (THREE, torch.zeros(3), r"one value of shape \(3,\) for all 3 data"),
    "no probability": (following(dist.Beta(1.0, 1.0)), X, "outside the support .*Beta.*Transform"),
    "no counts": (following(dist.Poisson(2.0)), X, "outside the support .* of Poisson"),
    "no bits": (following(dist.Bernoulli(0.5)), X, "outside the support .* of Bernoulli"),
    "labels from one": (
        following(dist.Categorical(torch.ones(3))),
        torch.tensor([1, 2, 3]),
        "outside the support .* of Categorical.*Categories count from 0; subtract 1",
    ),
    "other totals": (
        following(dist.Multinomial(5, torch.ones(3))),
        torch.tensor([[1, 2, 2], [1, 1, 1]]),
        "of Multinomial .50 %.*sums must be total_count = 5",
    ),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", DATA)
def test_bad_data(kind: str, entry: str) -> None:
    model, x, message = DATA[kind]
    with pytest.raises((TypeError, ValueError), match=f"(?s){message}"):
        ENTRIES[entry](Program(model), x)


# ---- programs and settings of fits ---------------------------------------------------------------


class Normed(nn.Module):
    """A net with batch norm in the mean of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x: Tensor | None = None) -> None:
        loc = self.norm(x.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def improper(x: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def with_an_old_guide() -> None:
    guide = AutoNormal(located)
    quietly(Program(located, guide), X)
    evidence.ImportanceSampling(10)(Program(located, guide), torch.zeros(7))


def without_gradients() -> None:
    with torch.no_grad():
        quietly(Program(located), X)


def labelled(vae: Callable[..., Program], *labels: int) -> Any:
    program = vae(4, num_latents=2, num_classes=3)
    return quietly(program, (torch.ones(3, 4), torch.tensor(labels)))


def of_labels() -> Any:
    return evidence.Exact()(MADE(4, num_classes=3), torch.ones(3, 4), torch.tensor([1, 2, 3]))


other = nn.Linear(2, 2)
CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "batch norm of one datum": (
        lambda: quietly(Program(Normed()), X.repeat(2)[:5], batch_size=2),
        "batch_size is 2, which leaves one of the 5 data .*too few for batch norm.*Choose",
    ),
    "improper prior": (
        lambda: evidence.auto(Program(improper), X),
        "ImproperUniform does not support sampling. Give that latent a proper prior",
    ),
    "autoguide of other data": (
        with_an_old_guide,
        "the guide opens the plate 'data' for 4 data, but the model for 7. An autoguide",
    ),
    "no gradients": (without_gradients, "gradients are off, by torch.no_grad"),
    "labels of a guide": (
        partial(labelled, SemiSupervisedVAE, 1, 2, 3),
        "labels go from 1 to 3; expected whole numbers in -1, ..., 2",
    ),
    "labels of a conditional guide": (
        partial(labelled, ConditionalVAE, 1, 2, 3),
        "labels go from 1 to 3; expected whole numbers in 0, ..., 2",
    ),
    "labels of a family": (of_labels, "labels go from 1 to 3; expected whole numbers in 0, ..., 2"),
    "optimiser of others": (
        lambda: quietly(
            Program(located), X, optimizer=lambda _: torch.optim.SGD(other.parameters())
        ),
        "optimiser of other parameters than it was given.*optimizer=lambda parameters",
    ),
    "a schedule that is none": (
        lambda: quietly(Program(located), X, schedule=lambda _: 3),
        "schedule made a int; expected a learning-rate scheduler",
    ),
    "unknown device": (
        lambda: quietly(Program(located), X, device="gpu"),
        "device is 'gpu', which is not to be had here.*name one of this machine",
    ),
    "absent device": (
        lambda: quietly(Program(located), X, device="cuda:7"),
        "device is 'cuda:7', which is not to be had here",
    ),
    "an estimator of a program": (
        lambda: evidence.ImportanceSampling(Program(located), X),
        "num_particles is a Program; expected a whole number; make the estimator first",
    ),
    "names that are numbers": (
        lambda: compare({1: evidence.PriorSampling(10)(Program(located), X)}),
        "candidates is .*; expected a mapping, {'name': ...}",
    ),
    "a negative seed": (
        lambda: posterior(Program(located), X, seed=-1),
        "seed is -1; expected a whole number from 0 to 4294967295",
    ),
    "model that is no function": (lambda: Program(3), "model is a int; expected a callable"),
    "site that is no name": (lambda: Program(located, site=3), "site is a int; expected text"),
    "one shared name": (
        lambda: Program(located, shared="labels"),
        "shared is 'labels'; expected a collection, each text, e.g. ..labels..",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_bad_calls(name: str) -> None:
    call, message = CALLS[name]
    with pytest.raises((TypeError, ValueError), match=f"(?s){message}"):
        call()


# ---- files ---------------------------------------------------------------------------------------

PATHS: dict[str, tuple[Any, str]] = {
    "number": (3, "expected text(,| or) a path"),
    "nothing": (None, "expected text(,| or) a path"),
    "empty": ("", "'' is no regular file"),
    "folder": (".", "'.' is no regular file"),
    "zero byte": ("a\0b", "'a\\\\x00b' is no path: it holds a zero byte"),
    "no folder": ("absent/file.pt", "the folder .*absent of 'file.pt' does not exist"),
    "device": ("/dev/full", "'/dev/full' is no regular file"),
}
WRITERS: dict[str, Callable[[Any], Any]] = {
    "Program.save": lambda path: Program(located).initialise(X).save(path),
    "checkpoint of fit": lambda path: quietly(Program(located), X, checkpoint=path),
    "checkpoint of AIS": lambda path: evidence.AIS(2, 2, num_pilots=8, checkpoint=path)(
        Program(located), X
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", PATHS)
def test_bad_paths(kind: str, writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, message = PATHS[kind]
    if path is None and writer != "Program.save":
        pytest.skip("no checkpoint is none")
    with pytest.raises((TypeError, ValueError), match=message):
        WRITERS[writer](path)
    assert not list(tmp_path.iterdir())


# ---- what masks take out is no data --------------------------------------------------------------

LAWS: dict[str, tuple[Callable[[Tensor], Any], list[float]]] = {
    "normal": (lambda t: dist.Normal(t, 1.0), [0.1, -0.2]),
    "gamma": (lambda t: dist.Gamma(t, 2.0), [0.1, 1.2]),
    "beta": (lambda t: dist.Beta(t, 2.0), [0.1, 0.2]),
    "interval": (lambda t: dist.Uniform(0 * t + 2, t + 5), [2.5, 5.5]),
    "bits": (lambda t: dist.Bernoulli(t / 3), [1.0, 0.0]),
    "counts": (dist.Poisson, [1.0, 3.0]),
    "levels": (lambda t: dist.Binomial(4, t / 3), [1.0, 3.0]),
}
ENTRIES_SEEN = torch.tensor([[True, True], [True, False], [False, False]])
ROWS_SEEN = torch.tensor([True, False, False])


def masked(law: Callable[[Tensor], Any], place: str) -> Callable[[Tensor], None]:
    """A model of vectors of which a mask takes out entries, or whole ones."""

    def model(x: Tensor) -> None:
        fn = law(pyro.param("t", torch.tensor(1.0)).expand(3, 2))
        if place == "inside":
            fn = fn.mask(ENTRIES_SEEN).to_event(1)
        else:
            fn = fn.to_event(1) if place == "handler" else fn.to_event(1).mask(ROWS_SEEN)
        with (
            pyro.plate("data", 3),
            pyro.poutine.mask(mask=ROWS_SEEN if place == "handler" else True),
        ):
            pyro.sample("x", fn, obs=x)

    return model


@pytest.mark.parametrize("pad", [torch.nan, -1.0, 1e9, torch.inf])
@pytest.mark.parametrize("place", ["inside", "outside", "handler"])
@pytest.mark.parametrize("kind", LAWS)
def test_masked_data_may_be_anything(kind: str, place: str, pad: float) -> None:
    """Whatever stands under a mask, density and gradient are those of what is seen."""
    law, values = LAWS[kind]
    right = torch.tensor(values).expand(3, 2)
    seen = ENTRIES_SEEN if place == "inside" else ROWS_SEEN[:, None].expand(3, 2)
    program = Program(masked(law, place))
    found = program.bind(torch.where(seen, right, pad)).log_joint({}).total
    (slope,) = torch.autograd.grad(found.sum(), list(program.parameters()))
    t = torch.tensor(1.0, requires_grad=True)
    truth = (law(t.expand(3, 2)).log_prob(right) * seen).sum(-1)
    (true_slope,) = torch.autograd.grad(truth.sum(), t)
    assert torch.allclose(found.reshape(3), truth, atol=1e-6)
    assert torch.allclose(slope, true_slope, atol=1e-6)
    assert evidence.Exact()(program, torch.where(seen, right, pad)).num_dims == seen.sum()


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_masked_data_are_fitted(compile: bool) -> None:
    """The location of normal data with missing entries is the mean of those that are there."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=~x.isnan()):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    program, x = Program(model), torch.tensor([1.0, torch.nan, 3.0, torch.nan])
    sgd = partial(torch.optim.SGD, lr=0.5)
    fit(program, x, steps=60, optimizer=sgd, progress=False, compile=compile)
    assert program.get_parameter("loc").item() == pytest.approx(2.0, abs=1e-3)


def test_nan_in_covariates_are_named() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with pytest.raises(ValueError, match="argument 'x' of the program.*has 1 NaN"):
        Program(model).initialise(x=torch.tensor([0.0, torch.nan]), y=torch.zeros(2))
