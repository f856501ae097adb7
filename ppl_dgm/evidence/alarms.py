"""Alarms that all estimators share."""

import torch
from torch import Tensor

from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.program import Bound
from ppl_dgm.program.precision import Shaking
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.convergence import tail_warnings
from ppl_dgm.sampling.memory import some_of
from ppl_dgm.sampling.undefined import undefined_draws

__all__ = ["alarms", "bias_alarm", "rounding_between", "rounding_of", "undefined_densities"]

UNDEFINED_DRAWS = 1000  # at which densities are looked at for NaN
UNDEFINED_NUMBERS = 2_000_000  # observed and drawn ones, in all draws
SHOWN_DATA = 256  # data whose rounding and whose undefined densities are looked at
BIASED = 4.0  # standard errors of a sum over data that its bias may be
LARGE_ROUNDING = 1e-3  # nats in all
RELATIVE_ROUNDING = 1e-12  # of the log density: as many digits are right all the same


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
