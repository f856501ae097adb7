"""Plain torch nets, without Pyro."""

from ppl_dgm.nn.conv import ConvDecoder, ConvEncoder, over_images, unflatten_images
from ppl_dgm.nn.masked import CausalConv2d, MADENet, MaskedLinear, autoregressive_masks
from ppl_dgm.nn.mlp import MLP, ResidualMLP, hidden_sizes
from ppl_dgm.nn.spectral import spectral_normalised

__all__ = [
    "MLP",
    "CausalConv2d",
    "ConvDecoder",
    "ConvEncoder",
    "MADENet",
    "MaskedLinear",
    "ResidualMLP",
    "autoregressive_masks",
    "hidden_sizes",
    "over_images",
    "spectral_normalised",
    "unflatten_images",
]
