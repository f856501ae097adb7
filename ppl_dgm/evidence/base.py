"""Evidence, the common result, and Estimator, the common base."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.data import Stream
from ppl_dgm.evidence.normalising import score_exactly, squeezed, tails_alarm, without_data
from ppl_dgm.evidence.outweighed import modes_alarm, outweighed_alarm
from ppl_dgm.evidence.rendering import evidence_html, evidence_latex
from ppl_dgm.evidence.sharing import over_ranks
from ppl_dgm.evidence.streaming import over_stream, read_once
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.checks import refuse_point_masses
from ppl_dgm.program.isolation import evaluating
from ppl_dgm.program.precision import Shaking
from ppl_dgm.program.seeding import seeded
from ppl_dgm.program.sites import random_sites
from ppl_dgm.sampling.convergence import tail_warnings, widened_by_skew
from ppl_dgm.sampling.draws import draws_alarm
from ppl_dgm.sampling.folds import folds_alarm
from ppl_dgm.sampling.importance import Proposal
from ppl_dgm.sampling.memory import some_of
from ppl_dgm.sampling.undefined import undefined_draws
from ppl_dgm.watching import watched

__all__ = ["BoundKind", "Estimate", "Estimator", "Evidence", "check_evidence", "rounding_between"]

UNDEFINED_DRAWS = 1000  # at which densities are looked at for NaN
BIASED = 4.0  # standard errors of a sum over data that its bias may be
LARGE_ROUNDING = 1e-3  # nats in all
RELATIVE_ROUNDING = 1e-12  # of the log density: as many digits are right all the same
RELIED_ON = 0.01  # share of the estimate that comes from draws whose density is looked at
UNDEFINED_NUMBERS = 2_000_000  # observed and drawn ones, in all draws
SHOWN_DATA = 256  # data whose rounding and whose undefined densities are looked at
BoundKind = Literal["exact", "lower", "upper", "estimate"]


class Estimate(NamedTuple):
    """Result of an estimator: log Z, its error and diagnostics.

    log Z and its standard error are in nats; diagnostics go by name.
    """

    log_z: Tensor
    std_error: Tensor
    diagnostics: Mapping[str, Any] = {}
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Evidence:
    """Log marginal likelihood of data under a program.

    It comes with its error and a statement of what the number is: exact, a bound or an estimate.

    Attributes:
        log_z: nats, float64: `[data]` (target `"datum"`) or `[]` (target `"dataset"`).
        std_error: Monte Carlo standard error of `log_z`, same shape; zero where exact.
        bound: `"exact"`; `"lower"` or `"upper"` where the expectation is a bound; `"estimate"`
            where it is consistent.
        target: `"datum"`: log p(x_i) of each; `"dataset"`: log p(D) with global latents integrated
            out.
        estimator: name of the method.
        diagnostics: tensors and numbers by standard names (`ess`, `pareto_k`, `acceptance`,
            `r_hat`, `gap`, ...).
        warnings: why the number should not be believed; empty if nothing speaks against it.
        num_dims: observed numbers in all, for bits per dimension.
        digest: identifies the observed values; `compare` refuses unlike ones.
        shared_std_error: the part of every datum's standard error that is common to all: that of
            the log partition function of an unnormalised density. More data do not average it away.
        seconds: time it took.
    """

    log_z: Tensor
    std_error: Tensor
    bound: BoundKind
    target: Literal["datum", "dataset"]
    estimator: str
    num_dims: int
    digest: str
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    shared_std_error: float = 0.0

    @property
    def reliable(self) -> bool:
        """Whether no alarm was raised."""
        return not self.warnings

    @property
    def total(self) -> Tensor:
        """log p of all the data, in nats."""
        return self.log_z.sum()

    @property
    def total_std_error(self) -> Tensor:
        """Monte Carlo standard error of `total`.

        The errors of the data are independent, apart from the part that all share.
        """
        own = own_errors(self.std_error, self.shared_std_error).square().sum()
        return (own + (self.std_error.numel() * self.shared_std_error) ** 2).sqrt()

    def pooled(self) -> "Evidence":
        """Pool the evidence of all data into one number.

        It can then be compared with programs whose latents are shared by all data.

        log p(D) = sum_i log p(x_i), true where nothing about the program was learned from these
        data.
        """
        return replace(
            self,
            log_z=self.total,
            std_error=self.total_std_error,
            shared_std_error=0.0,
            target="dataset",
        )

    @checked
    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Compute a normal confidence interval of `log_z`.

        The level lies between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(
                f"level is {level}; expected a probability strictly between 0 and 1, e.g. 0.95"
            )
        half = (
            torch.distributions.Normal(0.0, 1.0)
            .icdf(torch.tensor(0.5 + level / 2))
            .double()
            .to(self.log_z.device)
        )
        return self.log_z - half * self.std_error, self.log_z + half * self.std_error

    def to_dataframe(self) -> Any:
        """Tabulate the evidence, one row for each datum.

        Columns are `log_z` and `std_error`, in nats, and the diagnostics of each datum; a data set
        has one row.

        Returns:
            A pandas DataFrame, indexed by the number of the datum.
        """
        import pandas as pd  # noqa: PLC0415 - heavy, and evidence is mostly used without

        size = self.log_z.numel()
        each = {
            name: value
            for name, value in self.diagnostics.items()
            if isinstance(value, Tensor) and value.shape == self.log_z.shape
        }
        columns = {"log_z": self.log_z, "std_error": self.std_error, **each}
        frame = {name: v.detach().cpu().reshape(size).numpy() for name, v in columns.items()}
        return pd.DataFrame(frame, index=pd.RangeIndex(size, name=self.target))

    def to_latex(self) -> str:
        r"""Return the evidence as a LaTeX table for a paper.

        It needs `\usepackage{booktabs}`. Of data with an evidence each, log p is per datum. Alarms
        become comments above it.

        Example:
            >>> number = torch.tensor([-1.5, -2.5]).double()
            >>> exact = Evidence(number, torch.zeros(2).double(), "exact", "datum", "Exact", 2, "")
            >>> print(exact.to_latex())
            % log p of 2 data (2 numbers), nats per datum
            \begin{tabular}{lrrrr}
            \toprule
             & log p & $\pm$ MC & $\pm$ data & bits/dim \\
            \midrule
            Exact & $-2.00$ & -- & $0.50$ & $2.885$ \\
            \bottomrule
            \end{tabular}
        """
        return evidence_latex(self)

    def _repr_html_(self) -> str:
        return evidence_html(self)

    def __repr__(self) -> str:
        per = f", {self.total / self.log_z.numel():.3f} per datum" if self.target == "datum" else ""
        mark = "" if self.reliable else f" UNRELIABLE: {'; '.join(self.warnings)}"
        sign = {"exact": "=", "lower": ">=", "upper": "<=", "estimate": "~"}[self.bound]
        error = "" if self.bound == "exact" else f" +- {self.total_std_error:.3g}"
        number = f"log p {sign} {self.total:.3f}{error} nats{per}"
        return f"Evidence({number}; {self.bound} by {self.estimator}){mark}"


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
            return divide(Estimate(log_f, torch.zeros_like(log_f)), below), TURNED.get(kind, kind)
        self.check(bound)
        if kind in TURNED:
            raise ValueError(
                f"{self.name} bounds both the sum over the latents of an unnormalised program and "
                "its partition function, which gives no bound of their ratio; use AIS or SMC"
            )
        return divide(self.estimate(bound), below), kind

    def _evidence(self, bound: Bound, estimate: Estimate, seconds: float) -> Evidence:
        shared = shared_error(estimate)
        diagnostics = dict(estimate.diagnostics)
        diagnostics.setdefault("rounding", rounding_of(bound))
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
            + folds_alarm(bound),
            seconds=seconds,
        )


def widened(estimate: Estimate) -> Estimate:
    """Widen a standard error for its skewness, once."""
    diagnostics = dict(estimate.diagnostics)
    skewness = diagnostics.pop("skewness", 0.0)
    error = widened_by_skew(estimate.std_error.double(), skewness)
    return estimate._replace(std_error=error, diagnostics=diagnostics)


TURNED: dict[str, BoundKind] = {"lower": "upper", "upper": "lower"}  # of log Z, for - log Z


def divide(above: Estimate, below: Estimate) -> Estimate:
    """Divide an unnormalised density by its partition function.

    Returns the estimate of the log ratio, `[data]`; the log partition function is one for all data
    or one for each.
    """
    alone = below.log_z.numel() == 1
    log_partition, error = map(squeezed, below[:2]) if alone else below[:2]
    diagnostics = {
        **above.diagnostics,
        **{name: squeezed(v) for name, v in below.diagnostics.items()},
    }
    diagnostics |= {"log_partition": log_partition, "log_partition_std_error": error}
    return Estimate(
        above.log_z - log_partition,
        torch.hypot(above.std_error, error.expand_as(above.std_error)),
        diagnostics,
        above.warnings + below.warnings,
    )


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


def shared_error(estimate: Estimate) -> float:
    """Return the error of one partition function for all data."""
    error = estimate.diagnostics.get("log_partition_std_error", torch.zeros(()))
    return float(error) if error.dim() == 0 else 0.0


def own_errors(std_error: Tensor, shared: float) -> Tensor:
    """Take what all data share out of their errors."""
    return (std_error.double().square() - shared**2).clamp_min(0).sqrt()


def bias_alarm(std_error: Tensor) -> tuple[str, ...]:
    r"""Warn where many biases outweigh the error of their sum.

    The log of an unbiased estimate of Z with a standard error s is too low by $s^2 / 2$ on average:
    little beside s for one datum, but it is the errors of several that average out.

    Args:
        std_error: of log Z, each datum's own, nats, `[data]` or `[]`.
    """
    squares = std_error.nan_to_num(0.0, 0.0, 0.0).square()
    bias, error = 0.5 * float(squares.sum()), float(squares.sum().sqrt())
    if std_error.numel() == 1 or bias <= BIASED * error:
        return ()
    each = bias / std_error.numel()
    warning = (
        f"log p may be too low by {each:.2g} nats per datum, {bias:.3g} in all, beside an error "
        f"of {error:.2g}, as the log of a mean over few draws is; use more of them"
    )
    return (warning,)


def alarms(estimate: Estimate) -> tuple[str, ...]:
    """Warnings that follow from the standard diagnostics."""
    found = []
    impossible = (estimate.log_z == -torch.inf) & (estimate.std_error == 0)  # data known to be so
    if not bool((torch.isfinite(estimate.log_z) | impossible).all()):
        found.append(
            "log Z is not finite: withheld, or all weights are zero (the proposal misses the "
            "posterior)"
        )
    rounding = estimate.diagnostics.get("rounding", 0.0)
    if not rounding <= LARGE_ROUNDING:
        found.append(
            f"rounding moves the log density by {rounding:.2g} nats: the program computes with too "
            "few digits, or takes large numbers from each other"
        )
    k = estimate.diagnostics.get("pareto_k")
    if k is None:
        return tuple(found)
    particles = estimate.diagnostics.get("num_particles", 1000)
    return tuple(found) + tail_warnings(k, estimate.std_error, particles)


def undefined_densities(bound: Bound) -> tuple[str, ...]:
    """Warn of sites whose log density is NaN.

    The density is evaluated at draws of the latents, which samplers take for impossible where it is
    NaN.
    """
    if not bound.structure.latents:
        return ()
    few = some_of(bound, SHOWN_DATA)[0]
    with torch.no_grad(), seeded(0, bound.device):
        drawn = sum(value.numel() for value in few.draw(1).values.values())
        seen = bound.num_dims * (few.num_data or 1) // (bound.num_data or 1)
        most = 16 if bound.structure.slow else UNDEFINED_DRAWS
        draws = max(4, min(most, UNDEFINED_NUMBERS // max(1, drawn + seen)))
        values = few.draw(draws).values
        return undefined_draws(few, values, few.log_joint(values).total)


def rounding_of(bound: Bound) -> float:
    """Estimate the rounding error of the log density.

    It is the error of the sum over all data, in nats, at one draw of the latents.
    """
    few = some_of(bound, SHOWN_DATA)[0]
    share = (few.num_data or 1) / (bound.num_data or 1)
    with torch.no_grad(), seeded(0, bound.device):
        values = few.draw(1).values
        plain = few.log_joint(values).total
        with Shaking():
            shaken = few.log_joint(values).total
    return (rounding_between(plain, shaken).square().sum() / share).sqrt().item()


def rounding_between(plain: Tensor, shaken: Tensor) -> Tensor:
    """Compute rounding errors from a plain and a shaken run.

    The shaken run is made under `Shaking`. The error is zero where the digits that are right
    suffice.
    """
    error = torch.where(plain == shaken, 0.0, (plain - shaken).abs())
    return torch.where(error <= RELATIVE_ROUNDING * plain.abs(), 0.0, error)
