"""GANs on 25 Gaussians: modes found and share of draws of high quality, over several seeds.

    python benchmarks/gaussians_25.py [--seeds 0 1 2 3 4] [--steps 6000] [--only OBJECTIVE ...]

Rows are kept in `benchmarks/results/gaussians_25.csv` and not made again; the table is
`gaussians_25.md`, the picture `gaussians_25.png` shows the draws of the last seed that was run.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import torch
from provenance import provenance
from rows import Row, Rows, markdown
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from ppl_dgm import fit
from ppl_dgm.data.densities import gaussian_grid
from ppl_dgm.diagnostics import ModeCounts, mode_counts
from ppl_dgm.families import Generator
from ppl_dgm.nn import MLP
from ppl_dgm.objectives import GAN

RESULTS = Path(__file__).parent / "results" / "gaussians_25.csv"
ROWS = Rows(RESULTS, ("objective", "seed", "steps"))
SCALE, SPREAD, WIDTH, WAVES, BATCH, RATE = 0.05, 3.0, 64, 32, 256, 2e-3
CENTRES = 2 * (torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)) - 2)
NUM_TRAIN, NUM_DRAWS = 50_000, 10_000
NEAR = 0.02
STAGES = (1.0, 0.1, 0.01, 0.003)  # weights of R1
SHARES = (1.0, 0.7, 0.4, 0.2, 0.05)  # of the rate, at the ends of stages


class Waves(nn.Module):
    """A perceptron of inputs and of sines and cosines of them at random frequencies."""

    frequencies: Tensor

    def __init__(self, size: int, deviation: float, num_outputs: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", deviation * torch.randn(size, WAVES))
        self.net = MLP(size + 2 * WAVES, [WIDTH, WIDTH], num_outputs, nn.LeakyReLU)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., size]` to `[..., num_outputs]`."""
        phase = x @ self.frequencies
        return self.net(torch.cat([x, phase.sin(), phase.cos()], -1))


class Lattice(nn.Module):
    """A generator of two normals on a lattice, which two more move by a little.

    x = 3 y + net(y) with y = round(4 z_12) / 4 + 0.02 z_34: draws begin wider than the data, and
    the lattice leaves no path of latents between modes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = Waves(2, 5.0, 2)

    def forward(self, z: Tensor) -> Tensor:
        """`[..., 4]` to `[..., 2]`."""
        y = (4 * z[..., :2]).round() / 4 + NEAR * z[..., 2:]
        return SPREAD * y + self.net(y)


adam = partial(torch.optim.Adam, lr=RATE, betas=(0.0, 0.99))
OBJECTIVES: dict[str, Callable[[nn.Module, float], GAN]] = {
    "nonsaturating, R1": lambda critic, r1: GAN(critic, r1=r1, optimizer=adam, ema=0.998),
    "nonsaturating": lambda critic, r1: GAN(critic, optimizer=adam, ema=0.998),
    "hinge, R1": lambda critic, r1: GAN(critic, "hinge", r1=r1, optimizer=adam, ema=0.998),
    "wasserstein, one-sided penalty": lambda critic, r1: GAN(
        critic, "wasserstein", one_sided=True, optimizer=adam, ema=0.998
    ),
    "nonsaturating, packs of 2": lambda critic, r1: GAN(
        critic, r1=r1, pack=2, optimizer=adam, ema=0.998
    ),
}


def train(name: str, seed: int, steps: int) -> tuple[Generator, Generator]:
    """Fit a generator in stages; return it and the average of its last stage."""
    torch.manual_seed(seed)
    data = gaussian_grid().sample(torch.Size((NUM_TRAIN,)))
    generator = Generator(Lattice(), 4, 2)
    critic = Waves(4 if "packs" in name else 2, 2.0, 1)
    for stage, r1 in enumerate(STAGES):
        share = SHARES[stage : stage + 2]
        falling = partial(
            LinearLR, start_factor=share[0], end_factor=share[1], total_iters=steps // len(STAGES)
        )
        found = fit(
            generator,
            data,
            OBJECTIVES[name](critic, r1),
            steps=steps // len(STAGES),
            batch_size=BATCH,
            optimizer=adam,
            schedule=falling,
            seed=seed,
            progress=False,
            compile=True,
        )
    return generator, found.averages["generator"]


def judge(generator: Generator, seed: int) -> ModeCounts:
    """Count 10 000 draws at the modes."""
    torch.manual_seed(1000 + seed)
    return mode_counts(generator.sample(NUM_DRAWS), CENTRES, SCALE)


def row(name: str, seed: int, steps: int) -> dict:
    """Train and count."""
    start = time.process_time()
    last, averaged = train(name, seed, steps)
    plain, found = judge(last, seed), judge(averaged, seed)
    draw(name, averaged)
    return {
        "objective": name,
        "seed": seed,
        "steps": steps,
        "modes": found.num_found,
        "quality": found.quality,
        "kl": found.kl_from_even if found.num_found else math.nan,
        "modes_unaveraged": plain.num_found,
        "quality_unaveraged": plain.quality,
        "processor_seconds": time.process_time() - start,
    }


def draw(name: str, generator: Generator) -> None:
    """Keep draws for the picture."""
    plt.figure(num="draws", figsize=(12, 2.6))
    place = list(OBJECTIVES).index(name) + 1
    axes = plt.subplot(1, len(OBJECTIVES), place)
    axes.clear()
    axes.scatter(*generator.sample(2000).T, s=1)
    axes.set(title=name, xlim=(-6, 6), ylim=(-6, 6), xticks=[], yticks=[], aspect="equal")
    axes.title.set_fontsize(8)


def cells(found: list[Row], name: str) -> list[str]:
    """An objective as the table shows it."""
    rows = [row for row in found if row["objective"] == name]
    column = lambda key: [float(row[key]) for row in rows]  # noqa: E731
    quality, raw = column("quality"), column("quality_unaveraged")
    return [
        name,
        " ".join(row["modes"] for row in rows),
        f"{mean(quality):.1%} ({min(quality):.1%})",
        f"{mean(raw):.1%} ({min(raw):.1%})",
        f"{mean(column('kl')):.3f}",
        f"{mean(column('processor_seconds')):.0f}",
    ]


def page(found: list[Row], steps: int) -> str:
    """The table and what it is of."""
    head = [
        "objective",
        "modes of 25, seed by seed",
        "high quality (least)",
        "without averaging",
        "KL from even, nats",
        "processor s",
    ]
    note = (
        "Equal mixture of 25 round Gaussians of deviation 0.05 on a grid of spacing 2. A draw is "
        "of high quality within three deviations of the nearest mean (98.9 % of the mixture's "
        f"own), and a mode is found by one such draw among {NUM_DRAWS}. Generator: "
        f"x = {SPREAD:g} y + net(y), y two normals rounded to fourths and moved by {NEAR} times "
        "two others, so that draws begin wider than the data and no path of latents runs between "
        f"modes. Nets of generator and critic: their inputs with {WAVES} sines and cosines "
        f"(frequencies of deviation 5 and 2), two hidden layers of {WIDTH} leaky units. Adam at "
        f"{RATE} (betas 0 and 0.99), falling to a twentieth, {BATCH} data a step, {steps} steps in "
        f"four stages of R1 {', '.join(map(str, STAGES))} where the objective has it; "
        "the generator averaged with decay 0.998. Another architecture has other figures."
    )
    names = [name for name in OBJECTIVES if any(row["objective"] == name for row in found)]
    table = markdown(head, [cells(found, name) for name in names])
    return "\n\n".join(
        ["# 25 Gaussians", note, table, "![Draws](gaussians_25.png)", provenance("as listed")]
    )


def main() -> None:
    """Make the rows that are not there, then the table and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--only", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    asked = parser.parse_args()
    for name in asked.only:
        for seed in asked.seeds:
            if ROWS.find(name, seed, asked.steps) is None:
                made = row(name, seed, asked.steps)
                print(made, flush=True)
                ROWS.add(made)
    found = [row for row in ROWS.read() if row["steps"] == str(asked.steps)]
    RESULTS.with_suffix(".md").write_text(page(found, asked.steps) + "\n")
    if plt.fignum_exists("draws"):
        plt.figure("draws").savefig(RESULTS.with_suffix(".png"), dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
