"""Streams in fits and evidence: the same as data in memory, without having them there."""

import gc
import subprocess
import sys
import weakref
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ppl_dgm import Program, compare, fit, posterior
from ppl_dgm.data import Stream
from ppl_dgm.data import stream as streams
from ppl_dgm.data.stream import size_of
from ppl_dgm.evidence import Exact, ImportanceSampling, auto
from ppl_dgm.evidence import streaming as evidence_streams
from ppl_dgm.families import VAE, IndependentBernoulli, Mixture
from ppl_dgm.fitting.streaming import StreamedBatches
from ppl_dgm.objectives import ELBO

X = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
ADAM = partial(torch.optim.Adam, lr=0.05)
quietly = partial(fit, progress=False, compile=False, optimizer=ADAM)


class Items(IterableDataset):
    """One datum after the other."""

    def __iter__(self):
        return iter(X)


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    return np.load(tmp_path / "x.npy", mmap_mode="r")


def kinds(mapped):
    return {
        "mapped": Stream(mapped),
        "function": Stream(lambda: iter(X.split(70)), num_data=300),
        "items": Stream(Items()),
        "loader": Stream(DataLoader(TensorDataset(X), batch_size=32)),
        "dataset": Stream(TensorDataset(X)),
    }


@pytest.mark.parametrize("kind", ["mapped", "function", "items", "loader", "dataset"])
def test_streams_give_all_data_in_parts_of_one_size(kind, mapped):
    stream = kinds(mapped)[kind]
    parts = [args[0] for args, _ in stream.parts(64)]
    assert [len(part) for part in parts] == [64, 64, 64, 64, 44]
    assert torch.equal(torch.cat(parts), X)
    assert stream.num_data == (None if kind == "items" else 300)


@pytest.mark.parametrize("kind", ["mapped", "function", "items", "loader", "dataset"])
def test_evidence_of_a_stream_is_that_of_its_data(kind, mapped):
    stream, mixture = kinds(mapped)[kind], Mixture(3, 2)
    assert torch.allclose(Exact()(mixture, stream).log_z, Exact()(mixture, X).log_z)


@pytest.mark.parametrize(("rows", "double"), [(300, True), (301, False)])  # a last part of one
def test_a_stream_has_the_digest_of_its_data(rows, double, monkeypatch):
    """So that they stand in one table; other values of the same number do not."""
    monkeypatch.setattr(evidence_streams, "PART", 60)
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x if double else x.float()
    mixture, net = Mixture(3, 2).to(x.dtype), Program(columns)
    found = {
        "stream": Exact()(mixture, Stream(lambda: iter(x.split(70)))),
        "memory": Exact()(mixture, x),
        "sites": Exact()(net, Stream(lambda: iter(x.split(70)))),
    }
    assert len({one.digest for one in found.values()}) == 1
    assert len(compare(found).rows) == 3
    other = Exact()(mixture, Stream(lambda: iter((x + 1).split(70))))
    with pytest.raises(ValueError, match="different data"):
        compare({"memory": found["memory"], "other": other})


def test_a_last_part_of_a_loop_has_fewer_sites(monkeypatch):
    monkeypatch.setattr(evidence_streams, "PART", 4)

    def loop(x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x{i}", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x[i])

    found = Exact()(Program(loop), Stream(lambda: iter(X[:10].split(3))))
    whole = Exact()(Program(loop), X[:10])
    assert torch.allclose(found.log_z, whole.log_z)
    assert found.digest == whole.digest


def columns(x):
    with pyro.plate("data", len(x)):
        for column in range(3):
            pyro.sample(f"x{column}", dist.Normal(0.0, 1.0), obs=x[:, column])


def test_a_fit_of_a_stream_goes_where_the_closed_form_is(mapped):
    exact = Mixture(3, 1)
    exact.fit_em(X)
    best = float(Exact()(exact, X).log_z.mean())
    for kind in ("mapped", "function"):
        mixture, stream = Mixture(3, 1), kinds(mapped)[kind]
        found = quietly(mixture, stream, steps=150, batch_size=100, valid=stream, valid_every=150)
        assert float(found.history["valid"][-1]) == pytest.approx(best, abs=0.05)


def test_indexed_streams_shuffle_each_epoch(mapped):
    def orders(seed):
        make = StreamedBatches(
            (), {}, 300, 100, seed, stream=Stream(mapped), read=lambda part: part
        )
        dealt = make.from_step(0)
        return [next(dealt)[1].batch[0][0] for _ in range(6)]

    first = orders(0)
    one, two = torch.cat(first[:3]), torch.cat(first[3:])
    assert not torch.equal(one, two)
    assert torch.equal(one.sort(0).values, X.sort(0).values)
    assert torch.equal(two.sort(0).values, X.sort(0).values)
    assert all(torch.equal(a, b) for a, b in zip(first, orders(0), strict=True))
    assert not torch.equal(first[0], orders(1)[0])


def shared(x=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 300 if x is None else len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared_guide(x=None):
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.1))


def test_latents_shared_by_a_stream_count_once():
    x = X[:, 0].contiguous()
    settings = {"steps": 40, "optimizer": partial(torch.optim.SGD, lr=0.0)}
    batches = lambda: iter(x.split(30))  # noqa: E731
    stream = Stream(batches, num_data=300)
    found = quietly(Program(shared, shared_guide), stream, ELBO(20), batch_size=30, **settings)
    whole = quietly(Program(shared, shared_guide), x, ELBO(20), **settings)
    for name in ("objective", "kl"):
        assert float(found.history[name].mean()) == pytest.approx(
            float(whole.history[name].mean()), abs=0.01
        )
    with pytest.raises(ValueError, match=r"shared by all data.*Stream\(source, num_data"):
        quietly(Program(shared, shared_guide), Stream(batches), steps=3)
    with pytest.raises(ValueError, match="latents are shared by all of them"):
        ImportanceSampling(5)(Program(shared, shared_guide), stream)


def test_named_columns_and_epochs():
    def line(t, y=None):
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("data", len(t)):
            pyro.sample("y", dist.Normal(slope * t, 1.0), obs=y)

    t = torch.linspace(-1, 1, 200)
    batches = lambda: ({"t": a, "y": 3 * a} for a in t.split(50))  # noqa: E731
    program = Program(line, site="y")
    found = quietly(program, Stream(batches, num_data=200), epochs=40, batch_size=100)
    assert found.steps == 80
    assert program.get_parameter("slope").item() == pytest.approx(3.0, abs=0.5)
    with pytest.raises(ValueError, match="epochs are counted"):
        quietly(program, Stream(batches), epochs=1)


def test_a_resumed_fit_reads_on_where_it_was(mapped, tmp_path):
    for number, stream in enumerate((Stream(mapped), Stream(lambda: iter(X.split(70))))):
        whole, parts = Mixture(3, 2), Mixture(3, 2)
        parts.load_state_dict(whole.state_dict())
        settings = {"batch_size": 64}
        quietly(whole, stream, steps=9, checkpoint=tmp_path / f"a{number}", **settings)
        for steps in (4, 9):
            quietly(parts, stream, steps=steps, checkpoint=tmp_path / f"b{number}", **settings)
        assert all(
            torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True)
        )


def test_large_arrays_and_loaders_stream_by_themselves(mapped, monkeypatch):
    monkeypatch.setattr(streams, "IN_MEMORY", 1000)
    assert isinstance(streams.opened(mapped), Stream)
    assert isinstance(streams.opened(Items()), Stream)
    loader = DataLoader(TensorDataset(X), batch_size=32)
    mixture = Mixture(3, 1)
    assert quietly(mixture, loader, epochs=1, batch_size=100).steps == 3
    found, right = auto(mixture, loader), Exact()(mixture, mapped)
    assert torch.equal(found.log_z, right.log_z)
    assert found.digest == right.digest
    monkeypatch.setattr(streams, "IN_MEMORY", 2**30)
    assert torch.equal(streams.opened(Items())[0][0], X)


def batches_of(*sizes):
    """Batches of rows of X and as many numbers."""
    return lambda: iter([(X[:n], X[:n, 0]) for n in sizes])


def read(stream, size=64):
    return [size_of(part) for part in stream.parts(size)]


@pytest.mark.parametrize(
    ("loader", "known"),
    [
        (DataLoader(TensorDataset(X), batch_size=64), 300),
        (DataLoader(TensorDataset(X), batch_size=64, drop_last=True), 256),
        (DataLoader(TensorDataset(X), batch_size=64, sampler=range(100)), 100),
        (DataLoader(TensorDataset(X), batch_sampler=[range(100)]), None),
    ],
)
def test_a_stream_knows_what_its_loader_gives(loader, known):
    """Latents that all data share are weighed by this number."""
    stream = Stream(loader)
    assert stream.num_data == known
    assert sum(read(stream)) == (known or 100)


def test_a_wrong_number_of_data_is_told():
    stream = Stream(batches_of(40, 50), num_data=100)
    with pytest.warns(UserWarning, match=r"100 data\) gave 90 data; epochs and latents"):
        assert read(stream) == [64, 26]
    with pytest.raises(ValueError, match="num_data is 100; the source has 300 rows"):
        Stream(X, num_data=100)


def test_what_is_read_once_is_told_at_the_second_reading():
    once = batches_of(40, 50)()
    stream = Stream(lambda: once)
    assert read(stream) == [64, 26]
    with pytest.raises(TypeError, match=r"same list_iterator again.*once only; make a new one"):
        read(stream)
    rest = batches_of(40, 50)()
    stream = Stream(lambda: (one for one in rest), num_data=90)
    with pytest.raises(ValueError, match="gives no data; expected a batch at each reading"):
        quietly(Mixture(3, 1, "diagonal"), Stream(lambda: (x for x, _ in rest)), steps=9)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([(X[:2], X[:3])], "a batch has tensors of shapes .* same first dimension"),
        ([(X[:2], X[:2]), (X[:2],)], "batch 2 has 1 positional argument, the first one 2"),
        ([{"x": X[:2]}, {"x": X[:2], "y": X[:2]}], "batch 2 has .* 'x', 'y', the first .* 'x';"),
        ([X[:2], X[:2, :1]], "argument 0 has data of several shapes"),
        (None, "the function of the stream returned a NoneType; expected an iterator"),
    ],
)
def test_batches_that_do_not_fit_each_other(batches, message):
    with pytest.raises((TypeError, ValueError), match=message):
        read(Stream(lambda: batches))


def test_arrays_of_several_arguments_are_streamed(mapped, monkeypatch):
    def line(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    monkeypatch.setattr(streams, "IN_MEMORY", 100)
    monkeypatch.setattr(evidence_streams, "PART", 64)
    columns = mapped[:, 0], mapped[:, 1]
    for stream in (streams.opened(columns), streams.opened(dict(zip("xy", columns, strict=True)))):
        assert isinstance(stream, Stream)
        assert read(stream) == [64, 64, 64, 64, 44]
    found = Exact()(Program(line), *columns).log_z
    truth = dist.Normal(X[:, 0].double(), 1.0).log_prob(X[:, 1].double())
    torch.testing.assert_close(found, truth)
    with pytest.raises(ValueError, match=r"arrays have \[300, 299\] rows"):
        Stream((mapped, mapped[1:]))


class CountedReads(IterableDataset):
    """Data in another order at each reading."""

    def __init__(self):
        self.reads = 0

    def __iter__(self):
        self.reads += 1
        return iter(X.roll(self.reads, 0))


def test_all_programs_see_the_data_of_one_reading():
    """Of a loader that shuffles, rows of two readings are no pairs."""
    programs = {name: Mixture(3, 1, "diagonal") for name in ("a", "b")}
    with torch.no_grad():
        programs["b"].model.fn.components.locs += 0.5
    data = CountedReads()
    found = compare(programs, data)
    assert data.reads == 1
    assert (
        found.rows[1].difference_error == compare(programs, X.roll(1, 0)).rows[1].difference_error
    )
    Exact()(programs["a"], data)
    assert data.reads == 2


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of torch's fork, on 3.12
def test_workers_that_read_the_same_data_are_told():
    with pytest.warns(UserWarning, match="two workers of the loader gave the same first batch"):
        assert sum(read(Stream(DataLoader(Items(), batch_size=200, num_workers=2)))) == 600


def test_what_needs_all_data_says_so(mapped):
    with pytest.raises(TypeError, match="needed together here, but they are a Stream"):
        posterior(VAE(3, 1, [2]), Stream(mapped))
    with pytest.raises(ValueError, match="a Stream is given beside other data"):
        Exact()(Mixture(3, 1), Stream(mapped), X)
    with pytest.raises(TypeError, match="the source is a list_iterator; expected an array"):
        Stream(iter([X]))
    with pytest.raises(ValueError, match="gives no data"):
        quietly(Mixture(3, 1), Stream(lambda: iter(())), steps=1)


MEMORY = """
import itertools, re, torch, ppl_dgm
from ppl_dgm.data import Stream
from ppl_dgm.evidence import Exact
from ppl_dgm.families import IndependentBernoulli

def batches():
    for _ in range({count}):
        yield (torch.rand(4096, 256) < 0.3).float()

program = IndependentBernoulli(256)
Exact()(program, next(batches()))
most = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
before = most()
ppl_dgm.fit(program, Stream(batches), steps={count}, batch_size=4096, progress=False, compile=False)
few = lambda: itertools.islice(batches(), 5)
Exact()(program, Stream(few))
print(most() - before, most())
"""


def test_few_parts_are_in_memory_at_once():
    """Batches of 1 MB, twenty and more: one or two are held, and no copies of the others."""
    alive, most, sizes = set(), [], []

    def batches(count):
        for number in range(count):
            batch = np.full((1024, 256), number % 2, dtype="float32")
            alive.add(number)
            weakref.finalize(batch, alive.discard, number)
            yield batch
            del batch
            most.append(len(alive))
        sizes.append(held_by_tensors())

    before = held_by_tensors()
    program = IndependentBernoulli(256)
    quietly(program, Stream(partial(batches, 21)), steps=22, batch_size=1024)
    Exact()(program, Stream(partial(batches, 5)))
    assert len(most) == 21 + 5
    assert max(most) <= 2
    assert len(sizes) == 2
    assert max(sizes) - before < 11


def held_by_tensors() -> float:
    """Megabytes of all dense tensors that this process has now."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
    return sum(one.nbytes for one in tensors if one.layout is torch.strided) / 2**20


@pytest.mark.slow
def test_memory_stays_bounded():
    """20 GB in batches of 4 MB, fitted and judged, in 50 MB more than one takes."""
    found = subprocess.run(
        [sys.executable, "-c", MEMORY.format(count=4800)],
        capture_output=True,
        text=True,
        check=True,
    )
    growth, most = map(float, found.stdout.split())
    assert growth < 50
    assert most < 1024
