"""Data whose latents hang together are one data set, whatever their plate is called."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program, evidence, fit
from ppl_dgm.objectives import IWELBO

POINTS = torch.linspace(0.0, 3.0, 6)
ROOT = torch.linalg.cholesky(
    torch.exp(-0.5 * (POINTS[:, None] - POINTS).square()) + 1e-4 * torch.eye(6)
)


def whitened(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(ROOT[: len(y), : len(y)] @ z, 0.5), obs=y)


def walk(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z.cumsum(-1), 0.5), obs=y)


def centred(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z - z.mean(-1, keepdim=True), 0.5), obs=y)


def pairs(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        partner = z.reshape(*z.shape[:-1], -1, 2).flip(-1).reshape(z.shape)
        pyro.sample("y", dist.Normal(z + partner, 0.5), obs=y)


MAPS = {
    whitened: ROOT,
    walk: torch.ones(6, 6).tril(),
    centred: torch.eye(6) - 1 / 6,
    pairs: torch.block_diag(*[torch.ones(2, 2)] * 3),
}
Y = torch.tensor([0.3, -0.2, 1.0, 0.7, -0.5, 0.1])


@pytest.mark.parametrize("model", MAPS, ids=lambda model: model.__name__)
def test_coupled_latents_have_the_evidence_of_one_data_set(model):
    """y = A z + noise is N(0, A A' + 0.25): 4 standard errors of prior draws, of 50 000."""
    program, matrix = Program(model), MAPS[model].double()
    covariance = matrix @ matrix.T + 0.25 * torch.eye(6, dtype=torch.float64)
    truth = dist.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(Y.double()).item()
    found = evidence.PriorSampling(50_000)(program, Y)
    assert found.target == "dataset"
    assert abs(found.total - truth) < 4 * found.total_std_error
    smc = evidence.SMC(num_particles=500, num_groups=8)(program, Y)
    assert abs(smc.total - truth) < 4 * smc.total_std_error


def test_a_guide_that_couples_data_makes_them_one_data_set():
    def model(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        with pyro.plate("data", len(y)):
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(noise.cumsum(-1)))  # of unit Jacobian

    found = evidence.ImportanceSampling(50_000)(Program(model, guide), Y)
    truth = dist.Normal(0.0, 2.0**0.5).log_prob(Y).sum().item()
    assert found.target == "dataset"
    assert abs(found.total - truth) < 4 * found.total_std_error


def test_a_walk_in_a_loop_over_data_is_one_data_set():
    def loop(y):
        z = 0.0
        for i in pyro.plate("data", len(y)):
            z = pyro.sample(f"z{i}", dist.Normal(z, 1.0))
            pyro.sample(f"y{i}", dist.Normal(z, 0.5), obs=y[i])

    root = torch.ones(6, 6).tril().double()
    law = dist.MultivariateNormal(torch.zeros(6).double(), root @ root.T + 0.25 * torch.eye(6))
    found = evidence.PriorSampling(50_000)(Program(loop), Y)
    assert found.target == "dataset"
    assert abs(found.total - law.log_prob(Y.double())) < 4 * found.total_std_error


def test_data_in_a_loop_that_are_independent_stay_so():
    def loop(y):
        for i in pyro.plate("data", len(y)):
            z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            w = pyro.sample(f"w{i}", dist.Normal(z, 1.0))
            pyro.sample(f"y{i}", dist.Normal(w, 0.5), obs=y[i])

    assert Program(loop).bind(Y).structure.target == "datum"


def independent(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(z.sum(-1) + k, 0.5), obs=y)


def test_independent_data_keep_an_evidence_each():
    assert Program(independent).bind(Y).structure.target == "datum"
    assert Program(independent).bind(Y[:1]).structure.target == "datum"


def test_importance_weighted_fits_see_coupled_data_whole():
    """Its bound on a data set is that of all latents together, below the sum of bounds for each."""

    class Walk(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, y):
            with pyro.plate("data", len(y)):
                z = pyro.sample("z", dist.Normal(0.0, self.scale.exp()))
                pyro.sample("y", dist.Normal(z.cumsum(-1), 0.5), obs=y)

    program = Program(Walk())
    fit(program, Y, IWELBO(num_particles=20), steps=2, progress=False, compile=False)
    assert program.bind(Y).structure.target == "dataset"


def test_programs_are_checked_in_few_runs():
    """Two to see its sites, seven to see that data are independent, six that particles are."""
    runs = []

    def counted(y):
        runs.append(y)
        independent(y)

    Program(counted).bind(Y)
    assert len(runs) <= 15
