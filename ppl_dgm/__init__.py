"""Deep generative models as Pyro programs: one way to fit them, one way to ask how probable they make data."""

__version__ = "0.1.0"
