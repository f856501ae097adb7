"""Restricted Boltzmann machines, the hidden units summed out."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_dgm.bars import counted_steps
from ppl_dgm.checked import checked
from ppl_dgm.families.energy.units import UNITS, BinaryUnits, Units, toss
from ppl_dgm.nn.packed import packed_linear
from ppl_dgm.program import Program
from ppl_dgm.program.isolation import evaluating
from ppl_dgm.program.ladder import MAX_SUMMED, Ladder, States
from ppl_dgm.validation import check_sizes

__all__ = ["RBM"]

Product = Callable[[Tensor], Tensor]


class RBM(Program):
    r"""Restricted Boltzmann machine, $p(v) \propto \sum_h e^{-E(v, h)} = e^{-F(v)}$.

    $-E(v, h) = b^\top v + v^\top W h + c^\top h$ with binary hidden units h, which are summed out
    in the free energy $F(v) = -b^\top v - \sum_j \log(1 + e^{c_j + (v^\top W)_j})$. Real visible
    units have $-E(v, h) = -\sum_i (v_i - b_i)^2 / 2 \sigma_i^2 + (v / \sigma)^\top W h + c^\top h$.
    As a program it is a base measure, the data site, times a factor, so that its density is
    unnormalised: fit it with `ContrastiveDivergence`, `PersistentContrastiveDivergence`,
    `PseudoLikelihood` (binary) or `ScoreMatching` (real).

    Smolensky (1986); Hinton (2002), "Training products of experts by minimizing contrastive
    divergence"; the path of densities from base rates is that of Salakhutdinov and Murray (2008),
    eq. 14.

    Args:
        num_visible: number D of dimensions of the data.
        num_hidden: number of hidden units.
        visible: `"binary"` or `"gaussian"`.

    Raises:
        ValueError: for sizes below one, or an unknown kind of units.

    Example:
        >>> import torch, ppl_dgm
        >>> rbm = RBM(6, 3).start_from(torch.eye(6))
        >>> rbm.density, rbm.sample(4, num_steps=10).shape
        ('unnormalised', torch.Size([4, 6]))
        >>> ppl_dgm.evidence.Exact()(rbm, torch.eye(6)).log_z.exp().sum() < 1
        tensor(True)
    """

    vectors = True

    @checked
    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        visible: Literal["binary", "gaussian"] = "binary",
    ) -> None:
        check_sizes(num_visible=num_visible, num_hidden=num_hidden)
        if visible not in UNITS:
            raise ValueError(f"visible is {visible!r}; expected one of {sorted(UNITS)}")
        super().__init__(RBMModel(UNITS[visible](num_visible), num_visible, num_hidden))

    @property
    def parts(self) -> "RBMModel":
        """The module behind the model: visible `units`, `weight` and `hidden_bias`."""
        return self.model.fn  # type: ignore[return-value]

    @checked
    def start_from(self, x: Tensor) -> "RBM":
        """Set biases and base measure from data `[N, D]`.

        They become those of independent units fitted to the data. Returns the program itself.

        Raises:
            ValueError: for data of another shape.
        """
        num_visible, x = len(self.parts.weight), self.as_data(x)
        if x.dim() != 2 or x.shape[1] != num_visible or len(x) < 2:
            raise ValueError(
                f"expected data [N, {num_visible}] with N of at least 2, got shape {list(x.shape)}"
            )
        self.parts.units.fit_base(x)
        return self

    @checked
    def free_energy(self, x: Tensor) -> Tensor:
        """Compute free energies F of data `[..., D]`: `[...]`.

        They are in nats; differences are log ratios of probabilities.
        """
        return self.parts.free_energy(self.as_data(x))

    @checked
    def sample(  # type: ignore[override]
        self,
        num_samples: int,
        num_steps: int = 1000,
        start: Tensor | None = None,
        *,
        progress: bool = True,
    ) -> Tensor:
        """Draw data by block Gibbs sampling.

        There is one chain for each draw.

        The draws are as good as the chains mix: compare those of different `num_steps`.

        Args:
            num_samples: number of chains.
            num_steps: sweeps over hidden and visible units.
            start: where the chains begin, `[num_samples, D]`; by default, draws of the base
                measure.
            progress: show a bar over the sweeps where they last.

        Returns:
            `[num_samples, D]`.

        Raises:
            ValueError: for counts below one, a start of another shape, or a start or parameters
                that are not finite.
        """
        check_sizes(num_samples=num_samples, num_steps=num_steps)
        shape = (num_samples, len(self.parts.weight))
        if start is not None and tuple(start.shape) != shape:
            raise ValueError(f"start has shape {list(start.shape)}; expected {list(shape)}")
        given = [*self.parts.parameters(), *([] if start is None else [start])]
        if not all(bool(part.isfinite().all()) for part in given):  # odds of NaN would give zeros
            raise ValueError(
                "parameters, or the start, are not finite; expected finite ones: where they have "
                "diverged, fit again with a smaller learning rate"
            )
        with evaluating(self), torch.no_grad():
            x = self.parts.draw(num_samples) if start is None else start.to(self.parts.weight)
            move = self.parts.mover(num_samples)
            for _ in counted_steps(num_steps, "sample", progress):
                x = move(x)
        return x


class RBMModel(nn.Module, Ladder):
    r"""Model of `RBM`, with its ladder of densities.

    v ~ base(v), times exp(-F(v)) / base(v); along the ladder, all but the base measure is to the
    power of beta.

    $f_\beta(v) = \mathrm{base}(v)^{1-\beta}\, 2^{-(1-\beta) H} \sum_h e^{-\beta E(v, h)}$.
    """

    blockwise = True

    def __init__(self, units: Units, num_visible: int, num_hidden: int) -> None:
        super().__init__()
        self.units = units
        self.weight = nn.Parameter(0.01 * torch.randn(num_visible, num_hidden))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))

    def hidden_logits(self, v: Tensor) -> Tensor:
        """Compute the log odds of hidden units: `[..., H]`.

        They are given visible units `[..., D]`.
        """
        return F.linear(self.units.signal(v), self.weight.T, self.hidden_bias)

    def free_energy(self, v: Tensor) -> Tensor:
        """Compute F of data `[..., D]`: `[...]`."""
        return -self.units.score(v) - F.softplus(self.hidden_logits(v)).sum(-1)

    def forward(self, x: Tensor | None = None) -> Tensor:
        """Score data `[data, D]`, or draw from the base measure.

        The draws are weighted by the factor.
        """
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            base = self.units.base()
            v = pyro.sample("x", base, obs=x)
            pyro.factor("energy", -self.free_energy(v) - base.log_prob(v))
        return v

    # ---- the ladder
    # ----------------------------------------------------------------------------------------------

    def draw(self, num_draws: int) -> Tensor:
        return self.units.base().sample((num_draws,))

    def log_density(self, x: Tensor, beta: Any) -> Tensor:
        hidden = F.softplus(beta * self.hidden_logits(x)).sum(-1)
        base = self.units.base().log_prob(x) - len(self.hidden_bias) * math.log(2)
        return (1 - beta) * base + beta * self.units.score(x) + hidden

    def move(self, x: Tensor, beta: Any = 1.0) -> Tensor:
        up = partial(F.linear, weight=self.weight.T, bias=self.hidden_bias)
        return self._move((up, partial(F.linear, weight=self.weight)), x, beta)

    def mover(self, num_rows: int) -> Callable[[Tensor], Tensor]:
        """Return `move` for many moves of `[num_rows, D]`.

        Its parameters are held as they are now.
        """
        up = packed_linear(self.weight.T, self.hidden_bias, num_rows)
        return partial(self._move, (up, packed_linear(self.weight, None, num_rows)))

    def _move(self, products: tuple[Product, Product], x: Tensor, beta: Any = 1.0) -> Tensor:
        """Draw hidden units, then visible ones."""
        up, down = products
        hidden = toss((beta * up(self.units.signal(x))).sigmoid_())
        return self.units.draw(down(hidden), beta)

    def states(self) -> States | None:
        num_visible, num_hidden = self.weight.shape
        if num_hidden <= MAX_SUMMED:
            given = lambda h: self.units.draw(h @ self.weight.T, 1.0)  # noqa: E731
            return States(num_hidden, self.weight, self._log_weight_of_hidden, given)
        if isinstance(self.units, BinaryUnits) and num_visible <= MAX_SUMMED:
            return States(num_visible, self.weight, lambda v: -self.free_energy(v), lambda v: v)
        return None

    def _log_weight_of_hidden(self, h: Tensor) -> Tensor:
        """Compute log weights of hidden states `[n, H]`: `[n]`.

        They are the log of the integral of exp(-E) over visible units.
        """
        return h @ self.hidden_bias + self.units.log_normaliser(h @ self.weight.T)
