"""Lossless codes: what comes back, how many bits it takes, what is refused."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_dgm import Program, compression, fit
from ppl_dgm.compression import decode, encode, stack
from ppl_dgm.conditionals.guides import BernoulliPosterior, FlowPosterior
from ppl_dgm.data import load_digits
from ppl_dgm.evidence import ELBO, Exact
from ppl_dgm.families import (
    DARN,
    FVSBN,
    MADE,
    NADE,
    RBM,
    VAE,
    ConditionalVAE,
    GatedPixelCNN,
    HierarchicalVAE,
    IndependentBernoulli,
    Mixture,
    PixelCNNPlusPlus,
    PixelTransformer,
    RecurrentNet,
    WaveNet,
    likelihoods,
    priors,
)

pytest.importorskip("constriction")

DIGITS = load_digits()
GREY = load_digits(levels=17)
SHAPE = (1, 8, 8)
ORDER = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
EXACT: dict[str, tuple[Callable[[], Program], Tensor]] = {
    "independent": (lambda: IndependentBernoulli(64), DIGITS.test.x),
    "fvsbn in another order": (lambda: FVSBN(64, order=ORDER), DIGITS.test.x),
    "nade": (lambda: NADE(64, 20), DIGITS.test.x),
    "gru": (lambda: RecurrentNet(64, 16), DIGITS.test.x),
    "wavenet, levels": (
        lambda: WaveNet(64, 8, likelihood=likelihoods.Categorical(17)),
        GREY.test.x[:50],
    ),
    "pixelcnn++": (
        lambda: PixelCNNPlusPlus(SHAPE, 8, 2, 1, likelihoods.DiscretisedLogistic(17, 2)),
        GREY.test.x[:15],
    ),
    "gated pixelcnn": (lambda: GatedPixelCNN(SHAPE, 8), DIGITS.test.x[:50]),
    "transformer": (lambda: PixelTransformer(SHAPE, 16, 1, 2), DIGITS.test.x[:50]),
    "several orders": (lambda: MADE(64, [30], orders=3), DIGITS.test.x[:40]),
}
LATENT: dict[str, Callable[[], Program]] = {
    "vae": lambda: VAE(64, 4, [20]),
    "grey vae": lambda: VAE(64, 4, [20], likelihoods.DiscretisedLogistic(17)),
    "two layers": lambda: HierarchicalVAE(64, (4, 2), ((20,), (10,))),
    "sigmoid belief net": lambda: VAE(
        64, 6, [], prior=priors.BernoulliPrior(6), guide=BernoulliPosterior(6)
    ),
    "darn": lambda: DARN(64, 6),
}


def made(make: Callable[[], Program], seed: int = 0) -> Program:
    """A program with parameters from a seed, seen once by its data."""
    torch.manual_seed(seed)
    return make()


def bits(code: bytes) -> int:
    """Length of a code."""
    return 8 * len(code)


@pytest.mark.parametrize("name", EXACT)
def test_exact_programs_code_at_their_log_density(name: str) -> None:
    program, x = made(EXACT[name][0]), EXACT[name][1]
    code = encode(program, x)
    ideal = -Exact()(program, x).log_z.sum().item() / math.log(2)
    assert torch.equal(decode(program, code), x)
    assert bits(code) == pytest.approx(ideal, abs=120 + 0.005 * ideal)


@pytest.mark.parametrize("name", LATENT)
def test_bits_back_restores_all(name: str) -> None:
    program = made(LATENT[name])
    x = (GREY if "grey" in name else DIGITS).test.x[:36]
    assert torch.equal(decode(program, encode(program, x)), x)


def test_bits_back_takes_minus_the_elbo() -> None:
    """Lose the first datum's latents.

    Without bits back a datum would take some 30 bits more.
    """
    program, x = made(LATENT["vae"]), DIGITS.x
    adam = partial(torch.optim.Adam, lr=5e-3)
    fit(program, DIGITS.train, epochs=30, batch_size=100, optimizer=adam, progress=False)
    code, lead = encode(program, x), encode(program, x[:1])
    assert torch.equal(decode(program, code), x)
    bound = ELBO(num_particles=200)(program, x, seed=0).log_z
    predicted = -bound.sum().item() / math.log(2)
    assert bits(code) == pytest.approx(predicted, rel=0.01)
    latents = -bound[0].item() / math.log(2)
    assert bits(lead) > latents + 15  # the first datum has no bits to draw from


def test_a_fitted_net_takes_its_exact_bits_on_digits() -> None:
    program = made(lambda: MADE(64, [100]))
    adam = partial(torch.optim.Adam, lr=5e-3)
    fit(program, DIGITS.train, epochs=30, batch_size=100, optimizer=adam, progress=False)
    x = DIGITS.test.x
    code = encode(program, x)
    ideal = -Exact()(program, x).log_z.sum().item() / math.log(2)
    assert torch.equal(decode(program, code), x)
    assert bits(code) == pytest.approx(ideal, rel=0.01)


def test_further_data_are_needed_again() -> None:
    program = made(lambda: NADE(64, 10, num_classes=10))
    x, y = DIGITS.test.x[:20], DIGITS.labels[-20:]
    code = encode(program, x, y)
    assert torch.equal(decode(program, code, y), x)
    assert torch.equal(decode(program, encode(program, x, y=y), y=y), x)
    with pytest.raises(ValueError, match="other further data"):
        decode(program, code, 9 - y)
    for other in (y[:3], torch.cat([y, y]), y[0]):
        with pytest.raises(ValueError, match="The code holds 20 data"):
            decode(program, code, other)
    with pytest.raises(ValueError, match=r"holds 20 data, and the further data Tensor\(1,\)"):
        decode(program, code, y[:1])
    with pytest.raises(ValueError, match="labels are missing"):
        decode(program, code)
    conditional = made(lambda: ConditionalVAE(64, 3, 10, [10]))
    assert torch.equal(decode(conditional, encode(conditional, x, y), y), x)


def test_orders_with_labels_share_a_batch() -> None:
    program = made(lambda: MADE(64, [20], orders=3, num_classes=10))
    x, y = DIGITS.test.x[:36], DIGITS.labels[:36]
    assert torch.equal(decode(program, encode(program, x, y), y), x)


def test_everything_else_is_as_before() -> None:
    program, x = made(LATENT["vae"]).train(), DIGITS.test.x[:5]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    code = encode(program, x)
    decode(program, code)
    assert program.training
    assert torch.equal(torch.get_rng_state(), state)
    assert code == encode(program, x)


@pytest.mark.parametrize("name", ["several orders", "vae"])
def test_modes_of_sender_and_receiver_do_not_matter(name: str) -> None:
    make, x = EXACT[name][0] if name in EXACT else LATENT[name], DIGITS.test.x[:5]
    program = made(make).eval()
    code = encode(program, x)
    assert torch.equal(decode(program.train(), code), x)
    assert encode(program, x) == code


def test_double_and_one_datum() -> None:
    program = made(lambda: MADE(5, [4])).double()
    x = torch.tensor([[0.0, 1, 1, 0, 1]]).double()
    found = decode(program, encode(program, x))
    assert found.dtype == torch.float64
    assert torch.equal(found, x)


@pytest.mark.parametrize("name", ["nade", "vae"])
def test_codes_that_are_damaged_or_of_another_program_are_refused(name: str) -> None:
    make = EXACT[name][0] if name in EXACT else LATENT[name]
    program, x = made(make), DIGITS.test.x[:20]
    code = encode(program, x)
    for wrong in [code[:n] for n in (0, 1, 4, 5, 6, len(code) - 1)] + [code + b"\0"]:
        with pytest.raises(ValueError, match="cut short, or changed|no bytes that encode gave"):
            decode(program, wrong)
    for place in range(len(code)):
        wrong = code[:place] + bytes([code[place] ^ 1]) + code[place + 1 :]
        with pytest.raises(ValueError, match="changed|another program"):
            decode(program, wrong)
    with pytest.raises(ValueError, match="another program"):
        decode(made(make, seed=1), code)
    with pytest.raises(TypeError, match="expected bytes"):
        decode(program, "code")  # type: ignore[arg-type]


def test_another_order_is_another_program() -> None:
    x, first = DIGITS.test.x[:5], made(lambda: FVSBN(64))
    other = made(lambda: FVSBN(64, order=ORDER))
    for mine, yours in zip(first.parameters(), other.parameters(), strict=True):
        yours.data.copy_(mine)
    with pytest.raises(ValueError, match="another program"):
        decode(other, encode(first, x))


def real(x: Tensor | None = None) -> Any:
    """Data of which the values are not finitely many."""
    with pyro.plate("data", 1 if x is None else len(x)):
        return pyro.sample("x", dist.Gamma(2.0, 1.0), obs=x)


def shared(x: Tensor | None = None) -> Any:
    """A latent common to all data."""
    logit = pyro.sample("logit", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 1 if x is None else len(x)):
        return pyro.sample("x", dist.Bernoulli(logits=logit), obs=x)


BINARY = torch.eye(4)
REFUSED: dict[str, tuple[Callable[[], Program], Tensor, str]] = {
    "off the support": (lambda: NADE(4, 3), 0.5 * BINARY, "outside the support"),
    "columns": (lambda: NADE(4, 3), torch.ones(2, 5), "expected"),
    "real": (lambda: Program(real), torch.ones(4), "Gamma.* cannot be coded"),
    "real conditionals": (lambda: MADE(4, [3], "gaussian"), BINARY, "cannot be coded without loss"),
    "real in orders": (lambda: NADE(4, 3, "gaussian", orders=2), BINARY, "without loss"),
    "real given latents": (lambda: VAE(4, 2, [3], likelihood="gaussian"), BINARY, "without loss"),
    "shared": (lambda: Program(shared), torch.ones(4), "latents that all data share"),
    "summed out": (lambda: Mixture(4, 2, "bernoulli"), BINARY, "summed out"),
    "flow": (lambda: VAE(4, 2, [3], guide=FlowPosterior(2, "iaf")), BINARY, "cannot be coded"),
    "factors": (lambda: RBM(4, 2), BINARY, "factors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_coded_is_refused(name: str) -> None:
    make, x, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        encode(made(make), x)


def test_a_missing_coder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "constriction", None)
    with pytest.raises(ValueError, match=r"pip install ppl-dgm\[compression\]"):
        compression.encode(made(lambda: NADE(4, 3)), BINARY)
