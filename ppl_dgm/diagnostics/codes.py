"""Rate, distortion and code length of a program.

They express the ELBO in the language of compression.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.memory import MEMORY, chunk_plan
from ppl_dgm.sampling.weight_summary import WeightSummary

__all__ = ["CodeLength", "code_length"]


@dataclass(frozen=True, eq=False)
class CodeLength:
    """Mean code lengths of the parts of a message.

    Lengths are in nats. The message encodes a datum by way of its latents.

    All are float64, `[data]` where each datum has its own latents, else `[]` for the data set.

    Attributes:
        latents: E_q[-log p(z)], what Alice spends on the latents.
        data: E_q[-log p(x | z)], what she then spends on the datum.
        refund: E_q[-log q(z | x)], what Bob gets back: Alice chose the latents by bits he can
            recover (bits back).
        std_error: Monte Carlo standard error of `total`.
    """

    latents: Tensor
    data: Tensor
    refund: Tensor
    std_error: Tensor

    @property
    def two_part(self) -> Tensor:
        """Code length without the refund.

        Densities stand for probabilities of cells of unit volume.
        """
        return self.latents + self.data

    @property
    def total(self) -> Tensor:
        """Net code length, equal to minus the ELBO.

        So it is at least -log p(x).
        """
        return self.two_part - self.refund

    @property
    def rate(self) -> Tensor:
        """Net code length of the latents.

        It is E_q[log q(z | x) - log p(z)].
        """
        return self.latents - self.refund

    @property
    def distortion(self) -> Tensor:
        """E_q[-log p(x | z)]."""
        return self.data

    def __repr__(self) -> str:
        rate, distortion = f"{self.rate.mean():.3f}", f"{self.distortion.mean():.3f}"
        two_part, refund = f"{self.two_part.mean():.3f}", f"{self.refund.mean():.3f}"
        return (
            f"CodeLength({self.total.mean():.3f} nats = rate {rate} + distortion {distortion}; "
            f"two-part {two_part}, refund {refund})"
        )


@checked
def code_length(
    program: Program,
    *args: Any,
    num_particles: int = 100,
    seed: int = 0,
    memory: int = MEMORY,
    **kwargs: Any,
) -> CodeLength:
    r"""Split each datum's ELBO into parts of a two-part code.

    Alice draws $z \sim q(z \mid x)$, sends it in a code for $p(z)$, then x in a code for $p(x \mid
    z)$: $-\log p(z) - \log p(x \mid z)$ nats. If her draw was made by bits of another message, Bob,
    who knows x by then, recovers $-\log q(z \mid x)$ of them. Net length = rate + distortion =
    -ELBO. Hinton and van Camp (1993); Frey and Hinton (1997); Alemi et al. (2018), eqs. 2 to 4, for
    the rate-distortion plane.

    Args:
        program: the program, with its parameters as they are.
        *args: data, as its model takes them.
        num_particles: draws of the latents for each datum.
        seed: makes the result repeatable; torch's generator is left as it was.
        memory: bytes that one chunk of particles may allocate.
        **kwargs: further data.

    Raises:
        ValueError: for fewer than 2 particles.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_dgm import Program
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the posterior
        >>> length = code_length(Program(model, guide), torch.zeros(1))
        >>> surprise = -dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(1)).double()
        >>> torch.allclose(length.total, surprise)
        True
    """
    if num_particles < 2:
        raise ValueError(
            f"num_particles is {num_particles}; expected at least 2, for a standard error"
        )
    bound = program.bind(*args, **kwargs)
    with undisturbed(program), seeded(seed, bound.device):
        plan = chunk_plan(bound, num_particles, memory, lambda part: lengths(part, 1))
        parts = [mean_lengths(part, num_particles, size) for _, part, size in plan]
    return CodeLength(*(torch.cat(parts, -1) if bound.structure.per_datum else parts[0]))


def lengths(bound: Bound, num_particles: int) -> Tensor:
    """Compute code lengths of draws from the guide.

    They are -log p(z), -log p(x | z) and -log q(z | x), `[3, particles, ...]`.
    """
    draw = bound.draw(num_particles)
    joint = bound.log_joint(draw.values)
    shape = (num_particles, *joint.likelihood.shape[1:])
    parts = (joint.prior, joint.likelihood, draw.log_prob)
    return torch.stack(
        [-torch.as_tensor(part).to(joint.likelihood).expand(shape).double() for part in parts]
    )


def mean_lengths(bound: Bound, num_particles: int, size: int) -> Tensor:
    """Average the code lengths over particles.

    The standard error of the net length comes last. A bounded number of particles is drawn at a
    time.
    """
    sums, summary = [], WeightSummary(num_particles)
    for done in range(0, num_particles, size):
        chunk = lengths(bound, min(size, num_particles - done))
        summary.add(chunk[0] + chunk[1] - chunk[2])
        sums.append(chunk.sum(1))
    return torch.cat(
        [torch.stack(sums).sum(0) / num_particles, summary.mean_std_error.unsqueeze(0)]
    )
