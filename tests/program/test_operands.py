"""Dependences that count at few latents only are seen in what operations compute with.

In the programs below a gate is shut at nearly all latents, so that results alone tell nothing.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program, fit
from ppl_dgm.objectives import ELBO
from ppl_dgm.program import operands
from ppl_dgm.program.operands import record

X = torch.randn(40, generator=torch.Generator().manual_seed(0)) + 1
OFFSETS = torch.randn(50, generator=torch.Generator().manual_seed(1))
ONE_DAY, ANOTHER_DAY = torch.eye(50)[33], torch.eye(50)[30]
ZERO = torch.zeros(())


def regression(mean, prior=lambda gate, x: ZERO):
    def model(x):
        gate = pyro.sample("gate", dist.Normal(-9.0, 1.0)).relu()
        pyro.sample("loc", dist.Normal(prior(gate, x), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean(gate, x), 1.0), obs=x)

    return model


def neighbours(x):
    return x.reshape(-1, 2).flip(-1).reshape(x.shape)


OF_ALL_DATA = {
    "mean": regression(lambda gate, x: gate * x.mean()),
    "switched mean": regression(lambda gate, x: torch.where(gate > 0, x.mean(), ZERO)),
    "places": regression(lambda gate, x: gate * torch.arange(len(x))),
    "ranks": regression(lambda gate, x: gate * x.argsort().argsort()),
    "neighbours": regression(lambda gate, x: gate * neighbours(x)),
    "numbers by place": regression(lambda gate, x: gate * OFFSETS[: len(x)]),
    "one odd place": regression(lambda gate, x: gate * ONE_DAY[: len(x)]),
    "one even place": regression(lambda gate, x: gate * ANOTHER_DAY[: len(x)]),
    "size": regression(lambda gate, x: gate * len(x)),
    "size by name": regression(lambda gate, x: torch.add(ZERO, gate, alpha=len(x))),
    "share": regression(lambda gate, x: gate / len(x)),
    "written in place": regression(lambda gate, x: gate * torch.zeros(1).copy_(x.mean())),
    "prior": regression(lambda gate, x: gate, lambda gate, x: gate * x.mean()),
    "open, one place": regression(lambda gate, x: gate + ANOTHER_DAY[: len(x)]),
}


@pytest.mark.parametrize("kind", OF_ALL_DATA)
def test_what_depends_on_all_data_takes_no_part_of_them(kind):
    torch.manual_seed(0)
    program = Program(OF_ALL_DATA[kind])
    assert not program.bind(X).structure.divisible
    with pytest.raises(ValueError, match="batch"):
        fit(program, X, ELBO(), steps=1, batch_size=8, progress=False, compile=False)


@pytest.mark.parametrize("kind", ["mean", "one odd place", "written in place"])
def test_it_is_seen_in_whichever_window_of_a_recording_it_is(kind, monkeypatch):
    monkeypatch.setattr(operands, "WINDOW", 100)  # of runs of a few hundred bytes
    torch.manual_seed(0)
    assert not Program(OF_ALL_DATA[kind]).bind(X).structure.divisible
    assert Program(regression(lambda gate, x: gate)).bind(X).structure.divisible


def test_a_window_keeps_no_more_than_its_size(monkeypatch):
    monkeypatch.setattr(operands, "WINDOW", 10 * 4 * 1000)

    def run():
        x = torch.zeros(1000)
        for _ in range(95):
            x = x.sin()
        return [x]

    windows = [record(run, window=window) for window in range(10)]
    kept = [[one for step in each.steps for one in step.operands] for each in windows]
    assert [sum(one is not None for one in each) for each in kept] == 9 * [10] + [5]
    assert [each.goes_on() for each in windows] == 9 * [True] + [False]
    assert not record(run).goes_on()


OF_ONE_DATUM = {
    "last": regression(lambda gate, x: gate * x[-1]),
    "largest": regression(lambda gate, x: gate * x.max()),
    "largest number": regression(lambda gate, x: gate * int(100 * x.max())),
    "last, seen at all latents": regression(lambda gate, x: gate + x[-1]),
    "order": regression(lambda gate, x: gate * x.sort().values),
}


@pytest.mark.parametrize("size", [5, 40])
@pytest.mark.parametrize("kind", OF_ONE_DATUM)
def test_what_sorted_data_take_from_a_single_one_takes_no_part_of_them(kind, size):
    torch.manual_seed(0)
    assert not Program(OF_ONE_DATUM[kind]).bind(X[:size].sort().values).structure.divisible


def test_what_all_data_take_from_numbers_of_few_bits_is_seen():
    torch.manual_seed(0)
    model = regression(lambda gate, x: gate * x.half().max())
    assert not Program(model).bind(X.sort().values).structure.divisible


OF_ANY_DATUM = {
    "some are high": regression(lambda gate, x: (x > 1.5).any() * 1.0),
    "some are low": regression(lambda gate, x: (x < 0.5).any() * 1.0),
    "all are above": regression(lambda gate, x: (x > 0.5).all() * 1.0),
    "the middle is high": regression(lambda gate, x: (x.median() > 0.0) * 1.0),
    "the size of the largest": regression(lambda gate, x: x.max().sign()),
}


@pytest.mark.parametrize("kind", OF_ANY_DATUM)
def test_what_is_asked_of_any_datum_takes_no_part_of_them(kind):
    torch.manual_seed(0)
    assert not Program(OF_ANY_DATUM[kind]).bind(X.repeat(5)).structure.divisible


def asserted(x):
    gate = pyro.sample("gate", dist.Normal(-9.0, 1.0)).relu()
    assert x.max() < 99, x.sum() / len(x)
    with pyro.plate("data", len(x)) as places:
        pyro.sample("x", dist.Normal(gate + x[places] * 0, 1.0), obs=x[places])


def flattened(x):
    gate = pyro.sample("gate", dist.Normal(-9.0, 1.0)).relu()
    major = torch.stack([x, -x], -1).flatten().abs().reshape(-1, 2)
    minor = torch.stack([x, -x]).flatten().abs().reshape(2, -1)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(gate * major.sum(-1) * minor.sum(0), 1.0), obs=x)


def written(x):
    gate = pyro.sample("gate", dist.Normal(-9.0, 1.0)).relu()
    mean = torch.empty(len(x), 2)
    mean[:, 0], mean[:, 1] = gate, x.square()
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean.prod(-1), 1.0), obs=x)


RNN = torch.nn.GRU(1, 1, batch_first=True)


def packed(x):
    gate = pyro.sample("gate", dist.Normal(-9.0, 1.0)).relu()
    steps, lengths = x[:, None, None].expand(-1, 4, 1), (x * 99).long() % 4 + 1
    packs = torch.nn.utils.rnn.pack_padded_sequence(steps, lengths, True, enforce_sorted=False)
    last = RNN(packs)[1][0, :, 0]
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(gate + last, 1.0), obs=x)


def as_many_components(x):
    with pyro.plate("components", 3):
        locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(locs.mean(-1, keepdim=True), 1.0), obs=x)


MODELS = [asserted, flattened, written, packed, as_many_components]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("size", [2, 3, 40])
def test_what_depends_on_its_own_datum_takes_parts(model, size):
    torch.manual_seed(0)
    assert Program(model).bind(X[:size]).structure.divisible


def local(mean):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mean(z), 1.0), obs=x)

    return model


def shared_guide(x):
    with pyro.plate("data", len(x)):
        noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(noise + (noise.mean(-1, keepdim=True) - 9).relu()))


COUPLED = {
    "mean": (local(lambda z: z + (z.mean(-1, keepdim=True) - 9).relu()), None),
    "last": (local(lambda z: z + (z[..., -1:] - 9).relu()), None),
    "first": (local(lambda z: z + (z[..., :1] - 9).relu()), None),
    "next": (local(lambda z: z + torch.where(z > 9, z.roll(1, -1), 0.0)), None),
    "guide": (local(lambda z: z), shared_guide),
    "own gates": (local(lambda z: z + (z - 9).relu().mean(-1, keepdim=True)), None),
    "gates below": (local(lambda z: z + (-z - 9).relu().roll(1, -1)), None),
    "a gate of Python's": (local(lambda z: z + max(0.0, float(z.mean()) - 9)), None),
}


@pytest.mark.parametrize("size", [2, 3, 40])
@pytest.mark.parametrize("kind", COUPLED)
def test_latents_that_others_see_at_times_make_one_data_set(kind, size):
    torch.manual_seed(0)
    assert Program(*COUPLED[kind]).bind(X[:size]).structure.target == "dataset"


@pytest.mark.parametrize("size", [2, 3, 40])
def test_latents_seen_by_their_own_datum_alone_are_independent(size):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0).to_event(1))
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            both = torch.stack([z, -z], -2).flatten(-2).relu().reshape(*z.shape[:-1], 2, -1)
            pyro.sample("x", dist.Normal(both.sum((-2, -1)) + k, 1.0), obs=x)

    torch.manual_seed(0)
    structure = Program(model).bind(X[:size]).structure
    assert structure.target == "datum"
    assert structure.divisible
