"""Log densities of particles against direct evaluation: plates, masks, scales, subsampling."""

import math
from collections.abc import Callable
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import autoguide
from torch import Tensor
from torch.distributions import Normal

from ppl_dgm import Program

X = torch.tensor([0.3, -1.2, 2.0, 0.7, 1.1, -0.4])
MASK = torch.tensor([True, False, True, True, False, True])
P = 5


def normal(value: Tensor, loc: Tensor | float, scale: float = 1.0) -> Tensor:
    return Normal(torch.as_tensor(loc), scale).log_prob(value)


def local_pair(wrap_model: Callable = lambda f: f, wrap_guide: Callable = lambda f: f) -> Program:
    """z_i ~ N(0, 1), x_i ~ N(z_i, 1), q(z_i) = N(x_i / 2, 0.8), each half wrapped."""

    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    return Program(wrap_model(model), wrap_guide(guide))


def assert_parts(
    program: Program, prior: Callable, likelihood: Callable, guide: Callable, *data: Tensor
) -> Tensor:
    """Compare the three log densities of draws with functions of the draws; return the scale."""
    bound = program.bind(*data)
    draw = bound.draw(P)
    joint = bound.log_joint(draw.values)
    assert torch.allclose(joint.prior, prior(draw.values), atol=1e-4)
    assert torch.allclose(joint.likelihood, likelihood(draw.values), atol=1e-4)
    assert torch.allclose(draw.log_prob, guide(draw.values), atol=1e-4)
    assert torch.allclose(bound.log_guide(draw.values), draw.log_prob, atol=1e-5)
    return torch.as_tensor(joint.scale)


# ---- plates --------------------------------------------------------------------------------------


def test_local_latents() -> None:
    scale = assert_parts(
        local_pair(),
        lambda v: normal(v["z"], 0.0),
        lambda v: normal(X, v["z"]),
        lambda v: normal(v["z"], X / 2, 0.8),
        X,
    )
    assert scale == 1


def several_latents() -> Program:
    """Two local latents, one a vector, the second depending on the first."""

    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            b = pyro.sample("b", dist.LogNormal(a.sum(-1), 1.0))
            pyro.sample("x", dist.Normal(a[..., 0], b), obs=x)

    return Program(model)


def test_several_latents() -> None:
    def prior(v: dict) -> Tensor:
        return normal(v["a"], 0.0).sum(-1) + torch.distributions.LogNormal(
            v["a"].sum(-1), 1.0
        ).log_prob(v["b"])

    program = several_latents()
    assert_parts(program, prior, lambda v: Normal(v["a"][..., 0], v["b"]).log_prob(X), prior, X)
    values = program.bind(X).draw(P).values
    assert values["a"].shape == (P, 6, 2)
    assert values["b"].shape == (P, 6)


def test_global_and_local_latents() -> None:
    def model(x: Tensor | None = None) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def prior(v: dict) -> Tensor:
        return normal(v["mu"], 0.0) + normal(v["z"], v["mu"][:, None]).sum(-1)

    program = Program(model)
    assert_parts(program, prior, lambda v: normal(X, v["z"]).sum(-1), prior, X)
    assert program.structure.target == "dataset"
    assert {latent.name: latent.local for latent in program.structure.latents} == {
        "mu": False,
        "z": True,
    }


def test_nested_plates() -> None:
    """A plate of three repeats inside the data plate: latents and observations `[3, data]`."""
    y = torch.randn(6, 3)

    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("repeats", 3, dim=-2):
                w = pyro.sample("w", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(w, 0.5), obs=x.mT)

    def prior(v: dict) -> Tensor:
        return normal(v["z"], 0.0) + normal(v["w"], v["z"][:, None]).sum(1)

    program = Program(model)
    assert_parts(program, prior, lambda v: normal(y.T, v["w"], 0.5).sum(1), prior, y)
    assert program.bind(y).draw(P).values["w"].shape == (P, 3, 6)
    assert program.structure.per_datum


def test_a_plate_beside_the_data() -> None:
    """Components' latents in a plate of their own, outside the data plate."""

    def model(x: Tensor | None = None) -> None:
        with pyro.plate("parts", 2, dim=-2):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(loc.sum(-2), 1.0), obs=x)

    def prior(v: dict) -> Tensor:
        return normal(v["loc"], 0.0).flatten(1).sum(-1)

    program = Program(model)
    assert_parts(
        program, prior, lambda v: normal(X, v["loc"].sum((-1, -2))[:, None]).sum(-1), prior, X
    )


def test_sequential_inner_plate() -> None:
    """A Python loop over steps inside the data plate."""

    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = torch.zeros(())
            for t in pyro.plate("steps", 3):
                z = pyro.sample(f"z{t}", dist.Normal(z, 1.0))
                pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])

    y = torch.randn(6, 3)

    def prior(v: dict) -> Tensor:
        return normal(v["z0"], 0.0) + normal(v["z1"], v["z0"]) + normal(v["z2"], v["z1"])

    def likelihood(v: dict) -> Tensor:
        return sum(normal(y[:, t], v[f"z{t}"]) for t in range(3))

    program = Program(model, site="x0")
    assert_parts(program, prior, likelihood, prior, y)


def test_sequential_data_plate() -> None:
    """A Python loop over the data still has one evidence for each."""

    def model(x: Tensor | None = None) -> None:
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])

    def stack(term: Callable) -> Callable:
        return lambda v: torch.stack([term(v[f"z{i}"], X[i]) for i in range(6)], -1)

    program = Program(model, site="x0")
    prior = stack(lambda z, x: normal(z, 0.0))
    assert_parts(program, prior, stack(lambda z, x: normal(x, z)), prior, X)
    assert program.bind(X).num_data == 6
    assert not program.structure.divisible  # its sites have the data's names


def test_no_data_plate() -> None:
    def model(x: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z * torch.ones(6), 1.0).to_event(1), obs=x)

    prior = lambda v: torch.distributions.Gamma(2.0, 1.0).log_prob(v["z"])  # noqa: E731
    assert_parts(Program(model), prior, lambda v: normal(X, v["z"][:, None]).sum(-1), prior, X)


def test_auxiliary_latents_of_a_guide() -> None:
    """log w counts the auxiliary variable's density and the point mass's none."""

    def model(x: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor | None = None) -> None:
        u = pyro.sample("u", dist.Normal(0.3, 0.7), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u.exp(), log_density=-u))

    assert_parts(
        Program(model, guide),
        lambda v: torch.distributions.LogNormal(0.0, 1.0).log_prob(v["z"]),
        lambda v: normal(X, v["z"][:, None]).sum(-1),
        lambda v: normal(v["u"], 0.3, 0.7) - v["u"],
        X,
    )


def test_auxiliary_latents_that_no_density_accounts_for_are_refused() -> None:
    """Their weights p(x, z) / (q(a) q(z | a)) average to infinity: nothing integrates over a."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(a, 1.0))

    with pytest.raises(
        ValueError,
        match=r"auxiliary variables \['a'\] are 1 numbers.*dist.Delta are 0.*in the model too",
    ):
        Program(model, guide).bind(X)


@pytest.mark.parametrize("infer", [{}, {"enumerate": "parallel"}], ids=["drawn", "summed out"])
def test_loops_over_a_random_part_of_the_data_hold_no_latents(infer: dict) -> None:
    def model(x: Tensor) -> None:
        for i in pyro.plate("data", len(x), subsample_size=2):
            z = pyro.sample(f"z{i}", dist.Bernoulli(0.3), infer=infer)
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])

    with pytest.raises(
        ValueError, match="in a Python loop over a random part of the plate 'data'.*subsample_size"
    ):
        Program(model).bind(X)


@pytest.mark.parametrize("num_particles", [6, 4])
def test_a_joint_guide_of_local_latents_has_one_weight_for_all_data(num_particles: int) -> None:
    """An autoguide of one vector for all data: its density is not a sum over data."""

    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = autoguide.AutoMultivariateNormal(model, init_scale=0.8)
    program = Program(model, guide)
    bound = program.bind(X)
    assert bound.structure.target == "dataset"
    draw = bound.draw(num_particles)
    z = draw.values["z"]
    joint = (normal(z, 0.0) + normal(X, z)).sum(-1)
    density = dist.MultivariateNormal(
        guide.loc, scale_tril=guide.scale[:, None] * guide.scale_tril
    ).log_prob(z)
    assert torch.allclose(bound.log_joint(draw.values).total, joint, atol=1e-4)
    assert torch.allclose(draw.log_prob, density, atol=1e-4)


def test_an_autoguide_of_independent_local_latents_has_one_weight_for_each_datum() -> None:
    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = autoguide.AutoNormal(model, init_scale=0.8)
    program = Program(model, guide)
    draw = program.bind(X).draw(P)
    assert program.structure.target == "datum"
    log_z = draw.values["z"].log()
    assert torch.allclose(draw.log_prob, normal(log_z, guide.locs.z, 0.8) - log_z, atol=1e-4)


def test_factors_are_part_of_the_likelihood() -> None:
    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("energy", -(z**4))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    prior = lambda v: normal(v["z"], 0.0)  # noqa: E731
    program = Program(model)
    assert_parts(program, prior, lambda v: normal(X, v["z"]) - v["z"] ** 4, prior, X)
    assert program.density == "unnormalised"


def test_a_factor_outside_the_data_plate_belongs_to_the_data_set() -> None:
    """It counts once, not once for each datum."""

    def model(x: Tensor | None = None) -> None:
        pyro.factor("penalty", torch.tensor(-7.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    program = Program(model)
    joint = program.bind(X).log_joint({})
    assert program.structure.target == "dataset"
    assert joint.total.item() == pytest.approx(normal(X, 0.0).sum().item() - 7, rel=1e-6)


def test_factors_of_a_guide_are_part_of_what_is_fitted_alone() -> None:
    def guide(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.8))
            pyro.factor("correction", 0.1 * z, has_rsample=True)

    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    program = Program(model, guide)
    assert_parts(
        program,
        lambda v: normal(v["z"], 0.0),
        lambda v: normal(X, v["z"]),
        lambda v: normal(v["z"], X / 2, 0.8),
        X,
    )
    fitted = replace(program.bind(X), keeps_guide_factors=True)
    draw = fitted.draw(P)
    expected = normal(draw.values["z"], X / 2, 0.8) + 0.1 * draw.values["z"]
    assert torch.allclose(draw.log_prob, expected, atol=1e-6)
    assert [latent.name for latent in program.structure.latents] == ["z"]


def test_double_precision() -> None:
    program = local_pair()
    x = X.double()
    draw = program.bind(x).draw(P)
    assert draw.values["z"].dtype == torch.float64
    assert program.bind(x).log_joint(draw.values).likelihood.dtype == torch.float64


# ---- masks ---------------------------------------------------------------------------------------


def test_masked_observations() -> None:
    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=MASK[: len(x)]):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    prior = lambda v: normal(v["z"], 0.0)  # noqa: E731
    assert_parts(Program(model), prior, lambda v: normal(X, v["z"]) * MASK, prior, X)


def test_masked_latents_and_observations() -> None:
    """Series of different lengths: a masked step has neither latent nor datum."""
    y, mask = torch.randn(4, 3), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = torch.zeros(())
            for t in range(3):
                with poutine.mask(mask=mask[:, t]):
                    z = pyro.sample(f"z{t}", dist.Normal(z, 1.0))
                    pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def prior(v: dict) -> Tensor:
        before = {0: torch.zeros(()), 1: v["z0"], 2: v["z1"]}
        return sum(normal(v[f"z{t}"], before[t]) * mask[:, t] for t in range(3))

    def likelihood(v: dict) -> Tensor:
        return sum(normal(y[:, t], v[f"z{t}"]) * mask[:, t] for t in range(3))

    assert_parts(Program(model, site="x0"), prior, likelihood, prior, y, mask)


def test_a_mask_of_all_data_that_the_program_closes_over() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=MASK):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    prior = lambda v: normal(v["z"], 0.0) * MASK  # noqa: E731
    assert_parts(Program(model), prior, lambda v: normal(X, v["z"]) * MASK, prior, X)


@pytest.mark.parametrize("where", ["handler", "distribution", "entries"])
def test_masked_data_are_not_counted_and_tell_data_apart(where: str) -> None:
    x, seen = torch.randn(4, 3), torch.tensor([True, False, True, True])

    def model(x: Tensor, seen: Tensor | None) -> None:
        fn = dist.Normal(torch.zeros(3), 1.0)
        with pyro.plate("data", len(x)):
            if seen is None:
                pyro.sample("x", fn.to_event(1), obs=x)
            elif where == "handler":
                with poutine.mask(mask=seen):
                    pyro.sample("x", fn.to_event(1), obs=x)
            elif where == "distribution":
                pyro.sample("x", fn.expand([len(x), 3]).to_event(1).mask(seen), obs=x)
            else:
                pyro.sample("x", fn.expand([len(x), 3]).mask(seen[:, None]).to_event(1), obs=x)

    whole, part = Program(model).bind(x, None), Program(model).bind(x, seen)
    assert (whole.num_dims, part.num_dims) == (12, 9)
    other = Program(model).bind(x, seen.flip(0))
    hidden = torch.where(seen[:, None], x, 7.0)
    assert len({whole.digest, part.digest, other.digest}) == 3
    assert Program(model).bind(hidden, seen).digest == part.digest


def test_missing_entries_of_a_vector() -> None:
    y, seen = torch.randn(6, 3), torch.rand(6, 3) < 0.5

    def model(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(z.unsqueeze(-1), torch.ones(3)).mask(seen).to_event(1), obs=x
            )

    prior = lambda v: normal(v["z"], 0.0)  # noqa: E731
    likelihood = lambda v: (normal(y, v["z"].unsqueeze(-1)) * seen).sum(-1)  # noqa: E731
    assert_parts(Program(model), prior, likelihood, prior, y, seen)


# ---- scales --------------------------------------------------------------------------------------


def test_a_common_scale_is_taken_out() -> None:
    wrap = poutine.scale(scale=10.0)
    scale = assert_parts(
        local_pair(wrap, wrap),
        lambda v: normal(v["z"], 0.0),
        lambda v: normal(X, v["z"]),
        lambda v: normal(v["z"], X / 2, 0.8),
        X,
    )
    assert scale == 10


def test_a_scale_of_the_model_alone_is_an_exponent() -> None:
    wrap = poutine.scale(scale=3.0)
    scale = assert_parts(
        local_pair(wrap),
        lambda v: 3 * normal(v["z"], 0.0),
        lambda v: 3 * normal(X, v["z"]),
        lambda v: normal(v["z"], X / 2, 0.8),
        X,
    )
    assert scale == 1


def test_a_scaled_likelihood_is_an_exponent() -> None:
    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=0.25):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    prior = lambda v: normal(v["z"], 0.0)  # noqa: E731
    scale = assert_parts(Program(model), prior, lambda v: 0.25 * normal(X, v["z"]), prior, X)
    assert scale == 1


def test_scaled_latents_are_an_exponent() -> None:
    """KL annealing by `poutine.scale` around the latents of both halves.

    So log w = log p(x|z) + 0.1 (log p - log q).
    """

    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=0.1):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    assert_parts(
        Program(model, guide),
        lambda v: 0.1 * normal(v["z"], 0.0),
        lambda v: normal(X, v["z"]),
        lambda v: 0.1 * normal(v["z"], X / 2, 0.8),
        X,
    )


def test_scales_beside_global_latents_stay() -> None:
    """A minibatch scale counts the data of a global latent several times.

    The density is log p(z) + 10 log p(x | z).
    """

    def model(x: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), poutine.scale(scale=10.0):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    prior = lambda v: normal(v["z"], 0.0)  # noqa: E731
    scale = assert_parts(
        Program(model), prior, lambda v: 10 * normal(X, v["z"][:, None]).sum(-1), prior, X
    )
    assert scale == 1


def test_scales_datum_by_datum() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    wrap = poutine.scale(scale=weights)
    scale = assert_parts(
        local_pair(wrap, wrap),
        lambda v: normal(v["z"], 0.0),
        lambda v: normal(X, v["z"]),
        lambda v: normal(v["z"], X / 2, 0.8),
        X,
    )
    assert torch.equal(scale, weights)


# ---- subsampling ---------------------------------------------------------------------------------


def subsampled(local: bool) -> Program:
    """A plate that draws two of the six data itself."""

    def model(x: Tensor | None = None) -> None:
        z = None if local else pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0)) if local else z
            pyro.deterministic("seen", x[index].expand(z.shape) if local else x[index])
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    return Program(model)


def test_subsampled_local_latents() -> None:
    bound = subsampled(True).bind(X)
    draw = bound.draw(P)
    seen = X[draw.values["data"]]
    joint = bound.log_joint(draw.values)
    assert joint.scale == 3
    assert torch.allclose(joint.likelihood, normal(seen, draw.values["z"]), atol=1e-5)
    assert torch.allclose(joint.prior - draw.log_prob, torch.zeros(P, 2), atol=1e-5)


def test_subsampled_data_of_a_global_latent() -> None:
    bound = subsampled(False).bind(X)
    draw = bound.draw(P)
    seen = X[draw.values["data"]]
    joint = bound.log_joint(draw.values)
    assert torch.allclose(
        joint.likelihood, 3 * normal(seen, draw.values["z"][:, None]).sum(-1), atol=1e-4
    )
    assert torch.allclose(joint.prior, normal(draw.values["z"], 0.0), atol=1e-5)


def test_subsampling_is_unbiased_over_indices() -> None:
    bound = subsampled(False).bind(X)
    z = torch.zeros(1)
    values = [
        bound.log_joint({"z": z, "data": bound.draw(1).values["data"]}).likelihood
        for _ in range(600)
    ]
    found = torch.cat(values)
    truth = normal(X, 0.0).sum()
    assert abs(found.mean() - truth) < 4 * found.std() / math.sqrt(600)


def test_model_and_guide_see_the_same_subsample() -> None:
    """A local guide at the exact posterior of the drawn data has constant weights."""

    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x: Tensor | None = None) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as index:
            pyro.sample("z", dist.Normal(x[index] / 2, math.sqrt(0.5)))

    bound = Program(model, guide).bind(X)
    draw = bound.draw(P)
    weights = bound.log_joint(draw.values).total - draw.log_prob
    truth = normal(X[draw.values["data"]], 0.0, math.sqrt(2.0))
    assert torch.allclose(weights, truth.expand(P, 2), atol=1e-4)


@pytest.mark.parametrize("num_particles", [1, 2, 6])
def test_any_number_of_particles(num_particles: int) -> None:
    """Numbers that coincide with those of the data or of one are no special case."""
    bound = local_pair().bind(X)
    draw = bound.draw(num_particles)
    assert draw.values["z"].shape == (num_particles, 6)
    assert torch.allclose(
        bound.log_joint(draw.values).likelihood, normal(X, draw.values["z"]), atol=1e-5
    )
