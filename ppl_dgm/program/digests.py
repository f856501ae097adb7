"""Digest of data that come part by part."""

from collections.abc import Mapping
from typing import Any

from ppl_dgm.program import first_run
from ppl_dgm.program.arguments import unpack_arguments
from ppl_dgm.program.handlers import Prior, SizedPlates
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.observed import Observed
from ppl_dgm.program.program import Program
from ppl_dgm.program.structure import Structure

__all__ = ["RunningDigest"]


class RunningDigest:
    """Digest of all parts: that of the whole.

    The program is run once for each part, to see what it observes.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._halves = program.model, program.guide or Prior(program.model)
        self._observed = Observed(lambda *given: first_run.run(*self._halves, *given)[1])
        self._structure: Structure | None = None

    def add(self, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """Add the next part."""
        args, kwargs = self.program.adapt(*unpack_arguments(args, dict(kwargs)))
        with undisturbed(*self._halves), SizedPlates():
            trace = self._observed.trace(args, kwargs)
        if self._structure is None or not set(self._structure.observed) <= trace.nodes.keys():
            self._structure = self.program.inspect(*args, **kwargs)  # a loop's sites are its data
        with undisturbed(*self._halves), SizedPlates():
            self._observed.add(self._structure, trace, args, kwargs)

    @property
    def digest(self) -> str:
        """The digest so far."""
        return self._observed.digest
