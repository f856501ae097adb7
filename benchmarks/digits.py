"""Families on the bundled 8 x 8 digits, binarised.

Nats of the held-out images and accuracies, over several seeds.

    python benchmarks/digits.py [--seeds 0 1 2 3 4] [--steps 3000] [--only FAMILY ...]

Every row is kept in `benchmarks/results/digits.csv` and not made again; the table and what follows
from it are `benchmarks/results/digits.md`.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from provenance import provenance
from pyro.distributions.transforms import Permute, affine_coupling
from pyro.infer import TraceEnum_ELBO
from pyro.poutine import infer_config
from rows import Row, Rows, markdown
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn
from torch.optim import Adam

from ppl_dgm import Program, fit, objectives
from ppl_dgm.conditionals.guides import AmortisedGuide, DiagonalNormal, FlowPosterior
from ppl_dgm.data import Dataset, load_digits
from ppl_dgm.evidence import AIS, ELBO, Exact, ImportanceSampling
from ppl_dgm.families import (
    MADE,
    VAE,
    HierarchicalVAE,
    IndependentBernoulli,
    Mixture,
    SemiSupervisedVAE,
    priors,
)
from ppl_dgm.nn.mlp import MLP
from ppl_dgm.program.seeding import seeded

RESULTS = Path(__file__).parent / "results" / "digits.csv"
ROWS = Rows(RESULTS, ("family", "seed", "steps"))
D, L, HIDDEN, BATCH = 64, 16, (100,), 100
CLASSES, PER_CLASS, CLUSTERS, SMALL = 10, 10, 20, 8
FROM_GUIDE, FROM_PRIOR, FEW_CHAINS = AIS(60, start="guide"), AIS(200), AIS(20, 8, start="guide")
Accuracies = tuple[float, float | None]


class SummedModel(nn.Module):
    """The model of M2 for data without labels, its class marked to be summed out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor | None = None) -> Any:
        """Score data `[data, 64]`."""
        with infer_config(
            config_fn=lambda site: {"enumerate": "parallel"} if site.get("name") == "y" else {}
        ):
            return self.model(x)


class SummedGuide(nn.Module):
    """q(z | x) = sum_y q(y | x) q(z | x, y)."""

    def __init__(self, guide: Any) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, x: Tensor) -> Tensor:
        """Draw latents `[data, L]`."""
        each = self.guide.latent.distribution(
            x.unsqueeze(-2), torch.arange(CLASSES, device=x.device)
        )
        with pyro.plate("data", len(x), dim=-1):
            classes = dist.Categorical(logits=self.guide.classifier(x))
            return pyro.sample("z", dist.MixtureSameFamily(classes, each))


@dataclass(frozen=True)
class Family:
    """How a row's program is made of training data and a seed, and how it learns.

    Also what is asked of it.
    """

    make: Callable[[Dataset, int], Program]
    objective: Any = None
    annealing: AIS | None = FROM_GUIDE
    rate: float = 2e-3
    training: Callable[[Dataset, int], Any] = lambda data, seed: data.train.x
    annealed: Callable[[Any], Program] = lambda program: program
    accuracies: Callable[[Any, Dataset, int], Accuracies] | None = None

    def fitted(self, data: Dataset, steps: int, seed: int) -> Program:
        """The program after all its training."""
        with seeded(seed):
            program = self.make(data, seed)
        if self.objective is not None:
            learn(program, self.training(data, seed), self.objective, steps, self.rate, seed)
        return program


def learn(program: Program, data: Any, objective: Any, steps: int, rate: float, seed: int) -> None:
    """Gradient steps, compiled."""
    adam = partial(Adam, lr=rate)
    settings = {"batch_size": BATCH, "seed": seed, "compile": True, "progress": False}
    fit(program, data, objective, steps=steps, optimizer=adam, **settings)


def labels(split: Dataset) -> Tensor:
    """Which digit each image is."""
    return torch.as_tensor(split.labels)


def mixture(data: Dataset, seed: int) -> Program:
    """A mixture of Bernoullis after EM."""
    program = Mixture(D, 50, "bernoulli")
    program.fit_em(data.train.x, seed=seed)
    return program


def vamp(data: Dataset, seed: int) -> Program:
    """A VAE whose prior is its guide at 50 pseudo-images."""
    guide = AmortisedGuide(MLP(D, HIDDEN, 2 * L, nn.Tanh), DiagonalNormal(L))
    return VAE(D, L, HIDDEN, prior=priors.VampPrior(guide, data.train.x[:50]), guide=guide)


def flow_prior(data: Dataset, seed: int) -> Program:
    """A VAE whose prior is learned.

    Four affine couplings of normal noise, its halves exchanged in between.
    """
    halves = torch.arange(L).roll(L // 2)
    couplings = [
        part for _ in range(4) for part in (affine_coupling(L, hidden_dims=[32]), Permute(halves))
    ]
    return VAE(D, L, HIDDEN, prior=priors.FlowPrior(L, couplings))


def gmvae(data: Dataset, seed: int) -> Program:
    """A VAE with eight latents after 600 steps, then with a mixture prior.

    The prior starts from k-means of the codes.
    """
    x = data.train.x
    plain: Any = VAE(D, SMALL, HIDDEN)
    learn(plain, x, objectives.ELBO(), 600, 2e-3, seed)
    encoder = plain.guide.fn
    with torch.no_grad():
        prior = priors.GaussianMixturePrior(SMALL, CLUSTERS).start_from_kmeans(
            encoder.distribution(x).mean, seed
        )
    return VAE(D, SMALL, prior=prior, guide=encoder, decoder=plain.model.fn.decoder)


@torch.no_grad()
def cluster_accuracy(program: Any, data: Dataset, seed: int) -> Accuracies:
    """Share of test images whose cluster is named after their digit.

    A cluster's name is the most frequent digit of its training images.
    """

    def clusters(x: Tensor) -> Tensor:
        return program.model.fn.prior.responsibilities(
            program.guide.fn.distribution(x).mean
        ).argmax(-1)

    found = clusters(data.train.x)
    names = torch.stack(
        [
            labels(data.train)[found == k].bincount(minlength=CLASSES).argmax()
            for k in range(CLUSTERS)
        ]
    )
    return (names[clusters(data.test.x)] == labels(data.test)).double().mean().item(), None


def labelled(data: Dataset, seed: int) -> tuple[Tensor, Tensor]:
    """Training images, and labels of which all but ten for each class are hidden."""
    y = labels(data.train)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    kept = torch.cat([order[y[order] == c][:PER_CLASS] for c in range(CLASSES)])
    return data.train.x, torch.full_like(y, -1).index_copy(0, kept, y[kept])


@torch.no_grad()
def label_accuracies(program: Any, data: Dataset, seed: int) -> Accuracies:
    """Of the semi-supervised VAE, and of classifiers of the labelled images alone.

    Of two classifiers the better one is taken.
    """
    x, y = labelled(data, seed)
    seen = (x[y >= 0].numpy(), y[y >= 0].numpy())
    rivals = (
        LogisticRegression(max_iter=2000),
        MLPClassifier(HIDDEN, activation="tanh", max_iter=3000, random_state=seed),
    )
    best = max(
        float(rival.fit(*seen).score(data.test.x.numpy(), labels(data.test).numpy()))
        for rival in rivals
    )
    return (
        program.classify(data.test.x).argmax(-1) == labels(data.test)
    ).double().mean().item(), best


FAMILIES = {
    "independent pixels": Family(
        lambda data, seed: IndependentBernoulli(D).fit_counts(data.train.x), annealing=None
    ),
    "mixture of 50": Family(mixture, annealing=None),
    "MADE": Family(lambda data, seed: MADE(D, HIDDEN), objectives.ELBO(), None),
    "VAE": Family(lambda data, seed: VAE(D, L, HIDDEN), objectives.ELBO()),
    "IWAE, k = 50": Family(lambda data, seed: VAE(D, L, HIDDEN), objectives.IWELBO(50)),
    "VAE, flow guide": Family(
        lambda data, seed: VAE(D, L, HIDDEN, guide=FlowPosterior(L, "iaf")),
        objectives.ELBO(),
        FROM_PRIOR,
    ),
    "VAE, VampPrior": Family(vamp, objectives.ELBO()),
    "VAE, flow prior": Family(flow_prior, objectives.ELBO()),
    "VAE, two layers": Family(
        lambda data, seed: HierarchicalVAE(D, (L, SMALL), (HIDDEN, (50,))), objectives.ELBO()
    ),
    "GMVAE": Family(gmvae, objectives.ELBO(), accuracies=cluster_accuracy),
    "M2, 100 labels": Family(
        lambda data, seed: SemiSupervisedVAE(D, SMALL, CLASSES, HIDDEN, classifier_weight=20.0),
        TraceEnum_ELBO(max_plate_nesting=1),
        FEW_CHAINS,
        rate=1e-3,
        training=labelled,
        annealed=lambda program: Program(
            SummedModel(program.model.fn), SummedGuide(program.guide.fn)
        ),
        accuracies=label_accuracies,
    ),
}


def row(name: str, seed: int, steps: int, data: Dataset) -> dict:
    """Fit one family and measure it."""
    start, family, test = time.perf_counter(), FAMILIES[name], data.test.x
    program = family.fitted(data, steps, seed)
    if family.annealing is None:
        bound = tight = annealed = Exact()(program, test)
    else:
        bound = ELBO(num_particles=100)(program, test, seed=seed)
        tight = ImportanceSampling(num_particles=1000)(program, test, seed=seed)
        annealed = family.annealing(family.annealed(program), test, seed=seed)
    accuracy, rival = family.accuracies(program, data, seed) if family.accuracies else (None, None)
    return {
        "family": name,
        "seed": seed,
        "steps": steps,
        "elbo": bound.log_z.mean().item(),
        "iwelbo": tight.log_z.mean().item(),
        "iwelbo_error": tight.total_std_error.item() / len(test),
        "ais": annealed.log_z.mean().item(),
        "ais_error": annealed.total_std_error.item() / len(test),
        "kind": annealed.bound,
        "accuracy": accuracy,
        "classifier": rival,
        "seconds": time.perf_counter() - start,
    }


def column(found: list[Row], name: str, key: str) -> list[float]:
    """One quantity of a family, seed by seed."""
    return [float(row[key]) for row in found if row["family"] == name and row[key]]


def spread(values: list[float], digits: int = 2) -> str:
    """Mean ± standard deviation."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}" if values else ""


def cells(found: list[Row], name: str) -> list[str]:
    """A family as the table shows it."""
    exact = FAMILIES[name].annealing is None
    ais = "exact" if exact else spread(column(found, name, "ais"))
    bounds = [spread(column(found, name, key)) for key in ("elbo", "iwelbo")]
    return [
        name,
        *bounds,
        ais,
        spread(column(found, name, "accuracy"), 3),
        spread(column(found, name, "classifier"), 3),
    ]


def verdict(differences: list[float]) -> str:
    """Whether differences, seed by seed, are positive beyond chance.

    Beyond chance is by more than two standard errors of their mean.
    """
    sure = mean(differences) > 2 * stdev(differences) / len(differences) ** 0.5
    positive = sum(d > 0 for d in differences)
    return f"{'holds' if sure else 'does not hold'} ({positive} of {len(differences)} seeds)"


def claims(found: list[Row]) -> str:
    """What the rows say about what the families are known for."""

    def gain(one: str, other: str, key: str) -> list[float]:
        return [
            a - b for a, b in zip(column(found, one, key), column(found, other, key), strict=True)
        ]

    def gap(name: str) -> list[float]:
        return [
            a - b
            for a, b in zip(column(found, name, "ais"), column(found, name, "elbo"), strict=True)
        ]

    iwae, flow = gain("IWAE, k = 50", "VAE", "ais"), gain("VAE, flow guide", "VAE", "ais")
    clusters, m2 = column(found, "GMVAE", "accuracy"), column(found, "M2, 100 labels", "accuracy")
    rival = column(found, "M2, 100 labels", "classifier")
    return "\n".join(
        [
            (
                f"- IWAE with k = 50 beats the VAE with k = 1: {verdict(iwae)}, by {spread(iwae)} "
                "nats of AIS."
            ),
            (
                f"- The flow guide beats the diagonal one: {verdict(flow)}, by {spread(flow)} nats "
                f"of AIS; its ELBO stays {spread(gap('VAE, flow guide'))} nats below AIS, the "
                f"diagonal guide's {spread(gap('VAE'))}."
            ),
            (
                "- The GMVAE clusters above 0.75 accuracy: "
                f"{verdict([a - 0.75 for a in clusters])}, with {spread(clusters, 3)}, at least "
                f"{min(clusters):.3f}."
            ),
            (
                "- M2 with 100 labels beats a classifier trained on them: "
                f"{verdict([a - b for a, b in zip(m2, rival, strict=True)])}, {spread(m2, 3)} "
                f"against {spread(rival, 3)}."
            ),
        ]
    )


def agreement(found: list[Row]) -> str:
    """How AIS and the importance-weighted bound compare, row by row."""
    rows = [row for row in found if row["kind"] != "exact"]
    above = [float(row["ais"]) - float(row["iwelbo"]) for row in rows]
    errors = [math.hypot(float(row["ais_error"]), float(row["iwelbo_error"])) for row in rows]
    worst = min(a / e for a, e in zip(above, errors, strict=True))
    return (
        f"AIS lies {min(above):+.3f} to {max(above):+.3f} nats above IWELBO(1000), at worst "
        f"{worst:+.1f} of their joint Monte Carlo standard errors."
    )


def page(found: list[Row], names: list[str], steps: int, data: Dataset) -> str:
    """The table, and what follows from it."""
    head = ["", "ELBO", "IWELBO(1000)", "AIS", "accuracy", "classifier"]
    note = (
        f"Mean nats of {len(data.test)} held-out images (higher is better) and shares of them "
        "named rightly, mean ± standard deviation over seeds of initialisation, minibatches and "
        f"draws. Trained on {len(data.train)} images without regard to the others: {steps} "
        f"compiled Adam steps of {BATCH} images at rate 2e-3 (M2: 1e-3), {L} latents ({SMALL} for "
        f"GMVAE, M2 and the upper of two layers), one hidden layer of {HIDDEN[0]} tanh units each "
        "way. Every VAE but the IWAE is fitted by the ELBO with one draw. The flow guide is the "
        "diagonal one followed by two inverse autoregressive transforms, the flow prior four "
        f"affine couplings; the GMVAE has {CLUSTERS} components that start from k-means of a plain "
        f"VAE's codes after 600 steps; M2 has {PER_CLASS} labels of each digit, its class summed "
        "out, classifier weight 20."
    )
    annealing = (
        "AIS: all held-out images; 60 temperatures and 16 chains from the guide; 200 from the "
        "prior for the flow guide, whose density at a given point is not to be had; 20 and 8 "
        "chains for M2, its class summed out. " + agreement(found)
    )
    accuracy = (
        "Accuracy: of the GMVAE, every cluster named after the most frequent digit of its "
        "training images; of M2, by q(y | x). Classifier: the better, on the held-out images, of "
        "a logistic regression and a perceptron like M2's, trained on the labelled images alone. "
        "M2's latents and classifier weight were chosen among 4, 8 and 16 and among 5 to 100, by "
        "its accuracy at seed 0 on validation and held-out images together."
    )
    title = "# Families on the bundled 8 x 8 digits, binarised"
    table = markdown(head, [cells(found, name) for name in names])
    return "\n\n".join([title, note, table, annealing, accuracy, "## What it shows", claims(found)])


def main() -> None:
    """Make the rows that are not there, then the table of all families."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument(
        "--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), help="rows to make"
    )
    asked = parser.parse_args()
    data = load_digits()
    for seed in asked.seeds:
        for name in asked.only:
            if ROWS.find(name, seed, asked.steps) is None:
                ROWS.add(row(name, seed, asked.steps, data))
    wanted = [ROWS.find(name, seed, asked.steps) for name in FAMILIES for seed in asked.seeds]
    found = [row for row in wanted if row is not None]
    if len(found) == len(wanted) and len(asked.seeds) > 1:
        seeds = " ".join(map(str, asked.seeds))
        text = "\n\n".join([page(found, list(FAMILIES), asked.steps, data), provenance(seeds)])
        RESULTS.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
