"""The evidence of many data under few parameters.

    python benchmarks/many_data.py [--size 1000000] [--only CASE ...]

Each case runs in a process of its own. The figures go to `benchmarks/results/many_data.md`.
"""

import argparse
import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from provenance import provenance
from rows import markdown
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import auto

RESULTS = Path(__file__).parent / "results" / "many_data.md"
COLUMNS, VALUES = 20, 20
HEAD = (
    "data",
    "number",
    "parameters",
    "log p",
    "error",
    "s.e.",
    "alarm",
    "seconds",
    "MB",
    "MB data",
)
TEXT = """# Many data

Evidence in nats by `evidence.auto` with its own settings. The error is against the closed form;
seconds are of the processor, imports left out; MB is the most memory that the process ever had,
with torch and all else loaded."""
Case = tuple[Callable, Tensor, int, float]


def coins(size: int) -> Case:
    """Tosses of one coin."""

    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    x = (torch.rand(size) < 0.3).float()
    heads = float(x.sum())
    return model, x, 1, log_beta(heads + 1, size - heads + 1)


def counts(size: int) -> Case:
    """Poisson counts of one rate."""

    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.poisson(torch.full((size,), 3.0))
    total = float(x.double().sum())
    truth = math.lgamma(2 + total) - (2 + total) * math.log(1 + size)
    return model, x, 1, truth - float((x.double() + 1).lgamma().sum())


def categories(size: int) -> Case:
    """Twenty values of one distribution."""

    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Dirichlet(torch.ones(VALUES)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p.unsqueeze(-2)), obs=x)

    x = dist.Categorical(torch.arange(1.0, 1 + VALUES)).sample((size,))
    number = x.bincount(minlength=VALUES).double()
    truth = math.lgamma(VALUES) + float((number + 1).lgamma().sum()) - math.lgamma(size + VALUES)
    return model, x, VALUES - 1, truth


def normals(size: int) -> Case:
    """Normal numbers of unknown mean."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 3.0), obs=x)

    x = 2 + 3 * torch.randn(size)
    return model, x, 1, log_normal(x.unsqueeze(-1), 3.0, 10.0)


def vectors(size: int) -> Case:
    """Normal vectors of twenty unknown means."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([COLUMNS]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc.unsqueeze(-2), 3.0).to_event(1), obs=x)

    x = torch.linspace(-3, 3, COLUMNS) + 3 * torch.randn(size, COLUMNS)
    return model, x, COLUMNS, log_normal(x, 3.0, 10.0)


def log_beta(a: float, b: float) -> float:
    """log B(a, b)."""
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def log_normal(x: Tensor, scale: float, prior: float) -> float:
    """Evidence of columns with independent unknown means."""
    x, size = x.double(), len(x)
    precision = size / scale**2 + 1 / prior**2
    square = (x.sum(0) / scale**2).square() / precision - x.square().sum(0) / scale**2
    constant = size * math.log(2 * math.pi * scale**2) + math.log(precision * prior**2)
    return 0.5 * float((square - constant).sum())


CASES: dict[str, Callable[[int], Case]] = {
    "coins": coins,
    "counts": counts,
    "categories": categories,
    "normals": normals,
    "vectors": vectors,
}


def measure(name: str, size: int, pipe: Connection) -> None:
    """Send the line of one case."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x, num_parameters, truth = CASES[name](size)
    start = time.process_time()
    found = auto(Program(model), x, progress=False)
    seconds = time.process_time() - start
    error, most = float(found.log_z) - truth, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    numbers = [f"{truth:.3f}", f"{error:+.4f}", f"{float(found.std_error):.4f}"]
    alarm = "no" if found.reliable else "yes"
    own = x.numel() * x.element_size() / 2**20
    costs = [f"{seconds:.1f}", f"{most / 1024:.0f}", f"{own:.0f}"]
    what = (CASES[name].__doc__ or name).rstrip(".")
    pipe.send([what, f"{size:,}", str(num_parameters), *numbers, alarm, *costs])


def line(name: str, size: int) -> list[Any]:
    """The line of a case, measured in a fresh process."""
    receive, give = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(name, size, give))
    process.start()
    give.close()
    found = receive.recv()
    process.join()
    print(found, flush=True)
    return found


def main() -> None:
    """Measure all cases and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000, help="number of data")
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [line(name, given.size) for name in given.only]
    RESULTS.write_text(
        "\n".join([TEXT, "", markdown(list(HEAD), lines), "", provenance("0")]) + "\n"
    )


if __name__ == "__main__":
    main()
