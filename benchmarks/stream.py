"""A stream of data that is never in memory or on disk whole, fitted and judged.

    python benchmarks/stream.py [--gigabytes 20]

Binary images are drawn as they are read. The figures, with the most memory that the process ever
had, go to `benchmarks/results/stream.md`.
"""

import argparse
import resource
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from provenance import provenance
from torch import Tensor

import ppl_dgm
from ppl_dgm.data import Stream
from ppl_dgm.evidence import ImportanceSampling
from ppl_dgm.families import VAE

BATCH, DIMS, BYTES = 2048, 784, 4
RESULTS = Path(__file__).parent / "results" / "stream.md"
HEAD = (
    "| what | GB read | data | steps | seconds | of the processor | MB at start | most MB |\n"
    + 8 * "|---"
    + "|"
)


def batches(count: int) -> Iterator[Tensor]:
    """Images of two kinds of brightness."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        bright = 25 + 125 * torch.randint(0, 2, (BATCH, 1), generator=generator)
        shades = torch.randint(0, 256, (BATCH, DIMS), dtype=torch.uint8, generator=generator)
        yield (shades < bright).float()


def megabytes() -> float:
    """Most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Seconds since the last look, by the wall and of the processor."""

    def __init__(self) -> None:
        self.wall, self.own = time.perf_counter(), time.process_time()

    def look(self) -> tuple[float, float]:
        wall, own = self.wall, self.own
        self.__init__()
        return self.wall - wall, self.own - own


def row(what: str, count: int, steps: str, clock: Clock, before: float) -> str:
    """One line of the table."""
    read = count * BATCH * DIMS * BYTES / 1e9
    wall, own = clock.look()
    return (
        f"| {what} | {read:.1f} | {count * BATCH:,} | {steps} | {wall:.0f} | {own:.0f} "
        f"| {before:.0f} | {megabytes():.0f} |"
    )


def write(lines: list[str], *facts: str) -> None:
    """Write what is known so far; a run that is cut short leaves it."""
    listed = [f"- {fact}" for fact in facts]
    RESULTS.write_text("\n".join(["# A stream", "", *lines, "", *listed, provenance("0")]) + "\n")
    print(lines[-1], facts[-1], flush=True)


def main() -> None:
    """Fit the stream once, and judge a six-hundredth of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=20.0)
    count = round(parser.parse_args().gigabytes * 1e9 / (BATCH * DIMS * BYTES))
    torch.manual_seed(0)
    vae = VAE(DIMS, 2, hidden=[32])
    vae.initialise(next(batches(1)))
    lines, before, clock = [HEAD], megabytes(), Clock()
    stream = Stream(partial(batches, count), num_data=count * BATCH)
    adam = partial(torch.optim.Adam, lr=1e-3)
    found = ppl_dgm.fit(vae, stream, epochs=1, batch_size=BATCH, optimizer=adam, progress=False)
    lines.append(row("fit", count, str(found.steps), clock, before))
    write(lines, repr(found))
    few = max(1, count // 600)
    judged = ImportanceSampling(4)(vae, Stream(partial(batches, few)), progress=False)
    assert len(judged.log_z) == few * BATCH
    lines.append(row("evidence of each datum", few, "-", clock, before))
    write(lines, repr(found), f"evidence {judged.log_z.mean():.2f} nats per datum, on average")


if __name__ == "__main__":
    main()
