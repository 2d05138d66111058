"""The NVRTC runtime without a GPU: kernels compile, nothing spills, machine code is cached."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.format.errors import KernelError
from tersor.kernels import check, compiler
from tersor.kernels.compiler import Program, compile_program, machine_code
from tersor.kernels.fused.variant import COMBINE, Variant
from tersor.kernels.window.layout import MACROS, Geometry

nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
try:
    nvrtc.nvrtcVersion()
except RuntimeError:
    pytest.skip("NVRTC is not installed", allow_module_level=True)

SMALL = COMBINE


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
def test_the_product_compiles_without_spills(architecture: str) -> None:
    program = Variant(8, 8, 2, 2).program(Geometry(4096, 4096))
    resources = compile_program(program, architecture).resources
    assert resources.spills == 0
    assert 0 < resources.registers <= 112  # 18 warps of two blocks share 65536


def test_check_covers_every_source_and_build() -> None:
    programs = list(check.programs("sm_90"))
    assert {p.source for p in programs} == {name for name in compiler.sources() if name.endswith(".cu")}
    assert len(set(programs)) == len(programs)


def test_machine_code_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSOR_CACHE", str(tmp_path))
    first = machine_code(SMALL, "sm_90")
    assert first.startswith(b"\x7fELF")
    monkeypatch.setattr(compiler, "compile_program", lambda *_: pytest.fail("compiled twice"))
    assert machine_code(SMALL, "sm_90") == first
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()] == [".cubin"]


def test_other_constants_are_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSOR_CACHE", str(tmp_path))
    machine_code(SMALL, "sm_90")
    machine_code(Program(SMALL.source, SMALL.entry, (*SMALL.constants, ("UNUSED", 1))), "sm_90")
    machine_code(SMALL, "sm_80")
    assert len(list((tmp_path / "kernels").iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TERSOR_CACHE", str(tmp_path / "file"))
    assert machine_code(SMALL, "sm_90").startswith(b"\x7fELF")


def test_a_compiler_error_says_where() -> None:
    broken = Program("decode.cu", "decode", tuple(m for m in MACROS if m[0] != "BLOCK_COLS"))
    with pytest.raises(KernelError, match=r"decode\.cu.*sm_90[\s\S]*BLOCK_COLS"):
        compile_program(broken, "sm_90")
