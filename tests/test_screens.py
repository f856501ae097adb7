"""The report's page in a browser, on a desktop and on a phone: nothing is cut off."""

import shutil
import subprocess
from pathlib import Path

import matplotlib.image as image
import numpy as np
import pytest
import torch

from ppl_dgm import compare, evidence, fit
from ppl_dgm.families import MADE, IndependentBernoulli
from ppl_dgm.report import Section, write_report

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to take screenshots with")
PROBE = (
    "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script>"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    x = (torch.rand(30, 16, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    programs = {"independent pixels, one by one": IndependentBernoulli(16), "MADE": MADE(16, (8,))}
    fits = {name: fit(p, x, steps=20, progress=False) for name, p in programs.items()}
    table = compare({n: evidence.Exact()(p, x) for n, p in programs.items()}, fits=fits)
    folder = tmp_path_factory.mktemp("screens")
    return write_report(folder, Section("Noise", table, "A note.", fits, programs))


def browse(page: Path, width: int, *flags: str) -> str:
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={width},1800",
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("width", [400, 1280])
def test_page_fits_the_screen(page, width, tmp_path):
    probed = page.with_name(f"probed-{width}.html")
    probed.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    title = browse(probed, width, "--dump-dom").partition("<title>")[2].partition("</title>")[0]
    inside, _, outside = title.partition(" of ")
    assert int(inside) <= int(outside)
    shot = tmp_path / "page.png"
    browse(page, width, f"--screenshot={shot}")
    pixels = image.imread(shot)
    assert pixels.shape[1] == width
    assert float((pixels[..., :3].mean(-1) < 0.5).mean()) > 0.005  # there is ink


def test_page_is_dark_where_the_screen_is(page, tmp_path):
    shots = {}
    for name, flag in {"light": "1", "dark": "0"}.items():
        shot = tmp_path / f"{name}.png"
        browse(page, 600, f"--blink-settings=preferredColorScheme={flag}", f"--screenshot={shot}")
        shots[name] = image.imread(shot)[:40, :, :3].mean()  # the margin above the heading
    assert shots["light"] > 0.9
    assert shots["dark"] < 0.2
    assert np.isfinite(list(shots.values())).all()
