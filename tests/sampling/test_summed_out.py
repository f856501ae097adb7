"""Latents that are summed out follow their posterior beside draws of the others."""

import itertools
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from ppl_dgm import Posterior, Program, posterior, tasks, to_arviz

X = torch.tensor([-0.5, 1.5, 2.0, -1.0, 0.3])
SUMMED: Any = {"enumerate": "parallel"}
STAY = torch.tensor([[0.8, 0.2], [0.3, 0.7]])


def switch(x: Tensor) -> None:
    """A switch that all data share moves their mean by ten."""
    on = pyro.sample("on", dist.Bernoulli(0.5), infer=SUMMED)
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc + 10 * on, 1.0), obs=x)


def mixture(x: Tensor, seen: Tensor | bool = True) -> None:
    loc = pyro.sample("loc", dist.Normal(1.0, 0.5))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.4), infer=SUMMED)
        pyro.sample("x", dist.Normal(loc * (2 * k - 1), 1.0).mask(seen), obs=x)


def one_hot(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(1.0, 0.5))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.OneHotCategorical(torch.tensor([0.6, 0.4])), infer=SUMMED)
        pyro.sample("x", dist.Normal(loc * (k[..., 1] - k[..., 0]), 1.0), obs=x)


def one_by_one(x: Tensor) -> None:
    """Matrices keep its latent from broadcasting over particles."""
    loc = pyro.sample("loc", dist.Normal(1.0, 0.5))
    k = pyro.sample("k", dist.Categorical(torch.tensor([0.6, 0.4])), infer=SUMMED)
    scaled = torch.linalg.matrix_exp(torch.diag(torch.stack([loc.reshape(())] * 2)))[0, 0]
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(scaled.log() * (2.0 * k - 1), 1.0), obs=x)


def chain(x: Tensor) -> None:
    loc, k = pyro.sample("loc", dist.Normal(1.0, 0.5)), torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        k = pyro.sample(f"k{t}", dist.Categorical(STAY[k]), infer=SUMMED)
        pyro.sample(f"x{t}", dist.Normal(torch.where(k == 1, loc, -loc), 1.0), obs=x[t])


def nested(x: Tensor) -> None:
    """A drawn latent between one that all data share and one of each."""
    k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])), infer=SUMMED)
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0])[k], 1.0))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(STAY[k]), infer=SUMMED)
        pyro.sample("x", dist.Normal(loc + 3.0 * c, 1.0), obs=x)


def drawn(model, num_draws: int, *args: Tensor, loc: float = 1.3) -> dict[str, Tensor]:
    return Posterior(Program(model).bind(*args), {"loc": torch.full((num_draws,), loc)}).predict()


def odds(x: float) -> float:
    one, other = 0.4 * norm.pdf(x, 1.3), 0.6 * norm.pdf(x, -1.3)
    return float(one / (one + other))


def check(found: Tensor, truth, num_draws: int) -> None:
    """Shares of draws are probabilities, to five standard errors."""
    truth = torch.as_tensor(truth, dtype=torch.float64)
    allowed = 5 * (truth * (1 - truth) / num_draws).sqrt() + 2 / num_draws
    assert bool(((found.double().mean(0) - truth).abs() < allowed).all())


def test_predictions_follow_the_posterior_of_what_is_summed_out():
    x = X.abs() + 9
    truth = 10 + float((x - 10).sum()) / (len(x) + 1)
    draws = posterior(Program(switch), x, num_particles=20_000)
    new = draws.predict()
    assert bool((new["on"] == 1).all())
    assert abs(float(new["x"].mean()) - truth) < 5 * math.sqrt(1.5 / new["x"].shape[0])
    tree = to_arviz(draws)
    assert float(tree.posterior["on"].mean()) == 1  # type: ignore[attr-defined]


def test_components_follow_their_posterior():
    check(drawn(mixture, 4000, X)["k"], [odds(x) for x in X.tolist()], 4000)


def test_masked_data_leave_the_prior():
    x, seen = torch.where(X < 0, torch.nan, X), X > 0
    truth = [odds(v) if v > 0 else 0.4 for v in X.tolist()]
    check(drawn(mixture, 4000, x, seen)["k"], truth, 4000)


def test_vectors_follow_their_posterior():
    check(drawn(one_hot, 4000, X)["k"][..., 1], [odds(x) for x in X.tolist()], 4000)


def test_single_runs_give_the_same():
    ratio = math.log(0.4 / 0.6) + float((2 * 1.3 * X).sum())
    assert Program(one_by_one).inspect(X).model_runs != "plate"
    check(drawn(one_by_one, 400, X)["k"], 1 / (1 + math.exp(-ratio)), 400)


def test_a_hidden_chain_is_smoothed():
    weights = np.zeros(5)
    total = 0.0
    for states in itertools.product([0, 1], repeat=5):
        steps = zip((0, *states), states, X.tolist(), strict=False)
        weight = math.prod(float(STAY[a, b]) * norm.pdf(x, 1.3 * (2 * b - 1)) for a, b, x in steps)
        weights, total = weights + weight * np.array(states), total + weight
    found = drawn(chain, 4000, X)
    check(torch.stack([found[f"k{t}"] for t in range(5)], -1), weights / total, 4000)


def test_a_prior_that_depends_on_it_counts():
    x, move = X.numpy(), STAY.numpy()
    likelihood = np.stack([norm.pdf(x, 0.4), norm.pdf(x, 3.4)], 1)
    shared = np.array(
        [norm.pdf(0.4, m) * np.prod(likelihood @ move[i]) for i, m in ((0, -1), (1, 1))]
    )
    shared = shared / shared.sum()
    each = [likelihood[:, 1] * move[i, 1] / (likelihood @ move[i]) for i in range(2)]
    found = drawn(nested, 4000, X, loc=0.4)
    check(found["k"], shared[1], 4000)
    check(found["c"], shared[0] * each[0] + shared[1] * each[1], 4000)


@pytest.mark.parametrize("model", [mixture, one_hot, one_by_one])
@pytest.mark.parametrize("num_draws", [1, 300])
def test_one_datum_or_draw_keeps_its_plates(model, num_draws):
    found = drawn(model, num_draws, X[:1])
    assert found["x"].shape == (num_draws, 1)
    own = {mixture: (1,), one_hot: (1, 2), one_by_one: ()}[model]
    assert found["k"].shape == (num_draws, *own)


def test_reconstructions_are_at_the_data():
    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer=SUMMED)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 100 * k, 1.0), obs=x)

    x = torch.tensor([100.0, 0.0])
    found = tasks.reconstruct(Program(model), x, num_draws=50)
    assert bool(((found - x).abs() < 10).all())
    with pytest.raises(ValueError, match=r"\['k'\] are discrete and summed out"):
        tasks.interpolate(Program(model), x, x)
