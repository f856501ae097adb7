"""The top level imports what it names when it is used, and nothing before."""

import subprocess
import sys

import pytest

import ppl_dgm

HEAVY = ("arviz", "matplotlib", "pandas", "sklearn", "torch", "xarray")


@pytest.mark.parametrize("name", ppl_dgm.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(ppl_dgm, name)
    assert found.__name__.rsplit(".", 1)[-1] == name
    assert name in dir(ppl_dgm)


def test_functions_are_not_hidden_by_rooms() -> None:
    """A submodule becomes an attribute of its package when imported: none has a function's name."""
    rooms = {name.split(".")[1] for name in sys.modules if name.startswith("ppl_dgm.")}
    modules = {
        "compression",
        "data",
        "diagnostics",
        "evidence",
        "families",
        "nn",
        "objectives",
        "tasks",
    }
    assert rooms.isdisjoint(set(ppl_dgm.__all__) - modules)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ppl_dgm' has no attribute 'nonsense'"):
        ppl_dgm.nonsense  # noqa: B018


def test_the_import_alone_loads_nothing_heavy() -> None:
    code = f"import sys, ppl_dgm; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_what_most_users_import_loads_no_more_than_it_needs() -> None:
    """Plots, tables, the compiler and clustering cost seconds and are loaded when asked for."""
    heavy = (
        "arviz",
        "dynesty",
        "matplotlib",
        "pandas",
        "scipy.special",
        "sklearn",
        "torch._inductor",
        "xarray",
    )
    names = "Program, compare, evidence, families, fit, objectives, posterior"
    code = (
        f"import sys; from ppl_dgm import {names}; print([m for m in {heavy} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
