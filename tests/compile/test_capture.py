"""A captured graph follows the tensors it reads and changes them as the function does.

It leaves nothing behind.
"""

from threading import Thread

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_dgm.compile import CaptureError, capture, compile_function


def test_closures_are_read_by_reference() -> None:
    weight = torch.tensor([1.0, 2.0])
    captured = capture(lambda x: weight * x, (torch.ones(2),))
    weight.mul_(3.0)
    torch.testing.assert_close(captured(torch.tensor([1.0, 10.0])), torch.tensor([3.0, 60.0]))
    assert [id(tensor) for tensor in captured.lifted] == [id(weight)]


def test_one_tensor_under_two_names_is_lifted_once() -> None:
    layer = nn.Linear(2, 2, bias=False)
    alias = layer.weight
    captured = capture(lambda x: layer(x) + x @ alias, (torch.ones(2),))
    assert len(captured.lifted) == 1


def test_writes_in_place_reach_the_callers_tensor_at_every_call_and_not_at_capture() -> None:
    count = torch.zeros(())

    def tick(x: Tensor) -> Tensor:
        count.add_(1.0)
        return x + count

    captured = capture(tick, (torch.zeros(()),))
    assert count == 0
    assert [captured(torch.zeros(())).item() for _ in range(3)] == [1.0, 2.0, 3.0]
    assert count == 3


def test_an_in_place_operator_on_an_attribute_keeps_the_callers_buffer() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    counter = Counter()
    buffer = counter.calls
    captured = capture(counter, (torch.ones(()),))
    assert counter.calls is buffer
    assert [captured(torch.ones(())).item(), captured(torch.ones(())).item()] == [1.0, 2.0]


def test_batch_norm_statistics_follow_without_being_declared() -> None:
    norm, twin = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    x = torch.randn(6, 3)
    captured = capture(norm, (x,))
    assert norm.num_batches_tracked == 0
    torch.testing.assert_close(captured(x), twin(x).detach())
    torch.testing.assert_close(norm.running_var, twin.running_var)
    assert norm.num_batches_tracked == 1


def test_gradients_are_taken_inside() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    captured = capture(
        lambda x: torch.autograd.grad((weight**3 * x).sum(), weight)[0], (torch.ones(2),)
    )
    torch.testing.assert_close(captured(torch.ones(2)), 3 * weight.detach() ** 2)


def test_gradients_of_inputs_that_require_them() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    captured = capture(lambda x: torch.autograd.grad((x**3).sum(), x)[0], (x,))
    torch.testing.assert_close(captured(x), 3 * x.detach() ** 2)


def test_randomness_is_fresh_and_seeded_and_capture_draws_none() -> None:
    torch.manual_seed(1)
    captured = capture(lambda: pyro.sample("z", dist.Dirichlet(torch.ones(3))), ())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    capture(lambda: pyro.sample("z", dist.Dirichlet(torch.ones(3))), ())
    torch.testing.assert_close(torch.get_rng_state(), state)
    first, second = captured(), captured()
    assert not torch.equal(first, second)
    torch.manual_seed(2)
    torch.testing.assert_close(captured(), first)


def test_other_leaves_are_held_fixed() -> None:
    captured = capture(lambda x, power: x["a"] ** power, ({"a": torch.tensor([2.0])}, 3))
    torch.testing.assert_close(captured({"a": torch.tensor([3.0])}, 3), torch.tensor([27.0]))


def test_constants_of_the_program_can_be_read() -> None:
    captured = capture(lambda x: x * torch.tensor(3.0).item(), (torch.ones(2),))
    torch.testing.assert_close(captured(torch.ones(2)), torch.full((2,), 3.0))


def test_sizes_stay_sizes() -> None:
    """`x.new(Size([3]))` is a tensor of 3 elements, `x.new((3,))` a tensor that holds a 3."""
    captured = capture(lambda x: x.new(x.size()).zero_(), (torch.ones(3),))
    torch.testing.assert_close(captured(torch.ones(3)), torch.zeros(3))


def test_a_distribution_of_the_caller_keeps_no_tensor_of_the_trace() -> None:
    labels = dist.Categorical(probs=torch.tensor([0.25, 0.75]))
    captured = capture(labels.log_prob, (torch.tensor(1),))
    torch.testing.assert_close(captured(torch.tensor(0)), torch.tensor(0.25).log())
    torch.testing.assert_close(labels.logits.exp(), torch.tensor([0.25, 0.75]))


def test_a_transforms_cache_neither_enters_nor_leaves_the_trace() -> None:
    scale, x = torch.tensor(2.0), torch.tensor([0.5, 1.0])
    transform = dist.transforms.AffineTransform(0.0, scale, cache_size=1)
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), [transform])
    before = flow.log_prob(x)
    captured = capture(lambda: flow.log_prob(x), ())
    torch.testing.assert_close(captured(), before)
    scale.mul_(2.0)
    expected = dist.Normal(0.0, 4.0).log_prob(x)
    torch.testing.assert_close(captured(), expected)
    torch.testing.assert_close(flow.log_prob(x), expected)


def test_assignment_by_mask() -> None:
    def clip(x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        result[x > 0] = x[x > 0] if False else 1.0
        positive = x > 1
        result[positive] = x[positive]
        return result

    x = torch.tensor([-1.0, 0.5, 2.0])
    torch.testing.assert_close(capture(clip, (x,))(x), torch.tensor([0.0, 1.0, 2.0]))


def test_the_mode_of_modules_is_remembered() -> None:
    net = nn.Dropout(0.5)
    captured = capture(net, (torch.ones(4),))
    assert captured.is_current()
    net.eval()
    assert not captured.is_current()


def test_pyro_is_as_it_was_after_capture_and_after_failure() -> None:
    methods = [
        torch.distributions.Distribution._validate_sample,
        torch.distributions.Transform.__call__,
    ]
    capture(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), ())
    with pytest.raises(CaptureError):
        capture(lambda: torch.ones(3)[torch.randn(3) > 0], ())
    assert methods == [
        torch.distributions.Distribution._validate_sample,
        torch.distributions.Transform.__call__,
    ]
    with pytest.raises(ValueError, match="within the support"):
        poutine.trace(
            lambda: pyro.sample("z", dist.Beta(1.0, 1.0), obs=torch.tensor(2.0))
        ).get_trace().log_prob_sum()


def test_the_compiled_function_equals_the_original() -> None:
    noise = torch.randn(40, 3)

    def energy(x: Tensor) -> Tensor:
        return torch.logsumexp(
            -((x[:, None] - noise) ** 2).sum(-1) + 0.1 * torch.randn(x.shape[0], 40), -1
        )

    x = torch.randn(20, 3)
    compiled = compile_function(energy, (x,))
    torch.manual_seed(5)
    expected = energy(x)
    torch.manual_seed(5)
    torch.testing.assert_close(compiled(x), expected)


def test_an_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match="'inductor' or 'eager', got 'jit'"):
        compile_function(lambda x: x, (torch.ones(1),), backend="jit")  # type: ignore[arg-type]


def test_captures_in_threads_take_turns() -> None:
    assign, found = nn.Module.__setattr__, {}

    def model(x: Tensor) -> Tensor:
        for _ in range(20):
            x = 2 * pyro.sample("z", dist.Normal(x, 1.0), obs=x)
        return x

    def work(size: int) -> None:
        x = torch.ones(size)
        found[size] = capture(model, (x,))(x).tolist()

    threads = [Thread(target=work, args=(size,)) for size in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {size: [2.0**20] * size for size in (2, 3, 4)}
    assert nn.Module.__setattr__ is assign
