"""The README's examples run."""

import re
from pathlib import Path

import matplotlib.pyplot as plt

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)


def test_there_are_examples():
    assert len(BLOCKS) == 2


def run(block: int) -> dict:
    """The names that one example leaves."""
    names: dict = {}
    exec(compile(BLOCKS[block], f"README.md, example {block}", "exec"), names)
    plt.close("all")
    return names


def test_eight_schools_example_is_right(capsys):
    names = run(0)
    assert all(result.reliable for result in names["results"].values())
    assert names["draws"].reliable
    result = names["results"]["partly pooled"]
    assert abs(float(result.log_z) + 31.311347) < 4 * float(result.std_error)  # by quadrature
    assert "times as probable" in capsys.readouterr().out


def test_stock_model_beats_the_baseline(capsys):
    names = run(1)
    assert names["table"].best.name == "VAE"
    assert all(row.reliable for row in names["table"].rows)
    assert "nats per datum" in capsys.readouterr().out


def test_pictures_are_there():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (Path(__file__).parents[1] / path).is_file(), path
