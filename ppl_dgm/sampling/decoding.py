"""Expected data given latents."""

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.particles import Values
from ppl_dgm.program.sampling import draw_sites
from ppl_dgm.program.seeding import seeded

__all__ = ["decode", "decoded", "latent_draws"]


class Expectation(Messenger):
    """Messenger that sets a site to its mean.

    It is the mean of the site's distribution, in place of a draw. Data stay as they are.
    """

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site and not msg["is_observed"]:
            msg["value"], msg["done"] = mean_of(msg["fn"], self.site), True


def mean_of(fn: Any, site: str) -> Tensor:
    """The mean of a site's distribution."""
    try:
        return fn.mean
    except NotImplementedError as error:
        raise ValueError(
            f"the distribution of data site {site!r} ({fn}) has no mean in closed form; draw data "
            "with posterior(...).predict() instead"
        ) from error


def decoded(bound: Bound, values: Values, site: str, at_data: bool = False) -> Tensor:
    """Compute E[x | z] of latent values `[codes, *shape]`.

    The result is `[codes, data, *event]`. Latents that are summed out are drawn given the values,
    or `at_data` given the data too.
    """
    if site not in bound.structure.observed:
        raise ValueError(
            f"the program observes {list(bound.structure.observed)}, not {site!r}; name its data: "
            "Program(..., site=...)"
        )
    num_codes = bound.count(values)
    with Expectation(site):
        drawn = draw_sites(
            bound.model,
            bound.structure,
            num_codes,
            bound.args,
            bound.kwargs,
            values,
            at_data=at_data,
        )
    return drawn[site]


@checked
def decode(
    program: Program, z: Tensor | Mapping[str, Tensor], *args: Any, seed: int = 0, **kwargs: Any
) -> Tensor:
    r"""Compute the expected data of given latents.

    The result is $\mathbb{E}[x \mid z]$.

    Args:
        program: the program, with its parameters as they are; the data site's distribution must
            have a mean.
        z: codes `[codes, *event]` of its only latent, or of each latent by name; latents that are
            not named are drawn given those.
        *args: covariates, as the model takes them without data.
        seed: of latents that are drawn; torch's generator is left as it was.
        **kwargs: further covariates.

    Returns:
        Expected data, `[codes, *event]`.

    Raises:
        ValueError: for a program of several latents that are not named, names that it does not
            have, or a data site without a mean.

    Example:
        >>> import torch
        >>> from ppl_dgm.families import VAE
        >>> decode(VAE(6, 2, hidden=[8]), torch.zeros(3, 2)).shape
        torch.Size([3, 6])
    """
    with undisturbed(program), seeded(seed, next((p.device for p in program.parameters()), None)):
        drawn = latent_draws(program, 1, *args, **kwargs)
        given = named_codes(drawn, z)
        structure, num_codes = program.structure, len(next(iter(given.values())))
        values = {n: code.reshape(num_codes, *drawn[n].shape[1:]) for n, code in given.items()}
        with Expectation(program.site):
            sites = draw_sites(program.model, structure, num_codes, args, kwargs, values)
    mean = sites[program.site]
    return mean.squeeze(1) if structure.batched and mean.shape[1:2] == (1,) else mean


def latent_draws(program: Program, num_draws: int, *args: Any, **kwargs: Any) -> Values:
    """Draw the latents from the prior, `[num_draws, *shape]` by name.

    Raises:
        ValueError: for a program without latents.
    """
    sites = program.sample_sites(num_draws, *args, **kwargs)
    observed = {program.site, *program.structure.observed, *program.structure.deterministic}
    latents = {name: value for name, value in sites.items() if name not in observed}
    if not latents:
        raise ValueError(
            "the program draws no latents, so that there is nothing to decode; sample it: "
            "program.sample(n)"
        )
    return latents


def named_codes(drawn: Values, z: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return codes by the name of their latent, checked."""
    if isinstance(z, Tensor):
        if len(drawn) > 1:
            raise ValueError(
                f"the program has the latents {list(drawn)}; name them: {{{next(iter(drawn))!r}: "
                "codes}"
            )
        z = dict.fromkeys(drawn, z)
    unknown = [name for name in z if name not in drawn]
    if unknown or not z:
        raise ValueError(f"the codes are of {list(z)}; expected some of {list(drawn)}")
    for name, code in z.items():
        if code.dim() < 1 or code[:1].numel() != drawn[name].numel():
            raise ValueError(
                f"codes of {name!r} have shape {list(code.shape)}; expected [codes, "
                f"{', '.join(map(str, drawn[name].shape[1:]))}]"
            )
    return dict(z)
