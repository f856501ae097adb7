"""Autoregressive families, exact in nats: an order, a causal net, conditionals' likelihood."""

from ppl_dgm.families.autoregressive.darn import DARN
from ppl_dgm.families.autoregressive.dense import FVSBN, MADE, NADE
from ppl_dgm.families.autoregressive.pixel import (
    GatedPixelCNN,
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
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelSNAIL",
    "PixelTransformer",
    "RecurrentNet",
    "WaveNet",
]
