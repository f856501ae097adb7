"""Gradients for discrete latents against enumeration, on small sigmoid belief nets."""

import math
from itertools import product

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from ppl_dgm import Program, fit
from ppl_dgm.compile import TrainStep
from ppl_dgm.objectives import (
    ELBO,
    IWELBO,
    REINFORCE,
    RLOO,
    VIMCO,
    ReweightedWakeSleep,
    RunningMean,
    StraightThrough,
)
from ppl_dgm.objectives.vimco import leave_one_out_bounds

UNITS, DIMS = 2, 3
X = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
COPIES = 400
START = {
    "prior": torch.tensor([0.4, -0.6]),
    "weight": torch.tensor([[1.5, -1.0, 0.5], [-0.5, 2.0, 1.0]]),
    "bias": torch.tensor([0.2, -0.3, 0.1]),
    "encoder": torch.tensor([[0.7, -0.4], [0.3, 0.5], [-0.6, 0.2]]),
    "offset": torch.tensor([0.1, -0.2]),
}
GUIDE = ("encoder", "offset")


def start(name):
    return pyro.param(name, START[name].clone())


def belief_net(x):
    """A sigmoid belief net with one layer of hidden units."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=start("prior")).to_event(1))
        logits = (z.unsqueeze(-1) * start("weight")).sum(-2) + start("bias")
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def recogniser(x):
    with pyro.plate("data", len(x)):
        logits = (x.unsqueeze(-1) * start("encoder")).sum(-2) + start("offset")
        pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


def shared_net(x):
    """The same with one hidden vector for all data."""
    z = pyro.sample("z", dist.Bernoulli(logits=start("prior")).to_event(1))
    with pyro.plate("data", 2):
        logits = (z.unsqueeze(-1) * start("weight")).sum(-2) + start("bias")
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1).expand([2]), obs=x)


def shared_recogniser(x):
    pyro.sample(
        "z", dist.Bernoulli(logits=start("offset") + 0 * start("encoder").sum(0)).to_event(1)
    )


# ---- enumeration ---------------------------------------------------------------------------------

STATES = torch.tensor(list(product([0.0, 1.0], repeat=UNITS)))  # [4, 2]


def bernoulli(logits, value):
    return dist.Bernoulli(logits=logits).log_prob(value).sum(-1)


def densities(p, x):
    """log p(x, z) and log q(z | x) for all z: `[4, data]` each."""
    z = STATES.unsqueeze(1)
    log_joint = bernoulli(p["prior"], z) + bernoulli(z @ p["weight"] + p["bias"], x)
    return log_joint, bernoulli(x @ p["encoder"] + p["offset"], z)


def shared_densities(p, x):
    log_joint = bernoulli(p["prior"], STATES) + bernoulli(
        (STATES @ p["weight"] + p["bias"]).unsqueeze(1), x
    ).sum(-1)
    return log_joint, bernoulli(p["offset"], STATES)


def tuples(log_joint, log_q, count):
    """All tuples of `count` states.

    Of each the probability, log weights `[count, tuples, ...]`, and log q of each state.
    """
    index = torch.tensor(list(product(range(len(STATES)), repeat=count))).T
    return log_q[index].sum(0).exp(), (log_joint - log_q)[index], log_q[index]


def expected_bound(log_joint, log_q, count):
    """E log (1/K) sum w, summed over data; its gradient is the truth for VIMCO."""
    probs, log_w, _ = tuples(log_joint, log_q, count)
    return (probs * (log_w.logsumexp(0) - math.log(count))).sum()


def parameters():
    return {name: value.clone().requires_grad_() for name, value in START.items()}


def gradient(value, p):
    grads = torch.autograd.grad(value, list(p.values()), allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(p[n]) if g is None else g for n, g in zip(p, grads, strict=True)}


def flat(by_name, program):
    return torch.cat([by_name[name].reshape(-1) for name, _ in program.named_parameters()])


# ---- estimates -----------------------------------------------------------------------------------


def build(model, guide, x):
    return Program(model, guide).initialise(x)


def gradients(program, objective, x, repeats, divisor=1):
    """Gradients of the objective (not the loss): `[repeats, parameters]`."""
    rows = []
    parts = list(program.parameters())
    for _ in range(repeats):
        loss = objective.differentiable_loss(program.model, program.guide, x)
        grads = torch.autograd.grad(-loss, parts, allow_unused=True)
        pairs = zip(grads, parts, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])
            / divisor
        )
    return torch.stack(rows)


def values(program, objective):
    """Losses of the data: `[40]`, each a mean over copies."""
    return torch.tensor(
        [objective.loss(program.model, program.guide, many(X)) / COPIES for _ in range(40)]
    )


def agree(draws, truth, num_errors=4.0):
    error = draws.std(0) / math.sqrt(len(draws)) + 1e-6
    return bool(((draws.mean(0) - truth).abs() < num_errors * error).all())


def many(x):
    """Copies of each datum: independent draws of its gradient."""
    return x.repeat(COPIES, 1)


def steady(mean):
    baseline = RunningMean()
    baseline.update(torch.tensor(mean))
    return baseline


ESTIMATORS = {
    "reinforce": (REINFORCE, 1),
    "several particles": (lambda: REINFORCE(3), 1),
    "running mean": (lambda: REINFORCE(baseline=steady(-2.0)), 1),
    "rloo": (lambda: RLOO(3), 1),
    "vimco 2": (lambda: VIMCO(2), 2),
    "vimco 3": (lambda: VIMCO(3), 3),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradients_match_enumeration(name):
    make, count = ESTIMATORS[name]
    p = parameters()
    truth = gradient(expected_bound(*densities(p, X), count), p)
    program = build(belief_net, recogniser, X)
    draws = gradients(program, make(), many(X), 60, COPIES)
    assert agree(draws, flat(truth, program))
    guide = flat({n: torch.full_like(v, n in GUIDE) for n, v in START.items()}, program).bool()
    assert (flat(truth, program)[guide].abs() > 0.01).any()  # there is something to find


@pytest.mark.parametrize("name", ["reinforce", "rloo", "vimco 3"])
def test_gradients_for_a_latent_shared_by_all_data(name):
    make, count = ESTIMATORS[name]
    p = parameters()
    truth = gradient(expected_bound(*shared_densities(p, X), count), p)
    program = build(shared_net, shared_recogniser, X)
    assert agree(gradients(program, make(), X, 200), flat(truth, program))


@pytest.mark.parametrize("scale", [3.0, torch.tensor([1.0, 5.0])])
@pytest.mark.parametrize(
    "make",
    [lambda: REINFORCE(2), lambda: RLOO(2), lambda: VIMCO(2), lambda: ReweightedWakeSleep(2)],
)
def test_scales_multiply_the_datum(make, scale):
    """A scale multiplies value and gradient of its datum.

    With equal draws the gradients are equal combinations.
    """
    program = build(belief_net, recogniser, X)

    def grads(factor):
        def scaled(fn):
            return poutine.scale(fn, scale=factor)

        torch.manual_seed(3)
        loss = make().differentiable_loss(scaled(program.model), scaled(program.guide), X)
        return torch.cat(
            [g.reshape(-1) for g in torch.autograd.grad(loss, list(program.parameters()))]
        )

    one_two, two_one = grads(torch.tensor([1.0, 2.0])), grads(torch.tensor([2.0, 1.0]))
    alone = (2 * two_one - one_two) / 3, (2 * one_two - two_one) / 3
    first, second = (scale, scale) if isinstance(scale, float) else scale
    assert torch.allclose(grads(scale), first * alone[0] + second * alone[1], rtol=1e-3, atol=1e-4)


def variance(objective):
    program = build(belief_net, recogniser, X)
    guide = flat({n: torch.full_like(v, n in GUIDE) for n, v in START.items()}, program).bool()
    return gradients(program, objective, X, 300)[:, guide].var(0).sum().item()


class Constant(nn.Module):
    """A baseline that is a number."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


def formula_variance(weigh, count=2):
    """The variance of (1/K) sum_k weigh(log w)_k grad log q(z_k | x), of all data together."""
    p = parameters()
    log_joint, log_q = densities(p, X)
    scores = torch.stack([flat_of_guide(gradient(one, p)) for one in log_q.reshape(-1)]).reshape(
        *log_q.shape, -1
    )  # [states, data, parameters]
    index = torch.tensor(list(product(range(len(STATES)), repeat=count))).T
    probs, log_w, _ = tuples(log_joint.detach(), log_q.detach(), count)
    grads = (weigh(log_w).unsqueeze(-1) * scores[index]).mean(0)  # [tuples, data, parameters]
    mean = (probs.unsqueeze(-1) * grads).sum(0)
    return ((probs.unsqueeze(-1) * grads.square()).sum(0) - mean.square()).sum().item()


def flat_of_guide(by_name):
    return torch.cat([by_name[name].reshape(-1) for name in GUIDE])


def test_noise_of_score_functions_is_that_of_their_formulas():
    """Enumerated: nothing but (log w - b) times the score, with the baseline of each."""
    log_joint, log_q = (value.detach() for value in densities(parameters(), X))
    mean = (log_q.exp() * (log_joint - log_q)).sum(0).mean()
    others = lambda log_w: (log_w - log_w.mean(0)) * 2  # noqa: E731 - K / (K - 1)
    expected = {
        "plain": (REINFORCE(2), formula_variance(lambda log_w: log_w)),
        "constant": (
            REINFORCE(2, baseline=Constant(mean)),
            formula_variance(lambda w: w - mean),
        ),
        "others": (RLOO(2), formula_variance(others)),
    }
    for objective, truth in expected.values():
        assert variance(objective) == pytest.approx(truth, rel=0.25)
    plain, constant, rloo = (truth for _, truth in expected.values())
    assert constant < 0.5 * plain
    assert rloo < plain


def test_latents_made_by_a_flow_have_no_score():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            image = dist.Delta(noise * pyro.param("scale", torch.tensor(2.0)), -math.log(2.0))
            pyro.sample("z", image, infer={"transported": True})

    program = Program(model, guide)
    with pytest.raises(ValueError, match="gradient='score' needs log q at fixed latents"):
        REINFORCE(gradient="score").loss(program.model, program.guide, torch.zeros(2))


def test_vimco_has_less_noise_than_the_plain_score_function_of_its_bound():
    class Plain(VIMCO):
        """The gradient without per-particle signals: L-hat times every score."""

        def value(self, bound):
            draw = bound.draw(self.num_particles)
            joint, score = bound.log_joint(draw.values), draw.score
            log_w = self.log_weights(joint, draw.log_prob)
            total = log_w.logsumexp(0) - math.log(self.num_particles)
            return (total + total.detach() * (score - score.detach()).sum(0)) * joint.scale

    assert variance(VIMCO(4)) < 0.2 * variance(Plain(4))


def test_leave_one_out_bounds_by_their_definition():
    log_w = torch.randn(5, 3, dtype=torch.float64) * 3
    for k in range(5):
        others = torch.cat([log_w[:k], log_w[k + 1 :]])
        changed = torch.cat([others, others.mean(0, keepdim=True)])
        expected = changed.logsumexp(0) - math.log(5)
        assert torch.allclose(leave_one_out_bounds(log_w)[k], expected)
    impossible = torch.tensor([[0.0], [-math.inf]])
    assert torch.isfinite(leave_one_out_bounds(impossible)).all()


def test_running_mean_is_the_weighted_mean_of_the_past():
    baseline, decay = RunningMean(0.8), 0.8
    rewards = torch.tensor([1.0, 4.0, -2.0, 5.0])
    assert baseline().item() == 0.0
    for reward in rewards:
        baseline.update(reward.expand(3))
    weights = decay ** torch.arange(3.0, -1.0, -1.0)
    assert baseline().item() == pytest.approx(
        ((weights * rewards).sum() / weights.sum()).item(), rel=1e-5
    )


def test_running_mean_learns_from_training_alone():
    program, objective = build(belief_net, recogniser, X), REINFORCE(baseline=RunningMean())
    objective.loss(program.model, program.guide, X)
    assert objective.baseline.weight.item() == 0.0
    objective.loss_and_grads(program.model, program.guide, X)
    assert objective.baseline.weight.item() > 0.0


# ---- input-dependent baselines -------------------------------------------------------------------


def with_baseline():
    program = build(belief_net, recogniser, X)
    program.baseline = nn.Sequential(nn.Linear(DIMS, 8), nn.Tanh(), nn.Linear(8, 1))
    return program, REINFORCE(baseline=program.baseline)


def test_input_dependent_baseline_leaves_the_gradient_and_learns_the_reward():
    program, objective = with_baseline()
    p = parameters()
    truth = gradient(expected_bound(*densities(p, X), 1), p)
    own = [name for name, _ in program.named_parameters() if not name.startswith("baseline")]
    draws = gradients(program, objective, many(X), 60, COPIES)[
        :, : sum(START[n].numel() for n in own)
    ]
    assert agree(draws, torch.cat([truth[n].reshape(-1) for n in own]))
    optimizer = torch.optim.Adam(program.baseline.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        objective.differentiable_loss(program.model, program.guide, many(X)).backward()
        optimizer.step()
    log_joint, log_q = densities(START, X)
    expected = (log_q.exp() * (log_joint - log_q)).sum(0)
    assert torch.allclose(program.baseline(X).squeeze(-1), expected, atol=0.1)


def test_input_dependent_baseline_is_trained_saved_and_checked():
    program, objective = with_baseline()
    before = program.baseline[0].weight.clone()
    fit(program, X, objective, steps=3, progress=False)
    assert not torch.equal(before, program.baseline[0].weight)
    assert any(name.startswith("baseline") for name in program.state_dict())
    stranger = REINFORCE(baseline=nn.Linear(DIMS, 1))
    with pytest.raises(ValueError, match=r"program\.baseline = net"):
        fit(build(belief_net, recogniser, X), X, stranger, steps=1, progress=False)
    with pytest.raises(ValueError, match="shared by all data"):
        REINFORCE(baseline=nn.Linear(DIMS, 1)).loss(shared_net, shared_recogniser, X)
    pyro.clear_param_store()


class Forecast(nn.Module):
    """A baseline without parameters: so many columns of ones."""

    def __init__(self, num_columns):
        super().__init__()
        self.num_columns = num_columns

    def forward(self, x):
        return torch.ones(len(x), self.num_columns)


def test_a_fixed_baseline_may_have_a_column_and_no_more():
    program = build(belief_net, recogniser, X)
    assert math.isfinite(REINFORCE(2, baseline=Forecast(1)).loss(program.model, program.guide, X))
    with pytest.raises(ValueError, match="one number for each datum"):
        REINFORCE(2, baseline=Forecast(2)).loss(program.model, program.guide, X)


def test_svi_trains_an_input_dependent_baseline():
    with pyro.get_param_store().scope():
        net = nn.Linear(DIMS, 1)
        before = net.weight.detach().clone()
        svi = pyro.infer.SVI(
            belief_net, recogniser, pyro.optim.Adam({"lr": 0.05}), REINFORCE(baseline=net)
        )
        svi.step(X)
        assert not torch.equal(before, net.weight)


# ---- reweighted wake-sleep -----------------------------------------------------------------------


def wake_gradients(p, x, count):
    """The model's gradient of the bound at fixed guide, and the guide's.

    The latter is E of the sum of normalised weights times scores.
    """
    log_joint, log_q = densities(p, x)
    model = expected_bound(log_joint, log_q.detach(), count)
    probs, log_w, _ = tuples(log_joint.detach(), log_q.detach(), count)
    index_log_q = tuples(log_joint.detach(), log_q, count)[2]
    guide = (probs * (log_w.softmax(0) * index_log_q).sum(0)).sum()
    return model + guide


def sleep_value(p, num_data):
    """E over p(x, z) of log q(z | x), for so many dreams."""
    x = torch.tensor(list(product([0.0, 1.0], repeat=DIMS)))
    log_joint, log_q = densities(p, x)
    return num_data * (log_joint.detach().exp() * log_q).sum()


@pytest.mark.parametrize("sleep", [0.0, 0.3, 1.0])
def test_wake_and_sleep_gradients_match_their_definitions(sleep):
    p = parameters()
    log_joint, log_q = densities(p, X)
    model = gradient(expected_bound(log_joint, log_q.detach(), 3), p)
    wake, dream = gradient(wake_gradients(p, X, 3), p), gradient(sleep_value(p, len(X)), p)
    truth = {n: (1 - sleep) * wake[n] + sleep * dream[n] if n in GUIDE else model[n] for n in p}
    program = build(belief_net, recogniser, X)
    draws = gradients(program, ReweightedWakeSleep(3, sleep=sleep), many(X), 60, COPIES)
    assert agree(draws, flat(truth, program))


def test_wake_phase_weights_each_datum_on_its_own():
    """One joint weight for the minibatch, as Pyro has it, gives another gradient.

    The test can tell them apart.
    """
    p = parameters()
    apart = gradient(wake_gradients(p, X, 2), p)
    log_joint, log_q = (density.detach() for density in densities(p, X))
    live = densities(p, X)[1]
    pairs = [(i, j) for i in range(4) for j in range(4)]
    index = torch.tensor(pairs)
    joint_q = log_q[index[:, 0], 0] + log_q[index[:, 1], 1]
    joint_w = (log_joint - log_q)[index[:, 0], 0] + (log_joint - log_q)[index[:, 1], 1]
    live_q = live[index[:, 0], 0] + live[index[:, 1], 1]
    two = torch.tensor(list(product(range(16), repeat=2))).T
    together = (joint_q[two].sum(0).exp() * (joint_w[two].softmax(0) * live_q[two]).sum(0)).sum()
    wrong = gradient(together, p)
    program = build(belief_net, recogniser, X)
    draws = gradients(program, ReweightedWakeSleep(2), many(X), 60, COPIES)
    names = [n for n, _ in program.named_parameters()]
    columns = torch.cat([torch.full((START[n].numel(),), n == "encoder") for n in names])
    assert agree(draws[:, columns], flat(apart, program)[columns])
    assert not agree(draws[:, columns], flat(wrong, program)[columns])


def test_value_of_reweighted_wake_sleep_is_the_bound():
    program = build(belief_net, recogniser, X)
    losses = values(program, ReweightedWakeSleep(3))
    assert agree(-losses, expected_bound(*densities(START, X), 3))


def test_wake_sleep_of_continuous_latents_does_not_differentiate_through_them():
    """With the posterior as guide all weights are equal.

    The wake gradient of the guide is zero on average.
    """

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.5**0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * pyro.param("slope", torch.tensor(0.5)), scale))

    x = torch.linspace(-2, 2, 400)
    program = Program(model, guide).initialise(x)
    for sleep in (0.0, 1.0):
        draws = gradients(program, ReweightedWakeSleep(2, sleep=sleep), x, 100, len(x))
        assert agree(draws, torch.zeros(2))
        assert draws.std(0).min() > 1e-3


def test_dreams_have_the_dtype_of_the_data():
    """Categories given as floats, which the guide's network takes.

    E log q(z' | x') by enumeration.
    """
    net, probs = nn.Linear(1, 1), torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Categorical(probs[z.long()]), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=net(x.unsqueeze(-1)).squeeze(-1)))

    log_q = torch.stack(
        [nn.functional.logsigmoid(sign * net(torch.arange(3.0)[:, None])[:, 0]) for sign in (-1, 1)]
    )
    truth = torch.autograd.grad(
        (torch.tensor([[0.7], [0.3]]) * probs * log_q).sum(), list(net.parameters())
    )
    x = torch.arange(3.0).repeat(500)
    program = Program(model, guide).initialise(x)
    draws = gradients(program, ReweightedWakeSleep(1, sleep=1.0), x, 100, len(x))
    assert agree(draws, torch.cat([g.reshape(-1) for g in truth]))


# ---- straight-through and relaxed ----------------------------------------------------------------


def test_straight_through_values_are_the_elbo():
    program = build(belief_net, recogniser, X)
    losses = values(program, StraightThrough(4))
    assert agree(-losses, expected_bound(*densities(START, X), 1))


def test_straight_through_gradient_matches_quadrature_of_its_definition():
    """One unit, by E over logistic noise.

    It is E f'(z) sigmoid'((logit + noise) / tau) / tau plus the direct gradient.
    """
    logit, target, tau = torch.tensor(0.4, requires_grad=True), 0.8, 0.7

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4))))

    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    noisy = logit + u.logit()
    soft = (noisy / tau).sigmoid()
    z = (noisy > 0).double() + soft - soft.detach()
    log_q = z * logit - torch.nn.functional.softplus(logit)
    value = (dist.Normal(z, 1.0).log_prob(torch.tensor(target)) + math.log(0.5) - log_q).mean()
    truth = torch.autograd.grad(value, logit)[0]
    x = torch.full((2000,), target)
    program = Program(model, guide).initialise(x)
    draws = gradients(program, StraightThrough(temperature=tau), x, 100, len(x))
    assert agree(draws, truth.float().reshape(1))


def test_straight_through_one_hot_sees_prior_and_likelihood():
    locs = torch.tensor([-1.0, 0.5, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z",
                dist.OneHotCategorical(logits=pyro.param("prior", torch.tensor([0.0, 0.5, 1.0]))),
            )
            pyro.sample("x", dist.Normal((z * locs).sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.OneHotCategorical(logits=pyro.param("logits", torch.tensor([0.1, 0.2, 0.0]))),
            )

    x = torch.full((1000,), 0.3)
    program = Program(model, guide).initialise(x)
    objective = StraightThrough(temperature=0.1)
    q, prior = (
        torch.tensor([0.1, 0.2, 0.0]).softmax(0),
        torch.tensor([0.0, 0.5, 1.0]).log_softmax(0),
    )
    value = (q * (prior + dist.Normal(locs, 1.0).log_prob(torch.tensor(0.3)) - q.log())).sum()
    losses = (
        torch.tensor([objective.loss(program.model, program.guide, x) for _ in range(50)]) / 1000
    )
    assert abs(losses.mean() + value) < 4 * losses.std() / math.sqrt(50)
    loss = objective.differentiable_loss(program.model, program.guide, x) / 1000
    grads = dict(
        zip(
            dict(program.named_parameters()),
            torch.autograd.grad(-loss, list(program.parameters())),
            strict=True,
        )
    )
    assert torch.allclose(
        grads["prior"], q - prior.exp(), atol=0.08
    )  # the exact gradient: E z - softmax(prior)
    assert grads["logits"].sum().abs() < 1e-5
    assert grads["logits"].abs().max() > 1e-3


def test_straight_through_leaves_masked_what_its_distribution_masks():
    seen, locs = (
        torch.tensor([[True, False], [True, True], [False, False]]),
        torch.tensor([-1.0, 0.5, 2.0]),
    )

    def draw(logits):
        return pyro.sample(
            "z", dist.OneHotCategorical(logits=logits).expand([3, 2]).mask(seen).to_event(1)
        )

    def model(x):
        with pyro.plate("data", 3):
            z = draw(torch.tensor([0.0, 1.0, 2.0]))
            pyro.sample("x", dist.Normal((z * locs).sum(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", 3):
            draw(torch.tensor([2.0, 0.0, 1.0]))

    q, p = torch.tensor([2.0, 0.0, 1.0]).softmax(0), torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    fit_of_one = (q * dist.Normal(locs, 1.0).log_prob(torch.tensor(0.3))).sum()
    truth = 6 * fit_of_one - 3 * (q * (q / p).log()).sum()
    x = torch.full((3, 2), 0.3)
    losses = torch.tensor([StraightThrough(100).loss(model, guide, x) for _ in range(20)])
    assert abs(losses.mean() + truth) < 4.5 * losses.std() / math.sqrt(20)


def test_relaxed_latents_are_reparameterised_and_match_quadrature():
    """Concrete densities in model and guide: the ELBO is the integral of its relaxed integrand."""
    tau, x = torch.tensor(0.6), torch.tensor([0.8])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.RelaxedBernoulli(tau, logits=torch.tensor(0.0)))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.RelaxedBernoulli(tau, logits=pyro.param("logit", torch.tensor(0.7)))
            )

    program = Program(model, guide).initialise(x)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    logit = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z = ((logit + u.logit()) / tau).sigmoid()
    q, p = (
        dist.RelaxedBernoulli(tau, logits=logit),
        dist.RelaxedBernoulli(tau, logits=torch.tensor(0.0).double()),
    )
    value = (p.log_prob(z) + dist.Normal(z, 0.5).log_prob(x.double()) - q.log_prob(z)).mean()
    truth = torch.autograd.grad(value, logit)[0]
    draws = gradients(program, ELBO(50), x, 200)
    assert agree(draws, truth.float().reshape(1))


# ---- everything together -------------------------------------------------------------------------


def mixed_model(x):
    """A continuous, a drawn discrete and a summed-out discrete latent for each datum."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(logits=a))
        k = pyro.sample(
            "k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"}
        )
        pyro.sample(
            "x",
            dist.Normal(a + 2 * z + pyro.param("locs", torch.tensor([-1.0, 1.0]))[k], 1.0),
            obs=x,
        )


def mixed_guide(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.8))
        pyro.sample("z", dist.Bernoulli(logits=0.5 * a + pyro.param("logit", torch.tensor(-0.3))))


def mixed_truth(count):
    """Gradient of the bound for one datum by quadrature over a, sums over z and k."""
    p = {
        n: torch.tensor(v, dtype=torch.float64, requires_grad=True)
        for n, v in {"locs": [-1.0, 1.0], "loc": 0.3, "logit": -0.3}.items()
    }
    grid = torch.linspace(-5.5, 5.5, 161, dtype=torch.float64)
    a = p["loc"] + 0.8 * grid
    mass = dist.Normal(torch.zeros_like(grid), 1.0).log_prob(grid).exp()
    mass = mass / mass.sum()
    log_w, log_q = [], []
    for z in (0.0, 1.0):
        z = torch.tensor(z, dtype=torch.float64)
        means = (a + 2 * z).unsqueeze(-1) + p["locs"]
        fit_ = (
            torch.tensor([0.3, 0.7]).double().log()
            + dist.Normal(means, 1.0).log_prob(torch.tensor(0.9))
        ).logsumexp(-1)
        q = dist.Bernoulli(logits=0.5 * a + p["logit"]).log_prob(z)
        prior = dist.Normal(torch.zeros_like(a), 1.0).log_prob(a) + dist.Bernoulli(
            logits=a
        ).log_prob(z)
        log_w.append(prior + fit_ - q - dist.Normal(p["loc"], 0.8).log_prob(a))
        log_q.append(q)
    log_w, probs = torch.cat(log_w), torch.cat([mass * q.exp() for q in log_q])
    if count == 1:
        value = (probs * log_w).sum()
    else:
        pairs = torch.logaddexp(log_w.unsqueeze(0), log_w.unsqueeze(1)) - math.log(2)
        value = (probs.unsqueeze(0) * probs.unsqueeze(1) * pairs).sum()
    return {
        n: g.float() for n, g in zip(p, torch.autograd.grad(value, list(p.values())), strict=True)
    }


@pytest.mark.parametrize(
    ("make", "count"), [(REINFORCE, 1), (lambda: RLOO(3), 1), (lambda: VIMCO(2), 2)]
)
def test_path_and_score_and_enumeration_together(make, count):
    x = torch.full((1500,), 0.9)
    program = Program(mixed_model, mixed_guide).initialise(x)
    truth = mixed_truth(count)
    assert agree(gradients(program, make(), x, 80, len(x)), flat(truth, program))


@pytest.mark.parametrize(
    "objective",
    [
        REINFORCE(2, baseline=RunningMean()),
        RLOO(2),
        VIMCO(3),
        ReweightedWakeSleep(2, sleep=0.5),
        StraightThrough(2),
    ],
    ids=lambda o: type(o).__name__,
)
def test_objectives_are_captured(objective):
    """The captured graph draws what the eager step draws, and reads nothing on the host."""
    losses = []
    for backend in ("eager", None):
        program = build(belief_net, recogniser, X)
        optimizer = torch.optim.Adam(program.parameters(), lr=0.05)
        torch.manual_seed(5)
        if backend:
            step = TrainStep(
                lambda x, p=program: objective.differentiable_loss(p.model, p.guide, x),
                optimizer,
                backend=backend,
            )
            step(X)  # captures
            torch.manual_seed(5)
            program.load_state_dict(build(belief_net, recogniser, X).state_dict())
        loss = (
            objective.differentiable_loss(program.model, program.guide, X).item()
            if not backend
            else step(X).item()
        )
        losses.append(loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["running mean", "input-dependent"])
def test_baselines_learn_inside_the_captured_step(kind):
    program, objective = with_baseline()
    if kind == "running mean":
        program.baseline = RunningMean()
        objective = REINFORCE(baseline=program.baseline)
    state = "weight" if kind == "running mean" else "0.weight"
    optimizer = torch.optim.SGD(program.parameters(), lr=0.05)
    step = TrainStep(
        lambda x: objective.differentiable_loss(program.model, program.guide, x),
        optimizer,
        backend="eager",
    )
    seen = []
    for _ in range(3):
        step(X)
        seen.append(program.baseline.state_dict()[state].clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_gradients_in_double_precision():
    program = build(belief_net, recogniser, X)
    program.baseline = RunningMean()
    program.double()
    for objective in (
        REINFORCE(baseline=program.baseline),
        VIMCO(3),
        ReweightedWakeSleep(2, sleep=0.5),
        StraightThrough(),
    ):
        loss = objective.differentiable_loss(program.model, program.guide, X.double())
        assert loss.dtype == torch.float64
        assert all(
            g.dtype == torch.float64 for g in torch.autograd.grad(loss, list(program.parameters()))
        )


@pytest.mark.cuda
def test_gradients_on_a_cuda_device():
    program = build(belief_net, recogniser, X)
    program.baseline = RunningMean()
    program.to("cuda")
    for objective in (
        REINFORCE(baseline=program.baseline),
        VIMCO(3),
        ReweightedWakeSleep(2, sleep=0.5),
        StraightThrough(),
    ):
        loss = objective.differentiable_loss(program.model, program.guide, X.cuda())
        grads = torch.autograd.grad(loss, list(program.parameters()))
        assert all(g.is_cuda and bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize(
    "make", [lambda: RLOO(4), lambda: VIMCO(4), lambda: ReweightedWakeSleep(4)]
)
def test_fits_reach_the_evidence(make):
    """Data of one belief net, fitted by another: the bound comes near the entropy of the data."""
    x = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]).repeat(20, 1)
    program = build(belief_net, recogniser, x)
    fit(
        program,
        x,
        make(),
        steps=200,
        progress=False,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.05),
    )
    bound = (
        -sum(IWELBOValue().loss(program.model, program.guide, x) for _ in range(20)) / 20 / len(x)
    )
    assert bound > -math.log(2) - 0.15  # nats per datum; no model does better than -log 2


class IWELBOValue(IWELBO):
    """The value alone, for discrete latents."""

    def __init__(self):
        super().__init__(20)

    def check(self, structure):
        pass


# ---- errors --------------------------------------------------------------------------------------


def normal_model(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)


def normal_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


@pytest.mark.parametrize(
    ("objective", "cure"),
    [(REINFORCE(), "ELBO"), (RLOO(2), "ELBO"), (VIMCO(2), "IWELBO"), (StraightThrough(), "ELBO")],
)
def test_reparameterised_programs_are_sent_elsewhere(objective, cure):
    with pytest.raises(ValueError, match=f"use {cure}"):
        objective.loss(normal_model, normal_guide, torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RLOO(1), "at least 2"),
        (lambda: VIMCO(1), "at least 2"),
        (lambda: RunningMean(1.0), "less than 1"),
        (lambda: StraightThrough(temperature=0.0), "positive"),
        (lambda: ReweightedWakeSleep(2, sleep=1.5), "between 0 and 1"),
    ],
)
def test_settings_that_cannot_be_meant(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match="baseline is .*; expected a torch.nn.Module"):
        REINFORCE(baseline=0.5)


def test_wake_sleep_needs_a_guide_and_data_it_can_dream():
    program = Program(normal_model).initialise(torch.zeros(2))
    with pytest.raises(ValueError, match="no guide draws any"):
        ReweightedWakeSleep(2).loss(program.model, program.guide, torch.zeros(2))

    def doubled(x):
        normal_model(2 * x)

    with pytest.raises(ValueError, match="not an argument"):
        ReweightedWakeSleep(2, sleep=1.0).loss(doubled, normal_guide, torch.zeros(2))


def test_straight_through_names_what_it_can_draw():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(z.to(x), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(3) / 3))

    with pytest.raises(ValueError, match="OneHotCategorical"):
        StraightThrough().loss(model, guide, torch.zeros(2))
    with pytest.raises(ValueError, match="VIMCO"):
        IWELBO(3).loss(model, guide, torch.zeros(2))


def test_classes_that_cannot_be_keep_straight_through_finite():
    """Of three classes the third is impossible: the ELBO of the exact posterior is log p(x)."""
    logits = torch.tensor([0.0, 0.0, -torch.inf])
    free = torch.zeros(3, requires_grad=True)

    def model(x):
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.OneHotCategorical(logits=logits))
            pyro.sample("x", dist.Normal(0 * z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 1):
            pyro.sample("z", dist.OneHotCategorical(logits=logits + free))

    loss = StraightThrough(10).differentiable_loss(model, guide, torch.zeros(1))
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * math.log(2 * math.pi), abs=1e-5)
    assert bool(free.grad.isfinite().all())
