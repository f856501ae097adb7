"""Estimator, the common base."""

import time
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch

from ppl_dgm.checked import checked
from ppl_dgm.data import Stream
from ppl_dgm.evidence.alarms import alarms, bias_alarm, rounding_of, undefined_densities
from ppl_dgm.evidence.estimate import (
    TURNED,
    BoundKind,
    Estimate,
    own_errors,
    quotient,
    shared_error,
    widened,
)
from ppl_dgm.evidence.normalising import score_exactly, tails_alarm, without_data
from ppl_dgm.evidence.outweighed import outweighed_alarm
from ppl_dgm.evidence.result import Evidence
from ppl_dgm.evidence.sharing import over_ranks
from ppl_dgm.evidence.streaming import over_stream, read_once
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.checks import refuse_point_masses
from ppl_dgm.program.isolation import evaluating
from ppl_dgm.program.seeding import seeded
from ppl_dgm.program.sites import random_sites
from ppl_dgm.program.stretching import stretch_alarm
from ppl_dgm.program.structure import Structure
from ppl_dgm.sampling.convergence import widened_by_skew
from ppl_dgm.sampling.draws import draws_alarm
from ppl_dgm.sampling.folds import folds_alarm
from ppl_dgm.sampling.importance import Proposal
from ppl_dgm.sampling.missed_modes import modes_alarm
from ppl_dgm.watching import watched

__all__ = ["Estimator", "check_evidence"]

RELIED_ON = 0.01  # share of the estimate that comes from draws whose density is looked at


class Estimator(ABC):
    """Base class of all evidence estimators.

    Called as `estimator(program, *data, seed=0) -> Evidence`.

    To add one, write a frozen dataclass with its settings, set `bound`, and implement `estimate`;
    override `check` to refuse programs it is not made for, with an error that names an estimator
    that is. Settings are validated in `__post_init__`, before any work.
    """

    bound: ClassVar[BoundKind] = "estimate"
    sum_out: ClassVar[bool] = False
    independent: ClassVar[str | None] = None  # the setting that counts draws whose mean is Z

    @abstractmethod
    def estimate(self, bound: Bound) -> Estimate:
        """Estimate log Z of a program bound to its data.

        Gradients are off and the generator is seeded.
        """

    def check(self, bound: Bound) -> None:  # noqa: B027 - most estimators apply to every program
        """Refuse programs that the method does not apply to.

        Raises a ValueError that names a method that does apply.
        """

    def kind(self, bound: Bound) -> BoundKind:
        """What the number is for this program."""
        return type(self).bound

    def draws_from(self, bound: Bound) -> Proposal | None:
        """Return the proposal that latents are drawn from.

        The method relies on its density at the draws; None where it relies on no such draws.
        """
        return None

    @property
    def name(self) -> str:
        """Name in tables."""
        return type(self).__name__

    @checked
    def __call__(
        self,
        program: Program,
        *args: Any,
        seed: int | None = 0,
        progress: bool = True,
        **kwargs: Any,
    ) -> Evidence:
        """Estimate the evidence of a program at its data.

        Under `torch.distributed` (torchrun) the ranks share the data, or the independent draws of
        a data set's evidence, and all return the whole.

        Args:
            program: the program, with its parameters as they are.
            *args: data, as its model takes them.
            seed: makes the result repeatable; torch's generator is left as it was. None draws from
                torch's generator.
            progress: show a bar of the densities evaluated, where it takes over two seconds.
            **kwargs: further data.

        Raises:
            ValueError: if the program does not fit the data or the method, naming what would.
        """
        with watched(self.name, progress):
            data = read_once(args, kwargs)
            if isinstance(data, Stream):
                return over_stream(program, data, partial(self, program), seed)
            return self._found(program, *data, seed)

    def _found(
        self, program: Program, args: tuple, kwargs: dict[str, Any], seed: int | None
    ) -> Evidence:
        bound = program.bind(*args, sum_out=self.sum_out, **kwargs).in_double()
        shared = over_ranks(bound, seed, self, lambda own, a, kw, s: own(program, *a, seed=s, **kw))
        if shared is not None:
            return shared
        with evaluating(program), torch.no_grad():
            with seeded(seed, bound.device):
                check_evidence(bound)
                if not bound.structure.energies:
                    self.check(bound)
            start = time.perf_counter()
            with seeded(seed, bound.device):
                if bound.structure.energies:
                    estimate, kind = self._normalised(program, bound)
                else:
                    estimate, kind = self.estimate(bound), self.kind(bound)
                    if kind in ("estimate", "upper"):
                        missed = modes_alarm(program, bound, *estimate[:2])
                        estimate = estimate._replace(warnings=estimate.warnings + missed)
            found = self._evidence(bound, estimate, time.perf_counter() - start)
        return replace(found, bound=kind)

    def partition(self, free: Bound) -> Estimate:
        """Estimate the log partition function of a program without data.

        See `ppl_dgm.evidence.normalising`.
        """
        self.check(free)
        return self.estimate(free)

    def _normalised(self, program: Program, bound: Bound) -> tuple[Estimate, BoundKind]:
        """Estimate log f(x) - log Z, and what that is."""
        free = without_data(program, bound, self.sum_out).in_double()
        below, kind = widened(self.partition(free)), self.kind(free)
        outweighed = () if kind == "exact" else outweighed_alarm(bound, free, *below[:2])
        below = below._replace(warnings=below.warnings + tails_alarm(free) + outweighed)
        if not bound.structure.latents:
            log_f = score_exactly(bound)
            return quotient(Estimate(log_f, torch.zeros_like(log_f)), below), TURNED.get(kind, kind)
        self.check(bound)
        if kind in TURNED:
            raise ValueError(
                f"{self.name} bounds both the sum over the latents of an unnormalised program and "
                "its partition function, which gives no bound of their ratio; use AIS or SMC"
            )
        return quotient(self.estimate(bound), below), kind

    def _evidence(self, bound: Bound, estimate: Estimate, seconds: float) -> Evidence:
        shared = shared_error(estimate)
        diagnostics = dict(estimate.diagnostics)
        if "rounding" not in diagnostics:
            diagnostics["rounding"] = rounding_of(bound)
        share = torch.as_tensor(diagnostics.get("prior_share", 1.0))
        proposal = self.draws_from(bound) if bool((share > RELIED_ON).any()) else None
        drawn = draws_alarm(bound, proposal) if proposal else ()
        return Evidence(
            log_z=estimate.log_z.double(),
            std_error=widened_by_skew(
                estimate.std_error.double(), diagnostics.get("skewness", 0.0)
            ),
            shared_std_error=shared,
            bound=self.kind(bound),
            target=bound.structure.target,
            estimator=self.name,
            num_dims=bound.num_dims,
            digest=bound.digest,
            diagnostics=diagnostics,
            warnings=estimate.warnings
            + drawn
            + alarms(estimate._replace(diagnostics=diagnostics))
            + (bias_alarm(own_errors(estimate.std_error, shared)) if self.independent else ())
            + undefined_densities(bound)
            + stretch_alarm(bound.structure.stretched)
            + folds_alarm(bound),
            seconds=seconds,
            measure=measure_of(bound.structure),
        )


def measure_of(structure: Structure) -> Literal["probability", "density", "both"] | None:
    """Tell probabilities of discrete values from densities."""
    if not structure.observed:
        return None
    if not structure.discrete:
        return "density"
    return "probability" if len(structure.discrete) == len(structure.observed) else "both"


def check_evidence(bound: Bound) -> None:
    """Refuse what has no evidence, whatever the method."""
    structure = bound.structure
    if structure.subsampled:
        raise ValueError(
            f"the plates {list(structure.subsampled)} draw a random part of their data, so that "
            "the evidence of all of them is not defined by one run; open them without "
            "subsample_size for evidence"
        )
    refuse_point_masses(bound)
    check_scales(bound)


def check_scales(bound: Bound) -> None:
    """Refuse sites with a scaled log density.

    A power of a likelihood or of a prior is no longer normalised.
    """
    with seeded(0, bound.device):
        sites = dict(random_sites(bound.model_trace()))
    scaled = [
        name for name, site in sites.items() if bool((torch.as_tensor(site["scale"]) != 1).any())
    ]
    if scaled:
        raise ValueError(
            f"the sites {scaled} have a scale (poutine.scale, or a plate with a subsample), so "
            "that their densities are powers of densities and the program has no evidence. Leave "
            "the scale out, as at the end of KL annealing; give a program all of its data, and "
            "data that count several times as often as they count"
        )
