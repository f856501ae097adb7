"""A folder that tells what was compared: one self-contained page, its pictures, and the numbers as JSON and netCDF."""

import base64
import io
import json
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from ppl_dgm.comparison import Comparison
from ppl_dgm.data import Dataset
from ppl_dgm.fitting import Fit
from ppl_dgm.program import Program
from ppl_dgm.program.seeding import seeded
from ppl_dgm.reporting.arviz import to_arviz, write_netcdf
from ppl_dgm.reporting.plots import plot_curves, plot_images
from ppl_dgm.sampling.posterior import posterior

DOTS_PER_INCH = 150
NUM_IMAGES = 64
NUM_EXPORTED = 20  # data whose posteriors are written to netCDF
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 62rem; margin: 2.5rem auto; padding: 0 1.5rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #e4e7eb }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem } img { max-width: 100% } caption, .notes { color: #52606d }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } caption { padding-bottom: .4rem }
th { border-bottom: 2px solid #7b8794 } tbody tr:nth-child(even) { background: #f5f7fa }
"""


@dataclass(frozen=True)
class Section:
    """One comparison of a report, with what it was made from.

    Attributes:
        title: heading; also names the section's files.
        comparison: the table.
        note: a paragraph below the title.
        fits: learning histories by program.
        programs: fitted programs, from which samples and posteriors are drawn.
        data: what they were evaluated on; samples are shown next to it where its events are images.
    """

    title: str
    comparison: Comparison
    note: str = ""
    fits: Mapping[str, Fit] = field(default_factory=dict)
    programs: Mapping[str, Program] = field(default_factory=dict)
    data: Dataset | None = None

    @property
    def slug(self) -> str:
        """The title as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def write_report(
    folder: str | os.PathLike,
    sections: Section | Sequence[Section],
    *,
    heading: str = "Comparison",
    seed: int = 0,
) -> Path:
    """Write a report of one or several comparisons to a folder, which is made if it does not exist.

    `report.html` needs no other file: table, forest of evidences, learning curves, grids of samples next to data.
    Beside it lie the pictures as PNG, `results.json`, the evidences of each section as `<section>.nc` and, for
    programs with latents, prior, posterior and predictive draws for the first data as `<section>-<program>.nc`, which
    `arviz.from_netcdf` reads.

    Args:
        folder: where to write; files of an earlier report there are overwritten.
        sections: what to report.
        heading: title of the page.
        seed: of the samples shown; torch's generator is left as it was.

    Returns:
        Path of `report.html`.

    Raises:
        ValueError: no sections, two of one name, or a folder that is a file.

    Example:
        >>> import tempfile, torch, pyro, pyro.distributions as dist
        >>> from ppl_dgm import Program, compare, evidence
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> table = compare({"normal": evidence.Exact()(Program(model), torch.zeros(3))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_report(folder, Section("Three zeros", table))
        ...     sorted(path.name for path in page.parent.iterdir())
        ['report.html', 'results.json', 'three-zeros-evidence.png', 'three-zeros.nc']
    """
    sections = [sections] if isinstance(sections, Section) else list(sections)
    check_titles(sections)
    target = make_folder(folder)
    bodies = [write_section(target, section, seed) for section in sections]
    (target / "results.json").write_text(json.dumps(as_json(sections), indent=1), encoding="utf-8")
    page = target / "report.html"
    page.write_text(html_page(heading, bodies), encoding="utf-8")
    return page


def check_titles(sections: Sequence[Section]) -> None:
    """Refuse sections whose files would overwrite each other."""
    slugs = [section.slug for section in sections]
    if not sections or len(set(slugs)) != len(slugs):
        raise ValueError(
            f"the sections are named {slugs}; expected at least one, with different titles"
        )


def make_folder(folder: str | os.PathLike) -> Path:
    """The folder, made if it does not exist."""
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; expected a folder to write the report to")
    target.mkdir(parents=True, exist_ok=True)
    return target


def write_section(folder: Path, section: Section, seed: int) -> str:
    """Write the pictures and netCDF files of one section; its HTML."""
    write_netcdf(as_dataset(section.comparison), folder / f"{section.slug}.nc")
    write_posteriors(folder, section, seed)
    pictures = {
        title: save_picture(folder / f"{section.slug}-{name}.png", figure)
        for name, (title, figure) in figures(section, seed).items()
    }
    shown = "".join(
        f'<h3>{escape(title)}</h3><img alt="{escape(title)}" src="{uri}">'
        for title, uri in pictures.items()
    )
    note = f"<p>{escape(section.note)}</p>" if section.note else ""
    return f"<h2>{escape(section.title)}</h2>{note}{section.comparison._repr_html_()}{shown}"


def figures(section: Section, seed: int) -> dict[str, tuple[str, Figure]]:
    """The pictures of a section: by the end of their file name, a title and a figure."""
    found = {"evidence": ("Evidence", section.comparison.plot()[0].figure)}
    histories = {
        name: fit.history for name, fit in section.fits.items() if len(fit.history["step"]) > 1
    }
    if histories:
        found["curves"] = ("Learning curves", plot_curves(histories).figure)
    if section.programs and section.data is not None and section.data.image_shape is not None:
        grids = {"data": section.data.x[:NUM_IMAGES], **draw_images(section.programs, seed)}
        found["samples"] = (
            "Samples next to data",
            plot_images(grids, section.data.image_shape)[0].figure,
        )
    return found


def draw_images(programs: Mapping[str, Program], seed: int) -> dict[str, Tensor]:
    """Samples of every program that can be sampled ancestrally."""
    with seeded(seed):
        return {
            name: p.sample(NUM_IMAGES)
            for name, p in programs.items()
            if p.density in ("exact", "latent")
        }


def save_picture(path: Path, figure: Figure) -> str:
    """Write a figure to a PNG file and close it; the same as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    plt.close(figure)
    path.write_bytes(buffer.getvalue())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def write_posteriors(folder: Path, section: Section, seed: int) -> None:
    """ArviZ files of the programs with latents, for the first data."""
    if section.data is None:
        return
    first = section.data.select(slice(NUM_EXPORTED))
    named: dict[str, Any] = first.kwargs
    for name, program in section.programs.items():
        if program.structure.model_latents:
            draws = posterior(
                program, *first.args, num_particles=10_000, num_draws=200, seed=seed, **named
            )
            file_name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", "the exported draws"
                )  # told by the file's attributes
                tree = to_arviz(draws, seed)
            write_netcdf(tree, folder / f"{section.slug}-{file_name}.nc")


def as_dataset(comparison: Comparison) -> xr.Dataset:
    """Evidences as arrays `[program]` or `[program, datum]`, in nats."""
    dims = ["program", "datum"] if comparison.target == "datum" else ["program"]
    stacked = {
        name: (
            dims,
            np.stack(
                [getattr(e, name).detach().cpu().numpy() for e in comparison.evidences.values()]
            ),
        )
        for name in ("log_z", "std_error")
    }
    labels = {
        name: ("program", [str(getattr(row, name)) for row in comparison.rows])
        for name in ("bound", "estimator")
    }
    return xr.Dataset(
        {**stacked, **labels},
        coords={"program": list(comparison.evidences)},
        attrs={"units": "nats", "target": comparison.target, "num_dims": comparison.num_dims},
    )


def as_json(sections: Sequence[Section]) -> dict[str, Any]:
    """All figures of all sections, NaN and infinities as null."""
    return {section.slug: section_json(section) for section in sections}


def section_json(section: Section) -> dict[str, Any]:
    """The figures of one section."""
    comparison = section.comparison
    return {
        "title": section.title,
        "note": section.note,
        "target": comparison.target,
        "num_data": comparison.num_data,
        "num_dims": comparison.num_dims,
        "reference": comparison.reference,
        "rows": [
            {name: finite(value) for name, value in asdict(row).items()} for row in comparison.rows
        ],
        "fits": {
            name: {
                "steps": fit.steps,
                "stopped": fit.stopped,
                "improving": fit.improving,
                "seconds": fit.seconds,
                "notes": list(fit.notes),
            }
            for name, fit in section.fits.items()
        },
    }


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def html_page(heading: str, bodies: Sequence[str]) -> str:
    """One page without links to other files."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(heading)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(heading)}</h1>{''.join(bodies)}</body></html>\n"
    )
