"""Parts of sequential Monte Carlo and annealing."""
