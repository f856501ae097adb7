"""Compilation of a graph to machine code by Inductor.

It is imported at the first compilation, since that takes two seconds.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._inductor as inductor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, GraphModule

from ppl_dgm.compile.graph import passes
from ppl_dgm.compile.graph.nodes import graphs_of, has_loops
from ppl_dgm.compile.inductor.loop_codegen import edition, standing_buffers
from ppl_dgm.compile.inductor.startup_patches import shortcuts

__all__ = ["machine_code"]

Flat = Callable[..., Sequence[torch.Tensor]]

_THREADED = 8192  # elements; a second thread costs more than it saves on tensors smaller than this
_TEXTS = ("passes", "hoist_expand", "functionalise", "nodes")


def machine_code(graph: GraphModule, flat: list[torch.Tensor]) -> Flat:
    """Compile a prepared graph for flat inputs like these."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in flat)
    threads = torch.get_num_threads() if _largest(graph) >= _THREADED else 1
    options: dict[str, Any] = {
        "fallback_random": True,
        "cpp_wrapper": on_cpu,
        "cpp.threads": threads,
    }
    options["joint_custom_pre_pass"] = Rewriting()
    options["unsafe_marked_cacheable_functions"] = {"torch.ops.higher_order.while_loop": edition()}
    with ExitStack() as stack:
        for context in (torch.no_grad(), _quiet(), shortcuts(on_cpu)):
            stack.enter_context(context)
        if on_cpu and has_loops(graph):
            stack.enter_context(standing_buffers())
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
