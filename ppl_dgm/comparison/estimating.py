"""Evidence of the programs that are compared."""

from collections.abc import Mapping

from ppl_dgm.data import Stream
from ppl_dgm.evidence import Evidence, auto
from ppl_dgm.evidence.streaming import read_once
from ppl_dgm.program import Program

__all__ = ["estimate_programs", "pool_mixed"]


def estimate_programs(
    candidates: Mapping[str, Evidence | Program], data: tuple, seed: int | None, progress: bool
) -> dict[str, Evidence]:
    """Replace programs by estimates of their evidence on the data.

    These are read once, so that all programs see them in one order.
    """
    programs = {name: one for name, one in candidates.items() if isinstance(one, Program)}
    read = read_once(data, {})
    args, kwargs = ((read,), {}) if isinstance(read, Stream) else read
    settings = {"seed": seed, "progress": progress}
    found = {
        name: auto(one, *args, **settings, **kwargs) if isinstance(one, Program) else one
        for name, one in candidates.items()
    }
    return pool_mixed(found, programs)


def pool_mixed(
    evidences: Mapping[str, Evidence], programs: Mapping[str, Program]
) -> dict[str, Evidence]:
    """Pool evidences per datum where others have none.

    Only that of programs without numbers of their own is pooled: nothing in them can have been
    learned from these data, so that log p(D) is the sum over data.
    """
    mixed = any(getattr(one, "target", None) == "dataset" for one in evidences.values())
    fixed = {name for name, program in programs.items() if not program.state_dict()}
    return {
        name: one.pooled() if mixed and name in fixed and one.target == "datum" else one
        for name, one in evidences.items()
    }
