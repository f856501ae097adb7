"""Parameters of programs are torch's own, and private to each program.

They are so whatever way the program is written.
"""

import copy
import math
import pickle
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import transforms
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm import Program, fit, log_weights
from ppl_dgm.conditionals.guides import FlowPosterior
from ppl_dgm.families import VAE

X = torch.tensor([0.3, -1.2, 2.0, 0.7, 1.1])


def normal_model(x: Tensor | None = None) -> None:
    """A normal with parameters of the program."""
    loc = pyro.param("loc", torch.tensor(0.5))
    scale = pyro.param("noise.scale", torch.tensor(2.0), constraint=constraints.positive)
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def school_model(x: Tensor | None = None) -> None:
    """A hierarchy with latents of both kinds, one of them constrained."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("data", 5 if x is None else len(x)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("x", dist.Normal(theta, 1.0), obs=x)


class Net(nn.Module):
    """A decoder with parameters and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(self.linear(z).reshape(-1, 1)).reshape(z.shape[:-1])


def module_model(net: nn.Module) -> Callable:
    """A model that registers a module by `pyro.module`."""

    def model(x: Tensor | None = None) -> None:
        pyro.module("decoder", net)
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(net(z.unsqueeze(-1)), 1.0), obs=x)

    return model


class PyroModel(PyroModule):
    """A model with a constrained parameter and a sampled one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = PyroParam(torch.tensor(2.0), constraint=constraints.positive)
        self.mean = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self, x: Tensor | None = None) -> None:
        mean, scale = self.mean, self.scale
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("x", dist.Normal(mean, scale), obs=x)


class PlainModel(nn.Module):
    """A model that is a torch module and knows nothing of Pyro's parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)


def names(program: Program) -> set[str]:
    return {name for name, _ in program.named_parameters()}


def store_is_empty() -> bool:
    return not list(pyro.get_param_store().keys())


# ---- the ways of writing a program ---------------------------------------------------------------


def test_pyro_param_names_values_and_constraints() -> None:
    program = Program(normal_model).initialise(X)
    assert names(program) == {"loc", "noise.scale"}
    assert program.get_parameter("noise.scale").item() == pytest.approx(math.log(2.0))
    trace = poutine.trace(program.model).get_trace(X)
    assert trace.nodes["noise.scale"]["value"].item() == pytest.approx(2.0)
    with torch.no_grad():
        program.get_parameter("noise.scale").fill_(0.0)
    trace = poutine.trace(program.model).get_trace(X)
    assert trace.nodes["noise.scale"]["value"].item() == pytest.approx(1.0)
    assert store_is_empty()


def test_pyro_module_parameters_and_buffers() -> None:
    net = Net()
    program = Program(module_model(net)).initialise(X)
    assert names(program) == {f"decoder.{name}" for name, _ in net.named_parameters()}
    assert {f"decoder.{name}" for name, _ in net.named_buffers()} == {
        name for name, _ in program.named_buffers()
    }
    assert program.get_parameter("decoder.linear.weight") is net.linear.weight
    assert store_is_empty()


def test_inspection_leaves_buffers_alone() -> None:
    net = Net()
    program = Program(module_model(net)).initialise(X)
    assert net.norm.num_batches_tracked == 0
    assert torch.equal(net.norm.running_mean, torch.zeros(1))
    assert program.training
    assert net.training


def test_pyro_module_with_param_and_sample() -> None:
    program = Program(PyroModel()).initialise(X)
    assert names(program) == {"model.scale_unconstrained"}
    assert [latent.name for latent in program.structure.latents] == ["mean"]
    assert program.structure.target == "dataset"
    assert store_is_empty()


def test_plain_module() -> None:
    module = PlainModel()
    program = Program(module).initialise(X)
    assert dict(program.named_parameters())["model.loc"] is module.loc
    assert store_is_empty()


AUTOGUIDES = {
    "AutoNormal": autoguide.AutoNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoLowRankMultivariateNormal": autoguide.AutoLowRankMultivariateNormal,
    "AutoIAFNormal": autoguide.AutoIAFNormal,
    "AutoDelta": autoguide.AutoDelta,
    "AutoStructured": autoguide.AutoStructured,
    "AutoGaussian": autoguide.AutoGaussian,
}


def guide_list(model: Callable) -> autoguide.AutoGuideList:
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(poutine.block(model, hide=["tau"])))
    guide.append(autoguide.AutoDelta(poutine.block(model, expose=["tau"])))
    return guide


@pytest.mark.parametrize("kind", [*AUTOGUIDES, "AutoGuideList"])
def test_autoguides_fit_and_propose(kind: str) -> None:
    guide = AUTOGUIDES[kind](school_model) if kind in AUTOGUIDES else guide_list(school_model)
    program = Program(school_model, guide).initialise(X)
    assert names(program)
    assert all(name.startswith("guide.") for name in names(program))
    assert {latent.name for latent in program.structure.model_latents} == {"mu", "tau", "theta"}
    weights = log_weights(program, X, num_particles=7, seed=0)
    assert weights.shape == (7,)
    assert bool(weights.isfinite().all())
    before = {name: value.detach().clone() for name, value in program.named_parameters()}
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(X)
    moved = {
        name for name, value in program.named_parameters() if not torch.equal(value, before[name])
    }
    assert moved
    assert store_is_empty()


def test_weights_under_an_autoguide_equal_its_own_density() -> None:
    """log w = log p(x, z) - log q(z), with q as the autoguide's base and Jacobian give it."""
    guide = autoguide.AutoMultivariateNormal(school_model)
    program = Program(school_model, guide).initialise(X)
    bound = program.bind(X)
    draw = bound.draw(4)
    point = draw.values["_AutoMultivariateNormal_latent"]
    scale_tril = guide.scale[:, None] * guide.scale_tril
    base = dist.MultivariateNormal(guide.loc, scale_tril=scale_tril).log_prob(point)
    log_tau = point[:, 1]
    assert torch.allclose(draw.values["tau"], log_tau.exp())
    assert torch.allclose(draw.log_prob, base - log_tau, atol=1e-5)


# ---- torch's view of a program -------------------------------------------------------------------


def test_state_dict_round_trip_without_pickle(tmp_path) -> None:
    program = Program(module_model(Net())).initialise(X)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(torch.randn_like(parameter))
    program.save(tmp_path / "program.pt")
    other = Program(module_model(Net())).initialise(X).load(tmp_path / "program.pt")
    assert other.state_dict().keys() == program.state_dict().keys()
    assert all(
        torch.equal(other.state_dict()[name], value) for name, value in program.state_dict().items()
    )
    assert (
        torch.load(tmp_path / "program.pt", weights_only=True).keys() == program.state_dict().keys()
    )


def test_load_keeps_constraints(tmp_path) -> None:
    program = Program(normal_model).initialise(X)
    with torch.no_grad():
        program.get_parameter("noise.scale").fill_(1.5)
    program.save(tmp_path / "p.pt")
    other = Program(normal_model).initialise(X).load(tmp_path / "p.pt")
    trace = poutine.trace(other.model).get_trace(X)
    assert trace.nodes["noise.scale"]["value"].item() == pytest.approx(math.exp(1.5))


def test_what_was_loaded_is_saved_again_without_a_run(tmp_path) -> None:
    """Parameters that are yet to be created are saved as they were read, and may be replaced."""
    program = Program(normal_model).initialise(X)
    program.save(tmp_path / "one.pt")
    with torch.no_grad():
        program.get_parameter("noise.scale").fill_(1.5)
    program.save(tmp_path / "two.pt")
    loaded = Program(normal_model).load(tmp_path / "one.pt").load(tmp_path / "two.pt")
    loaded.save(tmp_path / "again.pt")
    again = copy.deepcopy(Program(normal_model).load(tmp_path / "again.pt"))
    for found in (loaded.state_dict(), again.state_dict(), again.initialise(X).state_dict()):
        assert {name: value.tolist() for name, value in found.items()} == {
            name: value.tolist() for name, value in program.state_dict().items()
        }


def test_a_file_without_the_parameters_there_is_refused_at_once(tmp_path) -> None:
    Program(normal_model).initialise(X).save(tmp_path / "p.pt")
    with pytest.raises(ValueError, match=r"(?s)does not hold the parameters.*Missing key"):
        VAE(4, 2, hidden=[3]).load(tmp_path / "p.pt")


def test_save_is_atomic(tmp_path, monkeypatch) -> None:
    program = Program(normal_model).initialise(X)
    program.save(tmp_path / "p.pt")
    before = (tmp_path / "p.pt").read_bytes()

    def fail(state, file) -> None:
        file.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        program.save(tmp_path / "p.pt")
    assert (tmp_path / "p.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["p.pt"]


def test_double_moves_parameters_and_results() -> None:
    program = Program(normal_model).initialise(X).double()
    assert {p.dtype for p in program.parameters()} == {torch.float64}
    weights = log_weights(program, X.double(), num_particles=1)
    assert weights.dtype == torch.float64
    truth = torch.distributions.Normal(
        torch.tensor(0.5).double(), torch.tensor(2.0).double()
    ).log_prob(X.double())
    assert torch.allclose(weights[0], truth, atol=1e-6)


def test_moving_to_a_device_moves_everything() -> None:
    program = Program(module_model(Net())).initialise(X)
    program.to("meta")
    assert {p.device.type for p in program.parameters()} == {"meta"}
    assert {b.device.type for b in program.buffers()} == {"meta"}


@pytest.mark.parametrize(
    "make",
    [lambda: Program(normal_model), lambda: Program(PlainModel()), lambda: Program(PyroModel())],
)
def test_deepcopy_is_independent(make: Callable) -> None:
    program = make().initialise(X)
    twin = copy.deepcopy(program)
    before = log_weights(program, X, num_particles=3, seed=0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(log_weights(program, X, num_particles=3, seed=0), before)
    assert not torch.equal(log_weights(twin, X, num_particles=3, seed=0), before)


def flow_guide_program(make: Callable) -> Program:
    def model(x: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    return Program(model, make(model))


class FlowModel(nn.Module):
    """A flow as likelihood, evaluated by its inverse, and a weight recomputed from parts."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = transforms.affine_coupling(2, [4])
        self.decoder = nn.utils.parametrizations.weight_norm(nn.Linear(1, 2))

    def forward(self, x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            base = dist.Normal(self.decoder(z.unsqueeze(-1)), 1.0).to_event(1)
            pair = None if x is None else torch.stack([x, -x], -1)
            pyro.sample("x", dist.TransformedDistribution(base, [self.flow]), obs=pair)


FLOWS = {
    "AutoIAFNormal": lambda: flow_guide_program(
        lambda model: autoguide.AutoIAFNormal(model, num_transforms=2)
    ),
    "AutoNormalizingFlow": lambda: flow_guide_program(
        lambda model: autoguide.AutoNormalizingFlow(
            model,
            lambda size: transforms.ComposeTransformModule([transforms.affine_coupling(size, [4])]),
        )
    ),
    "likelihood": lambda: Program(FlowModel()),
    "conditioned": lambda: VAE(1, 2, [3], "gaussian", guide=FlowPosterior(2, "iaf")),
}


@pytest.mark.parametrize("name", FLOWS)
def test_deepcopy_of_flows_that_remember_their_last_run(name: str) -> None:
    x = X.unsqueeze(-1) if name == "conditioned" else X
    program = FLOWS[name]().initialise(x)
    Trace_ELBO().differentiable_loss(program.model, program.guide, x).backward()
    twin = copy.deepcopy(program)
    before = log_weights(program, x, num_particles=3, seed=0)
    assert torch.equal(log_weights(twin, x, num_particles=3, seed=0), before)
    loss = Trace_ELBO().differentiable_loss(twin.model, twin.guide, x)
    loss.backward()
    assert {id(p) for p in twin.parameters()}.isdisjoint({id(p) for p in program.parameters()})
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert torch.equal(log_weights(program, x, num_particles=3, seed=0), before)
    assert not torch.equal(log_weights(twin, x, num_particles=3, seed=0), before)


def test_deepcopy_keeps_what_is_one_tensor_one_tensor_and_takes_values_from_graphs() -> None:
    program = Program(normal_model).initialise(X)
    inside = program.get_parameter("loc") * 2
    program.remembered = [inside, inside]
    for twin in (copy.deepcopy(program), copy.deepcopy(program.model).scope):
        first, second = twin.remembered
        assert first is second
        assert first is not inside
        assert first.is_leaf
        assert first == inside
    assert program.remembered[0] is inside


def test_deepcopy_refuses_modules_that_a_function_holds() -> None:
    program = Program(module_model(Net())).initialise(X)
    with pytest.raises(ValueError, match=r"hold the modules \['decoder'\] themselves"):
        copy.deepcopy(program)


@pytest.mark.parametrize("make", [lambda: Program(normal_model), lambda: Program(PlainModel())])
def test_fitted_programs_can_be_pickled(make: Callable) -> None:
    program = make()
    fit(program, X, steps=2)
    program.sample(2)
    twin = pickle.loads(pickle.dumps(program))
    for both in (program, twin):
        fit(both, X, steps=2, seed=1)
    assert {id(p) for p in twin.parameters()}.isdisjoint({id(p) for p in program.parameters()})
    torch.testing.assert_close(twin.state_dict(), program.state_dict(), rtol=0, atol=0)
    first, second = (log_weights(both, X, num_particles=3, seed=0) for both in (program, twin))
    assert torch.equal(first, second)


def test_pickling_refuses_modules_that_a_function_holds() -> None:
    program = Program(module_model(Net())).initialise(X)
    with pytest.raises(ValueError, match=r"hold the modules \['decoder'\] themselves"):
        pickle.dumps(program)


def test_gradients_reach_the_parameters() -> None:
    program = Program(normal_model).initialise(X)
    program.bind(X).log_joint({}).total.sum().backward()
    loc, scale = 0.5, 2.0
    assert program.get_parameter("loc").grad.item() == pytest.approx(
        float((X - loc).sum()) / scale**2, rel=1e-5
    )
    expected = float(((X - loc) ** 2).sum()) / scale**2 - len(X)  # d/d log(scale)
    assert program.get_parameter("noise.scale").grad.item() == pytest.approx(expected, rel=1e-5)


# ---- isolation -----------------------------------------------------------------------------------


def test_programs_of_equal_names_do_not_touch_each_other() -> None:
    first, second = Program(normal_model).initialise(X), Program(normal_model).initialise(X)
    with torch.no_grad():
        first.get_parameter("loc").fill_(9.0)
    assert second.get_parameter("loc").item() == 0.5
    assert not torch.equal(log_weights(first, X), log_weights(second, X))


def test_the_global_store_is_neither_read_nor_written() -> None:
    with pyro.get_param_store().scope():
        pyro.param("loc", torch.tensor(-100.0))
        program = Program(normal_model).initialise(X)
        assert program.get_parameter("loc").item() == 0.5
        program.model(X)
        assert set(pyro.get_param_store().keys()) == {"loc"}
        assert pyro.param("loc").item() == -100.0


def test_the_global_store_survives_an_error_in_the_program() -> None:
    def model(x: Tensor) -> None:
        pyro.param("loc", torch.tensor(0.0))
        raise RuntimeError("boom")

    with pytest.raises(ValueError, match="failed on its first run.*boom"):
        Program(model).initialise(X)
    assert store_is_empty()


def test_a_failed_first_run_leaves_no_parameters() -> None:
    """Data of a wrong size do not shape the parameters that the right data will need."""

    def sized_guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    program = Program(module_model(Net()), sized_guide)
    with pytest.raises(ValueError, match="observes data of shape"):
        program.initialise(torch.zeros(4, 2))
    assert "loc" not in names(program)
    assert program.initialise(X).get_parameter("loc").shape == (5,)


def test_settings_are_restored() -> None:
    before = pyro.settings.get("module_local_params")
    Program(PyroModel()).initialise(X).model(X)
    assert pyro.settings.get("module_local_params") == before


def test_one_name_for_two_modules_is_an_error() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)

    def model(x: Tensor | None = None) -> None:
        pyro.module("net", first)
        pyro.module("net", second)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="'net'.*two different modules.*its own name"):
        Program(model).initialise(X)


def test_a_module_shared_by_model_and_guide_is_one() -> None:
    net = nn.Linear(1, 1)

    def model(x: Tensor | None = None) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(net(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

    def guide(x: Tensor | None = None) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x.unsqueeze(-1)).squeeze(-1), 1.0))

    assert names(Program(model, guide).initialise(X)) == {"net.weight", "net.bias"}


def test_a_parameter_created_on_a_later_call_is_an_error() -> None:
    late = []

    def model(x: Tensor | None = None) -> None:
        if late:
            pyro.param("late", torch.tensor(0.0))
        normal_model(x)

    program = Program(model).initialise(X)
    late.append(True)
    with pytest.raises(ValueError, match="'late' on a later call.*Create it unconditionally"):
        program.model(X)
    assert names(program) == {"loc", "noise.scale"}


# ---- Pyro takes the halves -----------------------------------------------------------------------


def latent_pair() -> tuple[Callable, Callable]:
    def model(x: Tensor | None = None) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5 if x is None else len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor | None = None) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("mean", dist.Normal(loc, scale))

    return model, guide


def test_svi_fits_the_halves() -> None:
    program = Program(*latent_pair()).initialise(X)
    svi = SVI(
        program.model,
        program.guide,
        pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}),
        Trace_ELBO(16, vectorize_particles=True),
    )
    for _ in range(250):
        svi.step(X)
    precision = 1 + len(X)
    assert program.get_parameter("loc").item() == pytest.approx(
        X.sum().item() / precision, abs=0.03
    )
    assert program.get_parameter("scale").exp().item() == pytest.approx(precision**-0.5, rel=0.05)
    assert store_is_empty()


def test_svi_before_the_first_run() -> None:
    program = Program(*latent_pair())
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(X)
    assert names(program) == {"loc", "scale"}
    svi.step(X)
    assert program.get_parameter("loc").item() != 0.0
    assert store_is_empty()


def test_elbo_modules_have_the_programs_parameters() -> None:
    program = Program(*latent_pair()).initialise(X)
    elbo = Trace_ELBO()(program.model, program.guide)
    assert {id(p) for p in elbo.parameters()} == {id(p) for p in program.parameters()}
    elbo(X).backward()
    assert all(p.grad is not None for p in program.parameters())


@pytest.mark.filterwarnings("ignore")
def test_nuts_takes_the_model() -> None:
    program = Program(latent_pair()[0]).initialise(X)
    mcmc = MCMC(NUTS(program.model), num_samples=200, warmup_steps=100, disable_progbar=True)
    mcmc.run(X)
    draws = mcmc.get_samples()["mean"]
    precision = 1 + len(X)
    assert draws.mean().item() == pytest.approx(
        X.sum().item() / precision, abs=5 * (precision * 60) ** -0.5
    )


def test_predictive_takes_both_halves() -> None:
    program = Program(*latent_pair()).initialise(X)
    with torch.no_grad():
        program.get_parameter("loc").fill_(7.0)
    draws = Predictive(program.model, guide=program.guide, num_samples=400)()
    assert draws["x"].shape == (400, 5)
    assert draws["mean"].mean().item() == pytest.approx(7.0, abs=4 / 20)
    assert draws["x"].mean().item() == pytest.approx(7.0, abs=4 / 20 + 4 / 2000**0.5)


def test_handlers_apply_to_the_halves() -> None:
    program = Program(*latent_pair()).initialise(X)
    held = poutine.condition(program.model, data={"mean": torch.tensor(2.0)})
    trace = poutine.trace(held).get_trace(X)
    truth = (
        dist.Normal(0.0, 1.0).log_prob(torch.tensor(2.0)) + dist.Normal(2.0, 1.0).log_prob(X).sum()
    )
    assert trace.log_prob_sum().item() == pytest.approx(truth.item(), rel=1e-6)
    replayed = poutine.replay(program.model, trace=poutine.trace(program.guide).get_trace(X))
    assert poutine.trace(replayed).get_trace(X).nodes["x"]["is_observed"]


def test_hidden_parameters_are_frozen_as_in_pyro() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(3.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(5.0))

    def guide() -> None:
        with poutine.block(hide_types=["param"]):
            loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Normal(loc, scale))

    program = Program(model, guide)
    fit(program, (), steps=20, progress=False, compile=False)
    assert program.get_parameter("loc").item() == 0.0
    assert program.get_parameter("scale").item() != 0.0
