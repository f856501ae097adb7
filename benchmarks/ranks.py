"""Time of fits and of evidence in several processes, beside one.

    python benchmarks/ranks.py [--ranks 2] [--rounds 3]

Every process has one thread. Rounds go through all numbers of processes in turn; the table has
medians over rounds of the seconds in the call (processes started before), and of the ratio to the
ideal, the time of one process divided by their number.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed
from provenance import provenance
from rows import markdown

from ppl_dgm import evidence, families, fit

PAGE = Path(__file__).parent / "results" / "ranks.md"


def tasks() -> Iterator[tuple[str, Callable[[], object]]]:
    """What is timed, by name."""
    torch.manual_seed(0)
    x = (torch.rand(256, 64) < 0.3).float()
    vae = families.VAE(64, 8, hidden=[128])
    vae.initialise(x)
    big = families.VAE(64, 8, hidden=[512, 512])
    data = (torch.rand(2048, 64) < 0.3).float()
    sampling = evidence.ImportanceSampling(2000, compile=False)
    yield "importance sampling, 256 data", lambda: sampling(vae, x)
    annealing = evidence.AIS(num_temperatures=40, num_chains=8, schedule="linear", compile=False)
    yield "AIS, 256 data", lambda: annealing(vae, x)
    yield (
        "fit, 0.6 million parameters, batch 1024",
        lambda: fit(big, data, batch_size=1024, steps=20, progress=False, compile=False),
    )


def worker() -> None:
    """Time every task in this process; the first one writes."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        torch.distributed.init_process_group("gloo")
    seconds = {}
    for name, run in tasks():
        if size > 1:
            torch.distributed.barrier()
        start = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - start
    if size > 1:
        torch.distributed.destroy_process_group()
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(seconds))


def timed(ranks: int) -> dict[str, float]:
    """Seconds of the tasks in so many processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(torchrun if ranks > 1 else []), __file__, "--worker"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.strip().splitlines()[-1])


def main() -> None:
    """Run the rounds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", action="store_true")
    args = parser.parse_args()
    if args.worker:
        worker()
        return
    torch.set_num_threads(1)
    pairs = [(timed(1), timed(args.ranks)) for _ in range(args.rounds)]
    body = []
    for name in pairs[0][0]:
        one, many = ([seconds[name] for seconds in side] for side in zip(*pairs, strict=True))
        ratio = statistics.median(args.ranks * m / o for o, m in zip(one, many, strict=True))
        times = (statistics.median(one), statistics.median(many), ratio)
        body.append([name, *(f"{value:.2f}" for value in times)])
    head = ["", "1 process, s", f"{args.ranks} processes, s", "ratio to the ideal"]
    text = f"""# Several processes

Seconds of a call in one process and in {args.ranks}, of one thread each. The ratio is to an even
share of the former: 1 is the ideal. Medians over rounds.

{markdown(head, body)}

{provenance(f"0, {args.rounds} rounds")}
"""
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
