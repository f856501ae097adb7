r"""Lossless compression with a program as the model.

The methods are arithmetic and bits-back coding.

A datum costs $-\log_2 p(x)$ bits where the density is exact, and the negative ELBO over log 2 where
latents are drawn. The coder is constriction's: `pip install ppl-dgm[compression]`.
"""

from ppl_dgm.compression.codec import decode, encode

__all__ = ["decode", "encode"]
