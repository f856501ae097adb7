"""Tables of comma-separated values: every row once, to the last digit, or refused with its line."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ppl_dgm.data import load_array
from ppl_dgm.data.tables import read_table


def read(folder: Path, text: str, encoding: str = "utf-8") -> dict[str, list]:
    (folder / "t.csv").write_bytes(text.encode(encoding))
    return {name: column.tolist() for name, column in read_table(folder / "t.csv").items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,2\n3,4\n", {"a": [1, 3], "b": [2, 4]}),
        ("1,2\n3,4\n", {"0": [1, 3], "1": [2, 4]}),
        ("0,1\n0,1\n", {"0": [0, 0], "1": [1, 1]}),
        ("1.5\n2.5\n", {"0": [1.5, 2.5]}),
        ("a , b\n 1, 2\n", {"a": [1], "b": [2]}),
        ("a,b\n1,2\n\n3,4\n\n\n", {"a": [1, 3], "b": [2, 4]}),
        ("a\n1\n2\n\n", {"a": [1, 2]}),
        ("a\r\n1\r\n2\r\n", {"a": [1, 2]}),
        ('"a","b"\n"1","2"\n', {"a": [1], "b": [2]}),
        (",x,y\n0,5,6\n1,7,8\n", {"x": [5, 7], "y": [6, 8]}),
        (",0,1\n0,5,6\n1,7,8\n", {"0": [5, 7], "1": [6, 8]}),
        ("on,x\nTrue,1\nFalse,2\n", {"on": [True, False], "x": [1, 2]}),
        ("x\n9007199254740993\n1\n", {"x": [9007199254740993, 1]}),
        ("x\n1e-300\n-inf\n", {"x": [1e-300, -np.inf]}),
    ],
)
def test_every_value_comes_back(tmp_path: Path, text: str, expected: dict) -> None:
    assert read(tmp_path, text) == expected


def test_a_mark_of_byte_order_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert read(tmp_path, "a,b\n1,2\n", "utf-8-sig") == {"a": [1], "b": [2]}
    assert read(tmp_path, "1,2\n3,5\n", "utf-8-sig") == {"0": [1, 3], "1": [2, 5]}


def test_what_pandas_writes_is_what_it_had(tmp_path: Path) -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(7, 3)), columns=list("abc"))
    for index in (True, False):
        frame.to_csv(tmp_path / "f.csv", index=index)
        found = read_table(tmp_path / "f.csv")
        assert list(found) == ["a", "b", "c"]
        assert np.array_equal(np.stack(list(found.values()), -1), frame.to_numpy())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("a,b\n", "a line of names and no rows"),
        ("1,2,3\n0.5,0.1,0.2\n", "line 1: 1,2,3 may be names or a datum"),
        ("2001,2002\n3,1\n", "line 1: 2001,2002 may be names or a datum"),
        ("a,b\n1,2\n3\n", "line 3: 1 fields; expected 2"),
        ("a,b\n1,2,3\n", "line 2: 3 fields; expected 2"),
        ("a,a\n1,2\n", "line 1: the name 'a' stands twice"),
        ("NA,1\n2,3\n", "line 1: expected a number, got 'NA'"),
        ("a,b\n1,NA\n", "line 2: expected a number, got 'NA'"),
        ("a,b\n1,\n", "line 2: expected a number, got ''"),
        ("a,b\n1,2\n\n3,x\n", "line 4: expected a number, got 'x'"),
        ("a\n1\n\n2\n", "line 3: blank, in a table of one column"),
        (",x\n5,1\n7,2\n", "the first column has no name and is no running number"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_values_that_single_precision_would_move_stay_double(tmp_path: Path) -> None:
    """Times around 1.7e9 and counts beyond 2^24 keep their digits.

    Small numbers take the default dtype.
    """
    for column, dtype in (
        ([1.7e9, 1.7e9 + 1, 1.7e9 + 2], torch.float64),
        ([2**24, 2**24 + 1], torch.float64),
        ([0.25, -1.5, 3.0], torch.float32),
        ([1e-9, 3e-9], torch.float32),
    ):
        np.save(tmp_path / "x.npy", np.array(column))
        x = load_array(tmp_path / "x.npy").x
        assert x.dtype == dtype
        assert np.allclose(x.double().numpy(), column, rtol=1e-7, atol=0)
