"""Autoregressive families, one file for each net."""

from ppl_dgm.families.autoregressive.made import MADE

__all__ = ["MADE"]
