"""Gradients of programs with scales and masks, against that of the bound.

The bound is summed over all latents.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.objectives import ELBO, IWELBO, REINFORCE, RLOO, BetaTC, FreeBits

X = torch.tensor([0.3, -0.5, 1.0]).double()
PARALLEL = {"enumerate": "parallel"}


def assert_gradient(
    program: Program, objective: Callable, args: tuple, expected: Tensor, num_draws: int = 400
) -> None:
    """Compare the mean gradient of the bound with the true one."""
    names, parameters = zip(*program.named_parameters(), strict=True)
    draws = []
    for _ in range(num_draws):
        loss = objective.differentiable_loss(program.model, program.guide, *args)
        draws.append(
            torch.cat([-part.reshape(-1) for part in torch.autograd.grad(loss, parameters)])
        )
    gradient = torch.stack(draws)
    error = gradient.std(0) / num_draws**0.5
    assert bool(((gradient.mean(0) - expected).abs() < 4.5 * error + 1e-9).all()), (
        names,
        gradient.mean(0),
        expected,
    )
    assert bool((error < 0.25 * expected.abs().max()).all())


def bernoulli_program(weight: float, counted: Tensor, seen: Tensor) -> Program:
    """x ~ N(2 z, 1), with the scale `weight` and the mask `counted` on z, the mask `seen` on x."""

    def on_latent() -> poutine.messenger.Messenger:
        return poutine.mask(mask=counted)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=weight), on_latent():
                z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
            with poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(2 * z, x.new_tensor(1.0)), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.tensor([0.1, -0.4, 0.2]).double())
        with pyro.plate("data", len(x)), poutine.scale(scale=weight), on_latent():
            pyro.sample("z", dist.Bernoulli(logits=logits))

    return Program(model, guide)


@pytest.mark.parametrize(
    "objective", [ELBO(1), RLOO(4), REINFORCE(2)], ids=lambda objective: type(objective).__name__
)
@pytest.mark.parametrize(
    ("weight", "counted", "seen"),
    [(0.2, [1, 1, 1], [1, 1, 1]), (1.0, [1, 0, 1], [1, 1, 1]), (1.0, [1, 0, 1], [1, 0, 0])],
)
def test_scores_are_those_of_the_draws(objective, weight, counted, seen) -> None:
    counted, seen = torch.tensor(counted).bool(), torch.tensor(seen).bool()
    logits = torch.tensor([0.1, -0.4, 0.2], requires_grad=True, dtype=torch.float64)
    posterior, bound = dist.Bernoulli(logits=logits), 0.0
    for value in (torch.zeros(3).double(), torch.ones(3).double()):
        ratio = dist.Bernoulli(torch.tensor(0.3).double()).log_prob(value) - posterior.log_prob(
            value
        )
        likelihood = dist.Normal(2 * value, torch.tensor(1.0).double()).log_prob(X)
        bound = (
            bound
            + (
                posterior.log_prob(value).exp() * (weight * counted * ratio + seen * likelihood)
            ).sum()
        )
    torch.manual_seed(0)
    program = bernoulli_program(weight, counted, seen).initialise(X)
    assert_gradient(program, objective, (X,), torch.autograd.grad(bound, logits)[0])


def test_scores_of_minibatches_beside_a_shared_latent() -> None:
    """The local latent counts for three data, but is drawn once."""
    x, share = X[:2], 3.0

    def model(x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(x.new_tensor(0.4)))
        with pyro.plate("data", 6, subsample=torch.arange(2)):
            z = pyro.sample("z", dist.Bernoulli(0.3 + 0.3 * g))
            pyro.sample("x", dist.Normal(z - g, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("g", dist.Bernoulli(logits=pyro.param("shared", x.new_tensor(0.2))))
        with pyro.plate("data", 6, subsample=torch.arange(2)):
            pyro.sample(
                "z", dist.Bernoulli(logits=pyro.param("local", torch.tensor([0.1, -0.4]).double()))
            )

    shared = torch.tensor(0.2, requires_grad=True, dtype=torch.float64)
    local = torch.tensor([0.1, -0.4], requires_grad=True, dtype=torch.float64)
    q_g, q_z, bound = dist.Bernoulli(logits=shared), dist.Bernoulli(logits=local), 0.0
    for g in torch.tensor([0.0, 1.0]).double():
        chance = q_g.log_prob(g).exp()
        bound = bound + chance * (
            dist.Bernoulli(torch.tensor(0.4).double()).log_prob(g) - q_g.log_prob(g)
        )
        for z in (torch.zeros(2).double(), torch.ones(2).double()):
            ratio = dist.Bernoulli(0.3 + 0.3 * g).log_prob(z) - q_z.log_prob(z)
            bound = (
                bound
                + share
                * chance
                * (q_z.log_prob(z).exp() * (ratio + dist.Normal(z - g, 1.0).log_prob(x))).sum()
            )
    torch.manual_seed(0)
    program = Program(model, guide).initialise(x)
    by_name = dict(
        zip(("shared", "local"), torch.autograd.grad(bound, (shared, local)), strict=True)
    )
    order = [name.split(".")[-1] for name, _ in program.named_parameters()]
    assert_gradient(
        program, RLOO(4), (x,), torch.cat([by_name[name].reshape(-1) for name in order]), 1500
    )


def test_priors_with_summed_out_parents_are_scored() -> None:
    """Without a guide, z ~ N(mu_c, 1/2) with c summed out is drawn from a mixture.

    To its weights no path leads.
    """
    x = torch.full((400,), 1.0).double()

    def model(x: Tensor) -> None:
        weight = pyro.param("weight", x.new_tensor(0.3))
        means = pyro.param("means", torch.tensor([-1.0, 2.0]).double())
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(logits=weight), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(means[c.long()], 0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    weight = torch.tensor(0.3, requires_grad=True, dtype=torch.float64)
    means = torch.tensor([-1.0, 2.0], requires_grad=True, dtype=torch.float64)
    chances = torch.stack([1 - weight.sigmoid(), weight.sigmoid()])
    bound = len(x) * (chances * (-0.5 * ((1 - means) ** 2 + 0.25))).sum()
    truth = torch.cat([part.reshape(-1) for part in torch.autograd.grad(bound, (weight, means))])
    torch.manual_seed(0)
    program = Program(model).initialise(x)
    assert [name.split(".")[-1] for name, _ in program.named_parameters()] == ["weight", "means"]
    assert_gradient(program, ELBO(4), (x,), truth, 200)
    with pytest.raises(ValueError, match="without a path gradient"):
        IWELBO(4).loss(program.model, program.guide, x)


def scaled(x: Tensor, weight: float | Tensor = 1.0) -> None:
    with pyro.plate("data", len(x)):
        with poutine.scale(scale=weight):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def scaled_guide(x: Tensor, weight: float | Tensor = 1.0) -> None:
    with pyro.plate("data", len(x)), poutine.scale(scale=weight):
        pyro.sample("z", dist.Normal(0.5 * x, 0.7))


def test_scales_that_part_after_the_first_run_are_followed() -> None:
    """A number is part of what a structure is of: E log p(x | z) + 0.1 E (log p(z) - log q(z))."""
    torch.manual_seed(0)
    model, guide = _pair(Program(scaled, scaled_guide).initialise(X))
    draws = torch.tensor([ELBO(100).loss(model, guide, X, 0.1) for _ in range(100)])
    mean, sd = 0.5 * X, torch.tensor(0.7)
    likelihood = dist.Normal(mean, 1.0).log_prob(X) - sd**2 / 2
    divergence = 0.5 * (mean**2 + sd**2 - 1) - sd.log()
    truth = -(likelihood - 0.1 * divergence).sum().item()
    assert draws.mean().item() == pytest.approx(truth, abs=4.5 * draws.std().item() / 10)


def test_minibatches_after_a_first_run_on_all_data() -> None:
    """E log p(z) - log q(z) + 3/2 log p(x_1, x_2 | z) beside a shared latent."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("data", 3, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x.new_tensor(0.2), 0.5))

    torch.manual_seed(0)
    loss = ELBO(20_000).loss(*_pair(Program(model, guide).initialise(X)), X[:2])
    divergence = torch.distributions.kl_divergence(dist.Normal(0.2, 0.5), dist.Normal(0.0, 1.0))
    likelihood = 1.5 * (dist.Normal(0.2, 1.0).log_prob(X[:2]) - 0.5 * 0.25).sum()
    assert loss == pytest.approx(float(divergence - likelihood), abs=0.03)


@pytest.mark.parametrize(("first", "then"), [(0.5, 0.1), (torch.tensor(1.0), torch.tensor(0.1))])
def test_annealed_scales(first: float | Tensor, then: float | Tensor) -> None:
    """A tensor on some sites alone is a scale of theirs, also where it is one at first."""
    program = Program(scaled, scaled_guide).initialise(X, first)
    torch.manual_seed(0)
    loss = ELBO(20_000).loss(*_pair(program), X, then)
    kl = torch.distributions.kl_divergence(
        dist.Normal(0.5 * X, 0.7), dist.Normal(torch.zeros(3).double(), 1.0)
    )
    likelihood = dist.Normal(0.5 * X, 1.0).log_prob(X) - 0.5 * 0.49
    assert loss == pytest.approx(float((0.1 * kl - likelihood).sum()), abs=0.05)


def test_double_reparameterisation_wants_one_scale() -> None:
    program = Program(scaled, scaled_guide).initialise(X, 0.3)
    with pytest.raises(ValueError, match="gradient='dreg' needs one scale"):
        IWELBO(3, gradient="dreg").loss(*_pair(program), X, 0.3)


def _pair(program: Program) -> tuple[Callable, Callable]:
    return program.model, program.guide


def test_free_bits_of_a_subsampled_plate_are_those_of_the_same_data() -> None:
    x = torch.linspace(-1.0, 1.0, 50).double()

    def model(x: Tensor) -> None:
        with pyro.plate("data", 50, subsample_size=10) as rows:
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x[rows])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 50, subsample_size=10) as rows:
            pyro.sample("z", dist.Normal(x[rows], 0.3))

    def mean_loss(objective: Callable) -> tuple[Tensor, Tensor]:
        losses = torch.tensor([objective.loss(model, guide, x) for _ in range(300)])
        return losses.mean(), losses.std() / 300**0.5

    torch.manual_seed(0)
    (floored, error), (plain, plain_error) = mean_loss(FreeBits(0.0)), mean_loss(ELBO())
    assert abs(floored - plain) < 4.5 * (error**2 + plain_error**2) ** 0.5


def test_free_bits_refuse_a_guide_in_another_order() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(0.0, 1.0))
            bottom = pyro.sample("bottom", dist.Normal(top, 1.0))
            pyro.sample("x", dist.Normal(bottom, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            bottom = pyro.sample("bottom", dist.Normal(x, 1.0))
            pyro.sample("top", dist.Normal(0.5 * bottom, 0.7))

    with pytest.raises(ValueError, match=r"order \['bottom', 'top'\]"):
        FreeBits(0.1).loss(model, guide, X.float())


@pytest.mark.parametrize(
    "objective", [FreeBits(0.1), BetaTC(num_data=3)], ids=["FreeBits", "BetaTC"]
)
def test_divergences_refuse_masks_of_distributions(objective) -> None:
    def half(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1)
            )
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.Normal(x.unsqueeze(-1).expand(-1, 2), 1.0)
                .mask(torch.tensor([True, False]))
                .to_event(1),
            )

    with pytest.raises(ValueError, match="is masked"):
        objective.loss(half, guide, X.float())
