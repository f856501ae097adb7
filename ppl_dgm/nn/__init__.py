"""Plain torch nets, without Pyro."""

from ppl_dgm.nn.conv import ConvDecoder, ConvEncoder
from ppl_dgm.nn.masked import CausalConv2d, MADENet, MaskedLinear, autoregressive_masks
from ppl_dgm.nn.mlp import MLP, ResidualMLP
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
    "spectral_normalised",
]
