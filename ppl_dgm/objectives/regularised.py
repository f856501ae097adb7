"""ELBO variants with a modified KL term.

Free bits put a floor under it, beta-TC divides it into weighted parts.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_dgm.checked import checked
from ppl_dgm.objectives.elbo import check_reparameterised
from ppl_dgm.objectives.objective import KLWeight, Objective
from ppl_dgm.program import LogJoint, Structure
from ppl_dgm.program.bound_program import Bound
from ppl_dgm.program.kl_terms import Pair, PairedDraw, draw_pairs
from ppl_dgm.program.supports import innermost

__all__ = ["BetaTC", "FreeBits"]


class FreeBits(Objective):
    r"""ELBO with a floor under the KL divergences.

    Each group of latents has `nats` of divergence for free, so that none is worth collapsing.

    $\mathbb{E}_q \log p(x \mid z) - \sum_g \max(\lambda, \mathrm{mean}_i \mathrm{KL}_g(q(z \mid
    x_i) \| p))$, the mean over the minibatch: Kingma et al. (2016), eq. 15. Divergences are
    analytic where torch knows them, else estimated from the draw. One draw of the latents.

    Args:
        nats: lambda, for each group.
        per: a group is one `"dimension"` of a latent, or one `"site"`.
        kl_weight: factor of the floored divergences; a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: for a negative floor, a guide that draws latents in another order than the
            model, or latents that are not reparameterised, summed out, masked, in a Python loop
            over the data plate, or both inside and outside it.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)  # ignores its latent
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.1, 1.0))  # KL 0.005
        >>> x = torch.zeros(1)
        >>> free, plain = FreeBits(0.25), FreeBits(0.0)
        >>> round(free.loss(model, guide, x) - plain.loss(model, guide, x), 3)
        0.245
    """

    @checked
    def __init__(
        self,
        nats: float = 0.1,
        *,
        per: Literal["dimension", "site"] = "dimension",
        kl_weight: KLWeight = 1.0,
        plate: str = "data",
    ) -> None:
        super().__init__(kl_weight=kl_weight, plate=plate)
        if not nats >= 0:
            raise ValueError(f"nats is {nats}; expected a number >= 0")
        self.nats, self.per = nats, per

    def check(self, structure: Structure) -> None:
        check_reparameterised(structure, "FreeBits")
        check_one_place(structure, "FreeBits")

    def value(self, bound: Bound) -> Tensor:
        draw = draw_pairs(bound)
        check_order(draw, bound.structure)
        floored = [self.floored(pair, draw.scale).sum() for pair in draw.pairs]
        joint = LogJoint(-torch.stack(floored).sum(), draw.likelihood.unsqueeze(0), draw.scale)
        return self.log_weights(joint, 0.0).mean(0) * draw.scale

    def floored(self, pair: Pair, scale: Any) -> Tensor:
        """Compute the floored KL divergences of the groups.

        They are averaged over data as these count, and are at least `nats` each.
        """
        divergence = divergences(pair)
        batch_dim = pair.latent.batch_dim
        if self.per == "site":
            divergence = divergence.reshape(*divergence.shape[:batch_dim], -1).sum(-1)
        if pair.latent.local:
            data = divergence.movedim(batch_dim - 1, -1)
            shares = scale / scale.mean() if isinstance(scale, Tensor) else 1.0
            divergence = (data * shares).mean(-1)
        return divergence.clamp_min(self.nats)


def check_order(draw: PairedDraw, structure: Structure) -> None:
    """Refuse guides that draw latents in another order.

    In the model's order each divergence is of one site. Otherwise a prior may depend on latents
    that the guide draws later.
    """
    drawn, declared = (
        [pair.latent.name for pair in draw.pairs],
        [latent.name for latent in structure.latents],
    )
    if drawn != declared:
        raise ValueError(
            f"the guide draws the latents in the order {drawn}, the model in the order {declared}, "
            "so that the KL divergence is not the sum of those of each given the former; draw "
            "them in the model's order, or use ELBO(kl_weight=...)"
        )


def check_one_place(structure: Structure, name: str) -> None:
    """Refuse latents in two places or in a loop.

    They must be all of each datum or all shared by all data, and not one site for each datum.
    """
    if not structure.per_datum and any(latent.local for latent in structure.latents):
        raise ValueError(
            f"{name} treats latents of each datum or latents shared by all data, but the program "
            "has both; use ELBO(kl_weight=...)"
        )
    if any(latent.local and latent.batch_dim == 0 for latent in structure.latents):
        raise ValueError(
            f"{name} needs a vectorised data plate, not a Python loop over it; use "
            "ELBO(kl_weight=...)"
        )


def divergences(pair: Pair) -> Tensor:
    """Compute the KL divergence of a latent, in nats.

    KL(q || p) is given dimension by dimension, `[*batch, *event]`, where both factorise, and
    `[*batch]` otherwise.
    """
    q, p = innermost(pair.guide), innermost(pair.model)
    if q.event_dim or p.event_dim:
        q, p = pair.guide, pair.model
    shape = pair.value.shape[: pair.value.dim() - q.event_dim]
    try:
        return kl_divergence(q, p).expand(shape)
    except NotImplementedError:
        return (q.log_prob(pair.value) - p.log_prob(pair.value)).expand(shape)


class BetaTC(Objective):
    r"""ELBO with a KL term in three weighted parts.

    This is the beta-TCVAE.

    $\mathbb{E}_x \mathrm{KL}(q(z \mid x) \| p(z)) = I_q(x; z) + \mathrm{KL}(q(z) \| \prod_d q(z_d))
    + \sum_d \mathrm{KL}(q(z_d) \| p(z_d))$ are weighted by alpha, beta and gamma; the second, the
    total correlation, is what makes dimensions dependent. Chen et al. (2018), eqs. 2 and 4. The
    aggregate posterior $q(z) = \frac1N \sum_n q(z \mid x_n)$ is estimated without bias from a
    minibatch of M data: the datum itself with weight 1/N, the others with $(N - 1) / (N (M - 1))$;
    from all data at once it is exact. With all weights one this is the ELBO, draw by draw. Several
    latents must be drawn independently given the datum: where the guide draws one from another, the
    total correlation is not seen.

    Args:
        num_data: N, size of the data set.
        beta: weight of the total correlation.
        alpha: weight of the mutual information of index and latents.
        gamma: weight of the dimensions' divergence from the prior (from a prior that does not
            factorise, as a whole).
        kl_weight: factor of all three; a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: for negative weights, fewer data than in a minibatch, latents outside the data
            plate or not reparameterised, or a guide whose dimensions are dependent.

    Example:
        >>> import torch
        >>> from ppl_dgm.families import VAE
        >>> from ppl_dgm.objectives import ELBO
        >>> x = torch.ones(4, 6)
        >>> vae = VAE(6, 2, hidden=[8]).initialise(x)
        >>> losses = []
        >>> for objective in (BetaTC(4, beta=1.0), ELBO()):
        ...     _ = torch.manual_seed(0)
        ...     losses.append(objective.loss(vae.model, vae.guide, x))
        >>> abs(losses[0] - losses[1]) < 1e-4
        True
    """

    @checked
    def __init__(
        self,
        num_data: int,
        beta: float = 6.0,
        *,
        alpha: float = 1.0,
        gamma: float = 1.0,
        kl_weight: KLWeight = 1.0,
        plate: str = "data",
    ) -> None:
        super().__init__(kl_weight=kl_weight, plate=plate)
        if num_data < 1 or not all(0 <= weight < math.inf for weight in (alpha, beta, gamma)):
            raise ValueError(
                f"num_data is {num_data}, alpha {alpha}, beta {beta}, gamma {gamma}; expected at "
                "least one datum and weights >= 0"
            )
        self.num_data, self.alpha, self.beta, self.gamma = num_data, alpha, beta, gamma

    def check(self, structure: Structure) -> None:
        check_reparameterised(structure, "BetaTC")
        if not structure.per_datum or any(latent.batch_dim != 1 for latent in structure.latents):
            raise ValueError(
                "BetaTC needs every latent inside the data plate and in no other, with to_event "
                "for its dimensions; use ELBO(kl_weight=...)"
            )

    def value(self, bound: Bound) -> Tensor:
        draw = draw_pairs(bound)
        each = torch.cat([cross_log_probs(pair) for pair in draw.pairs], -1)
        weights = self.log_mixing(each)
        conditional = each.diagonal().sum(0)
        aggregate = (each.sum(-1) + weights).logsumexp(1)
        marginals = (each + weights.unsqueeze(-1)).logsumexp(1).sum(-1)
        prior = torch.stack([pair.model.log_prob(pair.value) for pair in draw.pairs]).sum(0)
        information, correlation, dimensions = (
            conditional - aggregate,
            aggregate - marginals,
            marginals - prior,
        )
        divergence = self.alpha * information + self.beta * correlation + self.gamma * dimensions
        joint = LogJoint(-divergence, draw.likelihood.unsqueeze(0), draw.scale)
        return self.log_weights(joint, 0.0).mean(0) * draw.scale

    def log_mixing(self, each: Tensor) -> Tensor:
        """Compute mixture log weights `[data, data]` of the aggregate posterior.

        With them a minibatch stands for all data.
        """
        size, total = each.shape[0], self.num_data
        if size > total:
            raise ValueError(
                f"a minibatch has {size} data, but num_data is {total}; pass the size of the data "
                "set"
            )
        if size == 1:
            return each.new_zeros(1, 1)  # nothing to estimate the others from
        own = torch.eye(size, dtype=torch.bool, device=each.device)
        others = each.new_full((size, size), math.log((total - 1) / (total * (size - 1))))
        return others.masked_fill(own, -math.log(total))


def cross_log_probs(pair: Pair) -> Tensor:
    """Compute each draw's log density under every datum's guide.

    It is log q(z_i,d | x_j) of the draw of datum i under the guide of datum j, `[data i, data j,
    dimensions]`.
    """
    q = innermost(pair.guide)
    if q.event_dim:
        raise ValueError(
            "BetaTC needs a guide whose dimensions are independent given the datum, but "
            f"{pair.latent.name!r} is drawn from a {type(q).__name__}; use a diagonal one, e.g. "
            "Normal(loc, scale).to_event(1)"
        )
    value = pair.value
    return q.expand(value.shape).log_prob(value.unsqueeze(1)).reshape(len(value), len(value), -1)
