"""What Inductor is spared: its answers are the same."""

import pytest
from torch._inductor import config, cpu_vec_isa
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
from torch._inductor.lowering import lowerings

from ppl_dgm.compile.inductor import startup_patches as shortcuts
from ppl_dgm.compile.inductor.startup_patches import headers_meanwhile, rules_once, vectors_by_flags


def test_vectors_by_flags_are_those_that_test_programs_find() -> None:
    def found() -> list[str]:
        kinds = [kind for kind in cpu_vec_isa.supported_vec_isa_list if str(kind) in names]
        return [kind.build_arch_flags() for kind in kinds if kind.check_build("")]

    names = {str(kind) for kind in cpu_vec_isa.valid_vec_isa_list()}
    compiled = found()
    with vectors_by_flags():
        assert found() == compiled
        assert not cpu_vec_isa.VecISA.check_build(Impossible(), "")


class Impossible(cpu_vec_isa.VecISA):
    def build_arch_flags(self) -> str:
        return "-mno-such-vectors"


@pytest.mark.parametrize("fails", [False, True])
def test_headers_are_made_meanwhile(fails, monkeypatch) -> None:
    made = []

    def load(code: str, device: str, needs_vec_isa: bool) -> None:
        assert config.cpp_wrapper
        made.append(device)
        if fails:
            raise RuntimeError("no compiler")

    monkeypatch.setattr(shortcuts.CppWrapperCodeCache, "load_async", load)
    with headers_meanwhile():
        assert not config.cpp_wrapper
    assert made == ["cpu"]


def test_rules_of_types_are_made_once_and_again_at_the_next_compilation() -> None:
    assert lowerings  # whose import fills the rules
    rules = DtypePropagationOpsHandler().__dict__.copy()
    for _ in range(2):
        with rules_once():
            handler = DtypePropagationOpsHandler()
            assert handler.__dict__.keys() == rules.keys()
            del handler.__dict__["sin"]
            assert "sin" not in DtypePropagationOpsHandler().__dict__
        assert "sin" in DtypePropagationOpsHandler().__dict__
