"""The vector-quantised VAE: nearest codes, straight-through gradients, moving averages."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_dgm.evidence import ELBO as Bound  # noqa: N811
from ppl_dgm.evidence import ImportanceSampling
from ppl_dgm.families import VQVAE
from ppl_dgm.families.latent.vqvae import Codebook
from ppl_dgm.objectives import ELBO


def small(**options: Any) -> tuple[VQVAE, Tensor]:
    torch.manual_seed(0)
    return VQVAE(4, 2, 3, 2, [5], prior_hidden=[4], **options), (torch.rand(7, 4) < 0.5).float()


def test_codes_are_those_of_the_nearest_vectors() -> None:
    vqvae, x = small()
    outputs = vqvae.guide.fn.encoder(x)
    nearest = torch.cdist(outputs, vqvae.model.fn.codebook.vectors).argmin(-1)
    assert torch.equal(vqvae.encode(x), nearest)
    drawn = vqvae.train().bind(x).draw(5)
    assert torch.equal(drawn.values["codes"], nearest.float().expand(5, -1, -1))
    assert bool((drawn.log_prob == 0).all())


def test_gradient_passes_straight_through_to_the_encoder() -> None:
    """The encoder's gradient is that of a decoder fed its outputs, plus commitment's.

    The former is taken at the codebook's vectors.
    """
    vqvae, x = small(commitment=0.5)
    vqvae.initialise(x).train()
    codes = vqvae.encode(x)
    vectors = vqvae.model.fn.codebook.vectors[codes].detach().requires_grad_()
    model = vqvae.model.fn
    (gradient,) = torch.autograd.grad(
        model.likelihood(model.decoder(vectors)).log_prob(x).sum(), vectors
    )
    outputs = vqvae.guide.fn.encoder(x)
    gradient = gradient - 2 * 0.5 * (outputs - vectors).detach()
    weights = list(vqvae.guide.fn.encoder.parameters())
    expected = torch.autograd.grad(-(outputs * gradient).sum(), weights)
    loss = ELBO().differentiable_loss(vqvae.model, vqvae.guide, x)
    for ours, theirs in zip(torch.autograd.grad(loss, weights), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_learned_codebook_moves_towards_what_it_was_given() -> None:
    vqvae, x = small(decay=None)
    vqvae.initialise(x).train()
    vectors = vqvae.model.fn.codebook.vectors
    codes, outputs = vqvae.encode(x), vqvae.guide.fn.encoder(x).detach()
    loss = ELBO().differentiable_loss(vqvae.model, vqvae.guide, x)
    (gradient,) = torch.autograd.grad(loss, vectors)
    expected = torch.stack([2 * (vectors[k] - outputs[codes == k]).sum(0) for k in range(3)])
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_moving_averages_come_to_the_means_of_their_data() -> None:
    codebook = Codebook(2, 2, 0.9)
    outputs = torch.tensor([[[0.0, 1.0]], [[2.0, 3.0]], [[-4.0, -4.0]]])
    codes = torch.tensor([[0.0], [0.0], [1.0]])
    for _ in range(200):
        codebook.follow(codes, outputs)
    assert torch.allclose(codebook.vectors, torch.tensor([[1.0, 2.0], [-4.0, -4.0]]), atol=1e-4)


def test_evaluation_mode_has_no_training_terms_and_a_bound_below_the_evidence() -> None:
    vqvae, x = small()
    vectors = vqvae.model.fn.codebook.vectors.clone()
    lower = Bound(num_particles=500)(vqvae, x)
    evidence = ImportanceSampling(num_particles=4000)(vqvae, x)
    assert torch.equal(vqvae.model.fn.codebook.vectors, vectors)
    assert bool(
        (lower.log_z < evidence.log_z + 4 * (lower.std_error + evidence.std_error) + 1e-6).all()
    )


def test_four_clusters_are_told_apart_by_their_codes() -> None:
    torch.manual_seed(0)
    patterns = torch.eye(4).repeat_interleave(2, 1)
    labels = torch.arange(80) % 4
    x = (patterns[labels] - (torch.rand(80, 8) < 0.05).float()).abs()
    vqvae = VQVAE(8, 1, 4, 4, [16], prior_hidden=[8], decay=0.9).initialise(x).start_from_kmeans(x)
    optimiser = torch.optim.Adam(vqvae.parameters(), 0.01)
    for _ in range(200):
        optimiser.zero_grad()
        ELBO().differentiable_loss(vqvae.model, vqvae.guide, x).backward()
        optimiser.step()
    codes = vqvae.encode(x)[:, 0]
    assert len({int(codes[labels == k].mode().values) for k in range(4)}) >= 3
    assert Bound(num_particles=100)(vqvae, x).log_z.mean() > -4 * torch.tensor(2.0).log() - 1


BAD = {
    "codebook": ({"codebook_size": 1}, "codebook_size is 1; expected at least 2"),
    "commitment": ({"commitment": -1.0}, "commitment >= 0"),
    "temperature": ({"temperature": 0.0}, "temperature > 0"),
    "decay": ({"decay": 1.0}, "less than 1"),
    "few data": ({"num_data": 1}, "2 codes for a codebook of 3"),
    "codes": ({"num_codes": 0}, "at least one"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused(name: str) -> None:
    options, message = dict(BAD[name][0]), BAD[name][1]
    num_data = options.pop("num_data", 3)
    with pytest.raises(ValueError, match=message):
        VQVAE(**{"num_dims": 4, "num_codes": 2, "codebook_size": 3, **options}).start_from_kmeans(
            torch.ones(num_data, 4)
        )
