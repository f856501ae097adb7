"""What is known of processor and headers without compiling, or while Python is busy."""

import pytest
from torch._inductor import config, cpu_vec_isa

from ppl_dgm.compile import headers
from ppl_dgm.compile.vectors import vectors_by_flags


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
def test_headers_are_made_meanwhile_once_on_a_machine(fails, tmp_path, monkeypatch) -> None:
    made = []

    def load(code: str, device: str, needs_vec_isa: bool) -> None:
        assert config.cpp_wrapper
        made.append(device)
        (tmp_path / "headers").mkdir()
        if fails:
            raise RuntimeError("no compiler")

    monkeypatch.setattr(headers, "_HEADER_DIR", str(tmp_path / "headers"))
    monkeypatch.setattr(headers.CppWrapperCodeCache, "load_async", load)
    for _ in range(2):
        with headers.headers_meanwhile():
            pass
    assert made == ["cpu"]
