"""Whether flows have inverses at the data."""

import torch

from ppl_dgm.program import Bound
from ppl_dgm.program.inverses import FINER, lost_share
from ppl_dgm.program.seeding import seeded
from ppl_dgm.program.sites import random_sites
from ppl_dgm.sampling.memory import some_of

__all__ = ["folds_alarm"]

MOST_DATA = 256  # that are looked at


def folds_alarm(bound: Bound) -> tuple[str, ...]:
    """Warn where a flow scores data that it cannot draw.

    Latents are at draws of the guide.
    """
    few = some_of(bound, MOST_DATA)[0]
    with torch.no_grad(), seeded(0, bound.device):
        sites = random_sites(few.model_trace())
        shares = few._evaluate(
            lambda: {name: lost_share(site["fn"], site["value"]) for name, site in sites}
        )
    return tuple(
        f"the flow of site {name!r} has no inverse at {100 * share:.2g} % of its values, so that "
        f"its density integrates to more than one: {FINER}"
        for name, share in shares.items()
        if share > 0
    )
