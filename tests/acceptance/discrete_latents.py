"""Animals seen again, detections, burglars and speakers: discrete latents summed out."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor

from acceptance.registry import (
    Example,
    enumerating,
    example,
    nothing,
    over,
    randn,
)

STATES, TONES, STEPS = 3, 4, 5


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
