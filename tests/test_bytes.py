"""Data of bytes: what the likelihood takes of them, alone and in streams."""

from functools import partial

import numpy as np
import pytest
import torch

from ppl_dgm import fit
from ppl_dgm.conditionals.likelihoods import Categorical, ContinuousBernoulli
from ppl_dgm.data import Stream
from ppl_dgm.data import stream as streams
from ppl_dgm.evidence import Exact
from ppl_dgm.evidence import streaming as evidence_streams
from ppl_dgm.families import (
    MADE,
    PPCA,
    RBM,
    VAE,
    VQVAE,
    Dequantised,
    IndependentBernoulli,
    Mixture,
    RealNVP,
)

GREY = np.array([[[0, 1], [127, 128]], [[255, 3], [0, 200]]], dtype="uint8")  # [N, 2, 2]


@pytest.mark.parametrize(
    ("likelihood", "expected", "told"),
    [
        ("bernoulli", GREY > 127, "Bernoulli: binarised, levels above 127 are 1"),
        ("gaussian", GREY / 255, "Gaussian: divided by 255"),
        (ContinuousBernoulli(), GREY / 255, "ContinuousBernoulli: divided by 255"),
        (Categorical(256), GREY, ""),
    ],
)
def test_bytes_are_what_the_likelihood_takes_and_that_is_told_once(
    likelihood, expected, told, caplog
):
    vae = VAE(4, 1, [2], likelihood=likelihood)
    for images in (GREY, GREY[:, None]):
        found = vae.as_data(torch.as_tensor(images))
        assert np.allclose(found.numpy(), expected.reshape(2, 4))
    assert sum("bytes" in record.getMessage() for record in caplog.records) == bool(told)
    assert told in caplog.text
    fit(vae, GREY, steps=1, progress=False, compile=False)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (Mixture(4, 2, "bernoulli"), GREY > 127),
        (Mixture(4, 2), GREY / 255),
        (IndependentBernoulli(4), GREY > 127),
        (RBM(4, 2), GREY > 127),
        (RBM(4, 2, "gaussian"), GREY / 255),
        (PPCA(4, 1), GREY / 255),
        (RealNVP(4), GREY / 255),
        (Dequantised(RealNVP(4), 256), GREY),
        (VQVAE(4, 2, 3, likelihood="bernoulli"), GREY > 127),
    ],
    ids=lambda one: type(one).__name__,
)
def test_bytes_of_images_are_taken_by_all_families(program, expected):
    bound = program.bind(GREY[:, None])
    assert np.allclose(bound.args[0].numpy(), expected.reshape(2, 4))


def test_closed_forms_take_images_of_bytes():
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 2, 2), dtype="uint8")
    flat = torch.as_tensor(images).double().flatten(1)
    one, other = Mixture(4, 2, "diagonal"), Mixture(4, 2, "diagonal")
    one.fit_em(images), other.fit_em(flat / 255)
    assert torch.allclose(one.parts.components.locs, other.parts.components.locs.float())
    assert torch.equal(one.cluster(images), other.cluster(flat / 255))
    one, other = PPCA(4, 1).fit_closed_form(images), PPCA(4, 1).fit_closed_form(flat / 255)
    assert torch.allclose(one.model.fn.loc, other.model.fn.loc.float())
    bits = IndependentBernoulli(4).fit_counts(images).probs
    assert torch.allclose(bits, (((flat > 127).sum(0) + 1) / 42).float())
    rates = RBM(4, 2).start_from(images).parts.units.base_logits.sigmoid()
    assert torch.allclose(rates, bits, atol=0.02)  # of half the pseudo-count


DARK = np.zeros((30, 2, 2), dtype="uint8")  # what a stream of grey images may begin with
LATER = np.array([[[0, 1], [127, 200]], [[255, 3], [0, 90]]] * 15, dtype="uint8")
PARTS = {
    "dark first": (DARK, LATER, DARK + 100),
    "shades below the middle first": (DARK + 100, LATER, DARK),
    "bits first": (DARK + np.uint8([[0, 1], [1, 0]]), LATER, DARK),
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_bytes_of_a_stream_are_judged_together(parts, monkeypatch):
    """As the same data in memory: what one part has does not decide for the others."""
    monkeypatch.setattr(streams, "PART", 30)
    monkeypatch.setattr(evidence_streams, "PART", 30)
    program, whole = IndependentBernoulli(4), np.concatenate(parts)
    stream = Stream(lambda: iter(parts), num_data=90)
    program.fit_counts((whole > 127).reshape(90, 4))
    found, right = Exact()(program, stream), Exact()(program, whole)
    assert torch.equal(found.log_z, right.log_z)
    assert found.digest == right.digest
    sgd = partial(torch.optim.SGD, lr=0.0)
    settings = {"epochs": 1, "batch_size": 30, "optimizer": sgd, "progress": False}
    history = fit(program, stream, compile=False, valid=DARK + 100, **settings).history
    assert torch.allclose(history["objective"].double(), right.log_z.view(3, 30).mean(1))
    dark = Exact()(program, np.zeros((30, 4)))
    assert history["valid"].item() == pytest.approx(dark.log_z.mean().item(), rel=1e-5)


def test_grey_levels_after_many_bits_are_refused(monkeypatch):
    """Where what is looked at has bits alone, and greater bytes come later."""
    monkeypatch.setattr(streams, "LOOKED_AT", 2)
    monkeypatch.setattr(streams, "PART", 30)
    monkeypatch.setattr(evidence_streams, "PART", 30)
    bits = PARTS["bits first"][0]
    stream = Stream(lambda: iter((bits, bits, bits, LATER)), num_data=120)
    with pytest.raises(ValueError, match="bytes up to 255, but the data read before them"):
        Exact()(IndependentBernoulli(4), stream)
    with pytest.raises(ValueError, match="binarise all of them first"):
        fit(IndependentBernoulli(4), stream, epochs=1, batch_size=30, progress=False)


def test_levels_of_seventeen_shades_are_no_coins():
    """They would all be binarised to 0."""
    with pytest.raises(ValueError, match="outside the support"):
        Exact()(MADE(4, [3]), torch.tensor([[0, 16, 3, 1]], dtype=torch.uint8))


def test_bytes_that_are_bits_or_counts_stay():
    bits = torch.tensor([[0, 1, 1, 0]], dtype=torch.uint8)
    assert torch.equal(VAE(4, 1, [2]).as_data(bits), bits.float())
    ages = torch.tensor([[40, 50, 60, 70]], dtype=torch.uint8)  # no image
    assert torch.equal(VAE(4, 1, [2], likelihood="gaussian").as_data(ages), ages.float())
