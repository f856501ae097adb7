"""Mixtures: the component of each datum is summed out exactly."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.bars import counted_steps
from ppl_dgm.checked import checked
from ppl_dgm.conditionals.components import Components, named_components
from ppl_dgm.program import Program
from ppl_dgm.validation import warn_of_rounding

__all__ = ["Mixture"]


class Mixture(Program):
    r"""Finite mixture with an exact density.

    $p(x) = \sum_k \pi_k\, p(x \mid \theta_k)$; the component z is enumerated.

    Args:
        num_dims: number D of dimensions.
        num_components: number K of components.
        components: `"bernoulli"`, `"diagonal"`, `"full"` or `"tied"` (Gaussians), or `Components`
            of one's own.

    Raises:
        ValueError: sizes below one, or unknown components.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0]])
        >>> mixture = Mixture(2, 2, "diagonal")
        >>> steps = mixture.fit_em(x)
        >>> labels = mixture.cluster(x)
        >>> labels[0] == labels[1], labels[0] == labels[2]
        (tensor(True), tensor(False))
    """

    vectors = True

    @checked
    def __init__(
        self, num_dims: int, num_components: int, components: str | Components = "diagonal"
    ) -> None:
        super().__init__(MixtureModel(named_components(components, num_dims, num_components)))

    @property
    def parts(self) -> "MixtureModel":
        """Module behind the model, with `logits` and `components`.

        The logits are those of the weights.
        """
        return self.model.fn  # type: ignore[return-value]

    @checked
    def responsibilities(self, x: Tensor) -> Tensor:
        """Compute posterior probabilities of the components: `[N, K]`.

        They are p(z = k | x) for data `[N, D]`, found in float64.
        """
        x = self.as_finest_data(x).double()
        return in_double(self.parts).log_joint(x).softmax(-1).to(self.parts.logits)

    @checked
    def cluster(self, x: Tensor) -> Tensor:
        """Most probable component of each datum `[N, D]`: `[N]`."""
        return in_double(self.parts).log_joint(self.as_finest_data(x).double()).argmax(-1)

    @checked
    def start_from_kmeans(
        self, x: Tensor, seed: int = 0, regularisation: float | None = None
    ) -> "Mixture":
        """Set all parameters from a k-means clustering.

        It is scikit-learn's, with k-means++, of data `[N, D]`. Returns the program itself.

        Raises:
            ValueError: for data of another shape or fewer than components.
        """
        x, parts = self._raised(x)
        if regularisation is None:
            regularisation = parts.components.regularisation_for(x)
        parts.maximise(x, kmeans(x, parts.components.num_components, seed), regularisation)
        return self._keep(parts, x)

    @checked
    def fit_em(
        self,
        x: Tensor,
        num_steps: int = 200,
        tolerance: float = 1e-7,
        regularisation: float | None = None,
        seed: int | None = 0,
        progress: bool = True,
    ) -> "EMFit":
        r"""Fit the mixture by expectation maximisation (EM), in place.

        Dempster, Laird and Rubin (1977).

        E: $r_{nk} = p(z_n = k \mid x_n)$; M: each component's weighted maximum likelihood, $\pi_k =
        \sum_n r_{nk} / N$. No step lowers the likelihood (with a regularisation of 0). All is
        computed in float64; data in float64 raise the parameters to it, which otherwise keep their
        dtype, with a warning where it costs likelihood.

        Args:
            x: data `[N, D]`.
            num_steps: at most so many.
            tolerance: stops when the mean log-likelihood, with the log density of pseudo-counts,
                moves by no more, in nats per datum.
            regularisation: added to variances (1e-6 by default, with a warning where that costs
                over a nat a datum); for Bernoullis, the pseudo-count of each of 0 and 1 (0.5 by
                default).
            seed: of the k-means start; None starts from the parameters as they are.
            progress: show a bar where it takes over two seconds.

        Raises:
            ValueError: for data of another shape or fewer than components, no steps, a negative
                regularisation, or covariances that it leaves singular.
        """
        if num_steps < 1 or (regularisation is not None and regularisation < 0):
            raise ValueError(
                f"num_steps is {num_steps} and regularisation {regularisation}; expected at least "
                "1 and 0 (or None)"
            )
        x, parts = self._raised(x)
        if regularisation is None:
            regularisation = parts.components.regularisation_for(x)
        if seed is not None:
            start = kmeans(x, parts.components.num_components, seed)
            parts.maximise(x, start, regularisation)
        with counted_steps(num_steps, "EM", progress) as steps:
            result = maximise_likelihood(parts, x, steps, tolerance, regularisation)
        self._keep(parts, x)
        return result

    def _raised(self, x: Tensor) -> tuple[Tensor, "MixtureModel"]:
        """Return data and a copy of the parts in float64.

        The parameters follow the dtype of data that have a finer one.
        """
        components, x = self.parts.components, self.as_finest_data(x)
        if x.dim() != 2 or x.shape[1] != components.num_dims or len(x) < components.num_components:
            raise ValueError(
                f"expected data [N, {components.num_dims}] with N of at least num_components = "
                f"{components.num_components}, got shape {list(x.shape)}"
            )
        self.to(torch.promote_types(self.parts.logits.dtype, x.dtype))
        return x.detach().double(), in_double(self.parts)

    def _keep(self, parts: "MixtureModel", x: Tensor) -> "Mixture":
        """Take over parameters found in float64."""
        self.parts.load_state_dict(parts.state_dict())
        lost = parts.log_likelihood(x) - in_double(self.parts).log_likelihood(x)
        warn_of_rounding(lost.item(), self.parts.logits.dtype)
        return self


def in_double(parts: "MixtureModel") -> "MixtureModel":
    """Copy a mixture's parts in float64, without gradients."""
    return copy.deepcopy(parts).double().requires_grad_(False)


def kmeans(x: Tensor, num_components: int, seed: int) -> Tensor:
    """Cluster data `[N, D]` by k-means.

    Returns memberships `[N, K]`, zero or one.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415 - seconds of import, for few users

    clusters = KMeans(num_components, n_init=10, random_state=seed)  # type: ignore[arg-type]
    labels = torch.as_tensor(clusters.fit_predict(x.cpu().numpy()), dtype=torch.long)
    return nn.functional.one_hot(labels.to(x.device), num_components).to(x)


def maximise_likelihood(
    parts: "MixtureModel",
    x: Tensor,
    steps: Iterable[int],
    tolerance: float,
    regularisation: float,
) -> "EMFit":
    """Alternate E- and M-steps, in place.

    With a regularisation the likelihood alone may fall; that is no sign of an end.
    """
    history: list[Tensor] = []
    raised: list[Tensor] = []
    for _ in steps:
        log_joint = parts.log_joint(x)
        history.append(log_joint.logsumexp(-1).mean())
        raised.append(history[-1] + parts.components.log_penalty(regularisation) / len(x))
        if len(raised) > 1 and (raised[-1] - raised[-2]).abs() <= tolerance:
            return EMFit(torch.stack(history), True)
        parts.maximise(x, log_joint.softmax(-1), regularisation)
    return EMFit(torch.stack(history), False)


@dataclass(frozen=True)
class EMFit:
    """Learning curve of an EM fit.

    It is the mean log-likelihood before each step in nats per datum, float64 `[steps]`, and whether
    it (with the log density of pseudo-counts) came to rest.
    """

    log_likelihood: Tensor
    converged: bool


class MixtureModel(nn.Module):
    """z ~ Categorical(pi), x ~ components(z)."""

    def __init__(self, components: Components) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components.num_components))
        self.components = components

    def log_joint(self, x: Tensor) -> Tensor:
        """Compute log p(x, z) of data `[N, D]`: `[N, K]`.

        It is log p(z = k) + log p(x | z = k).
        """
        each = torch.arange(self.components.num_components, device=x.device).unsqueeze(-1)
        return self.logits.log_softmax(-1) + self.components(each).log_prob(x).T

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Compute the mean log-likelihood in nats: `[]`.

        It is the mean of log p(x) over data `[N, D]`.
        """
        return self.log_joint(x).logsumexp(-1).mean()

    @torch.no_grad()
    def maximise(self, x: Tensor, responsibilities: Tensor, regularisation: float) -> None:
        """Update weights and components by an M-step.

        Data are `[N, D]`, responsibilities `[N, K]`.
        """
        share = responsibilities.mean(0).clamp_min(torch.finfo(x.dtype).tiny)
        self.logits.copy_(share.log())
        self.components.maximise(x, responsibilities, regularisation)

    def forward(self, x: Tensor | None = None) -> Any:
        """Score data `[data, D]`, or draw one datum."""
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            z = pyro.sample(
                "z", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"}
            )
            return pyro.sample("x", self.components(z), obs=x)
