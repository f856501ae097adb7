"""Contrastive divergence against gradients by enumeration, and its chains."""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from energies import Ising, make_rbm, states
from torch import Tensor, nn

import ppl_dgm
from ppl_dgm import Program
from ppl_dgm.compile.inductor import backend
from ppl_dgm.families import RBM, VAE, Energy
from ppl_dgm.objectives import ELBO, ContrastiveDivergence, PersistentContrastiveDivergence
from ppl_dgm.sampling.kernels import HMC, MALA, ULA, Kernel, RandomWalk
from ppl_dgm.sampling.kernels.flips import BitFlips

X = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)


def gradients(loss: Tensor, rbm: Program) -> Tensor:
    """All gradients in one vector."""
    parts = torch.autograd.grad(loss, list(rbm.parameters()))
    return torch.cat([part.flatten() for part in parts])


def transition(rbm: RBM) -> Tensor:
    """One sweep's probabilities from each visible state to each, `[16, 16]`.

    Hidden states are summed over.
    """
    v, h, parts = states(4), states(3), rbm.parts
    up = dist.Bernoulli(logits=v @ parts.weight + parts.hidden_bias)
    down = dist.Bernoulli(logits=h @ parts.weight.T + parts.units.bias)
    to_hidden = torch.stack([up.log_prob(one).sum(-1) for one in h], 1).exp()
    to_visible = torch.stack([down.log_prob(one).sum(-1) for one in v], 1).exp()
    return (to_hidden @ to_visible).detach()


def mean_gradient(draw: Callable[[], Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Mean and standard error of noisy gradients."""
    drawn = torch.stack([draw() for _ in range(count)])
    return drawn.mean(0), drawn.std(0) / count**0.5


@pytest.mark.parametrize("k", [1, 3])
def test_the_gradient_of_cd_is_that_of_k_sweeps(k: int) -> None:
    rbm, objective, every = make_rbm(), ContrastiveDivergence(k), states(4)
    rbm.parts.weight.data.mul_(3)
    power = torch.linalg.matrix_power(transition(rbm), k)
    index = (X @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()).long()
    negative = power[index].sum(0) @ -rbm.free_energy(every)
    expected = gradients(rbm.free_energy(X).sum() + negative, rbm)
    many = X.repeat(400, 1)  # each datum's chain many times in one call
    mean, error = mean_gradient(
        lambda: gradients(objective.differentiable_loss(rbm.model, rbm.guide, many) / 400, rbm), 12
    )
    z = ((mean - expected) / error).abs()
    assert float(z.max()) < 4.5
    likelihood = rbm.free_energy(X).sum() + 2 * (-rbm.free_energy(every)).logsumexp(0)
    bias = expected - gradients(likelihood, rbm)
    assert float((bias / error).square().mean()) > 5  # 1 where unbiased


def test_persistent_chains_that_follow_the_model_give_the_gradient_of_the_likelihood() -> None:
    rbm, every = make_rbm(), states(4)
    log_z = (-rbm.free_energy(every)).logsumexp(0)
    expected = gradients(rbm.free_energy(X).sum() + 2 * log_z, rbm)
    many = X.repeat(500, 1)
    objective = PersistentContrastiveDivergence(1)
    objective.differentiable_loss(rbm.model, rbm.guide, many)
    probs = (-rbm.free_energy(every)).softmax(0).detach()

    def draw() -> Tensor:
        objective.chains.copy_(every[torch.multinomial(probs, 1000, True)])
        loss = objective.differentiable_loss(rbm.model, rbm.guide, many)
        return gradients(loss / 500, rbm)

    mean, error = mean_gradient(draw, 12)
    assert float(((mean - expected) / error).abs().max()) < 4.5


def test_chains_go_on_where_they_were_and_rest_while_validating() -> None:
    rbm = make_rbm()
    objective = PersistentContrastiveDivergence(1, buffer_size=50)
    with pytest.raises(ValueError, match="no chains yet"):
        _ = objective.chains
    objective.differentiable_loss(rbm.model, rbm.guide, X)
    first = objective.chains.clone()
    assert int((first != X.repeat(25, 1)).any(1).sum()) <= len(X)  # so many were moved
    objective.loss(rbm.model, rbm.guide, X)
    assert torch.equal(objective.chains, first)
    for _ in range(30):
        objective.differentiable_loss(rbm.model, rbm.guide, X)
    assert int((objective.chains != first).any(1).sum()) > 20


def test_restarted_chains_begin_at_data() -> None:
    rbm = RBM(4, 2).double()
    with torch.no_grad():
        rbm.parts.units.bias.copy_(torch.tensor([60.0, -60.0, 60.0, -60.0]))
    objective = PersistentContrastiveDivergence(1, restart=1.0)
    wanted = torch.tensor([1.0, 0.0, 1.0, 0.0]).double()
    objective.differentiable_loss(rbm.model, rbm.guide, wanted.repeat(3, 1))
    assert torch.equal(
        objective._restarted(1 - objective.chains, X[:1].repeat(3, 1)), X[:1].repeat(3, 1)
    )


def test_bit_flips_leave_the_density_invariant() -> None:
    every = states(4)
    log_f = torch.randn(16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = torch.tensor([8.0, 4.0, 2.0, 1.0]).double()
    flips = BitFlips(lambda x: log_f[(x @ weights).long()])
    start = every[torch.multinomial(log_f.softmax(0), 20_000, True)]
    moved = flips.move(start)
    observed = torch.bincount((moved @ weights).long(), minlength=16) / 20_000
    error = (log_f.softmax(0) / 20_000).sqrt()
    assert float(((observed - log_f.softmax(0)) / error).abs().max()) < 4.5
    assert float((moved != start).any(1).double().mean()) > 0.5
    known = flips.sweep(start, log_f[(start @ weights).long()])
    torch.testing.assert_close(known[1], log_f[(known[0] @ weights).long()])


@pytest.mark.parametrize("kernel", [MALA(), HMC(num_leapfrog=5), RandomWalk()])
def test_kernels_move_real_data_towards_the_model(kernel: Kernel) -> None:
    model = Energy(lambda x: 2.0 * (x - 1).square().sum(-1), 2)  # N(4/5, 1/5)
    objective = PersistentContrastiveDivergence(5, kernel=kernel, step_size=0.5)
    x = torch.zeros(2000, 2)
    with torch.enable_grad():
        for _ in range(12):
            objective.differentiable_loss(model.model, model.guide, x)
    mean, variance = objective.chains.mean(0), objective.chains.var(0)
    torch.testing.assert_close(mean, torch.full((2,), 0.8), atol=0.06, rtol=0)
    torch.testing.assert_close(variance, torch.full((2,), 0.2), atol=0.03, rtol=0)


def test_unadjusted_langevin_keeps_its_step_size() -> None:
    model = Energy(lambda x: x.square().sum(-1), 2)
    objective = ContrastiveDivergence(2, kernel=ULA(), step_size=0.3)
    objective.differentiable_loss(model.model, model.guide, torch.zeros(5, 2))
    assert float(objective.memory.get_buffer("steps")) == pytest.approx(0.3)


@pytest.mark.slow
def test_an_ising_model_is_recovered_by_persistent_chains() -> None:
    truth = Ising(4, 0.1, 0.25)
    every = states(16)
    log_p = -truth(every).detach()
    torch.manual_seed(4)
    x = every[torch.multinomial(log_p.softmax(0), 4000, True)]
    information = torch.cov(truth.statistics(every).T, aweights=log_p.softmax(0))
    error = (torch.linalg.inv(information).diagonal() / len(x)).sqrt()
    model = Energy(Ising(4, 0.0, 0.0), 16, base="bernoulli").double()
    objective = PersistentContrastiveDivergence(1, buffer_size=1000)
    net, path = model.model.fn.net, []
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-5)
    for _ in range(120):
        optimizer.zero_grad()
        objective.differentiable_loss(model.model, model.guide, x[:1000]).backward()
        optimizer.step()
        path.append(net.theta.detach().clone())
    found = torch.stack(path[60:]).mean(0)
    assert float(((found - truth.theta.detach()) / (error * 4**0.5)).abs().max()) < 4


def test_captured_steps_are_the_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The captured graph stands in for its machine code, which takes long to make."""
    compiler = SimpleNamespace(machine_code=lambda graph, flat: backend.without_gradients(graph))
    monkeypatch.setitem(sys.modules, "ppl_dgm.compile.inductor.machine_code", compiler)
    monkeypatch.setattr(backend, "_COMPILED", {})
    torch.manual_seed(0)
    x = (torch.rand(40, 6) < 0.4).float()
    fits = []
    for mode in (False, True):
        torch.manual_seed(1)
        rbm = RBM(6, 3).start_from(x)
        objective = PersistentContrastiveDivergence(2, buffer_size=60)
        ppl_dgm.fit(rbm, x, objective, steps=6, batch_size=20, progress=False, compile=mode)
        fits.append((rbm.parts.weight.detach(), objective.chains))
    torch.testing.assert_close(fits[0], fits[1])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [MALA(), ULA(), HMC(num_leapfrog=3), None])
@pytest.mark.parametrize("k", [1, 3])
def test_other_moves_are_captured(kernel: Kernel | None, k: int) -> None:
    binary = kernel is None
    net = (
        Ising(2, 0.1, 0.2)
        if binary
        else nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0))
    )
    x = (torch.rand(20, 4) < 0.4).float() if binary else torch.randn(20, 4)
    model = Energy(net, 4, base="bernoulli" if binary else "normal")
    objective = ContrastiveDivergence(k, kernel=kernel)
    result = ppl_dgm.fit(model, x, objective, steps=5, progress=False, compile=True)
    assert result.compile_seconds > 0
    assert bool(torch.isfinite(result.history["objective"]).all())


def test_pyro_takes_the_objective() -> None:
    rbm = RBM(4, 2)
    svi = pyro.infer.SVI(
        rbm.model, rbm.guide, pyro.optim.Adam({"lr": 0.01}), loss=ContrastiveDivergence(1)
    )
    before = rbm.parts.weight.detach().clone()
    svi.step(X.float())
    assert not torch.equal(before, rbm.parts.weight.detach())


def with_covariate(x: Tensor, y: Tensor) -> None:
    """An energy that depends on a covariate."""
    shift = pyro.param("shift", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        value = pyro.sample("x", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1), obs=x)
        pyro.factor("energy", shift * y * value.sum(-1))


def test_chains_keep_the_covariates_of_their_data() -> None:
    program = Program(with_covariate)
    y = torch.tensor([8.0, -8.0])
    objective = ContrastiveDivergence(60, step_size=0.5)
    x = torch.zeros(2, 2)
    program.initialise(x, y)
    loss = objective.differentiable_loss(program.model, program.guide, x, y)
    found = torch.autograd.grad(loss, program.get_parameter("shift"))[0]
    assert float(found) == pytest.approx(128, rel=0.3)  # sum_i y_i E sum_d x_id, E x_id = y_i / 2
    with pytest.raises(ValueError, match="covariates.*ContrastiveDivergence"):
        PersistentContrastiveDivergence().differentiable_loss(program.model, program.guide, x, y)


def refitted(second: Tensor) -> float:
    """A second program by an objective that holds the chains of another."""
    objective = PersistentContrastiveDivergence()
    loss(objective, RBM(3, 2), torch.zeros(5, 3))
    return loss(objective, RBM(second.shape[1], 2).to(second.dtype), second)


def nothing(*args: Tensor) -> None:
    """The guide of a program without latents."""


def copied(y: Tensor, x: Tensor) -> None:
    """An energy that observes a copy of its data."""
    with pyro.plate("data", len(x)):
        value = pyro.sample("x", dist.Normal(0.0, 1.0), obs=x.clone())
        pyro.factor("energy", y * value)


def positive(x: Tensor) -> None:
    """Data on the half-line."""
    with pyro.plate("data", len(x)):
        value = pyro.sample("x", dist.Exponential(1.0), obs=x)
        pyro.factor("energy", -value.square())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastiveDivergence(0), "k is 0"),
        (lambda: ContrastiveDivergence(step_size=0.0), "step_size is 0.0"),
        (lambda: PersistentContrastiveDivergence(buffer_size=0), "buffer_size is 0"),
        (lambda: PersistentContrastiveDivergence(restart=1.5), "restart is 1.5"),
        (lambda: refitted(torch.zeros(5, 4)), r"chains are of data \[3\] .*but the data are \[4\]"),
        (lambda: refitted(torch.zeros(5, 3).double()), "float32.*the data.*float64; make a new"),
        (
            lambda: ContrastiveDivergence().loss(copied, nothing, torch.ones(3), torch.ones(3)),
            "a copy that equals 2 of the program's arguments.*observe the argument as it is",
        ),
        (
            lambda: loss(
                PersistentContrastiveDivergence(buffer_size=2), RBM(3, 2), torch.zeros(5, 3)
            ),
            "buffer holds 2 chains for minibatches of 5 data.*buffer_size=5",
        ),
        (
            lambda: loss(ELBO(), RBM(3, 2), torch.zeros(5, 3)),
            "unnormalised.*ContrastiveDivergence",
        ),
        (
            lambda: loss(ContrastiveDivergence(), VAE(3, 1, [4]), torch.zeros(5, 3)),
            "'z'.*are drawn.*ELBO",
        ),
        (
            lambda: loss(ContrastiveDivergence(), Program(positive), torch.ones(5)),
            "support GreaterThan.*NoiseContrastive",
        ),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def loss(objective: ELBO, program: Program, x: Tensor) -> float:
    """One call."""
    return objective.loss(program.model, program.guide, x)


def test_a_kernel_is_no_string() -> None:
    with pytest.raises(TypeError, match="kernel is a str; expected a Kernel .*MALA"):
        ContrastiveDivergence(kernel="langevin")  # type: ignore[arg-type]
