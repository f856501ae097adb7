"""Perceptrons, plain and residual.

Every net maps the last one or three dimensions and broadcasts over any number of dimensions on the
left, since programs put data, chains and particles there. Parameters take torch's default dtype;
`.to` moves all buffers too.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

from torch import Tensor, nn

from ppl_dgm.checked import checked

__all__ = ["MLP", "Activation", "ImageShape", "ResidualMLP", "check_widths", "hidden_sizes"]

Activation = Callable[[], nn.Module]
ImageShape = Annotated[tuple[int, int, int], "an image shape (channels, height, width)"]


class MLP(nn.Sequential):
    """Multilayer perceptron.

    It maps x -> W_L a(... a(W_1 x + b_1) ...) + b_L.

    Args:
        in_features: size of the input.
        hidden: sizes of the hidden layers; none of them makes an affine map.
        out_features: size of the output.
        activation: makes the activation a, e.g. `torch.nn.Tanh`.

    Shape:
        `[..., in_features]` to `[..., out_features]`.

    Raises:
        ValueError: a size below one.

    Example:
        >>> import torch
        >>> MLP(3, [8, 8], 2, torch.nn.Tanh)(torch.zeros(5, 4, 3)).shape
        torch.Size([5, 4, 2])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        activation: Activation = nn.ReLU,
    ) -> None:
        sizes = check_widths([in_features, *hidden_sizes(hidden), out_features])
        layers: list[nn.Module] = []
        for size, next_size in pairwise(sizes):
            layers += [nn.Linear(size, next_size), activation()]
        super().__init__(*layers[:-1])


class ResidualMLP(nn.Module):
    """Residual perceptron with pre-activation blocks.

    Each block is h -> h + W_2 a(W_1 a(h) + b_1) + b_2: He et al. (2016), figure 4e.

    The second layer of each block starts at zero, so the net starts as an affine map (Zhang et al.
    2019, Fixup).

    Args:
        in_features: size of the input.
        width: size of all hidden layers.
        num_blocks: number of residual blocks.
        out_features: size of the output.
        activation: makes the activation a.

    Shape:
        `[..., in_features]` to `[..., out_features]`.

    Raises:
        ValueError: a size below one.

    Example:
        >>> import torch
        >>> ResidualMLP(3, 16, 2, 5)(torch.zeros(7, 3)).shape
        torch.Size([7, 5])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        width: int,
        num_blocks: int,
        out_features: int,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        check_widths([in_features, width, num_blocks, out_features])
        self.first = nn.Linear(in_features, width)
        self.blocks = nn.ModuleList(_residual_branch(width, activation) for _ in range(num_blocks))
        self.last = nn.Sequential(activation(), nn.Linear(width, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


def hidden_sizes(hidden: Sequence[int]) -> list[int]:
    """Return the sizes of hidden layers as a list.

    Raises:
        ValueError: one number in place of several.
    """
    try:
        return list(hidden)
    except TypeError:
        raise ValueError(
            f"hidden is {hidden!r}; expected the sizes of all hidden layers, e.g. "
            f"hidden=[{hidden!r}]"
        ) from None


def check_widths(sizes: list[int]) -> list[int]:
    if min(sizes) < 1:
        raise ValueError(f"expected sizes of at least one, got {sizes}")
    return sizes


def _residual_branch(width: int, activation: Activation) -> nn.Sequential:
    last = nn.Linear(width, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(activation(), nn.Linear(width, width), activation(), last)
