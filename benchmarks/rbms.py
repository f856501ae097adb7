"""Restricted Boltzmann machines on binary data, in test nats.

    python benchmarks/rbms.py --data FOLDER [--sets dna mushrooms nips] [--hidden 20]
        [--epochs 400] [--rounds 20] [--rate 0.02] [--decay 0.0001]
    python benchmarks/rbms.py --data FOLDER --sets mnist --hidden 500 --minutes 55 --rate 0.05

Persistent contrastive divergence with a rate that falls linearly. For the small sets the fit goes
in rounds of epochs, and that with the best validation nats, by the exact sum, is kept; MNIST trains
for a time and is annealed once, at the end. Every row is kept in `benchmarks/results/rbms.csv`; the
table is `rbms.md`. The folder holds `binarized_mnist.npz` and `binary/*.npz`, rows packed by
`numpy.packbits`.
"""

import argparse
import copy
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from provenance import provenance
from rows import Row, Rows, markdown
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LinearLR

from ppl_dgm import fit
from ppl_dgm.evidence import AIS, Evidence, Exact
from ppl_dgm.families import RBM
from ppl_dgm.objectives import PersistentContrastiveDivergence

RESULTS = Path(__file__).parent / "results" / "rbms.csv"
ROWS = Rows(RESULTS, ("set", "hidden", "moves", "decay", "batch", "rate", "epochs"))
PUBLISHED = {"dna": 96.74, "mushrooms": 15.15, "nips": 277.37, "mnist": 86.34}
ABOUT = (
    "Negative log likelihood in nats per datum, lower is better. Published: Germain et al. (2015) "
    "quote RBMs for the small sets; 86.34 is Salakhutdinov and Murray (2008), on a binarisation of "
    "their own (figures from memory). Of several rows of a set that of the best validation nats "
    "counts. Seed 0 throughout."
)
ENDLESS = 10**9
Parts = dict[str, Tensor]


def load(folder: Path, name: str) -> Parts:
    """Training, validation and test rows of a data set, 0 or 1."""
    path = folder / ("binarized_mnist.npz" if name == "mnist" else f"binary/{name}.npz")
    with np.load(path) as arrays:
        size = int(arrays["num_dims"]) if "num_dims" in arrays else 784
        return {
            part: torch.from_numpy(np.unpackbits(arrays[part], axis=1)[:, :size]).float()
            for part in ("train", "valid", "test")
        }


class Falling:
    """A rate that falls linearly to zero with the time spent; at the end it stops the fit."""

    def __init__(self, optimizer: Optimizer, rate: float, seconds: float) -> None:
        self.optimizer, self.rate, self.seconds = optimizer, rate, seconds
        self.start = time.perf_counter()

    def step(self) -> None:
        """Set the rate; an interrupted fit returns what it has learned."""
        left = 1 - (time.perf_counter() - self.start) / self.seconds
        if left <= 0:
            raise KeyboardInterrupt
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * left


def train_in_rounds(data: Parts, settings: argparse.Namespace) -> tuple[RBM, int]:
    """The machine of the best round by exact validation nats, and its epochs."""
    torch.manual_seed(0)
    rbm = RBM(data["train"].shape[1], settings.hidden).start_from(data["train"])
    objective = PersistentContrastiveDivergence(settings.moves)
    best, kept, epochs = -float("inf"), copy.deepcopy(rbm.state_dict()), 0
    epochs_each = max(1, settings.epochs // settings.rounds)
    steps = epochs_each * (len(data["train"]) // settings.batch)
    for turn in range(settings.rounds):
        left = settings.rounds - turn
        fit(
            rbm,
            data["train"],
            objective,
            epochs=epochs_each,
            batch_size=settings.batch,
            optimizer=partial(
                SGD, lr=settings.rate * left / settings.rounds, weight_decay=settings.decay
            ),
            schedule=partial(
                LinearLR, start_factor=1.0, end_factor=(left - 1) / left, total_iters=steps
            ),
            seed=turn,
            progress=False,
            compile=True,
        )
        valid = float(Exact()(rbm, data["valid"]).log_z.mean())
        if valid > best:
            best, kept = valid, copy.deepcopy(rbm.state_dict())
            epochs = (turn + 1) * epochs_each
    rbm.load_state_dict(kept)
    return rbm, epochs


def train_for_a_time(data: Parts, settings: argparse.Namespace) -> tuple[RBM, int]:
    """A machine trained for some minutes, and its epochs."""
    torch.manual_seed(0)
    rbm = RBM(data["train"].shape[1], settings.hidden).start_from(data["train"])
    found = fit(
        rbm,
        data["train"],
        PersistentContrastiveDivergence(settings.moves),
        steps=ENDLESS,
        batch_size=settings.batch,
        optimizer=partial(SGD, lr=settings.rate, weight_decay=settings.decay),
        schedule=lambda o: Falling(o, settings.rate, 60 * settings.minutes),
        progress=False,
        compile=True,
    )
    print(found, flush=True)
    return rbm, found.steps * settings.batch // len(data["train"])


def measure(rbm: RBM, x: Tensor, hidden: int) -> Evidence:
    """Test nats, exactly or by annealing."""
    if hidden <= 20:
        return Exact()(rbm, x)
    return AIS(num_temperatures=20_000, num_chains=100)(rbm, x)


def run(name: str, data: Parts, settings: argparse.Namespace) -> None:
    """Train, measure and keep one row."""
    start = time.process_time()
    train = train_for_a_time if settings.minutes else train_in_rounds
    rbm, epochs = train(data, settings)
    minutes = (time.process_time() - start) / 60
    if settings.save:
        rbm.save(Path(settings.save) / f"rbm_{name}.pt")
    test, valid = (measure(rbm, data[part], settings.hidden) for part in ("test", "valid"))
    row = {
        "set": name,
        "hidden": settings.hidden,
        "moves": settings.moves,
        "decay": str(settings.decay),
        "batch": settings.batch,
        "rate": settings.rate,
        "epochs": epochs,
        "processor_minutes": minutes,
        "valid": -float(valid.log_z.mean()),
        "test": -float(test.log_z.mean()),
        "log_partition_error": test.shared_std_error,
        "data_error": float(test.log_z.std()) / len(test.log_z) ** 0.5,
        "by": test.bound,
    }
    print(row, test.warnings, flush=True)
    ROWS.add(row)


def body(row: Row) -> list[str]:
    """One line of the table."""
    annealed = "summed" if row["by"] == "exact" else f"± {float(row['log_partition_error']):.2g}"
    return [
        f"{row['set']}, {row['hidden']} hidden units",
        *(row[key] for key in ("moves", "batch", "rate", "decay", "epochs")),
        f"{float(row['valid']):.2f}",
        f"{float(row['test']):.2f}",
        annealed,
        f"{float(row['data_error']):.2f}",
        f"{PUBLISHED[row['set']]:.2f}",
    ]


def write_table() -> None:
    """The table of all rows."""
    head = (
        "RBM, moves a step, batch, rate, weight decay, epochs kept, valid nats, test nats, log Z, "
        "± data, published"
    )
    text = [
        "# Restricted Boltzmann machines by persistent contrastive divergence",
        "",
        ABOUT,
        "",
        markdown(head.split(", "), [body(row) for row in ROWS.read()]),
        "",
        provenance("0"),
    ]
    RESULTS.with_suffix(".md").write_text("\n".join(text) + "\n")


def main() -> None:
    """Run the rows asked for, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=["dna", "mushrooms", "nips"])
    parser.add_argument("--hidden", type=int, default=20)
    parser.add_argument("--moves", type=int, default=5)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--decay", type=float, default=1e-4)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--save", default="")
    settings = parser.parse_args()
    for name in settings.sets:
        run(name, load(settings.data, name), settings)
    write_table()


if __name__ == "__main__":
    main()
