"""What a fit returns, and the error that stops one."""

from dataclasses import dataclass, field
from typing import Any, Literal

from matplotlib.axes import Axes
from torch import Tensor, nn

from ppl_dgm.program import Program
from ppl_dgm.reporting.plots import plot_curves

Stopped = Literal["finished", "early", "interrupted", "nonfinite"]


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted program and how it got there.

    Attributes:
        program: the program that was given, its parameters as learned (the best seen, where validated).
        history: `step` and `objective` (nats per datum, higher is better), both `[steps]`; with validation data also
            `valid_step` and `valid`, `[validations]`. Of a game, `objective` is the first player's, and each
            player's own is there too, by its name.
        steps: optimisation steps made in all, resumed ones included.
        stopped: `"finished"`, `"early"` (validation stopped improving), `"interrupted"` (Ctrl-C) or `"nonfinite"`.
        seconds: wall-clock time of this call.
        compile_seconds: part of `seconds` spent on capture and compilation.
        notes: one line each on what the fit decided, e.g. why it did not compile.
        averages: running averages of players' modules, by the player's name, where one was asked for.
    """

    program: Program
    history: dict[str, Tensor]
    steps: int
    stopped: Stopped
    seconds: float
    compile_seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())
    averages: dict[str, nn.Module] = field(default_factory=dict)

    def __repr__(self) -> str:
        last = self.history["objective"][-max(1, min(100, self.steps // 10)) :]
        value = f"{last.mean().item():.3f} nats per datum" if len(last) else "no steps"
        return f"Fit({self.steps} steps, {self.stopped}, {value}, {self.seconds:.1f} s)"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the learning curve; see `ppl_dgm.reporting.plots.plot_curves`."""
        return plot_curves({"objective": self.history}, ax)


class NonFiniteError(ArithmeticError):
    """A loss or gradient became NaN or infinite; `fit` holds what was learned before.

    The message names the site, the step and the norm of the parameters.
    """

    def __init__(self, message: str, fit: Any = None) -> None:
        super().__init__(message)
        self.fit: Fit | None = fit
