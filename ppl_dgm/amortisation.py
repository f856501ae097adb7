"""Per-datum refinement of variational parameters, and the amortisation gap."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ppl_dgm.bars import counted_steps
from ppl_dgm.checked import checked
from ppl_dgm.conditionals.guides import AmortisedGuide, LocalGuide
from ppl_dgm.markup import error_text
from ppl_dgm.objectives import ELBO
from ppl_dgm.program import Program
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.importance import weight_chunks
from ppl_dgm.sampling.weight_summary import WeightSummary

__all__ = ["amortisation_gap", "refine"]

FAR = 0.5  # of the way that steps in one direction would lead


@checked
def refine(
    program: Program,
    x: Tensor,
    *args: Any,
    num_steps: int = 500,
    learning_rate: float = 0.02,
    num_particles: int = 8,
    seed: int | None = 0,
    progress: bool = True,
    **kwargs: Any,
) -> Program:
    r"""Refine the encoder's variational parameters separately for each datum.

    The parameters of each datum start at the encoder's output and are improved by gradient ascent
    of its ELBO.

    $\lambda_i \leftarrow \lambda_i + \eta\, \nabla_{\lambda_i} E_{q(z; \lambda_i)}[\log p(x_i, z) -
    \log q(z; \lambda_i)]$ from $\lambda_i = \mathrm{encoder}(x_i)$, the model held. Many steps make
    stochastic variational inference (Hoffman et al. 2013), a few semi-amortised inference (Kim et
    al. 2018).

    Args:
        program: a program with an `AmortisedGuide`.
        x: data `[N, *event]`; further arguments as the model takes them.
        num_steps: steps of Adam, the step size falling linearly to zero.
        learning_rate: step size at first.
        num_particles: draws for each step and datum.
        seed: makes the result repeatable.
        progress: show a bar where it takes over two seconds.

    Returns:
        A program with the same model and a `LocalGuide` for these data.

    Raises:
        ValueError: for a guide that is not amortised, or fewer than one step.

    Example:
        >>> from ppl_dgm.families import VAE
        >>> x = (torch.rand(5, 4) < 0.5).float()
        >>> refine(VAE(4, 2, [3]), x, num_steps=2).guide.fn.params.shape
        torch.Size([5, 4])
    """
    x, guide = program.as_data(x), program.guide.fn if program.has_guide else None
    if not isinstance(guide, AmortisedGuide):
        raise ValueError(
            f"expected a program with an AmortisedGuide to refine, got {type(guide).__name__}"
        )
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; expected at least 1")
    with torch.no_grad():
        local = LocalGuide(guide.posterior, guide.encoder(x))
    refined = Program(program.model.fn, local, site=program.site, plate=program.plate).initialise(
        x, *args, **kwargs
    )
    objective, steps = ELBO(num_particles), counted_steps(num_steps, "refine", progress)
    with seeded(seed, x.device), steps:
        ascend(refined, local.params, objective, steps, learning_rate, (x, *args), kwargs)
    return refined


def ascend(
    program: Program,
    params: torch.nn.Parameter,
    objective: ELBO,
    steps: tqdm,
    learning_rate: float,
    args: tuple,
    kwargs: Mapping[str, Any],
) -> None:
    """Improve variational parameters by Adam on the ELBO.

    All other parameters keep their values and gradients.
    """
    optimiser = torch.optim.Adam([params], learning_rate)
    for step in steps:
        optimiser.param_groups[0]["lr"] = learning_rate * (1 - step / len(steps))
        loss = objective.differentiable_loss(program.model, program.guide, *args, **kwargs)
        params.grad = torch.autograd.grad(loss, params)[0]
        optimiser.step()


@dataclass(frozen=True, eq=False)
class AmortisationGap:
    """ELBO of each datum before and after refinement.

    `amortised` and `refined` are ELBOs in nats, `[N]`, with the encoder's parameters and with
    refined ones. `std_error` is the standard error of their difference.

    `warnings` tell why the gap should not be believed: refinement that did not arrive sees only a
    part of it.
    """

    amortised: Tensor
    refined: Tensor
    std_error: Tensor
    warnings: tuple[str, ...] = ()

    @property
    def gap(self) -> Tensor:
        """What amortisation costs each datum, in nats."""
        return self.refined - self.amortised

    def __repr__(self) -> str:
        error = error_text(self.std_error.square().mean().div(len(self.gap)).sqrt().item())
        mark = f" UNRELIABLE: {'; '.join(self.warnings)}" if self.warnings else ""
        return f"AmortisationGap({self.gap.mean():.4f} +- {error} nats per datum){mark}"


@checked
def amortisation_gap(
    program: Program,
    x: Tensor,
    *args: Any,
    num_steps: int = 500,
    learning_rate: float = 0.02,
    num_particles: int = 200,
    seed: int | None = 0,
    progress: bool = True,
    **kwargs: Any,
) -> AmortisationGap:
    r"""Measure the amortisation gap of an encoder for each datum.

    The gap is the ELBO that the encoder loses, $\mathrm{ELBO}(\lambda_i^*) -
    \mathrm{ELBO}(\mathrm{encoder}(x_i))$.

    Cremer, Li and Duvenaud (2018), equation 6. The rest of the gap to the evidence is that of the
    posterior's family.

    Args:
        program: a program with an `AmortisedGuide`.
        x: data `[N, *event]`; further arguments as the model takes them.
        num_steps: steps of refinement, see `refine`.
        learning_rate: see `refine`.
        num_particles: draws for each ELBO and datum.
        seed: makes the result repeatable.
        progress: show a bar where it takes over two seconds.

    Raises:
        ValueError: see `refine`.

    Example:
        >>> from ppl_dgm.families import PPCA, VAE
        >>> x = (torch.rand(5, 4) < 0.5).float()
        >>> amortisation_gap(VAE(4, 2, [3]), x, num_steps=5).gap.shape
        torch.Size([5])
    """
    x = program.as_data(x)
    refined = refine(
        program,
        x,
        *args,
        num_steps=num_steps,
        learning_rate=learning_rate,
        seed=seed,
        progress=progress,
        **kwargs,
    )
    (amortised, error), (better, other) = (
        elbos(each, (x, *args), kwargs, num_particles, seed) for each in (program, refined)
    )
    reach = learning_rate * (num_steps + 1) / 2  # the sum of all step sizes
    with torch.no_grad():
        moved = (refined.guide.fn.params - program.guide.fn.encoder(x)).abs().flatten(1).amax(1)
    warnings = travel_alarm(moved / reach)
    return AmortisationGap(amortised, better, (error.square() + other.square()).sqrt(), warnings)


def travel_alarm(travel: Tensor) -> tuple[str, ...]:
    """Warn if the refinement of some data has not converged.

    `travel`, `[N]`, is the distance moved as a share of the farthest that the steps can reach. A
    datum that moved straight on for more than half of it counts as not converged.
    """
    share = float((travel > FAR).double().mean())
    text = (
        f"refinement was still on its way for {100 * share:.3g} % of the data, so that the gap is "
        "larger; take more steps, or a larger learning_rate"
    )
    return (text,) if share else ()


def elbos(
    program: Program, args: tuple, kwargs: Mapping[str, Any], num_particles: int, seed: int | None
) -> tuple[Tensor, Tensor]:
    """Estimate the ELBO of each datum and its standard error.

    Both have shape `[N]`. A `LocalGuide` takes all of its data together.
    """
    bound = program.bind(*args, **kwargs).in_double()
    summaries: dict[int, WeightSummary] = {}
    with torch.no_grad(), seeded(seed, bound.device):
        for chunk in weight_chunks(bound, num_particles):
            summaries.setdefault(chunk.start, WeightSummary(num_particles)).add(chunk.log_weights)
    parts = summaries.values()
    return torch.cat([part.mean for part in parts]), torch.cat(
        [part.mean_std_error for part in parts]
    )
