"""NumPyro's side of the speed table: a worker that times on demand, in an interpreter that has JAX.

It reads lines `problem<TAB>request<TAB>number...` and answers each with the seconds taken;
`speed.py` starts it. The requests are `fit` and `sample`, which make a contender, and its variants
`jit` and `scan`.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import block
from numpyro.infer import HMC, SVI, Trace_ELBO, TraceEnum_ELBO
from numpyro.infer.autoguide import AutoNormal

EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
ERRORS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def schools() -> tuple[Any, Any, Any]:
    effects, errors = jnp.array(EFFECTS), jnp.array(ERRORS)

    def model() -> None:
        mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
        scale = numpyro.sample("scale", dist.HalfCauchy(5.0))
        with numpyro.plate("data", 8):
            effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(mean + scale * effect, errors), obs=effects)

    return model, AutoNormal(model), Trace_ELBO()


def mixture() -> tuple[Any, Any, Any]:
    def model(x: Any) -> None:
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
        with numpyro.plate("components", 3):
            locs = numpyro.sample("locs", dist.Normal(0.0, 5.0))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            numpyro.sample("x", dist.Normal(locs[z], scale), obs=x)

    return model, AutoNormal(block(model, hide=["z"])), TraceEnum_ELBO(max_plate_nesting=1)


def regression() -> tuple[Any, Any, Any]:
    def model(features: Any, y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(jnp.zeros(50), 1.0).to_event(1))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", y.shape[0]):
            numpyro.sample("x", dist.Bernoulli(logits=features @ w + b), obs=y)

    return model, AutoNormal(model), Trace_ELBO()


def dense(name: str, fan_in: int, fan_out: int) -> tuple[Any, Any]:
    weight = numpyro.param(
        f"{name}.weight", lambda key: jax.random.normal(key, (fan_in, fan_out)) / np.sqrt(fan_in)
    )
    return weight, numpyro.param(f"{name}.bias", jnp.zeros(fan_out))


def perceptron(name: str, x: Any, sizes: list[int]) -> Any:
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        weight, bias = dense(f"{name}{i}", fan_in, fan_out)
        x = jnp.tanh(x @ weight + bias)
    return x


def vae() -> tuple[Any, Any, Any]:
    def model(x: Any) -> None:
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(50), 1.0).to_event(1))
            weight, bias = dense("out", 200, 784)
            logits = perceptron("decoder", z, [50, 200, 200]) @ weight + bias
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        hidden = perceptron("encoder", x, [784, 200, 200])
        (weight, bias), (weight2, bias2) = dense("loc", 200, 50), dense("scale", 200, 50)
        with numpyro.plate("data", x.shape[0]):
            scale = jnp.exp(hidden @ weight2 + bias2)
            numpyro.sample("z", dist.Normal(hidden @ weight + bias, scale).to_event(1))

    return model, guide, Trace_ELBO()


def made() -> tuple[Any, Any, Any]:
    hidden, inputs = np.arange(500) % 783, np.arange(784)
    mask1 = jnp.array((hidden >= inputs[:, None]).astype("f"))
    mask2 = jnp.array((inputs > hidden[:, None]).astype("f"))

    def model(x: Any) -> None:
        (weight, bias), (weight2, bias2) = dense("first", 784, 500), dense("second", 500, 784)
        units = jax.nn.relu(x @ (weight * mask1) + bias)
        with numpyro.plate("data", x.shape[0]):
            logits = units @ (weight2 * mask2) + bias2
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    return model, lambda x: None, Trace_ELBO()


PROBLEMS = {
    "eight schools": schools,
    "mixture, enumerated": mixture,
    "logistic regression": regression,
    "VAE": vae,
    "MADE": made,
}


class Contender:
    """A step `state -> (state, output)`, jitted and as a scan of `length` steps."""

    def __init__(self, step: Callable[[Any], Any], state: Any, length: int) -> None:
        self.state = state
        scan = jax.jit(lambda state: jax.lax.scan(lambda s, _: step(s), state, None, length=length))
        self.variants: dict[str, Callable[[Any], Any]] = {"jit": jax.jit(step), "scan": scan}

    @classmethod
    def of_fitting(cls, name: str, data: list[np.ndarray], length: int) -> "Contender":
        """One optimisation step."""
        model, guide, loss = PROBLEMS[name]()
        args = tuple(jnp.asarray(array) for array in data)
        svi = SVI(model, guide, numpyro.optim.Adam(1e-3), loss)
        return cls(
            lambda state: svi.update(state, *args), svi.init(jax.random.PRNGKey(0), *args), length
        )

    @classmethod
    def of_sampling(
        cls,
        name: str,
        data: list[np.ndarray],
        length: int,
        chains: int,
        leapfrog: int,
        step_size: float,
    ) -> "Contender":
        """One move of all chains by HMC, as `MCMC(..., chain_method="vectorized")` makes it."""
        args = tuple(jnp.asarray(array) for array in data)
        settings = {"adapt_step_size": False, "adapt_mass_matrix": False}
        kernel = HMC(
            PROBLEMS[name]()[0],
            step_size=step_size,
            num_steps=leapfrog,
            trajectory_length=None,
            **settings,
        )
        keys = jax.random.split(jax.random.PRNGKey(0), chains)
        state = kernel.init(keys, 0, None, args, {})

        def move(state: Any) -> tuple[Any, Any]:
            state = kernel.sample(state, args, {})
            return state, state.accept_prob.mean()

        return cls(move, state, length)

    def run(self, variant: str, repetitions: int) -> float:
        """Seconds for so many calls."""
        function, state, loss = self.variants[variant], self.state, None
        start = time.perf_counter()
        for _ in range(repetitions):
            state, loss = function(state)
        jax.block_until_ready((state, loss))
        return time.perf_counter() - start


def main() -> None:
    """Answer requests until the end of the input.

    The data come from the file named first, cores from the second.
    """
    os.sched_setaffinity(0, set(range(int(sys.argv[2]))))
    with np.load(sys.argv[1]) as file:
        data = {
            name: [file[f"{name}/{i}"] for i in range(int(file[f"{name}/count"]))]
            for name in PROBLEMS
        }
    made: dict[str, Contender] = {}
    answer = partial(print, flush=True)
    answer(f"numpyro {numpyro.__version__}, jax {jax.__version__}")
    for line in sys.stdin:
        name, request, *numbers = line.rstrip("\n").split("\t")
        try:
            if request == "fit":
                made[name] = Contender.of_fitting(name, data[name], int(numbers[0]))
            elif request == "sample":
                length, chains, leapfrog = map(int, numbers[:3])
                made[name] = Contender.of_sampling(
                    name, data[name], length, chains, leapfrog, float(numbers[3])
                )
            answer(made[name].run(request, int(numbers[0])) if request in ("jit", "scan") else 0.0)
        except (ImportError, KeyError) as error:  # enumeration needs funsor
            print(f"{name}: {error}", file=sys.stderr)
            answer("nan")


if __name__ == "__main__":
    main()
