"""Model families and data that `ppl-dgm compare` uses.

The families are fitted to digits with binary and with grey pixels.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch.optim import Adam

from ppl_dgm.comparison import compare
from ppl_dgm.compile import CompileMode
from ppl_dgm.conditionals.likelihoods import Bernoulli, Gaussian, Likelihood
from ppl_dgm.data import Dataset, load_digits
from ppl_dgm.evidence import AIS, Evidence, Exact, over_noise
from ppl_dgm.families import MADE, MAF, PPCA, VAE, IndependentBernoulli, Mixture
from ppl_dgm.fitting import EarlyStopping, Fit, fit
from ppl_dgm.objectives import ELBO, IWELBO, Objective
from ppl_dgm.program import Program
from ppl_dgm.program.seeding import seeded
from ppl_dgm.report import Section

__all__ = ["STUDIES", "Budget", "run_study"]

BATCH_SIZE = 100
NUM_LATENTS = 8
HIDDEN = (128,)
NUM_CHAINS = 32  # of annealed importance sampling; half as many are too low by .02 nats per datum
NORMAL = partial(Gaussian, 0.3, learned="net")  # a mean and a scale for each pixel


@dataclass(frozen=True)
class Budget:
    """Computational budget of a study.

    It sets the temperatures of annealed importance sampling, the largest number of epochs, and
    whether to compile.
    """

    temperatures: int = 28
    max_epochs: int | None = None
    compile: CompileMode = "auto"

    def quick(self) -> "Budget":
        """Enough to see that everything works."""
        return replace(
            self, temperatures=min(self.temperatures, 10), max_epochs=min(self.max_epochs or 2, 2)
        )

    def epochs(self, wanted: int) -> int:
        """Epochs of a fit that would like so many."""
        return min(wanted, self.max_epochs or wanted)


@dataclass(frozen=True)
class Learning:
    """Settings of a fit by gradient steps.

    `patience` is the number of validations without gain before the fit stops.
    """

    objective: Callable[[], Objective] = ELBO
    epochs: int = 100
    learning_rate: float = 3e-3
    patience: int = 15

    def __call__(self, program: Program, data: Dataset, budget: Budget, seed: int) -> Fit:
        """Fit a program to the training split with early stopping.

        The validation split decides when to stop.
        """
        return fit(
            program,
            data.train,
            self.objective(),
            epochs=budget.epochs(self.epochs),
            batch_size=BATCH_SIZE,
            optimizer=partial(Adam, lr=self.learning_rate),
            valid=data.valid,
            callbacks=[EarlyStopping(self.patience)],
            seed=seed,
            compile=budget.compile,
        )


@dataclass(frozen=True)
class Entry:
    """One program of a study: its construction and training.

    `make` builds the program, given a seed, and perhaps fits it without steps. `learn` is the
    training beyond that.
    """

    name: str
    make: Callable[[Dataset, int], Program]
    learn: Learning | None = None


@dataclass(frozen=True)
class Study:
    """Programs to be compared on the same data.

    Where the data carry noise, the programs are tested with several draws of it.
    """

    title: str
    note: str
    load: Callable[[int], Dataset]  # given the seed of the noise
    entries: tuple[Entry, ...] = field(repr=False)
    num_noises: int = 1


def run_study(study: Study, budget: Budget, seeds: Sequence[int]) -> Section:
    """Fit all programs and estimate their evidence on test data.

    The first seed's are the section's; those of others tell the spread over trainings.
    """
    data, *others = (study.load(noise) for noise in range(study.num_noises))
    tests = [one.test for one in (data, *others)]
    programs: dict[str, Program] = {}
    fits: dict[str, Fit] = {}
    results: dict[str, Evidence] = {}
    refits: dict[str, list[Evidence]] = {}
    for entry in study.entries:
        for seed in seeds:
            which = f", seed {seed}" if len(seeds) > 1 else ""
            print(f"{study.title}: {entry.name}{which}", file=sys.stderr)
            with seeded(seed, apart=False):
                program = entry.make(data.train, seed)
            fitted = entry.learn(program, data, budget, seed) if entry.learn else None
            found = [held_out_evidence(program, test, budget, seeds[0]) for test in tests]
            evidence = over_noise(found) if others else found[0]
            if entry.name in results:
                refits.setdefault(entry.name, []).append(evidence)
                continue
            programs[entry.name], results[entry.name] = program, evidence
            fits |= {entry.name: fitted} if fitted else {}
    table = compare(results, log_offset=data.test.log_offset, fits=fits, refits=refits)
    return Section(study.title, table, study.note, fits, programs, data.test)


def held_out_evidence(program: Program, test: Dataset, budget: Budget, seed: int) -> Evidence:
    """Estimate the evidence of a program on test data.

    It is exact where the density is. Otherwise it comes from annealed importance sampling, from the
    guide to the posterior of each datum.
    """
    exact = not program.initialise(test.x).structure.latents or isinstance(program, PPCA)
    estimator = (
        Exact()
        if exact
        else AIS(budget.temperatures, NUM_CHAINS, start="guide", compile=budget.compile)
    )
    return estimator(program, test.x, seed=seed)


def vae(likelihood: Callable[[], Likelihood]) -> Callable[[Dataset, int], Program]:
    """Makes a VAE."""
    return lambda train, seed: VAE(train.num_dims, NUM_LATENTS, HIDDEN, likelihood())


def em_mixture(
    num_components: int, components: str, regularisation: float | None
) -> Callable[[Dataset, int], Program]:
    """Makes a mixture fitted by expectation maximisation."""

    def make(train: Dataset, seed: int) -> Program:
        mixture = Mixture(train.num_dims, num_components, components)
        mixture.fit_em(train.x, regularisation=regularisation, seed=seed)
        return mixture

    return make


BINARY = Study(
    "Binary digits",
    "8 x 8 pixels, on where the grey value is 8 or more of 16; fitted to 1197 digits, early "
    "stopping on 200, evidence on 400 held out.",
    lambda noise: load_digits(),
    (
        Entry(
            "independent pixels",
            lambda train, seed: IndependentBernoulli(train.num_dims).fit_counts(train.x),
        ),
        Entry("mixture of 40 Bernoullis", em_mixture(40, "bernoulli", None)),
        Entry("MADE", lambda train, seed: MADE(train.num_dims, (256,)), Learning(ELBO, 100)),
        Entry("VAE", vae(Bernoulli), Learning(ELBO, 120)),
        Entry("VAE by IWELBO", vae(Bernoulli), Learning(partial(IWELBO, 50, gradient="dreg"), 200)),
    ),
)

GREY = Study(
    "Grey digits",
    "17 shades k, dequantised to (k + u) / 17 with u uniform: densities, stated for the original "
    "shades, and thereby on average lower bounds of their log-probability, over two draws of u. "
    "Gaussian families, PPCA among them, have no place on binary pixels: a density cannot be "
    "compared with a probability.",
    lambda noise: load_digits(levels=17).dequantise(seed=noise),
    (
        Entry("independent Gaussians", em_mixture(1, "diagonal", None)),
        Entry("PPCA", lambda train, seed: PPCA(train.num_dims, 24).fit_closed_form(train.x)),
        Entry("mixture of 10 Gaussians", em_mixture(10, "full", 1e-3)),
        Entry(
            "MADE",
            lambda train, seed: MADE(train.num_dims, (256,), NORMAL()),
            Learning(ELBO, 80, 2e-3),
        ),
        Entry(
            "MAF", lambda train, seed: MAF(train.num_dims, 5, (128,)), Learning(ELBO, 40, 2e-3, 10)
        ),
        Entry("VAE", vae(NORMAL), Learning(ELBO, 100, 2e-3)),
    ),
    num_noises=2,
)

STUDIES = {"binary": BINARY, "grey": GREY}
