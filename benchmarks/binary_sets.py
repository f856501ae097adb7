"""Families on the binary density-estimation benchmarks: nats of the test data, their settings chosen by validation.

    python benchmarks/binary_sets.py --data FOLDER [--sets dna mushrooms nips] [--only FAMILY ...] [--rows FILE]

The folder holds one `.npz` file a set, with `train`, `valid`, `test` (rows of packed bits) and `num_dims`. Every row is
kept in `benchmarks/results/binary_sets.csv` and not made again; the tables are `benchmarks/results/binary_sets.md`.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance
from rows import Row, Rows, markdown
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_dgm import Program, fit
from ppl_dgm.data import Dataset
from ppl_dgm.evidence import Evidence, Exact, ImportanceSampling
from ppl_dgm.families import DARN, FVSBN, MADE, NADE, Mixture
from ppl_dgm.objectives import VIMCO
from ppl_dgm.program.seeding import seeded

RESULTS = Path(__file__).parent / "results" / "binary_sets.csv"
KEYS = ("set", "family", "settings", "seed")
BATCH, EPOCHS, PATIENCE = 100, 2000, 25
MODERN = ("dna", "mushrooms", "nips")
Settings = dict[str, Any]

# Test nats, lower is better, of Germain et al. (2015), table 3.
PUBLISHED = {
    "mixture of Bernoullis": (98.19, 14.46, 290.02),
    "FVSBN": (83.64, 10.27, 276.88),
    "NADE": (84.81, 9.81, 273.08),
    "EoNADE, 16 orders": (82.31, 9.68, 272.38),
    "DARN": (81.04, 9.55, 274.68),
    "MADE": (83.63, 9.68, 280.25),
    "MADE, 32 orders": (79.66, 9.69, 277.28),
}


@dataclass(frozen=True)
class Family:
    """How a program is made and learns at given settings, which settings are tried, and how it is judged."""

    make: Callable[..., Program]
    choices: tuple[Settings, ...]
    learn: Callable[..., None]
    estimator: Callable[..., Evidence] = Exact()  # noqa: RUF009


def by_gradients(
    program: Any, data: Dataset, settings: Settings, seed: int, objective: Any = None
) -> None:
    """Adam, its rate halved where validation stalls, to the best validation."""
    fit(
        program,
        data.train,
        objective,
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=lambda parameters: Adam(
            parameters, lr=settings["rate"], weight_decay=settings["decay"]
        ),
        schedule=lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=PATIENCE // 3),
        valid=data.valid,
        patience=PATIENCE,
        seed=seed,
        progress=False,
    )


def by_em(program: Any, data: Dataset, settings: Settings, seed: int) -> None:
    """Expectation maximisation from k-means."""
    program.fit_em(data.train.x, regularisation=settings["count"], seed=seed)


def grid(**choices: tuple[Any, ...]) -> tuple[Settings, ...]:
    """Every combination of choices."""
    return tuple(dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


DECAYS = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
RATES = (2e-3, 3e-4)
FAMILIES = {
    "mixture of Bernoullis": Family(
        lambda D, size: Mixture(D, size, "bernoulli"),
        grid(size=(8, 16, 32, 64, 128), count=(0.05, 0.2, 0.5)),
        by_em,
    ),
    "FVSBN": Family(FVSBN, grid(decay=DECAYS, rate=RATES), by_gradients),
    "MADE": Family(MADE, grid(hidden=((500,), (500, 500)), decay=DECAYS, rate=RATES), by_gradients),
    "MADE, 32 orders": Family(
        partial(MADE, orders=32, seed=0),
        grid(hidden=((500,), (500, 500)), decay=DECAYS, rate=RATES),
        by_gradients,
    ),
    "NADE": Family(NADE, grid(hidden=(100,), decay=DECAYS, rate=RATES[1:]), by_gradients),
    "EoNADE, 16 orders": Family(
        partial(NADE, orders=16, seed=0),
        grid(hidden=(100,), decay=DECAYS, rate=RATES[1:]),
        by_gradients,
    ),
    "DARN": Family(
        DARN,
        grid(hidden=(20, 60), decay=(1e-5, 1e-3, 3e-3), rate=RATES[1:]),
        partial(by_gradients, objective=VIMCO(5)),
        ImportanceSampling(num_particles=1000),
    ),
}
LEARNING = ("decay", "rate", "count")


def load(folder: Path, name: str) -> Dataset:
    """A set with its splits."""
    with np.load(folder / f"{name}.npz") as file:
        parts = [
            np.unpackbits(file[part], axis=1)[:, : int(file["num_dims"])]
            for part in ("train", "valid", "test")
        ]
    sizes = (len(parts[0]), len(parts[1]), len(parts[2]))
    rows = torch.from_numpy(np.concatenate(parts)).float()
    return Dataset(rows, support=2, split_sizes=sizes, name=name)


def judged(family: Family, program: Program, x: Tensor) -> dict[str, float]:
    """Mean nats of data, and its standard error over them."""
    found = family.estimator(program, x, seed=0)
    error = found.log_z.std().item() / len(x) ** 0.5
    monte_carlo = found.total_std_error.item() / len(x)
    return {"nats": -found.log_z.mean().item(), "error": error, "monte_carlo": monte_carlo}


def row(data: Dataset, name: str, settings: Settings, seed: int) -> dict[str, Any]:
    """Fit a family at one choice of settings and judge it by validation and test data."""
    start, family = time.perf_counter(), FAMILIES[name]
    sizes = {key: value for key, value in settings.items() if key not in LEARNING}
    with seeded(seed):
        program = family.make(data.num_dims, **sizes)
    family.learn(program, data, settings, seed)
    program.eval()
    valid, test = (judged(family, program, part.x) for part in (data.valid, data.test))
    keys = dict(zip(KEYS, (data.name, name, settings, seed), strict=True))
    seconds = {"seconds": time.perf_counter() - start}
    size = {"parameters": sum(p.numel() for p in program.parameters())}
    return keys | {"valid": valid["nats"]} | test | size | seconds


def best(found: list[Row], name: str, family: str) -> Row | None:
    """The row of a family that validation prefers."""
    rows = [row for row in found if row["set"] == name and row["family"] == family]
    return min(rows, key=lambda row: float(row["valid"]), default=None)


def cell(row: Row | None, published: float | None = None) -> str:
    """Nats with standard error, and what was published."""
    if row is None:
        return ""
    mark = f" ({published:.2f})" if published is not None else ""
    return f"{float(row['nats']):.2f} ± {float(row['error']):.2f}{mark}"


def modern_table(found: list[Row]) -> str:
    """The sets of which autoregressive nets have published figures."""
    body = [
        [
            family,
            *(
                cell(best(found, name, family), published)
                for name, published in zip(MODERN, PUBLISHED[family], strict=True)
            ),
        ]
        for family in PUBLISHED
    ]
    return markdown(["", *MODERN], body)


def chosen(found: list[Row]) -> Iterator[str]:
    """What validation chose, a line for each family and set."""
    for family in FAMILIES:
        for name in MODERN:
            row = best(found, name, family)
            if row is not None:
                yield (
                    f"- {family}, {name}: `{row['settings']}`, {int(row['parameters']):,} parameters, "
                    f"{float(row['seconds']):.0f} s, validation {float(row['valid']):.2f}"
                )


def page(found: list[Row]) -> str:
    """The tables as Markdown."""
    note = (
        "Mean nats of the test data, lower is better, ± standard error over them; in brackets the figures of table 3 of "
        f"Germain et al. (2015). Gradients: Adam, its rate halved after {PATIENCE // 3} epochs without better "
        f"validation, batches of {BATCH}, stopped after {PATIENCE} such epochs, the best parameters kept. Widths, first "
        "rates and decays (an L2 penalty on all parameters; the count is the pseudo-count of the mixture, fitted by EM) are "
        "those with the best validation nats among all that the CSV file lists. DARN: VIMCO with 5 draws, its evidence by "
        "1000 draws from the guide, a lower bound in expectation; all others are exact."
    )
    parts = ["# Binary density estimation", note, modern_table(found), "## What validation chose"]
    return "\n\n".join([*parts, "\n".join(chosen(found))])


def main() -> None:
    """Make the rows that are not there, then the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--sets", nargs="+", default=list(MODERN))
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--rows", type=Path, default=RESULTS, help="file of the rows")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rows = Rows(asked.rows, KEYS)
    for family in asked.only:
        for name in asked.sets:
            data = load(asked.data, name)
            for settings in FAMILIES[family].choices:
                if rows.find(name, family, settings, asked.seed) is None:
                    rows.add(row(data, family, settings, asked.seed))
    text = "\n\n".join([page(rows.read()), provenance(str(asked.seed))])
    asked.rows.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
