"""Semi-amortised inference: the ELBO after refinement steps.

The steps refine what an encoder gives, and are differentiated through.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.checked import Limit, checked
from ppl_dgm.conditionals.guides import AmortisedGuide
from ppl_dgm.objectives.elbo import ELBO, check_reparameterised
from ppl_dgm.objectives.objective import KLWeight
from ppl_dgm.program import Bound, Structure

__all__ = ["SemiAmortised"]


class SemiAmortised(ELBO):
    r"""ELBO at variational parameters refined by gradient ascent.

    Each datum's parameters start at the encoder's.

    $\lambda_0 = \mathrm{encoder}(x)$, $\lambda_{j + 1} = \lambda_j + \eta\, \nabla_\lambda
    \mathrm{ELBO}(x; \lambda_j)$ with new draws at each step, and the objective $\mathrm{ELBO}(x;
    \lambda_k)$ with its whole gradient, second derivatives of the inner steps included: the encoder
    learns to give good starts, the model to fit refined posteriors (Kim et al. 2018,
    "Semi-amortized variational autoencoders", algorithm 1, without momentum). Gradients longer than
    c are cut to that length: one step too far can make a scale so small that log q is lost in
    rounding. `amortisation.refine` makes a program of parameters that are refined to the end.

    Args:
        num_steps: k.
        learning_rate: eta, for the ELBO of one datum.
        num_particles: draws of the latents for each datum, at each step and in the end.
        clip_norm: c, the longest gradient of one datum.
        kl_weight: beta; a number or a function of the step.
        plate: name of the data plate.

    Raises:
        ValueError: for settings out of range, or a guide other than an `AmortisedGuide` with
            reparameterised latents.

    Example:
        >>> from ppl_dgm.families import VAE
        >>> from ppl_dgm.objectives import ELBO, SemiAmortised
        >>> vae, x = VAE(6, 2, [8]).initialise(torch.ones(50, 6)), torch.ones(50, 6)
        >>> semi = SemiAmortised(num_steps=20, learning_rate=0.1, num_particles=8)
        >>> refined = semi.loss(vae.model, vae.guide, x)
        >>> refined < ELBO(8).loss(vae.model, vae.guide, x)
        True
    """

    @checked
    def __init__(
        self,
        num_steps: int,
        learning_rate: float,
        num_particles: int = 1,
        *,
        clip_norm: Limit = 5.0,
        kl_weight: KLWeight = 1.0,
        plate: str = "data",
    ) -> None:
        super().__init__(num_particles, kl_weight=kl_weight, plate=plate)
        if num_steps < 1 or not min(learning_rate, clip_norm) > 0:
            raise ValueError(
                f"num_steps is {num_steps}, learning_rate {learning_rate}, clip_norm {clip_norm}; "
                "expected at least 1, and positive numbers"
            )
        self.num_steps, self.learning_rate, self.clip_norm = num_steps, learning_rate, clip_norm

    def check(self, structure: Structure) -> None:
        check_reparameterised(structure, "SemiAmortised")

    def value(self, bound: Bound) -> Tensor:
        guide = amortised(bound.guide)
        through = torch.is_grad_enabled()
        with torch.enable_grad():
            params = guide.params(*bound.args, **bound.kwargs)
            params = params if params.requires_grad else params.detach().requires_grad_()
            for _ in range(self.num_steps):
                each, _ = self._elbo(bound, guide, params)
                (gradient,) = torch.autograd.grad(each.sum(), params, create_graph=through)
                norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
                params = params + self.learning_rate * gradient * (
                    self.clip_norm / norm.clamp_min(self.clip_norm)
                )
        each, scale = self._elbo(bound, guide, params)
        return each * scale

    def _elbo(self, bound: Bound, guide: AmortisedGuide, params: Tensor) -> tuple[Tensor, Any]:
        """Compute the ELBO `[data]` at given variational parameters.

        Parameters are `[data, P]`. The scale of each datum is returned too.
        """
        at_params = replace(bound, guide=lambda *_, **__: guide.draw(params))
        draw = at_params.draw(self.num_particles)
        joint = at_params.log_joint(draw.values)
        return self.log_weights(joint, draw.log_prob).mean(0), joint.scale


def amortised(guide: Any) -> AmortisedGuide:
    """Unwrap an amortised guide from its program.

    A guide on its own is returned as it is.
    """
    own = getattr(guide, "fn", guide)
    if not isinstance(own, AmortisedGuide):
        raise ValueError(
            f"SemiAmortised refines what an encoder says, but the guide is a {type(own).__name__}; "
            "give the program an AmortisedGuide, or use ELBO()"
        )
    return own
