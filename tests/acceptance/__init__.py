"""Programs after Pyro's examples and tutorials and NumPyro's gallery, and what they must pass."""
