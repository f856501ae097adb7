"""Flows with few parameters.

They are one affine map, mixtures by their distribution functions, and radial maps.
"""

from typing import Any

import pyro.distributions as dist
import torch

from ppl_dgm.checked import checked
from ppl_dgm.families.flows.flow import Flow, standard_normal
from ppl_dgm.families.flows.images import checked_length
from ppl_dgm.transforms import ActNorm, Elementwise, Inverse, LogisticMixture, LULinear, Radial

__all__ = ["AffineFlow", "MixtureCDFFlow", "RadialFlow"]


class AffineFlow(Flow):
    """Affine flow: a normal distribution with any covariance.

    x = W z + b, with any mean, and W by its LU factors.

    Args:
        num_dims: number D of dimensions.

    Raises:
        ValueError: a size below one.

    Example:
        >>> AffineFlow(3).sample(5).shape
        torch.Size([5, 3])
    """

    @checked
    def __init__(self, num_dims: int) -> None:
        base = standard_normal(num_dims)
        super().__init__(base, [Inverse(LULinear((num_dims,))), ActNorm((num_dims,))])


class MixtureCDFFlow(Flow):
    r"""Independent mixtures of logistics, one for each dimension.

    Each is the flow of its distribution function.

    $\mathrm{logit} \sum_k \pi_k \sigma((x - \mu_k) / s_k)$ is logistic noise, so that the density
    is that of the mixture. A draw inverts it numerically.

    Args:
        num_dims: number D of dimensions.
        num_components: K.

    Raises:
        ValueError: sizes below one.

    Example:
        >>> MixtureCDFFlow(1, num_components=3).sample(5).shape
        torch.Size([5, 1])
    """

    @checked
    def __init__(self, num_dims: int, num_components: int = 8) -> None:
        mixture = Elementwise((num_dims,), LogisticMixture(num_components))
        with torch.no_grad():  # components apart, together about as wide as the data
            places = torch.linspace(-1.0, 1.0, num_components)
            mixture.params[:, num_components : 2 * num_components] += places
            mixture.params[:, 2 * num_components : 3 * num_components] -= 1.0
        base = dist.Logistic(torch.zeros(num_dims), torch.ones(num_dims)).to_event(1)
        super().__init__(base, [Inverse(mixture), ActNorm((num_dims,))])


class RadialFlow(Flow):
    """Flow of radial transforms around learned centres.

    They map data to noise (Rezende and Mohamed 2015, equation 14).

    Args:
        num_dims: number D of dimensions.
        length: number of transforms.
        num_context: size of a context that the density depends on; 0 for none.

    Raises:
        ValueError: sizes below one.

    Example:
        >>> RadialFlow(2, length=4).sample(3).shape
        torch.Size([3, 2])
    """

    @checked
    def __init__(self, num_dims: int, length: int = 16, num_context: int = 0) -> None:
        steps: list[Any] = [
            Inverse(Radial(num_dims, num_context)) for _ in range(checked_length(length))
        ]
        super().__init__(standard_normal(num_dims), [*steps, ActNorm((num_dims,))])
