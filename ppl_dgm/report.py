"""Reports of comparisons as a folder of files.

A report is one self-contained page, its pictures, and the numbers as JSON and netCDF.
"""

import base64
import io
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.comparison import Comparison
from ppl_dgm.comparison.rendering import words
from ppl_dgm.data import Dataset
from ppl_dgm.environment import run_environment
from ppl_dgm.fitting import Fit
from ppl_dgm.markup import from_template
from ppl_dgm.program import Program
from ppl_dgm.program.seeding import seeded
from ppl_dgm.ranks import ranks_now
from ppl_dgm.reporting.arviz import to_arviz
from ppl_dgm.reporting.folders import (
    CONTENTS,
    PAGE,
    FileNames,
    make_folder,
    written_whole,
)
from ppl_dgm.reporting.netcdf import write_netcdf
from ppl_dgm.reporting.plots import plot_curves, plot_images
from ppl_dgm.reporting.plots.style import narrow_axes
from ppl_dgm.sampling.importance_resampling import posterior

__all__ = ["Section", "write_report"]

DOTS_PER_INCH = 150
CSS_PER_INCH = 96  # pixels of a page, as browsers count them
NUM_IMAGES = 64
NORMALISED = ("exact", "latent")  # densities of programs
NUM_EXPORTED = 20  # data whose posteriors are written to netCDF


@dataclass(frozen=True)
class Section:
    """One comparison of a report, with its sources.

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


@checked
def write_report(
    folder: str | os.PathLike,
    sections: Section | Sequence[Section],
    *,
    heading: str = "Comparison",
    seed: int = 0,
    settings: Mapping[str, str] | None = None,
) -> Path:
    """Write a report of one or several comparisons.

    The folder is created if it does not exist.

    `report.html` needs no other file: table, forest of evidences, learning curves, grids of samples
    next to data, what the words mean, and at its foot how the numbers were made. It reads on phones
    and on dark screens. Beside it lie the pictures as PNG, `results.json`, the evidences of each
    section as `<section>.nc` and, for programs with latents, prior, posterior and predictive draws
    for the first data as `<section>-<program>.nc`, which `arviz.from_netcdf` reads. Of several
    processes (torchrun) the first one writes.

    Args:
        folder: where to write. The report appears as a whole; an earlier one there is replaced,
            other files are kept. Killed or interrupted anywhere, it leaves the earlier one.
        sections: what to report.
        heading: title of the page.
        seed: of the samples shown; torch's generator is left as it was.
        settings: what else to tell of how the numbers were made, by name, beside seed, versions,
            device, command, date and which fits were compiled.

    Returns:
        Path of `report.html`.

    Raises:
        ValueError: no sections, two of one name, or a folder that is a file, cannot be written, or
            has files of others under the names of the report's.

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
    target, names = make_folder(folder), FileNames()
    if not ranks_now().is_first:
        return target / PAGE
    made = {**run_environment(seed), "compile": compiled(sections), **(settings or {})}
    parts = {names(section.title): section for section in sections}
    with written_whole(target) as beside:
        written = [write_section(beside, *titled, seed, names) for titled in parts.items()]
        told: dict[str, Any] = {part: section_json(section) for part, section in parts.items()}
        told |= {"own_files": [*names.given[len(parts) :], PAGE], "made_by": made}
        text = json.dumps(told, indent=1)
        (beside / CONTENTS).write_text(text, encoding="utf-8")
        meanings = {n: m for section in sections for n, m in words(section.comparison).items()}
        values = {"sections": written, "meanings": meanings, "made": made}
        page = from_template("page.html", heading=heading, **values)
        (beside / PAGE).write_bytes(page.encode("utf-8", errors="xmlcharrefreplace"))
    return target / PAGE


def compiled(sections: Sequence[Section]) -> str:
    """How many of the fits were compiled."""
    fits = [fit for section in sections for fit in section.fits.values()]
    count = sum(fit.compile_seconds > 0 for fit in fits)
    return f"{count} of {len(fits)} fits were compiled" if fits else "no fits are shown"


def check_titles(sections: Sequence[Section]) -> None:
    """Refuse no sections, and two of one title."""
    titles = [section.title for section in sections]
    if not sections or len(set(titles)) != len(titles):
        raise ValueError(
            f"the sections are named {titles}; expected at least one, with different titles"
        )


def write_section(
    folder: Path, part: str, section: Section, seed: int, names: FileNames
) -> dict[str, Any]:
    """Write a section's files and return what pages show.

    The files are pictures and netCDF files, their names beginning with `part`.
    """
    write_netcdf(as_dataset(section.comparison), folder / names(part, ending=".nc"))
    for name, tree in posteriors(section, seed):
        write_netcdf(tree, folder / names(part, name, ending=".nc"))
    drawn = draw_images(section.programs, seed) if shows_images(section) else {}
    wide, narrow = figures(section, drawn), figures(section, drawn, narrow=True)
    pictures = [
        {
            "title": title,
            "width": round(CSS_PER_INCH * figure.get_size_inches()[0]),
            "narrow": as_uri(as_png(narrow[name][1])),
            "wide": save_picture(folder / names(part, name, ending=".png"), figure),
        }
        for name, (title, figure) in wide.items()
    ]
    table = section.comparison._repr_html_()
    return {"title": section.title, "note": section.note, "table": table, "pictures": pictures}


def shows_images(section: Section) -> bool:
    """Whether there are programs whose samples are images."""
    return (
        bool(section.programs) and section.data is not None and section.data.image_shape is not None
    )


def figures(
    section: Section, drawn: Mapping[str, Tensor], narrow: bool = False
) -> dict[str, tuple[str, Figure]]:
    """Draw the figures of a section.

    Each has a title, and as its key the end of its file name.
    """
    across = 1 if narrow else 2
    found = {"evidence": ("Evidence", section.comparison.plot(across)[0].figure)}
    histories = {
        name: history_in_original_units(section, name)
        for name, fit in section.fits.items()
        if len(fit.history["step"]) > 1
    }
    if histories:
        axes = plot_curves(histories, narrow_axes() if narrow else None)
        found["curves"] = ("Learning curves", axes.figure)
    if drawn and section.data is not None and section.data.image_shape is not None:
        grids = {"data": section.data.x[:NUM_IMAGES], **drawn}
        axes = plot_images(grids, section.data.image_shape, max_across=2 * across)[0]
        found["samples"] = ("Samples next to data", axes.figure)
    return found


def history_in_original_units(section: Section, name: str) -> dict[str, Tensor]:
    """Give a program's learning curve in the table's units.

    Objectives of programs without a density, such as a GAN's, have no unit of the data.
    """
    program, history = section.programs.get(name), dict(section.fits[name].history)
    if section.data is None or (program and program.density not in NORMALISED):
        return history
    offset = torch.as_tensor(section.data.log_offset).mean()
    curves = history.keys() & {"objective", "valid"}
    return history | {curve: history[curve] + offset.to(history[curve]) for curve in curves}


def draw_images(programs: Mapping[str, Program], seed: int) -> dict[str, Tensor]:
    """Samples of every program that can be sampled ancestrally."""
    with seeded(seed, apart=False):
        return {
            name: p.sample(NUM_IMAGES) for name, p in programs.items() if p.density in NORMALISED
        }


def save_picture(path: Path, figure: Figure) -> str:
    """Save a figure as PNG and return its data URI.

    The figure is closed.
    """
    image = as_png(figure)
    path.write_bytes(image)
    return as_uri(image)


def as_png(figure: Figure) -> bytes:
    """The bytes of a figure, which is closed."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # of a font without some character of a name
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    plt.close(figure)
    return buffer.getvalue()


def as_uri(image: bytes) -> str:
    """A PNG as part of a page."""
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def posteriors(section: Section, seed: int) -> Iterator[tuple[str, Any]]:
    """Yield the posteriors of programs with latents, for ArviZ.

    They are those of the first data only.
    """
    if section.data is None:
        return
    first = section.data.select(slice(NUM_EXPORTED))
    named: dict[str, Any] = first.kwargs
    for name, program in section.programs.items():
        if program.structure.model_latents:
            draws = posterior(
                program, *first.args, num_particles=10_000, num_draws=200, seed=seed, **named
            )
            with warnings.catch_warnings():  # told by the file's attributes
                warnings.filterwarnings("ignore", "the exported draws")
                yield name, to_arviz(draws, seed)


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
                "compile_seconds": fit.compile_seconds,
                "seconds": fit.seconds,
                "notes": list(fit.notes),
            }
            for name, fit in section.fits.items()
        },
    }


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
