"""What Inductor is spared: its answers are the same."""

import os
from pathlib import Path

import pytest
import torch
from torch._inductor import config, cpu_vec_isa
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
from torch._inductor.lowering import lowerings
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from ppl_dgm.compile import CaptureError, cache_folder, compile_function
from ppl_dgm.compile.inductor import backend, machine_code
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


@pytest.mark.parametrize("set_before", [None, "/chosen"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_folder_of_the_users_own_compilations_stays(
    set_before: str | None, fails: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def compiler(graph, flat):
        seen.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        if fails:
            raise RuntimeError("no compiler")
        return graph

    monkeypatch.setattr(machine_code, "machine_code", compiler)
    monkeypatch.setattr(backend, "_COMPILED", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    if set_before:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", set_before)
    try:
        compile_function(lambda x: x + 1, (torch.ones(2),))
    except CaptureError:
        assert fails
    after = os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # as torch writes it
    assert after == (set_before or default_cache_dir())
    assert seen == [set_before or str(tmp_path / "ppl_dgm" / "inductor")] == [str(cache_folder())]
