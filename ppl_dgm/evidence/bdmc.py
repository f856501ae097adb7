"""Bidirectional Monte Carlo: bounds of log Z on both sides.

A posterior draw of simulated data is known, which gives a lower and an upper bound; so does a draw
of an unnormalised model.
"""

import math
import time
from dataclasses import dataclass, field, fields, replace
from functools import partial
from os import fspath
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ppl_dgm.checked import checked
from ppl_dgm.evidence.annealed import AIS
from ppl_dgm.evidence.base import BoundKind, Estimate, Evidence, check_evidence
from ppl_dgm.evidence.reverse import ReverseAIS, bound_estimate
from ppl_dgm.program import Bound, Program, draw_sites, evaluating
from ppl_dgm.program.bound_program import Values
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.checkpoint import Checkpoint, checkpoint_of, switch_of
from ppl_dgm.sampling.memory import join_parts
from ppl_dgm.sampling.smc.annealing import Annealing
from ppl_dgm.sampling.smc.particle_filter import ParticleFilter
from ppl_dgm.sampling.smc.paths import divide
from ppl_dgm.validation import check_least
from ppl_dgm.watching import watched

__all__ = ["BDMC", "Sandwich"]

WIDE_GAP = 1.0  # nats per datum
CROSSED = 4.0  # standard errors
TOLERANCE = 0.005  # nats per datum


@dataclass(frozen=True, eq=False, repr=False)
class Sandwich(Evidence):
    """Lower and upper bounds of log p.

    They are of simulated data or, for an unnormalised density, of the given ones.

    It also tells how far apart the bounds are.

    As an `Evidence` it is the lower bound, by annealing forwards; its expectation is at most log Z.

    Attributes:
        upper: annealing backwards from the exact posterior draw; its expectation is at least log Z.
            Its standard error is that of the estimate around that expectation, and so no interval
            for log Z.
        simulated: whether the data were simulated from the program.

    Example:
        >>> import torch
        >>> settings = dict(target="dataset", estimator="BDMC", num_dims=1, digest="")
        >>> low = Evidence(torch.tensor(-2.5), torch.tensor(0.03), "lower", **settings)
        >>> high = Evidence(torch.tensor(-2.25), torch.tensor(0.04), "upper", **settings)
        >>> Sandwich.between(low, high)
        Sandwich(-2.500 <= log p <= -2.250 nats on simulated data; gap 0.25 +- 0.05)
    """

    upper: Evidence = field(kw_only=True)
    simulated: bool = field(default=True, kw_only=True)

    @classmethod
    def between(cls, lower: Evidence, upper: Evidence, simulated: bool = True) -> "Sandwich":
        """Combine lower and upper bounds on the same data.

        The diagnostics hold the gap between them.
        """
        diagnostics = {**lower.diagnostics, "gap": upper.log_z - lower.log_z}
        warnings = (*lower.warnings, *upper.warnings, *crossed(lower, upper))
        told = {"diagnostics": diagnostics, "warnings": tuple(dict.fromkeys(warnings))}
        return cls(**{**vars(lower), **told}, upper=upper, simulated=simulated)

    @property
    def lower(self) -> Evidence:
        """The lower bound alone."""
        return Evidence(**{item.name: getattr(self, item.name) for item in fields(Evidence)})

    @property
    def gap(self) -> Tensor:
        """Upper minus lower bound in nats, `[data]` or `[]`.

        In expectation it is larger than the error of either bound.
        """
        return self.upper.log_z - self.lower.log_z

    @property
    def mean_gap(self) -> float:
        """Gap averaged over the data, in nats."""
        return float(self.gap.mean())

    @property
    def mean_gap_error(self) -> float:
        """Standard error of `mean_gap`.

        It follows from the spread over the data or, for one data set, from the errors of the two
        bounds; what all data share of these is added.
        """
        if self.gap.dim() and len(self.gap) > 1:
            shared = math.hypot(self.lower.shared_std_error, self.upper.shared_std_error)
            return math.hypot(float(self.gap.std() / len(self.gap) ** 0.5), shared)
        return float((self.lower.std_error.square() + self.upper.std_error.square()).sum().sqrt())

    def __repr__(self) -> str:
        low, high = float(self.lower.log_z.mean()), float(self.upper.log_z.mean())
        per = "" if self.gap.dim() == 0 else " per datum"
        gap = f"gap {self.mean_gap:.3g} +- {self.mean_gap_error:.2g}"
        where = " on simulated data" if self.simulated else ""
        sign = "~" if self.lower.bound == "estimate" else "<="
        return f"Sandwich({low:.3f} {sign} log p <= {high:.3f} nats{per}{where}; {gap})"

    def report(self, real: Evidence) -> str:
        """Explain how far to trust an estimate on real data.

        The estimate has to be found with the same settings.

        The gap bounds the error on simulated data in expectation. It carries over to real data as
        far as they are alike to the estimator: where the weights spread more, the error may be
        larger.

        Args:
            real: what the same estimator gave for the real data.
        """
        gap = f"{self.mean_gap:.3g} +- {self.mean_gap_error:.2g} nats"
        spread, simulated = weight_spread(real), weight_spread(self.lower)
        compared = f"({spread:.3g} nats against {simulated:.3g} on simulated data)"
        if spread > 1.5 * simulated + 0.05:
            how, advice = "more", "use more temperatures, its error may exceed it."
        else:
            how, advice = "alike", "the gap measures its error too."
        verdict = f"Log weights spread {how} on the real data {compared}: {advice}"
        wide = (
            " The gap is wide: differences of a nat mean nothing yet."
            if self.mean_gap > WIDE_GAP
            else ""
        )
        return f"On data simulated from the program the bounds are {gap} apart. {verdict}{wide}"


def crossed(lower: Evidence, upper: Evidence) -> tuple[str, ...]:
    """Warn if the lower bound exceeds the upper one.

    The excess must be larger than the errors of the bounds explain.
    """
    excess = float(lower.total - upper.total)
    error = float(torch.hypot(lower.total_std_error, upper.total_std_error))
    if not excess > CROSSED * error + TOLERANCE * lower.log_z.numel():
        return ()
    warning = (
        f"the lower bound stands {excess:.3g} +- {error:.2g} nats above the upper one: the data or "
        "their posterior draw are not the program's, or chains have not mixed"
    )
    return (warning,)


def weight_spread(evidence: Evidence) -> float:
    """Compute the typical spread of log weights, in nats.

    The weights are those behind an evidence; groups have their log Z in place of log weights.
    """
    found = evidence.diagnostics.get("log_weight_std", evidence.diagnostics.get("group_std"))
    if found is None:
        raise ValueError(
            f"{evidence.estimator} has no log weights of chains; pass the evidence that AIS or SMC "
            "gave"
        )
    return float(found.median())


class BothWays(NamedTuple):
    """Forward and backward estimates of log Z.

    Each is `[chains, *batch]`; forwards they are unbiased for Z, backwards for 1/Z.
    """

    forwards: Tensor
    backwards: Tensor
    acceptance: Tensor


@checked
@dataclass(frozen=True)
class BDMC:
    r"""Bidirectional Monte Carlo, a check of AIS or SMC.

    It certifies the method on data simulated from the program itself.

    Drawing data and latents together, $(y^*, x^*) \sim p(y, x)$, makes $y^*$ an exact draw of the
    posterior of $x^*$. Annealing forwards gives $\mathbb{E}\,\hat Z = Z$ and so a stochastic lower
    bound of log Z; annealing backwards from $y^*$ gives $\mathbb{E}\,\hat Z^{-1} = Z^{-1}$ and an
    upper one. With `num_particles` > 1 both are particle filters (SMC), the upper one conditional
    on a trajectory annealed backwards from $y^*$. Both directions share the temperatures, step
    sizes and scales of one pilot, so that neither adapts to itself.

    Where data have latents of their own, each simulated datum has its bounds, as many as data are
    given; a program with global latents has one pair for one simulated data set (repeat it with
    other seeds). It costs twice what the method costs, times `num_particles`.

    Unnormalised programs (`RBM`, `Energy`) have a partition function in place of an integral for
    each datum, and draws of the model in place of $y^*$: the bounds are those of log p of the given
    data, above by the method, below by `ReverseAIS`, which tells where the lower one is an estimate
    because its draws are ends of chains.

    Grosse, Ghahramani and Adams (2015), "Sandwiching the marginal likelihood using bidirectional
    Monte Carlo"; Grosse, Ancha and Roy (2016), "Measuring the reliability of MCMC inference with
    bidirectional Monte Carlo".

    Args:
        method: the annealing to certify.
        num_particles: 1 for AIS; more for SMC with `method.num_chains` groups of that many
            particles.
        memory: bytes that one evaluation may allocate; as the method says by default.

    Raises:
        ValueError: for settings out of range; on call, if data cannot be simulated, latents are
            discrete, or particle filters are asked for an unnormalised program.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        >>> bdmc = BDMC(AIS(num_temperatures=100))
        >>> result = bdmc(ppl_dgm.Program(model), torch.zeros(50), seed=0)
        >>> bool(-0.05 < result.mean_gap < 0.1), result.lower.bound, result.upper.bound
        (True, 'lower', 'upper')
    """

    method: AIS = field(default_factory=AIS)
    num_particles: int = 1
    memory: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_least(self, num_particles=1)
        if self.memory is not None:
            object.__setattr__(self, "method", replace(self.method, memory=self.memory))
        if self.num_particles > 1 and not self.method.kernel.adjusted:
            raise ValueError(
                f"{type(self.method.kernel).__name__} is not reversible, as particle filters in "
                "both directions need; use HMC, MALA or RandomWalk"
            )

    @checked
    def __call__(
        self,
        program: Program,
        *args: Any,
        seed: int | None = 0,
        progress: bool = True,
        **kwargs: Any,
    ) -> Sandwich:
        """Bound log Z of data simulated from the program.

        The simulated data are as many as the given ones and have the same covariates. Of an
        unnormalised program, bound log p of the given data.

        Args:
            program: the program.
            *args: data, as its model takes them; observed values are replaced by simulated ones.
            seed: makes the result repeatable.
            progress: show a bar of the densities evaluated, where it takes over two seconds.
            **kwargs: further data.
        """
        with watched("BDMC", progress), evaluating(program), torch.no_grad():
            bound = program.bind(*args, **kwargs).in_double()
            check_evidence(bound)
            if bound.structure.energies:
                return self._of_energies(program, args, kwargs, seed)
            self.method.check(bound)
            start = time.perf_counter()
            with seeded(seed, bound.device):
                values, args, kwargs = simulate(bound)
                bound = program.bind(*args, **kwargs).in_double()
                lower, upper = self._bounds(bound, values)
            seconds = time.perf_counter() - start
            below = self._evidence(bound, lower, "lower", seconds)
            return Sandwich.between(below, self._evidence(bound, upper, "upper", seconds))

    def _of_energies(
        self, program: Program, args: tuple, kwargs: dict[str, Any], seed: int | None
    ) -> Sandwich:
        """Bound log p of given data of an unnormalised program."""
        if self.num_particles > 1:
            raise ValueError(
                f"num_particles is {self.num_particles}, but the program is unnormalised, whose "
                "partition function is annealed in both directions by chains; use num_particles=1"
            )
        path = self.method.checkpoint
        aside = None if path is None else f"{fspath(path)}.reverse"
        reverse = ReverseAIS(replace(self.method, checkpoint=aside))
        upper = self.method(program, *args, seed=seed, progress=False, **kwargs)
        other = None if seed is None else seed + 1
        lower = reverse(program, *args, seed=other, progress=False, **kwargs)
        return Sandwich.between(
            replace(lower, estimator=f"BDMC {lower.bound}"),
            replace(upper, estimator="BDMC upper", bound="upper"),
            simulated=False,
        )

    def _evidence(
        self, bound: Bound, estimate: Estimate, kind: BoundKind, seconds: float
    ) -> Evidence:
        return replace(
            self.method._evidence(bound, estimate, seconds), bound=kind, estimator=f"BDMC {kind}"
        )

    def _bounds(self, bound: Bound, values: Values) -> tuple[Estimate, Estimate]:
        method, ways = self.method, []
        checkpoint = checkpoint_of(method, bound, num_simulations=self.num_particles)
        rows = max(method.num_chains * self.num_particles, method.num_pilots)
        for first, path in divide(
            bound, method.start, rows, method.memory, method.kernel, switch_of(method)
        ):
            point = path.space.unconstrain(values)
            point = point[:, first : first + path.space.batch[0]] if path.space.batch else point
            posterior = point.expand(method.num_chains, *point.shape[1:]).contiguous()
            annealing = method.annealing(path, checkpoint, f"pilot from {first}")
            run = self._anneal if self.num_particles == 1 else self._filter
            ways.append(run(annealing, checkpoint, f" from {first}", posterior))
        acceptance = {"acceptance": join_parts([way.acceptance for way in ways])}
        lower, upper = (
            join_parts([getattr(way, name) for way in ways], True)
            for name in ("forwards", "backwards")
        )
        return bound_estimate(lower, 1.0, acceptance), bound_estimate(upper, -1.0, acceptance)

    def _anneal(
        self, annealing: Annealing, checkpoint: Checkpoint, name: str, posterior: Tensor
    ) -> BothWays:
        forwards = annealing.forwards(checkpoint, "forwards" + name, self.method.num_chains)
        backwards = annealing.backwards(checkpoint, "backwards" + name, posterior)
        acceptance = forwards.acceptance.mean(0) / max(len(annealing.beta) - 2, 1)
        return BothWays(forwards.log_weights, -backwards.log_weights, acceptance)

    def _filter(
        self, annealing: Annealing, checkpoint: Checkpoint, name: str, posterior: Tensor
    ) -> BothWays:
        particles = ParticleFilter(annealing, self.num_particles, self.method.num_chains)
        trajectory = particles.trajectory(checkpoint, "trajectory" + name, posterior)
        forwards = particles.run(checkpoint, "forwards" + name)
        backwards = particles.run(checkpoint, "backwards" + name, trajectory)
        return BothWays(forwards, backwards, torch.ones_like(forwards[0]))


def simulate(bound: Bound) -> tuple[Values, tuple, dict[str, Any]]:
    """Draw latents and data jointly from the program.

    Returns latent values `[1, *shape]`, and the arguments with simulated data in them.

    Raises:
        ValueError: for factors, which cannot be drawn, and observed values that are no argument of
            the program.
    """
    structure = bound.structure
    if structure.factors:
        raise ValueError(
            f"the program has factors {list(structure.factors)}, so that no data can be simulated "
            "from it; bidirectional Monte Carlo needs a program of sample statements. Use AIS and "
            "SMC and compare them"
        )
    drawing = partial(draw_sites, bound.model, structure, 1, bound.args, bound.kwargs)
    draws = bound._evaluate(drawing)
    leaves, spec = tree_flatten((bound.args, dict(bound.kwargs)))
    simulated: dict[int, Tensor] = {}
    for name in structure.observed:
        place = observed_argument(bound, name, leaves, spec)
        simulated[place] = in_dtype_of(leaves[place], draws[name][0])
    args, kwargs = tree_unflatten([simulated.get(i, leaf) for i, leaf in enumerate(leaves)], spec)
    check_no_covariates(bound, replace(bound, args=args, kwargs=kwargs), draws)
    return draws, args, kwargs


def in_dtype_of(leaf: Tensor, drawn: Tensor) -> Tensor:
    """Shape simulated data as given ones.

    They get the dtype too where it holds them without loss.
    """
    drawn = drawn.reshape(leaf.shape)
    held = drawn.to(leaf.dtype)
    return held if torch.equal(held.to(drawn.dtype), drawn) else drawn


def check_no_covariates(given: Bound, simulated: Bound, draws: Values) -> None:
    """Refuse observed data that the program also conditions on.

    Simulated data would change the distribution that they were drawn from.
    """
    latents = {latent.name: draws[latent.name][0] for latent in given.structure.model_latents}
    before, after = (
        bound._evaluate(partial(bound._trace, bound.model, latents, None)).nodes
        for bound in (given, simulated)
    )
    for name in given.structure.observed:
        value = after[name]["value"]
        densities = [trace[name]["fn"].log_prob(value) for trace in (before, after)]
        if not torch.allclose(*densities, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise ValueError(
                f"the distribution of site {name!r} depends on the values that are observed there, "
                "so that simulated data would change it; give what it depends on as an argument "
                "of its own"
            )


def observed_argument(bound: Bound, name: str, leaves: list[Any], spec: TreeSpec) -> int:
    """Find the number of the argument that a site observes.

    The arguments are exchanged one after the other, to see which one changes the observed value.

    Raises:
        ValueError: where no argument changes the observed value alone, or several do.
    """
    value = observed_value(bound, name)
    found = [
        place
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.numel() == value.numel() and leaf.numel()
        and follows(bound, name, value, leaves, place, spec)
    ]  # fmt: skip
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"the value that site {name!r} observes comes from {len(found)} arguments, so that it "
            "is not clear where simulated data belong; pass the observed data as one argument of "
            "its own"
        )
    raise ValueError(
        f"the value that site {name!r} observes is not among the program's arguments, so that "
        "simulated data cannot take its place; pass it as an argument and observe it as it is: "
        "pyro.sample(..., obs=x)"
    )


def follows(
    bound: Bound, name: str, value: Tensor, leaves: list[Any], place: int, spec: TreeSpec
) -> bool:
    """Check whether a site observes an argument unchanged.

    If the values of the argument are reordered, so are those that the site observes.
    """
    leaf = leaves[place]
    if not torch.equal(leaf.flatten().to(value.dtype), value.flatten()):
        return False
    other = another(leaf)
    args, kwargs = tree_unflatten([*leaves[:place], other, *leaves[place + 1 :]], spec)
    try:
        seen = observed_value(replace(bound, args=args, kwargs=kwargs), name)
    except Exception:  # the program may refuse values that it was not given
        return False
    return torch.equal(other.flatten().to(seen.dtype), seen.flatten())


def another(leaf: Tensor) -> Tensor:
    """Make other values of the same kind and shape.

    The values are rotated by one place or, where that changes nothing, the first one is replaced.
    """
    turned = leaf.flatten().roll(1)
    if torch.equal(turned, leaf.flatten()):
        turned = turned.clone()
        turned[0] = ~turned[0] if leaf.dtype == torch.bool else 1 - turned[0]
    return turned.reshape(leaf.shape)


def observed_value(bound: Bound, name: str) -> Tensor:
    """The value that a site observes."""
    with seeded(0, bound.device):
        return bound.model_trace().nodes[name]["value"]
