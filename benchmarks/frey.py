"""Flows as guides of a VAE of the Frey faces: bits per dimension.

    python benchmarks/frey.py --data frey_faces.npz [--steps 6000] [--seeds 0 1] [--only GUIDE ...]

The file holds `images`, bytes `[1965, 28, 20]`. Every row is kept in `benchmarks/results/frey.csv`
and not made again; the table, beside the published one, is `benchmarks/results/frey.md`.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from digits_levels import column, spread
from provenance import provenance
from rows import Row, Rows, markdown
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_dgm import fit, objectives
from ppl_dgm.conditionals.guides import DiagonalNormal, FlowPosterior, PosteriorFamily
from ppl_dgm.conditionals.likelihoods import DiscretisedLogistic
from ppl_dgm.evidence import ELBO, ImportanceSampling
from ppl_dgm.families import VAE

ROWS = Rows(Path(__file__).parent / "results" / "frey.csv", ("guide", "seed", "steps"))
D, L, HIDDEN, LENGTH, CONTEXT = 28 * 20, 32, (200, 200), 4, 32
BATCH, RATE, SPLIT = 100, 3e-3, (1565, 200, 200)
DRAWS, WEIGHTED = 20, 500
LOOKS = 20  # at validation images
BITS = D * math.log(2)
PUBLISHED = {
    "none": "4.53 / 4.40",
    "planar": "4.40 / 4.31",
    "IAF": "4.47 / 4.38",
    "Sylvester": "4.45 to 4.51 / 4.35 to 4.39",
}

GUIDES: dict[str, Callable[[], PosteriorFamily]] = {
    "none": lambda: DiagonalNormal(L),
    "planar": lambda: FlowPosterior(L, "planar", LENGTH, CONTEXT),
    "IAF": lambda: FlowPosterior(L, "iaf", LENGTH, CONTEXT),
    "Householder": lambda: FlowPosterior(L, "householder", LENGTH, CONTEXT),
    "Sylvester": lambda: FlowPosterior(L, "sylvester", LENGTH, CONTEXT),
}


def faces(path: Path) -> list[Tensor]:
    """Training, validation and test images `[N, 560]`, after a shuffle."""
    images = np.load(path)["images"].reshape(-1, D)
    order = np.random.RandomState(0).permutation(len(images))
    return list(torch.as_tensor(images[order], dtype=torch.float32).split(SPLIT))


def row(guide: str, seed: int, steps: int, data: list[Tensor]) -> dict:
    """Fit one VAE and measure it."""
    train, valid, test = data
    torch.manual_seed(seed)
    begun = time.process_time()
    vae = VAE(D, L, HIDDEN, DiscretisedLogistic(256, 1), guide=GUIDES[guide]())
    fit(
        vae,
        train,
        objectives.ELBO(kl_weight=objectives.linear_warmup(steps // 5)),
        steps=steps,
        batch_size=BATCH,
        optimizer=lambda parameters: Adam(parameters, RATE),
        schedule=lambda optimizer: CosineAnnealingLR(optimizer, steps),
        clip_norm=1e3,
        valid=valid,
        valid_every=steps // LOOKS,
        seed=seed,
        progress=False,
        compile=True,
    )
    seconds = time.process_time() - begun
    bound = ELBO(DRAWS)(vae, test, seed=seed)
    weighted = ImportanceSampling(WEIGHTED)(vae, test, seed=seed)
    return {
        "guide": guide,
        "seed": seed,
        "steps": steps,
        "elbo": -bound.log_z.mean().item() / BITS,
        "nll": -weighted.log_z.mean().item() / BITS,
        "error": weighted.total_std_error.item() / len(test) / BITS,
        "seconds": seconds,
    }


def cells(found: list[Row], guide: str) -> list[str]:
    """A guide as the table shows it."""
    rows = [{**row, "family": row["guide"]} for row in found]
    numbers = [spread(column(rows, guide, key)) for key in ("elbo", "nll")]
    seconds = column(rows, guide, "seconds")
    gaps = zip(*(column(rows, guide, key) for key in ("elbo", "nll")), strict=True)
    gap = spread([one - other for one, other in gaps])
    return [guide, *numbers, gap, PUBLISHED.get(guide, ""), f"{sum(seconds) / len(seconds):.0f}"]


def page(found: list[Row], steps: int) -> str:
    """The table and what differs from the published one."""
    names = [name for name in GUIDES if any(row["guide"] == name for row in found)]
    head = ["guide", "−ELBO", "NLL", "gap", "published −ELBO / NLL", "seconds"]
    note = (
        f"Bits per dimension of {SPLIT[2]} held-out images (lower is better), mean ± standard "
        f"deviation over seeds; −ELBO by {DRAWS} draws, NLL by importance sampling with {WEIGHTED} "
        "draws, an upper bound. Published: van den Berg, Hasenclever, Tomczak and Welling (2018), "
        "whose VAE has gated convolutions, 64 latents, 256 free probabilities of a pixel and about "
        f"2000 epochs. Here it has perceptrons of {HIDDEN} units, {L} latents, one discretised "
        f"logistic a pixel, and {steps} Adam steps of {BATCH} of {SPLIT[0]} images "
        f"({steps * BATCH / SPLIT[0]:.0f} epochs) at rate {RATE} falling to zero, the KL term "
        f"weighted up over the first fifth; validation chooses among every {steps // LOOKS}th "
        f"step. Flows have {LENGTH} layers. So orders and gaps compare, and levels do not."
    )
    end = (
        "The published order does not hold here. The longer the fits, the less flows win: after "
        "600 steps at rate 0.001 the test images had 5.38 bits without a flow, .01 less with "
        "planar flows, .07 with IAF and .17 with Sylvester's; 6000 steps at 0.003 are .6 to .8 "
        "better for each, and the plain guide is the best. On validation images 16000 steps at "
        "0.003 overfit (4.71 without a flow); 12000 at 0.001 have 4.63, planar flows 4.65 and IAF "
        "4.66, with 4.19 to 4.24 of the training images. So what lies between bound and "
        "likelihood is, on this reading, what perceptrons fitted to 1565 images do not carry over "
        "to others, which a richer family does not mend. Regularised encoders bring back that "
        "planar flows win, and lose more than they win (−ELBO of the validation images, one seed, "
        "6000 steps at 0.003): dropout of .2 before each of the encoder's layers 4.756 without a "
        "flow and 4.733 with planar flows, decoupled weight decay of .3 of the encoder 4.775 and "
        "4.751, neither 4.679 and 4.696 (Sylvester 4.671). Validation chooses neither, and the "
        "published order does not come back; gated convolutions and 2000 epochs, as published, "
        "were not run."
    )
    table = markdown(head, [cells(found, name) for name in names])
    return "\n\n".join(["# Flow guides on the Frey faces", note, table, end])


def main() -> None:
    """Make the rows that are not there, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--only", nargs="+", choices=list(GUIDES), default=list(GUIDES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = faces(asked.data)
    runs = ((name, seed, asked.steps) for seed in asked.seeds for name in asked.only)
    ROWS.fill(runs, lambda name, seed, steps: row(name, seed, steps, data))
    found = [made for made in ROWS.read() if int(made["steps"]) == asked.steps]
    seeds = " ".join(sorted({made["seed"] for made in found}))
    text = "\n\n".join([page(found, asked.steps), provenance(seeds)])
    ROWS.path.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
