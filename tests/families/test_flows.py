"""Flows: fits of data of any scale, noise and back, contexts, bases, bad input."""

import itertools
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from torch import Tensor, nn
from torch.distributions import (
    CatTransform,
    CumulativeDistributionTransform,
    ExpTransform,
    StackTransform,
)

from ppl_dgm import Program, evidence, fit
from ppl_dgm.data.densities import pinwheel
from ppl_dgm.families import (
    FFJORD,
    IAF,
    MADE,
    MAF,
    NICE,
    NSF,
    AffineFlow,
    Flow,
    MixtureCDFFlow,
    PlanarFlow,
    RadialFlow,
    RealNVP,
    likelihoods,
)
from ppl_dgm.transforms import (
    ActNorm,
    Continuous,
    Coupling,
    FlowDistribution,
    Inverse,
    MaskedAutoregressive,
    Planar,
)

FLOWS: dict[str, Callable[[int], Flow]] = {
    "planar": lambda size: PlanarFlow(size, length=4),
    "nice": lambda size: NICE(size, hidden=[16]),
    "realnvp": lambda size: RealNVP(size, hidden=[16]),
    "maf": lambda size: MAF(size, 2, hidden=[16]),
    "iaf": lambda size: IAF(size, 2, hidden=[16]),
    "nsf": lambda size: NSF(size, 2, hidden=[16]),
    "ffjord": lambda size: FFJORD(size, 1, [16], 3),
    "radial": lambda size: RadialFlow(size, 4),
    "affine": AffineFlow,
    "mixture cdf": lambda size: MixtureCDFFlow(size, 3),
    "coupling nsf": lambda size: NSF(size, 2, hidden=[16], layers="coupling"),
}

NUMERICAL = {"planar", "ffjord", "mixture cdf"}  # inverses


def noise(size: int) -> dist.Independent:
    return dist.Normal(torch.zeros(size), 1.0).to_event(1)


def wide(num: int = 300) -> Tensor:
    """Correlated data of mean 100 and sd 30."""
    x = torch.randn(num, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] += x[:, 0].square() / 2
    return 100 + 30 * (x - x.mean(0)) / x.std(0)


@pytest.mark.parametrize("name", FLOWS)
def test_wide_data_are_fitted_and_carried_to_noise_and_back(name: str) -> None:
    torch.manual_seed(0)
    flow, x = FLOWS[name](3), wide()
    best_normal = dist.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x).mean()
    diagonal = dist.Normal(x.mean(0), x.std(0)).to_event(1).log_prob(x).mean()
    assert flow.density == "exact"
    rate = lambda parameters: torch.optim.Adam(parameters, 5e-3)  # noqa: E731
    fit(flow, x, steps=60, optimizer=rate, seed=0, compile=False, progress=False)
    found = evidence.auto(flow, x)
    assert found.bound == "exact"
    assert found.log_z.mean() > min(diagonal, best_normal) - 0.1
    density = flow.distribution().log_prob(x)
    assert torch.allclose(found.log_z.float(), density, atol=1e-3)
    for given, tolerance in ((x, 1e-5), (x.double(), 1e-10)):
        z = flow.to(given.dtype).latents(given)
        error = (flow.from_latents(z) - given).abs().max() / x.abs().max()
        assert z.shape == x.shape
        assert error < tolerance * (100 if name in NUMERICAL else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_dimension_is_normalised_in_its_own_units(dtype: torch.dtype) -> None:
    unit = torch.tensor([1e5, 1e-6, 1e-3, 0.0], dtype=dtype)
    x = (1e6 * (unit > 1) + 0.1 * (unit == 0)) + unit * torch.randn(3000, 4, dtype=dtype)
    z = MAF(4, 2, hidden=[8]).to(dtype).start(x).latents(x)
    assert torch.allclose(z.std(0), (unit > 0).to(dtype), atol=0.2)
    assert z.mean(0).abs().max() < 0.2


@pytest.mark.parametrize("name", FLOWS)
def test_draws_have_the_moments_of_the_data(name: str) -> None:
    torch.manual_seed(0)
    flow, x = FLOWS[name](3), wide()
    flow.initialise(x)
    draws = flow.sample(2000)
    assert (draws.mean(0) - x.mean(0)).abs().max() < 15
    assert (draws.std(0) / x.std(0)).log().abs().max() < 0.5


def test_the_gaussian_autoregressive_net_is_a_masked_autoregressive_flow() -> None:
    torch.manual_seed(0)
    likelihood = likelihoods.Gaussian(learned="net")
    made, x = MADE(3, [8], likelihood).double(), torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        law = likelihood(made.model.fn.net(x))  # type: ignore[union-attr]
        log_scale = -7 * (law.scale.log() / 7).atanh()
        step = MaskedAutoregressive(3, hidden=[8])
        flow = Flow(noise(3), [Inverse(step)]).double()
        step.net = Given(torch.stack([-law.loc / law.scale, log_scale], -1))
        found = flow.distribution().log_prob(x)
    assert torch.allclose(found, evidence.Exact()(made, x).log_z, atol=1e-10)


@pytest.mark.parametrize("size", [2, 4])
def test_no_coupling_of_nice_keeps_what_the_one_before_keeps(size: int) -> None:
    for seed in range(8):
        steps = NICE(size, 9, [4], seed=seed).parts.transforms()[:-1]
        kept = [step.kept.tolist() for step in steps]
        assert len(kept) == 9
        assert all(before != after for before, after in itertools.pairwise(kept))


def test_additive_couplings_start_away_from_the_identity() -> None:
    """There the slopes of symmetric data vanish: fits of eight normals stayed at one."""
    torch.manual_seed(0)
    z = torch.randn(500, 2)
    moves = [(flow.from_latents(z) - z).std() for flow in (NICE(2, 8), RealNVP(2, 8))]
    assert moves[0] > 0.03 > moves[1]


def test_flows_of_distribution_functions_are_mixtures() -> None:
    torch.manual_seed(0)
    flow = MixtureCDFFlow(2, 3).double()
    step, x = flow.parts.transforms()[0].bijection, 3 * torch.randn(50, 2, dtype=torch.float64)
    with torch.no_grad():
        logits, loc, raw, affine = step.params.split([3, 3, 3, 2], -1)
        affine.zero_()
        scale = (7 * (raw / 7).tanh()).exp()
        parts = dist.Logistic(loc, scale).log_prob(x.unsqueeze(-1))
        expected = (logits.log_softmax(-1) + parts).logsumexp(-1).sum(-1)
        assert torch.allclose(flow.distribution().log_prob(x), expected, atol=1e-10)


def test_an_affine_flow_is_a_normal_distribution() -> None:
    torch.manual_seed(0)
    flow = AffineFlow(3).double()
    x = torch.randn(50, 3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        loc = flow.from_latents(torch.zeros(1, 3, dtype=torch.float64))
        weight = (flow.from_latents(torch.eye(3, dtype=torch.float64)) - loc).T
        normal = dist.MultivariateNormal(loc[0], weight @ weight.T)
        assert torch.allclose(flow.distribution().log_prob(x), normal.log_prob(x), atol=1e-10)


class Given(nn.Module):
    """A net whose outputs are known."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.outputs


def test_noise_carries_the_divergence() -> None:
    """KL(data || model) = KL(noise of the data || base), for data from a known density."""
    torch.manual_seed(0)
    truth, flow = MAF(2, 2, [16]).double(), RealNVP(2, 2, [16]).double()
    x = truth.sample(500)
    flow.start(x)
    log_truth, log_model = (f.distribution().log_prob(x) for f in (truth, flow))
    z = flow.latents(x)
    jacobians = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda v: flow.latents(v.unsqueeze(0))[0], row)
            for row in x
        ]
    )
    log_noise = log_truth - torch.linalg.slogdet(jacobians)[1]
    base = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1).log_prob(z)
    assert torch.allclose(log_truth - log_model, log_noise - base, atol=1e-8)


def test_transforms_of_pyro_and_torch_are_welcome() -> None:
    coupling = T.affine_coupling(2, [8])
    affine = T.AffineTransform(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    flow = Flow(noise(2), [coupling, T.spline(2), affine]).double()
    assert {id(p) for p in coupling.parameters()} < {id(p) for p in flow.parameters()}
    x = torch.randn(5, 2, dtype=torch.float64)
    before = evidence.Exact()(flow, x).log_z
    with torch.no_grad():
        coupling.nn.layers[-1].bias.add_(0.5)
    after = evidence.Exact()(flow, x).log_z
    assert (after - before).abs().max() > 1e-3
    assert torch.allclose(flow.from_latents(flow.latents(x)), x, atol=1e-6)
    assert flow.sample(3).dtype == torch.float64


@pytest.mark.parametrize("seed", [1, 3])
def test_splines_take_minibatches_of_data_beyond_their_ends(seed: int) -> None:
    torch.manual_seed(0)
    x = pinwheel().sample((5000,))
    torch.manual_seed(seed)
    assert NSF(2, 3, layers="coupling").bind(x).structure.divisible


@pytest.mark.parametrize("stable", [False, True])
def test_pyros_autoregressive_transform_is_inverted_in_double(stable: bool) -> None:
    torch.manual_seed(0)
    flow = Flow(noise(3), [T.affine_autoregressive(3, [8], stable=stable)]).double()
    z = torch.randn(5, 3).double()
    x = flow.from_latents(z)
    assert torch.allclose(flow.latents(x), z, atol=1e-12)
    assert torch.allclose(flow.distribution().log_prob(x), evidence.Exact()(flow, x).log_z)
    with pytest.raises(ValueError, match="cannot map events \\[3\\]"):
        Flow(noise(3), [T.generalized_channel_permute()])


def test_a_base_is_a_distribution_or_a_module() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.ones(2))

        def forward(self) -> dist.Independent:
            return dist.Normal(self.loc, 1.0).to_event(1)

    flow = Flow(Learned(), [Coupling(2)])
    assert "model.base.loc" in dict(flow.named_parameters())
    box = Flow(dist.Uniform(torch.zeros(2), torch.ones(2)).to_event(1), [ActNorm((2,))]).double()
    assert torch.equal(
        evidence.Exact()(box, torch.full((1, 2), 0.5).double()).log_z, torch.zeros(1)
    )


def test_contexts_bend_the_density_and_travel_in_minibatches() -> None:
    torch.manual_seed(0)
    context = torch.randn(400, 1)
    x = torch.cat([3 * context, -context], -1) + 0.1 * torch.randn(400, 2)
    flow = RealNVP(2, 4, [32], num_context=1)
    rate = lambda parameters: torch.optim.Adam(parameters, 1e-2)  # noqa: E731
    options = {"optimizer": rate, "seed": 0, "compile": False, "progress": False}
    fit(flow, {"x": x, "context": context}, steps=300, batch_size=100, **options)
    draws = flow.sample(200, context=torch.tensor([[1.0], [-1.0]]))
    assert draws.shape == (200, 2, 2)
    assert (draws.mean(0) - torch.tensor([[3.0, -1.0], [-3.0, 1.0]])).abs().max() < 0.3
    assert flow.latents(x, context).abs().mean() < 1.2
    shuffled = flow.distribution(context.flip(0)).log_prob(x).mean()
    assert flow.distribution(context).log_prob(x).mean() > shuffled + 5


@pytest.mark.parametrize(
    "make", [lambda: RealNVP(3, 2, [4], num_context=4), lambda: FFJORD(3, 1, [4], 2, num_context=4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contexts_may_be_whole_numbers(make: Callable[[], Flow], dtype: torch.dtype) -> None:
    """As `one_hot` makes them of classes."""
    torch.manual_seed(0)
    flow, x = make().to(dtype), torch.randn(5, 3, dtype=dtype)
    labels = nn.functional.one_hot(torch.tensor([0, 3, 1, 1, 2]))
    for context in (labels, labels > 0):
        options = {"steps": 1, "seed": 0, "compile": False, "progress": False}
        fit(flow, {"x": x, "context": context}, **options)
        found = evidence.auto(flow, x, context).log_z
        assert torch.equal(found, evidence.auto(flow, x, labels.to(dtype)).log_z)
        assert flow.sample(2, context=context).dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_compiled_fits_equal_eager_ones(name: str) -> None:
    compiled_as_eager(FLOWS[name])


@pytest.mark.slow
def test_a_compiled_fit_equals_an_eager_one() -> None:
    compiled_as_eager(lambda size: RealNVP(size, 2, [8]))


def compiled_as_eager(make: Callable[[int], Flow]) -> None:
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        options = {"steps": 10, "batch_size": 50, "seed": 0, "progress": False}
        found = fit(make(3), wide(200), compile=compiled, **options)
        losses.append(found.history["objective"])
    assert torch.allclose(losses[0], losses[1], rtol=1e-3)


@pytest.mark.slow
def test_deep_couplings_stay_finite() -> None:
    torch.manual_seed(0)
    flow, x = RealNVP(2, 32, [32]), 5 * torch.randn(500, 2)
    x[::10] *= 10  # outliers
    rate = lambda parameters: torch.optim.Adam(parameters, 5e-3)  # noqa: E731
    options = {"optimizer": rate, "seed": 0, "compile": False, "progress": False}
    result = fit(flow, x, steps=2000, batch_size=100, **options)
    assert bool(torch.isfinite(result.history["objective"]).all())
    assert bool(torch.isfinite(flow.sample(1000)).all())
    assert bool(torch.isfinite(evidence.Exact()(flow, x).log_z).all())


BAD = {
    "size": (lambda: PlanarFlow(0), ValueError, "at least 1.*got \\[0\\]"),
    "length": (lambda: MAF(2, length=0), ValueError, "length is 0"),
    "one dimension": (lambda: RealNVP(1), ValueError, "at least 2 dimensions"),
    "steps": (lambda: FFJORD(2, num_steps=0), ValueError, "num_steps is 0"),
    "trace": (
        lambda: FFJORD(2, trace="hutch"),  # type: ignore[arg-type]
        ValueError,
        "'exact', 'hutchinson'",
    ),
    "layers": (
        lambda: NSF(2, layers="planar"),  # type: ignore[arg-type]
        ValueError,
        "'autoregressive', 'coupling'",
    ),
    "base": (lambda: Flow(3, []), TypeError, "base is a int"),  # type: ignore[arg-type]
    "batch": (
        lambda: Flow(dist.Normal(torch.zeros(2), 1.0), []),
        ValueError,
        "write base.to_event\\(1\\)",
    ),
    "discrete base": (
        lambda: Flow(dist.Poisson(torch.ones(2)).to_event(1), [ActNorm((2,))]),
        ValueError,
        "the base is discrete.* Dequantised",
    ),
    "chain": (
        lambda: Flow(noise(2), [Coupling(2), Coupling(3)]),
        ValueError,
        "transform 1, Coupling, maps events \\[3\\] but is given events \\[2\\]",
    ),
    "parts of another number": (
        lambda: Flow(noise(3), [CatTransform([ExpTransform(), ExpTransform()], dim=-1)]),
        ValueError,
        "transform 0, CatTransform, cannot map events \\[3\\]",
    ),
    "a stack, whose log-determinants torch does not add": (
        lambda: Flow(noise(2), [StackTransform([ExpTransform(), ExpTransform()], dim=-1)]),
        ValueError,
        "log-determinants of shape \\[2\\] for an event \\[2\\]; .*CatTransform",
    ),
    "no rows of context": (
        lambda: MAF(2, num_context=3).sample(5, context=torch.zeros(0, 3)),
        ValueError,
        "expected a context at least, got shape \\[0, 3\\]",
    ),
    "no inverse at a context": (
        lambda: evidence.Exact()(
            Flow(noise(2), [T.conditional_planar(2, 1)]), torch.zeros(3, 2), torch.zeros(3, 1)
        ),
        ValueError,
        "ConditionedPlanar has no inverse.* ppl_dgm.transforms have one",
    ),
    "no inverse": (lambda: Flow(noise(2), [T.planar(2)]), ValueError, "has no inverse"),
    "inverse of a module": (
        lambda: Flow(noise(2), [T.affine_autoregressive(2).inv]),
        ValueError,
        "transforms.Inverse",
    ),
    "data": (
        lambda: RealNVP(2).initialise(torch.zeros(5, 3)),
        ValueError,
        "expected data \\['N', 2\\], got \\[5, 3\\]",
    ),
    "noise": (lambda: RealNVP(2).from_latents(torch.zeros(2)), ValueError, "expected noise"),
    "no context": (
        lambda: RealNVP(2, num_context=3).initialise(torch.zeros(5, 2)),
        ValueError,
        "needs a context \\[..., 3\\], got none",
    ),
    "context of another size": (
        lambda: MAF(2, num_context=3).latents(torch.zeros(5, 2), torch.zeros(5, 4)),
        ValueError,
        "got shape \\[5, 4\\]",
    ),
    "context of another length": (
        lambda: MAF(2, num_context=3).initialise(torch.zeros(5, 2), torch.zeros(4, 3)),
        ValueError,
        "a context for each of 5 data, got 4",
    ),
    "a context of one dimension": (
        lambda: MAF(2, num_context=3).sample(5, context=torch.zeros(3)),
        ValueError,
        "expected contexts \\[N, num_context\\], got shape \\[3\\]",
    ),
    "a context of one dimension for as many data": (
        lambda: MAF(2, num_context=3).latents(torch.zeros(3, 2), torch.zeros(3)),
        ValueError,
        "context.expand\\(N, -1\\)",
    ),
    "a context too many": (
        lambda: MAF(2).latents(torch.zeros(5, 2), torch.zeros(5, 3)),
        ValueError,
        "made without a context",
    ),
    "outside of a bounded base": (
        lambda: evidence.Exact()(
            Flow(dist.Uniform(torch.zeros(2), torch.ones(2)).to_event(1), [Planar(2)]),
            torch.full((2, 2), 50.0),
        ),
        ValueError,
        "support Image of .*Interval",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()


def test_a_flow_is_a_program() -> None:
    assert isinstance(RealNVP(2), Program)


def test_fits_do_not_depend_on_the_units_of_the_data() -> None:
    """Steps of Adam are of a size, whatever the data's."""
    x, found = wide(100).double(), []
    for units in (1.0, 1e-3):
        torch.manual_seed(0)
        flow = RealNVP(3, 2, [8]).double()
        rate = lambda parameters: torch.optim.Adam(parameters, 1e-2)  # noqa: E731
        fit(flow, units * x, steps=20, optimizer=rate, seed=0, compile=False, progress=False)
        found.append(flow.distribution().log_prob(units * x).mean() + 3 * math.log(units))
    assert found[1].item() == pytest.approx(found[0].item(), abs=1e-3)


def continuous(num_steps: int, steep: float) -> tuple[Flow, Tensor]:
    """A continuous flow of a random field, and data."""
    torch.manual_seed(0)
    flow, x = FFJORD(2, 1, [16], num_steps), torch.randn(40, 2)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(steep)
    return flow.start(x), x


def test_too_few_steps_through_time_are_told() -> None:
    """The map folds: its density integrates to 1.1."""
    flow, x = continuous(1, 20.0)
    found = evidence.Exact()(flow, x)
    assert any("has no inverse at" in warning for warning in found.warnings)
    with pytest.raises(ValueError, match="more num_steps"):
        flow.sample(2)


@pytest.mark.parametrize("flow", [dist.TransformedDistribution, FlowDistribution])
def test_guides_whose_flow_folds_are_refused(flow: Callable) -> None:
    """They are scored with less than their density, in which evidence is too high."""
    torch.manual_seed(0)
    field = Continuous(1, [8], num_steps=1)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(30)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 2.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("field", field)
        with pyro.plate("data", len(x)):
            pyro.sample("z", flow(noise(1), [field]))

    with pytest.raises(ValueError, match="lead back to other noise"):
        evidence.ImportanceSampling(100)(Program(model, guide), torch.zeros(3))


def test_steep_fields_with_an_inverse_are_inverted() -> None:
    flow, x = continuous(1, 6.0)
    assert evidence.Exact()(flow, x).reliable
    flow, z = flow.double(), torch.randn(40, 2).double()
    assert (flow.latents(flow.from_latents(z)) - z).abs().max() < 1e-8


def test_a_series_that_ends_early_is_no_inverse() -> None:
    """Pyro's exponential of a matrix has the determinant of the whole series."""
    torch.manual_seed(0)
    flow = Flow(noise(3), [T.matrix_exponential(3)])
    x = flow.sample(20)
    assert evidence.Exact()(flow, x).reliable
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(2 * torch.randn_like(parameter))
    found = evidence.Exact()(flow, x)
    assert any("MatrixExponential" in warning for warning in found.warnings)


@pytest.mark.parametrize("composed", [False, True])
def test_flows_through_the_uniform_follow_to_double(composed: bool) -> None:
    normal, gumbel = dist.Normal(0.0, 1.0), dist.Gumbel(1.0, 2.0)
    steps = [
        CumulativeDistributionTransform(normal),
        CumulativeDistributionTransform(gumbel).inv,
    ]
    flow = Flow(noise(3), [T.ComposeTransform(steps)] if composed else steps).double()
    x = flow.sample(5)
    truth = dist.Gumbel(torch.tensor(1.0).double(), 2.0).log_prob(x).sum(-1)
    assert torch.allclose(evidence.Exact()(flow, x).log_z, truth, atol=1e-8)


def test_data_that_are_not_finite_start_nothing() -> None:
    flow = RealNVP(2, 2, [4])
    for number in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="1 of the data's numbers are NaN or infinite"):
            evidence.Exact()(flow, torch.tensor([[0.0, 1.0], [number, 2.0]]))
    z = flow.start(torch.randn(5, 2)).latents(torch.zeros(1, 2))
    assert bool(torch.isfinite(z).all())


def test_a_bounded_base_is_started_beyond_its_bounds() -> None:
    """Its error is that of data outside of a support."""
    box = Flow(dist.Uniform(torch.zeros(2), torch.ones(2)).to_event(1), [ActNorm((2,))])
    x = torch.linspace(0.1, 0.9, 10).reshape(5, 2)
    with pytest.raises(ValueError, match="outside the support"):
        evidence.Exact()(box, x)


def test_noise_and_contexts_get_the_dtype_of_the_parameters() -> None:
    flow, context = RealNVP(2, 2, [4], num_context=1), torch.zeros(3, 1).double()
    x = flow.from_latents(torch.randn(3, 2).double(), context)
    assert flow.latents(x.double(), context).dtype is torch.float32
