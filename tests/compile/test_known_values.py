"""Data that are the same at every call may be read while a step is captured."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.util import torch_item
from torch import Tensor, nn

import ppl_dgm.fitting.stepping as stepping
from ppl_dgm import Program, fit
from ppl_dgm.compile import CaptureError, Switch, TrainStep, capture

X = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([4, 3, 1])
WEIGHT = torch.tensor([0.5, -1.0])


def asserted(w: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
    assert lengths.max() <= x.shape[1]
    return (x @ w).sum()


def looped(w: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
    seen = [(x[:, t] @ w)[t < lengths].sum() for t in range(lengths.max())]
    return torch.stack(seen).sum()


def sliced(w: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
    return sum((x[i, : lengths[i]] @ w).tanh().sum() for i in range(len(x)))


def selected(w: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    return (x @ w)[mask].square().sum() + x[mask].sum() * w[0]


def filled(w: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
    """Writes to what was known: the mask no longer is what it was."""
    held = x.clone()
    held[:, 0] = w * x[:, 0]
    count = torch.zeros(3)
    count[0] = 2.0
    return held.sum() + int(count.sum()) * w.sum()


def counted(w: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
    blank = torch.zeros(int(lengths.sum()), lengths.max())
    groups = torch.bincount(lengths, minlength=5).nonzero()
    return (blank + w[0] * len(groups)).sum() * w.new_ones(lengths[0]).mean()


def packed(w: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
    rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    weights = [w.outer(w), w.outer(w), w, w]
    out, _ = torch.rnn_tanh(
        rows.data, rows.batch_sizes, torch.zeros(1, 3, 2), weights, True, 1, 0.0, False, False
    )
    whole = nn.utils.rnn.PackedSequence(out, rows.batch_sizes)
    padded, sizes = nn.utils.rnn.pad_packed_sequence(whole, batch_first=True, padding_value=0.5)
    assert sizes.tolist() == [4, 3, 1]
    return padded.square().sum()


LOSSES: list[Callable[..., Tensor]] = [
    asserted,
    looped,
    sliced,
    selected,
    filled,
    counted,
    packed,
]


def stepped(loss: Callable[..., Tensor], constant: bool) -> tuple[Any, nn.Parameter]:
    weight = nn.Parameter(WEIGHT.clone())
    optimizer = torch.optim.SGD([weight], lr=0.01)
    make = partial(TrainStep, backend="eager", constant=constant)
    return make(lambda *batch: loss(weight, *batch), optimizer), weight


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_steps_that_read_their_data_are_those_without_a_graph(loss: Callable[..., Tensor]) -> None:
    step, weight = stepped(loss, constant=True)
    ours = [step(X, LENGTHS).item() for _ in range(3)]
    other = nn.Parameter(WEIGHT.clone())
    optimizer = torch.optim.SGD([other], lr=0.01)
    for value in ours:
        optimizer.zero_grad()
        truth = loss(other, X, LENGTHS)
        truth.backward()
        optimizer.step()
        assert value == pytest.approx(truth.item(), rel=1e-5)
    torch.testing.assert_close(weight.data, other.data)


@pytest.mark.parametrize("loss", [asserted, looped, sliced], ids=lambda loss: loss.__name__)
def test_data_that_change_from_call_to_call_are_not_read(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(CaptureError, match="reads a tensor's value on the host"):
        stepped(loss, constant=False)[0](X, LENGTHS)


def test_data_written_to_between_two_steps_are_read_again() -> None:
    lengths = LENGTHS.clone()
    step, weight = stepped(sliced, constant=True)
    step(X, lengths)
    lengths[2] = 4
    truth = sliced(weight, X, lengths).item()
    assert step(X, lengths).item() == pytest.approx(truth, rel=1e-5)
    truth = sliced(weight, X, LENGTHS).item()
    assert step(X, LENGTHS).item() == pytest.approx(truth, rel=1e-5)


def noisy(w: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
    """Noise beside the data is no constant."""
    held = nn.functional.dropout(x, 0.5)
    return (held @ w).sum() + torch.bernoulli(torch.ones_like(x) / 2).sum()


def test_noise_is_not_baked_in() -> None:
    step = stepped(noisy, constant=True)[0]
    assert len({step(X, LENGTHS).item() for _ in range(5)}) == 5
    with pytest.raises(CaptureError, match="on the host"):
        stepped(lambda w, x, n: w.sum() * float(noisy(w.detach(), x, n)), True)[0](X, LENGTHS)


def test_data_of_the_caller_are_not_written_to_at_capture() -> None:
    def writing(w: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        lengths += 1
        return w.sum() * x.sum() * lengths.sum()

    x, lengths = X.clone(), LENGTHS.clone()
    step = stepped(writing, constant=True)[0]
    step.prepare(x, lengths)
    assert torch.equal(lengths, LENGTHS)


def test_what_losses_report_beside_their_gradient_is_no_reading() -> None:
    """As losses of users do that inherit from Pyro's: `torch_item` of each site."""

    def reporting(w: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        term = (x @ w).sum()
        return torch_item(term) + term - term.detach()

    step = stepped(reporting, constant=False)[0]
    assert step(X, LENGTHS).item() == pytest.approx((X @ WEIGHT).sum().item(), rel=1e-5)


def chains(x: Tensor, lengths: Tensor) -> None:
    """A program that loops over the lengths of its data, as Pyro's examples do."""
    assert lengths.max() <= x.shape[1]
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("sequences", len(x)):
        z = torch.zeros(len(x))
        for t in range(lengths.max()):
            with pyro.poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Normal(z, scale))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t, 0])


def test_fits_on_all_data_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "TrainStep", partial(TrainStep, backend="eager"))
    settings = {"steps": 4, "progress": False}
    found = [
        fit(Program(chains), (X, LENGTHS), compile=mode, **settings).history["objective"]
        for mode in (True, False)
    ]
    torch.testing.assert_close(*found)


# ---- masks, indices and counts of modules --------------------------------------------------------


ROWS = X.reshape(-1, 3)


class Masked(nn.Module):
    """Decides by a mask and a count which columns it adds, and how often."""

    mask: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("count", torch.tensor(2))

    def forward(self, x: Tensor) -> Tensor:
        kept, moved = self.mask.nonzero().squeeze(-1), (~self.mask).nonzero().squeeze(-1)
        total = (self.weight * x)[..., kept].sum(-1) - x[..., moved].prod(-1)
        for _ in range(int(self.count)):
            total = total + x[..., self.mask].square().sum(-1)
        return total.tanh()


def flip(module: Masked) -> None:
    module.mask.logical_not_()


def count_on(module: Masked) -> None:
    module.count.add_(1)


def test_masks_and_counts_of_modules_are_constants() -> None:
    module = Masked()
    captured = capture(module, (ROWS,))
    torch.testing.assert_close(captured(ROWS + 1), module(ROWS + 1).detach(), rtol=0, atol=0)
    assert captured.is_current()


@pytest.mark.parametrize("change", [flip, count_on])
def test_constants_that_have_changed_are_read_again(change: Callable[[Masked], None]) -> None:
    module, switch = Masked(), Switch(True, backend="eager")
    captured, before = capture(module, (ROWS,)), switch(module, ROWS)
    change(module)
    with pytest.raises(ValueError, match=r"decides shapes or branches .* Capture again"):
        captured(ROWS)
    after = switch(module, ROWS)
    torch.testing.assert_close(after, module(ROWS).detach())
    assert not torch.equal(after, before)


def test_constants_loaded_with_the_same_values_are_the_same() -> None:
    module = Masked()
    captured = capture(module, (ROWS,))
    module.load_state_dict(Masked().state_dict())
    torch.testing.assert_close(captured(ROWS), module(ROWS).detach())


class Counting(Masked):
    def forward(self, x: Tensor) -> Tensor:
        value = super().forward(x)
        self.count.add_(1)
        return value


def test_a_count_that_the_module_moves_on_is_no_constant() -> None:
    module = Counting()
    with pytest.raises(CaptureError, match="writes to a tensor whose value has decided"):
        capture(module, (ROWS,))
    assert int(module.count) == 2


def test_numbers_with_fractions_are_no_constants() -> None:
    scale = torch.tensor([0.5, 2.0])
    with pytest.raises(CaptureError, match="on the host"):
        capture(lambda x: x * float(scale[0]), (ROWS,))
