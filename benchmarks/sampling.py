"""Draws of 28 x 28 images: samplers that remember against whole passes of the net for every pixel.

    python benchmarks/sampling.py [--rounds 3] [--only NET ...]

One thread, eager, random parameters: what is drawn does not change the work. A naive draw takes as
many whole passes as there are pixels, all alike, of which a few are timed; a remembering one is
timed whole. The table is `benchmarks/results/sampling.md`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from provenance import provenance
from rows import markdown
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.families import (
    MADE,
    NADE,
    GatedPixelCNN,
    PixelCNN,
    PixelTransformer,
    RecurrentNet,
    WaveNet,
)

RESULTS = Path(__file__).parent / "results" / "sampling.md"
SHAPE = (1, 28, 28)
BATCHES = (1, 16)
TIMED = 3  # whole passes
NETS: dict[str, Callable[[], Program]] = {
    "transformer, 4 layers of width 64": lambda: PixelTransformer(SHAPE, 64, 4, 4),
    "WaveNet, width 32": lambda: WaveNet(784, 32),
    "WaveNet, width 128": lambda: WaveNet(784, 128),
    "GRU, width 128": lambda: RecurrentNet(784, 128),
    "NADE, 500 hidden": lambda: NADE(784, 500),
    "MADE, 500 hidden": lambda: MADE(784, [500]),
    "PixelCNN, width 32, 7 blocks": lambda: PixelCNN(SHAPE, 32, 7),
    "gated PixelCNN, width 16": lambda: GatedPixelCNN(SHAPE, 16),
}


def seconds(work: Callable[[], Any]) -> float:
    """How long work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def passes(net: Any, x: Tensor) -> Callable[[], Any]:
    """Whole passes of a net."""

    def work() -> None:
        with torch.no_grad():
            for _ in range(TIMED):
                net(x)

    return work


def row(name: str, rounds: int) -> list[str]:
    """Times of one net, as the table shows them; rounds interleave both samplers."""
    torch.manual_seed(0)
    program: Any = NETS[name]().eval()
    program.sample(1)
    net, cells = program.model.fn.net, [name]
    for batch in BATCHES:
        x = torch.zeros(batch, 784)
        seconds(passes(net, x))
        times = [
            (seconds(passes(net, x)) / TIMED, seconds(lambda: program.sample(batch)))  # noqa: B023
            for _ in range(rounds)
        ]
        one = median(whole for whole, _ in times)
        remembering = median(drawn for _, drawn in times)
        ratio = median(784 * whole / drawn for whole, drawn in times)
        cells += [f"{1000 * one:.1f}", f"{remembering:.2f}", f"{ratio:.0f}x"]
        cells.append(f"{remembering / one:.1f}")
    return cells


def page(body: list[list[str]]) -> str:
    """The rows as Markdown."""
    columns = ["pass, ms", "draw, s", "against naive", "draw in passes"]
    head = ["", *(f"{column}, batch {batch}" for batch in BATCHES for column in columns)]
    note = (
        "Medians of interleaved rounds. A pass is one whole run of the net over the images; a "
        "naive draw takes 784 of them (and is timed as such: all are alike), the sampler of the "
        "program keeps what it computed for earlier pixels. With one image a narrow net's step is "
        "all overhead, and a pass of it cheap: what remembering saves grows with the width."
    )
    title = "# Drawing 28 x 28 images"
    return "\n\n".join([title, note, markdown(head, body), provenance("0")])


def main() -> None:
    """Time all nets and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(NETS), default=list(NETS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    body = []
    for name in asked.only:
        body.append(row(name, asked.rounds))
        print(body[-1], flush=True)
    RESULTS.write_text(page(body) + "\n")


if __name__ == "__main__":
    main()
