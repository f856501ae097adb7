"""Families on the bundled 8x8 digits, binarised: nats per image of the held-out split, over several seeds.

    python benchmarks/digits.py --seeds 0 1 2 3 4 --steps 3000

Appends one row for each family and seed to `benchmarks/results/digits.csv` as it goes, and notes beside it what made them.
"""

import argparse
import csv
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from provenance import provenance
from sklearn.datasets import load_digits
from torch import Tensor

from ppl_dgm import Program, evidence, fit, objectives
from ppl_dgm.families import MADE, VAE, HierarchicalVAE, IndependentBernoulli, Mixture, priors
from ppl_dgm.guides import AmortisedGuide, DiagonalNormal, FlowPosterior
from ppl_dgm.nets import MLP

RESULTS = Path(__file__).parent / "results" / "digits.csv"
FIELDS = ("family", "seed", "steps", "elbo", "iwelbo_1000", "std_error", "seconds")
D, L, HIDDEN = 64, 16, (100,)


def digits() -> tuple[Tensor, Tensor]:
    """Binary images `[N, 64]`: a training split of 1437 and a test split of 360."""
    images = torch.as_tensor(load_digits().data > 7.5, dtype=torch.float32)
    shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    return shuffled[:1437], shuffled[1437:]


def vamp(train: Tensor) -> VAE:
    """A VAE whose prior is its guide at 50 pseudo-images."""
    guide = AmortisedGuide(MLP(D, HIDDEN, 2 * L, torch.nn.Tanh), DiagonalNormal(L))
    return VAE(D, L, HIDDEN, prior=priors.VampPrior(guide, train[:50]), guide=guide)


def fitted_mixture(train: Tensor) -> Mixture:
    """A mixture of Bernoullis after EM."""
    mixture = Mixture(D, 50, "bernoulli")
    mixture.fit_em(train)
    return mixture


FAMILIES: dict[str, tuple[Callable[[Tensor], Program], objectives.Objective | None]] = {
    "independent": (lambda x: IndependentBernoulli(D).fit_counts(x), None),
    "mixture of 50": (fitted_mixture, None),
    "MADE": (lambda x: MADE(D, HIDDEN), objectives.ELBO()),
    "VAE": (lambda x: VAE(D, L, HIDDEN), objectives.ELBO()),
    "IWAE, k = 50": (lambda x: VAE(D, L, HIDDEN), objectives.IWELBO(50)),
    "VAE, flow guide": (lambda x: VAE(D, L, HIDDEN, guide=FlowPosterior(L, "iaf")), objectives.ELBO()),
    "VAE, mixture prior": (lambda x: VAE(D, L, HIDDEN, prior=priors.GaussianMixturePrior(L, 10)), objectives.ELBO()),
    "VAE, VampPrior": (vamp, objectives.ELBO()),
    "VAE, two layers": (lambda x: HierarchicalVAE(D, (L, L // 2), (HIDDEN, (50,))), objectives.ELBO()),
}


def row(name: str, seed: int, steps: int) -> dict:
    """Fit one family and measure it."""
    train, test = digits()
    make, objective = FAMILIES[name]
    start = time.perf_counter()
    torch.manual_seed(seed)
    program = make(train)
    if objective is not None:
        adam = partial(torch.optim.Adam, lr=2e-3)
        fit(program, train, objective, steps=steps, batch_size=100, optimizer=adam, seed=seed, progress=False)
    bound = evidence.ELBO(num_particles=100)(program, test, seed=seed)
    tight = evidence.ImportanceSampling(num_particles=1000)(program, test, seed=seed)
    figures = (bound.log_z.mean().item(), tight.log_z.mean().item(), tight.total_std_error.item() / len(test))
    return dict(zip(FIELDS, (name, seed, steps, *figures, time.perf_counter() - start), strict=True))


def main() -> None:
    """Run all families for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        for seed in options.seeds:
            for name in options.only:
                found = row(name, seed, options.steps)
                writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in found.items()})
                file.flush()
                print(found, flush=True)
    RESULTS.with_suffix(".txt").write_text(provenance(" ".join(map(str, options.seeds))) + "\n")


if __name__ == "__main__":
    main()
