"""Active units against closed forms."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program
from ppl_dgm.diagnostics import latent_use

X = torch.linspace(-2, 2, 201)
SLOPES = torch.tensor([0.9, 0.05, 0.0])


def model(x=None):
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def guide(x=None):
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample(
            "z", dist.Normal(x.unsqueeze(-1) * SLOPES, torch.tensor([0.3, 0.9, 1.0])).to_event(1)
        )


def test_signal_and_noise_match_closed_forms():
    use = latent_use(Program(model, guide), X, num_particles=400)
    assert use.names == ("z[0]", "z[1]", "z[2]")
    assert torch.allclose(
        use.noise, torch.tensor([0.09, 0.81, 1.0], dtype=torch.float64), rtol=0.03
    )
    assert torch.allclose(use.signal, (SLOPES.square() * X.var()).double(), atol=0.02)
    assert use.active.tolist() == [True, False, False]
    assert (use.num_active, use.collapsed) == (1, ("z[1]", "z[2]"))
    assert repr(use) == "LatentUse(1 of 3 active at 0.01)"


def test_monte_carlo_noise_does_not_make_a_unit_active():
    """Two draws only: the variance of the mean is half the noise, which is taken out again."""
    signals = torch.stack(
        [latent_use(Program(model, guide), X, num_particles=2, seed=s).signal for s in range(40)]
    )
    error = signals.std(0) / 40**0.5
    assert bool(((signals.mean(0) - (SLOPES.square() * X.var()).double()).abs() < 4 * error).all())


def test_discrete_latents_and_further_plates_count_as_dimensions():
    def wide(x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            with pyro.plate("parts", 2, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(k + z.sum(-2), 1.0), obs=x)

    def wide_guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Bernoulli((x > 0).to(x) * 0.8 + 0.1))
            with pyro.plate("parts", 2, dim=-2):
                pyro.sample("z", dist.Normal(torch.stack([x, 0 * x]), 1.0))

    use = latent_use(Program(wide, wide_guide), X, num_particles=300)
    assert use.names == ("k[0]", "z[0]", "z[1]")
    expected = torch.tensor([0.16, X.var().item(), 0.0], dtype=torch.float64)
    assert torch.allclose(use.signal, expected, atol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: latent_use(Program(model, guide), X[:1]), "one datum"),
        (lambda: latent_use(Program(model), X), "no guide"),
        (lambda: latent_use(Program(model, guide), X, num_particles=1), "at least 2"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_latents_shared_by_all_data_are_refused():
    def shared(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).expand([len(x)]), obs=x)

    with pytest.raises(ValueError, match="no latents inside"):
        latent_use(Program(shared, lambda x: pyro.sample("mu", dist.Normal(0.0, 1.0))), X)
