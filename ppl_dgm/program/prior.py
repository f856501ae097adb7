"""Prior of a model, used as a guide."""

from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine

from ppl_dgm.program.sites import (
    is_enumerated,
)

__all__ = ["Prior", "is_given_or_summed_out"]


class Prior:
    """Prior of the model, used as a guide.

    It draws all latents, and hides the data and the factors.

    As the guide of Pyro's own losses it must hide the latents that are summed out too: they are
    none of the guide's.
    """

    def __init__(self, model: Callable, hide: Callable[[Any], bool] | None = None) -> None:
        self.model = model
        self.hide = hide or is_given

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        poutine.block(self.model, hide_fn=self.hide)(*args, **kwargs)


def is_given(site: Any) -> bool:
    """Return whether a site is data or a factor.

    Such sites are not drawn.
    """
    return site["type"] == "sample" and site["is_observed"]


def is_given_or_summed_out(site: Any) -> bool:
    """Whether a site is not drawn or is enumerated."""
    return is_given(site) or (site["type"] == "sample" and is_enumerated(site))
