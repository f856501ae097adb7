"""Functions that take one tensor of data take it in any container, with the same result."""

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CASES
from torch import Tensor

from ppl_dgm import Dataset, amortisation_gap, fit, refine
from ppl_dgm.data import load_digits
from ppl_dgm.diagnostics import class_counts, frechet_distance, mmd_test, mode_counts
from ppl_dgm.evidence import Exact
from ppl_dgm.families import (
    MADE,
    PPCA,
    RBM,
    VAE,
    VQVAE,
    IndependentBernoulli,
    Mixture,
    RealNVP,
    SemiSupervisedVAE,
    bayesnet,
)
from ppl_dgm.tasks import complete, interpolate, log_conditional, log_marginal

BITS = (torch.rand(12, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
MASK = torch.tensor([True, True, False, False])
SEEN, ASKED = MASK, ~MASK


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


CALLS = {
    "complete": lambda x: complete(VAE(4, 1, [3]), x, MASK, num_particles=20).draws,
    "interpolate": lambda x: interpolate(VAE(4, 1, [3]), x, x),
    "log_marginal": lambda x: log_marginal(MADE(4, [3]), x, MASK).log_prob,
    "log_conditional": lambda x: log_conditional(MADE(4, [3]), x, ASKED, SEEN).log_prob,
    "refine": lambda x: refine(VAE(4, 1, [3]), x, num_steps=2).guide.fn.params,
    "amortisation_gap": lambda x: amortisation_gap(VAE(4, 1, [3]), x, num_steps=2).gap,
    "fit_counts": lambda x: IndependentBernoulli(4).fit_counts(x).probs,
    "net.fit_counts": lambda x: bayesnet.naive_bayes(2, 3).fit_counts(x).nodes["x1"].probs,
    "dirichlet_evidence": lambda x: bayesnet.naive_bayes(2, 3).dirichlet_evidence(x),
    "net.classify": lambda x: bayesnet.naive_bayes(2, 4).classify(x),
    "chow_liu": lambda x: bayesnet.chow_liu(x).nodes["x2"].probs,
    "fit_em": lambda x: Mixture(4, 2, "bernoulli").fit_em(x).log_likelihood,
    "cluster": lambda x: Mixture(4, 2, "bernoulli").cluster(x),
    "responsibilities": lambda x: Mixture(4, 2, "bernoulli").responsibilities(x),
    "fit_closed_form": lambda x: PPCA(4, 1).fit_closed_form(x).model.fn.weight.abs(),
    "encode": lambda x: VQVAE(4, 2, 3, 1).encode(x),
    "vae.classify": lambda x: SemiSupervisedVAE(4, 1, 2, [3]).classify(x),
    "free_energy": lambda x: RBM(4, 2).free_energy(x),
    "start_from": lambda x: RBM(4, 2).start_from(x).parts.units.bias,
    "class_probs": lambda x: MADE(4, [3], num_classes=2).log_class_probs(x),
    "flow.latents": lambda x: RealNVP(4, 2, [3]).latents(x),
    "mmd_test": lambda x: torch.tensor(mmd_test(x, BITS.flip(0), num_permutations=20).p_value),
    "frechet": lambda x: torch.tensor(frechet_distance(x, 1 - BITS)),
}


@pytest.mark.parametrize("name", CALLS)
def test_containers_of_one_tensor(name):
    found = []
    for kind in (Tensor.clone, Tensor.numpy, lambda x: x.double().numpy(), Dataset):
        torch.manual_seed(0)
        found.append(CALLS[name](kind(BITS)).detach().double())
    assert all(torch.allclose(one, found[0], atol=1e-4) for one in found)


def test_a_part_of_a_data_set():
    whole, part = Dataset(BITS), Dataset(BITS)[:5]
    program = IndependentBernoulli(4)
    assert torch.equal(program.fit_counts(part).probs, program.fit_counts(BITS[:5]).probs)
    assert not torch.equal(program.fit_counts(whole).probs, program.fit_counts(part).probs)


def test_several_tensors_where_one_is_taken():
    with pytest.raises(
        TypeError, match=r"2 tensors where one is taken; give that one, e.g. data\.x"
    ):
        IndependentBernoulli(4).fit_counts(Dataset((BITS, BITS)))


def test_columns_of_a_data_frame_are_variables_of_a_net():
    net = bayesnet.naive_bayes(2, 3)
    frame = pd.DataFrame(BITS.numpy(), columns=["y", "x1", "x2", "x3"])
    shuffled = frame[["x3", "y", "x1", "x2"]]
    assert torch.equal(
        net.fit_counts(shuffled).nodes["x3"].probs, net.fit_counts(BITS).nodes["x3"].probs
    )
    assert torch.equal(Exact()(net, shuffled).log_z, Exact()(net, BITS).log_z)
    assert fit(net, shuffled, steps=2, progress=False).steps == 2
    assert torch.equal(
        net.classify(shuffled[["x2", "x1"]]),
        net.classify({n: torch.tensor(frame[n]) for n in ("x1", "x2")}),
    )


def test_digits_are_counted_as_they_come():
    digits = load_digits().binarise()
    assert IndependentBernoulli(64).fit_counts(digits.train[:50]).probs.shape == (64,)
    assert np.isfinite(mode_counts(BITS.numpy(), BITS[:2].numpy(), 1.0).num_found)
    assert class_counts(np.array([0, 1, 1]), 2).num_found == 2


@pytest.mark.parametrize("name", [name for name in CASES if name != "bayes net"])
def test_families_take_images_of_doubles(name):
    case = CASES[name]
    x, *rest = case.data()
    rest = [one.double() if one.is_floating_point() else one for one in rest]
    program = case.make()
    images = x.double().numpy().reshape(len(x), 1, 1, -1)
    bound = program.bind(images, *rest)
    kind = next(iter(program.parameters())).dtype
    assert torch.equal(bound.args[0], x.to(kind))


def test_texts_are_refused_by_name():
    with pytest.raises(TypeError, match="the data are a list of texts; turn them into numbers"):
        fit(VAE(4, 1, [2]), ["a", "b"], steps=1)
