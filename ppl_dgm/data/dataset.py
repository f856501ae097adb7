"""Data sets with splits, support and units.

`Dataset` holds the rows that a program is fitted to and judged on, with what is needed to state the
answer in bits.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_dgm.checked import checked
from ppl_dgm.data.checks import (
    as_constraint,
    check_rows,
    check_splits,
    check_support,
    collect,
    items,
)

__all__ = ["SPLIT_NAMES", "Dataset"]

CHUNK_ROWS = 4096
SPLIT_NAMES = ("train", "valid", "test")
_INTEGERS = constraints.integer_interval(0, 1)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Data set of tensors with splits, support and units.

    A program takes the tensors as arguments.

    The first dimension of every tensor counts the data. The first tensor is the observed one, `x`
    of shape `[data, *event]`; the others (covariates) pass through to the program. Stored values
    and the original data are related by `log_offset`, in nats per datum:

        log p(original) = log p(stored) + log_offset

    so that figures for raw, dequantised and logit-transformed data can stand in one table.

    Args:
        tensors: a Tensor, a tuple of Tensors (positional arguments) or a dict of Tensors (named
            arguments).
        support: a constraint that every value of `x` must satisfy, or the number of levels L for
            values 0, ..., L - 1.
        labels: `[data]` or `[data, ...]`, kept with the rows but not handed to programs; see
            `labelled`.
        split_sizes: rows of the training, validation and test split, which lie in this order.
        log_offset: nats per datum, `[data]` or one number.
        image_shape: `(channels, height, width)` where the events are flattened images.
        name: what tables call it.

    Raises:
        ValueError: no tensors, no rows, unequal numbers of rows, split sizes that do not add up, or
            values outside the support.
        TypeError: something that is not a tensor.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
        >>> data = Dataset(x, support=2, name="corners")
        >>> data
        Dataset('corners', [4, 2] torch.float32, 2 levels)
        >>> data = data.split((0.5, 0.25, 0.25), seed=0)
        >>> len(data.train), data.num_dims, data.test.x.shape
        (2, 2, torch.Size([1, 2]))
        >>> data.bits_per_dim(torch.full((4,), -2 * math.log(2.0)))
        tensor([1.0000, 1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """

    tensors: Any
    support: constraints.Constraint | int | None = None
    labels: Tensor | None = None
    split_sizes: tuple[int, int, int] | None = None
    log_offset: Tensor | float = 0.0
    image_shape: tuple[int, int, int] | None = None
    name: str = "data"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", collect(self.tensors))
        object.__setattr__(self, "support", as_constraint(self.support))
        check_rows(
            {**dict(items(self.tensors)), ".labels": self.labels, ".log_offset": self.log_offset},
            self.name,
        )
        check_splits(self.split_sizes, len(self))
        check_support(self.x, self.support, self.name)

    @property
    def args(self) -> tuple[Tensor, ...]:
        """Positional arguments for the program.

        These are the tensors, if they came as a tuple.
        """
        return () if isinstance(self.tensors, dict) else self.tensors

    @property
    def kwargs(self) -> dict[str, Tensor]:
        """Named arguments for the program.

        These are the tensors, if they came as a dict.
        """
        return dict(self.tensors) if isinstance(self.tensors, dict) else {}

    @property
    def x(self) -> Tensor:
        """The observed tensor, `[data, *event]`.

        It is the one called "x", or else the first.
        """
        if isinstance(self.tensors, dict):
            return self.tensors.get("x", next(iter(self.tensors.values())))
        return self.tensors[0]

    def only_tensor(self) -> Tensor:
        """Return the only tensor, for functions that take one.

        Raises:
            TypeError: for several tensors.
        """
        if len(self.tensors) > 1:
            raise TypeError(
                f"data set {self.name!r} has {len(self.tensors)} tensors where one is taken; give "
                "that one, e.g. data.x"
            )
        return self.x

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one datum."""
        return self.x.shape[1:]

    @property
    def num_dims(self) -> int:
        """Number of scalars D in one datum."""
        return self.event_shape.numel()

    @property
    def levels(self) -> int | None:
        """Number of levels of the observed data, or None.

        It is L where the values of `x` are 0, 1, ..., L - 1, and otherwise None.
        """
        if self.support is constraints.boolean:
            return 2
        if isinstance(self.support, type(_INTEGERS)) and self.support.lower_bound == 0:
            return int(self.support.upper_bound) + 1
        return None

    @cached_property
    def train(self) -> "Dataset":
        """The training split."""
        return self._part(0)

    @cached_property
    def valid(self) -> "Dataset":
        """The validation split, for early stopping and choices."""
        return self._part(1)

    @cached_property
    def test(self) -> "Dataset":
        """The test split, for the figures that are reported."""
        return self._part(2)

    @cached_property
    def digest(self) -> str:
        """SHA-256 digest of the tensors.

        It is over names, shapes and values, and is the same on every device and in wider dtypes.
        """
        content = hashlib.sha256()
        for name, tensor in items(self.tensors):
            content.update(f"{name}{list(tensor.shape)}".encode())
            for rows in tensor.detach().split(CHUNK_ROWS):
                content.update(rows.to("cpu", torch.float64).contiguous().numpy().tobytes())
        return content.hexdigest()

    def __getitem__(self, rows: Any) -> "Dataset":
        """Return the data set of some rows.

        They are given by a slice, a mask or a list of numbers, `data[:4]`.
        """
        if isinstance(rows, int):
            raise TypeError(
                f"one row is no data set; take a part of one row, data[{rows}:{rows + 1}]"
            )
        return self.select(torch.as_tensor(rows) if isinstance(rows, list) else rows)

    def __iter__(self) -> Any:
        raise TypeError("a Dataset is not iterated row by row; loop over its tensors, data.x")

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        parts = [repr(self.name)]
        parts += [
            (f"{name}=" if isinstance(name, str) else "") + f"{list(value.shape)} {value.dtype}"
            for name, value in items(self.tensors)
        ]
        parts += [f"{self.levels} levels"] if self.levels else []
        parts += (
            ["train/valid/test " + "/".join(map(str, self.split_sizes))] if self.split_sizes else []
        )
        return f"Dataset({', '.join(parts)})"

    def select(self, rows: slice | Tensor) -> "Dataset":
        """Select rows, in the given order and without splits.

        `rows` is a slice, indices or a mask.

        Example:
            >>> Dataset(torch.arange(5.0)).select(slice(1, 3)).x
            tensor([1., 2.])
        """
        return replace(
            self,
            tensors=self._map(lambda tensor: tensor[rows]),
            labels=None if self.labels is None else self.labels[rows],
            log_offset=self.log_offset[rows]
            if isinstance(self.log_offset, Tensor)
            else self.log_offset,
            split_sizes=None,
        )

    def split(
        self, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
    ) -> "Dataset":
        """Shuffle the data and split them into three parts.

        The parts are training, validation and test rows.

        Args:
            fractions: of the rows, for the three splits; they must add up to one.
            seed: of the shuffle; the global generators are left alone.

        Raises:
            ValueError: fractions that are not three non-negative numbers adding up to one.

        Example:
            >>> data = Dataset(torch.arange(10.0)).split((0.6, 0.2, 0.2), seed=1)
            >>> len(data.train), len(data.valid), len(data.test)
            (6, 2, 2)
        """
        if (
            len(fractions) != 3
            or min(fractions) < 0
            or not math.isclose(sum(fractions), 1.0, abs_tol=1e-9)
        ):
            raise ValueError(
                "expected three non-negative fractions (train, valid, test) that add up to 1, got "
                f"{fractions}"
            )
        num_train, num_valid = round(fractions[0] * len(self)), round(fractions[1] * len(self))
        num_valid = min(num_valid, len(self) - num_train)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator, device="cpu").to(self.x.device)
        return replace(
            self.select(order),
            split_sizes=(num_train, num_valid, len(self) - num_train - num_valid),
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Dataset":
        """Move the data to another device or dtype.

        Only floating tensors change their dtype.

        Example:
            >>> Dataset(torch.zeros(2, 3)).to(dtype=torch.float64).x.dtype
            torch.float64
        """
        return replace(
            self,
            tensors=self._map(
                lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None)
            ),
            labels=None if self.labels is None else self.labels.to(device),
            log_offset=self.log_offset.to(device)
            if isinstance(self.log_offset, Tensor)
            else self.log_offset,
        )

    def labelled(self, name: str = "y") -> "Dataset":
        """Add the labels as a named argument of the program.

        Raises:
            ValueError: the data have no labels.

        Example:
            >>> data = Dataset(torch.zeros(2, 3), labels=torch.tensor([4, 9])).labelled()
            >>> sorted(data.kwargs), data.kwargs["y"]
            (['x', 'y'], tensor([4, 9]))
        """
        if self.labels is None:
            raise ValueError(
                f"data set {self.name!r} has no labels; give them as Dataset(..., labels=...)"
            )
        return replace(self, tensors={"x": self.x, name: self.labels})

    def as_images(self) -> "Dataset":
        """Reshape flattened images to `[data, channels, height, width]`.

        Raises:
            ValueError: the image shape is not known or does not fit.

        Example:
            >>> Dataset(torch.zeros(2, 6), image_shape=(1, 2, 3)).as_images().event_shape
            torch.Size([1, 2, 3])
        """
        if self.image_shape is None or math.prod(self.image_shape) != self.num_dims:
            raise ValueError(
                f"data set {self.name!r} has events of shape {list(self.event_shape)} and "
                f"image_shape {self.image_shape}; give image_shape=(channels, height, width) with "
                f"{self.num_dims} pixels"
            )
        return self._with_x(self.x.reshape(len(self), *self.image_shape))

    def binarise(self, seed: int | None = None) -> "Dataset":
        """Convert data with L levels to binary data.

        The result is fixed once and for all (static binarisation).

        Without a seed the values at or above (L - 1) / 2 become one; with a seed a value k becomes
        one with probability k / (L - 1), as in Salakhutdinov and Murray (2008, section 5).

        Raises:
            ValueError: the data have no levels.

        Example:
            >>> Dataset(torch.tensor([0.0, 7.0, 8.0, 16.0]), support=17).binarise().x
            tensor([0., 0., 1., 1.])
        """
        share = self.x / (self._need_levels("binarise") - 1)
        cut = 0.5 if seed is None else _uniform_like(share, seed)
        is_one = share >= cut if seed is None else share > cut
        return self._with_x(is_one.to(self.x.dtype), support=constraints.boolean)

    def dequantise(self, seed: int = 0) -> "Dataset":
        """Convert data with L levels to continuous data.

        x = (k + u) / L lies on [0, 1), with u uniform on [0, 1).

        For a density p on [0, 1)^D Jensen's inequality gives

            log P(k) = log ∫ p((k + u) / L) L^-D du >= E_u[log p(x)] - D log L

        and the last term, in nats, goes into `log_offset`. Uria, Murray and Larochelle (2013),
        Theis, van den Oord and Bethge (2016, section 3.1).

        Raises:
            ValueError: the data have no levels.

        Example:
            >>> data = Dataset(torch.tensor([[0.0, 3.0]]), support=4).dequantise(seed=0)
            >>> (data.x * 4).floor(), round(data.log_offset, 4)
            (tensor([[0., 3.]]), -2.7726)
        """
        levels = self._need_levels("dequantise")
        level = self.x if self.x.is_floating_point() else self.x.to(torch.get_default_dtype())
        highest = torch.nextafter(
            (level + 1) / levels, level.new_zeros(())
        )  # rounding must not reach the next level
        x = torch.minimum((level + _uniform_like(level, seed)) / levels, highest)
        offset = self.log_offset - self.num_dims * math.log(levels)
        return self._with_x(x, support=constraints.unit_interval, log_offset=offset)

    def logit(self, alpha: float = 1e-6) -> "Dataset":
        """Map data on [0, 1] to unbounded data by logits.

        y = logit(s), s = alpha + (1 - 2 alpha) x.

        The log-Jacobian per datum, in nats, goes into `log_offset`:

            sum_d [ log(1 - 2 alpha) - log s_d - log(1 - s_d) ]

        Papamakarios, Pavlakou and Murray (2017, section 4.3) use alpha = 1e-6 for MNIST and 0.05
        for CIFAR-10.

        Raises:
            ValueError: the support is not the unit interval, or alpha is not in (0, 1/2).

        Example:
            >>> data = Dataset(torch.tensor([[0.5]]), support=constraints.unit_interval).logit(0.05)
            >>> data.x, data.log_offset
            (tensor([[0.]]), tensor([1.2809], dtype=torch.float64))
        """
        if self.support is not constraints.unit_interval:
            raise ValueError(
                f"logit needs data on the unit interval, got {self.support}; dequantise discrete "
                "data first"
            )
        if not 0.0 < alpha < 0.5:
            raise ValueError(f"expected alpha between 0 and 1/2, got {alpha}")
        share = alpha + (1.0 - 2.0 * alpha) * self.x.double()
        log_slope = math.log1p(-2.0 * alpha) - share.log() - (-share).log1p()
        offset = self.log_offset + log_slope.reshape(len(self), -1).sum(-1)
        return self._with_x(
            share.logit().to(self.x.dtype), support=constraints.real, log_offset=offset
        )

    def bits_per_dim(self, log_prob: Tensor) -> Tensor:
        """Convert log-probabilities to bits per dimension.

        The bits are of the original data, the log-probabilities of the stored ones.

            -(log_prob + log_offset) / (D log 2)

        Args:
            log_prob: nats per datum, `[..., data]`.

        Returns:
            float64, `[..., data]`.

        Raises:
            ValueError: `log_prob` is not one number per datum.

        Example:
            >>> data = Dataset(torch.tensor([[0.0, 3.0]]), support=4).dequantise()
            >>> data.bits_per_dim(torch.zeros(1))  # uniform on the unit square: log2(4) bits
            tensor([2.], dtype=torch.float64)
        """
        if log_prob.shape[-1:] != (len(self),):
            raise ValueError(
                f"expected one log-probability for each of {len(self)} data, got shape "
                f"{list(log_prob.shape)}"
            )
        return -(log_prob.double() + self.log_offset) / (self.num_dims * math.log(2.0))

    def _map(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...] | dict[str, Tensor]:
        if isinstance(self.tensors, dict):
            return {name: function(value) for name, value in self.tensors.items()}
        return tuple(function(value) for value in self.tensors)

    def _with_x(self, x: Tensor, **changes: Any) -> "Dataset":
        return replace(
            self, tensors=self._map(lambda value: x if value is self.x else value), **changes
        )

    def _need_levels(self, verb: str) -> int:
        if self.levels is None:
            raise ValueError(
                f"cannot {verb} data set {self.name!r}: its support is {self.support}, not a "
                "number of levels; give support=L for data with values 0, 1, ..., L - 1"
            )
        return self.levels

    def _part(self, index: int) -> "Dataset":
        name = SPLIT_NAMES[index]
        if self.split_sizes is None:
            raise ValueError(
                f"data set {self.name!r} has no {name} split; make one with .split((0.8, 0.1, "
                "0.1), seed=0)"
            )
        if self.split_sizes[index] == 0:
            raise ValueError(
                f"the {name} split of data set {self.name!r} is empty: its sizes are "
                f"{self.split_sizes}"
            )
        start = sum(self.split_sizes[:index])
        return self.select(slice(start, start + self.split_sizes[index]))


def _uniform_like(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device)
