"""Compile every kernel for every architecture, GPU or not, and fail where one spills registers.

    python -m tersor.kernels.check [sm_90 ...]

A spill is a silent loss of speed that no test of results would notice. Prints what each kernel takes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from tersor.format.dtypes import KINDS
from tersor.kernels.attention import device as attention
from tersor.kernels.compiler import ARCHITECTURES, Compiled, Program, compile_program
from tersor.kernels.dfloat11 import device as dfloat11
from tersor.kernels.fused.layout import SPAN_COLS
from tersor.kernels.fused.layout import Geometry as Layout
from tersor.kernels.fused.variant import COMBINE, Variant
from tersor.kernels.huffman.device import Decoding
from tersor.kernels.huffman.device import program as huffman_program
from tersor.kernels.launcher import HOPPER
from tersor.kernels.spqr import layout as spqr
from tersor.kernels.spqr import linear as spqr_linear
from tersor.kernels.tile.variant import ALONE, VARIANTS, WIDE, fitting
from tersor.kernels.window import rows as window_rows
from tersor.kernels.window.layout import MACROS, Geometry
from tersor.kernels.window.linear import MAX_TOKENS, variant_for

_HUFFMAN = ("huffman_decode", "huffman_decode_rows", "huffman_count", "huffman_size", "huffman_write")
_MULTIPROCESSORS = 132
_SHARED = {"sm_80": 163, "sm_90": 227, "sm_100": 227}  # KB that a block may have; 99 on the others
_SIZES = ((4096, 4096), (6144, 4096), (14336, 4096), (8192, 8192))  # one for each way of dealing out strips
_COLS = 4096
_SPQR = ((4, 32, 2), (3, 16, 2), (8, 16, 1))  # bits, group, levels: the usual ones, and the largest stage


def programs(architecture: str) -> Iterator[Program]:
    """Every kernel in every build that is launched; products for 4096 columns, in clusters for other widths too."""
    shared = _SHARED.get(architecture, 99) * 1024
    for kind in sorted(set(KINDS.values())):
        for entry in _HUFFMAN:
            yield huffman_program(entry, Decoding.fitting(kind, shared))
    yield dfloat11.Decoding.fitting(shared).program
    for entry in ("window_rows", "window_places", "window_blocks", "window_records"):
        yield Program("window_pack.cu", entry, MACROS)
    yield window_rows.PROGRAM
    yield Program("decode.cu", "decode", MACROS)
    yield COMBINE
    if _has_clusters(architecture):
        for head_dim in attention.HEAD_DIMS:
            for group in (1, 4, attention.MAX_GROUP):
                yield attention.program(head_dim, group)
    for variant in variants(shared):
        yield from _ways(variant, Geometry(_COLS, _COLS), architecture, shared)
    if architecture == "sm_90":
        yield from tile_programs(Geometry(_COLS, _COLS))
    for bits, group, levels in _SPQR:
        held = spqr.Geometry(_COLS, _COLS, bits, group, levels)
        yield from spqr_programs(held, architecture, shared)


def spqr_programs(geometry: spqr.Geometry, architecture: str, shared: int) -> Iterator[Program]:
    """What is launched for a quantised matrix of one kind."""
    yield Program("decode.cu", "decode", geometry.macros)
    sizes = [replace(geometry, rows=rows) for rows, _ in _SIZES]
    for tokens in (1, 2, 4, 8, 16):
        builds = {spqr_linear.variant_for(tokens, size, _MULTIPROCESSORS, shared) for size in sizes}
        if architecture != "sm_90":
            builds = {replace(build, warpgroups=False) for build in builds}
        for build in sorted(builds, key=lambda v: v.blocks_per_sm):
            yield from _ways(build, geometry, architecture, shared)
    if architecture == "sm_90":
        yield from tile_programs(geometry)


def _has_clusters(architecture: str) -> bool:
    return int(architecture[3:]) >= 10 * HOPPER


def _ways(build: Variant, geometry: Layout, architecture: str, shared: int) -> Iterator[Program]:
    """The build for rows of so many columns, by itself and with clusters of every size that it has."""
    yield build.program(geometry)
    if _has_clusters(architecture):
        for spans in (2, 3, 4, 7, 8):
            size = replace(geometry, cols=spans * SPAN_COLS)
            clustered = build.in_cluster(size, shared)
            if clustered != build:
                yield clustered.program(size)


def tile_programs(geometry: Layout) -> Iterator[Program]:
    """The product for many tokens, in every build that a benchmark tries."""
    builds = [build for size in VARIANTS for build in fitting(size, geometry)]
    builds += [build for build in (*WIDE, ALONE) if build.fits(geometry)]
    yield from dict.fromkeys(build.program(geometry) for build in builds)


def variants(shared: int) -> list[Variant]:
    """Every build of the product that `variant_for` chooses for this much shared memory."""
    chosen = {
        variant_for(tokens, Geometry(*size), _MULTIPROCESSORS, shared)
        for tokens in range(1, MAX_TOKENS + 1)
        for size in _SIZES
    }
    return sorted(chosen, key=lambda v: (v.tokens, v.blocks_per_sm))


def main(architectures: list[str]) -> int:
    """Print a line per kernel and architecture; the number of kernels that spill."""
    spilling = 0
    for architecture in architectures or ARCHITECTURES:
        texts: dict[tuple[str, tuple[str, ...]], Compiled] = {}  # several entry points are compiled at once
        for program in programs(architecture):
            text = program.source, program.options
            if text not in texts:
                texts[text] = compile_program(program, architecture)
            taken = texts[text].resources_of(program.entry)
            tuning = " ".join(
                f"{name}={value}" for name, value in program.constants if (name, value) not in MACROS
            )
            spills = f"  SPILLS {taken.spills} bytes" if taken.spills else ""
            print(f"{architecture:7}{program.entry:20}{taken.registers:4} registers{spills}  {tuning}")
            spilling += bool(taken.spills)
    return spilling


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
