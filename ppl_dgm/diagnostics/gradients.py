"""Noise of the gradient estimators that fits follow."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.objectives import Objective
from ppl_dgm.program import Program
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.seeding import seeded

__all__ = ["GradientNoise", "gradient_noise"]


@dataclass(frozen=True, eq=False)
class GradientNoise:
    """Mean and variance of an objective's gradient.

    Attributes:
        mean: of the gradient, in nats of all data together, by the parameter's name.
        variance: of one draw of it, same shapes.
        num_draws: of which they were found.
    """

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    num_draws: int

    @property
    def total_variance(self) -> float:
        """Sum of the variances of all entries."""
        return float(sum(value.sum() for value in self.variance.values()))

    @property
    def signal_to_noise(self) -> float:
        """Norm of the mean over the root of `total_variance`."""
        signal = sum(value.square().sum() for value in self.mean.values())
        return float((torch.as_tensor(signal) / self.total_variance).sqrt())

    def __repr__(self) -> str:
        told = f"variance {self.total_variance:.4g}, signal to noise {self.signal_to_noise:.3g}"
        return f"GradientNoise({told}, {self.num_draws} draws)"


@checked
def gradient_noise(
    program: Program,
    *args: Any,
    objective: Objective,
    num_draws: int = 100,
    seed: int = 0,
    **kwargs: Any,
) -> GradientNoise:
    r"""Measure the noise of an objective's gradient.

    $\mathrm{Var}_z[\nabla_\theta \hat{\mathcal L}(\theta; z)]$ over draws of the latents, by which
    estimators of one gradient are compared: paths, scores with baselines, more particles.

    Args:
        program: the program, which is left as it was.
        *args: its data.
        objective: one of `ppl_dgm.objectives`.
        num_draws: gradients, each with its own draws; one run of guide and model for each.
        seed: makes the result repeatable.
        **kwargs: further data.

    Raises:
        ValueError: for fewer than two draws, or an objective that is not for this program.

    Example:
        >>> import torch
        >>> from ppl_dgm.families import VAE
        >>> from ppl_dgm.objectives import ELBO
        >>> vae, x = VAE(4, 2, [3]), torch.ones(5, 4)
        >>> one, ten = (gradient_noise(vae, x, objective=ELBO(n), num_draws=50) for n in (1, 10))
        >>> ten.total_variance < one.total_variance
        True
    """
    if num_draws < 2:
        raise ValueError(f"num_draws is {num_draws}; expected at least 2, for a variance")
    bound = program.bind(*args, **kwargs)
    named = {n: p for n, p in program.named_parameters() if p.requires_grad}
    mean = {name: torch.zeros_like(value) for name, value in named.items()}
    squares = {name: torch.zeros_like(value) for name, value in named.items()}
    with undisturbed(program), torch.enable_grad(), seeded(seed, bound.device):
        for draw in range(1, num_draws + 1):
            loss = objective.differentiable_loss(
                program.model, program.guide, *bound.args, **bound.kwargs
            )
            found = torch.autograd.grad(-loss, list(named.values()), allow_unused=True)
            for name, gradient in zip(named, found, strict=True):
                if gradient is not None:  # Welford (1962)
                    off = gradient - mean[name]
                    mean[name] = mean[name] + off / draw
                    squares[name] = squares[name] + off * (gradient - mean[name])
    variance = {name: value / (num_draws - 1) for name, value in squares.items()}
    return GradientNoise(mean, variance, num_draws)
