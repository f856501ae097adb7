"""Drawing of a model's graph by Pyro's `render_model` and graphviz."""

import shutil
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from pyro.infer.inspect import generate_graph_specification, get_model_relations, render_graph
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_dgm.data.conversion import Arguments
from ppl_dgm.program.arguments import select_data
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.structure import Structure

__all__ = ["StandIns", "drawing_html", "model_graph"]


def model_graph(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Draw which sites depend on which, in their plates.

    Raises:
        ImportError: without the package graphviz.
        NotImplementedError: for plates that overlap without being nested.
    """
    with undisturbed(model):
        found = get_model_relations(model, args, dict(kwargs), include_deterministic=True)
    return render_graph(generate_graph_specification(found))


class StandIns(NamedTuple):
    """Arguments in place of data, which take no memory."""

    args: tuple
    kwargs: dict[str, Any]
    num_data: int | None

    @classmethod
    def of(cls, args: tuple, kwargs: Mapping[str, Any], num_data: int | None) -> "StandIns":
        """Make arguments of the same shapes.

        All entries of a tensor are its first."""

        def stand_in(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.numel():
                return leaf
            return leaf.detach()[(0,) * leaf.dim()].clone().expand(leaf.shape)

        own, named = tree_map(stand_in, (args, dict(kwargs)))
        return cls(own, named, num_data)

    def few(self, structure: Structure) -> Arguments:
        """Those of two data, where the program is divisible."""
        size = self.num_data if structure.divisible else None
        return select_data(self.args, self.kwargs, size, slice(2), structure.held)


def drawing_html(model: Callable, structure: Structure, given: StandIns) -> str:
    """Draw a model as part of a page.

    It gives nothing without graphviz, or for a model that the stand-ins do not suit.
    """
    if find_spec("graphviz") is None or shutil.which("dot") is None:
        return ""
    try:
        drawn = model_graph(model, *given.few(structure)).pipe(format="svg", encoding="utf-8")
    except Exception:  # whatever a user's model raises at stand-ins: the tables stand alone
        return ""
    picture = drawn[drawn.index("<svg") :]
    return f'<div class="scrolls" style="overflow-x:auto;background:#fff">{picture}</div>'
