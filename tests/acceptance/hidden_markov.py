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
    over,
    point,
    randn,
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


# ---- capture and recapture: animals seen in some years -------------------------------------------


CAPTURES = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]])


def seen_animals(survival: Callable, recapture: Callable, *names: str) -> Example:
    """Cormack-Jolly-Seber: `survival(t)` and `recapture(t)` draw probabilities of a year."""

    def model(history: Tensor) -> None:
        animals, years = history.shape
        alive, by_year = {"enumerate": "parallel"}, {}
        for t in range(years):
            by_year[t] = survival(t, years), recapture(t, years)
        with pyro.plate("animals", animals, dim=-1):
            z, first = torch.ones(animals), torch.zeros(animals).bool()
            for t in pyro.markov(range(years)):
                phi, rho = by_year[t]
                with poutine.mask(mask=first):
                    mu_z = first.to(z) * phi * z + (1 - first.to(z))
                    z = pyro.sample(f"z_{t}", dist.Bernoulli(mu_z), infer=alive)
                    mu_y = first.to(z) * rho * z + (1 - first.to(z))
                    pyro.sample(f"y_{t}", dist.Bernoulli(mu_y), obs=history[:, t])
                first = first | history[:, t].bool()

    data = CAPTURES.to(torch.get_default_dtype())
    guide = over(model, *names)
    return Example(model, guide, (data,), enumerating(1), options={"plate": "animals"})


def once(name: str) -> Callable:
    """A probability that all years share, drawn in the first."""
    kept = []

    def draw(t: int, years: int) -> Tensor:
        if t == 0:
            kept[:] = [pyro.sample(name, dist.Uniform(0.0, 1.0))]
        return kept[0]

    return draw


def each(name: str) -> Callable:
    """A probability of each year's own."""
    return lambda t, years: pyro.sample(f"{name}_{t}", dist.Uniform(0.0, 1.0))


def logit_normal(name: str) -> Callable:
    """Probabilities of years about a common mean."""
    kept = []

    def draw(t: int, years: int) -> Tensor:
        if t == 0:
            mean = pyro.sample(f"{name}_mean", dist.Uniform(0.0, 1.0))
            scale = pyro.sample(f"{name}_sigma", dist.Uniform(0.0, 10.0))
            kept[:] = [(mean / (1 - mean)).log(), scale]
        return pyro.sample(f"{name}_logit_{t}", dist.Normal(*kept)).sigmoid()

    return draw


@example("capture_recapture/cjs.py: model 1")
def cjs_1() -> Example:
    return seen_animals(once("phi"), once("rho"), "phi", "rho")


@example("capture_recapture/cjs.py: model 2")
def cjs_2() -> Example:
    return seen_animals(each("phi"), once("rho"), *[f"phi_{t}" for t in range(4)], "rho")


@example("capture_recapture/cjs.py: model 3")
def cjs_3() -> Example:
    names = ["phi_mean", "phi_sigma", *[f"phi_logit_{t}" for t in range(4)]]
    return seen_animals(logit_normal("phi"), once("rho"), *names, "rho")


@example("capture_recapture/cjs.py: model 4")
def cjs_4() -> Example:
    names = [f"{name}_{t}" for name in ("phi", "rho") for t in range(4)]
    return seen_animals(each("phi"), each("rho"), *names)


@example("capture_recapture/cjs.py: model 5")
def cjs_5() -> Example:
    sex = torch.tensor([0, 1, 1, 0, 1])

    def survival(t: int, years: int) -> Tensor:
        if t == 0:
            kept[:] = [pyro.sample("phi", dist.Uniform(0.0, 1.0).expand([2]).to_event(1))]
        return kept[0][..., sex]

    kept: list[Tensor] = []
    return seen_animals(survival, once("rho"), "phi", "rho")


# ---- one of few ----------------------------------------------------------------------------------


@example("tracking_1d.py")
def tracking() -> Example:
    def model(observations: Tensor, frames: Tensor) -> None:
        num_objects = 2
        states = pyro.sample("states", dist.Normal(0.0, 1.0).expand([num_objects, 2]).to_event(2))
        positions = states[..., 0] + states[..., 1] * frames.unsqueeze(-1)
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("frames", len(frames), dim=-2), pyro.plate("detections", 2, dim=-1):
            assign = pyro.sample(
                "assign",
                dist.Categorical(torch.ones(num_objects + 1)),
                infer={"enumerate": "parallel"},
            )
            is_spurious = assign == num_objects
            chosen = assign.clone()
            chosen[is_spurious] = 0
            predicted = Vindex(positions.unsqueeze(-2))[..., chosen]
            pyro.sample(
                "observations",
                dist.MaskedMixture(
                    is_spurious, dist.Normal(predicted, scale), dist.Normal(0.0, 3.0)
                ),
                obs=observations,
            )

    frames = torch.arange(4.0) / 2
    observations = torch.stack([0.5 + frames, 1.0 - frames], -1) + 0.1 * randn(4, 2)
    return Example(model, over(model, "states"), (observations, frames), enumerating(2))


@example("toy_mixture_model_discrete_enumeration.py")
def burglary() -> Example:
    def model(calls: Tensor) -> None:
        probs = pyro.param("probs", torch.tensor([0.1, 0.3, 0.6]), dist.constraints.unit_interval)
        table = pyro.param(
            "table", torch.tensor([[0.1, 0.6], [0.7, 0.9]]), dist.constraints.unit_interval
        )
        with pyro.plate("data", len(calls)):
            on = {"enumerate": "parallel"}
            burglary = pyro.sample("burglary", dist.Bernoulli(probs[0]), infer=on).long()
            quake = pyro.sample("earthquake", dist.Bernoulli(probs[1]), infer=on).long()
            alarm = pyro.sample("alarm", dist.Bernoulli(Vindex(table)[burglary, quake]), infer=on)
            pyro.sample("calls", dist.Bernoulli(0.1 + 0.8 * alarm), obs=calls)

    def truth() -> float:
        rings = 0.9 * (0.7 * 0.1 + 0.3 * 0.6) + 0.1 * (0.7 * 0.7 + 0.3 * 0.9)
        heard = 0.1 + 0.8 * rings
        return dist.Bernoulli(torch.tensor(heard).double()).log_prob(calls.double()).sum().item()

    calls = torch.tensor([1.0, 0.0, 0.0, 1.0]).to(torch.get_default_dtype())
    return Example(model, nothing, (calls,), enumerating(), truth)


@example("rsa/generics.py: literal listener and speaker")
def generics() -> Example:
    def model(heard: Tensor) -> None:
        world = pyro.sample(
            "world", dist.Categorical(torch.ones(4)), infer={"enumerate": "parallel"}
        )
        optimality = pyro.sample("optimality", dist.Gamma(2.0, 1.0))
        meaning = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
        listener = (meaning + 1e-3) / (meaning + 1e-3).sum(0)
        with pyro.plate("data", len(heard)):
            speaker = optimality.unsqueeze(-1) * Vindex(listener)[world].log()
            pyro.sample("utterance", dist.Categorical(logits=speaker), obs=heard)

    heard = torch.tensor([1, 1, 0])
    return Example(model, over(model, "optimality"), (heard,), enumerating())
