"""What each module offers stands in its `__all__`, once; first docstring lines are short."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppl_dgm
from ppl_dgm import evidence

ROOT = Path(ppl_dgm.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
MODULES = [path for path in TREES if path.name not in ("__init__.py", "__main__.py")]
# The same bound, to fit by and to estimate; a likelihood and the distribution that it gives; data
# from codes, which are bits or latents.
TWICE = {"decode", "ELBO", "IWELBO", "ContinuousBernoulli"}


def name_of(path: Path) -> str:
    """The module's name below `ppl_dgm`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def face(path: Path) -> list[str]:
    """The names in a module's `__all__`."""
    for node in TREES[path].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{name_of(path)} has no __all__")


def defined(path: Path) -> set[str]:
    """The names that a module defines or hands on."""
    found = set()
    for node in ast.walk(ast.Module([*TREES[path].body], [])):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


def imported() -> Iterator[tuple[Path, str, str]]:
    """Who imports which name of which module of the package."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ppl_dgm."):
                for alias in node.names:
                    yield path, str(node.module).removeprefix("ppl_dgm."), alias.name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_offers(path: Path) -> None:
    names = face(path)
    assert names, "a module that offers nothing has no use"
    assert set(names) <= defined(path)
    assert not [name for name in names if name.startswith("_")]


def test_modules_take_from_each_other_what_is_offered() -> None:
    offered = {name_of(path): set(face(path)) for path in MODULES}
    wrong = [
        f"{name_of(path)} takes {name} of {module}"
        for path, module, name in imported()
        if module in offered and name not in {*offered[module], "__version__"}
    ]
    assert not wrong


def test_no_name_stands_for_two_things() -> None:
    counts = Counter(name for path in MODULES for name in set(face(path)))
    assert {name for name, count in counts.items() if count > 1} == TWICE


@pytest.mark.parametrize("path", TREES, ids=name_of)
def test_first_docstring_lines_have_at_most_ten_words(path: Path) -> None:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    texts = [ast.get_docstring(node) for node in ast.walk(TREES[path]) if isinstance(node, kinds)]
    lines = [text.splitlines()[0] for text in texts if text]
    assert not [line for line in lines if len(line.split()) > 10]


def test_every_estimator_has_its_page_in_the_documentation() -> None:
    folder = ROOT.parent / "docs" / "estimators"
    pages = "".join(page.read_text() for page in folder.glob("*.md"))
    kinds = [value for value in vars(evidence).values() if isinstance(value, type)]
    names = [kind.__name__ for kind in kinds if issubclass(kind, evidence.Estimator)]
    assert len(names) > 20
    assert not [n for n in names if n != "Estimator" and f"::: ppl_dgm.evidence.{n}\n" not in pages]
