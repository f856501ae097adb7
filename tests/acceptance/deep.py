"""Programs with nets: autoencoders, Markov models, topics, flows."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.cevae import TraceCausalEffect_ELBO
from pyro.distributions import transforms as T
from pyro.infer import TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from acceptance.registry import Example, enumerating, example, randn, uniform

positive = dist.constraints.positive
ROWS, PIXELS, CODES = 8, 6, 2


def pictures(seed: int = 0) -> Tensor:
    """Binary pictures `[rows, pixels]`."""
    return (uniform(ROWS, PIXELS, seed=seed) < 0.4).to(torch.get_default_dtype())


def labels() -> Tensor:
    """One-hot labels `[rows, 3]`."""
    return torch.eye(3)[torch.arange(ROWS) % 3]


def net(inputs: int, outputs: int, hidden: int = 5) -> nn.Module:
    """A perceptron with one hidden layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Softplus(), nn.Linear(hidden, outputs))


def joined(*parts: Tensor) -> Tensor:
    """Vectors side by side, their batch shapes broadcast."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(shape + part.shape[-1:]) for part in parts], -1)


def normal(parameters: Tensor) -> dist.Distribution:
    """Independent normals of locations and log scales side by side."""
    loc, log_scale = parameters.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


class VAE(nn.Module):
    """The autoencoder of the tutorial, with model and guide as methods."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = net(PIXELS, 2 * CODES), net(CODES, PIXELS)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = x.new_zeros(x.shape[0], CODES), x.new_ones(x.shape[0], CODES)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("latent", normal(self.encoder(x)))


@example("vae/vae.py")
def vae() -> Example:
    both = VAE()
    return Example(both.model, both.guide, (pictures(),))


@example("vae/vae.py: analytic KL")
def vae_analytic() -> Example:
    both = VAE()
    return Example(both.model, both.guide, (pictures(),), TraceMeanField_ELBO, given=True)


@example("vae/vae_comparison.py: a guide of two flow steps")
def vae_flow() -> Example:
    encode, decode = net(PIXELS, 2 * CODES), net(CODES, PIXELS)
    flow = T.affine_autoregressive(CODES, hidden_dims=[4])

    def model(x: Tensor) -> None:
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(CODES), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encode", encode)
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(normal(encode(x)), [flow]))

    return Example(model, guide, (pictures(),))


@example("vae/ss_vae_M2.py: unlabelled digits, enumerated")
def ss_vae() -> Example:
    encode_y, encode_z = net(PIXELS, 3), net(PIXELS + 3, 2 * CODES)
    decode = net(CODES + 3, PIXELS)

    def model(xs: Tensor, ys: Tensor | None = None) -> None:
        pyro.module("decoder", decode)
        with pyro.plate("data"):
            zs = pyro.sample("z", dist.Normal(xs.new_zeros(len(xs), CODES), 1.0).to_event(1))
            prior = xs.new_ones(len(xs), 3) / 3
            ys = pyro.sample("y", dist.OneHotCategorical(prior), obs=ys)
            logits = decode(joined(zs, ys))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=xs)

    def guide(xs: Tensor, ys: Tensor | None = None) -> None:
        pyro.module("encoder_y", encode_y)
        pyro.module("encoder_z", encode_z)
        with pyro.plate("data"):
            if ys is None:
                on = {"enumerate": "parallel"}
                ys = pyro.sample("y", dist.OneHotCategorical(logits=encode_y(xs)), infer=on)
            pyro.sample("z", normal(encode_z(joined(xs, ys))))

    return Example(model, guide, (pictures(),), enumerating(), given=True)


@example("vae/ss_vae_M2.py: labelled digits and a classifier's loss")
def ss_vae_labelled() -> Example:
    encode_y, encode_z = net(PIXELS, 3), net(PIXELS + 3, 2 * CODES)
    decode = net(CODES + 3, PIXELS)

    def model(xs: Tensor, ys: Tensor) -> None:
        pyro.module("decoder", decode)
        pyro.module("encoder_y", encode_y)
        with pyro.plate("data"):
            zs = pyro.sample("z", dist.Normal(xs.new_zeros(len(xs), CODES), 1.0).to_event(1))
            pyro.sample("y", dist.OneHotCategorical(xs.new_ones(3) / 3), obs=ys)
            logits = decode(joined(zs, ys))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=xs)
            with poutine.scale(scale=5.0):
                pyro.sample("y_aux", dist.OneHotCategorical(logits=encode_y(xs)), obs=ys)

    def guide(xs: Tensor, ys: Tensor) -> None:
        pyro.module("encoder_z", encode_z)
        with pyro.plate("data"):
            pyro.sample("z", normal(encode_z(torch.cat([xs, ys], -1))))

    return Example(model, guide, (pictures(), labels()))


@example("cvae/cvae.py: a learned prior and masked quadrants")
def cvae() -> Example:
    prior, recognise, generate = (
        net(PIXELS, 2 * CODES),
        net(2 * PIXELS, 2 * CODES),
        net(CODES, PIXELS),
    )

    def model(xs: Tensor, ys: Tensor) -> None:
        pyro.module("prior", prior)
        pyro.module("generation", generate)
        with pyro.plate("data"):
            zs = pyro.sample("z", normal(prior(xs)))
            probs, seen = generate(zs).sigmoid(), ys >= 0
            at = dist.Bernoulli(probs, validate_args=False).mask(seen)
            pyro.sample("y", at.to_event(1), obs=ys)

    def guide(xs: Tensor, ys: Tensor) -> None:
        pyro.module("recognition", recognise)
        with pyro.plate("data"):
            pyro.sample("z", normal(recognise(torch.cat([xs, ys], -1))))

    ys = pictures(1)
    ys[:, :2] = -1.0
    return Example(model, guide, (pictures(), ys))


class Gate(nn.Module):
    """The gated transition of the deep Markov model."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.proposal, self.loc = (
            net(CODES, CODES),
            net(CODES, CODES),
            nn.Linear(CODES, CODES),
        )
        self.scale = nn.Linear(CODES, CODES)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        gate, proposed = self.gate(z).sigmoid(), self.proposal(z)
        loc = (1 - gate) * self.loc(z) + gate * proposed
        return loc, nn.functional.softplus(self.scale(proposed.relu()))


@example("dmm.py: packed sequences, masks, annealed KL")
def deep_markov() -> Example:
    transition, emit, combine = Gate(), net(CODES, 4), net(CODES + 3, 2 * CODES)
    rnn = nn.RNN(4, 3, batch_first=True)
    z_0 = nn.Parameter(torch.zeros(CODES))

    def model(
        batch: Tensor, backwards: Tensor, mask: Tensor, lengths: Tensor, anneal: float
    ) -> None:
        pyro.module("transition", transition)
        pyro.module("emitter", emit)
        z = pyro.param("z_0", z_0).expand(len(batch), CODES)
        with pyro.plate("z_minibatch", len(batch)):
            for t in pyro.markov(range(batch.size(1))):
                loc, scale = transition(z)
                with poutine.scale(scale=anneal):
                    at = dist.Normal(loc, scale).mask(mask[:, t : t + 1]).to_event(1)
                    z = pyro.sample(f"z_{t + 1}", at)
                seen = dist.Bernoulli(logits=emit(z)).mask(mask[:, t : t + 1]).to_event(1)
                pyro.sample(f"obs_{t}", seen, obs=batch[:, t])

    def guide(
        batch: Tensor, backwards: Tensor, mask: Tensor, lengths: Tensor, anneal: float
    ) -> None:
        pyro.module("rnn", rnn)
        pyro.module("combiner", combine)
        packed = nn.utils.rnn.pack_padded_sequence(backwards, lengths, batch_first=True)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(rnn(packed)[0], batch_first=True)
        z = pyro.param("z_q_0", torch.zeros(CODES)).expand(len(batch), CODES)
        with pyro.plate("z_minibatch", len(batch)):
            for t in pyro.markov(range(batch.size(1))):
                wide = hidden[:, t].expand((*z.shape[:-1], 3))
                loc, log_scale = combine(torch.cat([z, wide], -1)).chunk(2, -1)
                with poutine.scale(scale=anneal):
                    at = dist.Normal(loc, log_scale.exp()).mask(mask[:, t : t + 1]).to_event(1)
                    z = pyro.sample(f"z_{t + 1}", at)

    chords = (uniform(3, 4, 4) < 0.3).to(torch.get_default_dtype())
    lengths = torch.tensor([4, 3, 2])
    mask = torch.arange(4) < lengths[:, None]
    return Example(
        model, guide, (chords, chords.flip(1), mask, lengths, 1.0), options={"plate": "z_minibatch"}
    )


@example("air: attend, infer, repeat in two steps")
def air() -> Example:
    decode, encode = net(CODES, PIXELS), net(PIXELS, 1 + 2 * CODES)

    def model(x: Tensor) -> None:
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            picture, present = torch.zeros(len(x), PIXELS), torch.ones(len(x))
            for t in range(2):
                present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(0.5 * present))
                at = dist.Normal(torch.zeros(CODES), 1.0).to_event(1).mask(present.bool())
                z = pyro.sample(f"z_what_{t}", at)
                picture = picture + present.unsqueeze(-1) * decode(z).sigmoid()
            pyro.sample("obs", dist.Normal(picture, 0.3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encode", encode)
        with pyro.plate("data", len(x)):
            present = torch.ones(len(x))
            for t in range(2):
                found = encode(x)
                present = pyro.sample(
                    f"z_pres_{t}", dist.Bernoulli(present * found[:, 0].sigmoid())
                )
                at = normal(found[:, 1:]).mask(present.bool())
                pyro.sample(f"z_what_{t}", at)

    return Example(model, guide, (pictures(),), TraceGraph_ELBO, given=True)


@example("scanvi.py: counts, batches and half of the labels")
def scanvi() -> Example:
    z2_decoder, x_decoder = net(CODES + 3, 2 * CODES), net(CODES, 4)
    z2l_encoder, classifier, z1_encoder = (
        net(4, 2 * CODES + 2),
        net(CODES, 3),
        net(CODES + 3, 2 * CODES),
    )

    def model(counts: Tensor, y: Tensor | None = None) -> None:
        pyro.module("z2_decoder", z2_decoder)
        pyro.module("x_decoder", x_decoder)
        theta = pyro.param("inverse_dispersion", 10.0 * torch.ones(4), constraint=positive)
        with pyro.plate("batch", len(counts)), poutine.scale(scale=0.1):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(CODES), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)), obs=y)
            z2 = pyro.sample("z2", normal(z2_decoder(joined(z1, y))))
            size = pyro.sample("l", dist.LogNormal(torch.full((1,), 2.0), 0.5).to_event(1))
            mu = size * x_decoder(z2).softmax(-1)
            at = dist.NegativeBinomial(
                total_count=theta, logits=(mu + 1e-6).log() - (theta + 1e-6).log()
            )
            pyro.sample("x", at.to_event(1), obs=counts)

    def guide(counts: Tensor, y: Tensor | None = None) -> None:
        for name, module in (
            ("z2l", z2l_encoder),
            ("classifier", classifier),
            ("z1_encoder", z1_encoder),
        ):
            pyro.module(name, module)
        with pyro.plate("batch", len(counts)), poutine.scale(scale=0.1):
            found = z2l_encoder(counts.log1p())
            pyro.sample("l", dist.LogNormal(2.0 + found[:, :1], found[:, 1:2].exp()).to_event(1))
            z2 = pyro.sample("z2", normal(found[:, 2:]))
            label = dist.OneHotCategorical(logits=classifier(z2))
            if y is None:
                y = pyro.sample("y", label)
            else:
                pyro.factor("classification", -5.0 * label.log_prob(y), has_rsample=False)
            pyro.sample("z1", normal(z1_encoder(joined(z2, y))))

    counts = torch.poisson(4 * uniform(ROWS, 4), generator=torch.Generator().manual_seed(0))
    args = counts, labels()
    return Example(model, guide, args, TraceGraph_ELBO, options={"plate": "batch"}, given=True)


@example("contrib/cevae: a hidden confounder")
def cevae() -> Example:
    x_net, t_net, y_net = net(CODES, 3), net(CODES, 1), net(CODES + 1, 1)
    t_guess, y_guess, z_net = net(3, 1), net(3, 1), net(5, 2 * CODES)

    def model(x: Tensor, t: Tensor, y: Tensor) -> None:
        for name, module in (("x_nn", x_net), ("t_nn", t_net), ("y_nn", y_net)):
            pyro.module(name, module)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODES), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(x_net(z), 1.0).to_event(1), obs=x)
            pyro.sample("t", dist.Bernoulli(logits=t_net(z).squeeze(-1)), obs=t)
            treated = t.expand(z.shape[:-1]).unsqueeze(-1)
            mean = y_net(torch.cat([z, treated], -1)).squeeze(-1)
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(x: Tensor, t: Tensor, y: Tensor) -> None:
        for name, module in (("t_guess", t_guess), ("y_guess", y_guess), ("z_nn", z_net)):
            pyro.module(name, module)
        with pyro.plate("data", len(x)):
            apart = {"is_auxiliary": True}
            guessed = dist.Bernoulli(logits=t_guess(x).squeeze(-1))
            pyro.sample("t", guessed, obs=t, infer=apart)
            pyro.sample("y", dist.Normal(y_guess(x).squeeze(-1), 1.0), obs=y, infer=apart)
            pyro.sample("z", normal(z_net(torch.cat([x, t[:, None], y[:, None]], -1))))

    treated = (uniform(ROWS) < 0.5).to(torch.get_default_dtype())
    args = randn(ROWS, 3), treated, treated + randn(ROWS, seed=1)
    return Example(model, guide, args, TraceCausalEffect_ELBO, given=True)
