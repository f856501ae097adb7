"""Loaders of bundled digits, of users' files, and of published files.

The latter come from a folder, the cache or a server.
"""

import gzip
import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from sklearn import datasets as sklearn_datasets

from ppl_dgm.data import (
    files,
    load_array,
    load_binarized_mnist,
    load_digits,
    load_mnist,
    loaders,
)


def test_digits_are_those_of_scikit_learn():
    images, labels = sklearn_datasets.load_digits(return_X_y=True)
    digits = load_digits(levels=17)
    assert sorted(map(tuple, digits.x.long().tolist())) == sorted(
        map(tuple, images.astype(int).tolist())
    )
    assert digits.labels.bincount().tolist() == np.bincount(labels).tolist()
    first = next(i for i, row in enumerate(digits.x) if np.array_equal(row, images[0]))
    assert digits.labels[first] == labels[0]


def test_binary_digits_are_thresholded_grey_ones():
    binary, grey = load_digits(), load_digits(levels=17)
    assert torch.equal(binary.x, (grey.x >= 8).float())
    assert torch.equal(binary.labels, grey.labels)
    assert binary.split_sizes == (1197, 200, 400)
    assert len(set(load_digits(seed=1).labels[:50].tolist())) == 10
    assert not torch.equal(load_digits(seed=1).x, binary.x)


def test_standard_split_of_the_digits_is_fixed():
    assert (
        load_digits().test.digest
        == "b25d2e2301ff4b759e7aa069f34235c7df06829a806ea84db286bf7e5e4a969e"
    )


def test_arrays_come_back_as_they_were_saved(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 3))
    np.save(tmp_path / "one.npy", x)
    np.savez(tmp_path / "one.npz", whatever=x)
    np.savetxt(tmp_path / "bare.csv", x, delimiter=",")
    np.savetxt(tmp_path / "named.csv", x, delimiter=",", header="a,b,c", comments="")
    for name in ("one.npy", "one.npz", "bare.csv", "named.csv"):
        data = load_array(tmp_path / name)
        torch.testing.assert_close(data.args[0], torch.tensor(x, dtype=torch.float32))
        assert data.name == name.split(".")[0]


def test_a_table_of_one_column_is_read_without_a_warning(tmp_path):
    np.savetxt(tmp_path / "column.csv", np.arange(5.0))
    assert load_array(tmp_path / "column.csv").x.tolist() == [[0.0], [1.0], [2.0], [3.0], [4.0]]


def test_several_arrays_are_named_arguments(tmp_path):
    np.savez(
        tmp_path / "many.npz", sigma=np.ones(4), x=np.arange(4), group=np.arange(4, dtype=np.uint8)
    )
    data = load_array(tmp_path / "many.npz", support=4)
    assert {name: value.dtype for name, value in data.kwargs.items()} == {
        "sigma": torch.float32,
        "x": torch.float32,
        "group": torch.int64,
    }
    assert data.levels == 4
    assert torch.equal(data.x, torch.arange(4.0))


def test_arrays_called_train_and_test_are_splits(tmp_path):
    np.savez(tmp_path / "split.npz", test=np.full((2, 3), 2.0), train=np.full((4, 3), 1.0))
    data = load_array(tmp_path / "split.npz")
    assert data.split_sizes == (4, 0, 2)
    assert data.train.x.unique().tolist() == [1.0]
    assert data.test.x.unique().tolist() == [2.0]
    with pytest.raises(ValueError, match="the valid split of data set 'split' is empty"):
        _ = data.valid


def test_default_dtype_is_respected(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 2), dtype=np.float32))
    torch.set_default_dtype(torch.float64)
    try:
        assert load_array(tmp_path / "x.npy").x.dtype == torch.float64
        assert load_digits().x.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_pickles_are_never_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ValueError, match="not a file of plain arrays"):
            load_array(tmp_path / name)


def write_amat(folder, parts):
    for name, bits in parts.items():
        lines = "".join(" ".join(map(str, row)) + "\n" for row in bits.tolist())
        (folder / f"binarized_mnist_{name}.amat").write_text(lines)


def write_idx(path, array):
    sizes = np.array(array.shape, dtype=">u4").tobytes()
    content = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def tiny_binary(monkeypatch):
    """A tiny stand-in for binarised MNIST, with its checksums in place of the published ones."""
    rng = np.random.default_rng(0)
    parts = {
        name: rng.integers(0, 2, (n, 784), dtype=np.uint8)
        for name, n in (("train", 5), ("valid", 2), ("test", 3))
    }
    digests = {name: hashlib.sha256(bits.tobytes()).hexdigest() for name, bits in parts.items()}
    monkeypatch.setattr(loaders, "BINARIZED_MNIST_SHA256", digests)
    return parts


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder with a tiny stand-in for MNIST."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "idx"
    folder.mkdir()
    monkeypatch.setattr(loaders, "MNIST_SPLIT_SIZES", (4, 3, 5))
    arrays = {
        "train-images-idx3-ubyte.gz": rng.integers(0, 256, (7, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte.gz": rng.integers(0, 10, 7, dtype=np.uint8),
        "t10k-images-idx3-ubyte.gz": rng.integers(0, 256, (5, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte.gz": rng.integers(0, 10, 5, dtype=np.uint8),
    }
    for name, array in arrays.items():
        write_idx(folder / name, array)
    return folder, arrays


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv(files.CACHE_VARIABLE, str(folder))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


@pytest.fixture
def server(tmp_path):
    """A folder and the address under which this machine serves it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            """Says nothing."""

    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


CLOSED = "http://127.0.0.1:9/"


def serve_binary(monkeypatch, folder, mirrors):
    checksums = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.amat"))
    }
    monkeypatch.setattr(
        loaders, "BINARIZED_MNIST", files.Source("binarized_mnist", mirrors, checksums)
    )


def check_binary(data, parts):
    for name, bits in parts.items():
        assert torch.equal(getattr(data, name).x, torch.as_tensor(bits).float())
    assert data.levels == 2
    assert data.as_images().event_shape == (1, 28, 28)


def test_binarised_mnist_from_a_folder_of_either_layout(tmp_path, tiny_binary):
    (tmp_path / "amat").mkdir()
    write_amat(tmp_path / "amat", tiny_binary)
    check_binary(load_binarized_mnist(tmp_path / "amat"), tiny_binary)
    (tmp_path / "packed").mkdir()
    packed = {name: np.packbits(bits, axis=1) for name, bits in tiny_binary.items()}
    np.savez(tmp_path / "packed" / "binarized_mnist.npz", **packed)
    check_binary(load_binarized_mnist(str(tmp_path / "packed")), tiny_binary)


def test_download_goes_to_the_cache_once(monkeypatch, server, cache, tiny_binary):
    folder, address = server
    write_amat(folder, tiny_binary)
    serve_binary(monkeypatch, folder, (CLOSED, address))  # the first mirror is down
    check_binary(load_binarized_mnist(), tiny_binary)
    for path in folder.glob("*.amat"):
        path.unlink()
    check_binary(load_binarized_mnist(download=False), tiny_binary)
    assert sorted(path.name for path in (cache / "binarized_mnist").iterdir()) == sorted(
        loaders.BINARIZED_MNIST.sha256
    )


def test_damaged_cache_is_fetched_again(monkeypatch, server, cache, tiny_binary):
    folder, address = server
    write_amat(folder, tiny_binary)
    serve_binary(monkeypatch, folder, (address,))
    load_binarized_mnist()
    (cache / "binarized_mnist" / "binarized_mnist_test.amat").write_text("0 1 0")
    check_binary(load_binarized_mnist(), tiny_binary)


def test_wrong_checksum_is_refused_and_not_kept(monkeypatch, server, cache, tiny_binary):
    folder, address = server
    write_amat(folder, tiny_binary)
    serve_binary(monkeypatch, folder, (address,))
    (folder / "binarized_mnist_train.amat").write_text("something else")
    with pytest.raises(FileNotFoundError, match="(?s)binarized_mnist_train.amat: .*hash"):
        load_binarized_mnist()
    assert not (cache / "binarized_mnist" / "binarized_mnist_train.amat").exists()


@pytest.mark.parametrize("load", [load_binarized_mnist, load_mnist])
@pytest.mark.parametrize("download", [True, False])
def test_offline_error_says_both_ways(monkeypatch, cache, load, download):
    for name in ("BINARIZED_MNIST", "MNIST"):
        source = getattr(loaders, name)
        monkeypatch.setattr(loaders, name, files.Source(source.name, (CLOSED,), source.sha256))
    with pytest.raises(FileNotFoundError, match=f"(?s){CLOSED}|download=False") as caught:
        load(download=download)
    message = str(caught.value)
    assert "machine with network access" in message
    assert "folder=" in message
    assert str(cache) in message


def test_other_pixels_than_the_published_are_refused(tmp_path, tiny_binary):
    tiny_binary["test"][0, 0] ^= 1
    write_amat(tmp_path, tiny_binary)
    with pytest.raises(ValueError, match="the test part is not that of statically binarised MNIST"):
        load_binarized_mnist(tmp_path)


def test_mnist_from_idx_files(tiny_mnist):
    folder, arrays = tiny_mnist
    data = load_mnist(folder)
    images = np.concatenate(
        [arrays["train-images-idx3-ubyte.gz"], arrays["t10k-images-idx3-ubyte.gz"]]
    )
    assert torch.equal(data.as_images().x[:, 0], torch.as_tensor(images).float())
    assert data.test.labels.tolist() == arrays["t10k-labels-idx1-ubyte.gz"].tolist()
    assert data.train.labels.tolist() == arrays["train-labels-idx1-ubyte.gz"][:4].tolist()
    assert data.levels == 256


def test_mnist_reads_unzipped_files_too(tiny_mnist):
    folder, arrays = tiny_mnist
    for name, array in arrays.items():
        (folder / name).unlink()
        write_idx(folder / name.removesuffix(".gz"), array)
    assert len(load_mnist(folder)) == 12


def test_mnist_is_downloaded_with_its_checksums(monkeypatch, tiny_mnist, server, cache):
    (source, arrays), (folder, address) = tiny_mnist, server
    for path in source.iterdir():
        path.rename(folder / path.name)
    checksums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in arrays}
    monkeypatch.setattr(loaders, "MNIST", files.Source("mnist", (address,), checksums))
    assert len(load_mnist()) == 12
    assert (cache / "mnist" / "t10k-labels-idx1-ubyte.gz").is_file()


def test_published_pixels_match_the_published_checksums(shared, tmp_path):
    path = shared / "data" / "binarized_mnist.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    data = load_binarized_mnist(path.parent)
    means = [round(float(part.x.mean()), 5) for part in (data.train, data.valid, data.test)]
    assert means == [0.13056, 0.13113, 0.13251]
    characters = np.full((10_000, 784, 2), ord(" "), dtype=np.uint8)
    characters[..., 0] = data.test.x.numpy().astype(np.uint8) + ord("0")
    characters[:, -1, 1] = ord("\n")
    expected = loaders.BINARIZED_MNIST.sha256["binarized_mnist_test.amat"]
    assert hashlib.sha256(characters.tobytes()).hexdigest() == expected


def write_bad_idx(folder, content):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    return load_mnist(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x00\x00\x0d\x01", "not an idx file"), (b"\x00\x00\x08\x01\x00\x00\x00\x05ab", "damaged")],
)
def test_bad_idx_files_are_named(tiny_mnist, content, message):
    with pytest.raises(ValueError, match=message):
        write_bad_idx(tiny_mnist[0], content)


def test_mnist_of_another_size_is_refused(tiny_mnist):
    write_idx(tiny_mnist[0] / "t10k-labels-idx1-ubyte.gz", np.zeros(4, dtype=np.uint8))
    with pytest.raises(ValueError, match="expected 12 images"):
        load_mnist(tiny_mnist[0])


def test_truncated_pixels_are_refused(tmp_path, tiny_binary):
    write_amat(tmp_path, tiny_binary)
    (tmp_path / "binarized_mnist_valid.amat").write_text("0 1 1\n")
    with pytest.raises(ValueError, match="holds 3 pixels"):
        load_binarized_mnist(tmp_path)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: load_digits(levels=3), ValueError, "levels=2 .* levels=17"),
        (lambda: load_array("no/such.npz"), FileNotFoundError, "there is no file"),
        (lambda: load_array("data.mat"), ValueError, "expected a .npy, .npz or .csv file"),
    ],
)
def test_bad_arguments_say_what_was_expected(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.npz", b"PK\x03\x04 no archive", "not a file of plain arrays"),
        ("broken.npy", b"\x93NUMPY", "not a file of plain arrays"),
        ("empty.npy", b"", "not a file of plain arrays"),
        ("words.csv", b"a,b\n1,two\n", "words.csv, line 2: expected a number, got 'two'"),
        ("empty.csv", b"", "empty.csv has no rows"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_array(tmp_path / name)


def test_splits_of_unequal_shapes_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", train=np.zeros((2, 3)), test=np.zeros((2, 4)))
    with pytest.raises(ValueError, match="must have equal event shapes"):
        load_array(tmp_path / "x.npz")
