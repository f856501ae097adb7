"""Prior distributions of a latent vector.

They are modules that return a distribution of event shape `[L]`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.conditional import Conditional
from ppl_dgm.conditionals.guides import AmortisedGuide
from ppl_dgm.transforms import FlowDistribution
from ppl_dgm.transforms.distribution import Held
from ppl_dgm.validation import check_sizes

__all__ = [
    "BernoulliPrior",
    "FlowPrior",
    "GaussianMixturePrior",
    "LatentPrior",
    "StandardNormal",
    "VampPrior",
]


class LatentPrior(Conditional):
    """Prior distribution of a latent vector `[L]`.

    It may have parameters or none.
    """

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        check_sizes(num_latents=num_latents)
        self.num_latents = num_latents

    @abstractmethod
    def forward(self) -> Any:
        """The distribution: batch `[]`, event `[L]`."""


class StandardNormal(LatentPrior):
    """z ~ N(0, I).

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    zeros: Tensor

    @checked
    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents)
        self.register_buffer("zeros", torch.zeros(num_latents), persistent=False)

    def forward(self) -> Any:
        """The standard normal distribution."""
        return dist.Normal(self.zeros, 1.0).to_event(1)


class BernoulliPrior(LatentPrior):
    """Independent binary latents with learned probabilities.

    They are the top of a sigmoid belief net (Neal 1992).

    `VAE(D, L, hidden=[], prior=BernoulliPrior(L), guide=BernoulliPosterior(L))` is the net with one
    layer.

    Example:
        >>> BernoulliPrior(3)().log_prob(torch.ones(3)).exp()
        tensor(0.1250, grad_fn=...)
    """

    @checked
    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents)
        self.logits = nn.Parameter(torch.zeros(num_latents))

    def forward(self) -> Any:
        """Independent Bernoulli variables."""
        return dist.Bernoulli(logits=self.logits).to_event(1)


class GaussianMixturePrior(LatentPrior):
    r"""Gaussian mixture prior with learned means and scales.

    $z \sim \sum_k \pi_k N(\mu_k, \mathrm{diag}(\sigma_k^2))$ is the prior of a GMVAE.

    Args:
        num_latents: size L.
        num_components: K.
        learned_weights: whether the weights are learned too; uniform otherwise.

    Raises:
        ValueError: sizes below one.

    Example:
        >>> GaussianMixturePrior(3, 10)().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    logits: Tensor

    @checked
    def __init__(
        self, num_latents: int, num_components: int, learned_weights: bool = False
    ) -> None:
        super().__init__(num_latents)
        check_sizes(num_components=num_components)
        self.locs = nn.Parameter(torch.randn(num_components, num_latents))
        self.log_scales = nn.Parameter(torch.zeros(num_components, num_latents))
        start = torch.zeros(num_components)
        if learned_weights:
            self.logits = nn.Parameter(start)
        else:
            self.register_buffer("logits", start)

    def forward(self) -> Any:
        """The mixture, its component summed out."""
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), self._components())

    @torch.no_grad()
    def start_from_kmeans(self, z: Tensor, seed: int = 0) -> "GaussianMixturePrior":
        """Set the components to k-means clusters of latents `[N, L]`.

        The latents are, for example, the guide's means after some training with another prior.
        Returns itself.

        Raises:
            ValueError: for latents of another size or fewer than components.
        """
        size = len(self.locs)
        if z.dim() != 2 or z.shape[1] != self.num_latents or len(z) < size:
            raise ValueError(
                f"expected latents [N, {self.num_latents}] with N >= {size}, got shape "
                f"{list(z.shape)}"
            )
        from sklearn.cluster import KMeans  # noqa: PLC0415 - seconds of import, for few users

        clusters = KMeans(size, n_init=10, random_state=seed)  # type: ignore[arg-type]
        clusters.fit(z.double().cpu().numpy())
        labels = torch.as_tensor(clusters.labels_).long().to(z.device)
        centres = torch.as_tensor(clusters.cluster_centers_).to(z)
        member = nn.functional.one_hot(labels, size).to(z)
        variance = (
            member.T @ (z - centres[labels]).square() / member.sum(0).clamp_min(1).unsqueeze(-1)
        )
        self.locs.copy_(centres)
        self.log_scales.copy_(variance.clamp_min(1e-4).log() / 2)
        return self

    def responsibilities(self, z: Tensor) -> Tensor:
        """Compute the posterior probability of each component.

        p(k | z) for latents `[..., L]` has shape `[..., K]`. It is the clustering of a GMVAE.
        """
        return (self.logits.log_softmax(-1) + self._components().log_prob(z.unsqueeze(-2))).softmax(
            -1
        )

    def _components(self) -> Any:
        return dist.Normal(self.locs, self.log_scales.exp()).to_event(1)


class VampPrior(LatentPrior):
    r"""Mixture of the guide's posteriors at learned pseudo-data.

    $z \sim \frac{1}{K} \sum_k q(z \mid u_k)$ with K pseudo-data u (Tomczak and Welling 2018).

    Args:
        guide: the amortised guide of the same VAE, which is given to it too: `VAE(...,
            prior=VampPrior(guide, x[:50]), guide=guide)`.
        start: the pseudo-data at the start, e.g. some of the data, `[K, D]`.

    Raises:
        ValueError: pseudo-data that are not a matrix.

    Example:
        >>> from ppl_dgm.conditionals.guides import DiagonalNormal
        >>> guide = AmortisedGuide(nn.Linear(4, 6), DiagonalNormal(3))
        >>> VampPrior(guide, torch.rand(7, 4))().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    @checked
    def __init__(self, guide: AmortisedGuide, start: Tensor) -> None:
        super().__init__(guide.posterior.num_latents)
        if start.dim() != 2:
            raise ValueError(
                f"expected pseudo-data [K, D] to start from, got shape {list(start.shape)}"
            )
        self.pseudo_data = nn.Parameter(start.detach().clone())
        self._guide = (guide,)  # in a tuple: its parameters are the guide's

    def forward(self) -> Any:
        """The mixture of the guide's distributions at the pseudo-data."""
        weights = dist.Categorical(logits=torch.zeros_like(self.pseudo_data[:, 0]))
        return dist.MixtureSameFamily(weights, self._guide[0].distribution(self.pseudo_data))


class FlowPrior(LatentPrior):
    """Normalising flow prior from standard normal noise.

    The noise e passes through the transforms: z = t_n(... t_1(e) ...).

    Args:
        num_latents: size L.
        transforms: those of `ppl_dgm.transforms`, Pyro's and torch's, with an inverse; modules
            among them and their parts are learned. For a density in one pass, as objectives want
            it, the inverse must be as fast as the transform: coupling layers, say.

    Raises:
        ValueError: for a transform without an inverse, or one that is the inverse of a module.

    Example:
        >>> from ppl_dgm.transforms import Coupling
        >>> prior = FlowPrior(4, [Coupling(4), Coupling(4, flipped=True)])
        >>> prior().log_prob(torch.zeros(5, 4)).shape
        torch.Size([5])
    """

    @checked
    def __init__(self, num_latents: int, transforms: Sequence[Any]) -> None:
        super().__init__(num_latents)
        self.noise = StandardNormal(num_latents)
        self.transforms = Held(tuple(transforms))
        self().log_prob(self.noise.zeros)  # refuses transforms that only draw

    def forward(self) -> Any:
        """The transformed distribution, scored at the present parameters."""
        return FlowDistribution(self.noise(), self.transforms())
