"""Interface to the compiler, from captured graph to callable.

The callable works on flat tensors.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ppl_dgm.compile.errors import CaptureError
from ppl_dgm.compile.graph.nodes import graphs_of, has_loops
from ppl_dgm.compile.graph.passes import prepare
from ppl_dgm.compile.inductor.checking import CheckedRun
from ppl_dgm.compile.inductor.cost import check_cost, note_compiled
from ppl_dgm.compile.tracing.capture import Captured, capture
from ppl_dgm.compile.tracing.turns import compiling_in_turn

__all__ = ["Backend", "Compiled", "cache_folder", "compile_captured", "compile_function"]

Backend = Literal["inductor", "eager"]
Flat = Callable[..., Sequence[torch.Tensor]]

_LOG = logging.getLogger("ppl_dgm.compile")
_KEPT = 256  # compiled graphs
_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_COMPILED: dict[Any, Flat] = {}


@dataclass(frozen=True)
class Compiled:
    """Compiled function that is called like the original.

    It takes tensors of the example's shapes, dtypes and devices.

    Attributes:
        captured: the graph and the tensors it reads by reference.
        run: the machine code, from flat inputs and lifted tensors to flat outputs.
        seconds: how long the compiler took (0 when it had compiled the same graph before).
    """

    captured: Captured
    run: Flat
    seconds: float

    def __call__(self, *inputs: Any) -> Any:
        """Run the compiled code on new inputs.

        Lifted tensors have their present values. Outputs carry no gradient.

        Raises:
            ValueError: inputs of another kind than the examples, or modules that were set
                differently at capture.
        """
        return self.captured.rebuild(self.run(*self.captured.fitted(inputs), *self.captured.lifted))


def compile_function(
    fn: Callable[..., Any], inputs: Sequence[Any], *, backend: Backend = "inductor"
) -> Compiled:
    """Capture `fn(*inputs)` and compile the graph.

    Random numbers come from torch's generator in the order of the program, so that the compiled
    function equals the original at equal seeds, to rounding.

    Args:
        fn: function of tensors, as in `capture`.
        inputs: example arguments.
        backend: `"inductor"` for machine code, on a CPU or a CUDA device; `"eager"` runs the graph
            as it is, which takes no time to compile and shows in a debugger what is computed.

    Raises:
        CaptureError: the function cannot be captured, or the compiler fails on its graph.

    Example:
        >>> import torch
        >>> from ppl_dgm.compile import compile_function
        >>> double = compile_function(lambda x: 2 * x, (torch.ones(2),), backend="eager")
        >>> double(torch.tensor([1.0, 3.0]))
        tensor([2., 6.])
    """
    return compile_captured(capture(fn, inputs), backend=backend)


def compile_captured(
    captured: Captured, *, backend: Backend = "inductor", turns: int | None = None
) -> Compiled:
    """Compile a captured graph, or reuse earlier code.

    Code of an equal graph compiled before in this process is reused.

    The code is checked against the graph at its first call, and now and then later.

    Args:
        captured: what `capture` returned.
        backend: as in `compile_function`.
        turns: place of the input that counts the turns, for the graph of a loop.

    Raises:
        CaptureError: the compiler fails on the graph.
    """
    if backend not in ("inductor", "eager"):
        raise ValueError(f"backend must be 'inductor' or 'eager', got {backend!r}")
    flat = [tensor.detach() for tensor in (*captured.examples, *captured.lifted)]
    if backend == "eager":
        return Compiled(captured, without_gradients(captured.graph), 0.0)
    try:
        with compiling_in_turn():
            prepare(captured.graph, flat)
            return _compile(captured, flat, turns)
    except CaptureError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise CaptureError(
            f"the compiler failed on the captured graph: {type(error).__name__}: {message}. Run "
            "with compile=False."
        ) from error


def without_gradients(run: Callable[..., Any]) -> Flat:
    """Return `run` with autograd switched off around it."""

    def quiet(*flat: torch.Tensor) -> Sequence[torch.Tensor]:
        with torch.no_grad():
            return run(*flat)

    return quiet


def cache_folder() -> Path:
    """Return the folder that keeps compiled code between runs.

    It is `TORCHINDUCTOR_CACHE_DIR` where the user has set that, else `ppl_dgm/inductor` in the
    user's cache folder.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # noqa: PLC0415 - seconds

    chosen = os.environ.get(_VARIABLE)
    if chosen and chosen != default_cache_dir():  # torch writes its default there by itself
        return Path(chosen)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "ppl_dgm" / "inductor"


@contextmanager
def _keeping_code() -> Iterator[None]:
    """Let Inductor keep its code in our folder.

    The user's own compilations keep theirs.
    """
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(cache_folder())
    try:
        yield
    finally:
        os.environ.pop(_VARIABLE)
        if before is not None:
            os.environ[_VARIABLE] = before


def _compile(captured: Captured, flat: list[torch.Tensor], turns: int | None) -> Compiled:
    graph = captured.graph
    code = tuple(module.code for module in graphs_of(graph))
    key = (
        code,
        *map(_signature, flat),
        _aliases(flat),
        torch.get_default_dtype(),
        torch.get_num_threads(),
    )
    seconds = 0.0
    if key not in _COMPILED:
        size = sum(
            node.op == "call_function" for module in graphs_of(graph) for node in module.graph.nodes
        )
        check_cost(key, size, cache_folder())
        from ppl_dgm.compile.inductor.machine_code import machine_code  # noqa: PLC0415 - seconds

        _LOG.info(
            "compiling a graph of %d operations; the code is kept in %s", size, cache_folder()
        )
        start = time.perf_counter()
        with _keeping_code():
            _COMPILED[key] = machine_code(graph, flat)
        note_compiled(key, cache_folder())
        seconds = time.perf_counter() - start
        _LOG.info("compiled in %.1f s", seconds)
    run = _COMPILED[key] = _COMPILED.pop(key)
    if len(_COMPILED) > _KEPT:
        _COMPILED.pop(next(iter(_COMPILED)))
    run = CheckedRun(_replayed(run, captured, flat), captured, turns)
    return Compiled(captured, run, seconds)


def _replayed(run: Flat, captured: Captured, flat: list[torch.Tensor]) -> Flat:
    on_cuda = {tensor.device.type for tensor in flat} == {"cuda"}
    return (
        CudaReplay(run, captured) if on_cuda and not has_loops(captured.graph) else run
    )  # loops ask the host


def _signature(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _aliases(flat: list[torch.Tensor]) -> tuple[int, ...]:
    first: dict[int, int] = {}
    return tuple(
        first.setdefault(tensor.untyped_storage().data_ptr(), i) for i, tensor in enumerate(flat)
    )


class CudaReplay:
    """CUDA graph of Inductor's kernels.

    The kernels are recorded once on static buffers, and launched by one call.

    Inputs are copied to the buffers, lifted tensors are used where they are, outputs are copied
    out. Random numbers are fresh at every launch: torch moves its generator's offset between
    replays.
    """

    def __init__(self, run: Flat, captured: Captured) -> None:
        self._inputs = [tensor.detach().clone() for tensor in captured.examples]
        self._graph = torch.cuda.CUDAGraph()
        static = [*self._inputs, *captured.lifted]
        before = [tensor.detach().clone() for tensor in captured.lifted]
        with torch.no_grad():
            self._warm_up(run, static)
            with torch.cuda.graph(self._graph):
                self._outputs = list(run(*static))
            for tensor, value in zip(captured.lifted, before, strict=True):
                tensor.copy_(value)

    def _warm_up(self, run: Flat, static: list[torch.Tensor]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run(*static)
        torch.cuda.current_stream().wait_stream(stream)

    def __call__(self, *flat: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            for buffer, value in zip(
                self._inputs, flat, strict=False
            ):  # the lifted tensors follow, used in place
                buffer.copy_(value, non_blocking=True)
            self._graph.replay()
            return [output.clone() for output in self._outputs]
