"""Autoregressive families with exact densities.

Each has an order, a causal net, and a likelihood of the conditionals; densities are in nats.
"""

from ppl_dgm.families.autoregressive.darn import DARN
from ppl_dgm.families.autoregressive.dense import FVSBN, MADE, NADE
from ppl_dgm.families.autoregressive.pixel import (
    GatedPixelCNN,
    MultiscalePixelCNN,
    PixelCNN,
    PixelSNAIL,
    PixelTransformer,
)
from ppl_dgm.families.autoregressive.pixelcnn_pp import PixelCNNPlusPlus
from ppl_dgm.families.autoregressive.sequence import RecurrentNet, WaveNet

__all__ = [
    "DARN",
    "FVSBN",
    "MADE",
    "NADE",
    "GatedPixelCNN",
    "MultiscalePixelCNN",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelSNAIL",
    "PixelTransformer",
    "RecurrentNet",
    "WaveNet",
]
