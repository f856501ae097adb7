"""What a fitted program does with its latents: code lengths and active units."""

from ppl_dgm.diagnostics.codes import CodeLength, code_length
from ppl_dgm.diagnostics.latent_use import LatentUse, latent_use

__all__ = ["CodeLength", "LatentUse", "code_length", "latent_use"]
