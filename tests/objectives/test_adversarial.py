"""GAN and FGAN: the best critic against p / (p + q), penalties, fits, Pyro's SVI."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_dgm import NonFiniteError, Program, fit
from ppl_dgm.families import MADE, Generator
from ppl_dgm.nn import MLP, spectral_normalised
from ppl_dgm.objectives import FGAN, GAN, AdversarialLoss, named_divergence
from ppl_dgm.objectives.adversarial_losses import LOSSES
from ppl_dgm.objectives.critics import Judge

quietly = partial(fit, progress=False, compile=False)
adam = partial(torch.optim.Adam, lr=0.02, betas=(0.0, 0.99))
frozen = partial(torch.optim.SGD, lr=0.0)

REAL = torch.tensor([0.0] * 2 + [1.0] * 3 + [2.0] * 5).unsqueeze(-1)
DRAWN = torch.tensor([0.0] * 4 + [1.0] * 4 + [2.0] * 2).unsqueeze(-1)
P, Q = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.4, 0.4, 0.2])


def constant(x: Tensor | None = None) -> None:
    """Draws that are always the same ten, moved by a parameter."""
    offset = pyro.param("offset", torch.tensor(0.0))
    with pyro.plate("data", 10):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("x", DRAWN + offset, event_dim=1)


class Table(nn.Module):
    """A free score for each of the values 0, 1, 2."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores[x.squeeze(-1).long()]


def best_scores(game: GAN, table: Table) -> Tensor:
    """Scores of the best critic between the data and the draws."""
    program = Program(constant).initialise(REAL)
    optimizer = torch.optim.LBFGS(table.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = game.critic_loss(program.model, program.guide, REAL)
        loss.backward()
        return loss

    optimizer.step(closure)
    return table.scores.detach()


# ---- the best critic -----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["minimax", "nonsaturating"])
def test_the_best_critic_tells_p_over_p_plus_q(loss: str) -> None:
    table = Table()
    judged = torch.sigmoid(best_scores(GAN(table, loss), table))
    assert torch.allclose(judged, P / (P + Q), atol=1e-4)


def test_its_value_is_twice_jensen_shannon_less_log_4() -> None:
    table = Table()
    game = GAN(table, "minimax")
    best_scores(game, table)
    program = Program(constant).initialise(REAL)
    value = -game.critic_loss(program.model, program.guide, REAL).item() / 10
    truth = 2 * named_divergence("js").between(P, Q).item() - math.log(4)
    assert value == pytest.approx(truth, abs=1e-5)
    # the generator minimises the part of V that it moves, E_q log(1 - D)
    part = (Q * (Q / (P + Q)).log()).sum().item()
    moved = game.generator_loss(program.model, program.guide, REAL).item() / 10
    assert moved == pytest.approx(part, abs=1e-4)


def test_the_best_critic_with_smoothed_labels() -> None:
    table = Table()
    judged = torch.sigmoid(best_scores(GAN(table, smoothing=0.1), table))
    assert torch.allclose(judged, 0.9 * P / (P + Q), atol=1e-4)


@pytest.mark.parametrize(("smoothing", "share"), [(0.0, 1.0), (0.2, 0.8)])
def test_the_best_critic_of_least_squares(smoothing: float, share: float) -> None:
    table = Table()
    scores = best_scores(GAN(table, "least_squares", smoothing=smoothing), table)
    assert torch.allclose(scores, share * P / (P + Q), atol=1e-4)


def test_the_best_critic_of_the_hinge() -> None:
    """It is sign(p - q), with the loss 2 sum min(p, q): no other is below."""
    table = Table()
    game, program = GAN(table, "hinge"), Program(constant).initialise(REAL)

    def loss(scores: Tensor) -> float:
        table.scores.data.copy_(scores)
        return game.critic_loss(program.model, program.guide, REAL).item() / 10

    best = loss(torch.sign(P - Q))
    assert best == pytest.approx(2 * torch.minimum(P, Q).sum().item(), rel=1e-5)
    assert all(loss(1.5 * torch.randn(3)) > best - 1e-6 for _ in range(200))


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "js", "hellinger", "pearson", "gan"])
def test_the_best_critic_of_a_divergence(divergence: str) -> None:
    table = Table()
    game = FGAN(table, divergence)
    best_scores(game, table)
    program = Program(constant).initialise(REAL)
    value = -game.critic_loss(program.model, program.guide, REAL).item() / 10
    assert value == pytest.approx(game.divergence.between(P, Q).item(), abs=1e-4)


def test_generators_minimise_what_their_papers_say() -> None:
    scores = torch.linspace(-3, 3, 7)
    judged = torch.sigmoid(scores)
    expected = {
        "minimax": (1 - judged).log(),
        "nonsaturating": -judged.log(),
        "least_squares": (scores - 1) ** 2 / 2,
        "hinge": -scores,
        "wasserstein": -scores,
    }
    assert expected.keys() == LOSSES.keys()
    for name, values in expected.items():
        assert torch.allclose(LOSSES[name].generator(scores), values, atol=1e-5), name


# ---- penalties, packs ----------------------------------------------------------------------------


def linear_critic(*weight: float) -> nn.Linear:
    critic = nn.Linear(len(weight), 1, bias=False)
    critic.weight.data.copy_(torch.tensor([weight]))
    return critic


def drawing(rows: Tensor) -> Program:
    def model(x: Tensor | None = None) -> None:
        shift = pyro.param("shift", torch.zeros(rows.shape[1]))
        with pyro.plate("data", len(rows)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("x", rows + shift, event_dim=1)

    return Program(model)


def test_gradient_penalties_of_a_linear_critic() -> None:
    """Its gradient is its weight, 5 long: 10 (5 - 1)^2 and 0.6 / 2 5^2."""
    x, drawn = torch.randn(6, 2), torch.randn(6, 2)
    program = drawing(drawn).initialise(x)
    critic = linear_critic(3.0, 4.0)
    gap = (critic(drawn) - critic(x)).mean().item()
    for settings, penalty in (({}, 160.0), ({"gradient_penalty": 0.0, "r1": 0.6}, 7.5)):
        game = GAN(critic, "wasserstein", **settings)
        loss = game.critic_loss(program.model, program.guide, x).item() / 6
        assert loss == pytest.approx(gap + penalty, rel=1e-5)


def test_penalties_teach_the_critic() -> None:
    """d/dw of 0.6 / 2 |w|^2 is 0.6 w: the penalty is differentiated with respect to the critic."""
    x = torch.randn(6, 2)
    program, critic = drawing(x).initialise(x), linear_critic(3.0, 4.0)
    game = GAN(critic, "wasserstein", gradient_penalty=0.0, r1=0.6)
    game.critic_loss(program.model, program.guide, x).backward()
    assert torch.allclose(critic.weight.grad / 6, 0.6 * critic.weight, atol=1e-4)


@pytest.mark.parametrize("one_sided", [False, True])
def test_only_the_two_sided_penalty_bars_slopes_of_the_wrong_sign(one_sided: bool) -> None:
    """Of means 1 apart the loss is one of two.

    w + 2 (|w| - 1)^2 is least at 3/4 and -5/4; the other is w + 2 (w - 1)_+^2.
    """
    x = torch.zeros(6, 1)
    program, critic = drawing(x + 1).initialise(x), linear_critic(0.0)
    game = GAN(critic, "wasserstein", gradient_penalty=2.0, one_sided=one_sided)

    def slope(weight: float) -> float:
        critic.weight.data.fill_(weight)
        critic.zero_grad()
        game.critic_loss(program.model, program.guide, x).backward()
        return critic.weight.grad.item() / 6

    assert slope(-1.25) == pytest.approx(0.0, abs=1e-4)
    at_wrong_sign = {False: 1 + 4 * (0.5 - 1), True: 1.0}
    assert slope(0.5) == pytest.approx(at_wrong_sign[one_sided], abs=1e-4)


def test_the_gradient_penalty_is_taken_between_data_and_draws() -> None:
    """Of c(x) = x^2 / 2 the gradient is x itself: all points are between the two."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []
            self.weight = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x)
            return self.weight * x.square().sum(-1)

    x, drawn = torch.full((400, 1), 1.0), torch.full((400, 1), 3.0)
    program, critic = drawing(drawn).initialise(x), Square()
    GAN(critic, "wasserstein").critic_loss(program.model, program.guide, x)
    between = critic.seen[-1]
    assert 1.0 <= between.min().item() < 1.1
    assert 2.9 < between.max().item() <= 3.0
    assert between.mean().item() == pytest.approx(2.0, abs=4 * 2 / math.sqrt(12 * 400))


def test_spectral_norms_go_to_one() -> None:
    net = spectral_normalised(MLP(3, [8, 8], 1))
    for _ in range(100):
        net(torch.randn(4, 3))
    norms = [torch.linalg.matrix_norm(net[i].weight, 2).item() for i in (0, 2, 4)]
    assert norms == pytest.approx([1.0, 1.0, 1.0], abs=1e-3)
    x, y = torch.randn(2, 500, 3)
    assert bool(((net(x) - net(y)).abs() <= 1.001 * (x - y).norm(dim=-1, keepdim=True)).all())
    with pytest.raises(ValueError, match="no linear or convolutional layer"):
        spectral_normalised(nn.ReLU())


def test_a_packed_critic_sees_several_data_at_once() -> None:
    seen = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.sum(-1)

    x, drawn = torch.arange(14.0).reshape(7, 2), -torch.arange(14.0).reshape(7, 2)
    program = drawing(drawn).initialise(x)
    game = GAN(Watching(), AdversarialLoss(lambda s: s, lambda s: -s, lambda s: s), pack=3)
    loss = game.critic_loss(program.model, program.guide, x)
    assert torch.equal(seen[0], x[:6].reshape(2, 6))
    assert torch.equal(seen[1], drawn[:6].reshape(2, 6))
    assert loss.item() == pytest.approx(7 * 2 * x[:6].sum().item() / 2)  # the mean of two packs
    with pytest.raises(ValueError, match="has 2 data, fewer than a pack of 3"):
        Judge(Watching(), pack=3).packed(x[:2])


def test_packs_of_images_are_stacked_by_channel() -> None:
    judge = Judge(nn.Flatten(), pack=2)
    images = torch.arange(4 * 3 * 2 * 2).reshape(4, 3, 2, 2)
    assert torch.equal(judge.packed(images)[0], torch.cat([images[0], images[1]]))


def test_labels_reach_the_critic() -> None:
    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Linear(2, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.scores(torch.stack([x, y], -1))

    def model(x: Tensor | None, y: Tensor) -> None:
        means = pyro.param("means", torch.zeros(2))
        with pyro.plate("data", len(y)):
            pyro.sample("x", dist.Normal(means[y.long()], 0.5), obs=x)

    y = torch.arange(400) % 2
    x = torch.where(y == 1, 2.0, -1.0) + 0.5 * torch.randn(400)
    program = Program(model)
    game = GAN(Conditional(), optimizer=adam)
    quietly(program, {"x": x, "y": y.float()}, game, steps=10, optimizer=adam)
    quietly(program, (x, y.float()), game, steps=10, optimizer=adam)
    assert bool((program.get_parameter("means") != 0).all())


# ---- fits ----------------------------------------------------------------------------------------


def normal_data(num_data: int = 2000) -> Tensor:
    return 3 + 0.5 * torch.randn(num_data, 1, generator=torch.Generator().manual_seed(5))


class Quadratic(nn.Module):
    """c(x) = a + b x + c x^2, which holds the log ratio of any two normals."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(-1)
        return torch.stack([torch.ones_like(x), x, x.square()], -1) @ self.coefficients


STABLE: dict[str, Callable[[], GAN]] = {
    "nonsaturating": lambda: GAN(MLP(1, [16], 1), r1=0.1, optimizer=adam),
    "minimax": lambda: GAN(MLP(1, [16], 1), "minimax", r1=0.1, optimizer=adam),
    "least squares": lambda: GAN(MLP(1, [16], 1), "least_squares", r1=0.1, optimizer=adam),
    "hinge": lambda: GAN(MLP(1, [16], 1), "hinge", r1=0.1, optimizer=adam),
    "wasserstein": lambda: GAN(
        MLP(1, [16], 1, nn.LeakyReLU),
        "wasserstein",
        num_steps=3,
        one_sided=True,
        optimizer=adam,
    ),
    "spectral norm": lambda: GAN(
        spectral_normalised(MLP(1, [16], 1, nn.LeakyReLU)), "hinge", num_steps=2, optimizer=adam
    ),
    "packed": lambda: GAN(MLP(2, [16], 1), r1=0.1, pack=2, optimizer=adam),
    "smoothed": lambda: GAN(MLP(1, [16], 1), r1=0.1, smoothing=0.1, optimizer=adam),
    "kl": lambda: FGAN(MLP(1, [16], 1), "kl", r1=0.1, optimizer=adam),
    "pearson": lambda: FGAN(MLP(1, [16], 1), "pearson", nonsaturating=True, r1=0.1, optimizer=adam),
}


@pytest.mark.parametrize(
    "name",
    [n if n == "nonsaturating" else pytest.param(n, marks=pytest.mark.slow) for n in STABLE],
)
def test_each_objective_learns_a_normal(name: str) -> None:
    torch.manual_seed(1)
    generator, game = Generator(nn.Linear(1, 1), 1, 1), STABLE[name]()
    game.ema = 0.99
    data = normal_data()
    assert game.loss(generator.model, generator.guide, data) / 2000 > 3
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.997)
    settings = {"optimizer": adam, "schedule": schedule, "batch_size": 100}
    result = quietly(generator, data, game, steps=500, **settings)
    averaged = result.averages["generator"]
    assert game.loss(averaged.model, averaged.guide, data) / 2000 < 0.1  # one point has 0.23


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)),
        nn.Sequential(nn.Unflatten(1, (2, 1)), nn.ConvTranspose1d(2, 1, 3), nn.Flatten()),
    ],
    ids=["batch normalisation", "convolution"],
)
def test_generators_of_batches_alone_are_taught(
    net: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    """Nets that take `[N, L]` and no more dimensions, of which nobody asks for particles."""
    generator, x = Generator(net, 2, 3), torch.randn(8, 3)
    result = quietly(generator, x, GAN(MLP(3, [4], 1)), steps=2, compile=False)
    assert result.stopped == "finished"
    assert not caplog.records
    assert generator.sample(5).shape == (5, 3)


def test_a_program_that_samples_its_data_is_taught() -> None:
    def model(x: Tensor | None = None) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("x", dist.Normal(loc, 0.5).expand([1]).to_event(1), obs=x)

    program = Program(model)
    game = GAN(MLP(1, [16], 1), r1=0.1, optimizer=adam)
    quietly(program, normal_data(), game, steps=300, batch_size=100, optimizer=adam)
    assert program.density == "exact"
    assert program.get_parameter("loc").item() == pytest.approx(3.0, abs=0.2)


def test_data_may_be_numbers() -> None:
    """A penalised round and its validation, as of vectors of one number."""

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = MLP(1, [8], 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.reshape(-1, 1))

    found = []
    for x in (torch.linspace(0, 1, 20), torch.linspace(0, 1, 20).unsqueeze(1)):

        def model(x: Tensor) -> None:
            loc = pyro.param("loc", torch.tensor(0.0))
            with pyro.plate("data", len(x), dim=-1):
                event = dist.Normal(loc, 0.5)
                pyro.sample("x", event if x.dim() == 1 else event.expand([1]).to_event(1), obs=x)

        torch.manual_seed(0)
        game = GAN(Critic(), r1=1.0, gradient_penalty=1.0)
        result = quietly(Program(model), x, game, steps=2, valid=x, seed=0)
        found.append(torch.cat([result.history["critic"], result.history["valid"]]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_programs_that_draw_nothing_take_minibatches(batch_size: int | None) -> None:
    """Of given noise, one step of each player, by hand and with losses per datum."""
    torch.manual_seed(0)
    x, noise = torch.randn(20, 2), torch.randn(20, 3)
    net, critic, sizes = nn.Linear(3, 2), nn.Linear(5, 1), []

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = critic

        def forward(self, x: Tensor, noise: Tensor) -> Tensor:
            sizes.append(len(x))
            return self.net(torch.cat([x, noise], -1))

    def model(x: Tensor, noise: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(noise)):
            pyro.deterministic("x", net(noise), event_dim=1)

    draws = net(noise).detach()
    on_data, on_draws = (critic(torch.cat([v, noise], -1)) for v in (x, draws))
    loss = (-on_data.sigmoid().log() - (1 - on_draws.sigmoid()).log()).mean()
    gradient = torch.autograd.grad(loss, critic.weight)[0]
    expected = critic.weight.detach() - 0.1 * gradient
    sgd = partial(torch.optim.SGD, lr=0.1)
    data = {"x": x, "noise": noise}
    result = quietly(
        Program(model), data, GAN(Critic()), steps=1, batch_size=batch_size, optimizer=sgd, seed=0
    )
    assert set(sizes) == {batch_size or 20}
    if batch_size is None:
        assert result.history["critic"].item() == pytest.approx(-loss.item(), rel=1e-5)
        torch.testing.assert_close(critic.weight.detach(), expected)


def test_programs_that_mix_their_data_take_no_part_of_them() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.deterministic("y", x - x.mean(0), event_dim=1)

    x = torch.randn(20, 2)
    with pytest.raises(ValueError, match="does not take a part of its 20 data"):
        quietly(Program(model), (x, x), GAN(nn.Linear(4, 1), site="y"), steps=1, batch_size=5)


def test_the_critics_history_is_the_divergence() -> None:
    """KL(N(3, 1/4) || N(2.5, 1/4)) = 0.5, by a critic that holds the log ratio."""
    net = nn.Linear(1, 1)
    net.weight.data.fill_(0.5)
    net.bias.data.fill_(2.5)
    game = FGAN(Quadratic(), optimizer=partial(torch.optim.Adam, lr=0.2))
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.98)
    settings = {"optimizer": frozen, "clip_norm": 1.0, "schedule": schedule}
    history = quietly(Generator(net, 1, 1), normal_data(), game, steps=250, **settings).history
    assert history["critic"][-100:].mean().item() == pytest.approx(0.5, abs=0.05)


def test_validation_on_single_data_is_the_energy_score() -> None:
    """2 E|x - y| - E|y - y'| of y ~ N(0, 1); without the second term the best draws are a point."""
    net = nn.Linear(1, 1)
    net.weight.data.fill_(1.0)
    net.bias.data.fill_(0.0)
    generator, game = Generator(net, 1, 1), GAN(Table())
    torch.manual_seed(0)
    zero = torch.zeros(1, 1)
    found = [game.loss(generator.model, generator.guide, zero) for _ in range(3000)]
    truth = 2 * math.sqrt(2 / math.pi) - 2 / math.sqrt(math.pi)
    assert sum(found) / 3000 == pytest.approx(truth, abs=0.05)


def test_validation_watches_the_energy_distance() -> None:
    """Between N(0, 1) and N(3, 1/4), by quadrature over both; it falls as the generator learns."""
    net = nn.Linear(1, 1)
    net.weight.data.fill_(1.0)
    net.bias.data.fill_(0.0)
    generator, game = Generator(net, 1, 1), GAN(MLP(1, [16], 1), r1=0.1, optimizer=adam)
    before = game.loss(generator.model, generator.guide, normal_data()) / 2000

    def absolute(mean: float, variance: float) -> float:
        scale = math.sqrt(variance)
        ratio = mean / scale
        return mean * math.erf(ratio / math.sqrt(2)) + scale * math.sqrt(2 / math.pi) * math.exp(
            -(ratio**2) / 2
        )

    truth = 2 * absolute(3, 1.25) - absolute(0, 2.0) - absolute(0, 0.5)
    assert before == pytest.approx(truth, rel=0.03)
    settings = {"steps": 300, "batch_size": 100, "valid": normal_data(500), "valid_every": 100}
    valid = quietly(generator, normal_data(), game, optimizer=adam, **settings).history["valid"]
    assert valid[0].item() > -truth
    assert valid[-1].item() > -0.1 * truth


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nonsaturating", "wasserstein", "spectral norm", "kl"])
def test_compiled_rounds_equal_eager_ones(name: str) -> None:
    histories = []
    for compile in (False, True):
        torch.manual_seed(1)
        generator, game = Generator(MLP(1, [4], 1), 1, 1), STABLE[name]()
        settings = {"steps": 12, "batch_size": 50, "compile": compile}
        result = quietly(generator, normal_data(500), game, optimizer=adam, **settings)
        histories.append(result.history)
        assert (result.compile_seconds > 0) is compile
    for player in ("generator", "critic"):
        assert torch.allclose(histories[0][player], histories[1][player], atol=1e-4), player


def test_a_checkpoint_goes_on_with_its_own_critic(tmp_path: Path) -> None:
    """Another critic's start is no other game: the file has what was learned."""
    wasserstein = STABLE["wasserstein"]
    ends = []
    for first in (6, 3):
        for start, steps in enumerate((first, 6)):
            torch.manual_seed(start)
            generator, game = Generator(nn.Linear(1, 1), 1, 1), wasserstein()
            settings = {"checkpoint": tmp_path / f"{first}.pt", "batch_size": 50}
            quietly(generator, normal_data(100), game, steps=steps, **settings)
        ends.append([p.tolist() for p in (*generator.parameters(), *game.critic.parameters())])
    assert ends[0] == ends[1]
    other = GAN(
        MLP(1, [16], 1, nn.LeakyReLU),
        "wasserstein",
        num_steps=3,
        one_sided=True,
        r1=1.0,
        optimizer=adam,
    )
    with pytest.raises(ValueError, match="of another fit: .*r1 is 1.0, not 0.0"):
        quietly(generator, normal_data(100), other, steps=7, **settings)


def test_svi_takes_it_as_a_loss() -> None:
    data, game = normal_data(200), GAN(MLP(1, [16], 1), r1=0.1)

    def model(x: Tensor | None = None) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 0.5).to_event(1))
            pyro.deterministic("x", loc + z, event_dim=1)

    with pyro.get_param_store().scope():
        optimizer = pyro.optim.Adam({"lr": 0.02, "betas": (0.5, 0.9)})
        svi = pyro.infer.SVI(model, lambda x=None: None, optimizer, loss=game)
        for _ in range(200):
            svi.step(data)
        assert pyro.param("loc").item() == pytest.approx(3.0, abs=0.5)
        assert svi.evaluate_loss(data) / 200 < 0.3


def test_a_generator_with_noise_is_a_latent_program() -> None:
    generator = Generator(MLP(2, [4], 3), 2, 3)
    noisy = generator.with_noise(0.3)
    assert (generator.density, noisy.density) == ("implicit", "latent")
    assert list(noisy.parameters()) == list(generator.parameters())
    draws = noisy.sample(20000)
    z = torch.randn(20000, 2)
    with torch.no_grad():
        clean = generator.model.fn.net(z)
    assert torch.allclose(draws.mean(0), clean.mean(0), atol=0.05)
    assert torch.allclose(draws.var(0), clean.var(0) + 0.09, atol=0.05)


# ---- bad input -----------------------------------------------------------------------------------


X = torch.randn(6, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GAN(MLP(1, [4], 2)), r"critic maps \(6, 1\) to \(6, 2\); expected one score"),
        (
            lambda: GAN(nn.Sequential(nn.Linear(1, 1), nn.Flatten(0), nn.Linear(6, 1))),
            "expected one",
        ),
        (lambda: GAN(Table(), "bce"), "loss is 'bce'; expected one of .*FGAN's"),
        (lambda: GAN(lambda x: x), "critic is a function; expected a torch.nn.Module"),
        (lambda: GAN(Table(), r1=-1.0), "r1 is -1.0; expected a weight"),
        (lambda: GAN(Table(), gradient_penalty=math.nan), "gradient_penalty is nan"),
        (lambda: GAN(Table(), pack=0), "pack is 0; expected at least 1"),
        (lambda: GAN(Table(), smoothing=0.9), "smoothing is 0.9; expected a share"),
        (lambda: FGAN(Table(), smoothing=0.1), "FGAN takes no smoothing.*no labels to smooth"),
        (lambda: FGAN(Table(), loss="hinge"), "FGAN takes no loss: .*or use GAN"),
        (lambda: GAN(Table(), "wasserstein", smoothing=0.1), "tells no labels; leave it out"),
        (lambda: GAN(MLP(1, [4], 1), site="y"), "no site 'y', only .*'x'.*site=..."),
        (lambda: GAN(MLP(1, [4], 1), num_steps=0), "num_steps is 0; expected at least 1"),
        (lambda: GAN(MLP(1, [4], 1), ema=2.0), "ema is 2.0; expected at least 0 and less than 1"),
    ],
)  # fmt: skip
def test_bad_games(make: Callable[[], GAN], message: str) -> None:
    generator = Generator(nn.Linear(1, 1), 1, 1)
    before = [p.clone() for p in generator.parameters()]
    with pytest.raises((ValueError, TypeError), match=message):
        quietly(generator, X, make(), steps=2)
    assert all(torch.equal(a, b) for a, b in zip(before, generator.parameters(), strict=True))


def test_a_critic_that_shares_the_generators_net_is_refused() -> None:
    net = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="'generator' and 'critic' share a parameter"):
        quietly(Generator(net, 1, 1), X, GAN(net), steps=2)


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (lambda: MADE(1, [4]), (X > 0).float(), "from a .* without a path gradient.*rsample"),
        (lambda: Generator(nn.Linear(1, 2), 1, 2), X, r"draws \(6, 2\) .* data are \(6, 1\)"),
        (
            lambda: Generator(nn.Linear(1, 2), 1, 1),
            X,
            r"net maps .* to \(6, 2\); expected \(6, 1\)",
        ),
        (
            lambda: Generator(nn.Linear(1, 1), 1, 1, noise=0.0),
            X,
            "noise is 0.0; expected the positive",
        ),
        (lambda: Generator(nn.Linear(1, 1), 1, 1, noise="big"), X, "noise is 'big'; expected"),
    ],
)  # fmt: skip
def test_bad_programs(make: Callable[[], Program], data: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quietly(make(), data, GAN(MLP(1, [4], 1)), steps=2)


def test_a_critic_that_leaves_the_numbers_names_itself() -> None:
    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(40.0))

        def forward(self, x: Tensor) -> Any:
            return (self.weight * self.weight.square()).exp() * x

    with pytest.raises(NonFiniteError, match="the player 'critic' or its gradient"):
        quietly(Generator(nn.Linear(1, 1), 1, 1), X, GAN(Overflowing()), steps=3)
