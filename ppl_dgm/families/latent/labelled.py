"""VAEs that know classes: conditional on a label, or semi-supervised."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.guides import DiagonalNormal
from ppl_dgm.conditionals.likelihoods import Likelihood, named_likelihood
from ppl_dgm.conditionals.priors import StandardNormal
from ppl_dgm.families.latent.vae import LatentVectorModel, ScaledInputs
from ppl_dgm.nn.mlp import MLP, Activation, hidden_sizes
from ppl_dgm.program import Program

__all__ = ["ConditionalVAE", "SemiSupervisedVAE", "check_labels"]


class ConditionalVAE(Program):
    r"""VAE of data given a label.

    $p(x \mid y) = \int p(x \mid y, z) p(z) dz$ (Sohn, Lee and Yan 2015).

    Data are `(x, y)`: `[N, D]` and labels `[N]`; the evidence is log p(x | y). `sample(n,
    y=labels)` draws `[n, len(labels), D]`, or `[n, D]` for one label.

    Args:
        num_dims: number D of dimensions.
        num_latents: size L of the latent vector.
        num_classes: number C of classes; labels are 0, ..., C - 1.
        hidden: sizes of the decoder's hidden layers, and reversed, of the encoder's.
        likelihood: a `Likelihood`, `"bernoulli"` or `"gaussian"`.
        activation: makes the activation.

    Raises:
        ValueError: sizes below one; when run, labels outside the classes or none at all.

    Example:
        >>> vae = ConditionalVAE(6, 2, num_classes=3, hidden=[8])
        >>> vae.sample(4, y=torch.tensor([2])).shape, vae.sample(4, y=torch.arange(3)).shape
        (torch.Size([4, 6]), torch.Size([4, 3, 6]))
    """

    vectors = True

    @checked
    def __init__(
        self,
        num_dims: int,
        num_latents: int,
        num_classes: int,
        hidden: Sequence[int] = (200, 200),
        likelihood: str | Likelihood = "bernoulli",
        activation: Activation = nn.Tanh,
    ) -> None:
        likelihood = named_likelihood(likelihood)
        parts = class_parts(num_dims, num_latents, num_classes, hidden, likelihood, activation)
        super().__init__(
            ConditionalModel(parts[0], num_classes), ConditionalGuide(*parts, num_classes)
        )


class SemiSupervisedVAE(Program):
    r"""VAE with class labels for some of the data.

    The class is a second latent, observed for some data: model M2 of Kingma et al. (2014).

    $y \sim \mathrm{Uniform}\{0, \dots, C - 1\}$, $z \sim N(0, I)$, $x \sim p(x \mid y, z)$; guide
    $q(y \mid x)\, q(z \mid x, y)$.

    Data are `(x, y)` with y = -1 where there is no label, or x alone. The evidence of a labelled
    datum is log p(x, y), of another log p(x). `sample(n, y=labels)` draws `[n, len(labels), D]`, or
    `[n, D]` for one label.

    The guide's class is marked for enumeration, so that
    `pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)` sums over it exactly; other objectives draw it.
    In training mode the objective has the extra term `classifier_weight` log q(y | x) of labelled
    data (their equation 9), in evaluation mode not.

    Args:
        num_dims: number D of dimensions.
        num_latents: size L of the latent vector.
        num_classes: number C of classes.
        hidden: sizes of the decoder's hidden layers, and reversed, of the encoder's and the
            classifier's.
        likelihood: a `Likelihood`, `"bernoulli"` or `"gaussian"`.
        classifier_weight: alpha, in nats for each labelled datum.
        activation: makes the activation.

    Raises:
        ValueError: sizes below one, a negative weight; when run, labels outside -1, ..., C - 1.

    Example:
        >>> vae = SemiSupervisedVAE(6, 2, num_classes=3, hidden=[8])
        >>> x, y = torch.ones(4, 6), torch.tensor([0, 2, -1, -1])
        >>> vae.initialise(x, y).density, vae.classify(x).shape
        ('latent', torch.Size([4, 3]))
    """

    vectors = True

    @checked
    def __init__(
        self,
        num_dims: int,
        num_latents: int,
        num_classes: int,
        hidden: Sequence[int] = (200, 200),
        likelihood: str | Likelihood = "bernoulli",
        classifier_weight: float = 1.0,
        activation: Activation = nn.Tanh,
    ) -> None:
        if classifier_weight < 0:
            raise ValueError(f"classifier_weight is {classifier_weight}; expected at least 0")
        likelihood = named_likelihood(likelihood)
        parts = class_parts(num_dims, num_latents, num_classes, hidden, likelihood, activation)
        classifier = nn.Sequential(
            ScaledInputs(likelihood),
            MLP(num_dims, hidden_sizes(hidden)[::-1], num_classes, activation),
        )
        model = SemiSupervisedModel(parts[0], num_classes, classifier, classifier_weight)
        super().__init__(model, SemiSupervisedGuide(*parts, num_classes, classifier))

    @checked
    def classify(self, x: Tensor) -> Tensor:
        """q(y | x) of data `[N, D]`: probabilities `[N, C]`."""
        return self.guide.fn.classifier(self.as_data(x)).softmax(-1)  # type: ignore[attr-defined]


def class_parts(
    num_dims: int,
    num_latents: int,
    num_classes: int,
    hidden: Sequence[int],
    likelihood: Likelihood,
    activation: Activation,
) -> tuple[LatentVectorModel, nn.Module]:
    """Make the decoding model and the encoder.

    The model is of x given (z, one-hot y), the encoder of (x, one-hot y).
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; expected at least 2")
    decoder = MLP(num_latents + num_classes, hidden, num_dims * likelihood.num_params, activation)
    encoder = MLP(num_dims + num_classes, hidden_sizes(hidden)[::-1], 2 * num_latents, activation)
    return LatentVectorModel(decoder, likelihood, StandardNormal(num_latents), num_dims), encoder


def with_class(x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Append the one-hot class `[...]` to vectors `[..., D]`.

    Both broadcast; the result is `[..., D + C]`.
    """
    classes = torch.arange(num_classes, device=x.device)
    one_hot = (y.unsqueeze(-1) == classes).to(x.dtype)
    shape = torch.broadcast_shapes(x.shape[:-1], y.shape)
    return torch.cat([x.expand(*shape, -1), one_hot.expand(*shape, -1)], -1)


def known_classes(logits: Tensor, y: Tensor) -> Tensor:
    """Replace logits `[..., C]` where the label is known.

    They become those of a point mass where there is a label `[...]`.
    """
    known = y.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
    return torch.where((y >= 0).unsqueeze(-1), torch.where(known, 0.0, -torch.inf), logits)


def check_labels(y: Tensor, least: int, num_classes: int) -> None:
    """Refuse labels outside the classes, where Pyro's checks are on."""
    if not is_validation_enabled():
        return
    if y.dim() != 1:
        raise ValueError(
            f"the labels have shape {list(y.shape)}; expected the number of a class for each "
            "datum, [N]"
        )
    if bool(((y < least) | (y >= num_classes) | (y != y.long())).any()):
        raise ValueError(
            f"the labels go from {y.min().item()} to {y.max().item()}; expected whole numbers in "
            f"{least}, ..., {num_classes - 1}"
        )


class ConditionalModel(nn.Module):
    """z ~ N(0, I), x ~ likelihood(decoder(z, y))."""

    def __init__(self, decoding: LatentVectorModel, num_classes: int) -> None:
        super().__init__()
        self.decoding, self.num_classes = decoding, num_classes

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Score data `[data, D]`, or draw data, given labels.

        Labels are `[data]`.
        """
        if y is None:
            raise ValueError(
                "the labels are missing; a ConditionalVAE is called with (x, y) and sampled with "
                "y=labels"
            )
        check_labels(y, 0, self.num_classes)
        with pyro.plate("data", len(y), dim=-1):
            z = pyro.sample("z", self.decoding.prior())
            return pyro.sample(
                "x", self.decoding.distribution(with_class(z, y, self.num_classes)), obs=x
            )


class ConditionalGuide(nn.Module):
    """q(z | x, y), a diagonal normal."""

    def __init__(self, decoding: LatentVectorModel, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.encoder, self.num_classes = encoder, num_classes
        self.posterior = DiagonalNormal(decoding.prior.num_latents)
        self.inputs = ScaledInputs(decoding.likelihood)

    def distribution(self, x: Tensor, y: Tensor) -> Any:
        """Return the guide's distribution q(z | x, y).

        Data are `[..., D]` and labels `[...]`.
        """
        return self.posterior(self.encoder(with_class(self.inputs(x), y, self.num_classes)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Draw latents `[data, L]`."""
        check_labels(y, 0, self.num_classes)
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.distribution(x, y))


class SemiSupervisedModel(nn.Module):
    """Model of `SemiSupervisedVAE`: class, latent vector and data.

    y uniform, z ~ N(0, I), x ~ likelihood(decoder(z, y)); where there is a label, it is y itself.
    """

    uniform: Tensor

    def __init__(
        self,
        decoding: LatentVectorModel,
        num_classes: int,
        classifier: nn.Module,
        classifier_weight: float,
    ) -> None:
        super().__init__()
        self.decoding, self.num_classes, self.classifier_weight = (
            decoding,
            num_classes,
            classifier_weight,
        )
        self._classifier = (classifier,)  # in a tuple: its parameters are the guide's
        self.register_buffer("uniform", torch.zeros(num_classes), persistent=False)

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Score data `[data, D]`, or draw one datum.

        Labels `[data]` are -1 where there is none. Without data, one is drawn for each label.
        """
        if y is not None:
            check_labels(y, -1, self.num_classes)
        given = y if x is None else x
        with pyro.plate("data", 1 if given is None else len(given), dim=-1):
            logits = self.uniform if x is not None or y is None else known_classes(self.uniform, y)
            label = pyro.sample("y", dist.Categorical(logits=logits))
            if x is not None and y is not None:
                self._classify(x, y)
                self._observe(label, y)
            z = pyro.sample("z", self.decoding.prior())
            return pyro.sample(
                "x", self.decoding.distribution(with_class(z, label, self.num_classes)), obs=x
            )

    def _observe(self, label: Tensor, y: Tensor) -> None:
        """Observe the label without error.

        The density is one if the latent equals the label, else zero.
        """
        exact = dist.Delta(label.to(y.dtype)).mask(y >= 0)
        pyro.sample("label", exact, obs=y)

    def _classify(self, x: Tensor, y: Tensor) -> None:
        if self.training and self.classifier_weight > 0:
            log_q = (
                F.log_softmax(self._classifier[0](x), -1)
                .gather(-1, y.clamp_min(0).long().unsqueeze(-1))
                .squeeze(-1)
            )
            pyro.factor("classifier", self.classifier_weight * torch.where(y >= 0, log_q, 0.0))


class SemiSupervisedGuide(nn.Module):
    """Guide of `SemiSupervisedVAE`: class and latent vector.

    q(y | x) q(z | x, y), the first a point mass where there is a label.
    """

    def __init__(
        self,
        decoding: LatentVectorModel,
        encoder: nn.Module,
        num_classes: int,
        classifier: nn.Module,
    ) -> None:
        super().__init__()
        self.latent = ConditionalGuide(decoding, encoder, num_classes)
        self.classifier = classifier

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Draw classes `[data]` and latents `[data, L]`."""
        if y is not None:
            check_labels(y, -1, self.latent.num_classes)
        infer: Any = {"enumerate": "parallel"}
        with pyro.plate("data", len(x), dim=-1):
            label = pyro.sample("y", dist.Categorical(logits=self._logits(x, y)), infer=infer)
            return pyro.sample("z", self.latent.distribution(x, label))

    def _logits(self, x: Tensor, y: Tensor | None) -> Tensor:
        log_q = self.classifier(x).log_softmax(-1)
        return log_q if y is None else known_classes(log_q, y)
