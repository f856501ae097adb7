"""What all autoregressive families share.

A causal net, a likelihood for each conditional, a sampler that remembers.

A family is a causal net: its file makes one and hands it to `AutoregressiveProgram`.
"""

import math
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.likelihoods import Likelihood
from ppl_dgm.distributions.autoregressive import Autoregressive, EqualMixture
from ppl_dgm.families.autoregressive.scores import scores_of
from ppl_dgm.families.latent.labelled import check_labels
from ppl_dgm.nn.causal import CausalNet, Step
from ppl_dgm.nn.context import ContextSize, context_size
from ppl_dgm.program import Program
from ppl_dgm.program.isolation import evaluating
from ppl_dgm.program.pyro_patches import unvalidated
from ppl_dgm.validation import check_sizes

__all__ = ["AutoregressiveModel", "AutoregressiveProgram", "check_temperature", "context_of"]


class AutoregressiveProgram(Program):
    r"""A program of conditionals, each given the earlier dimensions.

    $\log p(x) = \sum_t \log p(x_{d_t} \mid x_{d_1}, \dots, x_{d_{t-1}})$, exact.

    With classes, data are `(x, y)`, `[N, D]` and labels `[N]`, and the density is p(x | y); with a
    context y has one for each datum, `[N, size]`. With several orders the density is the mean of
    those under each; in training mode that of one order drawn for all data of the step, whose mean
    log density is a lower bound (Uria, Murray and Larochelle 2014, equation 8).

    Args:
        net: gives the parameters of every conditional.
        likelihood: what they mean.
        num_classes: number of classes, or None.
        context: size of a context vector, or the shape of a context image, or None.
    """

    vectors = True

    def __init__(
        self,
        net: CausalNet,
        likelihood: Likelihood,
        num_classes: int | None = None,
        context: ContextSize | None = None,
    ) -> None:
        super().__init__(AutoregressiveModel(net, likelihood, num_classes, context))

    @checked
    def sample(
        self,
        num_samples: int,
        *args: Any,
        temperature: float = 1.0,
        progress: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        r"""Draw data, one dimension after the other.

        The net remembers what it computed for the earlier ones.

        Args:
            num_samples: number n of independent draws.
            *args: as the model takes them.
            temperature: T; each conditional is drawn from $p(x_d \mid \dots)^{1 / T}$, normalised.
            progress: show a bar over the dimensions where draws last.
            **kwargs: `y`, labels or contexts, where the program has them.

        Returns:
            Draws `[n, D]`; of m > 1 labels or contexts, `[n, m, D]`.

        Raises:
            ValueError: a temperature that is not positive, missing labels or contexts.
        """
        check_temperature(temperature)
        return super().sample(
            num_samples, *args, temperature=temperature, progress=progress, **kwargs
        )

    @checked
    def log_class_probs(self, x: Tensor, log_prior: Tensor | None = None) -> Tensor:
        r"""Compute log probabilities of the classes given data.

        $\log p(y \mid x) = \log p(x \mid y) + \log p(y) - \log p(x)$.

        Args:
            x: data `[N, D]`.
            log_prior: log p(y), `[num_classes]`; equal classes by default.

        Returns:
            Nats, `[N, num_classes]`.

        Raises:
            ValueError: for a program without classes, data off its support, or a prior of another
                shape.
        """
        model: Any = self.model.fn
        if model.num_classes is None:
            raise ValueError("the program was made without classes; pass num_classes to it")
        x = self.as_data(x)
        classes = torch.arange(model.num_classes, device=x.device)
        prior = torch.zeros_like(classes, dtype=x.dtype) if log_prior is None else log_prior
        if prior.shape != classes.shape:
            raise ValueError(f"log_prior is {list(prior.shape)}; expected {list(classes.shape)}")
        labels = classes.repeat(len(x))
        self.initialise(x, torch.zeros_like(labels[: len(x)]))
        with evaluating(self), torch.no_grad():
            log_probs = model.distribution(labels).log_prob(x.repeat_interleave(len(classes), 0))
        return (log_probs.unflatten(0, (len(x), -1)) + prior).log_softmax(-1)

    @checked
    def fisher_scores(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        r"""Find the Fisher score of each datum, $\nabla_\theta \log p_\theta(x)$.

        Features of data that a program learnt without labels; their covariance under the program
        is the Fisher information (Jaakkola and Haussler 1999).

        Args:
            x: data `[N, D]`.
            y: labels `[N]` or contexts `[N, size]`, where the program has them.

        Returns:
            For each parameter, by its name, `[N, *shape]`.

        Raises:
            ValueError: for data or labels that the program does not take.

        Example:
            >>> from ppl_dgm.families import FVSBN
            >>> scores = FVSBN(3).fisher_scores(torch.ones(4, 3))
            >>> {name: score.shape for name, score in scores.items()}
            {'model.net.layers.0.weight': torch.Size([4, 3, 3]),
             'model.net.layers.0.bias': torch.Size([4, 3])}
        """
        model: Any = self.model.fn
        data = (x,) if y is None else (x, y)
        self.initialise(*data)

        def density(x: Tensor, context: Tensor | None = None) -> Tensor:
            return model.given(context).log_prob(x)

        context = () if y is None else (model.context(y),)
        with evaluating(self), unvalidated():
            scores = scores_of(model, density, (x, *context))
        return {f"model.{name}": score for name, score in scores.items()}


class AutoregressiveModel(nn.Module):
    """Model of data as a product of conditionals.

    x ~ prod_d p(x_d | x_<d, y).
    """

    start: Tensor

    def __init__(
        self,
        net: CausalNet,
        likelihood: Likelihood,
        num_classes: int | None = None,
        context: ContextSize | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes)
        self.net, self.likelihood, self.num_classes = net, likelihood, num_classes
        self.scales_context = not (context is None or isinstance(context, int))
        self.register_buffer("start", torch.zeros(net.num_dims), persistent=False)

    @property
    def order(self) -> tuple[Any, ...]:
        """The dimensions, or groups, in the (first) order of generation."""
        return tuple(self.net.sequences[0])

    def distribution(
        self, y: Tensor | None = None, temperature: float = 1.0, progress: bool = False
    ) -> Autoregressive | EqualMixture:
        """Return the density of one datum, event shape `[D]`.

        With labels or contexts there is one density for each.
        """
        return self.given(self.context(y), temperature, progress)

    def given(
        self, context: Tensor | None, temperature: float = 1.0, progress: bool = False
    ) -> Autoregressive | EqualMixture:
        """The density of one datum for each context `[..., num_context]`."""
        orders = range(self.net.num_orders)
        laws = [self._member(member, context, temperature, progress) for member in orders]
        return laws[0] if len(laws) == 1 else EqualMixture(laws)

    def forward(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        temperature: float = 1.0,
        progress: bool = False,
    ) -> Tensor:
        """Score data `[data, D]`, or draw one datum.

        Where there are labels or contexts, data are scored given them, and one datum is drawn for
        each.
        """
        context, given = self.context(y), y if x is None else x
        with pyro.plate("data", 1 if given is None else len(given), dim=-1):
            if self.training and x is not None and not self.net.learns_one_order:
                law = self._member(self.net.draw_member(), context)
                return pyro.sample("x", law, obs=x)
            return pyro.sample("x", self.given(context, temperature, progress), obs=x)

    def _member(
        self,
        member: int | Tensor,
        context: Tensor | None,
        temperature: float = 1.0,
        progress: bool = False,
    ) -> Autoregressive:
        """Return the density under one of the orders.

        Where the order, or its number, is a tensor, the density can only be scored.
        """
        given: Any = {"context": context, "member": member}
        return Autoregressive(
            lambda x: self.net(self.likelihood.inputs(x), **given),
            self.likelihood,
            self.start if context is None else self.start.expand(*context.shape[:-1], -1),
            None if isinstance(member, Tensor) else self.net.sequences[member],
            stepper=partial(self._stepper, **given),
            draw=partial(self.likelihood.draw, temperature=temperature),
            progress=progress,
        )

    def _stepper(self, start: Tensor, **given: Any) -> Step:
        """Return a function that computes one conditional at a time.

        It gives the parameters of one conditional after the other, of data as they are drawn.
        """
        step = self.net.stepper(self.likelihood.inputs(start), **given)
        return lambda t, x: step(t, self.likelihood.inputs(x))

    def context(self, y: Tensor | None) -> Tensor | None:
        """Contexts `[data, num_context]`: one-hot labels, or as they are given."""
        if (y is None) != (self.net.num_context == 0):
            raise ValueError(
                "the labels are missing, or the contexts; a program with classes or a context is "
                "called with (x, y) and sampled with y=..."
                if y is None
                else "the program got labels or contexts but was made without classes; give it "
                "num_classes or context"
            )
        if y is None:
            return None
        if not isinstance(y, Tensor):
            raise ValueError(
                f"the labels or contexts are {str(y)[:40]}, a {type(y).__name__}; expected a "
                "tensor, e.g. torch.tensor([1]) for one label"
            )
        if self.num_classes is None:
            return self._scaled(y)
        check_labels(y, 0, self.num_classes)
        classes = torch.arange(self.num_classes, device=y.device)
        return (y.unsqueeze(-1) == classes).to(self.start.dtype)

    def _scaled(self, y: Tensor) -> Tensor:
        """Check contexts; images are scaled as the data are."""
        flat, size = y.flatten(1) if y.dim() > 2 else y, self.net.num_context
        if flat.dim() != 2 or flat.shape[1] != size:
            raise ValueError(
                f"the contexts have shape {list(y.shape)}; expected one for each datum, [N, {size}]"
            )
        flat, are_bytes = flat.to(self.start.dtype), flat.dtype is torch.uint8
        if is_validation_enabled():
            check_finite_contexts(flat)
            if self.scales_context and are_bytes:
                check_kept_bytes(self.likelihood, flat)
        return self.likelihood.inputs(flat) if self.scales_context else flat


def context_of(num_classes: int | None, context: ContextSize | None) -> ContextSize:
    """Tell a net of a program's classes or context.

    The result is the size of a vector or the shape of an image, 0 for none.
    """
    if num_classes is not None and context is not None:
        raise ValueError(
            "got both num_classes and context; expected one of them, e.g. a context with one-hot "
            "labels in it"
        )
    if context is not None:
        check_sizes(context=context_size(context))
    return num_classes or context or 0


def check_finite_contexts(contexts: Tensor) -> None:
    """Refuse contexts of which every conditional would be NaN."""
    bad = contexts.isfinite().logical_not()
    if bool(bad.any()):
        rows = bad.any(-1).nonzero().flatten().tolist()
        raise ValueError(
            f"the contexts have {int(bad.sum())} NaN or infinite numbers, in rows {rows[:5]}; "
            "expected finite ones. Impute them, or leave those data out"
        )


def check_kept_bytes(likelihood: Likelihood, images: Tensor) -> None:
    """Refuse context images of bytes where data are converted."""
    _, told = likelihood.of_bytes(images, True)
    if told:
        raise ValueError(
            f"the context images are bytes; as data they would be {told}. Give them in the numbers "
            "of the draws, e.g. y / 255 or (y > 127).float()"
        )


def check_temperature(temperature: float) -> None:
    """Refuse temperatures that are not positive and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature is {temperature}; expected a positive number, 1 for the density itself"
        )
