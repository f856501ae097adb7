"""Parts of the objectives for latents without a path gradient."""

from torch import Tensor

from ppl_dgm.program import Structure

__all__ = ["check_scored", "check_several", "zero_valued"]


def zero_valued(tensor: Tensor) -> Tensor:
    """Zero, with the gradient of a tensor."""
    return tensor - tensor.detach()


def check_scored(structure: Structure, name: str, cure: str) -> None:
    """Refuse programs that draw nothing without a path gradient."""
    if all(latent.reparameterised or latent.point_mass for latent in structure.latents):
        raise ValueError(
            f"{name} is for latents without a path gradient, but the guide draws every latent "
            f"differentiably (or none is drawn); use {cure}, which has less noise"
        )


def check_several(num_particles: int, name: str, cure: str) -> None:
    """Refuse a single particle where the others are the baseline."""
    if num_particles < 2:
        raise ValueError(
            f"num_particles is {num_particles}; {name} needs at least 2, or use {cure}"
        )
