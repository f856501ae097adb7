"""Bayes nets in the Bayesian interchange format (BIF).

The version is BIF 0.15 (Cozman 1998).
"""

import os
import re
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.tables import Table
from ppl_dgm.families.bayesnet.net import BayesNet
from ppl_dgm.program.storage import write_bytes

__all__ = ["read_bif", "write_bif"]

QUOTED_OR_COMMENT = re.compile(r'"([^"]*)"|//[^\n]*|/\*.*?\*/', re.S)
PROPERTY = re.compile(r"(?<=[{};])\s*property\b[^;]*;")
VARIABLE = re.compile(
    r"variable\s+([^\s{]+)\s*\{\s*type\s+discrete\s*\[\s*(\d+)\s*\]\s*\{([^}]*)\}"
)
PROBABILITY = re.compile(r"probability\s*\(([^)]*)\)\s*\{([^}]*)\}")
ROW = re.compile(r"\(([^)]*)\)([^;]*);")
TABLE = re.compile(r"^\s*table\b([^;]*);")
DEFAULT = re.compile(r"\bdefault\b([^;]*);")
# What only a name in quotes may have, stood for by characters without a meaning:
SPECIAL = " \t\n,;(){}[]|/*"
HIDDEN = {ord(character): 0xE000 + ord(character) for character in SPECIAL}
SHOWN = {hidden: character for character, hidden in HIDDEN.items()}


@checked
def read_bif(path: str | os.PathLike) -> BayesNet:
    """Read a net of tables from a BIF file.

    Variables are in the order of the file.

    Raises:
        ValueError: for a file that declares no variables, or tables that miss rows or do not fit
            the variables.

    Example:
        >>> import tempfile
        >>> from ppl_dgm.families.bayesnet.networks import asia
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     net = read_bif(write_bif(asia(), Path(folder) / "asia.bif"))
        >>> net.states["lung"], net.parents["dysp"]
        (('yes', 'no'), ('bronc', 'either'))
    """
    text = PROPERTY.sub(" ", QUOTED_OR_COMMENT.sub(hidden, Path(path).read_text(encoding="utf-8")))
    states = {words(name)[0]: words(names) for name, _, names in VARIABLE.findall(text)}
    if not states:
        raise ValueError(
            f"{path} declares no variables; expected a file in the Bayesian interchange format "
            "(BIF)"
        )
    tables = {}
    for header, body in PROBABILITY.findall(text):
        name, *parents = words(header.replace("|", " "))
        unknown = [variable for variable in (name, *parents) if variable not in states]
        if unknown:
            raise ValueError(f"{path} gives probabilities of the undeclared variables {unknown}")
        tables[name] = Table(read_table(name, tuple(parents), body, states), parents)
    missing = [name for name in states if name not in tables]
    if missing:
        raise ValueError(f"{path} gives no probabilities for the variables {missing}")
    return BayesNet({name: tables[name] for name in states}, states)


def read_table(
    name: str, parents: tuple[str, ...], body: str, states: dict[str, tuple[str, ...]]
) -> Tensor:
    """Read the table of one probability block.

    It is `[*parent_states, K]`. The block has rows by parents' states and a default for the others,
    or all numbers at once.
    """
    shape = [len(states[variable]) for variable in (*parents, name)]
    whole = TABLE.search(body)
    if whole:
        flat = numbers(whole.group(1))
        check_size(name, flat, torch.Size(shape).numel())
        return flat.reshape(shape[-1], *shape[:-1]).movedim(
            0, -1
        )  # the variable's own states vary slowest
    rows = {words(key): numbers(values) for key, values in ROW.findall(body)}
    default = DEFAULT.search(ROW.sub(" ", body))
    keys = list(product(*(states[parent] for parent in parents)))
    missing = [key for key in keys if key not in rows]
    if default:
        rows |= dict.fromkeys(missing, numbers(default.group(1)))
    elif missing:
        raise ValueError(
            f"the probabilities of {name!r} lack rows for the parents' states {missing[:3]}"
        )
    for key in keys:
        check_size(name, rows[key], shape[-1])
    return torch.stack([rows[key] for key in keys]).reshape(shape)


def check_size(name: str, values: Tensor, expected: int) -> None:
    """Refuse too many or too few numbers."""
    if len(values) != expected:
        raise ValueError(
            f"expected {expected} probabilities of {name!r} in one place, got {len(values)}"
        )


def words(text: str) -> tuple[str, ...]:
    """Names separated by commas or spaces."""
    return tuple(word.translate(SHOWN) for word in re.split(r"[,\s]+", text.strip()) if word)


def hidden(match: re.Match) -> str:
    """Replace a quoted name or a comment.

    A name loses its quotes, and its special characters are hidden; a comment becomes a space.
    """
    return " " if match[1] is None else f" {match[1].translate(HIDDEN)} "


def quoted(name: str) -> str:
    """A name as a file has it."""
    if '"' in name:
        raise ValueError(f"the name {name!r} has a quote, which BIF has no way to write; rename it")
    return f'"{name}"' if any(character in name for character in SPECIAL) else name


def numbers(text: str) -> Tensor:
    """Numbers separated by commas or spaces."""
    return torch.tensor([float(word) for word in re.split(r"[,\s]+", text.strip()) if word])


@checked
def write_bif(net: BayesNet, path: str | os.PathLike) -> Path:
    """Write a net of tables as a BIF file.

    `read_bif` reads it. Returns the path.

    Raises:
        ValueError: for a net with conditionals that are no tables, names with quotes, or a path
            that is no regular file.
    """
    others = [name for name, node in net.nodes.items() if not isinstance(node, Table)]
    if others:
        raise ValueError(f"the nodes {others} are no tables, and BIF holds only tables")
    blocks = ["network unknown {\n}", *(variable_block(net, name) for name in net.nodes)]
    blocks += [probability_block(net, name) for name in net.nodes]
    write_bytes(path, ("\n".join(blocks) + "\n").encode())
    return Path(path)


def variable_block(net: BayesNet, name: str) -> str:
    """The declaration of one variable."""
    states = [quoted(state) for state in net.states[name]]
    kind = f"type discrete [ {len(states)} ] {{ {', '.join(states)} }};"
    return f"variable {quoted(name)} {{\n  {kind}\n}}"


def probability_block(net: BayesNet, name: str) -> str:
    """Format the table of one variable for BIF.

    There is one row for each state of the parents.
    """
    node = net.nodes[name]
    probs = node.probs.double() if isinstance(node, Table) else torch.empty(0)
    if not node.parents:
        return f"probability ( {quoted(name)} ) {{\n  table {row_text(probs)};\n}}"
    keys = product(*(net.states[parent] for parent in node.parents))
    rows = zip(keys, probs.flatten(0, -2), strict=True)
    lines = [f"  ({', '.join(map(quoted, key))}) {row_text(row)};" for key, row in rows]
    return (
        f"probability ( {quoted(name)} | {', '.join(map(quoted, node.parents))} ) {{\n"
        + "\n".join(lines)
        + "\n}"
    )


def row_text(row: Tensor) -> str:
    """Probabilities with as many digits as a float32 has."""
    return ", ".join(f"{value:.9g}" for value in row.tolist())
