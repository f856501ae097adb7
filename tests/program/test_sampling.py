"""Ancestral draws and the kinds of densities."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_dgm import Program

X = torch.tensor([[0.3, 1.0], [-1.2, 0.5], [2.0, 0.1]])


def exact(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.Normal(torch.tensor([1.0, -2.0]), 0.5).to_event(1), obs=x)


def latent(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(3.0, 1.0))
        pyro.sample("x", dist.Normal(torch.stack([z, -z], -1), 0.5).to_event(1), obs=x)


def shared(x: Tensor | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4 if x is None else len(x)):
        pyro.sample("x", dist.Normal(mu, 0.1), obs=x)


def discrete(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        k = pyro.sample(
            "k", dist.Categorical(torch.tensor([0.25, 0.75])), infer={"enumerate": "parallel"}
        )
        pyro.sample("x", dist.Normal(torch.tensor([-5.0, 5.0])[k], 0.1), obs=x)


def implicit(noise: Tensor | None = None) -> None:
    with pyro.plate("data", 1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("x", z * 2, event_dim=1)


def unnormalised() -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("energy", -(x**4).sum(-1))


def unnormalised_data(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        value = pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        pyro.factor("energy", -(value**4))


def no_plate(x: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z * torch.ones(3), 0.1).to_event(1), obs=x)


def labelled(x: Tensor | None = None, y: Tensor | None = None) -> None:
    """A class, seen or not, and data around its centre."""
    size = len(x) if x is not None else len(y) if y is not None else 1
    with pyro.plate("data", size):
        y = pyro.sample("y", dist.Categorical(torch.ones(3) / 3), obs=y)
        pyro.sample("x", dist.Normal(10.0 * y, 0.1), obs=x)


def covariates(x: Tensor | None, c: Tensor) -> None:
    with pyro.plate("data", len(c)):
        pyro.sample("x", dist.Normal(c, 0.1), obs=x)


def unbroadcast(x: Tensor | None = None) -> None:
    """Runs by vmap alone."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    mean = torch.ones(3, 2) @ w
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(mean, 0.1), obs=x)


# ---- shapes and laws -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (exact, (7, 2)),
        (latent, (7, 2)),
        (shared, (7, 4)),
        (discrete, (7,)),
        (implicit, (7, 2)),
        (no_plate, (7, 3)),
        (labelled, (7,)),
        (unbroadcast, (7, 3)),
    ],
)
def test_shapes(model: Callable, shape: tuple) -> None:
    draws = Program(model).sample(7)
    assert draws.shape == shape
    assert not draws.requires_grad


def test_one_draw_keeps_its_dimension() -> None:
    assert Program(exact).sample(1).shape == (1, 2)


@pytest.mark.parametrize("data", [(), (X,)])
def test_draws_are_the_same_before_and_after_data(data: tuple) -> None:
    program = Program(latent)
    if data:
        program.initialise(*data)
    draws = program.sample(4000)
    assert torch.allclose(draws.mean(0), torch.tensor([3.0, -3.0]), atol=4.5 * (1.25 / 4000) ** 0.5)
    covariance = torch.tensor([[1.25, -1.0], [-1.0, 1.25]])
    assert torch.allclose(draws.T.cov(), covariance, atol=0.15)


def test_data_given_to_sample_are_not_copied_out() -> None:
    program = Program(shared).initialise(torch.zeros(4))
    draws = program.sample(2000, torch.full((4,), 99.0))
    assert draws.shape == (2000, 4)
    assert abs(draws.mean()) < 0.2


def test_global_latents_are_shared_within_a_draw() -> None:
    draws = Program(shared).sample(3000)
    assert draws.std(1).mean() < 0.2  # within a data set: the noise
    assert abs(draws.mean(1).std() - 1) < 0.06  # between data sets: the prior


def test_enumerated_latents_are_drawn() -> None:
    draws = Program(discrete).sample(4000)
    assert abs((draws > 0).float().mean() - 0.75) < 4.5 * (0.1875 / 4000) ** 0.5
    sites = Program(discrete).sample_sites(50)
    assert torch.equal(sites["x"] > 0, sites["k"] == 1)


def test_all_sites_jointly() -> None:
    sites = Program(latent).sample_sites(6)
    assert {name: tuple(value.shape) for name, value in sites.items()} == {
        "z": (6, 1),
        "x": (6, 1, 2),
    }
    assert bool(((sites["x"][..., 0] - sites["z"]).abs() < 3).all())


def test_labels_condition_the_draws() -> None:
    program = Program(labelled).initialise(torch.tensor([0.0, 10.0]), torch.tensor([0, 1]))
    sites = program.sample_sites(300, None, torch.tensor([2, 0]))
    assert sites["x"].shape == (300, 2)
    assert bool(((sites["x"] - 10.0 * sites["y"]).abs() < 1).all())


def test_covariates_are_handed_on() -> None:
    c = torch.tensor([1.0, 5.0, 9.0])
    program = Program(covariates).initialise(c + 0.1, c)
    draws = program.sample(500, None, c)
    assert draws.shape == (500, 3)
    assert torch.allclose(draws.mean(0), c, atol=0.03)
    assert program.sample(5, None, c[:2]).shape == (5, 2)


def test_vmapped_programs() -> None:
    program = Program(unbroadcast)
    draws = program.sample(3000)
    assert program.structure.model_runs == "vmap"
    assert abs(draws.mean()) < 4.5 * (2 / 3000) ** 0.5
    assert abs(draws.mean(1).var() / 2 - 1) < 0.15


def test_seeds_repeat_draws() -> None:
    program = Program(latent)
    torch.manual_seed(4)
    first = program.sample(5)
    torch.manual_seed(4)
    assert torch.equal(program.sample(5), first)


def test_double_programs_draw_doubles() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor | None = None) -> None:
            with pyro.plate("data", 1 if x is None else len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=x)

    assert Program(Model()).double().sample(3).dtype == torch.float64


def test_draws_are_in_evaluation_mode() -> None:
    """Dropout is off, batch norm's averages are used and stay as they are."""
    norm = nn.BatchNorm1d(2)
    net = nn.Sequential(norm, nn.Dropout(0.5))

    def model(x: Tensor | None = None) -> None:
        pyro.module("net", net)
        with pyro.plate("data", 1 if x is None else len(x)):
            mean = net(torch.ones(1, 2))
            pyro.sample("x", dist.Normal(mean, 1e-3).to_event(1), obs=x)

    program = Program(model)
    draws = program.sample(200)
    assert (draws - 1).abs().max() < 0.01
    assert norm.num_batches_tracked == 0
    assert norm.training


def test_another_name_for_the_data() -> None:
    def model(y: Tensor | None = None) -> None:
        with pyro.plate("rows", 1 if y is None else len(y)):
            pyro.sample("y", dist.Normal(2.0, 0.1), obs=y)

    program = Program(model, site="y", plate="rows")
    assert program.sample(4).shape == (4,)
    assert program.initialise(torch.ones(3)).structure.target == "datum"
    assert Program(model, plate="rows").initialise(torch.ones(3)).sample(4).shape == (
        4,
    )  # the only observed site


# ---- kinds of densities --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (exact, "exact"),
        (latent, "latent"),
        (shared, "latent"),
        (discrete, "exact"),
        (implicit, "implicit"),
        (unnormalised, "unnormalised"),
        (unnormalised_data, "unnormalised"),
    ],
)
def test_density(model: Callable, kind: str) -> None:
    assert Program(model).density == kind


@pytest.mark.parametrize("model", [unnormalised, unnormalised_data])
def test_unnormalised_programs_refuse_ancestral_draws(model: Callable) -> None:
    with pytest.raises(ValueError, match="factors \\['energy'\\].*Markov chain"):
        Program(model).sample(3)


def test_density_does_not_depend_on_data() -> None:
    for model, data in (
        (exact, X),
        (latent, X),
        (shared, torch.ones(4)),
        (discrete, torch.ones(3)),
    ):
        assert Program(model).density == Program(model).initialise(data).density
