"""Annealing for a decoder of handwritten digits.

What a leapfrog step costs, and bounds that close in.

    python benchmarks/annealing.py speed
    python benchmarks/annealing.py mnist [--data FOLDER] [--images 100] [--temperatures 1000]
        [--steps 10000]

`speed` compares one leapfrog step of 16 chains for 100 and 400 images, as written and compiled,
with the six matrix products that a forward and backward pass cannot do without, in turns on one
machine; the program is a 50-200-200-784 decoder. `mnist` trains that decoder with its guide on the
statically binarised digits (`binarized_mnist.npz` in the folder), then estimates log p of test
images from below by the ELBO, the importance-weighted bound of 5000 draws and AIS, and from both
sides on images that the program draws itself.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from provenance import provenance
from torch import Tensor, nn

from ppl_dgm import Program, fit, objectives
from ppl_dgm.compile import Switch
from ppl_dgm.evidence import AIS, BDMC, ELBO, Evidence, ImportanceSampling
from ppl_dgm.sampling.kernels.metropolis import leapfrog
from ppl_dgm.sampling.smc.paths import Path as TemperedPath
from ppl_dgm.sampling.smc.paths import open_space

LATENT, HIDDEN, PIXELS, CHAINS = 50, 200, 784, 16
RESULTS = Path(__file__).parent / "results"


def perceptron(*sizes: int) -> nn.Sequential:
    """Layers with tanh between them."""
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


class Model(nn.Module):
    """Bernoulli pixels given a standard normal code."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = perceptron(LATENT, HIDDEN, HIDDEN, PIXELS)

    def forward(self, x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class Guide(nn.Module):
    """Normal code given the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = perceptron(PIXELS, HIDDEN, HIDDEN, 2 * LATENT)

    def forward(self, x: Tensor) -> None:
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.clamp(-7, 5).exp()).to_event(1))


def milliseconds(run: Callable[[], object]) -> float:
    """Time of one run."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def matrix_products(decoder: nn.Sequential, count: int) -> Callable[[], None]:
    """The six products of a forward and backward pass for so many rows."""
    weights = [layer.weight.detach() for layer in decoder if isinstance(layer, nn.Linear)]
    rows = [torch.randn(count, weight.shape[1]) for weight in weights]
    gradients = [torch.randn(count, weight.shape[0]) for weight in weights]

    def run() -> None:
        for weight, row, gradient in zip(weights, rows, gradients, strict=True):
            torch.mm(row, weight.T)
            torch.mm(gradient, weight)

    return run


def speed(rounds: int = 15, steps: int = 4) -> str:
    """One leapfrog step as written and compiled, against the bare matrix products."""
    rows = [speed_row(images, rounds, steps) for images in (100, 400)]
    title = "# One leapfrog step of a 50-200-200-784 decoder against its six matrix products"
    head = "| rows | products, ms | as written, ms | ratio | compiled, ms | ratio |"
    head += "\n|---|---|---|---|---|---|"
    return "\n".join(
        [
            title,
            "",
            head,
            *rows,
            "",
            f"Medians of {rounds} rounds in turns; {CHAINS} chains for each image.",
        ]
    )


def speed_row(images: int, rounds: int, steps: int) -> str:
    """The table's line for so many images."""
    torch.manual_seed(0)
    model, x = Model(), torch.bernoulli(torch.full((images, PIXELS), 0.13))
    switch = Switch(True)
    with torch.no_grad():
        bound = Program(model).bind(x)
        target = TemperedPath(open_space(bound).rebind(bound), "prior").target
        state, half = target.evaluate(torch.randn(CHAINS, images, LATENT)), torch.tensor(0.5)
        given = (
            target,
            state,
            torch.randn_like(state.point),
            half,
            torch.full((LATENT,), 0.05),
            torch.tensor(steps),
        )
        products = matrix_products(model.decoder, CHAINS * images)
        runs = [products, lambda: leapfrog(*given), lambda: switch(leapfrog, *given)]
        for run in runs:
            run()
        times = [
            [milliseconds(run) / part for run, part in zip(runs, (1, steps, steps), strict=True)]
            for _ in range(rounds)
        ]
    bare, written, compiled = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [statistics.median(row[which] / row[0] for row in times) for which in (1, 2)]
    return (
        f"| {CHAINS * images} | {bare:.1f} | {written:.1f} | {ratios[0]:.2f} | {compiled:.1f} | "
        f"{ratios[1]:.2f} |"
    )


def digits(folder: Path, split: str) -> Tensor:
    """Binarised digits as floats `[n, 784]`."""
    packed = np.load(folder / "binarized_mnist.npz")[split]
    return torch.from_numpy(np.unpackbits(packed, axis=1)).float()


def train(folder: Path, steps: int) -> Program:
    """Fit the program."""
    program = Program(Model(), Guide())
    fit(
        program,
        digits(folder, "train"),
        objectives.ELBO(),
        steps=steps,
        batch_size=100,
        seed=0,
        progress=False,
    )
    return program


def line(name: str, evidence: Evidence) -> str:
    """A row of the table."""
    mean, error = evidence.log_z.mean(), evidence.total_std_error / len(evidence.log_z)
    return f"| {name} | {mean:.2f} | {error:.2f} | {evidence.seconds:.0f} |"


def mnist(folder: Path, images: int, temperatures: int, steps: int) -> str:
    """The table of bounds."""
    torch.manual_seed(0)
    program = train(folder, steps)
    everything = digits(folder, "test")
    x = everything[torch.randperm(len(everything))[:images]]
    method = AIS(num_temperatures=temperatures)
    real, sandwich = method(program, x), BDMC(method)(program, x)
    importance = ImportanceSampling(num_particles=5000)
    rows = [
        line("test images: ELBO", ELBO(num_particles=200)(program, x)),
        line("test images: IWELBO, 5000 draws", importance(program, x)),
        line(f"test images: AIS, {temperatures} temperatures", real),
        line("simulated images: AIS", sandwich.lower),
        line("simulated images: reverse AIS", sandwich.upper),
    ]
    title = "# A 784-200-200-50 VAE on statically binarised MNIST"
    title += f": {images} images, {steps} training steps"
    head = "| estimate | nats per image | s.e. | seconds |\n|---|---|---|---|"
    gap = f"Gap {sandwich.mean_gap:.2f} +- {sandwich.mean_gap_error:.2f} nats."
    gap += f" {sandwich.report(real)}"
    return "\n".join([title, "", head, *rows, "", gap, ""])


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "mnist"))
    parser.add_argument(
        "--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data"
    )
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--temperatures", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10_000)
    asked = parser.parse_args()
    if asked.what == "mnist" and not (asked.data / "binarized_mnist.npz").exists():
        raise SystemExit(f"no binarized_mnist.npz in {asked.data}; name its folder with --data")
    text = (
        speed()
        if asked.what == "speed"
        else mnist(asked.data, asked.images, asked.temperatures, asked.steps)
    )
    text = "\n".join([text.rstrip(), "", provenance("0")])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"annealing_{asked.what}.md").write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
