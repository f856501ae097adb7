"""Hidden Markov models after `examples/hmm.py`, and others that sum out states."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from acceptance.registry import (
    Example,
    enumerating,
    example,
    log_sum_over,
    nothing,
    point,
    uniform,
)

STATES, TONES, STEPS = 3, 4, 5
LENGTHS = torch.tensor([5, 3, 4])


def sequences() -> tuple[Tensor, Tensor]:
    """Chords `[sequences, steps, tones]` and their lengths."""
    return (uniform(3, STEPS, TONES) < 0.3).to(torch.get_default_dtype()), LENGTHS


def tables(*emission: int) -> tuple[Tensor, Tensor]:
    """Transition and emission probabilities, as all of the models draw them."""
    transition = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(STATES) + 0.1).to_event(1))
    return transition, pyro.sample(
        "probs_y", dist.Beta(0.1, 0.9).expand(emission).to_event(len(emission))
    )


def chords(model: Callable, nesting: int = 2, guide: Callable | None = None) -> Example:
    """An example of chords, with point masses for the tables."""
    guide = guide or point(model, "probs_x", "probs_y")
    return Example(model, guide, sequences(), enumerating(nesting))


@example("hmm.py: model 0")
def model_0() -> Example:
    @config_enumerate
    def model(sequences: Tensor, lengths: Tensor, batch_size: int | None = None) -> None:
        assert sequences.shape == (3, STEPS, TONES)
        with poutine.mask(mask=torch.tensor(True)):
            probs_x, probs_y = tables(STATES, TONES)
        tones = pyro.plate("tones", TONES, dim=-1)
        for i in pyro.plate("sequences", len(sequences), batch_size):
            length = lengths[i]
            sequence, x = sequences[i, :length], 0
            for t in pyro.markov(range(length)):
                x = pyro.sample(f"x_{i}_{t}", dist.Categorical(probs_x[x]))
                with tones:
                    pyro.sample(
                        f"y_{i}_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=sequence[t]
                    )

    return chords(model, 1)


@example("hmm.py: model 1")
def model_1() -> Example:
    def model(sequences: Tensor, lengths: Tensor, batch_size: int | None = None) -> None:
        num_sequences, max_length, _ = sequences.shape
        assert lengths.shape == (num_sequences,)
        assert lengths.max() <= max_length
        probs_x, probs_y = tables(STATES, TONES)
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", num_sequences, batch_size, dim=-2) as batch:
            lengths, x = lengths[batch], 0
            for t in pyro.markov(range(lengths.max())):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = pyro.sample(
                        f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"}
                    )
                    with tones:
                        pyro.sample(
                            f"y_{t}",
                            dist.Bernoulli(probs_y[x.squeeze(-1)]),
                            obs=sequences[batch, t],
                        )

    return chords(model)


@example("hmm.py: model 2")
def model_2() -> Example:
    def model(sequences: Tensor, lengths: Tensor, batch_size: int | None = None) -> None:
        probs_x, probs_y = tables(STATES, 2, TONES)
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(sequences), batch_size, dim=-2) as batch:
            lengths, x, y = lengths[batch], 0, 0
            for t in pyro.markov(range(lengths.max())):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = pyro.sample(
                        f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"}
                    )
                    with tones as tone:
                        given = Vindex(probs_y)[x, y, tone]
                        y = pyro.sample(
                            f"y_{t}", dist.Bernoulli(given), obs=sequences[batch, t]
                        ).long()

    return chords(model)


def pair_tables() -> tuple[Tensor, Tensor, Tensor]:
    """Tables of two chains of two states each."""
    prior = dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1)
    probs_w, probs_x = pyro.sample("probs_w", prior), pyro.sample("probs_x", prior)
    probs_y = pyro.sample("probs_y", dist.Beta(0.1, 0.9).expand([2, 2, TONES]).to_event(3))
    return probs_w, probs_x, probs_y


def factorial(linked: bool) -> Callable:
    """Two chains that emit together, the second led by the first or not."""

    def model(sequences: Tensor, lengths: Tensor, batch_size: int | None = None) -> None:
        probs_w, probs_x, probs_y = pair_tables()
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(sequences), batch_size, dim=-2) as batch:
            lengths = lengths[batch]
            w, x = 0, 0
            for t in pyro.markov(range(lengths.max())):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]))
                    led = 0.5 * (probs_x[w] + Vindex(probs_x)[x]) if linked else probs_x[x]
                    x = pyro.sample(f"x_{t}", dist.Categorical(led))
                    with tones as tone:
                        given = Vindex(probs_y)[w, x, tone]
                        pyro.sample(f"y_{t}", dist.Bernoulli(given), obs=sequences[batch, t])

    return config_enumerate(model)


@example("hmm.py: model 3")
def model_3() -> Example:
    model = factorial(linked=False)
    return chords(model, guide=point(model, "probs_w", "probs_x", "probs_y"))


@example("hmm.py: model 4")
def model_4() -> Example:
    model = factorial(linked=True)
    return chords(model, guide=point(model, "probs_w", "probs_x", "probs_y"))


class TonesGenerator(nn.Module):
    """Tones given the state and the tones before."""

    def __init__(self) -> None:
        super().__init__()
        self.x_to_hidden, self.y_to_hidden = nn.Linear(STATES, 6), nn.Linear(TONES, 6)
        self.hidden_to_logits = nn.Linear(6, TONES)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        one_hot = y.new_zeros(*x.shape[:-1], STATES).scatter_(-1, x, 1.0)
        return self.hidden_to_logits((self.x_to_hidden(one_hot) + self.y_to_hidden(y)).relu())


@example("hmm.py: model 5")
def model_5() -> Example:
    generate = TonesGenerator()

    def model(sequences: Tensor, lengths: Tensor, batch_size: int | None = None) -> None:
        pyro.module("tones_generator", generate)
        probs_x = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(STATES) + 0.1).to_event(1))
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(sequences), batch_size, dim=-2) as batch:
            lengths, x, y = lengths[batch], 0, sequences.new_zeros(TONES)
            for t in pyro.markov(range(lengths.max())):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = pyro.sample(
                        f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"}
                    )
                    with tones:
                        logits = generate(x, y)
                        y = pyro.sample(
                            f"y_{t}", dist.Bernoulli(logits=logits), obs=sequences[batch, t]
                        )

    return chords(model, guide=point(model, "probs_x"))


@example("hmm.py: model 6")
def model_6() -> Example:
    def model(sequences: Tensor, lengths: Tensor, batch_size: int | None = None) -> None:
        prior = dist.Dirichlet(0.9 * torch.eye(STATES) + 0.1).expand([STATES, STATES]).to_event(2)
        probs_x = pyro.sample("probs_x", prior)
        probs_y = pyro.sample("probs_y", dist.Beta(0.1, 0.9).expand([STATES, TONES]).to_event(2))
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(sequences), batch_size, dim=-2) as batch:
            lengths = lengths[batch]
            x_curr, x_prev = torch.tensor(0), torch.tensor(0)
            for t in pyro.markov(range(lengths.max()), history=2):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    given = Vindex(probs_x)[x_prev, x_curr]
                    x_prev, x_curr = (
                        x_curr,
                        pyro.sample(
                            f"x_{t}", dist.Categorical(given), infer={"enumerate": "parallel"}
                        ),
                    )
                    with tones:
                        emitted = probs_y[x_curr.squeeze(-1)]
                        pyro.sample(f"y_{t}", dist.Bernoulli(emitted), obs=sequences[batch, t])

    return chords(model)


@example("hmm.py: model 7")
def model_7() -> Example:
    generate = TonesGenerator()

    def model(sequences: Tensor, lengths: Tensor, batch_size: int | None = None) -> None:
        pyro.module("tones_generator", generate)
        probs_x = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(STATES) + 0.1).to_event(1))
        with pyro.plate("sequences", len(sequences), batch_size, dim=-1) as batch:
            y = sequences[batch]
            before = torch.cat([y.new_zeros((*y.shape[:-2], 1, TONES)), y[..., :-1, :]], -2)
            x = torch.arange(STATES).reshape(STATES, 1)
            logits = generate(x, before.unsqueeze(-2))
            start = torch.eye(STATES)[0].log().clamp(min=-30.0)
            chain = dist.DiscreteHMM(
                start, probs_x.log(), dist.Bernoulli(logits=logits).to_event(1)
            )
            pyro.sample("y", chain, obs=y)

    return Example(model, point(model, "probs_x"), sequences())


# ---- with tables as parameters: the forward algorithm knows their evidence -----------------------


TRANSITION = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
LOCS = torch.tensor([-1.0, 0.5, 2.0])
SIGNAL = torch.tensor([-0.8, 0.1, 0.6, 1.7])


@example("tutorial enumeration: Gaussian HMM")
def enumerated_chain() -> Example:
    def model(data: Tensor) -> None:
        transition = pyro.param(
            "transition", TRANSITION.to(data), constraint=dist.constraints.simplex
        )
        locs, x = pyro.param("locs", LOCS.to(data).clone()), 0
        for t in pyro.markov(range(len(data))):
            x = pyro.sample(
                f"x_{t}", dist.Categorical(transition[x]), infer={"enumerate": "parallel"}
            )
            pyro.sample(f"y_{t}", dist.Normal(locs[x], 1.0), obs=data[t])

    def path(*states: int) -> Tensor:
        chain = zip((0, *states), states, strict=False)
        moves = sum(TRANSITION.double()[a, b].log() for a, b in chain)
        return moves + dist.Normal(LOCS.double()[list(states)], 1.0).log_prob(SIGNAL.double()).sum()

    data = SIGNAL.to(torch.get_default_dtype())
    truth = lambda: log_sum_over(path, *[3] * len(SIGNAL))  # noqa: E731
    return Example(model, nothing, (data,), enumerating(0), truth)


@example("mixed_hmm: zero-inflated steps, random effects")
def mixed_hmm() -> Example:
    def model(steps: Tensor) -> None:
        groups, individuals, times = steps.shape
        probs_e = pyro.param("probs_e", torch.ones(2) / 2, constraint=dist.constraints.simplex)
        theta_g = pyro.param("theta_g", torch.tensor([-0.5, 0.5]))
        gamma = pyro.param("gamma", 0.5 * torch.eye(2))
        concentration = pyro.param(
            "step_concentration", torch.tensor([1.0, 2.0]), dist.constraints.positive
        )
        zero = pyro.param(
            "zero", torch.tensor([0.2, 0.4]), constraint=dist.constraints.unit_interval
        )
        on = {"enumerate": "parallel"}
        with pyro.plate("group", groups, dim=-2):
            e_g = pyro.sample("e_g", dist.Categorical(probs_e), infer=on)
            with pyro.plate("individual", individuals, dim=-1):
                e_i = pyro.sample("e_i", dist.Categorical(probs_e), infer=on)
                state = torch.tensor(0)
                for t in pyro.markov(range(times)):
                    shift = (Vindex(theta_g)[e_g] + Vindex(theta_g)[e_i]).unsqueeze(-1)
                    logits = Vindex(gamma)[state, :] + shift * torch.tensor([1.0, 0.0])
                    state = pyro.sample(f"y_{t}", dist.Categorical(logits=logits), infer=on)
                    step, inflated = steps[..., t], Vindex(zero)[state]
                    pyro.sample(f"inflated_{t}", dist.Bernoulli(inflated), obs=(step == 0).to(step))
                    pyro.sample(
                        f"step_{t}",
                        dist.MaskedMixture(
                            step == 0,
                            dist.Gamma(Vindex(concentration)[state], 1.0),
                            dist.Delta(torch.tensor(0.0)),
                        ),
                        obs=step,
                    )

    steps = -uniform(2, 3, 4).log()
    steps[0, 1, 2] = steps[1, 0, 0] = 0.0
    return Example(model, nothing, (steps,), enumerating(2))
