"""Whether flows have inverses at the data."""

import torch

from ppl_dgm.program import Bound
from ppl_dgm.program.inverses import cure, lost_share
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
        sites = dict(random_sites(few.model_trace()))
        fns = {name: site["fn"] for name, site in sites.items()}
        shares = few._evaluate(
            lambda: {name: lost_share(fn, sites[name]["value"]) for name, fn in fns.items()}
        )
    return tuple(
        f"the flow of site {name!r} has no inverse at {100 * share:.3g} % of its values, so that "
        f"its density need not integrate to one: {cure(fns[name])}"
        for name, share in shares.items()
        if share > 0
    )
