"""Implicit families: programs that draw data without a density."""

from ppl_dgm.families.implicit.generator import Generator

__all__ = ["Generator"]
