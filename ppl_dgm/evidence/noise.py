"""Bounds of level probabilities from densities at noisy data."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ppl_dgm.checked import checked
from ppl_dgm.evidence.result import Evidence

__all__ = ["over_noise"]


@checked
def over_noise(evidences: Sequence[Evidence]) -> Evidence:
    r"""Average evidences over several draws of dequantising noise.

    The average is a lower bound.

    For data k on levels and noise u uniform on [0, 1), in nats,

    $$\log P(k) = \log \int p(k + u)\, du \ge E_u[\log p(k + u)]$$

    (Theis, van den Oord and Bethge 2016, section 3.1), so that an exact density is a bound of the
    probability, and one draw of the noise a noisy one. The standard error is that over the draws,
    with that of the estimates. An upper bound of the density bounds nothing: it is an estimate.

    Args:
        evidences: of one program at the same data, each with noise of its own; two or more.

    Raises:
        ValueError: fewer than two, of unlike estimators, or of unlike numbers of data.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_dgm import Program, evidence
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(1.0, 1.0), obs=y)
        >>> levels, _ = torch.tensor([0.0, 1.0, 2.0]), torch.manual_seed(0)
        >>> draws = [levels + torch.rand(3) for _ in range(200)]
        >>> found = over_noise([evidence.Exact()(Program(model), y) for y in draws])
        >>> cells = dist.Normal(1.0, 1.0).cdf(torch.arange(4.0)).diff().log().sum()
        >>> found.bound, bool(found.total < cells + 3 * found.total_std_error)
        ('lower', True)
    """
    first = check_alike(evidences)
    log_z = torch.stack([one.log_z for one in evidences])
    errors = torch.stack([one.std_error for one in evidences])
    count = len(evidences)
    return replace(
        first,
        log_z=log_z.mean(0),
        std_error=((log_z.var(0) + errors.square().mean(0)) / count).sqrt(),
        bound="estimate" if first.bound == "upper" else "lower",
        measure="probability",
        warnings=tuple(dict.fromkeys(w for one in evidences for w in one.warnings)),
        seconds=sum(one.seconds for one in evidences),
    )


def check_alike(evidences: Sequence[Evidence]) -> Evidence:
    """Check that evidences differ only in their noise.

    Returns the first of them.
    """
    if len(evidences) < 2:
        raise ValueError(
            f"there are {len(evidences)} evidences; expected two or more draws of the noise, whose "
            "spread is the error"
        )
    kinds = {(one.estimator, one.log_z.shape, one.num_dims) for one in evidences}
    if len(kinds) > 1:
        raise ValueError(
            f"the evidences are of unlike kinds: {sorted(map(str, kinds))}; expected one program, "
            "estimator and data set, with other noise"
        )
    return evidences[0]
