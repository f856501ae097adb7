"""Loaders of published data sets and the user's files."""

import gzip
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import constraints

from ppl_dgm.checked import checked
from ppl_dgm.data.dataset import SPLIT_NAMES, Dataset
from ppl_dgm.data.files import Source, fetch, missing
from ppl_dgm.data.tables import read_table

__all__ = ["load_array", "load_binarized_mnist", "load_digits", "load_mnist"]

NEGLIGIBLE = 1e-5  # share of a column's spread by which rounding may move a value
DIGITS_SPLIT_SIZES = (1197, 200, 400)
MNIST_SPLIT_SIZES = (50_000, 10_000, 10_000)

BINARIZED_MNIST = Source(
    name="binarized_mnist",
    mirrors=("http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",),
    sha256={
        "binarized_mnist_train.amat": (
            "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"
        ),
        "binarized_mnist_valid.amat": (
            "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"
        ),
        "binarized_mnist_test.amat": (
            "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"
        ),
    },
)
BINARIZED_MNIST_SHA256 = {  # of the pixels as bytes 0 and 1, row by row, whatever file they came in
    "train": "43490d4d6ac9002727af4426d8748609fdb7e4094fa65ad8d681ea60082a7a5a",
    "valid": "069b4f0beb389b776478c3e872b4df71c95ac4be64d7cbe6d32e24ebac8e6d5e",
    "test": "ca0294c3b8d984c7a1dc891015a8eea6f37bae59a34e35ea0fc8c47110a8dd86",
}
MNIST = Source(
    name="mnist",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",  # the original, often closed to programs
    ),
    sha256={
        "train-images-idx3-ubyte.gz": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte.gz": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    },
)


@checked
def load_digits(levels: int = 2, seed: int = 0) -> Dataset:
    """Load the 8 x 8 handwritten digits of scikit-learn.

    These are 1797 images with labels (Alpaydin and Kaynak 1998), bundled with scikit-learn.

    Args:
        levels: 17 for the grey values 0, ..., 16; 2 for pixels that are one where the grey value is
            8 or more.
        seed: of the shuffle into 1197 training, 200 validation and 400 test rows; 0 is the standard
            split.

    Returns:
        A `Dataset` with `x` of shape `[1797, 64]`, row-major, in torch's default dtype.

    Raises:
        ValueError: another number of levels.

    Example:
        >>> digits = load_digits()
        >>> digits
        Dataset('digits', [1797, 64] torch.float32, 2 levels, train/valid/test 1197/200/400)
        >>> digits.test.as_images().event_shape
        torch.Size([1, 8, 8])
    """
    if levels not in (2, 17):
        raise ValueError(
            f"the digits come with levels=2 (binary) or levels=17 (grey), got levels={levels}"
        )
    from sklearn import datasets  # noqa: PLC0415 - seconds of import, for few users

    pixels, labels = (np.asarray(array) for array in datasets.load_digits(return_X_y=True))
    order = np.random.RandomState(seed).permutation(
        len(pixels)
    )  # a stream that is frozen across NumPy versions
    grey = Dataset(
        _as_float(pixels[order]),
        support=17,
        labels=torch.as_tensor(labels[order], dtype=torch.long),
        split_sizes=DIGITS_SPLIT_SIZES,
        image_shape=(1, 8, 8),
        name="digits",
    )
    return grey if levels == 17 else grey.binarise()


@checked
def load_binarized_mnist(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """Load MNIST in its standard static binarisation.

    It is the set on which the literature reports nats (Larochelle and Murray 2011, section 6).

    Args:
        folder: where the files lie: `binarized_mnist_{train,valid,test}.amat` as published, or
            `binarized_mnist.npz` with uint8 arrays `train`, `valid`, `test` of shape `[n, 98]`, the
            pixels packed by `numpy.packbits`. Nothing is ever written there. Without a folder the
            files come from the cache or the original address.
        download: whether files that are not in the cache may be downloaded (110 MB).

    Returns:
        A `Dataset` with `x` of shape `[70000, 784]`, split 50000/10000/10000, without labels.

    Raises:
        FileNotFoundError: the files are not there and cannot be downloaded; says both ways to get
            them.
        ValueError: the pixels are not those of the published set.

    Example:
        >>> load_binarized_mnist(folder="no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: the files of binarized_mnist are not in no/such/folder: ...
    """
    parts = (
        _read_bits(Path(folder))
        if folder is not None
        else _read_amat(fetch(BINARIZED_MNIST, download))
    )
    for name, bits in parts.items():
        _check_bits(name, bits)
    return Dataset(
        _as_float(np.concatenate(list(parts.values()))),
        support=2,
        split_sizes=_three(parts),
        image_shape=(1, 28, 28),
        name="binarized MNIST",
    )


@checked
def load_mnist(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """Load MNIST with 256 grey levels and labels.

    See LeCun, Cortes and Burges (1998).

    The last 10000 of the 60000 training images are the validation split, as is customary. For
    binary or continuous data see `Dataset.binarise`, `Dataset.dequantise` and `Dataset.logit`.

    Args:
        folder: where the four idx files lie, gzipped or not; nothing is ever written there. Without
            a folder they come from the cache, the original address or its mirrors.
        download: whether files that are not in the cache may be downloaded (12 MB).

    Returns:
        A `Dataset` with `x` of shape `[70000, 784]`, values 0, ..., 255, and `labels` of shape
            `[70000]`.

    Raises:
        FileNotFoundError: the files are not there and cannot be downloaded; says both ways to get
            them.
        ValueError: a file is not an idx file of the expected shape.

    Example:
        >>> load_mnist(folder="no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: the files of mnist are not in no/such/folder: ...
    """
    paths = _find_idx(Path(folder)) if folder is not None else fetch(MNIST, download)
    arrays = {name.split("-idx")[0]: _read_idx(path) for name, path in paths.items()}
    images = np.concatenate([arrays["train-images"], arrays["t10k-images"]])
    labels = np.concatenate([arrays["train-labels"], arrays["t10k-labels"]])
    total = sum(MNIST_SPLIT_SIZES)
    if images.shape != (total, 28, 28) or labels.shape != (total,):
        raise ValueError(
            f"expected {total} images of 28 x 28 with labels, got {images.shape} and {labels.shape}"
        )
    return Dataset(
        _as_float(images.reshape(len(images), -1)),
        support=256,
        labels=torch.as_tensor(labels.astype(np.int64)),
        split_sizes=MNIST_SPLIT_SIZES,
        image_shape=(1, 28, 28),
        name="MNIST",
    )


@checked
def load_array(path: str | Path, support: constraints.Constraint | int | None = None) -> Dataset:
    """Load user data from a `.npy`, `.npz` or `.csv` file.

    A `.npy` file or a `.npz` file with one array gives that array as `x`; a `.npz` file with
    several gives them as named arguments, except that `train`, `valid`, `test` (the last two may be
    absent) are splits. A `.csv` file gives `[rows, columns]`, with or without a line of names.
    Floating values take torch's default dtype, or stay in double where rounding would move a value
    by more than 1e-5 of its column's spread (times, large counts); the observed tensor becomes
    floating too, other integers (labels, indices) stay integers.

    Args:
        path: of the file. Pickled objects are never loaded.
        support: a constraint that every observed value must satisfy, or the number of levels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, objects or text instead of numbers, or unequal numbers of rows.

    Example:
        >>> load_array("scores.txt")
        Traceback (most recent call last):
        ValueError: expected a .npy, .npz or .csv file, got scores.txt
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise ValueError(f"expected a .npy, .npz or .csv file, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    arrays = _READERS[path.suffix](path)
    for name, array in arrays.items():
        _check_numbers(path, name, array)
    if "train" in arrays and set(arrays) <= set(SPLIT_NAMES):
        return _join_splits(path, arrays, support)
    observed = "x" if "x" in arrays else next(iter(arrays))
    tensors = {
        name: _as_float(a) if name == observed else _as_tensor(a) for name, a in arrays.items()
    }
    return Dataset(
        tensors if len(tensors) > 1 else tensors[observed], support=support, name=path.stem
    )


def _read_bits(folder: Path) -> dict[str, NDArray[np.uint8]]:
    packed = folder / "binarized_mnist.npz"
    if packed.is_file():
        return {name: np.unpackbits(rows, axis=1) for name, rows in _open_numpy(packed).items()}
    paths = {name: folder / name for name in BINARIZED_MNIST.sha256}
    absent = [name for name, path in paths.items() if not path.is_file()]
    if absent:
        raise missing(
            BINARIZED_MNIST,
            folder,
            [f"neither binarized_mnist.npz nor {', '.join(absent)} is there"],
        )
    return _read_amat(paths)


def _read_amat(paths: dict[str, Path]) -> dict[str, NDArray[np.uint8]]:
    return {name: _read_characters(paths[f"binarized_mnist_{name}.amat"]) for name in SPLIT_NAMES}


def _read_characters(path: Path) -> NDArray[np.uint8]:
    characters = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    bits = characters[(characters == ord("0")) | (characters == ord("1"))] - np.uint8(ord("0"))
    if bits.size % 784:
        raise ValueError(
            f"{path} is damaged: it holds {bits.size} pixels, which is no multiple of 784"
        )
    return bits.reshape(-1, 784)


def _check_bits(name: str, bits: NDArray[np.uint8]) -> None:
    digest = hashlib.sha256(bits.tobytes()).hexdigest()
    if digest != BINARIZED_MNIST_SHA256.get(name):
        raise ValueError(
            f"the {name} part is not that of statically binarised MNIST: {bits.shape[0]} rows with "
            f"SHA-256 {digest}, expected {BINARIZED_MNIST_SHA256.get(name)}; get the published "
            "files, or use load_array for other data"
        )


def _three(parts: dict[str, NDArray]) -> tuple[int, int, int]:
    num_train, num_valid, num_test = (
        len(parts[name]) if name in parts else 0 for name in SPLIT_NAMES
    )
    return num_train, num_valid, num_test


def _find_idx(folder: Path) -> dict[str, Path]:
    candidates = {name: [folder / name, folder / name.removesuffix(".gz")] for name in MNIST.sha256}
    found = {name: path for name, paths in candidates.items() for path in paths if path.is_file()}
    absent = [name for name in candidates if name not in found]
    if absent:
        raise missing(MNIST, folder, [f"{', '.join(absent)} are absent"])
    return found


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an array of bytes from an idx file.

    The format is 0, 0, 8 (the type), the rank, big-endian sizes, the values.
    """
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an idx file of bytes: it begins with {content[:4]!r}")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").astype(int).tolist())
    if len(content) - start != np.prod(shape):
        raise ValueError(
            f"{path} is damaged: {len(content) - start} bytes of values for shape {shape}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _open_numpy(path: Path) -> dict[str, NDArray]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return (
                dict(loaded.items()) if isinstance(loaded, np.lib.npyio.NpzFile) else {"x": loaded}
            )
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a file of plain arrays of numbers, or was cut short; write one with "
            "numpy.save or numpy.savez"
        ) from error


def _open_csv(path: Path) -> dict[str, NDArray]:
    return {"x": np.stack(list(read_table(path).values()), -1)}


_READERS = {".npz": _open_numpy, ".npy": _open_numpy, ".csv": _open_csv}


def _check_numbers(path: Path, name: str, array: NDArray) -> None:
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"expected numbers in {path}, got {array.dtype} for {name!r}; drop or encode what is "
            "not a number"
        )


def _join_splits(
    path: Path, arrays: dict[str, NDArray], support: constraints.Constraint | int | None
) -> Dataset:
    ordered = [arrays[name] for name in SPLIT_NAMES if name in arrays]
    if len({array.shape[1:] for array in ordered}) > 1:
        raise ValueError(
            f"the splits in {path} must have equal event shapes, got {[a.shape for a in ordered]}"
        )
    return Dataset(
        _as_float(np.concatenate(ordered)),
        support=support,
        split_sizes=_three(arrays),
        name=path.stem,
    )


def _as_float(array: NDArray) -> Tensor:
    """Convert numbers to torch's default dtype, or to double.

    Double is taken where rounding would move a number by too much, compared with the spread.
    """
    exact = torch.as_tensor(array).double()
    rounded = exact.to(torch.get_default_dtype())
    spread = exact.std(0, correction=0) if len(exact) else exact.new_zeros(())
    moved = (rounded.double() - exact).abs()
    lost = (moved > NEGLIGIBLE * torch.where(spread > 0, spread, exact.abs())).any()
    return exact if bool(lost) else rounded


def _as_tensor(array: NDArray) -> Tensor:
    return _as_float(array) if array.dtype.kind == "f" else torch.as_tensor(array.astype(np.int64))
