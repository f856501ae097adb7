"""Compilation of a graph to machine code by Inductor.

It is imported at the first compilation, since that takes two seconds.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch._inductor as inductor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, GraphModule

from ppl_dgm.compile.graph import passes
from ppl_dgm.compile.graph.nodes import graphs_of, has_loops
from ppl_dgm.compile.torch_internals import is_tested

__all__ = ["machine_code", "shortcut"]

Flat = Callable[..., Sequence[torch.Tensor]]

PLAIN = "plain"  # loops as Inductor writes them, in the key of its cache
_LOG = logging.getLogger("ppl_dgm.compile")
_LEFT_OUT: set[str] = set()
_THREADED = 8192  # elements; a second thread costs more than it saves on tensors smaller than this
_TEXTS = ("passes", "hoist_expand", "functionalise", "nodes")


def machine_code(graph: GraphModule, flat: list[torch.Tensor]) -> Flat:
    """Compile a prepared graph for flat inputs like these.

    It is compiled with the shortcuts of this package, and without them where they fail.
    """
    on_cpu = all(tensor.device.type == "cpu" for tensor in flat)
    starts = shortcut("startup_patches")
    loops = shortcut("loop_codegen") if on_cpu and has_loops(graph) else None
    if starts is None and loops is None:
        return _compile(graph, flat, on_cpu, PLAIN)
    try:
        with ExitStack() as stack:
            if starts is not None:
                stack.enter_context(starts.shortcuts(on_cpu))
            if loops is not None:
                stack.enter_context(loops.standing_buffers())
            return _compile(graph, flat, on_cpu, PLAIN if loops is None else loops.edition())
    except Exception as error:
        _LOG.warning("compiling again without shortcuts, which failed: %s", error)
        _forget_code(error)
        return _compile(graph, flat, on_cpu, PLAIN)


def _forget_code(error: Exception) -> None:
    """Remove the damaged file of code that an error names.

    The next process remakes it.
    """
    named = re.search(r"Failed to import (\S+\.py)\b", str(error))
    if named:
        Path(named[1]).unlink(missing_ok=True)


def shortcut(name: str) -> ModuleType | None:
    """Import a module of shortcuts, or log why not.

    They change private parts of Inductor, and so are used with the releases of torch that they were
    tested with.
    """
    try:
        if not is_tested():
            raise ImportError(f"torch {torch.__version__} was not tested")
        return import_module(f"ppl_dgm.compile.inductor.{name}")
    except (ImportError, AttributeError) as error:
        if name not in _LEFT_OUT:
            _LEFT_OUT.add(name)
            _LOG.warning("compiling without %s: %s", name, error)
        return None


def _compile(graph: GraphModule, flat: list[torch.Tensor], on_cpu: bool, loops: str) -> Flat:
    threads = torch.get_num_threads() if _largest(graph) >= _THREADED else 1
    options: dict[str, Any] = {
        "fallback_random": True,
        "cpp_wrapper": on_cpu,
        "cpp.threads": threads,
        "joint_custom_pre_pass": Rewriting(),
        "unsafe_marked_cacheable_functions": {"torch.ops.higher_order.while_loop": loops},
    }
    with torch.no_grad(), _quiet():
        code: Any = inductor.compile(graph, list(flat), options=options)
        return code


def _largest(graph: GraphModule) -> int:
    values = [node.meta.get("val") for module in graphs_of(graph) for node in module.graph.nodes]
    return max((value.numel() for value in values if isinstance(value, torch.Tensor)), default=0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's own warnings during compilation.

    They are deprecations and notes on missing fast paths, which the caller cannot change.
    """
    noisy = logging.getLogger("torch._inductor.ir")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        noisy.setLevel(level)


class Rewriting(CustomGraphPass):
    """Graph pass that runs `passes.rewrite` inside Inductor.

    Inductor runs it after making a graph functional by itself.
    """

    def __call__(self, graph: Graph) -> None:
        """Rewrite the graph in place."""
        module: Any = graph.owning_module
        passes.rewrite(module)

    def uuid(self) -> bytes:
        """Return a hash of the rewrites for the code cache."""
        return get_hash_for_files(
            tuple(str(Path(passes.__file__).with_name(f"{name}.py")) for name in _TEXTS)
        )
