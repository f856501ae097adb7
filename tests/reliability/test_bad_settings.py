"""Settings of every public call, of a wrong kind or out of range: each is refused by its name."""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType, NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import constructors
import pytest
import torch
from torch import Tensor, nn

import ppl_dgm
from ppl_dgm import (
    Program,
    compression,
    data,
    diagnostics,
    evidence,
    families,
    guides,
    kernels,
    objectives,
    tasks,
)
from ppl_dgm.checked import Limit
from ppl_dgm.conditionals import components, likelihoods, priors, tables
from ppl_dgm.families import autoregressive, bayesnet, energy, flows, implicit
from ppl_dgm.fitting import callbacks
from ppl_dgm.report import write_report

FACES = [ppl_dgm, autoregressive, bayesnet, callbacks, components, compression, data, diagnostics]
FACES += [energy, evidence, families, flows, guides, implicit, kernels, likelihoods, objectives]
FACES += [priors, tables, tasks]
METHODS = [
    Program.load,
    Program.sample,
    Program.sample_sites,
    Program.save,
    evidence.AIS.__call__,
    evidence.BDMC.__call__,
    evidence.Evidence.interval,
    write_report,
]


class Bad(NamedTuple):
    """A call with one setting that cannot be meant, and what the error must say."""

    made: Any
    setting: str
    call: Callable[[], Any]
    message: str


def public_calls() -> list[Any]:
    """Constructors, functions and methods that users call with settings."""
    found = {
        id(value): value
        for face in FACES
        for name in face.__all__
        if not isinstance(value := getattr(face, name), ModuleType)
        and getattr(value, "__module__", "").startswith("ppl_dgm")
        and is_called_by_users(value)
    }
    return [*found.values(), *METHODS]


def is_called_by_users(value: Any) -> bool:
    """Whether a value is a function or a class, no base, no result and no inner part."""
    made = isinstance(value, type) and not inspect.isabstract(value)
    return (made or inspect.isfunction(value)) and value.__name__ not in NOT_MADE


NOT_MADE = {
    "CodeLength",
    "Comparison",
    "Completion",
    "Detection",
    "Estimate",
    "Evidence",
    "Fit",
    "GradientNoise",
    "LatentUse",
    "Marginal",
    "Memorisation",
    "ModeCounts",
    "NonFiniteError",
    "Posterior",
    "PrecisionRecall",
    "Progress",
    "Sandwich",
    "SavageDickey",
    "TwoSampleTest",
    "AmortisationGap",
    "Divergence",
    "Goal",
    "Move",
    "Program",
    "State",
    "Target",
    "check_levels",
    "named_components",
    "scaled_levels",
}

# ---- wrong kinds ---------------------------------------------------------------------------------

WHOLE = ("a whole number", [1.5, math.nan, math.inf, "3", True, [3], torch.zeros(2)])
NUMBER = ("a finite number", ["1", math.nan, math.inf, -math.inf, True, [1.0], 1j, torch.zeros(2)])
KINDS: dict[Any, tuple[str, list[Any]]] = {
    int: WHOLE,
    float: NUMBER,
    Limit: ("a number", ["1", math.nan, True, [1.0], 1j, torch.zeros(2)]),
    bool: ("True or False", ["yes", 1, [True]]),
    str: ("text", [3, ["a"], b"a"]),
    Tensor: ("a Tensor", ["x", 3, [1.0, 2.0]]),
    nn.Module: ("a torch.nn.Module", ["net", 3, nn.Linear]),
    Program: ("takes a Program, not a", [len, "program", 3]),
    kernels.Kernel: ("a Kernel .*HMC", ["HMC", 3, kernels.HMC]),
    evidence.AIS: ("an AIS", ["AIS", evidence.AIS, 3]),
    Callable: ("a function", ["relu", 3, [len]]),
    Mapping: ("a mapping", [3, "a", ["a"]]),
    Sequence: ("a collection", [3, "ab", {"a": 1}]),
}


def wrong_values(annotation: Any) -> tuple[str, list[Any]] | None:
    """What an annotation takes in words, and values that it does not."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ("one of" if len(parts) > 1 else repr(parts[0])), ["nonsense", 3]
    if NoneType in parts and len(parts) == 2:
        inner = wrong_values(next(part for part in parts if part is not NoneType))
        return inner and (inner[0], [value for value in inner[1] if value is not None])
    found = KINDS.get(annotation, KINDS.get(origin))
    return found and (found[0], [*found[1], None])


def annotated_settings() -> Iterator[tuple[Any, str, tuple[str, list[Any]]]]:
    """Each public call with each of its settings, and what that does not take."""
    for call in public_calls():
        function = call.__init__ if isinstance(call, type) else call
        hints = get_type_hints(function, include_extras=True)
        for name, parameter in inspect.signature(call).parameters.items():
            wrong = wrong_values(hints.get(name))
            if wrong and name not in ("self", "objective") and parameter.kind not in VARIADIC:
                yield call, name, wrong


def of_wrong_kind() -> Iterator[Bad]:
    """All wrong values of all settings."""
    for call, name, (expected, values) in annotated_settings():
        named = expected.startswith("takes")
        message = expected if named else f"^{name} is .*; expected .*{expected}"
        for value in values:
            yield Bad(
                call,
                f"{name}={value!r:.20}",
                lambda call=call, name=name, value=value: call_with(call, name, value),
                message,
            )


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def call_with(call: Any, name: str, value: Any) -> Any:
    """Call with one argument alone: others are looked for after it has been looked at."""
    own = (object(),) if "self" in inspect.signature(call).parameters else ()
    return call(*own, **{name: value})


def fault(bad: Bad) -> str | None:
    """What is wrong with the refusal of a bad call."""
    try:
        bad.call()
    except (TypeError, ValueError) as error:
        return None if re.search(bad.message, str(error)) else str(error)
    except Exception as error:
        return repr(error)
    return "was taken"


def check_refused(kinds: Sequence[Bad]) -> None:
    faults = {bad.setting: told for bad in kinds if (told := fault(bad))}
    assert not faults


def by_call(kinds: Iterator[Bad]) -> dict[Any, list[Bad]]:
    """All bad settings of each call."""
    found: dict[Any, list[Bad]] = {}
    for bad in kinds:
        found.setdefault(bad.made, []).append(bad)
    return found


def name_of(call: Any) -> str:
    return call.__qualname__


WRONG_KINDS = by_call(of_wrong_kind())


@pytest.mark.parametrize("call", WRONG_KINDS, ids=name_of)
def test_settings_of_a_wrong_kind(call: Any) -> None:
    check_refused(WRONG_KINDS[call])


# ---- out of range --------------------------------------------------------------------------------

# What is right beside the usual: whole numbers of at least one, and numbers that are positive.
MAY_BE_ZERO = "alpha beta bias classifier_weight commitment curvature decay dropout ema end gamma"
MAY_BE_ZERO += " gradient_penalty jitter kl_weight momentum nats num_context num_refresh num_rounds"
MAY_BE_ZERO += " num_warmup r1 rate resample_below restart share sleep smoothing start"
MAY_BE_NEGATIVE = {"bias", "curvature", "rate"}
SHARES = "cess decay dropout ema jitter least momentum resample_below restart share sleep smoothing"
SHARES += " target_acceptance"
ALSO_RIGHT = {
    (objectives.Renyi, "alpha", -1.0),
    (evidence.Laplace, "num_particles", 0),
    (families.MultiscalePixelCNN, "num_scales", 0),
}


def out_of_range() -> Iterator[Bad]:
    for make, right in constructors.RIGHT.items():
        hints = get_type_hints(make.__init__ if isinstance(make, type) else make)
        for name in inspect.signature(make).parameters:
            for value in wrong_numbers(name, hints[name]):
                if (make, name, value) not in ALSO_RIGHT and name != "seed":
                    yield Bad(
                        make,
                        f"{name}={value}",
                        lambda make=make, settings={**right, name: value}: make(**settings),
                        "expected|needs at least|leave it out",
                    )


def wrong_numbers(name: str, annotation: Any) -> list[Any]:
    """Numbers that a setting of this name cannot be."""
    sequence = get_origin(annotation) in (tuple, Sequence)
    parts = () if sequence else (annotation, *get_args(annotation))
    one = next((part for part in parts if part in (int, float)), None)
    if one is None:
        return []
    zero = [] if name in MAY_BE_ZERO.split() else [one(0)]
    negative = [] if name in MAY_BE_NEGATIVE else [one(-1)]
    return zero + negative + ([1.5] if name in SHARES.split() else [])


OUT_OF_RANGE = by_call(out_of_range())


@pytest.mark.parametrize("make", OUT_OF_RANGE, ids=name_of)
def test_settings_out_of_range(make: Any) -> None:
    check_refused(OUT_OF_RANGE[make])


@pytest.mark.parametrize("make", constructors.RIGHT, ids=name_of)
def test_right_settings_are_taken(make: Any) -> None:
    make(**constructors.RIGHT[make])


def test_there_are_many_kinds() -> None:
    assert sum(map(len, WRONG_KINDS.values())) >= 4000
    assert sum(map(len, OUT_OF_RANGE.values())) >= 300
    assert len(WRONG_KINDS) >= 150
