"""Speed of energy models and of GANs, beside bare torch.

    python benchmarks/speed_energies.py [--rounds 7]

Training is measured through `fit`, Gibbs sampling through `RBM.sample`: the processor time of many
steps less that of few, so that what a call costs once is left out. Rounds go through all contenders
in turn; the table has medians over rounds. One thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from provenance import provenance
from rows import markdown
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm import fit
from ppl_dgm.families import RBM, Energy, Generator
from ppl_dgm.objectives import GAN, PersistentContrastiveDivergence
from ppl_dgm.sampling.kernels import ULA

PAGE = Path(__file__).parent / "results" / "speed_energies.md"
D, WIDTH, LATENTS, BATCH, RATE, STEP = 64, 128, 16, 128, 1e-3, 0.1
GIBBS = ((784, 500, 100), (784, 500, 500), (2048, 2048, 100))  # visible, hidden, chains
FEW, MANY = 200, 1200
Run = Callable[[int], object]  # so many steps
TEXT = f"""# Speed of energy models and GANs

Milliseconds of processor time a step, medians over rounds, and the median ratio of ours to each.
Persistent contrastive divergence: {BATCH} chains and data of {D} dimensions, one Langevin step, an
energy with layers {D}-{WIDTH}-{WIDTH}-1, Adam; "passes alone" are its forward and backward passes,
without noise, buffer and optimiser. Gibbs: an RBM's visible and hidden units and chains;
"products alone" are the two with its weights, by torch's `@`. `RBM.sample` packs the weight once
for oneDNN, whose products take half of the time of MKL's, which are torch's, on AMD's processors
with AVX-512; all but the products of a sweep takes .3 ms at 784 x 500 with 100 chains. GAN: one
round of critic and generator, both of two layers of {WIDTH}, batches of 128, Adam. Ours is
compiled, by `fit(compile=True)`."""


def net(*sizes: int) -> nn.Sequential:
    """A perceptron."""
    layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.SiLU())]
    return nn.Sequential(*layers[:-1])


def langevin_by_fit(x: Tensor) -> Run:
    """Persistent contrastive divergence as users call it."""
    program = Energy(net(D, WIDTH, WIDTH, 1).append(nn.Flatten(0)), D)
    objective = PersistentContrastiveDivergence(1, kernel=ULA(), step_size=STEP, buffer_size=BATCH)
    return partial(train, program, x, objective)


def train(program: nn.Module, x: Tensor, objective: nn.Module, steps: int) -> None:
    """Fit with compiled steps."""
    adam = partial(torch.optim.Adam, lr=RATE)
    settings = {"batch_size": BATCH, "optimizer": adam, "compile": True, "progress": False}
    fit(program, x, objective, steps=steps, **settings)


def langevin_by_torch(x: Tensor, whole: bool) -> Run:
    """The same written by hand, as a whole or its passes alone."""
    energy = net(D, WIDTH, WIDTH, 1)
    optimizer = torch.optim.Adam(energy.parameters(), RATE, fused=True)
    chains = x[:BATCH].clone()

    def step(index: int) -> None:
        nonlocal chains
        data = x[torch.randint(len(x), (BATCH,))] if whole else x[:BATCH]
        point = chains.requires_grad_()
        log_density = -energy(point).sum() - 0.5 * point.square().sum()
        (slope,) = torch.autograd.grad(log_density, point)
        point = point.detach()
        if whole:
            chains = point + 0.5 * STEP**2 * slope + STEP * torch.randn_like(point)
        optimizer.zero_grad(set_to_none=True)
        (energy(data).mean() - energy(chains.detach()).mean()).backward()
        if whole:
            optimizer.step()

    return repeated(step)


def repeated(step: Callable[[int], object]) -> Run:
    """Make a run of steps of one."""

    def run(steps: int) -> None:
        for index in range(steps):
            step(index)

    return run


def gibbs(num_visible: int, num_hidden: int, chains: int) -> dict[str, Run]:
    """Block Gibbs sampling, and its two products alone."""
    rbm = RBM(num_visible, num_hidden)
    weight = rbm.parts.weight.detach()
    visible = torch.rand(chains, num_visible).round()
    hidden = torch.rand(chains, num_hidden).round()

    def products(index: int) -> None:
        visible @ weight
        hidden @ weight.T

    def sweep(index: int) -> None:
        nonlocal visible
        h = torch.bernoulli((visible @ weight).sigmoid())
        visible = torch.bernoulli((h @ weight.T).sigmoid())

    return {
        "ours": lambda steps: rbm.sample(chains, steps, progress=False),
        "torch": repeated(torch.no_grad()(sweep)),
        "products alone": repeated(torch.no_grad()(products)),
    }


def gan(x: Tensor) -> dict[str, Run]:
    """Rounds of a GAN by `fit`, and written by hand."""
    adam = partial(torch.optim.Adam, lr=RATE)
    program = Generator(net(LATENTS, WIDTH, WIDTH, D), LATENTS, D)
    objective = GAN(net(D, WIDTH, WIDTH, 1), optimizer=adam)
    generator, critic = net(LATENTS, WIDTH, WIDTH, D), net(D, WIDTH, WIDTH, 1)
    players = [torch.optim.Adam(p.parameters(), RATE, fused=True) for p in (generator, critic)]

    def fake() -> Tensor:
        return generator(torch.randn(BATCH, LATENTS))

    def round_(index: int) -> None:
        data = x[torch.randint(len(x), (BATCH,))]
        players[1].zero_grad(set_to_none=True)
        loss = F.softplus(-critic(data)).mean() + F.softplus(critic(fake().detach())).mean()
        loss.backward()
        players[1].step()
        players[0].zero_grad(set_to_none=True)
        F.softplus(-critic(fake())).mean().backward()
        players[0].step()

    return {"ours": partial(train, program, x, objective), "torch": repeated(round_)}


def per_step(run: Run) -> float:
    """Milliseconds of processor time a step."""
    times = []
    for steps in (FEW, MANY):
        start = time.process_time()
        run(steps)
        times.append(time.process_time() - start)
    return 1e3 * (times[1] - times[0]) / (MANY - FEW)


def main() -> None:
    """Measure all contenders, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(1024, D)
    contests: dict[str, dict[str, Run]] = {
        "persistent CD, one Langevin step": {
            "ours": langevin_by_fit(x),
            "torch": langevin_by_torch(x, whole=True),
            "passes alone": langevin_by_torch(x, whole=False),
        },
        **{"Gibbs, {} x {}, {}".format(*sizes): gibbs(*sizes) for sizes in GIBBS},
        "one round of a GAN": gan(x),
    }
    lines = []
    for name, contest in contests.items():
        for run in contest.values():  # compiles
            run(FEW)
        times = [{who: per_step(run) for who, run in contest.items()} for _ in range(rounds)]
        print(name, times, flush=True)
        for who in contest:
            ratio = statistics.median(row["ours"] / row[who] for row in times)
            middle = statistics.median(row[who] for row in times)
            lines.append([name, who, f"{middle:.3f}", "" if who == "ours" else f"{ratio:.2f}"])
    table = markdown(["", "", "ms a step", "ours / this"], lines)
    PAGE.write_text("\n\n".join([TEXT, table, provenance("0")]) + "\n")


if __name__ == "__main__":
    main()
