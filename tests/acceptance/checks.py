"""What every example must pass: one function for each column of the table.

Each builds its example anew, raises where the column fails, and returns what was seen.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

from acceptance.registry import EXAMPLES, Example, nothing
from ppl_dgm import Fit, Program, fit

__all__ = ["COLUMNS", "NAMES", "REFUSED", "column"]

for theme in ("tutorials", "hierarchies", "hidden_markov", "deep", "time_series", "regressions"):
    import_module(f"acceptance.{theme}")

NAMES = tuple(EXAMPLES)
REFUSED = {
    "contrib/gp/sv-dkl.py: sparse variational process": "density of the program is random itself"
}
RATE, STEPS, TINY, TOLERANCE = 1e-2, 5, 1e-13, 1e-6


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


def fitted(name: str, compile: bool = False, steps: int = STEPS) -> Fit:
    """A short fit, all random numbers set."""
    found = made(name)
    program = program_of(found)
    pyro.set_rng_seed(2)
    program.initialise(*found.args)
    return fit(
        program,
        found.args,
        found.loss() if found.given else None,
        steps=steps,
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
        one, other = fitted(name, compile=True), fitted(name)
        gap = (one.history["objective"] - other.history["objective"]).abs().max()
        gap = gap / other.history["objective"].abs().max()
        apart = (in_order(one.program.parameters()) - in_order(other.program.parameters())).abs()
    if not (gap < TOLERANCE and apart.max() < TOLERANCE):
        raise AssertionError(f"losses differ by {gap:.2g}, parameters by {apart.max():.2g}")
    return f"{gap:.0e}"


COLUMNS: dict[str, Callable[[str], str]] = {
    "accepted": accepted,
    "eager": eager,
    "compiled": compiled,
}
