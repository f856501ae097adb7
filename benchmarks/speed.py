"""Speed of compiled programs.

Ours, Pyro, hand-written torch and NumPyro, interleaved on one machine.

    python benchmarks/speed.py [--threads 1 2] [--rounds 15] [--only VAE MADE]
        [--jax-python PATH] [--output FILE]

Three tables. An optimisation step: every contender fits the same program to the same data with Adam
at rate 1e-3. A move of 64 Markov chains: HMC with ten leapfrog steps of a fixed size. Seconds to
compile: until the first result of a new process, with an empty cache folder (cold) and with the one
left by the process before (warm). Rounds go through all contenders in turn, so that a busy moment
of the machine falls on all of them; the tables have medians over rounds (three, of compilations),
of times and of ratios. NumPyro runs in an interpreter of its own (`--jax-python`, by default this
one); where that has no JAX its columns stay empty.
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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from provenance import processor
from pyro.infer import SVI
from speed_chains import CHAINS, LEAPFROG, STEP_SIZES, Chains
from speed_programs import Problem, arrays, problems

from ppl_dgm import Program
from ppl_dgm.compile import TrainStep
from ppl_dgm.objectives import ELBO

HERE = Path(__file__).parent
RATE = 1e-3
LOOP = {
    "eight schools": 640,
    "mixture, enumerated": 256,
    "logistic regression": 64,
    "VAE": 10,
    "MADE": 10,
}
CALLS = {
    "eight schools": 300,
    "mixture, enumerated": 150,
    "logistic regression": 60,
    "VAE": 10,
    "MADE": 10,
}
MOVES = {"eight schools": 60, "logistic regression": 4}
COMPILATIONS = 3
LOOPED = (
    "eight schools",
    "mixture, enumerated",
    "logistic regression",
)  # the others repeat single steps
STEP_COLUMNS = ["Pyro", "torch", "ours", "ours, loop", "NumPyro jit", "NumPyro scan"]
MOVE_COLUMNS = ["ours, eager", "ours", "ours, loop", "NumPyro jit", "NumPyro scan"]
PAIRS = {"ours": "NumPyro jit", "ours, loop": "NumPyro scan"}

Timer = Callable[[], float]


class Worker:
    """NumPyro in its own process; `version` is empty where it cannot start."""

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

    def ask(self, *request: Any) -> float:
        """Send one request and wait for its answer."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the worker has no pipes")
        self.process.stdin.write("\t".join(map(str, request)) + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def timers(
        self, name: str, calls: int, length: int, *request: Any
    ) -> tuple[dict[str, Timer], dict[str, float]]:
        """Timers of a problem's jitted step and scan, and seconds until their first results."""
        if not self.version or math.isnan(self.ask(name, *request)):
            return {}, {}
        seconds = {f"NumPyro {variant}": self.ask(name, variant, 1) for variant in ("jit", "scan")}
        timers = {
            "NumPyro jit": lambda: self.ask(name, "jit", calls) / calls * 1e3,
            "NumPyro scan": lambda: self.ask(name, "scan", 1) / length * 1e3,
        }
        return timers, seconds


def timed(call: Callable[[], Any], calls: int, steps: int = 1) -> Timer:
    """Return a timer of milliseconds per step."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / (calls * steps) * 1e3

    return run


# ---- contenders ----------------------------------------------------------------------------------


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


def step_timers(
    name: str, problem: Problem, worker: Worker
) -> tuple[dict[str, Timer], dict[str, float]]:
    """Timers of one optimisation step by column, and seconds until NumPyro's first results."""
    calls, length, step = CALLS[name], LOOP[name], our_step(problem)
    theirs, seconds = worker.timers(name, calls, length, "fit", length)
    ours = {
        "Pyro": timed(pyro_step(problem), max(2, calls // 20)),
        "torch": timed(torch_step(problem), max(2, calls // 5)),
        "ours": timed(partial(step, *problem.data), calls),
        "ours, loop": timed(partial(step.repeat, length, *problem.data), 1, length),
    }
    return {**ours, **theirs}, seconds


def move_timers(
    name: str, problem: Problem, worker: Worker
) -> tuple[dict[str, Timer], dict[str, float]]:
    """Timers of one move of all chains by column, and seconds until NumPyro's first results."""
    calls, chains = MOVES[name], Chains(name, problem)
    theirs, seconds = worker.timers(
        name, calls, calls, "sample", calls, CHAINS, LEAPFROG, STEP_SIZES[name]
    )
    ours = {
        "ours, eager": timed(chains.mover(compiled=False), 1),
        "ours": timed(chains.mover(compiled=True), calls),
        "ours, loop": timed(chains.loop(calls), 1, calls),
    }
    return {**ours, **theirs}, seconds


# ---- measuring -----------------------------------------------------------------------------------


def interleaved(timers: dict[str, Timer], rounds: int) -> dict[str, list[float]]:
    """Times of all contenders, round by round, after one round to warm up."""
    for timer in timers.values():
        timer()
    taken: dict[str, list[float]] = {column: [] for column in timers}
    for _ in range(rounds):
        for column, timer in timers.items():
            taken[column].append(timer())
    return taken


def measure(names: list[str], threads: int, rounds: int, seed: int, python: str) -> dict[str, Any]:
    """Milliseconds by table, problem, column and round, and NumPyro's to compile."""
    os.sched_setaffinity(0, set(range(threads)))
    torch.set_num_threads(threads)
    worker = Worker(python, seed, threads)
    found: dict[str, Any] = {
        "threads": threads,
        "numpyro": worker.version,
        "steps": {},
        "moves": {},
        "seconds": {},
    }
    for name, problem in problems(seed).items():
        for table, make in (("steps", step_timers), ("moves", move_timers)):
            if name not in names or (table == "moves" and name not in MOVES):
                continue
            pyro.clear_param_store()
            torch.manual_seed(seed)
            timers, seconds = make(name, problem, worker)
            found[table][name] = interleaved(timers, rounds)
            if table == "steps":
                found["seconds"][name] = seconds
            medians = {
                column: round(statistics.median(times), 4)
                for column, times in found[table][name].items()
            }
            print(threads, table, name, medians, flush=True)
    return found


def first_result(name: str, looped: bool) -> float:
    """Seconds until the first result of one step or one loop."""
    torch.set_num_threads(1)
    problem = problems()[name]
    step = our_step(problem)
    start = time.perf_counter()
    if looped:
        step.repeat(1, *problem.data)
    else:
        step(*problem.data)
    return time.perf_counter() - start


def compile_seconds(names: list[str]) -> dict[str, dict[str, float]]:
    """Median seconds until the first result, by problem and kind.

    Each is timed in a process of its own; rounds go through all.
    """
    table: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for _ in range(COMPILATIONS):
        for name, looped in ((name, looped) for name in names for looped in (False, True)):
            if looped and name not in LOOPED:
                continue
            with tempfile.TemporaryDirectory() as folder:
                for kind in ("cold", "warm"):
                    command = ["--first", name, *["--looped"] * looped]
                    seconds = in_new_process(command, 1, TORCHINDUCTOR_CACHE_DIR=folder)
                    table[name].setdefault(f"{'loop' if looped else 'step'}, {kind}", []).append(
                        seconds
                    )
        print(table, flush=True)
    return {
        name: {kind: statistics.median(taken) for kind, taken in row.items()}
        for name, row in table.items()
    }


def header_seconds() -> float:
    """Seconds that the first compilation on a machine takes longer.

    torch precompiles its C++ headers outside the cache.
    """
    taken = []
    with tempfile.TemporaryDirectory() as temporary:
        for _ in range(2):  # the second time, the headers are there
            with tempfile.TemporaryDirectory() as folder:
                places = {"TORCHINDUCTOR_CACHE_DIR": folder, "TMPDIR": temporary}
                taken.append(in_new_process(["--first", "eight schools"], 1, **places))
    return taken[0] - taken[1]


def in_new_process(arguments: list[str], threads: int, **environment: str) -> Any:
    """What this script finds with such arguments and so many threads, in a process of its own."""
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        **environment,
    }
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, __file__, *arguments, "--json", file.name]
        subprocess.run(command, env={**os.environ, **settings}, check=True)
        return json.loads(Path(file.name).read_text())


# ---- report --------------------------------------------------------------------------------------


def report(
    measured: list[dict[str, Any]], compiled: dict[str, Any], header: float, arguments: Any
) -> str:
    """The tables as Markdown, with what is needed to repeat them."""
    numpyro = measured[0]["numpyro"] or "no NumPyro"
    versions = f"torch {torch.__version__}, pyro {pyro.__version__}, {numpyro}"
    lines = [
        "# Speed of compiled programs",
        "",
        (
            "Median milliseconds over rounds; in brackets, the median ratio of ours to NumPyro's "
            "(jit, or scan for loops)."
        ),
        "",
        f"- command: `python benchmarks/speed.py {settings(arguments)}`",
        (
            f"- {processor()}, {os.cpu_count()} cores, {platform.system()}, Python "
            f"{platform.python_version()}"
        ),
        f"- {versions}; seed {arguments.seed}, {arguments.rounds} rounds",
    ]
    for part in measured:
        threads = f"{part['threads']} thread{'s' if part['threads'] > 1 else ''}"
        lines += ["", f"## One optimisation step, {threads}", ""]
        lines += table(
            STEP_COLUMNS,
            {name: cells(times, STEP_COLUMNS) for name, times in part["steps"].items()},
        )
        if part["moves"]:
            lines += [
                "",
                f"## One move of {CHAINS} chains, HMC with {LEAPFROG} leapfrog steps, {threads}",
                "",
            ]
            lines += table(
                MOVE_COLUMNS,
                {name: cells(times, MOVE_COLUMNS) for name, times in part["moves"].items()},
            )
    columns = [
        "step, cold",
        "step, warm",
        "loop, cold",
        "loop, warm",
        "NumPyro jit",
        "NumPyro scan",
    ]
    rows = {
        name: {**seconds, **measured[0]["seconds"].get(name, {})}
        for name, seconds in compiled.items()
    }
    lines += ["", "## Seconds until the first result of a step or a loop, 1 thread", ""]
    lines += table(
        columns,
        {name: [_number(row.get(column), 1) for column in columns] for name, row in rows.items()},
    )
    lines += [
        "",
        (
            f"The first compilation on a machine takes {header:.1f} s more: torch precompiles its "
            "C++ headers then."
        ),
    ]
    return "\n".join(lines) + "\n"


def table(columns: list[str], rows: dict[str, list[str]]) -> Iterator[str]:
    """Lines of a table."""
    yield "| | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    yield from ("| " + " | ".join([name, *row]) + " |" for name, row in rows.items())


def cells(times: dict[str, list[float]], columns: list[str]) -> list[str]:
    """Medians by column, with ratios."""
    texts = []
    for column in columns:
        text = _number(statistics.median(times[column]), 4) if column in times else ""
        other = times.get(PAIRS.get(column, ""), [])
        if other:
            ratios = [a / b for a, b in zip(times[column], other, strict=True)]
            text += f" ({statistics.median(ratios):.2f})"
        texts.append(text)
    return texts


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def settings(arguments: argparse.Namespace) -> str:
    """The options that matter to whoever repeats the measurement."""
    threads = " ".join(map(str, arguments.threads))
    return f"--threads {threads} --rounds {arguments.rounds} --jax-python ..."


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", default=list(LOOP), choices=list(LOOP), metavar="PROBLEM"
    )
    parser.add_argument(
        "--jax-python", default=sys.executable, help="an interpreter with jax and numpyro"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results" / "speed.md")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--first", choices=list(LOOP), help=argparse.SUPPRESS)
    parser.add_argument("--looped", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and write the tables."""
    arguments = parse()
    if arguments.first:
        arguments.json.write_text(json.dumps(first_result(arguments.first, arguments.looped)))
        return
    if arguments.measure:
        found = measure(
            arguments.only,
            arguments.measure,
            arguments.rounds,
            arguments.seed,
            arguments.jax_python,
        )
        arguments.json.write_text(json.dumps(found))
        return
    header, compiled = header_seconds(), compile_seconds(arguments.only)
    common = [
        "--rounds",
        str(arguments.rounds),
        "--seed",
        str(arguments.seed),
        "--jax-python",
        arguments.jax_python,
    ]
    common += ["--only", *arguments.only]
    measured = [
        in_new_process(["--measure", str(threads), *common], threads)
        for threads in arguments.threads
    ]
    text = report(measured, compiled, header, arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
