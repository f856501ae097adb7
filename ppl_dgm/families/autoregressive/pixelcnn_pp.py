"""PixelCNN++: discretised logistics, channels coupled, several scales."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.likelihoods import DiscretisedLogistic, Likelihood, named_likelihood
from ppl_dgm.families.autoregressive.model import AutoregressiveProgram, context_of
from ppl_dgm.nn.causal import CausalNet, Step, pick
from ppl_dgm.nn.context import ContextSize
from ppl_dgm.nn.mlp import ImageShape
from ppl_dgm.nn.pixel_unet import PixelUNet

__all__ = ["PixelCNNPlusPlus"]


class PixelCNNPlusPlus(AutoregressiveProgram):
    r"""PixelCNN++ (Salimans, Karpathy, Chen and Kingma 2017).

    The channels of a pixel are drawn from one mixture of discretised logistics,

    $$p(x) = \sum_k \pi_k \prod_c p_k(x_c \mid \mu_{ck} + \sum_{b < c} \alpha_{cbk} x_b, s_{ck}),$$

    factorised as $p(x_c \mid x_{<c})$ with weights $\propto \pi_k \prod_{b<c} p_k(x_b \mid \dots)$:
    the same density, and exact one dimension at a time. Under another likelihood the channels are
    coupled by the net alone.

    Args:
        shape: (channels C, height H, width W), sides even; data are flattened, `[N, C * H * W]`.
        width: of each stream.
        num_scales: S, with sides divisible by 2^(S - 1); by default three, or two where the sides
            can be halved only once.
        num_blocks: residual blocks of each scale, each way.
        likelihood: what the outputs mean for each dimension: a `Likelihood`, `"bernoulli"` or
            `"gaussian"`; by default `DiscretisedLogistic(256, 10)`.
        order: the dimensions in the order of generation, as for `PixelCNN`.
        dropout: share of the blocks' inner values left out in training.
        num_classes: number of classes, of which each datum then has a label.
        context: what is given with each datum, as labels are: a vector of so many numbers, or a
            small (or large) image of the shape (channels, height, width), in the values of x and
            flattened: super-resolution.

    Raises:
        ValueError: a side that cannot be halved so often, a size below one, an order that is no
            permutation, an unknown likelihood.

    Example:
        >>> PixelCNNPlusPlus((3, 4, 4), width=8, num_blocks=1).sample(2).shape
        torch.Size([2, 48])
    """

    @checked
    def __init__(
        self,
        shape: ImageShape,
        width: int = 32,
        num_scales: int | None = None,
        num_blocks: int = 2,
        likelihood: str | Likelihood | None = None,
        order: Sequence[int] | None = None,
        dropout: float = 0.5,
        num_classes: int | None = None,
        context: ContextSize | None = None,
    ) -> None:
        law = DiscretisedLogistic(256, 10) if likelihood is None else named_likelihood(likelihood)
        coupled = isinstance(law, DiscretisedLogistic) and shape[0] > 1
        num_params = law.num_params * (shape[0] + 2) // 3 if coupled else law.num_params
        settings = (num_params, order, dropout, context_of(num_classes, context))
        net: CausalNet = PixelUNet(shape, width, num_scales, num_blocks, *settings)
        if coupled:
            net = CoupledNet(net, law, shape[0])  # type: ignore[arg-type]
        super().__init__(net, law, num_classes, context)


class CoupledNet(CausalNet):
    """Causal net that couples the channels of a pixel.

    All channels share one mixture.

    Args:
        net: gives (C + 2) K numbers for each dimension, each C in a row of its order the channels
            of a pixel: logits of the weights (of which the first channel's count), locations,
            log-scales, C - 1 coefficients.
        likelihood: of K logistics.
        channels: C.
    """

    def __init__(self, net: CausalNet, likelihood: DiscretisedLogistic, channels: int) -> None:
        order = net.orders[0]
        super().__init__(net.num_dims, likelihood.num_params, order, num_context=net.num_context)
        self.net, self.channels, self.levels = net, channels, likelihood.levels
        self.component = DiscretisedLogistic(likelihood.levels, 1)

    def forward(self, x: Tensor, context: Tensor | None = None, member: int | Tensor = 0) -> Tensor:
        """`[..., D]` to `[..., D, 3 K]`."""
        places, pixels = self.orders[0], (-1, self.channels)
        raw = self.net(x, context).index_select(-2, places).unflatten(-2, pixels)
        params = self.couple(raw, x.index_select(-1, places).unflatten(-1, pixels))
        return params.flatten(-3, -2).index_select(-2, pick(self.ranks, 0))

    def couple(self, raw: Tensor, pixel: Tensor) -> Tensor:
        """Couple the first c channels of a pixel.

        Maps `[..., c, (C + 2) K]` and values `[..., c]` to `[..., c, 3 K]`.
        """
        parts = raw.unflatten(-1, (self.channels + 2, -1))
        count = raw.shape[-2]
        logits, loc, log_scale, slopes = parts.split([1, 1, 1, self.channels - 1], -2)
        logits, loc, log_scale = logits.squeeze(-2), loc.squeeze(-2), log_scale.squeeze(-2)
        earlier = torch.ones(count, count, dtype=raw.dtype, device=raw.device).tril(-1)
        slopes = F.pad(slopes, (0, 0, 0, 1))[..., :count, :].tanh() * earlier.unsqueeze(-1)
        loc = loc + (slopes * pixel[..., None, :, None]).sum(-2)
        level = ((pixel + 1) / 2 * (self.levels - 1)).round().unsqueeze(-1)
        each = torch.stack([torch.zeros_like(loc), loc, log_scale], -1)
        log_probs = self.component(each).log_prob(level)
        passed = F.pad(log_probs[..., :-1, :], (0, 0, 1, 0)).cumsum(-2)
        return torch.cat([logits[..., :1, :] + passed, loc, log_scale], -1)

    def stepper(self, x: Tensor, context: Tensor | None = None, member: int = 0) -> Step:
        """Return the net's stepper with coupled channels.

        It takes the net's own steps, and keeps the numbers of a pixel's channels.
        """
        inner, raws, order = self.net.stepper(x, context), [], self.sequences[0]

        def step(t: int, x: Tensor) -> Tensor:
            channel = t % self.channels
            del raws[channel:]
            raws.append(inner(t, x))
            pixel = x[..., order[t - channel : t + 1]]
            return self.couple(torch.stack(raws, -2), pixel)[..., -1, :]

        return step
