"""What the families do on the bundled 8x8 digits, binarised."""

from functools import partial

import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ppl_dgm import fit
from ppl_dgm.conditionals.guides import FlowPosterior
from ppl_dgm.evidence import ImportanceSampling
from ppl_dgm.families import VAE, SemiSupervisedVAE, priors

pytestmark = pytest.mark.slow
ADAM = partial(torch.optim.Adam, lr=2e-3)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels."""
    bunch = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x, y = (
        torch.as_tensor(bunch.data > 7.5).float()[order],
        torch.as_tensor(bunch.target).long()[order],
    )
    return x[:1437], y[:1437], x[1437:], y[1437:]


def test_a_hundred_labels_and_the_rest_without_beat_a_classifier_on_the_labels(
    digits: tuple,
) -> None:
    x, y, test_x, test_y = digits
    chosen = torch.cat([(y == c).nonzero()[:10, 0] for c in range(10)])
    labels = torch.full_like(y, -1)
    labels[chosen] = y[chosen]
    alone = LogisticRegression(max_iter=2000).fit(x[chosen].numpy(), y[chosen].numpy())
    torch.manual_seed(0)
    vae = SemiSupervisedVAE(64, 16, 10, [100], classifier_weight=20.0)
    adam = partial(torch.optim.Adam, lr=1e-3)
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    fit(vae, (x, labels), objective, steps=3000, batch_size=100, optimizer=adam, progress=False)
    accuracy = (vae.classify(test_x).argmax(-1) == test_y).float().mean().item()
    assert accuracy > alone.score(test_x.numpy(), test_y.numpy()) + 0.02


def test_clusters_of_a_mixture_prior_are_digits(digits: tuple) -> None:
    """Accuracy when every cluster is named after its most frequent digit."""
    x, y, test_x, test_y = digits
    torch.manual_seed(0)
    plain = VAE(64, 8, [100])
    fit(plain, x, steps=600, batch_size=100, optimizer=ADAM, progress=False)
    prior = priors.GaussianMixturePrior(8, 20).start_from_kmeans(
        plain.guide.fn.distribution(x).mean.detach()
    )
    vae = VAE(64, 8, prior=prior, guide=plain.guide.fn, decoder=plain.model.fn.decoder)
    fit(vae, x, steps=1000, batch_size=100, optimizer=ADAM, progress=False)
    found = prior.responsibilities(vae.guide.fn.distribution(x).mean).argmax(-1)
    names = torch.stack([y[found == k].bincount(minlength=10).argmax() for k in range(20)])
    accuracy = (
        names[prior.responsibilities(vae.guide.fn.distribution(test_x).mean).argmax(-1)] == test_y
    )
    assert accuracy.float().mean() > 0.75


def test_a_flow_guide_beats_a_diagonal_one(digits: tuple) -> None:
    x, _, test_x, _ = digits
    found = []
    for guide in (None, FlowPosterior(16, "iaf")):
        torch.manual_seed(0)
        vae = VAE(64, 16, [100], guide=guide)
        fit(vae, x, steps=3000, batch_size=100, optimizer=ADAM, progress=False)
        found.append(ImportanceSampling(num_particles=1000)(vae, test_x).log_z)
    difference = found[1] - found[0]
    assert difference.mean() > difference.std() / len(difference) ** 0.5
