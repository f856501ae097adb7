"""What the commands do: load, fit, estimate, print, write."""

import os
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from ppl_dgm.cli.estimating import estimate
from ppl_dgm.cli.loading import (
    CallArguments,
    arguments_for,
    kept_import_path,
    load_data,
    load_program,
    load_state,
    program_names,
)
from ppl_dgm.cli.studies import STUDIES, Budget, run_study
from ppl_dgm.comparison import Comparison, compare
from ppl_dgm.comparison.estimating import pool_mixed
from ppl_dgm.compile import CompileMode
from ppl_dgm.evidence import Evidence
from ppl_dgm.fitting import Fit, fit
from ppl_dgm.program import Program
from ppl_dgm.program.seeding import seeded
from ppl_dgm.ranks import from_torchrun
from ppl_dgm.report import Section, write_report
from ppl_dgm.reporting.folders import make_folder

__all__ = ["run_compare", "run_evidence"]

UNRELIABLE = 3  # the exit status where an alarm speaks against a number
NO_FITS: Mapping[str, Fit] = {}
_COMPILE: dict[str, CompileMode] = {"auto": "auto", "always": True, "never": False}


def run_compare(args: Namespace) -> int:
    """Compare the user's programs, or model families on digits.

    The families are compared where no programs are given.
    """
    with _processes(args.threads), kept_import_path():
        return _compare_programs(args) if args.programs else _compare_digits(args)


def run_evidence(args: Namespace) -> int:
    """Estimate the evidence of one program."""
    with _processes(args.threads), kept_import_path():
        folder = None if args.out is None else make_folder(args.out)
        data = load_data(args.data)
        program = load_program(args.program)
        (name,) = program_names([args.program])
        given = arguments_for(program, data)
        load_state(program, args.state, given)
        result = estimate(program, given, args.estimator, args.particles, args.seed)
        table = compare({name: result})
        print(f"{result}\n\n{table}")
        return _finish(table, folder, name, args.seed)


def _compare_digits(args: Namespace) -> int:
    start = time.perf_counter()
    if args.data not in ("both", *STUDIES):
        raise ValueError(
            f"--data is {args.data!r}; without programs expected one of {('both', *STUDIES)}, and "
            "for a file of your own name a program too: ppl-dgm compare model.py:program --data ..."
        )
    folder = make_folder(args.out or Path("results"))
    budget = Budget(args.temperatures, args.epochs, _COMPILE[args.compile])
    budget = budget.quick() if args.quick else budget
    names = list(STUDIES) if args.data == "both" else [args.data]
    seeds = range(args.seed, args.seed + args.seeds)
    sections = [run_study(STUDIES[name], budget, seeds) for name in names]
    for section in sections:
        print(f"\n{section.title}: {section.note}\n\n{section.comparison}")
    heading = "Generative models of handwritten digits"
    page = write_report(
        folder, sections, heading=heading, seed=args.seed, settings={"compile": args.compile}
    )
    print(f"\nreport: {page} ({time.perf_counter() - start:.0f} s)")
    return _status(*(section.comparison for section in sections))


def _compare_programs(args: Namespace) -> int:
    if args.data in ("both", *STUDIES):
        raise ValueError("--data is missing; name the file of data for your programs")
    if args.seeds > 1 and not args.fit:
        raise ValueError("--seeds fits from several seeds, but nothing is fitted; give --fit STEPS")
    folder = None if args.out is None else make_folder(args.out)
    data = load_data(Path(args.data))
    results, programs, fits, refits = {}, {}, {}, {}
    for name, reference in zip(program_names(args.programs), args.programs, strict=True):
        trained = [
            _trained(name, reference, data, seed, args)
            for seed in range(args.seed, args.seed + args.seeds)
        ]
        (results[name], programs[name], fitted), *again = trained
        fits |= {} if fitted is None else {name: fitted}
        refits |= {name: [evidence for evidence, *_ in again]} if again and fitted else {}
    table = compare(pool_mixed(results, programs), fits=fits or None, refits=refits)
    print(table)
    return _finish(table, folder, Path(args.data).stem, args.seed, fits)


def _trained(
    name: str, reference: str, data: Any, seed: int, args: Namespace
) -> tuple[Evidence, Program, Fit | None]:
    """Load a program, fit it, and estimate its evidence."""
    with seeded(seed, apart=False):
        program = load_program(reference)
        given = arguments_for(program, data)
        fitted = _fit(name, program, given, seed, args) if args.fit else None
    result = estimate(program, given, args.estimator, args.particles, args.seed)
    return result, program, fitted


def _fit(
    name: str, program: Program, given: CallArguments, seed: int, args: Namespace
) -> Fit | None:
    program.initialise(*given.args, **given.kwargs)
    if not any(parameter.requires_grad for parameter in program.parameters()):
        print(f"{name}: no parameters, nothing to fit")
        return None
    result = fit(
        program,
        given.data,
        steps=args.fit,
        seed=seed,
        compile=_COMPILE[args.compile],
        progress=False,
    )
    print(f"{name}: {result}")
    return result


def _finish(
    table: Comparison, folder: Path | None, title: str, seed: int, fits: Mapping[str, Fit] = NO_FITS
) -> int:
    if folder is not None:
        section = Section(title, table, fits=fits)
        print(f"\nreport: {write_report(folder, section, seed=seed)}")
    return _status(table)


def _status(*tables: Comparison) -> int:
    rows = [row for table in tables for row in table.rows]
    return 0 if all(not row.warnings for row in rows) else UNRELIABLE


@contextmanager
def _processes(num_threads: int) -> Iterator[Any]:
    """Run with threads, and as one rank of torchrun.

    The first rank alone prints.
    """
    with from_torchrun() as ranks, ExitStack() as stack:
        stack.enter_context(_threads(num_threads))
        if not ranks.is_first:
            silence = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(silence))
        yield


@contextmanager
def _threads(number: int) -> Iterator[Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
