"""ELBO with leave-one-out score-function gradients."""

from ppl_dgm.checked import checked
from ppl_dgm.objectives.elbo import ELBO
from ppl_dgm.objectives.objective import KLWeight
from ppl_dgm.objectives.score_gradients import check_scored, check_several
from ppl_dgm.program import Structure

__all__ = ["RLOO"]


class RLOO(ELBO):
    r"""ELBO with the leave-one-out score-function gradient.

    The baseline of each particle is the mean log weight of the others.

    $\frac{1}{K} \sum_k \big(\log w_k - \frac{1}{K-1} \sum_{j \ne k} \log w_j\big) \nabla_\phi \log
    q(z_k \mid x)$: Kool et al. (2019); Mnih and Rezende (2016), section 2.5. What `ELBO(K)` does
    for discrete latents, under its name.

    Args:
        num_particles: K, at least 2, for each datum.
        kl_weight: factor of log p(z) - log q(z | x); a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: for fewer than 2 particles, or if every latent has a path gradient.

    Example:
        >>> RLOO(4).num_particles
        4
    """

    @checked
    def __init__(
        self, num_particles: int = 2, *, kl_weight: KLWeight = 1.0, plate: str = "data"
    ) -> None:
        check_several(num_particles, "RLOO", "REINFORCE(baseline=RunningMean())")
        super().__init__(num_particles, kl_weight=kl_weight, plate=plate)

    def check(self, structure: Structure) -> None:
        check_scored(structure, "RLOO", "ELBO()")
