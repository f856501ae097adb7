"""Objectives and their gradients against enumeration, closed forms and one another."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from torch import nn
from torch.distributions import constraints

from ppl_dgm import Program, fit
from ppl_dgm.objectives import ELBO, IWELBO, Renyi, ReweightedWakeSleep, linear_warmup

X = torch.tensor([[0.3, -1.2], [1.0, 0.4], [-0.7, 2.0]])
NOISE = 0.8


def linear_model(x=None):
    """z ~ N(0, I), x ~ N(w z, NOISE^2): Gaussian evidence, Gaussian posterior."""
    w = pyro.param("w", torch.tensor([1.0, 0.5]))
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(w * z, NOISE).to_event(1), obs=x)


def posterior_guide(x=None):
    """The exact posterior at w = (1, 0.5), with parameters of its own."""
    w = torch.tensor([1.0, 0.5])
    variance = 1 / (1 + w.square() / NOISE**2)
    slope = pyro.param("slope", variance * w / NOISE**2)
    scale = pyro.param("scale", variance.sqrt(), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x * slope, scale).to_event(1))


def wide_guide(x=None):
    slope = pyro.param("slope", torch.tensor([0.3, 0.3]))
    scale = pyro.param("scale", torch.tensor([0.9, 0.9]), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x * slope, scale).to_event(1))


def global_model(x=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample(
            "x", dist.Normal(mu * pyro.param("w", torch.tensor(1.0)), 1.0).expand([3]), obs=x
        )


def global_guide(x=None):
    loc = pyro.param("loc", torch.tensor(0.4))
    pyro.sample(
        "mu",
        dist.Normal(loc, pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)),
    )


def log_evidence(x):
    w = torch.tensor([1.0, 0.5])
    return dist.Normal(0.0, (w.square() + NOISE**2).sqrt()).log_prob(x).sum(-1)


def elbo_closed_form(x, slope, scale, w):
    """ELBO of `linear_model` under a diagonal Gaussian guide, per datum."""
    mean = x * slope
    kl = 0.5 * (scale.square() + mean.square() - 1 - 2 * scale.log()).sum(-1)
    fit = dist.Normal(w * mean, NOISE).log_prob(x) - 0.5 * (w * scale / NOISE).square()
    return fit.sum(-1) - kl


def gradients(program, objective, repeats, *args):
    """Gradients of all parameters in repeated draws: `[repeats, parameters]`."""
    rows = []
    for _ in range(repeats):
        program.zero_grad()
        objective.differentiable_loss(program.model, program.guide, *args).backward()
        rows.append(torch.cat([p.grad.reshape(-1) for p in program.parameters()]))
    return torch.stack(rows)


def agree(draws, truth, num_errors=4.5):
    error = draws.std(0) / math.sqrt(len(draws)) + 1e-5
    return bool(((draws.mean(0) - truth).abs() < num_errors * error).all())


def named(program, name):
    return dict(program.named_parameters())[name]


@pytest.mark.parametrize("objective", [ELBO(7), ELBO(7, gradient="stl")])
def test_elbo_and_gradient_match_the_closed_form(objective):
    program = Program(linear_model, wide_guide).initialise(X)
    slope, raw, w = (
        named(program, n).detach().clone().requires_grad_() for n in ("slope", "scale", "w")
    )
    exact = elbo_closed_form(X, slope, raw.exp(), w).sum()
    truth = dict(
        zip(("slope", "scale", "w"), torch.autograd.grad(-exact, (slope, raw, w)), strict=True)
    )
    losses = torch.tensor([objective.loss(program.model, program.guide, X) for _ in range(300)])
    assert abs(losses.mean() + exact) < 4.5 * losses.std() / math.sqrt(300)
    draws = gradients(program, objective, 600, X)
    assert agree(
        draws, torch.cat([truth[name].reshape(-1) for name, _ in program.named_parameters()])
    )


@pytest.mark.parametrize(
    "objective", [ELBO(3), IWELBO(3), IWELBO(3, gradient="dreg"), Renyi(0.3, 3)]
)
def test_with_the_posterior_as_guide_every_bound_is_the_evidence(objective):
    program = Program(linear_model, posterior_guide).initialise(X)
    loss = objective.loss(program.model, program.guide, X)
    assert loss == pytest.approx(-log_evidence(X).sum().item(), abs=1e-4)


@pytest.mark.parametrize(
    "objective", [ELBO(1, gradient="stl"), IWELBO(4, gradient="stl"), IWELBO(4, gradient="dreg")]
)
def test_path_gradients_vanish_at_the_posterior(objective):
    program = Program(linear_model, posterior_guide).initialise(X)
    draws = gradients(program, objective, 20, X)
    guide = torch.cat([torch.full((p.numel(),), n != "w") for n, p in program.named_parameters()])
    assert draws[:, guide].abs().max() < 1e-4
    plain = gradients(program, ELBO(1), 20, X)
    assert plain[:, guide].std(0).min() > 0.01  # the usual gradient has noise there


def quadrature_iwelbo(x, kl_weight=1.0):
    """IWELBO(2) of `scalar_model` and its gradient by Gauss-Hermite quadrature.

    It runs over both particles' noise.
    """
    nodes, weights = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(80))
    noise = torch.stack([nodes.repeat_interleave(80), nodes.repeat(80)], -1)
    weights = (weights[:, None] * weights).reshape(-1) / (2 * math.pi)
    slope, raw, w = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, math.log(0.9), 1.0)
    )
    z = x.double() * slope + raw.exp() * noise
    log_ratio = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(
        x.double() * slope, raw.exp()
    ).log_prob(z)
    log_w = dist.Normal(w * z, NOISE).log_prob(x.double()) + kl_weight * log_ratio
    bound = (weights * (log_w.logsumexp(-1) - math.log(2))).sum()
    gradient = torch.autograd.grad(-bound, (slope, raw, w))
    return bound.item(), dict(
        zip(("slope", "scale", "w"), (g.item() for g in gradient), strict=True)
    )


def scalar_model(x=None):
    w = pyro.param("w", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(w * z, NOISE), obs=x)


def scalar_guide(x=None):
    slope = pyro.param("slope", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.9), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x * slope, scale))


@pytest.mark.parametrize("kl_weight", [1.0, 0.2])
@pytest.mark.parametrize("gradient", ["reparam", "dreg"])
def test_iwelbo_gradients_are_unbiased(gradient, kl_weight):
    value, truth = quadrature_iwelbo(X[0, 0], kl_weight)
    x = (
        X[:1, 0].expand(2000).contiguous()
    )  # many copies of one datum: independent draws of its gradient
    program = Program(scalar_model, scalar_guide).initialise(x)
    objective = IWELBO(2, gradient=gradient, kl_weight=kl_weight)
    assert objective.loss(program.model, program.guide, x) / 2000 == pytest.approx(-value, abs=0.05)
    draws = gradients(program, objective, 100, x) / 2000
    assert agree(draws, torch.tensor([truth[name] for name, _ in program.named_parameters()]))


def test_doubly_reparameterised_gradient_of_global_latents_matches_the_plain_one():
    x = torch.tensor([0.5, 1.5, 1.0])
    program = Program(global_model, global_guide).initialise(x)
    plain, doubly = (gradients(program, IWELBO(3, gradient=g), 700, x) for g in ("reparam", "dreg"))
    error = (plain.var(0) / 700 + doubly.var(0) / 700).sqrt()
    assert bool(((plain.mean(0) - doubly.mean(0)).abs() < 4.5 * error).all())


def signal_to_noise(gradient, num_particles):
    x = X[:1, 0]
    program = Program(scalar_model, scalar_guide).initialise(x)
    draws = gradients(program, IWELBO(num_particles, gradient=gradient), 600, x)
    names = [name for name, _ in program.named_parameters()]
    guide = draws[:, [names.index("scale")]]
    return (guide.mean(0).abs() / guide.std(0)).item()


@pytest.mark.slow
def test_signal_to_noise_of_the_guide_falls_for_reparam_and_grows_for_dreg():
    """Rainforth et al. (2018): K^{-1/2}; Tucker et al. (2019): K^{1/2}."""
    assert signal_to_noise("reparam", 256) < 0.5 * signal_to_noise("reparam", 4)
    assert signal_to_noise("dreg", 256) > 2 * signal_to_noise("dreg", 4)


@pytest.mark.parametrize("scale", [10.0, torch.tensor(10.0)])
@pytest.mark.parametrize("make", [lambda: IWELBO(200), lambda: Renyi(0.5, 200)])
def test_scales_multiply_the_bound_and_enter_no_exponent(make, scale):
    program = Program(linear_model, wide_guide).initialise(X)

    def scaled(fn):
        return poutine.scale(fn, scale=scale)

    torch.manual_seed(0)
    plain = make().loss(program.model, program.guide, X)
    torch.manual_seed(0)
    assert make().loss(scaled(program.model), scaled(program.guide), X) == pytest.approx(
        10 * plain, rel=1e-3
    )
    if make().__class__ is IWELBO:  # Pyro's exponentiates the scaled weights
        pyros = RenyiELBO(
            alpha=0.0, num_particles=200, vectorize_particles=True, max_plate_nesting=1
        )
        assert pyros.loss(scaled(program.model), scaled(program.guide), X) < 10 * plain - 1


def test_scale_of_each_datum():
    program = Program(linear_model, posterior_guide).initialise(X)
    weights = torch.tensor([1.0, 2.0, 5.0])

    def scaled(fn):
        return poutine.scale(fn, scale=weights)

    loss = IWELBO(3).loss(scaled(program.model), scaled(program.guide), X)
    assert loss == pytest.approx(-(weights * log_evidence(X)).sum().item(), rel=1e-4)


def test_tempered_likelihood_stays_in_the_exponent():
    """Only the likelihood scaled by 2: the integral of p(z) p(x | z)^2, here by quadrature."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=2.0):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(2 * x / 3, 1.0))

    x = torch.tensor([0.7])
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    integrand = dist.Normal(0.0, 1.0).log_prob(grid) + 2 * dist.Normal(grid, 1.0).log_prob(
        x.double()
    )
    truth = torch.logsumexp(integrand, 0) + math.log(24 / 20000)
    assert IWELBO(200_000).loss(model, guide, x) == pytest.approx(-truth.item(), abs=0.01)


def discrete_model(x):
    prob = pyro.param("prob", torch.tensor(0.4), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(prob))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)


def discrete_guide(x):
    logit = pyro.param("logit", torch.tensor([0.3, -0.4, 0.1]))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=logit))


@pytest.mark.parametrize("num_particles", [1, 4])
def test_score_function_gradient_matches_enumeration(num_particles):
    x = X[:, 0]
    program = Program(discrete_model, discrete_guide).initialise(x)
    logit, raw = (named(program, n).detach().clone().requires_grad_() for n in ("logit", "prob"))
    q, terms = torch.sigmoid(logit), []
    for z in (0.0, 1.0):
        log_p = dist.Bernoulli(torch.sigmoid(raw)).log_prob(torch.tensor(z)) + dist.Normal(
            2 * z, 1.0
        ).log_prob(x)
        log_q = dist.Bernoulli(logits=logit).log_prob(torch.tensor(z))
        terms.append((q if z else 1 - q) * (log_p - log_q))
    truth = dict(
        zip(("logit", "prob"), torch.autograd.grad(-sum(terms).sum(), (logit, raw)), strict=True)
    )
    draws = gradients(program, ELBO(num_particles), 600, x)
    assert agree(
        draws, torch.cat([truth[name].reshape(-1) for name, _ in program.named_parameters()])
    )


def test_the_other_particles_are_a_baseline():
    x = X[:, 0]
    program = Program(discrete_model, discrete_guide).initialise(x)
    alone, together = gradients(program, ELBO(1), 800, x), gradients(program, ELBO(8), 800, x)
    guide = torch.cat(
        [torch.full((p.numel(),), n == "logit") for n, p in program.named_parameters()]
    )
    better = together.var(0) * 8 < alone.var(0)  # than the mean of 8 independent ones
    assert bool(better[guide].all())


def enumerated_model(x):
    weights = pyro.param("weights", torch.tensor([0.2, 0.5, 0.3]), constraint=constraints.simplex)
    locs = pyro.param("locs", torch.tensor([-1.0, 0.0, 2.0]))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)


def test_enumerated_elbo_is_the_log_likelihood_and_matches_pyro():
    x = X[:, 1]
    program = Program(enumerated_model).initialise(x)
    ours = ELBO().differentiable_loss(program.model, program.guide, x)
    mine = torch.autograd.grad(ours, list(program.parameters()))
    theirs = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        program.model, lambda x: None, x
    )
    expected = torch.autograd.grad(theirs, list(program.parameters()))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(mine, expected, strict=True))


def test_a_program_is_initialised_by_its_objective():
    x = X[:, 1]
    fresh, ready = Program(enumerated_model), Program(enumerated_model).initialise(x)
    assert ELBO().loss(fresh.model, fresh.guide, x) == pytest.approx(
        ELBO().loss(ready.model, ready.guide, x)
    )
    with pyro.get_param_store().scope():
        program = Program(linear_model, wide_guide)
        SVI(program.model, program.guide, pyro.optim.SGD({"lr": 0.1}), ELBO()).step(X)
        assert not torch.allclose(
            named(program, "w"), torch.tensor([1.0, 0.5])
        )  # the first step counts
        assert len(pyro.get_param_store()) == 0


def test_kl_weight_multiplies_the_kl_term():
    program = Program(linear_model, posterior_guide).initialise(X)
    values = {}
    for weight in (0.0, 1.0, 3.0):
        values[weight] = (
            sum(
                ELBO(500, kl_weight=weight).loss(program.model, program.guide, X) for _ in range(10)
            )
            / 10
        )
    assert values[3.0] - values[0.0] == pytest.approx(3 * (values[1.0] - values[0.0]), rel=0.05)


def test_annealed_kl_weight_follows_the_step():
    program = Program(linear_model, posterior_guide).initialise(X)
    objective = ELBO(2000, kl_weight=linear_warmup(10))
    fixed = {w: ELBO(2000, kl_weight=w) for w in (0.0, 0.5, 1.0)}
    for step, weight in ((0, 0.0), (5, 0.5), (50, 1.0)):
        objective.set_step(step)
        ours = objective.loss(program.model, program.guide, X)
        assert ours == pytest.approx(fixed[weight].loss(program.model, program.guide, X), abs=0.25)


def test_svi_takes_our_objectives_and_advances_their_step():
    with pyro.get_param_store().scope():
        objective = IWELBO(5, gradient="dreg", kl_weight=linear_warmup(3))
        svi = SVI(linear_model, wide_guide, pyro.optim.Adam({"lr": 0.05}), objective)
        losses = [svi.step(X) for _ in range(150)]
        assert objective._step == 150
        assert sum(losses[-20:]) / 20 < sum(losses[3:23]) / 20
        assert sorted(pyro.get_param_store().keys()) == ["scale", "slope", "w"]


def test_module_call_is_the_loss_with_parameters():
    program = Program(linear_model, wide_guide).initialise(X)
    module = ELBO()(program.model, program.guide)
    module(X).backward()
    assert {p.shape for p in module.parameters()} == {torch.Size([2])}
    assert all(p.grad is not None for p in module.parameters())


def test_elbo_agrees_with_pyros():
    program = Program(linear_model, wide_guide).initialise(X)
    torch.manual_seed(3)
    ours = ELBO().loss(program.model, program.guide, X)
    torch.manual_seed(3)
    assert Trace_ELBO().loss(program.model, program.guide, X) == pytest.approx(ours, abs=1e-4)


def test_differentiable_loss_reads_nothing_on_the_host(monkeypatch):
    program = Program(linear_model, wide_guide).initialise(X)
    objectives = [
        ELBO(2),
        IWELBO(3, gradient="dreg"),
        Renyi(0.5, 3),
        ELBO(kl_weight=linear_warmup(5)),
    ]
    for objective in objectives:
        objective.differentiable_loss(program.model, program.guide, X)

    def refuse(*_):
        raise AssertionError("read on the host")

    for name in ("item", "__bool__", "__float__", "__int__", "tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    losses = [
        objective.differentiable_loss(program.model, program.guide, X) for objective in objectives
    ]
    monkeypatch.undo()
    assert all(math.isfinite(loss.item()) for loss in losses)


def test_renyi_orders_the_bounds():
    program = Program(linear_model, wide_guide).initialise(X)
    values = [
        -sum(Renyi(a, 50).loss(program.model, program.guide, X) for _ in range(40))
        for a in (-1.0, 0.0, 0.5, 2.0)
    ]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    "make", [lambda: ELBO(2.5), lambda: IWELBO(math.nan), lambda: Renyi(math.nan)]
)
def test_settings_that_cannot_be_meant(make):
    with pytest.raises(ValueError, match="expected"):
        make()


@pytest.mark.parametrize(
    "objective",
    [ELBO(5, gradient="stl"), IWELBO(5, gradient="dreg"), ReweightedWakeSleep(5)],
    ids=["stl", "dreg", "rws"],
)
def test_noise_in_a_guide_is_refused_where_it_would_run_twice(objective):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout, self.linear = nn.Dropout(0.5), nn.Linear(3, 2)

        def forward(self, x):
            loc = self.linear(self.dropout(x))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)

    program, x = Program(model, Encoder()), torch.ones(4, 3)
    with pytest.raises(ValueError, match="noise of its own"):
        fit(program, x, objective, steps=1, progress=False, compile=False)
    fit(program, x, ELBO(5), steps=1, progress=False, compile=False)
    fit(program.eval(), x, objective, steps=1, progress=False, compile=False)
