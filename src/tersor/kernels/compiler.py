"""CUDA text to machine code, on the user's machine, without a CUDA toolkit.

Kernels ship as text and are compiled by NVRTC, a library that every CUDA build of torch brings
along. So one pure-Python wheel serves every GPU, old and new, and nobody needs nvcc. NVRTC has no
headers, not even <stdint.h>: the text names its own types (`cuda/types.cuh`).

A `Program` is a source file, an entry point and constants. The constants are the numbers of FORMAT.md
and of the layouts, typed once in Python and handed over as macros, so text and host cannot disagree.
Machine code is cached by the hash of all that it depends on (text, constants, options, NVRTC's version,
architecture) and put in place by an atomic rename: processes may race, nothing ever has to be
invalidated. Nothing is compiled at import.

Rejected: nvcc through torch.utils.cpp_extension (minutes, a toolkit, a compiler), Triton (no control
over fragments and bit layouts), wheels with machine code (one per architecture and CUDA version).
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from tersor.format import constants
from tersor.format.errors import KernelError, MissingDependency

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
_OPTIONS = ("--std=c++17", "--ptxas-options=-v", "--extra-device-vectorization")
_FORMAT = ("TILE_ROWS", "TILE_COLS", "STREAM", "ALIGN", "SYMBOLS", "MAX_CODE_BITS")


@dataclass(frozen=True)
class Program:
    """One kernel: its file under `cuda/`, its entry point and the macros it is compiled with."""

    source: str
    entry: str
    constants: tuple[tuple[str, int], ...] = ()
    hopper_only: bool = False  # uses what only sm_90a has (wgmma), which no other GPU runs

    def target(self, architecture: str) -> str:
        """What the compiler is told for a GPU of this architecture, as in "sm_90"."""
        if not self.hopper_only:
            return architecture
        if architecture != "sm_90":
            raise KernelError(f"{self.source} ({self.entry}) runs on sm_90 only, this is {architecture}")
        return "sm_90a"

    @property
    def options(self) -> tuple[str, ...]:
        """Compiler options, the architecture excepted."""
        shared = tuple((name, int(getattr(constants, name))) for name in _FORMAT)
        return _OPTIONS + tuple(f"-D{name}={value}" for name, value in shared + self.constants)


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes: registers per thread, static shared memory and spills in bytes."""

    registers: int
    shared: int
    spills: int


@dataclass(frozen=True)
class Compiled:
    """Machine code of one program, and what the assembler said (nothing, if NVRTC had it cached)."""

    program: Program
    cubin: bytes
    log: str

    @property
    def resources(self) -> Resources:
        """What the kernel takes, read from the assembler's report."""
        return self.resources_of(self.program.entry)

    def resources_of(self, entry: str) -> Resources:
        """What another entry point of the same text takes."""
        return _resources(self.log, entry)


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise MissingDependency(
            "the GPU kernels need NVRTC: install a CUDA build of torch, or cuda-bindings, nvidia-cuda-nvrtc"
        ) from error
    return nvrtc


@cache
def sources() -> dict[str, str]:
    """The texts under `cuda/`, by file name."""
    folder = resources.files("tersor.kernels").joinpath("cuda")
    return {f.name: f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith((".cu", ".cuh"))}


@cache
def nvrtc_version() -> str:
    """NVRTC's version, as in "13.0"."""
    _, major, minor = _nvrtc().nvrtcVersion()
    return f"{major}.{minor}"


def compile_program(program: Program, architecture: str) -> Compiled:
    """Compile, without the cache; KernelError carries the compiler's log."""
    nvrtc = _nvrtc()
    texts = sources()
    headers = {name: text for name, text in texts.items() if name.endswith(".cuh")}
    error, handle = nvrtc.nvrtcCreateProgram(
        texts[program.source].encode(),
        program.source.encode(),
        len(headers),
        [text.encode() for text in headers.values()],
        [name.encode() for name in headers],
    )
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelError(f"{program.source}: NVRTC could not start ({error})")
    try:
        options = [
            o.encode() for o in (f"--gpu-architecture={program.target(architecture)}", *program.options)
        ]
        (error,) = nvrtc.nvrtcCompileProgram(handle, len(options), options)
        log = _fetch(handle, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode(errors="replace")
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelError(
                f"{program.source} ({program.entry}) does not compile for {architecture}:\n{log}"
            )
        cubin = _fetch(handle, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    finally:
        nvrtc.nvrtcDestroyProgram(handle)
    return Compiled(program, cubin, log)


def _fetch(handle: Any, size_of: Any, get: Any) -> bytes:
    _, size = size_of(handle)
    buffer = bytes(size)
    get(handle, buffer)
    return buffer.rstrip(b"\0") if get.__name__.endswith("Log") else buffer


def _resources(log: str, entry: str) -> Resources:
    """Read the assembler's verbose report of one entry point."""
    report = log.split(f"Compiling entry function '{entry}'", 1)[-1].split("Compiling entry function", 1)[0]
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", report)]
    frame = re.search(r"(\d+) bytes stack frame", report)
    used = re.search(r"Used (\d+) registers", report)
    shared = re.search(r"(\d+) bytes smem", report)
    if used is None or frame is None:
        raise KernelError(f"{entry}: the assembler's report is not understood:\n{log}")
    return Resources(int(used[1]), int(shared[1]) if shared else 0, max([*spills, int(frame[1])]))


def cache_folder() -> Path:
    """Where machine code is kept: $TERSOR_CACHE, else tersor/ under $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("TERSOR_CACHE"):
        return Path(own) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tersor" / "kernels"


def machine_code(program: Program, architecture: str) -> bytes:
    """The program's machine code, from the cache or compiled now."""
    digest = hashlib.sha256()
    for part in (
        nvrtc_version(),
        program.target(architecture),
        program.source,
        program.entry,
        *program.options,
    ):
        digest.update(part.encode() + b"\0")
    for name, text in sorted(sources().items()):
        if name == program.source or name.endswith(".cuh"):
            digest.update(name.encode() + b"\0" + text.encode() + b"\0")
    path = cache_folder() / f"{program.entry}-{architecture}-{digest.hexdigest()[:32]}.cubin"
    try:
        return path.read_bytes()
    except OSError:
        pass
    cubin = compile_program(program, architecture).cubin
    _keep(path, cubin)
    return cubin


def _keep(path: Path, data: bytes) -> None:
    """Put a file in place whole or not at all; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            file.write(data)
        Path(file.name).replace(path)
    except OSError:
        return
