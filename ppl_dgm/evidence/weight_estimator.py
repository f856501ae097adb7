"""Base class of estimators that use log weights."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ppl_dgm.compile import CompileMode
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.estimate import BoundKind
from ppl_dgm.program import Bound
from ppl_dgm.sampling.importance import Proposal, all_weights
from ppl_dgm.sampling.memory import MEMORY
from ppl_dgm.validation import check_least

__all__ = ["WeightEstimator"]


@dataclass(frozen=True)
class WeightEstimator(Estimator):
    """Base class of estimators that use log weights.

    Latents are drawn from the guide or the prior.
    """

    num_particles: int = 1000
    proposal: Proposal = field(default="guide", kw_only=True)
    memory: int = field(default=MEMORY, repr=False, kw_only=True)
    compile: CompileMode = field(default="auto", kw_only=True)
    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_least(self, num_particles=self.least, memory=1)

    def kind(self, bound: Bound) -> BoundKind:
        return type(self).bound if bound.structure.latents else "exact"

    def draws_from(self, bound: Bound) -> Proposal | None:
        return self.proposal

    def weights(self, bound: Bound, num_particles: int) -> Tensor:
        """Log weights of the program, `[num_particles, *batch]`."""
        return all_weights(bound, num_particles, self.proposal, self.memory, self.compile)
