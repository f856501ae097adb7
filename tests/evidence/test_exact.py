"""Exact evidence against marginal distributions, enumeration and a Kalman filter."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program
from ppl_dgm.evidence import Exact
from ppl_dgm.evidence.degree import degree_in


def test_no_latents():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Gamma(2.0, 1.5), obs=x)

    x = torch.rand(5) + 0.1
    result = Exact()(Program(model), x)
    assert torch.allclose(result.log_z, dist.Gamma(2.0, 1.5).log_prob(x).double(), atol=1e-6)
    assert (result.target, result.num_dims) == ("datum", 5)


@pytest.mark.parametrize("marked", [True, False])
def test_finite_latents_are_summed_out_marked_or_not(marked):
    infer = {"enumerate": "parallel"} if marked else {}

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8])), infer=infer)
            b = pyro.sample("b", dist.Bernoulli(0.3 + 0.4 * k), infer=infer)
            pyro.sample("x", dist.Normal(2 * k - b, 1.0), obs=x)

    x = torch.randn(6)
    terms = []
    for k, p in ((0.0, 0.2), (1.0, 0.8)):
        for b in (0.0, 1.0):
            weight = torch.tensor(p) * (0.3 + 0.4 * k if b else 0.7 - 0.4 * k)
            terms.append(weight.log() + dist.Normal(2 * k - b, 1.0).log_prob(x))
    assert torch.allclose(
        Exact()(Program(model), x).log_z, torch.stack(terms).logsumexp(0).double(), atol=1e-5
    )


def test_linear_regression_with_global_latents():
    design, y = torch.randn(12, 2, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    one, zero = torch.tensor(1.0, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)

    def model(design, y):
        weight = pyro.sample("weight", dist.Normal(zero, 2 * one).to_event(1))
        bias = pyro.sample("bias", dist.Normal(0 * one, one))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(design @ weight + bias, 0.5 * one), obs=y)

    result = Exact()(Program(model), design, y)
    eye = torch.eye(12, dtype=torch.float64)
    marginal = dist.MultivariateNormal(
        torch.zeros(12).double(), 4 * design @ design.T + 1 + 0.25 * eye
    )
    assert result.target == "dataset"
    assert result.log_z.item() == pytest.approx(marginal.log_prob(y).item(), abs=1e-8)


def test_state_space_model_matches_the_filter():
    y = torch.randn(7)

    def model(y):
        state = pyro.sample("z0", dist.Normal(0.0, 1.0))
        for t in range(7):
            if t:
                state = pyro.sample(f"z{t}", dist.Normal(0.9 * state, 0.5))
            pyro.sample(f"y{t}", dist.Normal(state, 0.8), obs=y[t])

    mean, variance, log_z = 0.0, 1.0, 0.0
    for t in range(7):
        if t:
            mean, variance = 0.9 * mean, 0.81 * variance + 0.25
        log_z += dist.Normal(mean, (variance + 0.64) ** 0.5).log_prob(y[t]).item()
        gain = variance / (variance + 0.64)
        mean, variance = mean + gain * (y[t].item() - mean), (1 - gain) * variance
    assert Exact()(Program(model), y).log_z.item() == pytest.approx(log_z, abs=1e-4)


def test_exact_does_not_depend_on_the_pieces_of_data():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x = torch.randn(12)
    whole, pieces = Exact()(Program(model), x), Exact(memory=2000)(Program(model), x)
    assert torch.allclose(whole.log_z, pieces.log_z, atol=1e-6)
    assert whole.digest == pieces.digest


@pytest.mark.parametrize(
    "observe",
    [
        lambda z: dist.Normal(z**3, 1.0),
        lambda z: dist.Normal(0.0, z.exp()),
        lambda z: dist.StudentT(3.0, z, 1.0),
    ],
    ids=["cubic mean", "variance", "heavy tail"],
)
def test_what_is_not_linear_gaussian_is_refused(observe):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", observe(z), obs=x)

    with pytest.raises(ValueError, match="use ImportanceSampling"):
        Exact()(Program(model), torch.randn(5))


def test_dropout_is_off_during_evidence():
    net = torch.nn.Sequential(torch.nn.Linear(1, 50), torch.nn.Dropout(0.5), torch.nn.Linear(50, 1))

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(torch.ones(1)).squeeze(-1), 1.0), obs=x)

    program, x = Program(model), torch.randn(4)
    results = [Exact()(program, x) for _ in range(2)]
    assert torch.equal(results[0].log_z, results[1].log_z)
    assert net.training


def test_log_normal_data_of_a_gaussian_mean():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("x", dist.LogNormal(z, 1.0), obs=x)

    x = torch.tensor(1.5, dtype=torch.float64)
    result = Exact()(Program(model), x)
    torch.testing.assert_close(result.log_z, dist.LogNormal(0.0, 2**0.5).log_prob(x).double())
    assert result.bound == "exact"


def test_a_masked_datum_with_its_latent_has_evidence_one():
    def model(x):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=torch.tensor([True, False])):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    result = Exact()(Program(model), torch.zeros(2))
    truth = torch.stack([dist.Normal(0.0, 2**0.5).log_prob(torch.zeros(())), torch.zeros(())])
    torch.testing.assert_close(result.log_z, truth.double())


A = torch.tensor([[1.0, 0.5, 0.2], [0.0, 2.0, -1.0], [0.3, 0.0, 1.5]], dtype=torch.float64)
LAST = torch.tensor([2, 0])

# Means that a Gaussian latent z of three dimensions may have, as polynomials in it.
AFFINE = {
    "product": lambda z: A @ z + 1,
    "linear layer": lambda z: torch.nn.functional.linear(z, A, A[0]),
    "einsum": lambda z: torch.einsum("ij,j->i", A, z),
    "sum": lambda z: z.sum() - 2 * z.mean() + z[1],
    "chosen by a constant": lambda z: torch.where(A[0] > 0.4, z, -z),
    "indexed by a constant": lambda z: z[LAST].repeat(2),
    "stacked": lambda z: torch.stack([z[0], z[1] - z[2], z.cumsum(0)[1]]),
    "quotient": lambda z: (z / A[0]) @ A,
    "written": lambda z: torch.zeros(3).double().index_add(0, LAST, z[:2]),
    "solved": lambda z: torch.linalg.solve_triangular(A.triu(), z.unsqueeze(-1), upper=True)[:, 0],
    "convolved": lambda z: torch.conv1d(z.view(1, 1, 3), A[:1, :2].unsqueeze(0)).flatten(),
    "interpolated": lambda z: torch.lerp(z, A[0], 0.3),
}
BENT = {
    "clamped": lambda z: z.clamp(min=0.0),
    "clamped far out": lambda z: z.clamp(min=-50.0),
    "relu": lambda z: torch.relu(A @ z + 100),
    "absolute": lambda z: z.abs(),
    "square": lambda z: z + 1e-4 * z.square(),
    "product of two": lambda z: z + z[0] * z[1] * 1e-5,
    "chosen by itself": lambda z: torch.where(z > -40, z, 2 * z),
    "masked by itself": lambda z: z.masked_fill(z > 40, 0.0),
    "indexed by itself": lambda z: A[(z > 30).long()[0]] + z,
    "rounded": lambda z: z + 1e-6 * z.round(),
    "sorted": lambda z: z.sort().values,
    "largest": lambda z: z.max() + z,
    "divided": lambda z: z / (1 + 1e-6 * z[0].square()),
    "exponential": lambda z: z + 1e-6 * z.exp(),
    "floored": lambda z: torch.div(z, 100.0, rounding_mode="floor") + z,
    "leaky": lambda z: torch.nn.functional.leaky_relu(z + 60, 0.1),
}


@pytest.mark.parametrize("name", AFFINE)
def test_affine_means_have_degree_one(name):
    z = torch.randn(3, dtype=torch.float64)
    assert degree_in([z], lambda: AFFINE[name](z)) == 1
    assert degree_in([z], lambda: AFFINE[name](z).square().sum()) == 2


@pytest.mark.parametrize("name", BENT)
def test_means_that_bend_anywhere_do_not(name):
    """Wherever z is, and however little they bend there."""
    z = torch.randn(3, dtype=torch.float64)
    assert degree_in([z], lambda: BENT[name](z)) > 1


def gaussian(mean):
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3).double() + 0.5, 0.7).to_event(1))
        loc = mean(z)
        pyro.sample("x", dist.Normal(loc, 0.2).to_event(loc.dim()), obs=x)

    return Program(model)


@pytest.mark.parametrize("name", ["product", "chosen by a constant", "stacked", "solved"])
def test_affine_gaussians_are_integrated(name):
    base = AFFINE[name](torch.zeros(3).double())
    jacobian = torch.autograd.functional.jacobian(AFFINE[name], torch.zeros(3).double())
    mean = base + 0.5 * jacobian.sum(-1)
    law = dist.MultivariateNormal(
        mean, 0.49 * jacobian @ jacobian.T + 0.04 * torch.eye(len(base)).double()
    )
    x = mean + torch.randn_like(mean)
    found = Exact()(gaussian(AFFINE[name]), x)
    assert found.log_z.item() == pytest.approx(law.log_prob(x).item(), abs=1e-9)


@pytest.mark.parametrize(
    "name", ["clamped", "clamped far out", "square", "indexed by itself", "leaky", "floored"]
)
def test_bent_gaussians_are_refused(name):
    with pytest.raises(ValueError, match="cannot be integrated out in closed form"):
        Exact()(gaussian(BENT[name]), torch.zeros(3).double())


def scaled(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, 1.0 + 1e-5 * z.square()), obs=x)


def masked(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0).mask(z > -40), obs=x)


def by_numpy(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(torch.as_tensor(z.detach().numpy().clip(0)), 1.0), obs=x)


def among_large_constants(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z + 0.3 * z * z, 1.0), obs=x)
    with pyro.plate("n", 2000):
        pyro.sample("far", dist.Normal(0.0, 1.0), obs=torch.full((2000,), 1000.0))


@pytest.mark.parametrize("model", [scaled, masked, by_numpy, among_large_constants])
def test_other_ways_out_of_the_gaussian_family_are_refused(model):
    with pytest.raises(ValueError, match="in closed form"):
        Exact()(Program(model), torch.tensor(0.3))


def residual(x):
    z = pyro.sample("z", dist.Normal(1.0, 2.0))
    pyro.sample("x", dist.Normal(0.0, 0.5), obs=x - 3 * z)


def shifted(x):
    z = pyro.sample("z", dist.Normal(1.0, 2.0))
    transform = dist.transforms.AffineTransform(3 * z, 0.5)
    pyro.sample("x", dist.TransformedDistribution(dist.Normal(0.0, 1.0), transform), obs=x)


def factored(x):
    z = pyro.sample("z", dist.Normal(1.0, 2.0))
    pyro.factor("f", dist.Normal(3 * z, 0.5).log_prob(x))


@pytest.mark.parametrize("model", [residual, shifted, factored])
def test_other_ways_into_it_are_integrated(model):
    x = torch.tensor(0.3, dtype=torch.float64)
    truth = dist.Normal(3 + 0 * x, 36.25**0.5).log_prob(x).item()
    assert Exact()(Program(model), x).log_z.item() == pytest.approx(truth, abs=1e-9)
