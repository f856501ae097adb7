"""Encode data to bytes and back."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_dgm.checked import checked
from ppl_dgm.compression.sides import Coded, Receiver, Sender, Side
from ppl_dgm.compression.stack import BitStack
from ppl_dgm.distributions.autoregressive import EqualMixture
from ppl_dgm.program import Program, Structure
from ppl_dgm.program.arguments import select_data
from ppl_dgm.program.first_run import describe
from ppl_dgm.program.identity import digest
from ppl_dgm.program.isolation import evaluating, undisturbed
from ppl_dgm.program.pyro_patches import unvalidated
from ppl_dgm.program.seeding import seeded
from ppl_dgm.program.supports import innermost

__all__ = ["decode", "encode"]

TAGS = 2, 3  # bytes of the digests of the program, and of program and code
ROWS = 1024  # data coded side by side, at most
SHARE = 16  # data coded before, for each that draws from their bits side by side with others
Group = tuple[Tensor, tuple, dict]


@checked
def encode(program: Program, x: Tensor, *args: Any, **kwargs: Any) -> bytes:
    r"""Compress data losslessly, as well as the program predicts them.

    Exact densities of independent or autoregressive dimensions take $-\log_2 p(x)$ bits a datum,
    one dimension coded after the other. Where latents are drawn, the sender draws them from the
    guide with the bits of the data before, and the receiver gets these bits back: a datum takes
    $-\log_2 p(x, z) + \log_2 q(z \mid x)$ bits, on average $-\mathrm{ELBO} / \log 2$ (Hinton and
    van Camp 1993; Townsend, Bird and Barber 2019). The first datum has none to draw from: its bits
    of z are lost. Orders of which a density is the mean are coded alike, as latents of which the
    posterior is known. Real latents lie on a grid of distance 1 / 128.

    Args:
        program: with its parameters as they are. `decode` needs it the same to the last bit,
            on the same kind of machine with as many threads: rounding decides.
        x: data `[N, *event]`, its dimensions of finitely many values.
        *args: further data, which `decode` needs too.
        **kwargs: further data.

    Returns:
        About ten bytes that tell the program and N and guard against damage, then the code.

    Raises:
        ValueError: constriction is absent; data outside the support; a program whose data site is
            not finite, with shared or summed-out latents or other than normal or finite ones.

    Example:
        >>> import torch
        >>> from ppl_dgm.compression.stack import constriction
        >>> from ppl_dgm.families import MADE
        >>> made, x = MADE(5, [8]), torch.eye(5)
        >>> constriction is None or torch.equal(decode(made, encode(made, x)), x)
        True
    """
    stack = BitStack()
    check_codable(program, program.bind(x, *args, **kwargs).structure)
    with coding(program):
        groups = list(grouped(program, len(x), args, kwargs))
        for rows, group in zip(x.split([len(group[0]) for group in groups]), groups, strict=True):
            send(program, Sender(stack), rows, group)
    borrowed, above = stack.content()
    body = varint(len(x)) + varint(borrowed) + above
    return b"".join([*tags(program, body), body])


@checked
def decode(program: Program, code: bytes, *args: Any, **kwargs: Any) -> Tensor:
    """Restore data from what `encode` made of them.

    Args:
        program: the one that encoded them.
        code: the bytes.
        *args: the further data, as `encode` was given them.
        **kwargs: further data.

    Returns:
        Data `[N, *event]`.

    Raises:
        ValueError: bytes that were cut short or changed, that another program wrote, or that were
            encoded with other further data.
    """
    num_data, borrowed, above = unpack(program, code)
    stack = BitStack(borrowed, above)
    with coding(program), blaming_further(num_data, args, kwargs):
        groups = list(grouped(program, num_data, args, kwargs))
        found = [receive(program, Receiver(stack), group) for group in reversed(groups)]
    if not stack.is_as_at_the_start():
        raise ValueError(
            f"the code does not end where it should{miscounted(num_data, args, kwargs)}: it was "
            "encoded with other further data, or on a machine that rounds otherwise"
        )
    return torch.cat(found[::-1])


def send(program: Program, side: Side, x: Tensor, group: Group) -> None:
    """Code data."""
    blank, args, kwargs = group
    latents: dict[str, Tensor] = {}
    if program.has_guide:
        with Coded(side, True, {}) as proposed:
            program.guide(x, *args, **kwargs)
        latents = proposed.found
    with Coded(side, False, {program.site: x, **latents}):
        program.model(blank, *args, **kwargs)
    side.finish()


def receive(program: Program, side: Side, group: Group) -> Tensor:
    """Decode data and push back the bits of their latents.

    These are the bits that the latents were drawn from.
    """
    blank, args, kwargs = group
    with Coded(side, False, {}) as coded:
        program.model(blank, *args, **kwargs)
    side.finish()
    x = coded.found.pop(program.site)
    if program.has_guide:
        with Coded(side, True, coded.found):
            program.guide(x, *args, **kwargs)
        side.finish()
    return x


def grouped(program: Program, num_data: int, args: tuple, kwargs: Any) -> Iterator[Group]:
    """Yield groups of data that are coded together.

    A group has blank data, with which the model is run, and the further data that belong to them.

    Few, where they draw from the bits of those before.
    """
    given = (args, kwargs, num_data)
    one_args, one_kwargs = select_data(*given, slice(0, 1))
    blank = program.sample(1, None, *one_args, **one_kwargs)
    drawing, start = draws_bits(program, blank, one_args, one_kwargs), 0
    while start < num_data:
        size = min(max(1, start // SHARE), ROWS) if drawing else ROWS
        rows = slice(start, min(start + size, num_data))
        blanks = blank.expand(rows.stop - start, *blank.shape[1:])
        yield blanks, *select_data(*given, rows)
        start = rows.stop


def draws_bits(program: Program, x: Tensor, args: tuple, kwargs: Any) -> bool:
    """Whether coding draws latents, or the component of a mixture."""
    if program.has_guide:
        return True
    site: Any = poutine.trace(program.model).get_trace(x, *args, **kwargs).nodes[program.site]
    return isinstance(innermost(site["fn"]), EqualMixture)


@contextmanager
def coding(program: Program) -> Iterator[None]:
    """Run a program identically on both sides of a code.

    The program is left unchanged.
    """
    with undisturbed(program), unvalidated(), seeded(0):
        yield


@contextmanager
def blaming_further(num_data: int, args: tuple, kwargs: Any) -> Iterator[None]:
    """Blame the further data where decoding fails."""
    try:
        yield
    except Exception as error:  # the user's own code may raise anything
        given = ", ".join(map(describe, tree_leaves((args, kwargs))))
        if not given:
            raise
        raise ValueError(
            f"the program does not run on the further data: {given}. The code holds {num_data} "
            "data; expected the same further data that encode was given, such as their labels, "
            "with a row for each"
        ) from error


def miscounted(num_data: int, args: tuple, kwargs: Any) -> str:
    """Tell of further data that have not one row each."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    odd = [leaf for leaf in tensors if not leaf.dim() or len(leaf) != num_data]
    if not odd:
        return ""
    return f" (it holds {num_data} data, and the further data {', '.join(map(describe, odd))})"


def check_codable(program: Program, structure: Structure) -> None:
    """Refuse programs that give no code for each datum."""
    if structure.observed != (program.site,):
        raise ValueError(
            f"the program observes {list(structure.observed)}; expected {program.site!r} alone, "
            "all other data as arguments"
        )
    if structure.factors or structure.enumerated or not structure.per_datum:
        raise ValueError(
            "the program has factors, latents that all data share or that are summed out; expected "
            "conditional densities of the data, and latents that a guide draws for each datum"
        )
    if structure.model_latents and not program.has_guide:
        raise ValueError("the program has latents and no guide to draw them from; give it one")


def tags(program: Program, body: bytes) -> tuple[bytes, bytes]:
    """Compute short digests of a program and its encoded data.

    The first digest is of the program's structure and parameters, the second of these and the code.
    """
    with evaluating(program):  # as it codes, whatever mode it is in
        name = digest(program).encode()
    parts = zip((name, name + body), TAGS, strict=True)
    first, second = (hashlib.blake2b(part, digest_size=size).digest() for part, size in parts)
    return first, second


def unpack(program: Program, code: bytes) -> tuple[int, int, bytes]:
    """Check a code and split it into its parts.

    These are the number of data, the number of words borrowed, and the bits.
    """
    if not isinstance(code, (bytes, bytearray, memoryview)):
        raise TypeError(f"code is a {type(code).__name__}; expected the bytes that encode gave")
    code, (first, _) = bytes(code), TAGS
    body = code[sum(TAGS) :]
    program_tag, code_tag = tags(program, body)
    if code[:first] == program_tag and code[first : sum(TAGS)] != code_tag:
        raise ValueError("the code was cut short, or changed since encode gave it")
    if code[: sum(TAGS)] != program_tag + code_tag:
        raise ValueError(
            "the data were encoded by another program, or one with other parameters, or these are "
            "no bytes that encode gave; load the parameters that encoded them"
        )
    num_data, rest = read_varint(body)
    return (num_data, *read_varint(rest))


def varint(number: int) -> bytes:
    """A whole number, seven bits a byte, the lowest first.

    Example:
        >>> varint(300), read_varint(varint(300) + b"rest")
        (b'\\xac\\x02', (300, b'rest'))
    """
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def read_varint(content: bytes) -> tuple[int, bytes]:
    """The number that bytes begin with, and the rest."""
    if not content[0] & 128:
        return content[0], content[1:]
    high, rest = read_varint(content[1:])
    return (content[0] & 127) + (high << 7), rest
