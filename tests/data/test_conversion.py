"""Data as people have them become a program's arguments, or are refused with the cure."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from ppl_dgm import Dataset, Program, evidence, fit
from ppl_dgm.arrays import as_argument
from ppl_dgm.data.conversion import as_arguments
from ppl_dgm.evidence.nested import cube_dim, from_cube
from ppl_dgm.families import bayesnet

X = torch.tensor([1.0, -0.5, 2.0, 0.25])
Y = torch.tensor([0.0, 1.0, 1.0, 2.0])


def regression(
    x: Tensor | None = None, y: Tensor | None = None, other: Tensor | None = None
) -> None:
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


class Pairs(TorchDataset):
    """A map-style data set of named items."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        if place >= len(X):
            raise IndexError
        return {"x": X[place], "y": Y[place]}


class Stream(IterableDataset):
    """An iterable data set of pairs."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


class Table:
    """What a Hugging Face data set shows of itself."""

    column_names = ("x", "y")

    def __getitem__(self, name: str) -> list[float]:
        return {"x": X.tolist(), "y": Y.tolist()}[name]


FORMS: dict[str, object] = {
    "a tuple of tensors": (X, Y),
    "a list of tensors": [X, Y],
    "a dict of tensors": {"x": X, "y": Y},
    "NumPy arrays": (X.numpy(), Y.numpy()),
    "a DataFrame": pd.DataFrame({"x": X.numpy(), "y": Y.numpy()}),
    "Series": (pd.Series(X.numpy()), pd.Series(Y.numpy())),
    "a Dataset": Dataset((X, Y)),
    "a torch TensorDataset": TensorDataset(X, Y),
    "a map-style data set": Pairs(),
    "an iterable data set": Stream(),
    "a DataLoader": DataLoader(TensorDataset(X, Y), batch_size=3),
    "lists of numbers": {"x": X.tolist(), "y": Y.tolist()},
    "a table": Table(),
    "another byte order": (X.numpy().astype(">f4"), Y.numpy()),
    "a reversed view": (X.numpy()[::-1].copy()[::-1], Y.numpy()),
    "long doubles": (X.numpy().astype(np.longdouble), Y.numpy()),
    "objects": (np.array([*X.tolist()], dtype=object), pd.Series(map(Decimal, Y.int().tolist()))),
    "lists of NumPy's scalars": {"x": list(X.numpy()), "y": list(Y.numpy().astype(np.int32))},
    "a structured array": np.rec.fromarrays([X.numpy(), Y.numpy()], names="x,y"),
    "columns that may have gaps": pd.DataFrame({"x": X.numpy(), "y": Y.numpy()}).convert_dtypes(),
    "a range": {"x": X, "y": Y, "other": range(4)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_data(form: str) -> None:
    """The evidence of N(y; x / 2, 1), whatever the data came in; estimators and fits alike."""
    truth = torch.distributions.Normal(0.5 * X, 1.0).log_prob(Y)
    args, kwargs = as_arguments(FORMS[form])
    found = evidence.Exact()(Program(regression), *args, **kwargs).log_z
    torch.testing.assert_close(found.float(), truth)
    first = fit(Program(regression), FORMS[form], steps=1, progress=False).history["objective"]
    assert first.item() == pytest.approx(truth.mean().item(), rel=1e-5)


def test_estimators_take_tables_and_arrays_as_they_are() -> None:
    truth = torch.distributions.Normal(0.5 * X, 1.0).log_prob(Y)
    for data in (FORMS["a DataFrame"], FORMS["a DataLoader"], FORMS["a map-style data set"]):
        found = evidence.Exact()(Program(regression), data).log_z
        torch.testing.assert_close(found.float(), truth)
    found = evidence.Exact()(Program(regression), X.numpy(), y=pd.Series(Y.numpy())).log_z
    torch.testing.assert_close(found.float(), truth)


def test_matrices_of_cells_and_sparse_ones() -> None:
    dense = np.array([[0.0, 1.0], [2.0, 0.0]])
    cells = SimpleNamespace(X=scipy.sparse.csr_matrix(dense), obs=None, var=None)
    (x,), named = as_arguments(cells)
    assert torch.equal(x, torch.tensor(dense))
    assert not named


def test_nested_lists_are_one_array() -> None:
    assert torch.equal(
        as_arguments([[1, 0], [0, 1], [1, 1]])[0][0], torch.tensor([[1, 0], [0, 1], [1, 1]])
    )
    assert len(as_arguments([[1, 2], [3]])[0]) == 2  # of several lengths: two arguments


class Images:
    """A table whose column is a list of arrays and lists."""

    column_names = ("x",)

    def __getitem__(self, name: str) -> list:
        return [np.eye(2, dtype="uint8"), [[1, 2], [3, 4]]]


def test_columns_of_a_table_may_be_lists_of_rows() -> None:
    found = as_arguments(Images())[1]["x"]
    assert found.tolist() == [[[1, 0], [0, 1]], [[1, 2], [3, 4]]]


def test_unsigned_integers_are_not_wrapped() -> None:
    assert as_argument(np.array([2**63 - 1], dtype="uint64")).tolist() == [2**63 - 1]
    with pytest.raises(ValueError, match=r"holds 9223372036854775813, more than 64-bit"):
        as_argument(np.array([2**63 + 5], dtype="uint64"))


def test_arrays_in_a_dict_are_converted() -> None:
    net = bayesnet.naive_bayes(2, 2)
    bits = np.array([[0, 1, 1], [1, 0, 1]])
    columns = dict(zip(("y", "x1", "x2"), bits.T, strict=True))
    truth = evidence.Exact()(net, torch.tensor(bits)).log_z
    assert torch.equal(evidence.Exact()(net, columns).log_z, truth)
    assert torch.equal(
        evidence.Exact()(net, {n: c.tolist() for n, c in columns.items()}).log_z, truth
    )
    counted = bayesnet.naive_bayes(2, 2).fit_counts(columns).nodes["x1"].probs.clone()
    assert torch.equal(counted, net.fit_counts(bits).nodes["x1"].probs)


@pytest.mark.parametrize(("data", "stars"), [((X, Y), r"\*data"), ({"x": X, "y": Y}, r"\*\*data")])
def test_a_nest_given_as_one_argument(data: object, stars: str) -> None:
    """What fit spreads over arguments is one of them in a call of an estimator."""
    with pytest.raises(ValueError, match=f"is one argument here; .* write {stars}"):
        evidence.Exact()(Program(regression), data)


def weighted(x: Tensor, y: Tensor | None = None) -> None:
    weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weights, 1.0), obs=y)


def test_matrices_of_doubles_run_in_the_programs_dtype(caplog: pytest.LogCaptureFixture) -> None:
    """Torch refuses a matrix of doubles times a vector of floats, which is what users have."""
    x, y = torch.stack([X, Y], 1), Y - X
    kinds = (x, y), (x.double().numpy(), y.double().numpy())
    results = [
        fit(Program(weighted, AutoNormal(weighted)), data, steps=3, progress=False)
        for data in kinds
    ]
    assert torch.equal(*(one.history["objective"] for one in results))
    assert [record.getMessage() for record in caplog.records] == [
        "real data are converted to torch.float32, in which alone the program runs"
    ]
    found = evidence.Laplace()(Program(weighted), *kinds[1])
    zero = torch.zeros(4, dtype=torch.float64)
    truth = dist.MultivariateNormal(zero, (x @ x.T + torch.eye(4)).double()).log_prob(y.double())
    assert abs(float(found.log_z - truth)) < 4 * float(found.std_error)
    with pytest.raises(ValueError, match="failed on its first run.*size mismatch"):
        evidence.Laplace()(Program(weighted), kinds[1][0][:, :1], y)


def test_nested_sampling_of_matrices() -> None:
    x, y = torch.stack([X, Y], 1), Y - X
    bound = Program(weighted).bind(x, y).in_double()
    assert cube_dim(bound) == 2
    assert from_cube(bound, np.array([0.5, 0.5]))["weights"].tolist() == [[0.0, 0.0]]


def test_what_is_read_once_is_refused_everywhere() -> None:
    with pytest.raises(TypeError, match="are a generator, which can be read once only"):
        evidence.Exact()(Program(regression), (one for one in X), Y)


def test_loaders_that_leave_data_out_say_so() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, drop_last=True)
    with pytest.warns(UserWarning, match=r"drops its last batch .* 1 of 4 data are left out"):
        assert len(evidence.Exact()(Program(regression), loader).log_z) == 3


def test_columns_that_a_program_does_not_take() -> None:
    frame = pd.DataFrame({"x": X.numpy(), "y": Y.numpy(), "id": [1, 2, 3, 4]})
    with pytest.raises(ValueError, match=r"argument 'id'. Every column or tensor .* leave out"):
        fit(Program(regression), frame, steps=1, progress=False)


def test_memory_maps_and_read_only_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert torch.equal(as_argument(mapped), X)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float64", torch.float64),
        ("float32", torch.float32),
        ("int64", torch.int64),
        ("uint8", torch.uint8),
        ("uint16", torch.int64),
        ("uint32", torch.int64),
        ("bool", torch.bool),
    ],
)
def test_kinds_of_numbers_are_kept(dtype: str, expected: torch.dtype) -> None:
    assert as_argument(np.ones(3, dtype=dtype)).dtype == expected


def test_what_is_no_array_is_handed_on() -> None:
    for value in (3, 2.5, None, "option", (1, 2), [X, Y], {"a": X}):
        assert as_argument(value) is value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text", "the data are a str; expected a Tensor, a NumPy array"),
        ({1.0, 2.0}, "the data are a set"),
        (iter([1.0]), "the data are a list_iterator"),
        (3.0, "the data are a float"),
        (None, "the data are a NoneType"),
        (len, "the data are a builtin_function"),
        (np.array(["a", "b"]), "the ndarray holds .*not numbers; turn categories into codes"),
        (pd.DataFrame({"x": ["a", "b"]}), "the Series holds .*not numbers"),
        (np.ones(2) * 1j, "the ndarray is complex"),
        (torch.ones(2) * 1j, "the data are complex"),
        (torch.eye(2).to_sparse(), "sparse tensor; expected a dense one"),
        (np.ma.array([1.0, 2.0], mask=[True, False]), "the MaskedArray masks 1 values; leave"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "datetime64.*turn dates into numbers"),
        (np.array([None, 1.0]), "the ndarray holds object, not numbers"),
        (pd.DataFrame([[1, 2]], columns=["x", "x"]), "'x' stands above two columns"),
        (DataLoader([(1.0, "a"), (2.0, "b")]), "argument 1 of the batches is a tuple, not numbers"),
    ],
)
def test_what_cannot_be_meant_is_refused(data: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fit(Program(regression), data, steps=1, progress=False)
