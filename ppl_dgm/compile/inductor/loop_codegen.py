"""C++ code for compiled loops without memory allocations.

What a step of a loop writes lies in tensors that are made once.

Inductor's C++ around the kernels of a `while_loop` makes a tensor for every intermediate result of
every step. For programs of a few numbers that is nine tenths of the time. `StandingWrapper` writes
the same C++ with tensors that stand from the first step on; what is carried from step to step is
copied where it is small, and handed over where it is large.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch._inductor import ir
from torch._inductor.codegen.common import DeferredLine, device_codegens, init_backend_registration
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.codegen.wrapper import EnterSubgraphLine, ExitSubgraphLine
from torch._inductor.virtualized import V

__all__ = ["edition", "standing_buffers"]

_SMALL = 1 << 16  # bytes; above, a copy costs more than a new tensor
_STANDING = """
#include <cstring>
struct Standing {
  AtenTensorHandle handle;
  void* data;
  explicit Standing(AtenTensorHandle tensor) : handle(tensor), data(get_data_ptr_wrapper(tensor)) {}
  operator AtenTensorHandle() const { return handle; }
  AtenTensorHandle get() const { return handle; }
  AtenTensorHandle release() const { return handle; }
  void* data_ptr() const { return data; }
  void reset() const {}
};
static AtenTensorHandle standing_empty(
    int64_t rank, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
  AtenTensorHandle handle;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
    rank, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return handle;
}
"""


class StandingWrapper(CppWrapperCpu):
    """Inductor's C++ wrapper, with loops whose steps make no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._inside: set[str] = set()
        self._standing: set[str] = set()
        self.header.splice(_STANDING)

    @staticmethod
    def create(*_: Any, **__: Any) -> "StandingWrapper":
        """Return a wrapper for the code of a graph.

        Subgraphs are written in place.
        """
        return StandingWrapper()

    def codegen_while_loop(self, while_loop: Any, stack_output: bool = False) -> None:
        """Write the code of a `while` loop.

        Its condition and body share a block, and read what stands outside.
        """
        if stack_output or not _is_plain(while_loop):
            super().codegen_while_loop(while_loop, stack_output)
            return
        carried = {output.get_name(): output for output in while_loop.outputs}
        for (name, output), start in zip(carried.items(), while_loop.carried_inputs, strict=True):
            make = "aoti_torch_clone" if _is_small(output) else "aoti_torch_assign_tensors_out"
            self._new(name, make, start.codegen_reference())
        shared = {
            f"{while_loop.get_name()}_{place}": t
            for place, t in enumerate(while_loop.additional_inputs)
        }
        for name, tensor in shared.items():
            self.writeline(f"const auto& {name} = {tensor.codegen_reference()};")
        self.writeline("while (true) {")
        condition, body = while_loop.cond_subgraph.graph, while_loop.body_subgraph.graph
        self._part(condition, [*carried, *shared])
        self.writeline(
            "if "
            f"(!*static_cast<bool*>({condition.graph_outputs[0].codegen_reference()}.data_ptr())) "
            "break;"
        )
        self._part(body, [*carried, *shared])
        self._hand_over(body, carried)
        self.writeline("}")

    def _part(self, graph: Any, inputs: Sequence[str]) -> None:
        self.writeline(EnterSubgraphLine(self, graph))
        self.push_codegened_graph(graph)
        for inner, outer in zip(graph.graph_inputs, inputs, strict=True):
            self.writeline(f"const Standing {inner}({outer}.get());")
        self._inside |= {name for name, buffer in graph.name_to_buffer.items() if _is_small(buffer)}
        parent = V.graph
        with V.set_graph_handler(graph):
            graph.codegen_subgraph(parent_graph=parent)
        self.pop_codegened_graph()
        self.writeline(ExitSubgraphLine(self))

    def _hand_over(self, body: Any, carried: dict[str, Any]) -> None:
        """Pass the results of the body to the next step."""
        values = {}
        for name, result, own in zip(carried, body.graph_outputs, body.graph_inputs, strict=False):
            values[name] = result.codegen_reference()
            if result.get_name() in body.graph_inputs and result.get_name() != own:
                self._new(f"{name}_next", "aoti_torch_clone", values[name])
                values[name] = f"{name}_next"
            elif result.get_name() == own:
                del values[name]
        for name, value in values.items():
            if _is_small(carried[name]):
                self.writeline(
                    f"std::memcpy({name}.data_ptr(), {value}.data_ptr(), {_bytes(carried[name])});"
                )
            else:
                self.writeline(f"{name} = std::move({value});")

    def _new(self, name: str, make: str, source: str) -> None:
        self.writeline(f"AtenTensorHandle {name}_handle;")
        self.writeline(f"AOTI_TORCH_ERROR_CODE_CHECK({make}({source}, &{name}_handle));")
        self.writeline(f"RAIIAtenTensorHandle {name}({name}_handle);")

    def make_buffer_allocation(self, buffer: Any) -> str:
        """Return the line that allocates a buffer.

        Inside a loop the buffer is made once for each thread.
        """
        name = buffer.get_name()
        if name not in self._inside:
            return super().make_buffer_allocation(buffer)
        self._standing.add(name)
        size, stride = (self._array(shape) for shape in (buffer.get_size(), buffer.get_stride()))
        rank, dtype = len(buffer.get_size()), self.codegen_dtype(buffer.get_dtype())
        made = f"standing_empty({rank}, {size}, {stride}, {dtype})"
        return f"static thread_local const Standing {name}({made});"

    def _array(self, shape: Any) -> str:
        values, write = self.codegen_shape_tuple(shape), self.wrapper_call.writeline
        return self.codegen_int_array_var(
            values, write, known_statically=True, graph=self.get_codegened_graph()
        )

    def codegen_deferred_allocation(self, name: str, view: ir.ReinterpretView) -> None:
        """Write part of a buffer as a separate tensor."""
        if view.get_name() not in self._standing:
            super().codegen_deferred_allocation(name, view)
            return
        self._standing.add(name)
        line = f"static thread_local const Standing {name}({view.codegen_reference()}.release());"
        self.writeline(DeferredLine(name, line))


@contextmanager
def standing_buffers() -> Iterator[None]:
    """Let Inductor write loops on the CPU in this manner."""
    init_backend_registration()
    usual = device_codegens["cpu"]
    device_codegens["cpu"] = replace(usual, cpp_wrapper_codegen=StandingWrapper)
    try:
        yield
    finally:
        device_codegens["cpu"] = usual


def edition() -> str:
    """Return a hash of this module's source code.

    Caches of compiled loops use it, so that code of another version is not reused.
    """
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _is_plain(while_loop: Any) -> bool:
    """Return whether a loop takes only unmodified CPU tensors.

    Only tensors go in, and none is written to.
    """
    inputs = [*while_loop.carried_inputs, *while_loop.additional_inputs]
    tensors = all(
        isinstance(value, ir.TensorBox | ir.StorageBox | ir.Buffer | ir.ReinterpretView)
        for value in inputs
    )
    if not tensors or while_loop.mutation_outputs:
        return False
    asked = while_loop.cond_subgraph.graph.graph_outputs[0]
    return not isinstance(asked, ir.ShapeAsConstantBuffer) and all(
        value.get_device().type == "cpu" for value in inputs
    )


def _is_small(buffer: Any) -> bool:
    if not isinstance(buffer.get_output_spec(), ir.Layout) or isinstance(
        buffer.layout, ir.NoneLayout
    ):
        return False
    size, stride = buffer.get_size(), buffer.get_stride()
    if not all(getattr(number, "is_Integer", True) for number in (*size, *stride)):
        return False
    return ir.is_contiguous_strides_for_shape(stride, size) and _bytes(buffer) <= _SMALL


def _bytes(buffer: Any) -> int:
    entries = 1
    for number in buffer.get_size():
        entries *= int(number)
    return entries * buffer.get_dtype().itemsize
