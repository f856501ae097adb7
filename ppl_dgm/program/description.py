"""Tables of a program's sites and parameters for notebooks."""

from torch import nn

from ppl_dgm.markup import html_table
from ppl_dgm.program.structure import Latent, Structure

__all__ = ["describe_program", "site_rows"]

MOST_PARAMETERS = 20  # that are listed one by one


def describe_program(name: str, structure: Structure | None, module: nn.Module) -> str:
    """Describe a program by tables of sites and parameters.

    The sites are those that the latest run on data found.
    """
    if structure is None:
        return f"<p>{name}, not yet run on data: program.initialise(*data)</p>" + _parameters(
            module
        )
    return _sites(name, structure) + _parameters(module)


def site_rows(structure: Structure) -> list[list[str]]:
    """Tabulate the sites of a program, a header first."""
    rows = [["site", "is", "belongs to", "values"]]
    rows += [[one.name, *_latent(one, structure)] for one in structure.latents]
    others = {
        "summed out": structure.enumerated,
        "observed": structure.observed,
        "a factor": structure.factors,
        "deterministic": structure.deterministic,
    }
    rows += [[site, what, "", ""] for what, sites in others.items() for site in sites]
    return rows


def _sites(name: str, structure: Structure) -> str:
    evidence = (
        "an evidence for each datum" if structure.per_datum else "one evidence for the data set"
    )
    return html_table(site_rows(structure), caption=f"{name}: {evidence}", left=range(4))


def _latent(latent: Latent, structure: Structure) -> list[str]:
    kind = "of the guide alone" if latent.auxiliary else "latent"
    owner = f"each datum (plate {structure.plate!r})" if latent.local else "all data"
    return [kind, owner, str(latent.support).removesuffix("()")]


def _parameters(module: nn.Module) -> str:
    found = list(module.named_parameters())
    total = sum(value.numel() for _, value in found)
    rows = [["parameter", "shape", "learned"]]
    rows += [
        [name, str(list(value.shape)), "yes" if value.requires_grad else "no"]
        for name, value in found[:MOST_PARAMETERS]
    ]
    rest = len(found) - MOST_PARAMETERS
    return html_table(
        rows,
        caption=f"{total} parameters",
        notes=[f"and {rest} more tensors"] if rest > 0 else [],
        left=range(3),
    )
