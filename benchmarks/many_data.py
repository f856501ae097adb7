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

Evidence in nats by `evidence.auto` with its own settings. The error is against closed forms and,
of regressions, quadrature; seconds are of the processor, imports left out; MB is the most memory
that the process ever had, with torch and all else loaded. Regressions are checked on 1000 of their
rows, all others on few weighted rows that stand for all."""
Case = tuple[Callable, tuple[Tensor, ...], int, float]


def coins(size: int) -> Case:
    """Tosses of one coin."""

    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    x = (torch.rand(size) < 0.3).float()
    heads = float(x.sum())
    return model, (x,), 1, log_beta(heads + 1, size - heads + 1)


def counts(size: int) -> Case:
    """Poisson counts of one rate."""

    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.poisson(torch.full((size,), 3.0))
    total = float(x.double().sum())
    truth = math.lgamma(2 + total) - (2 + total) * math.log(1 + size)
    return model, (x,), 1, truth - float((x.double() + 1).lgamma().sum())


def categories(size: int) -> Case:
    """Twenty values of one distribution."""

    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Dirichlet(torch.ones(VALUES)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p.unsqueeze(-2)), obs=x)

    x = dist.Categorical(torch.arange(1.0, 1 + VALUES)).sample((size,))
    number = x.bincount(minlength=VALUES).double()
    truth = math.lgamma(VALUES) + float((number + 1).lgamma().sum()) - math.lgamma(size + VALUES)
    return model, (x,), VALUES - 1, truth


def normals(size: int) -> Case:
    """Normal numbers of unknown mean."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 3.0), obs=x)

    x = 2 + 3 * torch.randn(size)
    return model, (x,), 1, log_normal(x.unsqueeze(-1), 3.0, 10.0)


def vectors(size: int) -> Case:
    """Normal vectors of twenty unknown means."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([COLUMNS]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc.unsqueeze(-2), 3.0).to_event(1), obs=x)

    x = torch.linspace(-3, 3, COLUMNS) + 3 * torch.randn(size, COLUMNS)
    return model, (x,), COLUMNS, log_normal(x, 3.0, 10.0)


def slopes(size: int) -> Case:
    """Linear regression, four weights and noise."""

    def model(y: Tensor, x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([4]).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal((x * w.unsqueeze(-2)).sum(-1), scale), obs=y)

    x = torch.randn(size, 4)
    y = x @ torch.tensor([0.5, -1.0, 0.3, 0.2]) + 0.7 * torch.randn(size)
    return model, (y, x), 5, log_regression(y.double(), x.double(), 2.0)


def logits(size: int) -> Case:
    """Logistic regression, slope and intercept."""

    def model(y: Tensor, x: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=level + slope * x), obs=y)

    x = torch.randn(size)
    y = (torch.rand(size) < (0.2 + 0.5 * x).sigmoid()).float()
    return model, (y, x), 2, log_logistic(y.double(), x.double(), 2.0)


def log_regression(y: Tensor, x: Tensor, prior: float) -> float:
    """Evidence of a regression, its weights in closed form and its noise by the trapezoid rule."""
    size, square = len(y), x.T @ x
    found = (y - x @ torch.linalg.solve(square, x.T @ y)).std()
    grid = found * (1 + torch.linspace(-8, 8, 801).double() / math.sqrt(2 * size))

    def at(scale: Tensor) -> Tensor:
        precision = square / scale**2 + torch.eye(x.shape[1]).double() / prior**2
        pull = x.T @ y / scale**2
        determinant = torch.logdet(precision) + x.shape[1] * math.log(prior**2)
        constant = size * (2 * math.pi * scale**2).log() + determinant + y @ y / scale**2
        return 0.5 * (pull @ torch.linalg.solve(precision, pull) - constant)

    log_prior = dist.HalfNormal(torch.tensor(2.0).double()).log_prob(grid)
    log_joint = torch.stack([at(scale) for scale in grid]) + log_prior
    return float(log_joint.logsumexp(0) + (grid[1] - grid[0]).log())


def log_logistic(y: Tensor, x: Tensor, prior: float) -> float:
    """Evidence of a logistic regression by the trapezoid rule around its mode."""
    table, mode = torch.stack([torch.ones_like(x), x], -1), torch.zeros(2).double()
    for _ in range(30):  # Newton's steps
        mean = (table @ mode).sigmoid()
        slope = table.T @ (y - mean) - mode / prior**2
        curvature = table.T @ (table * (mean * (1 - mean)).unsqueeze(-1))
        curvature = curvature + torch.eye(2).double() / prior**2
        mode = mode + torch.linalg.solve(curvature, slope)
    factor = torch.linalg.cholesky(torch.linalg.inv(curvature))
    step, side = 0.5, torch.arange(-14, 15).double() * 0.5
    points = mode + torch.cartesian_prod(side, side) @ factor.T
    own = [float(y @ (table @ p) - torch.nn.functional.softplus(table @ p).sum()) for p in points]
    log_prior = dist.Normal(0.0, prior).log_prob(points).sum(-1)
    log_joint = torch.tensor(own, dtype=torch.float64) + log_prior
    return float(log_joint.logsumexp(0) + 2 * math.log(step) + factor.logdet())


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
    "slopes": slopes,
    "logits": logits,
}


def measure(name: str, size: int, pipe: Connection) -> None:
    """Send the line of one case."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, data, num_parameters, truth = CASES[name](size)
    start = time.process_time()
    found = auto(Program(model), *data, progress=False)
    seconds = time.process_time() - start
    error, most = float(found.log_z) - truth, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    numbers = [f"{truth:.3f}", f"{error:+.4f}", f"{float(found.std_error):.4f}"]
    alarm = "no" if found.reliable else "yes"
    own = sum(x.nbytes for x in data) / 2**20
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
