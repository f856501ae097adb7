"""IWELBO: a lower bound from many particles."""

from dataclasses import dataclass
from typing import ClassVar

from ppl_dgm.checked import checked
from ppl_dgm.evidence.estimate import BoundKind, Estimate
from ppl_dgm.evidence.weight_estimator import WeightEstimator
from ppl_dgm.program import Bound
from ppl_dgm.sampling.convergence import mean_std_error
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.validation import check_least

__all__ = ["IWELBO"]


@checked
@dataclass(frozen=True)
class IWELBO(WeightEstimator):
    r"""Importance-weighted lower bound (IWELBO) of log Z.

    $E \log \frac1K \sum_k w_k \le \log Z$ is estimated by its mean over replicates.

    `ImportanceSampling` with the same draws estimates log Z; this stays a bound at any number K,
    one included, where it is the ELBO. `over_particles` shows how it closes in.

    Burda, Grosse and Salakhutdinov (2016), eq. 8. Costs `num_particles * num_replicates` runs.

    Args:
        num_particles: K.
        proposal: `"guide"` or `"prior"`.
        num_replicates: independent replicates, for the standard error.
        memory: bytes that one chunk of draws may allocate.

    Raises:
        ValueError: too few draws or replicates.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> result = IWELBO(num_particles=2)(ppl_dgm.Program(model), torch.ones(100))
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.ones(()))
        >>> result.bound, bool(result.log_z.mean() < truth)
        ('lower', True)
    """

    num_particles: int = 32
    num_replicates: int = 32
    bound: ClassVar[BoundKind] = "lower"
    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, num_replicates=2)

    def estimate(self, bound: Bound) -> Estimate:
        flat = self.weights(bound, self.num_particles * self.num_replicates)
        values = log_mean_exp(flat.unflatten(0, (self.num_replicates, self.num_particles)), 1)
        diagnostics = {"num_particles": self.num_particles}
        return Estimate(values.mean(0), mean_std_error(values), diagnostics)
