"""Four strips multiplied at a time: which builds do, that they compile, and where their activations stand.

The last is asked of the CUDA text itself: probes of its `constexpr` functions, which compile only if they are right.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from exchange_builds import H200, pretend_an_h200
from tersor.format.errors import KernelError
from tersor.kernels import compiler
from tersor.kernels.check import programs
from tersor.kernels.compiler import Program, compile_program
from tersor.kernels.fused import device as fused
from tersor.kernels.fused.layout import Geometry
from tersor.kernels.fused.variant import Variant
from tersor.kernels.spqr.layout import Geometry as Spqr
from tersor.kernels.spqr.linear import variant_for
from tersor.kernels.window.layout import Geometry as Window

WIDE = Variant(16, 8, 4, 2, 1, warpgroups=True)
LAYOUTS = (Spqr(4096, 4096, 4, 32, 2), Window(4096, 4096))
_REGISTERS = 65536  # of a multiprocessor

PIECES = """
#include "work.cuh"
// The column that k of a step is, by the registers of lane t = k % 8 / 2 (mma.m16n8k16, `Stage`).
__device__ constexpr int column_of(int h, int i, int k) {
    return lane_column(h, k % 8 / 2) + 4 * i + k / 8 * 2 + k % 2;
}
__device__ constexpr bool steps_follow_one_another() {
    for (int stage = 0; stage < SPAN_COLS / STAGE_COLS; stage++)
        for (int h = 0; h < 2; h++)
            for (int i = 0; i < STEPS; i++)
                for (int k = 0; k < 16; k++) {
                    const int piece = ((stage * 2 + h) * STEPS + i) * 16 + k;
                    if (piece_at(stage * STAGE_COLS + column_of(h, i, k)) != piece * 16) return false;
                }
    return true;
}
__device__ constexpr bool pairs_are_pieces() {
    for (int pair = 0; pair < SPAN_COLS / 2; pair++) {
        const int column = pair_column(pair);
        if (piece_at(column) != pair * 32 || piece_at(column + 1) != pair * 32 + 16) return false;
    }
    return true;
}
// Of the 32 pairs of a warp, those that read the same 32 bytes: 16 columns.
__device__ constexpr bool sectors_are_read_whole() {
    for (int first = 0; first < SPAN_COLS / 2; first += WARP)
        for (int a = first; a < first + WARP; a++) {
            int same = 0;
            for (int b = first; b < first + WARP; b++) same += pair_column(a) / 16 == pair_column(b) / 16;
            if (same != 8) return false;
        }
    return true;
}
"""
STEPS = "static_assert(steps_follow_one_another());"
PAIRS = "static_assert(pairs_are_pieces() && sectors_are_read_whole());"
PARTS = """
__device__ constexpr bool parts_are_dealt_out() {
    bool taken[CONSUMERS] = {};
    for (int warp = 0; warp < CONSUMERS; warp++) {
        const int first = warp / 4 * 4, place = place_of(warp);
        if (segment_of(warp) != segment_of(first) || span_of(warp) != span_of(first) + warp % 4) return false;
        if (place != span_of(warp) * SPAN_SEGMENTS + segment_of(warp) || taken[place]) return false;
        taken[place] = true;
    }
    return true;
}
static_assert(parts_are_dealt_out());
"""


def probe(text: str, build: Variant, geometry: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = compiler.sources() | {"probe.cu": PIECES + text + 'extern "C" __global__ void probe() {}'}
    monkeypatch.setattr(compiler, "sources", lambda: texts)
    compile_program(Program("probe.cu", "probe", build.program(geometry).constants), "sm_90")


@pytest.mark.parametrize("geometry", LAYOUTS, ids=lambda g: type(g).__module__)
@pytest.mark.parametrize("text", [STEPS, PAIRS, PARTS], ids=["steps", "pairs", "parts"])
def test_where_everything_stands(geometry: Geometry, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probe(text, WIDE, geometry, monkeypatch)
    probe(text, replace(WIDE, consumers=16, blocks_per_sm=1), geometry, monkeypatch)


@pytest.mark.parametrize("geometry", LAYOUTS, ids=lambda g: type(g).__module__)
@pytest.mark.parametrize("text", [STEPS, PARTS], ids=["steps", "parts"])
def test_a_probe_can_fail(geometry: Geometry, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other builds have is not what warpgroups read."""
    with pytest.raises(KernelError, match="static assertion failed"):
        probe(text, replace(WIDE, warpgroups=False), geometry, monkeypatch)


@pytest.mark.parametrize("kind", [(4, 32, 2), (3, 16, 2), (2, 16, 1), (5, 128, 1), (8, 16, 1)], ids=str)
@pytest.mark.parametrize("cols", [4096, 4224], ids=str)  # the second ends within a segment
def test_they_compile_without_spills(kind: tuple[int, int, int], cols: int) -> None:
    geometry = Spqr(16384, cols, *kind)
    build = variant_for(16, geometry, *H200)
    assert build.warpgroups
    for way in dict.fromkeys((build, build.in_cluster(geometry, H200[1]))):
        compiled = compile_program(way.program(geometry), "sm_90")
        assert compiled.resources.spills == 0
        assert compiled.resources.registers * way.threads * way.blocks_per_sm <= _REGISTERS
        assert "serialized" not in compiled.log


def test_which_builds_have_them() -> None:
    usual = replace(WIDE, warpgroups=False)
    assert usual.in_warpgroups() == WIDE
    assert replace(usual, consumers=16).in_warpgroups().warpgroups
    for tuning in ({"tokens": 8}, {"consumers": 4}, {"consumers": 12}, {"slice_spans": 2}, {"band": 2}):
        assert not replace(usual, **tuning).in_warpgroups().warpgroups


@pytest.mark.parametrize("hopper", [False, True])
def test_they_are_for_hopper_only(hopper: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_an_h200(monkeypatch, warpgroups=hopper)
    gpu = torch.device("cuda", 0)
    for tokens in (1, 8, 9, 16):
        for rows in (4096, 16384):  # of a small matrix they are slower
            geometry = Spqr(rows, 4096, 4, 32, 2)
            build = fused.chosen(variant_for, tokens, geometry, gpu)
            assert build.warpgroups == (hopper and tokens > 8 and rows == 16384)
            assert build.program(geometry).hopper_only == build.warpgroups
    with pytest.raises(KernelError, match="runs on sm_90 only"):
        WIDE.program(LAYOUTS[0]).target("sm_100")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_check_compiles_what_is_launched(architecture: str) -> None:
    every = list(programs(architecture))
    assert len(every) == len(set(every))
    wide = {p for p in every if ("WARPGROUPS", 1) in p.constants}
    assert bool(wide) == (architecture == "sm_90")
