"""What a fit returns, and the error that stops one."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ppl_dgm.environment import run_environment
from ppl_dgm.fitting.settling import restless
from ppl_dgm.markup import html_facts, latex_table, minus
from ppl_dgm.program import Program
from ppl_dgm.program.storage import PROGRAM_PREFIX, read_tensors, write_tensors

__all__ = ["Fit", "NonFiniteError", "Stopped"]

Stopped = Literal["finished", "early", "interrupted", "nonfinite", "failed"]
NUM_BLOCKS = 10  # into which the end of a learning curve is cut
LATE = 0.2  # part of a learning curve that is its end
GAIN = 1e-3  # nats per datum over the end, below which a curve is flat
SIGNIFICANT = (
    3.4  # t statistic of a slope through the blocks; exceeded by chance in 0.5 % of flat curves
)


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted program and how it got there.

    Attributes:
        program: the program that was given, its parameters as learned (the best seen, where
            validated).
        history: `step` and `objective` (nats per datum, higher is better), both `[steps]`; with
            validation data also `valid_step` and `valid`, `[validations]`. Where latents are drawn,
            also the terms of the ELBO, `reconstruction` and `kl`, and `valid_reconstruction` and
            `valid_kl`, as the objective counts them (before a weight of the KL). Of a game,
            `objective` is the first player's, and each player's own is there too, by its name.
        steps: optimisation steps made in all, resumed ones included.
        stopped: `"finished"` (all steps were made; see `improving`), `"early"` (validation stopped
            improving), `"interrupted"` (Ctrl-C); of an error's `.fit`, `"nonfinite"` or `"failed"`.
        seconds: wall-clock time of this call.
        compile_seconds: part of `seconds` spent on capture and compilation.
        notes: one line each on what the fit decided, e.g. why it did not compile.
        epoch_steps: steps in a pass over the data.
        averages: running averages of players' modules, by the player's name, where one was asked
            for.
    """

    program: Program
    history: dict[str, Tensor]
    steps: int
    stopped: Stopped
    seconds: float
    compile_seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())
    epoch_steps: int = 1
    averages: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def improving(self) -> bool:
        """Whether the objective was still rising at the end.

        More steps would then give a better program.

        Judged by validation where there is one: its best was among the last tenth, and better than
        all before. Else by the slope through the block means of the last fifth of the steps. Never
        after early stopping.
        """
        if self.stopped == "early":
            return False
        valid = self.history.get("valid")
        if valid is not None and len(valid) > NUM_BLOCKS:
            return is_late_best(valid)
        return is_rising(self.history["objective"])

    @property
    def settled(self) -> bool:
        """Whether no game is seen to go round for ever.

        False where the loss of a player, or the validation, swings on through the end as widely as
        before; the notes of the fit tell then. Games have no loss that falls, and no stopping
        criterion is robust: rest is no sign of quality, and what swings within a few steps, or less
        than the noise of minibatches, is not seen, nor modes that nobody looks for
        (`diagnostics.mode_counts`, `diagnostics.mmd_test`). True of fits of one objective.
        """
        return not restless(self.history)

    def __repr__(self) -> str:
        last = self.history["objective"][-max(1, min(100, self.steps // 10)) :]
        value = f"{last.mean().item():.3f} nats per datum" if len(last) else "no steps"
        ended = f"{self.stopped}, still improving" if self.improving else self.stopped
        return f"Fit({self.steps} steps, {ended}, {value}, {self.seconds:.1f} s)"

    def save(self, path: str | os.PathLike) -> None:
        """Write parameters and history as one safetensors file.

        The file is written atomically; `load` and `Program.load` read it.

        Settings and counts are JSON in its header; running averages of players are not written.

        Example:
            >>> import tempfile, pyro, pyro.distributions as dist, ppl_dgm
            >>> def model(x=None):
            ...     loc = pyro.param("loc", torch.tensor(0.0))
            ...     with pyro.plate("data", 1 if x is None else len(x)):
            ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
            >>> result = ppl_dgm.fit(Program(model), torch.ones(3), steps=5, progress=False)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     result.save(f"{folder}/normal.safetensors")
            ...     again = Fit.load(f"{folder}/normal.safetensors", Program(model))
            >>> again.steps, again.stopped
            (5, 'finished')
            >>> torch.equal(again.history["objective"], result.history["objective"])
            True
        """
        tensors = {f"{PROGRAM_PREFIX}{n}": v for n, v in self.program.state_dict().items()}
        tensors |= {f"history/{name}": value for name, value in self.history.items()}
        names = ("steps", "stopped", "seconds", "compile_seconds", "notes", "epoch_steps")
        about = {name: getattr(self, name) for name in names}
        write_tensors(path, tensors, about | {"made_by": run_environment()})

    @classmethod
    def load(cls, path: str | os.PathLike, program: Program) -> "Fit":
        """Read a fit, and its parameters into the program.

        The program must be built as it was when fitted.

        Raises:
            ValueError: for a file that is no fit's, was changed, or whose parameters are not this
                program's.
        """
        saved = read_tensors(path)
        if saved is None:
            raise ValueError(f"{path} is no file of a fit; give one that Fit.save wrote")
        program.load(path)
        tensors, about = saved
        own = "history/"
        history = {n.removeprefix(own): v for n, v in tensors.items() if n.startswith(own)}
        about.pop("made_by")
        return cls(program, history, **{**about, "notes": tuple(about["notes"])})

    def to_dataframe(self) -> Any:
        """Tabulate the history in tidy form.

        There is a row for each figure, with its `step`, `quantity` and `value`.

        Returns:
            A pandas DataFrame.
        """
        import pandas as pd  # noqa: PLC0415 - heavy, and fits are mostly used without

        parts = [
            pd.DataFrame(
                {
                    "step": self.history[step_of(name)].numpy(),
                    "quantity": name,
                    "value": values.numpy(),
                }
            )
            for name, values in self.history.items()
            if name not in ("step", "valid_step")
        ]
        return pd.concat(parts, ignore_index=True)

    def per_epoch(self) -> Any:
        """Average the history over epochs.

        Validations stand in the epoch that they were made in; the last epoch may be cut short.

        Returns:
            A pandas DataFrame with a column for each quantity, indexed by `epoch`, from 1.
        """
        frame = self.to_dataframe()
        epoch = ((frame.step - 1) // self.epoch_steps + 1).rename("epoch")
        return frame.groupby([epoch, "quantity"], sort=False).value.mean().unstack()

    def to_latex(self) -> str:
        r"""Return how the fit ended as a LaTeX table.

        It needs `\usepackage{booktabs}`. Notes become comments above it.
        """
        facts = self._facts()
        return latex_table([["", *facts], ["fit", *facts.values()]], self.notes, (0, 2))

    def _facts(self) -> dict[str, str]:
        last = self.history["objective"][-max(1, min(100, self.steps // 10)) :]
        valid = self.history.get("valid", last[:0])
        best = valid[valid.isfinite()]
        return {
            "steps": str(self.steps),
            "ended": f"{self.stopped}, still improving" if self.improving else self.stopped,
            "nats per datum": minus(f"{last.mean().item():.4f}") if len(last) else "–",
            "best validation": minus(f"{best.max().item():.4f}") if len(best) else "–",
            "seconds": f"{self.seconds:.1f}",
            "of which compiling": f"{self.compile_seconds:.1f}",
        }

    def _repr_html_(self) -> str:
        notes = {f"note {i}": note for i, note in enumerate(self.notes, 1)}
        return html_facts("Fit", self._facts() | notes)

    def plot(self, ax: Any = None) -> Any:
        """Draw the learning curve; see `ppl_dgm.reporting.plots.plot_curves`."""
        # Seconds of import, for few users:
        from ppl_dgm.reporting.plots import plot_curves  # noqa: PLC0415

        return plot_curves({"objective": self.history}, ax)


def step_of(name: str) -> str:
    """Name the steps of a quantity of a history."""
    return "valid_step" if name.partition("_")[0] == "valid" else "step"


def is_late_best(values: Tensor) -> bool:
    """Check whether the best value of a curve is late.

    It must be in the last tenth, and better by more than a trifle.

    Example:
        >>> is_late_best(torch.arange(20.0)), is_late_best(torch.arange(20.0).sqrt().clamp(max=4.0))
        (True, False)
    """
    late = max(1, len(values) // 10)
    return bool(values[-late:].max() > values[:-late].max() + GAIN)


def is_rising(values: Tensor) -> bool:
    """Check whether the end of a curve is rising.

    A line through its block means must rise by more than chance and a trifle.

    Example:
        >>> is_rising(torch.linspace(0.0, 1.0, 500)), is_rising(torch.zeros(500))
        (True, False)
    """
    if len(values) < NUM_BLOCKS:
        return False
    size = max(1, int(LATE * len(values)) // NUM_BLOCKS)
    means = values[-size * NUM_BLOCKS :].double().reshape(NUM_BLOCKS, size).mean(1)
    place = torch.linspace(-0.5, 0.5, NUM_BLOCKS, dtype=torch.float64)
    slope = (place * means).sum() / place.square().sum()
    rest = means - means.mean() - slope * place
    error = (rest.square().sum() / (NUM_BLOCKS - 2) / place.square().sum()).sqrt()
    return bool((slope > GAIN) & (slope > SIGNIFICANT * error))


class NonFiniteError(ArithmeticError):
    """Error for a loss or gradient that is not finite.

    It became NaN or infinite; `fit` holds what was learned before.

    The message names the site, the step and the norm of the parameters.
    """

    def __init__(self, message: str, fit: Any = None) -> None:
        super().__init__(message)
        self.fit: Fit | None = fit
