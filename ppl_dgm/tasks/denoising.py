"""Denoising of data under a density.

It need not be normalised.
"""

from typing import Any

from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.objectives.energies import value_kind
from ppl_dgm.program import Program
from ppl_dgm.program.data_argument import DataArgument
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.memory import MEMORY
from ppl_dgm.tasks.chains import LEAST_MOVES
from ppl_dgm.tasks.completion import Completion, check_settings
from ppl_dgm.tasks.data_chains import NoisyData, draw_data

__all__ = ["denoise"]


@checked
def denoise(
    program: Program,
    y: Tensor,
    noise: float,
    *args: Any,
    num_draws: int = 100,
    num_moves: int = 100,
    num_leapfrog: int = 10,
    seed: int = 0,
    memory: int = MEMORY,
    **kwargs: Any,
) -> Completion:
    r"""Draw the data behind noisy data.

    Draws are from $p(x \mid y) \propto f(x)\, p(y \mid x)$, with f the density of a program,
    normalised or not.

    Real data have normal noise, $p(y \mid x) = N(y; x, \sigma^2)$: chains start at draws of
    $N(y, \sigma^2)$, are tempered to the posterior, and moved by Hamiltonian Monte Carlo, which one
    leapfrog step makes Langevin (Neal 2011). Binary data have bits flipped at a rate; each of their
    bits is drawn given the others in turn (Geman and Geman 1984), one density for each bit and
    move. The mean of the draws has the least squared error.

    Args:
        program: a program without drawn latents: an energy, an RBM, a flow.
        y: noisy data `[data, *event]`.
        noise: standard deviation of the noise of real data, in their units; or share of the bits
            that were flipped, below one half.
        *args: further data.
        num_draws: draws for each datum.
        num_moves: moves of each chain, half of them to adapt.
        num_leapfrog: leapfrog steps of each of those moves, at most.
        seed: makes the draws repeatable; torch's generator is left as it was.
        memory: bytes that one chunk of chains may allocate.
        **kwargs: further data.

    Raises:
        ValueError: for noise out of range, programs with latents or dependent data, and data that
            are neither real nor binary.

    Example:
        >>> import torch
        >>> from ppl_dgm.families import Energy
        >>> model = Energy(lambda x: 0 * x.sum(-1), 1)  # a standard normal
        >>> found = denoise(model, torch.tensor([[2.0]]), noise=1.0, num_draws=500)
        >>> bool(abs(found.mean - 1.0) < 0.15)
        True
    """
    check_settings(
        "hmc",
        num_draws=(num_draws, 1),
        num_moves=(num_moves, LEAST_MOVES),
        num_leapfrog=(num_leapfrog, 1),
    )
    y = program.as_data(y)
    bound = program.bind(y, *args, **kwargs)
    check_noise(noise, value_kind(DataArgument.find(bound).support))
    structure = bound.structure
    if structure.latents or structure.enumerated or not structure.per_datum:
        raise ValueError(
            f"the program draws the latents {[latent.name for latent in structure.latents]}, or "
            "its data hang together; expected independent data with a density of their own, as "
            "those of Energy, RBM and flows. Programs with latents: tasks.reconstruct"
        )
    with undisturbed(program), seeded(seed, bound.device):
        drawn = draw_data(bound, NoisyData(y, noise), num_draws, num_moves, num_leapfrog, memory)
    return Completion(drawn.draws, None, drawn.diagnostics, drawn.warnings)


def check_noise(noise: float, kind: str) -> None:
    """Refuse noise that is no deviation or rate."""
    if kind == "binary" and not 0 < noise < 0.5:
        raise ValueError(
            f"noise is {noise}; expected the share of bits that were flipped, above 0 and below 0.5"
        )
    if not 0 < noise < float("inf"):
        raise ValueError(f"noise is {noise}; expected a positive standard deviation")
