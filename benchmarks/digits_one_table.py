"""Six kinds of families on the bundled grey digits, in one table of nats.

A VAE, a masked autoregressive net, a flow, a GAN, a restricted Boltzmann machine and an energy net,
the models of tutorial 06.

    python benchmarks/digits_one_table.py [--seeds 0 1 2 3 4] [--only FAMILY ...]

Every row is kept in `benchmarks/results/digits_one_table.csv`, its nats datum by datum and its
draws pixel by pixel, and not made again; the table is `digits_one_table.md`, the draws are
`digits_one_table.png`.
"""

import argparse
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt
import torch
from digits import spread
from provenance import provenance
from pyro.distributions import MultivariateNormal
from rows import Row, Rows, markdown
from torch import Tensor, nn

from ppl_dgm import Program, compare, fit
from ppl_dgm.conditionals.likelihoods import Gaussian, MixtureDensity
from ppl_dgm.data import load_digits
from ppl_dgm.diagnostics import energy_test
from ppl_dgm.evidence import AIS, Evidence, Exact
from ppl_dgm.families import MADE, RBM, VAE, Energy, Generator, RealNVP
from ppl_dgm.fitting import EarlyStopping
from ppl_dgm.nn import MLP
from ppl_dgm.objectives import ELBO, GAN, NoiseContrastive, PersistentContrastiveDivergence
from ppl_dgm.program.seeding import seeded

RESULTS = Path(__file__).parent / "results" / "digits_one_table.csv"
ROWS = Rows(RESULTS, ("family", "seed"))
D, TESTED, LEVELS = 64, 60, 17
NOISES = (0.06, 0.09, 0.12, 0.15)
Made = tuple[Evidence, Tensor, str]  # evidence, draws, what else there is to say
TEXT = f"""# Six kinds of families on grey digits, in one table

The bundled 8 x 8 digits, every grey level spread evenly over its width and scaled to [0, 1]; 1197
train, 200 validate, {TESTED} held out ones are scored. Nats of densities on that scale, higher is
better. The models are those of tutorial 06; likelihoods are trained until eight looks at the
validation data, fifty steps apart, show no better one, up to 4000 steps."""


@cache
def data() -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test images `[N, 64]`."""
    grey = load_digits(LEVELS)
    noise = torch.rand(1797, D, generator=torch.Generator().manual_seed(0)).split([1197, 200, 400])
    parts = (grey.train, grey.valid, grey.test)
    train, valid, test = ((p.x + u) / LEVELS for p, u in zip(parts, noise, strict=True))
    return train, valid, test[:TESTED]


def learn(program: Program, objective: Any, steps: int, rate: float, seed: int, **more: Any) -> Any:
    """Adam steps on the training images."""
    adam = partial(torch.optim.Adam, lr=rate, betas=(0.5, 0.99))
    settings = {"batch_size": 100, "seed": seed, "compile": False, "progress": False, **more}
    return fit(program, data()[0], objective, steps=steps, optimizer=adam, **settings)


def by_likelihood(make: Callable[[], Program], method: Any, seed: int) -> Made:
    """Fit by the ELBO, an exact likelihood where nothing is latent, until validation is over."""
    _, valid, test = data()
    program = make()
    stopping = {"valid": valid, "valid_every": 50, "callbacks": [EarlyStopping(8)]}
    learn(program, ELBO(), 4000, 2e-3, seed, **stopping)
    return method(program, test, seed=seed), program.sample(16), ""


def gan(seed: int) -> Made:
    """A GAN with R1 and averaged weights; its noise is that of the best validation nats."""
    train, valid, test = data()
    generator = Generator(nn.Sequential(MLP(16, [128, 128], D), nn.Sigmoid()), 16, D)
    adam = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.99))
    game = GAN(MLP(D, [128, 128], 1, nn.LeakyReLU), r1=1.0, optimizer=adam, ema=0.99)
    found = learn(generator, game, 2000, 1e-3, seed, valid=valid, valid_every=100)
    fitted = found.averages["generator"]
    choosing = AIS(num_temperatures=120, num_chains=8)
    nats = {s: choosing(fitted.with_noise(s), valid[:20], seed=seed).log_z.mean() for s in NOISES}
    noise = max(nats, key=nats.get)  # type: ignore[arg-type]
    result = AIS(num_temperatures=600, num_chains=32)(fitted.with_noise(noise), test, seed=seed)
    distances = (-found.history["valid"]).tolist()
    between = energy_test(train[:200], train[200:400], seed=0).statistic
    said = (
        f"noise {noise}; energy distance of draws to validation images {distances[0]:.2f} after "
        f"100 rounds, least {min(distances):.3f}, last {distances[-1]:.3f} (training images to "
        f"others: {between:.3f}); the fit {'has' if found.settled else 'has not'} settled"
    )
    return result, fitted.sample(16), said


def tilted(seed: int) -> Made:
    """A normal with the data's moments, tilted by a net that tells data from its draws."""
    train, _, test = data()
    base = MultivariateNormal(train.mean(0), torch.cov(train.T) + 1e-3 * torch.eye(D))
    energy = Energy(nn.Sequential(MLP(D, [100], 1), nn.Flatten(0)), D, base)
    learn(energy, NoiseContrastive(base, 10), 600, 1e-3, seed)
    result = AIS(num_temperatures=150, num_chains=64)(energy, test, seed=seed)
    with torch.no_grad():
        proposals = base.sample((20_000,))
        weights = torch.distributions.Categorical(logits=-energy.energy(proposals))
    return result, proposals[weights.sample((16,))], ""


def machine(seed: int) -> Made:
    """A machine with real visible units, by persistent contrastive divergence."""
    train, _, test = data()
    rbm = RBM(D, 50, "gaussian").start_from(train)
    learn(rbm, PersistentContrastiveDivergence(5), 1500, 3e-3, seed)
    result = AIS(num_temperatures=10_000, num_chains=100)(rbm, test, seed=seed)
    return result, rbm.sample(16, num_steps=1000, start=train[:16], progress=False), ""


def vae() -> Program:
    """A VAE with eight latents and one learned noise."""
    return VAE(D, 8, (64,), likelihood=Gaussian(0.3, learned="shared"))


FAMILIES: dict[str, Callable[[int], Made]] = {
    "MADE": partial(by_likelihood, lambda: MADE(D, [100], likelihood=MixtureDensity(3)), Exact()),
    "RealNVP": partial(by_likelihood, lambda: RealNVP(D, 4, [64]), Exact()),
    "energy": tilted,
    "RBM": machine,
    "GAN": gan,
    "VAE": partial(by_likelihood, vae, AIS(60, 16, start="guide")),
}


def row(name: str, seed: int) -> dict[str, Any]:
    """Fit one family and measure it."""
    start = time.process_time()
    with seeded(seed):
        result, draws, said = FAMILIES[name](seed)
    levels = (draws.detach().clamp(0, 1) * 15).round().long().flatten().tolist()
    return {
        "family": name,
        "seed": seed,
        "mean": float(result.log_z.mean()),
        "error": float(result.total_std_error) / TESTED,
        "shared_error": result.shared_std_error,
        "bound": result.bound,
        "estimator": result.estimator,
        "warnings": " | ".join(result.warnings),
        "said": said,
        "seconds": time.process_time() - start,
        "digest": result.digest,
        "log_z": numbers(result.log_z),
        "std_error": numbers(result.std_error),
        "draws": "".join(f"{level:x}" for level in levels),
    }


def numbers(values: Tensor) -> str:
    """Numbers of all data in one cell."""
    return " ".join(f"{value:.4f}" for value in values.tolist())


def read(row: Row) -> Evidence:
    """The evidence that a row keeps."""
    log_z, errors = (
        torch.tensor([float(v) for v in row[key].split()]).double()
        for key in ("log_z", "std_error")
    )
    return Evidence(
        log_z,
        errors,
        row["bound"],  # type: ignore[arg-type]
        "datum",
        row["estimator"],
        TESTED * D,
        row["digest"],
        warnings=tuple(filter(None, row["warnings"].split(" | "))),
        shared_std_error=float(row["shared_error"]),
    )


def page(found: list[Row], seeds: list[int]) -> str:
    """The table over seeds, that of the first seed, and what is to be said of rows."""
    of = {name: [row for row in found if row["family"] == name] for name in FAMILIES}
    lines = [
        [
            name,
            rows[0]["bound"],
            spread([float(row["mean"]) for row in rows]),
            f"{max(float(row['error']) for row in rows):.3f}",
            f"{mean(float(row['seconds']) for row in rows):.0f}",
            f"{sum(bool(row['warnings']) for row in rows)} of {len(rows)}",
        ]
        for name, rows in of.items()
    ]
    head = ["", "number", "nats", "largest ± MC", "seconds of CPU", "with an alarm"]
    first, *others = [
        {row["family"]: read(row) for row in found if row["seed"] == str(seed)} for seed in seeds
    ]
    refits = {name: [other[name] for other in others] for name in first}
    said = [
        f"- {row['family']}, seed {row['seed']}: {text}."
        for row in found
        for text in (row["warnings"], row["said"])
        if text
    ]
    parts = [
        TEXT,
        f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}:",
        markdown(head, lines),
        f"`compare` of seed {seeds[0]}, the others as `refits`:",
        f"```\n{compare(first, refits=refits)}\n```",
        "## Alarms, and the course of the games",
        "\n".join(said),
        "## Draws\n\n![Draws](digits_one_table.png)",
    ]
    return "\n\n".join(parts)


def draw(found: list[Row], seeds: list[int]) -> None:
    """16 draws of every row: a column for each family, a line for each seed."""
    size = (len(seeds), 1 + len(FAMILIES))
    _, axes = plt.subplots(*size, figsize=(14, 2.1 * len(seeds)), squeeze=False)
    for line, seed in zip(axes, seeds, strict=True):
        grids = {"data": data()[2][:16]}
        for row in found:
            if row["seed"] == str(seed):
                levels = [int(level, 16) for level in row["draws"]]
                grids[row["family"]] = torch.tensor(levels).reshape(16, D) / 15
        for panel, name in zip(line, ["data", *FAMILIES], strict=True):
            framed = nn.functional.pad(grids[name].reshape(4, 4, 8, 8), (0, 1, 0, 1), value=0.5)
            tiles = framed.permute(0, 2, 1, 3).reshape(36, 36)
            panel.imshow(tiles, cmap="gray", vmin=0, vmax=1)
            panel.set_title(f"{name}, seed {seed}" if name != "data" else name, fontsize=9)
            panel.set_axis_off()
    plt.tight_layout()
    plt.savefig(RESULTS.with_suffix(".png"), dpi=80)


def main() -> None:
    """Make the rows that are not there, then table and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    ROWS.fill([(name, seed) for seed in asked.seeds for name in asked.only], row)
    wanted = [ROWS.find(name, seed) for seed in asked.seeds for name in FAMILIES]
    found = [row for row in wanted if row is not None]
    if len(found) == len(wanted):
        draw(found, asked.seeds)
        text = "\n\n".join([page(found, asked.seeds), provenance(" ".join(map(str, asked.seeds)))])
        RESULTS.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
