"""Checks of compiled code against the captured graph.

Now and then a call is made by the graph as well, and both results must agree to rounding.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ppl_dgm.compile.errors import CaptureError
from ppl_dgm.compile.graph.nodes import nodes, writes
from ppl_dgm.compile.tracing.capture import Captured
from ppl_dgm.generators import unmoved_generators

__all__ = ["CheckedRun", "WrongNumbersError"]

Flat = Callable[..., Sequence[torch.Tensor]]
Noise = dict[torch.device, torch.Generator]

CHECKED = frozenset({1, 10, 100, 1000})  # calls
TURNS = 3  # of a loop, that are checked
ROUNDING = 1e3  # units in the last place of the largest entry that pass without a second look
LONG_SUMS = 1e-6  # relative, that sums over many numbers may differ by: a unit for each of them
SENSITIVITY = (
    30.0  # times what a perturbation of a few units in the last place of the inputs changes
)
TRIES = 2  # a draw that falls to the other side of a threshold by rounding does so once
# Running statistics are updated by an operation whose schema does not say so.
_UNDECLARED = {torch.ops.aten.native_batch_norm.default: (3, 4)}


class WrongNumbersError(CaptureError):
    """Error for compiled code that disagrees with its graph.

    No parameter, buffer or generator has changed.
    """


class CheckedRun:
    """Compiled code that is checked against its graph.

    The first, tenth, hundredth and thousandth calls are checked.

    Outputs and the tensors that are written in place must be those that the graph gives, run
    operation by operation with the same random numbers. What exceeds rounding is compared with the
    effect of a perturbation of the inputs and of every operation's result in their last places, so
    that ill-conditioned numbers and differences of nearly equal ones are not taken for wrong.

    Args:
        run: the machine code.
        captured: what it was made of.
        turns: place of the input that counts the turns of a loop, of which only a few are checked.

    Raises:
        WrongNumbersError: naming the output; parameters, buffers and generators are as before the
            call.
    """

    def __init__(self, run: Flat, captured: Captured, turns: int | None = None) -> None:
        self.run, self.captured, self.turns = run, captured, turns
        self.calls = 0
        self._written = written(captured.graph)

    def __call__(self, *flat: torch.Tensor) -> Sequence[torch.Tensor]:
        self.calls += 1
        if self.calls in CHECKED:
            self._check(list(flat))
        return self.run(*flat)

    @torch.no_grad()
    def _check(self, flat: list[torch.Tensor]) -> None:
        if self.turns is not None:
            flat[self.turns] = flat[self.turns].clamp(max=TURNS)
        wrong = ""
        for _ in range(TRIES):
            wrong = self._difference(flat)
            if not wrong:
                return
            torch.rand(())  # other noise
        self.calls = 0  # whoever tries again is checked again
        raise WrongNumbersError(
            f"compiled code gives other numbers than its graph: {wrong}. Run with compile=False."
        )

    def _difference(self, flat: list[torch.Tensor]) -> str:
        graph = self.captured.graph
        with self._unmoved(flat):
            right = self._results(graph, flat)
        with self._unmoved(flat):
            given = self._results(self.run, flat)
        longest = max((tensor.numel() for tensor in flat), default=0)
        pairs = enumerate(zip(given, right, strict=True))
        suspects = [i for i, (a, b) in pairs if unlike(a, b, longest=longest)]
        if not suspects:
            return ""
        with self._unmoved(flat):
            nearby = self._results(Shaken(graph).run, self._perturbed(flat))
        for place in suspects:
            moved = distance(nearby[place], right[place])
            if unlike(given[place], right[place], SENSITIVITY * moved, longest):
                error = distance(given[place], right[place])
                return f"{self._name(place, len(given))} differs by {error:.3g}"
        return ""

    def _results(self, run: Flat, flat: list[torch.Tensor]) -> list[torch.Tensor]:
        """Outputs and written tensors after a call."""
        outputs = run(*flat)
        return [t.detach().clone() for t in (*outputs, *(flat[place] for place in self._written))]

    def _perturbed(self, flat: list[torch.Tensor]) -> list[torch.Tensor]:
        """Perturb the inputs in their last digits.

        Inputs that are written to are changed in place.
        """
        with unmoved_generators(*{tensor.device for tensor in flat}):
            return [
                tensor.copy_(shaken(tensor)) if place in self._written else shaken(tensor)
                for place, tensor in enumerate(flat)
            ]

    @contextmanager
    def _unmoved(self, flat: Sequence[torch.Tensor]) -> Iterator[None]:
        before = [flat[place].detach().clone() for place in self._written]
        with unmoved_generators(*{tensor.device for tensor in flat}):
            try:
                yield
            finally:
                for place, value in zip(self._written, before, strict=True):
                    flat[place].copy_(value)

    def _name(self, place: int, count: int) -> str:
        first = count - len(self._written)
        if place < first:
            return f"output {place}"
        place = self._written[place - first] - len(self.captured.examples)
        if place < 0:
            return "an input that is written to"
        tensor = self.captured.lifted[place]
        names = (
            f"{owner}.{name}"
            for _, name, held, owner in self.captured.settings.tensors
            if held is tensor
        )
        return next(names, f"a tensor of shape {list(tensor.shape)} that is written to")


def written(graph: GraphModule) -> tuple[int, ...]:
    """Return the positions of inputs that a graph may modify.

    The graph may write to them directly or through views.
    """
    inputs = [node for node in nodes(graph) if node.op == "placeholder"]
    found = {source for node in nodes(graph) for value in targets(node) for source in origin(value)}
    return tuple(place for place, node in enumerate(inputs) if node in found)


def targets(node: Node) -> list[Any]:
    """What an operation writes to."""
    if node.target in _UNDECLARED:
        return [node.args[place] for place in _UNDECLARED[node.target]]  # type: ignore[index]
    if not writes(node):
        return []
    target: Any = node.target
    arguments = zip(target._schema.arguments, node.args, strict=False)
    return [value for spec, value in arguments if spec.alias_info and spec.alias_info.is_write]


def origin(value: Any) -> Iterator[Node]:
    """Yield the graph inputs behind a value, through views.

    The value may also be a list of values.
    """
    for part in value if isinstance(value, (list, tuple)) else (value,):
        while isinstance(part, Node) and is_view(part.target):
            part = part.args[0]
        if isinstance(part, Node) and part.op == "placeholder":
            yield part


def is_view(target: Any) -> bool:
    """Whether an operation returns the memory of its first argument."""
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return bool(target._schema.arguments) and target._schema.arguments[0].alias_info is not None


def shaken(
    tensor: torch.Tensor, units: float = 4.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """A tensor that differs in the last places."""
    if not tensor.is_floating_point():
        return tensor
    like: Any = {"dtype": tensor.dtype, "device": tensor.device, "generator": generator}
    return tensor * (1 + units * torch.finfo(tensor.dtype).eps * torch.randn(tensor.shape, **like))


class Shaken(Interpreter):
    """Run of a graph whose operations are perturbed.

    They are off by a unit in the last place, as rounding makes them. Views and what operations
    write to stay as they are, as do random numbers, torch's generators among them. Turns of loops
    are perturbed too.
    """

    def __init__(self, graph: GraphModule, noise: Noise | None = None) -> None:
        super().__init__(graph)
        self.noise: Noise = {} if noise is None else noise

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return an attribute; turns of a loop are perturbed."""
        found = super().get_attr(target, args, kwargs)
        return Shaken(found, self.noise).run if isinstance(found, GraphModule) else found

    def run_node(self, n: Node) -> Any:
        """Run one node, and perturb what it newly made."""
        result = super().run_node(n)
        if not isinstance(result, torch.Tensor) or not makes_numbers(n.target):
            return result
        device = result.device
        noise = self.noise.setdefault(device, torch.Generator(device).manual_seed(0))
        return shaken(result, 1.0, noise)


def makes_numbers(target: Any) -> bool:
    """Whether an operation computes a tensor of its own."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded in target.tags:
        return False
    values = (*target._schema.arguments, *target._schema.returns)
    return not any(value.alias_info for value in values)


def unlike(one: torch.Tensor, other: torch.Tensor, allowed: float = 0.0, longest: int = 0) -> bool:
    """Return whether tensors differ by more than allowed.

    Rounding is tolerated in addition to `allowed`, also that of a sum over `longest` numbers: equal
    ones round in the same direction each time.
    """
    if not other.is_floating_point():
        return not torch.equal(one, other) and not allowed > 0
    finite = other[other.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    eps = torch.finfo(other.dtype).eps
    rounding = max(ROUNDING * eps, min(longest * eps, LONG_SUMS))
    return distance(one, other) > rounding * largest + allowed


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest absolute difference of entries.

    It is infinite where only one of two entries is finite.
    """
    if not one.numel():
        return 0.0
    if not one.is_floating_point():
        return float(not torch.equal(one, other))
    same = (one == other) | (one.isnan() & other.isnan())
    gap = torch.where(same, torch.zeros_like(one), (one - other).abs())
    return gap.nan_to_num(nan=torch.inf, posinf=torch.inf).max().item()
