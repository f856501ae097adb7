"""Problems of known evidence, one or more for each kind of fault: `KINDS`."""

from evidence.case_programs import CASES

from ppl_dgm.data.problems import load_all

__all__ = ["KINDS"]

KINDS = [problem for name, problem in load_all().items() if name not in CASES]
