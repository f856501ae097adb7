"""Milliseconds of one optimisation step: ours, Pyro, hand-written torch and NumPyro, interleaved on one machine.

    python benchmarks/speed.py [--threads 1 2] [--rounds 15] [--only VAE MADE] [--jax-python PATH] [--output FILE]

Every contender fits the same program to the same data with Adam at rate 1e-3. Rounds go through all contenders in turn, so
that a busy moment of the machine falls on all of them; the table has medians over rounds. NumPyro runs in an interpreter of
its own (`--jax-python`, by default this one); where that has no JAX its columns stay empty.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from provenance import processor
from pyro.infer import SVI
from speed_programs import Problem, arrays, problems

from ppl_dgm import Program
from ppl_dgm.compile import TrainStep
from ppl_dgm.objectives import ELBO

HERE = Path(__file__).parent
RATE = 1e-3
LOOP = {"eight schools": 640, "mixture, enumerated": 256, "logistic regression": 64, "VAE": 10, "MADE": 10}
CALLS = {"eight schools": 300, "mixture, enumerated": 150, "logistic regression": 60, "VAE": 10, "MADE": 10}
SLOW = {"Pyro", "torch"}
COLUMNS = ["Pyro", "torch", "ours", "ours, loop", "NumPyro jit", "NumPyro scan"]

Timer = Callable[[], float]


class Worker:
    """NumPyro in its own process; `None` answers where it cannot start."""

    def __init__(self, python: str, seed: int, threads: int) -> None:
        with tempfile.NamedTemporaryFile(suffix=".npz", delete=False) as file:
            contents: dict[str, Any] = {}
            for name, values in arrays(seed).items():
                contents[f"{name}/count"] = len(values)
                contents.update({f"{name}/{i}": value for i, value in enumerate(values)})
            np.savez(file, **contents)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [python, str(HERE / "speed_numpyro.py"), file.name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.version = self.process.stdout.readline().strip() if self.process.stdout else ""

    def ask(self, name: str, variant: str, number: int) -> float:
        """Send one request and wait for its answer."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the worker has no pipes")
        self.process.stdin.write(f"{name}\t{variant}\t{number}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def timed(call: Callable[[], Any], calls: int, steps: int = 1) -> Timer:
    """Return a timer of milliseconds per step."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / (calls * steps) * 1e3

    return run


def pyro_step(problem: Problem) -> Callable[[], Any]:
    model, guide = problem.make()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": RATE}), problem.loss())
    return partial(svi.step, *problem.data)


def torch_step(problem: Problem) -> Callable[[], Any]:
    parameters, loss = problem.torch_loss()
    optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(*problem.data).backward()
        optimizer.step()

    return step


def our_step(problem: Problem) -> TrainStep:
    program, objective = Program(*problem.make()), ELBO()
    program.initialise(*problem.data)
    loss = partial(objective.differentiable_loss, program.model, program.guide)
    return TrainStep(loss, torch.optim.Adam(program.parameters(), lr=RATE))


def contenders(name: str, problem: Problem, worker: Worker) -> tuple[dict[str, Timer], dict[str, float]]:
    """Timers by column, all warmed up, and the seconds until the first result of those that compile."""
    calls, length, seconds = CALLS[name], LOOP[name], {}
    step = our_step(problem)
    start = time.perf_counter()
    step(*problem.data)
    seconds["ours"] = time.perf_counter() - start
    start = time.perf_counter()
    step.repeat(length, *problem.data)
    seconds["ours, loop"] = time.perf_counter() - start
    by_hand, in_pyro = torch_step(problem), pyro_step(problem)
    timers = {
        "Pyro": timed(in_pyro, max(2, calls // 20)),
        "torch": timed(by_hand, max(2, calls // 5)),
        "ours": timed(partial(step, *problem.data), calls),
        "ours, loop": timed(partial(step.repeat, length, *problem.data), 1, length),
    }
    if worker.version and not math.isnan(worker.ask(name, "make", length)):
        seconds["NumPyro jit"] = worker.ask(name, "jit", 1)
        seconds["NumPyro scan"] = worker.ask(name, "scan", 1)
        timers["NumPyro jit"] = lambda: worker.ask(name, "jit", calls) / calls * 1e3
        timers["NumPyro scan"] = lambda: worker.ask(name, "scan", 1) / length * 1e3
    for timer in timers.values():
        timer()
    return timers, seconds


def measure(names: list[str], threads: int, rounds: int, seed: int, python: str) -> dict[str, Any]:
    """Median milliseconds per step and seconds to compile, by problem and column."""
    os.sched_setaffinity(0, set(range(threads)))
    torch.set_num_threads(threads)
    worker, table = Worker(python, seed, threads), {}
    for name, problem in problems(seed).items():
        if name not in names:
            continue
        pyro.clear_param_store()
        torch.manual_seed(seed)
        timers, seconds = contenders(name, problem, worker)
        taken: dict[str, list[float]] = {column: [] for column in timers}
        for _ in range(rounds):
            for column, timer in timers.items():
                taken[column].append(timer())
        medians = {column: statistics.median(values) for column, values in taken.items()}
        table[name] = {"milliseconds": medians, "seconds to compile": seconds}
        print(threads, name, {column: round(value, 4) for column, value in medians.items()}, flush=True)
    return {"threads": threads, "table": table, "numpyro": worker.version}


def in_new_process(arguments: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Measure with so many threads from the start, in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(threads), "--rounds", str(arguments.rounds)]
    command += ["--seed", str(arguments.seed), "--jax-python", arguments.jax_python, "--only", *arguments.only]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.cold:
            environment["TORCHINDUCTOR_CACHE_DIR"] = folder
        target = Path(folder) / "measured.json"
        subprocess.run([*command, "--json", str(target)], env=environment, check=True)
        return json.loads(target.read_text())


def report(measured: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """The table as Markdown, with what is needed to repeat it."""
    lines = [
        "# Speed of one optimisation step",
        "",
        "Median milliseconds per step; in brackets, ours over NumPyro's.",
        "",
    ]
    lines += [f"- command: `python benchmarks/speed.py {settings(arguments)}`"]
    lines += [f"- {processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"]
    versions = f"torch {torch.__version__}, pyro {pyro.__version__}"
    lines += [
        f"- {versions}, {measured[0]['numpyro'] or 'no NumPyro'}; seed {arguments.seed}, {arguments.rounds} rounds"
    ]
    for part in measured:
        lines += ["", f"## {part['threads']} thread{'s' if part['threads'] > 1 else ''}", ""]
        lines += ["| | " + " | ".join(COLUMNS) + " | compile, s | compile loop, s | NumPyro jit, s |"]
        lines += ["|---" * (len(COLUMNS) + 4) + "|"]
        lines += [row(name, entry) for name, entry in part["table"].items()]
    return "\n".join(lines) + "\n"


def settings(arguments: argparse.Namespace) -> str:
    """The options that matter to whoever repeats the measurement."""
    threads = " ".join(map(str, arguments.threads))
    return f"--threads {threads} --rounds {arguments.rounds}{' --cold' if arguments.cold else ''} --jax-python ..."


def row(name: str, entry: dict[str, dict[str, float]]) -> str:
    """One line of the table."""
    times, seconds = entry["milliseconds"], entry["seconds to compile"]
    cells = [f"{times[column]:.4f}" if column in times else "" for column in COLUMNS]
    for mine, other in (("ours", "NumPyro jit"), ("ours, loop", "NumPyro scan")):
        if other in times:
            cells[COLUMNS.index(mine)] += f" ({times[mine] / times[other]:.2f})"
    compiling = [
        f"{seconds[column]:.1f}" if column in seconds else "" for column in ("ours", "ours, loop", "NumPyro jit")
    ]
    return "| " + " | ".join([name, *cells, *compiling]) + " |"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=list(LOOP), choices=list(LOOP), metavar="PROBLEM")
    parser.add_argument("--jax-python", default=sys.executable, help="an interpreter with jax and numpyro")
    parser.add_argument("--cold", action="store_true", help="compile without what earlier runs have kept")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "speed.md")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and write the table."""
    arguments = parse()
    if arguments.measure:
        found = measure(arguments.only, arguments.measure, arguments.rounds, arguments.seed, arguments.jax_python)
        arguments.json.write_text(json.dumps(found))
        return
    text = report([in_new_process(arguments, threads) for threads in arguments.threads], arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
