"""Averages of variational bounds: MIWAE and CIWAE.

They trade the tightness of many particles for a guide gradient with less noise.
"""

from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.objectives.elbo import IWELBO, log_weights_with_paths
from ppl_dgm.objectives.objective import KLWeight, check_count
from ppl_dgm.program import Bound
from ppl_dgm.sampling.importance import expand_particles, log_mean_exp

__all__ = ["CIWAE", "MIWAE"]


class MIWAE(IWELBO):
    r"""The mean of M importance-weighted bounds of K particles each.

    $\frac1M \sum_m \log \frac1K \sum_k w_{mk}$; M = 1 is `IWELBO(K)`, K = 1 the ELBO of M
    particles. Rainforth et al. (2018), eq. 7.

    Args:
        num_bounds: M.
        num_particles: K.
        kl_weight: factor of log p(z) - log q(z | x) in log w; a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: for numbers below one, or latents that are not reparameterised.

    Example:
        >>> MIWAE(4, 16).num_particles
        64
    """

    @checked
    def __init__(
        self, num_bounds: int, num_particles: int, *, kl_weight: KLWeight = 1.0, plate: str = "data"
    ) -> None:
        check_count("num_bounds", num_bounds)
        check_count("num_particles", num_particles)
        super().__init__(num_bounds * num_particles, kl_weight=kl_weight, plate=plate)
        self.num_bounds = num_bounds

    def value(self, bound: Bound) -> Tensor:
        log_w, scale = log_weights_with_paths(self, bound, self.gradient)
        log_w = expand_particles(log_w, self.num_particles)
        return log_mean_exp(log_w.unflatten(0, (self.num_bounds, -1)), 1).mean(0) * scale


class CIWAE(IWELBO):
    r"""Convex combination of ELBO and importance-weighted bound.

    Both are of the same particles.

    $\beta \frac1K \sum_k \log w_k + (1 - \beta) \log \frac1K \sum_k w_k$: Rainforth et al. (2018),
    eq. 8.

    Args:
        num_particles: K.
        share: beta, the ELBO's share, 0 to 1.
        kl_weight: factor of log p(z) - log q(z | x) in log w; a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: for a share outside [0, 1], or latents that are not reparameterised.

    Example:
        >>> CIWAE(16, share=0.5).share
        0.5
    """

    @checked
    def __init__(
        self,
        num_particles: int,
        share: float = 0.5,
        *,
        kl_weight: KLWeight = 1.0,
        plate: str = "data",
    ) -> None:
        super().__init__(num_particles, kl_weight=kl_weight, plate=plate)
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; expected a number between 0 and 1")
        self.share = share

    def value(self, bound: Bound) -> Tensor:
        log_w, scale = log_weights_with_paths(self, bound, self.gradient)
        log_w = expand_particles(log_w, self.num_particles)
        return (self.share * log_w.mean(0) + (1 - self.share) * log_mean_exp(log_w)) * scale
