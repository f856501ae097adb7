"""How many particles run at once.

They are in an outer plate where the program broadcasts, and in vmap where it does not.
"""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from ppl_dgm import Program, log_weights
from ppl_dgm.program.pyro_patches import unvalidated
from ppl_dgm.program.vmap_patches import vmap_runs
from ppl_dgm.sampling.memory import allocated_bytes

X = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
Y = torch.randn(9, generator=torch.Generator().manual_seed(2))


def regression(predict: Callable) -> Callable:
    """Linear regression, written by `predict(x, w)`."""

    def model(y: Tensor | None, x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(predict(x, w), 0.5), obs=y)

    return model


def regression_truth(w: Tensor) -> Tensor:
    """log p(y | w) of every particle, one matrix product."""
    return torch.distributions.Normal(w @ X.T, 0.5).log_prob(Y).sum(-1)


class BayesianNet(PyroModule):
    """A net whose weights are sampled, with `nn.Linear`'s own forward.

    That does not broadcast over weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 2)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    def forward(self, y: Tensor | None, x: Tensor) -> None:
        hidden = self.linear(x).tanh().sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(hidden, 0.5), obs=y)


def runs(program: Program, *data: Tensor) -> tuple[str, str]:
    structure = program.initialise(*data).structure
    return structure.guide_runs, structure.model_runs


def assert_one_by_one(program: Program, *data: Tensor) -> None:
    """Particles together have the densities that they have alone under plain Pyro."""
    bound = program.bind(*data)
    values = bound.draw(5).values
    together = bound.log_joint(values).total
    for i in range(5):
        held = poutine.condition(
            program.model, data={name: value[i] for name, value in values.items()}
        )
        alone = poutine.trace(held).get_trace(*data)
        alone.compute_log_prob()
        total = sum(s["log_prob"].sum() for s in alone.nodes.values() if s["type"] == "sample")
        assert torch.allclose(together[i].sum(), total, rtol=1e-4, atol=1e-4)


def test_broadcasting_programs_run_in_a_plate() -> None:
    program = Program(regression(lambda x, w: (x * w).sum(-1)))
    assert runs(program, Y, X) == ("plate", "plate")
    values = program.bind(Y, X).draw(6).values
    assert torch.allclose(
        program.bind(Y, X).log_joint(values).likelihood, regression_truth(values["w"]), atol=1e-4
    )


def test_programs_that_do_not_broadcast_are_mapped() -> None:
    program = Program(regression(lambda x, w: x @ w))
    assert runs(program, Y, X)[1] == "vmap"
    values = program.bind(Y, X).draw(6).values
    assert torch.allclose(
        program.bind(Y, X).log_joint(values).likelihood, regression_truth(values["w"]), atol=1e-4
    )


@pytest.mark.parametrize("num_particles", [1, 3, 9])
def test_coinciding_shapes_do_not_deceive(num_particles: int) -> None:
    """`x @ w` with as many features as particles runs without an error in a plate, and is wrong.

    The proof sees it.
    """
    model = regression(
        lambda x, w: (x @ w).reshape(-1)[: len(x)] if w.dim() == 1 else (x @ w[:, 0].mT).mean(-1)
    )
    program = Program(model)
    assert runs(program, Y, X)[1] == "vmap"
    values = program.bind(Y, X).draw(num_particles).values
    assert torch.allclose(
        program.bind(Y, X).log_joint(values).likelihood, regression_truth(values["w"]), atol=1e-4
    )


def test_a_reduction_over_all_dimensions_is_mapped() -> None:
    """`w.mean()` mixes particles silently: no shape is wrong."""

    def model(y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 9):
            pyro.sample("x", dist.Normal(w.mean(), 1.0), obs=y)

    program = Program(model)
    assert runs(program, Y)[1] == "vmap"
    values = program.bind(Y).draw(4).values
    truth = torch.distributions.Normal(values["w"].mean(-1, keepdim=True), 1.0).log_prob(Y).sum(-1)
    assert torch.allclose(program.bind(Y).log_joint(values).likelihood, truth, atol=1e-4)


def test_a_guide_may_be_mapped_where_the_model_is_not() -> None:
    def guide(y: Tensor | None, x: Tensor) -> None:
        noise = pyro.sample(
            "noise", dist.Normal(0.0, 1.0).expand([3]).to_event(1), infer={"is_auxiliary": True}
        )
        pyro.sample(
            "w", dist.Delta(2 * noise.reshape(3), log_density=-3 * math.log(2), event_dim=1)
        )

    program = Program(regression(lambda x, w: (x * w).sum(-1)), guide)
    assert runs(program, Y, X)[0] == "vmap"
    draw = program.bind(Y, X).draw(4)
    truth = dist.Normal(0.0, 2.0).log_prob(draw.values["w"]).sum(-1)
    assert torch.allclose(draw.log_prob, truth, atol=1e-5)


def test_bayesian_net_with_sampled_weights() -> None:
    program = Program(BayesianNet())
    assert runs(program, Y, X)[1] == "vmap"
    values = program.bind(Y, X).draw(7).values
    assert values["linear.weight"].shape == (7, 2, 3)
    hidden = (
        torch.einsum("nd,phd->pnh", X, values["linear.weight"]) + values["linear.bias"][:, None]
    )
    truth = torch.distributions.Normal(hidden.tanh().sum(-1), 0.5).log_prob(Y).sum(-1)
    joint = program.bind(Y, X).log_joint(values)
    assert torch.allclose(joint.likelihood, truth, atol=1e-4)
    prior = sum(dist.Normal(0.0, 1.0).log_prob(v).flatten(1).sum(-1) for v in values.values())
    assert torch.allclose(joint.prior, prior, atol=1e-4)


def constrained(latent: Callable, mean: Callable) -> Callable:
    """A global latent and a likelihood that does not broadcast over it."""

    def model(y: Tensor | None = None) -> None:
        z = pyro.sample("z", latent())
        loc = mean(z)
        with pyro.plate("data", 9):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=y)

    return model


LATENTS = {
    "Dirichlet": (
        lambda: dist.Dirichlet(torch.tensor([0.5, 2.0, 3.0])),
        lambda z: torch.tensor([1.0, 2.0, 3.0]) @ z,
    ),
    "Beta": (lambda: dist.Beta(2.0, 3.0), lambda z: z.reshape(()).expand(9)),
    "LKJCholesky": (lambda: dist.LKJCholesky(3, 1.5), lambda z: (z @ z.t())[0, 1].reshape(())),
    "Gamma": (lambda: dist.Gamma(2.0, 1.0), lambda z: z.reshape(()).expand(9)),
    "Categorical": (
        lambda: dist.Categorical(torch.tensor([0.2, 0.3, 0.5])),
        lambda z: torch.arange(3.0)[z].reshape(()),
    ),
    "HalfCauchy": (lambda: dist.HalfCauchy(1.0), lambda z: z.reshape(()).expand(9)),
    "MultivariateNormal": (
        lambda: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        lambda z: torch.ones(2) @ z,
    ),
}


@pytest.mark.parametrize("name", LATENTS)
def test_constrained_latents_under_vmap(name: str) -> None:
    program = Program(constrained(*LATENTS[name]))
    assert runs(program, Y)[1] == "vmap"
    assert_one_by_one(program, Y)
    assert len(log_weights(program, Y, num_particles=50, seed=0).unique()) > 1


def test_draws_under_vmap_are_independent_and_follow_the_prior() -> None:
    program = Program(constrained(*LATENTS["Dirichlet"]))
    program.initialise(Y)
    num = 4000
    draws = program.bind(Y).draw_prior(num).values["z"]
    concentration = torch.tensor([0.5, 2.0, 3.0])
    truth = torch.distributions.Dirichlet(concentration)
    error = 5 * (truth.variance / num).sqrt()
    assert bool(((draws.mean(0) - truth.mean).abs() < error).all())
    assert bool((draws.var(0) / truth.variance - 1).abs().max() < 0.15)
    assert torch.allclose(draws.sum(-1), torch.ones(num), atol=1e-5)
    assert draws.unique(dim=0).shape[0] == num


def test_dirichlet_under_vmap_has_the_right_gradient() -> None:
    r"""E over draws of d/da of a z[0] equals the derivative of the mean.

    That is $\mathrm{d} (a / (a + b)) / \mathrm{d} a$.
    """
    num = 20000
    concentration = torch.tensor([1.5, 2.5], dtype=torch.float64, requires_grad=True)
    draws = vmap_runs(lambda _: dist.Dirichlet(concentration).rsample(), num, None)
    (gradient,) = torch.autograd.grad(draws[:, 0].mean(), concentration)
    total = concentration.detach().sum()
    truth = torch.stack([concentration[1], -concentration[0]]).detach() / total**2
    assert torch.allclose(gradient, truth, rtol=0.05)


DRAWS = {
    "Gamma": lambda: dist.Gamma(2.0, 1.0),
    "StudentT": lambda: dist.StudentT(7.0, 0.0, 1.0),
    "NegativeBinomial": lambda: dist.NegativeBinomial(3.0, torch.tensor(0.3)),
    "Binomial": lambda: dist.Binomial(5, torch.tensor(0.3)),
    "BetaBinomial": lambda: dist.BetaBinomial(torch.tensor(1.0), torch.tensor(2.0), 5),
    "Multinomial": lambda: dist.Multinomial(4, torch.tensor([0.3, 0.7])),
    "DirichletMultinomial": lambda: dist.DirichletMultinomial(torch.tensor([1.0, 2.0]), 5),
    "Poisson": lambda: dist.Poisson(3.0),
    "Exponential": lambda: dist.Exponential(2.0),
    "Laplace": lambda: dist.Laplace(1.0, 2.0),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_under_vmap_have_the_right_mean(name: str) -> None:
    fn, num = DRAWS[name](), 3000
    with unvalidated():
        draws = vmap_runs(lambda _: DRAWS[name]().sample(), num, None)
    assert draws.shape == (num, *fn.shape())
    assert bool(((draws.mean(0) - fn.mean).abs() < 4.5 * (fn.variance / num).sqrt()).all())


def test_small_concentrations_stay_on_the_simplex_under_vmap() -> None:
    draws = vmap_runs(lambda _: dist.Dirichlet(torch.full((3,), 1e-3)).rsample(), 500, None)
    assert bool(draws.isfinite().all())
    assert torch.allclose(draws.sum(-1), torch.ones(500), atol=1e-5)


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_censored_normals_run_at_once_under_vmap() -> None:
    """vmap takes torch's log_ndtr of one run after the other: tracing 1600 took minutes."""
    x = torch.linspace(-38.0, 8.0, 200).double().requires_grad_()
    mapped = vmap_runs(lambda given: torch.special.log_ndtr(given["x"]), len(x), None, {"x": x})
    plain = torch.special.log_ndtr(x)
    slopes = [torch.autograd.grad(value.sum(), x)[0] for value in (mapped, plain)]
    assert torch.allclose(mapped, plain, rtol=1e-9, atol=1e-15)
    assert torch.allclose(*slopes, rtol=1e-9, atol=1e-15)


def test_vmapped_densities_are_differentiable() -> None:
    program = Program(regression(lambda x, w: x @ w))
    bound = program.bind(Y, X)
    w = torch.randn(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(bound.log_joint({"w": w}).total.sum(), w)
    residual = (Y - w @ X.T) / 0.25
    assert torch.allclose(gradient, residual @ X - w, atol=1e-3)


def test_discrete_draws_under_vmap_differ() -> None:
    program = Program(constrained(*LATENTS["Categorical"]))
    draws = program.bind(Y).draw(3000).values["z"]
    frequencies = draws.bincount(minlength=3) / 3000
    expected = torch.tensor([0.2, 0.3, 0.5])
    assert bool(
        ((frequencies - expected).abs() < 5 * (expected * (1 - expected) / 3000).sqrt()).all()
    )


def test_the_way_of_running_does_not_change_the_distribution() -> None:
    """log Z of the same regression by importance sampling, both ways, against the integral."""
    covariance = X.double() @ X.double().T + 0.25 * torch.eye(9, dtype=torch.float64)
    truth = torch.distributions.MultivariateNormal(
        torch.zeros(9, dtype=torch.float64), covariance
    ).log_prob(Y.double())
    precision = torch.eye(3) + X.T @ X / 0.25
    mean = torch.linalg.solve(precision, X.T @ Y / 0.25)

    def guide(y: Tensor | None, x: Tensor) -> None:
        pyro.sample("w", dist.MultivariateNormal(mean, precision_matrix=precision / 1.2))

    for predict in (lambda x, w: x @ w, lambda x, w: (x * w).sum(-1)):
        weights = log_weights(
            Program(regression(predict), guide), Y, X, num_particles=4000, seed=3
        ).double()
        ratio = (weights - truth).exp()
        assert abs(ratio.mean().item() - 1) < 4 * (ratio.std() / 4000**0.5).item()


def branching(y: Tensor | None = None) -> None:
    """Reads a latent on the host, so that particles can neither share a plate nor be mapped."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    loc = 1.0 if z.item() > 0 else -1.0
    with pyro.plate("data", 9):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=y)


def test_a_program_that_cannot_be_vectorised_is_run_one_by_one_and_says_so(caplog) -> None:
    program = Program(branching)
    with caplog.at_level("WARNING", "ppl_dgm"):
        assert runs(program, Y) == ("loop", "loop")
        program.initialise(Y)
    (record,) = caplog.records
    assert "one by one" in record.message
    assert "\n" not in record.message
    assert_one_by_one(program, Y)
    truth = torch.stack([dist.Normal(m, 1.0).log_prob(Y).sum() for m in (1.0, -1.0)])
    expected = truth.logsumexp(0) - math.log(2)
    weights = log_weights(program, Y, num_particles=400, seed=0)
    error = (weights - expected).exp().std() / 400**0.5
    assert abs((weights - expected).exp().mean() - 1) < 4 * error


def test_a_random_density_is_told_apart() -> None:
    def model(y: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 9):
            pyro.sample("x", dist.Normal(z + torch.randn(()), 1.0), obs=y)

    with pytest.raises(ValueError, match="random itself.*pyro.sample"):
        Program(model).initialise(Y)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_latent_that_gains_a_dimension_among_particles_is_run_by_vmap(dim):
    """Under a particle plate values would be `[particles, particles, data]`, and sums hide it."""

    def model(x):
        with pyro.plate("data", len(x)):
            loc = pyro.sample("a", dist.Normal(0.0, 1.0))
            loc = loc.unsqueeze(dim) if loc.dim() == 2 else loc
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    assert Program(model).inspect(torch.randn(6)).model_runs == "vmap"


def test_one_particle_trains_a_decoder_with_batch_normalisation() -> None:
    decoder = torch.nn.Sequential(
        torch.nn.Linear(2, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3)
    ).double()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    x = torch.randn(8, 3, dtype=torch.float64)
    bound = Program(Model()).bind(x)
    z, before = torch.randn(1, 8, 2, dtype=torch.float64), decoder[1].running_mean.clone()
    joint = bound.log_joint({"z": z})
    moved = decoder[1].running_mean.clone()
    expected = dist.Normal(decoder(z[0]), 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(joint.likelihood, expected.unsqueeze(0))
    assert not torch.equal(moved, before)


def test_shapes_do_not_grow_from_site_to_site() -> None:
    """Indexing by a state of all particles would square the shape of each next state."""
    sizes = []

    def model(y: Tensor) -> None:
        table = pyro.sample("table", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        with pyro.plate("rows", len(y), dim=-2):
            x = torch.tensor(0)
            for t in range(6):
                x = pyro.sample(f"x_{t}", dist.Categorical(table[x]))
                sizes.append(x.numel())
                with pyro.plate(f"columns_{t}", 2, dim=-1):
                    pyro.sample(f"y_{t}", dist.Normal(x.to(y), 1.0), obs=y)

    program = Program(model)
    program.bind(torch.zeros(3, 2))
    assert max(sizes) <= 3 * 32
    assert program.structure.model_runs != "plate"


def test_prior_draws_take_memory_in_proportion_to_particles():
    """Of this program, which broadcasts particles against particles inside a plate of them."""
    rows = torch.randn(50, 3)

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            mean = (rows @ w.unsqueeze(-1)).squeeze(-1) + a
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    bound = Program(model).bind(torch.zeros(50))
    few, many = (allocated_bytes(lambda n=number: bound.draw(n)) for number in (50, 1000))
    assert many < 40 * few
