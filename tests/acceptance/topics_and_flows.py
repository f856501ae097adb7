"""Topics, factorised counts, random nets and flows."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms as T
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from acceptance.deep import CODES, PIXELS, ROWS, net, normal, pictures
from acceptance.registry import Example, enumerating, example, nothing, randn, uniform

positive = dist.constraints.positive


def documents() -> Tensor:
    """Counts of five words in eight documents of twelve words each."""
    words = (5 * uniform(ROWS, 12) ** 2).long()
    return nn.functional.one_hot(words, 5).to(torch.get_default_dtype()).sum(1)


@example("tutorial prodlda")
def prodlda() -> Example:
    decode = nn.Sequential(
        nn.Dropout(0.2), nn.Linear(CODES, 5, bias=False), nn.BatchNorm1d(5, affine=False)
    )
    encode = nn.Sequential(nn.Linear(5, 6), nn.Softplus(), nn.Dropout(0.2), nn.Linear(6, 2 * CODES))

    def model(docs: Tensor) -> None:
        pyro.module("decoder", decode)
        with pyro.plate("documents", docs.shape[0]):
            logtheta = pyro.sample(
                "logtheta", dist.Normal(docs.new_zeros(len(docs), CODES), 1.0).to_event(1)
            )
            count = decode(logtheta.softmax(-1)).softmax(-1)
            total = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total, count), obs=docs)

    def guide(docs: Tensor) -> None:
        pyro.module("encoder", encode)
        with pyro.plate("documents", docs.shape[0]):
            loc, log_scale = encode(docs).chunk(2, -1)
            pyro.sample("logtheta", dist.Normal(loc, (0.5 * log_scale).exp()).to_event(1))

    args = (documents(),)
    return Example(
        model, guide, args, TraceMeanField_ELBO, options={"plate": "documents"}, given=True
    )


@example("lda.py: amortised topics")
def lda() -> Example:
    predictor, topics, words, docs = net(4, 2), 2, 6, 3

    def model(data: Tensor, batch_size: int | None = None) -> None:
        with pyro.plate("topics", topics):
            pyro.sample("topic_weights", dist.Gamma(1.0 / topics, 1.0))
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(4) / 4))
        with pyro.plate("documents", docs) as ind:
            assert data.shape == (words, docs)
            data = data[:, ind]
            doc_topics = pyro.sample("doc_topics", dist.Dirichlet(torch.ones(topics)))
            with pyro.plate("words", words):
                on = {"enumerate": "parallel"}
                word_topics = pyro.sample("word_topics", dist.Categorical(doc_topics), infer=on)
                pyro.sample("doc_words", dist.Categorical(topic_words[word_topics]), obs=data)

    def guide(data: Tensor, batch_size: int | None = None) -> None:
        pyro.module("predictor", predictor)
        weights = pyro.param(
            "topic_weights_posterior", lambda: torch.ones(topics), constraint=positive
        )
        words_of = pyro.param(
            "topic_words_posterior",
            lambda: torch.ones(topics, 4),
            dist.constraints.greater_than(0.5),
        )
        with pyro.plate("topics", topics):
            pyro.sample("topic_weights", dist.Gamma(weights, 1.0))
            pyro.sample("topic_words", dist.Dirichlet(words_of))
        with pyro.plate("documents", docs, batch_size) as ind:
            counts = nn.functional.one_hot(data[:, ind], 4).to(torch.get_default_dtype()).sum(0)
            pyro.sample("doc_topics", dist.Dirichlet(predictor(counts).exp()))

    data = (uniform(words, docs) * 4).long()
    return Example(model, guide, (data,), enumerating(2), options={"plate": "documents"})


@example("sparse_gamma_def.py: a custom guide")
def sparse_gamma() -> Example:
    def layer(name: str, above: Tensor, weights: Tensor) -> Tensor:
        return pyro.sample(name, dist.Gamma(0.3, 0.3 / (above @ weights)).to_event(1))

    def model(x: Tensor) -> None:
        w_top = pyro.sample("w_top", dist.Gamma(0.1 * torch.ones(2, 3), 0.3).to_event(2))
        w_bottom = pyro.sample("w_bottom", dist.Gamma(0.1 * torch.ones(3, PIXELS), 0.3).to_event(2))
        with pyro.plate("data", len(x)):
            z_top = pyro.sample("z_top", dist.Gamma(0.1 * torch.ones(2), 0.1).to_event(1))
            z_bottom = layer("z_bottom", z_top, w_top)
            pyro.sample("obs", dist.Poisson(z_bottom @ w_bottom + 1e-4).to_event(1), obs=x)

    def gamma(name: str, *shape: int) -> dist.Distribution:
        softplus = nn.functional.softplus
        alpha = pyro.param(f"alpha_{name}", lambda: 0.5 + 0.1 * randn(*shape, seed=3))
        mean = pyro.param(f"mean_{name}", lambda: 0.1 * randn(*shape, seed=4))
        alpha, mean = softplus(alpha), softplus(mean)
        return dist.Gamma(alpha, alpha / mean)

    def guide(x: Tensor) -> None:
        pyro.sample("w_top", gamma("w_top", 2, 3).to_event(2))
        pyro.sample("w_bottom", gamma("w_bottom", 3, PIXELS).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z_top", gamma("z_top", len(x), 2).to_event(1))
            pyro.sample("z_bottom", gamma("z_bottom", len(x), 3).to_event(1))

    return Example(model, guide, (pictures(),))


class BayesianNet(PyroModule):
    """A hidden layer of random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = PyroModule[nn.Linear](1, 4), PyroModule[nn.Linear](4, 1)
        self.first.weight = PyroSample(dist.Normal(0.0, 1.0).expand([4, 1]).to_event(2))
        self.first.bias = PyroSample(dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        self.second.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 4]).to_event(2))
        self.second.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        mean = self.second(self.first(x).tanh()).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 0.3), obs=y)


@example("tutorial: Bayesian neural network")
def bayesian_net() -> Example:
    model, x = BayesianNet(), randn(10, 1)
    return Example(model, AutoNormal(model), (x, x[:, 0].sin()))


@example("tutorial normalizing_flows_i: spline coupling")
def spline_density() -> Example:
    flow = T.spline(2, count_bins=4)

    def model(x: Tensor) -> None:
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.TransformedDistribution(base, [flow]), obs=x)

    return Example(model, nothing, (randn(ROWS, 2),))


@example("tutorial normalizing_flows_ii: a conditional flow")
def conditional_flow() -> Example:
    flow = T.conditional_affine_autoregressive(2, 1, hidden_dims=[4])

    def model(x: Tensor, u: Tensor) -> None:
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            at = dist.ConditionalTransformedDistribution(base, [flow]).condition(u)
            pyro.sample("x", at, obs=x)

    return Example(model, nothing, (randn(ROWS, 2), randn(ROWS, 1, seed=1)))


@example("NumPyro: VAE in one module")
def one_module() -> Example:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.decode = net(CODES, PIXELS)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(CODES), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(1), obs=x)

    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.encode = net(PIXELS, 2 * CODES)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", normal(self.encode(x)))

    return Example(Model(), Guide(), (pictures(),))


@example("NumPyro: semi-supervised with a neural posterior of two latents")
def two_latents() -> Example:
    first, second = net(PIXELS, 2 * CODES), net(CODES, 2 * CODES)
    decode, deeper = net(CODES, PIXELS), net(CODES, 2 * CODES)

    def model(x: Tensor) -> None:
        pyro.module("decode", decode)
        pyro.module("deeper", deeper)
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(x.new_zeros(CODES), 1.0).to_event(1))
            z = pyro.sample("z", normal(deeper(top)))
            pyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("first", first)
        pyro.module("second", second)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(first(x)))
            pyro.sample("top", normal(second(z)))

    return Example(model, guide, (pictures(),))
