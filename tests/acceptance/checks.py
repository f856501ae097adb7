"""What every example must pass: one function for each column of the table.

Each builds its example anew, raises where the column fails, and returns what was seen.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from unittest import mock

import pyro
import torch
from pyro.infer import SVI, TraceGraph_ELBO
from torch import Tensor

import ppl_dgm.fitting.stepping as stepping
from acceptance.registry import EXAMPLES, Example, nothing
from ppl_dgm import Fit, Program, evidence, fit, posterior, to_arviz
from ppl_dgm.compile import TrainStep

__all__ = ["COLUMNS", "NAMES", "REFUSED", "column"]

THEMES = ("tutorials", "tutorials_ii", "hierarchies", "hidden_markov", "discrete_latents", "deep")
THEMES += ("topics_and_flows", "time_series", "regressions", "processes")

for theme in THEMES:
    import_module(f"acceptance.{theme}")

NAMES = tuple(EXAMPLES)
REFUSED = {
    "contrib/gp/sv-dkl.py: sparse variational process": "density of the program is random itself"
}
RATE, STEPS, TINY, TOLERANCE, CLOSE = 1e-2, 5, 1e-13, 1e-6, 0.02


def made(name: str) -> Example:
    """The example, from the same random numbers on each call."""
    pyro.set_rng_seed(1)
    return EXAMPLES[name]()


def program_of(found: Example) -> Program:
    """The program of an example."""
    return Program(found.model, found.guide, **found.options)


def column(which: str, name: str) -> str:
    """Fill a cell of the table: what was seen, or why it stays empty.

    A program that is refused must be refused for the reason that stands here.
    """
    if name not in REFUSED:
        return COLUMNS[which](name)
    try:
        accepted(name)
    except ValueError as error:
        if REFUSED[name] in str(error):
            return f"refused: {REFUSED[name]}"
        raise
    raise AssertionError(f"{name} is not refused any longer")


def accepted(name: str) -> str:
    """Bind the program to its data."""
    found = made(name)
    program_of(found).initialise(*found.args)
    return "yes"


def fitted(name: str, compile: bool = False, captured: bool = False) -> Fit:
    """A short fit, all random numbers set.

    Losses that cannot be captured give way to the ELBO where a fit is to be compared with a
    compiled one.
    """
    found = made(name)
    given = found.given and not (captured and found.loss is TraceGraph_ELBO)
    program = program_of(found)
    pyro.set_rng_seed(2)
    program.initialise(*found.args)
    return fit(
        program,
        found.args,
        found.loss() if given else None,
        steps=STEPS,
        optimizer=partial(torch.optim.Adam, lr=RATE, eps=TINY),
        seed=3,
        progress=False,
        compile=compile,
    )


def by_svi(name: str) -> tuple[Tensor, Tensor]:
    """Losses of the same steps by Pyro's own loop, and where the parameters end."""
    found = made(name)
    model, guide = found.model, found.guide or nothing
    store = pyro.get_param_store()
    with store.scope():
        pyro.set_rng_seed(2)
        found.loss().loss(model, guide, *copies(found.args))
        svi = SVI(model, guide, pyro.optim.Adam({"lr": RATE, "eps": TINY}), found.loss())
        pyro.set_rng_seed(3)
        losses = [svi.step(*copies(found.args)) for _ in range(STEPS)]
        values = {id(value): value for key, value in store._params.items() if key[:2] != "__"}
    return torch.tensor(losses), in_order(values.values())


def copies(args: tuple) -> list:
    """Arguments that are new tensors: flows keep what they last computed of one."""
    return [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]


def in_order(values: Iterable[Tensor]) -> Tensor:
    """All entries of all parameters, sorted: names differ between libraries."""
    return torch.cat([value.detach().reshape(-1) for value in values]).sort().values


def eager(name: str) -> str:
    """Compare a fit with Pyro's SVI: the losses of all steps, and where the parameters end.

    Losses of fits are per datum. In double, so that equal is equal to ten digits.
    """
    with double():
        losses, values = by_svi(name)
        ours = fitted(name)
        scale = scale_of(ours, losses)
        gap = (ours.history["objective"] * -scale - losses).abs().max() / losses.abs().max()
        apart = (in_order(ours.program.parameters()) - values).abs().max()
    if not (gap < TOLERANCE and apart < TOLERANCE):
        raise AssertionError(f"losses differ by {gap:.2g}, parameters by {apart:.2g}")
    return f"{gap:.0e}"


def scale_of(ours: Fit, losses: Tensor) -> Tensor:
    """The number of data, by which losses of fits are divided."""
    return (losses[0] / -ours.history["objective"][0]).round().clamp(min=1.0)


@contextmanager
def double() -> Iterator[None]:
    """Run a block where tensors are double by default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def compiled(name: str) -> str:
    """Compare a compiled fit with one as written, step by step."""
    with double():
        one, other = fitted(name, True, captured=True), fitted(name, captured=True)
        gap = (one.history["objective"] - other.history["objective"]).abs().max()
        gap = gap / other.history["objective"].abs().max()
        apart = (in_order(one.program.parameters()) - in_order(other.program.parameters())).abs()
    if not (gap < TOLERANCE and apart.max() < TOLERANCE):
        raise AssertionError(f"losses differ by {gap:.2g}, parameters by {apart.max():.2g}")
    return f"{gap:.0e}"


def captured(name: str) -> str:
    """Compare as `compiled`, but run the captured graph without the compiler, in less time."""
    with mock.patch.object(stepping, "TrainStep", partial(TrainStep, backend="eager")):
        return compiled(name)


def right(name: str) -> str:
    """Compare the evidence that `auto` finds with the truth, where that is known."""
    found = made(name)
    if found.truth is None:
        return "unknown"
    truth = found.truth()
    result = evidence.auto(program_of(found), *found.args, seed=0)
    gap, error = abs(result.total.item() - truth), result.std_error.norm().item()
    if not gap < 4 * error + CLOSE:
        raise AssertionError(f"{result} is {gap:.3g} nats from {truth:.4f}")
    return f"{truth:.3f}, off by {gap:.4f}"


def exported(name: str) -> str:
    """Draw from the posterior and hand the draws to ArviZ.

    Guides of point masses are no proposals: draws then come from the prior.
    """
    found = made(name)
    bound = program_of(found).bind(*found.args)
    if not bound.structure.model_latents:
        return "nothing to draw"
    masses = any(latent.point_mass for latent in bound.structure.latents)
    program = Program(found.model, **found.options) if masses else program_of(found)
    draws = posterior(program, *found.args, num_particles=200, num_draws=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few draws are worth little, which is told
        tree = to_arviz(draws)
    if not set(draws.draws) <= set(tree.posterior.data_vars):
        raise AssertionError(f"of {set(draws.draws)} there are {set(tree.posterior.data_vars)}")
    return f"{len(tree.posterior.data_vars)} sites"


COLUMNS: dict[str, Callable[[str], str]] = {
    "accepted": accepted,
    "eager": eager,
    "captured": captured,
    "compiled": compiled,
    "right": right,
    "exported": exported,
}
