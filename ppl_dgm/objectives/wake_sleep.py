"""Reweighted wake-sleep, and the dreams of its sleep phase."""

from dataclasses import replace
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ppl_dgm.checked import checked
from ppl_dgm.objectives.elbo import check_score
from ppl_dgm.objectives.objective import Objective
from ppl_dgm.objectives.score_gradients import zero_valued
from ppl_dgm.program import Bound, Structure
from ppl_dgm.program.pyro_patches import unvalidated
from ppl_dgm.program.supports import support_of
from ppl_dgm.sampling.importance import log_mean_exp

__all__ = ["ReweightedWakeSleep"]


class ReweightedWakeSleep(Objective):
    r"""Reweighted wake-sleep, with separate objectives for model and guide.

    The model ascends the importance-weighted bound, the guide its log density at weighted draws.

    With draws $z_k \sim q(z \mid x)$ and self-normalised weights $\tilde w_k$ of each datum: model
    $\sum_k \tilde w_k \nabla_\theta \log p(x, z_k)$; guide, wake phase, $\sum_k \tilde w_k
    \nabla_\phi \log q(z_k \mid x)$; guide, sleep phase, $\nabla_\phi \log q(z' \mid x')$ with $(x',
    z')$ dreamed by the model. No gradient goes through the latents, of whatever kind. Bornschein
    and Bengio (2015), eqs. 8 and 12; Le et al. (2019). Unlike Pyro's it weights the particles of
    each datum on their own, so that minibatches are right. The value is the bound, `IWELBO`'s.

    Args:
        num_particles: K, for each datum.
        sleep: share of the sleep phase in the guide's gradient, 0 to 1. Dreamed data take the place
            of the arguments that the program observes, one dream for each datum.
        plate: name of the data plate.

    Raises:
        ValueError: for a share outside [0, 1]; a program without guide, or one with point masses;
            in the sleep phase, factors, auxiliary guide variables, or observed values that are not
            arguments of the program as given.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Bernoulli(logits=x - 0.5))  # the posterior
        >>> round(ReweightedWakeSleep(5, sleep=0.5).loss(model, guide, torch.zeros(1)), 4)
        1.138
    """

    @checked
    def __init__(self, num_particles: int, *, sleep: float = 0.0, plate: str = "data") -> None:
        super().__init__(num_particles, plate=plate)
        if not 0 <= sleep <= 1:
            raise ValueError(f"sleep is {sleep}; expected a share between 0 and 1")
        self.sleep = sleep

    def check(self, structure: Structure) -> None:
        fixed = [latent.name for latent in structure.latents if latent.point_mass]
        if not structure.has_guide or not structure.latents or fixed:
            raise ValueError(
                "ReweightedWakeSleep trains a guide that draws latents, but "
                + (f"the guide puts a point mass on {fixed}" if fixed else "no guide draws any")
                + "; give the program one, or use ELBO()"
            )
        check_score(structure, "ReweightedWakeSleep")
        if self.sleep and (
            structure.factors or any(latent.auxiliary for latent in structure.latents)
        ):
            raise ValueError(
                "the sleep phase dreams data and latents from the model, but the program has "
                "factors or its guide has auxiliary variables; use sleep=0"
            )

    def value(self, bound: Bound) -> Tensor:
        with torch.no_grad():
            values = bound.draw(self.num_particles).values
        log_q, joint = bound.log_guide(values), bound.log_joint(values)
        log_w = joint.total - log_q.detach()
        self.record(joint, log_q)
        guide = (1 - self.sleep) * (log_w.detach().softmax(0) * zero_valued(log_q)).sum(0)
        if self.sleep:
            guide = guide + self.sleep * zero_valued(log_guide_of_dream(bound))
        return (log_mean_exp(log_w) + guide) * joint.scale


def log_guide_of_dream(bound: Bound) -> Tensor:
    """Compute the guide's log density at draws of the model.

    It is log q(z' | x') of latents and data, `[data]`, or `[]` for the data set.
    """
    with torch.no_grad(), unvalidated():
        trace: Any = poutine.trace(poutine.uncondition(bound.model)).get_trace(
            *bound.args, **bound.kwargs
        )
    replaced = {name: trace.nodes[name] for name in bound.structure.observed}
    args, kwargs = with_dreamed_data(replaced, bound.args, dict(bound.kwargs))
    values = {
        latent.name: trace.nodes[latent.name]["value"].unsqueeze(0)
        for latent in bound.structure.latents
    }
    return replace(bound, args=args, kwargs=kwargs).log_guide(values)[0]


def with_dreamed_data(
    sites: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Replace the observed arguments by the model's draws."""
    dreamed = {id(site["infer"]["obs"]): as_observed(site) for site in sites.values()}
    given = {id(leaf) for leaf in tree_leaves((args, kwargs))}
    lost = [name for name, site in sites.items() if id(site["infer"]["obs"]) not in given]
    if lost:
        raise ValueError(
            f"the sleep phase hands dreamed data to the guide, but what the sites {lost} observe "
            "is not an argument of the program as it was given; pass obs=x unchanged (convert "
            "data before the call), or use sleep=0"
        )
    return tree_map(lambda leaf: dreamed.get(id(leaf), leaf), (args, kwargs))


def as_observed(site: Any) -> Tensor:
    """Convert a drawn value to the dtype of the data.

    A draw that is not a whole number keeps its dtype where the data are whole numbers.
    """
    dtype = site["infer"]["obs"].dtype
    return (
        site["value"].to(dtype)
        if dtype.is_floating_point or support_of(site["fn"]).is_discrete
        else site["value"]
    )
