"""Small Pyro programs of every kind that capture must handle: one dictionary of named constructors.

To add one: write a function that returns a `Case` and mark it with `@program`. Its loss must not
depend on anything but torch's generator, the parameters and the arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions import transforms as T
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model and guide, the loss that trains them, and their data."""

    model: Callable
    guide: Callable
    loss: ELBO
    args: tuple[Any, ...] = ()
    train: bool = field(default=True)


PROGRAMS: dict[str, Callable[[], Case]] = {}


def program(constructor: Callable[[], Case]) -> Callable[[], Case]:
    """Enter a constructor under its name."""
    PROGRAMS[constructor.__name__] = constructor
    return constructor


def no_guide(*_: Any) -> None:
    """The guide of a program without latents."""


def enumerating() -> TraceEnum_ELBO:
    return TraceEnum_ELBO(max_plate_nesting=1)


# ---- global latents, hand-written guides ---------------------------------------------------------

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean + scale * effect, ERRORS), obs=EFFECTS)


def schools_guide() -> None:
    positive = constraints.positive
    loc = pyro.param("loc", lambda: torch.tensor(0.0))
    spread = pyro.param("spread", lambda: torch.tensor(0.1), constraint=positive)
    pyro.sample("mean", dist.Normal(loc, spread))
    pyro.sample("scale", dist.LogNormal(pyro.param("log_scale", lambda: torch.tensor(0.0)), spread))
    locs = pyro.param("locs", lambda: torch.zeros(8))
    scales = pyro.param("scales", lambda: 0.1 * torch.ones(8), constraint=positive)
    with pyro.plate("schools", 8):
        pyro.sample("effect", dist.Normal(locs, scales))


@program
def eight_schools() -> Case:
    return Case(schools, schools_guide, Trace_ELBO())


@program
def particles_in_a_plate() -> Case:
    return Case(
        schools,
        schools_guide,
        Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
    )


@program
def particles_in_a_loop() -> Case:
    return Case(schools, schools_guide, Trace_ELBO(num_particles=2))


@program
def mean_field() -> Case:
    return Case(normal_model, normal_guide, TraceMeanField_ELBO(), (torch.randn(8),))


@program
def graph_of_reparameterised() -> Case:
    return Case(normal_model, normal_guide, TraceGraph_ELBO(), (torch.randn(8),))


def normal_model(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def normal_guide(x: Tensor) -> None:
    scale = pyro.param("q_scale", lambda: torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("loc", dist.Normal(pyro.param("q_loc", lambda: torch.tensor(0.0)), scale))


@program
def student_with_mask_and_scale() -> Case:
    mask = torch.arange(8) % 3 > 0

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 8), poutine.mask(mask=mask), poutine.scale(scale=2.0):
            pyro.sample("x", dist.StudentT(4.0, loc, 1.0), obs=x)

    return Case(model, normal_guide, Trace_ELBO(), (torch.randn(8),))


@program
def sequential_plate() -> Case:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", 5):
            pyro.sample(f"x_{i}", dist.Normal(loc, 1.0), obs=x[i])

    return Case(model, normal_guide, Trace_ELBO(), (torch.randn(5),))


@program
def factor_statement() -> Case:
    def model() -> None:
        z = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.factor("energy", -(z**4))

    return Case(model, lambda: normal_guide(torch.zeros(1)), Trace_ELBO())


@program
def constrained_parameters() -> Case:
    def model() -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(4)))
        chol = pyro.sample("chol", dist.LKJCholesky(3, 1.5))
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(weights[0] + share + rate, 1.0), obs=torch.tensor(1.0))
        pyro.sample(
            "y", dist.MultivariateNormal(torch.zeros(3), scale_tril=chol), obs=torch.ones(3)
        )

    def guide() -> None:
        simplex = pyro.param(
            "simplex", lambda: torch.full((4,), 0.25), constraint=constraints.simplex
        )
        inside = pyro.param(
            "inside", lambda: torch.tensor(0.3), constraint=constraints.interval(0.0, 2.0)
        )
        chol = pyro.param("cholesky", lambda: torch.eye(3), constraint=constraints.corr_cholesky)
        pyro.sample("weights", dist.Dirichlet(5 * simplex))
        pyro.sample("share", dist.Beta(1 + inside, 2.0))
        pyro.sample("rate", dist.Gamma(1 + inside, 1.0))
        pyro.sample("chol", dist.Delta(chol, event_dim=2))

    return Case(model, guide, Trace_ELBO())


@program
def aliased_parameter() -> Case:
    shared = nn.Parameter(torch.tensor(0.2))

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(pyro.param("prior_loc", shared), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("guide_loc", shared), 0.5))

    return Case(model, guide, Trace_ELBO(), (torch.randn(4),))


@program
def double_precision() -> Case:
    one = torch.ones((), dtype=torch.float64)

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0 * one, one))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, one), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("q_scale", lambda: 0.5 * one, constraint=constraints.positive)
        pyro.sample("loc", dist.Normal(pyro.param("q_loc", lambda: 0 * one), scale))

    return Case(model, guide, Trace_ELBO(), (torch.randn(6, dtype=torch.float64),))


@program
def distributions_made_before() -> Case:
    prior, noise = (
        dist.Normal(torch.tensor(0.0), torch.tensor(1.0)),
        dist.Categorical(probs=torch.tensor([0.2, 0.8])),
    )

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("label", noise, obs=(x > 0).long())
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    return Case(model, normal_guide, Trace_ELBO(), (torch.randn(4),))


# ---- autoguides ----------------------------------------------------------------------------------


def hierarchical(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc.sum(-1), scale), obs=x)


def autoguided(make: Callable[..., Any]) -> Callable[[], Case]:
    return lambda: Case(hierarchical, make(hierarchical), Trace_ELBO(), (torch.randn(10),))


PROGRAMS["auto_delta"] = autoguided(AutoDelta)
PROGRAMS["auto_normal"] = autoguided(AutoNormal)
PROGRAMS["auto_diagonal"] = autoguided(AutoDiagonalNormal)
PROGRAMS["auto_multivariate"] = autoguided(AutoMultivariateNormal)
PROGRAMS["auto_low_rank"] = autoguided(lambda model: AutoLowRankMultivariateNormal(model, rank=1))
PROGRAMS["auto_iaf"] = autoguided(lambda model: AutoIAFNormal(model, hidden_dim=[8]))
PROGRAMS["auto_gaussian"] = autoguided(AutoGaussian)
PROGRAMS["auto_structured"] = autoguided(
    lambda model: AutoStructured(
        model, conditionals={"scale": "normal", "loc": "mvn"}, dependencies={}
    )
)


@program
def auto_normal_mean_field() -> Case:
    return Case(hierarchical, AutoNormal(hierarchical), TraceMeanField_ELBO(), (torch.randn(10),))


@program
def location_scale_reparameterised() -> Case:
    def model(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            loc = pyro.sample("loc", dist.Normal(0.0, scale))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    model = poutine.reparam(model, config={"loc": LocScaleReparam(0.0)})
    return Case(model, AutoNormal(model), Trace_ELBO(), (torch.randn(6),))


# ---- plates, subsampling, nets -------------------------------------------------------------------

FEATURES = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
RESPONSES = FEATURES @ torch.tensor([1.0, -1.0, 0.5])


def weights_guide(*_: Any) -> None:
    loc = pyro.param("w_loc", lambda: torch.zeros(3))
    scale = pyro.param("w_scale", lambda: torch.ones(3), constraint=constraints.positive)
    pyro.sample("w", dist.Normal(loc, scale).to_event(1))


@program
def subsampling_inside() -> Case:
    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 40, subsample_size=10) as index:
            pyro.sample("x", dist.Normal(FEATURES[index] @ w, 0.5), obs=RESPONSES[index])

    return Case(model, weights_guide, Trace_ELBO())


@program
def subsampling_by_arguments() -> Case:
    def model(features: Tensor, y: Tensor, index: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 40, subsample=index):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(features @ w + z, 0.5), obs=y)

    def guide(features: Tensor, y: Tensor, index: Tensor) -> None:
        weights_guide()
        with pyro.plate("data", 40, subsample=index):
            pyro.sample(
                "z", dist.Normal(pyro.param("z_loc", lambda: torch.zeros(40), event_dim=0), 1.0)
            )

    index = torch.arange(10) * 3
    return Case(model, guide, Trace_ELBO(), (FEATURES[index], RESPONSES[index], index))


@program
def logistic_regression() -> Case:
    def model(features: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("x", dist.Bernoulli(logits=features @ w), obs=y)

    return Case(model, AutoNormal(model), Trace_ELBO(), (FEATURES, (RESPONSES > 0).float()))


@program
def nested_plates() -> Case:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3, dim=-2):
            row = pyro.sample("row", dist.Normal(loc, 1.0))
            with pyro.plate("columns", 4, dim=-1):
                pyro.sample("x", dist.Normal(row, 1.0), obs=x)

    return Case(model, AutoNormal(model), Trace_ELBO(), (torch.randn(3, 4),))


class Autoencoder:
    """A tiny VAE as two functions; `inner` goes into its decoder."""

    def __init__(self, *inner: nn.Module) -> None:
        self.encoder = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
        normed = any(
            isinstance(module, nn.BatchNorm1d) for module in inner
        )  # then a bias would have no gradient
        self.decoder = nn.Sequential(
            nn.Linear(2, 5, bias=not normed), *inner, nn.Tanh(), nn.Linear(5, 6)
        )

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def case(self, loss: ELBO | None = None, train: bool = True) -> Case:
        return Case(
            self.model, self.guide, loss or Trace_ELBO(), ((torch.rand(7, 6) < 0.5).float(),), train
        )


@program
def vae() -> Case:
    return Autoencoder().case()


@program
def vae_with_analytic_kl() -> Case:
    return Autoencoder().case(TraceMeanField_ELBO())


@program
def dropout() -> Case:
    return Autoencoder(nn.Dropout(0.3)).case()


@program
def batch_norm() -> Case:
    return Autoencoder(nn.BatchNorm1d(5)).case()


@program
def batch_norm_in_evaluation() -> Case:
    return Autoencoder(nn.BatchNorm1d(5)).case(train=False)


@program
def convolution_and_layer_norm() -> Case:
    net = nn.Sequential(
        nn.Conv1d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 6)
    )

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x[:, None]), 1.0).to_event(1), obs=x)

    return Case(model, no_guide, Trace_ELBO(), (torch.randn(5, 6),))


@program
def recurrent() -> Case:
    net = nn.GRU(1, 4, batch_first=True)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        states, _ = net(x[..., None])
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(states.mean(-1), 1.0).to_event(1), obs=x)

    return Case(model, no_guide, Trace_ELBO(), (torch.randn(5, 6),))


class Regression(PyroModule):
    """A Bayesian neural net in Pyro's module style."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = PyroModule[nn.Linear](3, 4)
        self.hidden.weight = PyroSample(dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
        self.output = PyroModule[nn.Linear](4, 1)
        self.noise = PyroParam(torch.tensor(0.5), constraint=constraints.positive)

    def forward(self, features: Tensor, y: Tensor | None = None) -> Tensor:
        mean = self.output(torch.tanh(self.hidden(features))).squeeze(-1)
        with pyro.plate("data", len(features)):
            return pyro.sample("x", dist.Normal(mean, self.noise), obs=y)


@program
def bayesian_net() -> Case:
    model = Regression()
    return Case(model, AutoNormal(model), Trace_ELBO(), (FEATURES, RESPONSES))


# ---- discrete latents ----------------------------------------------------------------------------


@program
def mixture_enumerated() -> Case:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("components", 3):
            locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    return Case(
        model, AutoNormal(poutine.block(model, hide=["z"])), enumerating(), (torch.randn(20),)
    )


@program
def hidden_markov() -> Case:
    def model(x: Tensor) -> None:
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", x.shape[1], dim=-1):
            z: Any = 0
            for t in pyro.markov(range(x.shape[0])):
                z = pyro.sample(
                    f"z_{t}", dist.Categorical(rows[z]), infer={"enumerate": "parallel"}
                )
                pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])

    guide = AutoDelta(poutine.block(model, expose=["rows", "locs"]))
    return Case(model, guide, enumerating(), (torch.randn(4, 5),))


def labels_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        pyro.sample("x", dist.Normal(z.float(), 1.0), obs=x)


def labels_guide(infer: dict[str, Any]) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        start = torch.tensor([0.5, 0.3, 0.2]).repeat(len(x), 1)
        probs = pyro.param("probs", lambda: start, constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(probs), infer=infer)

    return guide


@program
def guide_enumerated() -> Case:
    return Case(
        labels_model, labels_guide({"enumerate": "parallel"}), enumerating(), (torch.randn(6),)
    )


@program
def guide_enumerated_in_sequence() -> Case:
    return Case(
        labels_model, labels_guide({"enumerate": "sequential"}), enumerating(), (torch.randn(1),)
    )


@program
def reinforce() -> Case:
    return Case(labels_model, labels_guide({}), Trace_ELBO(), (torch.randn(6),))


@program
def reinforce_over_a_graph() -> Case:
    return Case(labels_model, labels_guide({}), TraceGraph_ELBO(), (torch.randn(6),))


@program
def reinforce_with_baseline() -> Case:
    def guide(x: Tensor) -> None:
        baseline = {"baseline_value": pyro.param("baseline", lambda: torch.zeros(6))}
        labels_guide({"baseline": baseline})(x)

    return Case(labels_model, guide, TraceGraph_ELBO(), (torch.randn(6),))


@program
def relaxed_labels() -> Case:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", dist.RelaxedOneHotCategorical(torch.tensor(0.7), torch.ones(3) / 3)
            )
            pyro.sample("x", dist.Normal(z @ torch.arange(3.0), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", lambda: torch.zeros(6, 3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=logits))

    return Case(model, guide, Trace_ELBO(), (torch.randn(6),))


# ---- flows ---------------------------------------------------------------------------------------


def flow(
    make: Callable[[], Any], bijector: Callable[[Any], Any] = lambda transform: transform
) -> Callable[[], Case]:
    def construct() -> Case:
        transform = make()

        def model(x: Tensor) -> None:
            pyro.module("transform", transform)
            with pyro.plate("data", len(x)):
                base = dist.Normal(torch.arange(4.0), 1.0).to_event(1)
                pyro.sample("x", dist.TransformedDistribution(base, [bijector(transform)]), obs=x)

        return Case(model, no_guide, Trace_ELBO(), (torch.randn(8, 4),))

    return construct


PROGRAMS["flow_affine_coupling"] = flow(lambda: T.affine_coupling(4, hidden_dims=[5]))
PROGRAMS["flow_affine_autoregressive"] = flow(
    lambda: T.affine_autoregressive(4, hidden_dims=[8]), lambda transform: transform.inv
)
PROGRAMS["flow_spline"] = flow(lambda: T.Spline(4, count_bins=4))
PROGRAMS["flow_spline_autoregressive"] = flow(
    lambda: T.spline_autoregressive(4, hidden_dims=[8], count_bins=4),
    lambda transform: transform.inv,
)
PROGRAMS["flow_householder"] = flow(lambda: T.householder(4))
PROGRAMS["flow_matrix_exponential"] = flow(lambda: T.matrix_exponential(4))


@program
def flow_planar_guide() -> Case:
    transform = T.planar(2)

    def guide(x: Tensor) -> None:
        pyro.module("transform", transform)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("loc", dist.TransformedDistribution(base, [transform]))
        pyro.sample("scale", dist.LogNormal(pyro.param("s", lambda: torch.tensor(0.0)), 0.1))

    return Case(hierarchical, guide, Trace_ELBO(), (torch.randn(10),))
