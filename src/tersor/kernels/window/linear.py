"""Which build of `window_linear` multiplies how many tokens, and with how many blocks of threads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from tersor.kernels.compiler import Program
from tersor.kernels.launcher import Kernel, Launch
from tersor.kernels.window.layout import (
    BLOCK_BYTES,
    MACROS,
    SPAN_COLS,
    STRIP_ROWS,
    Geometry,
)

_SLOT_BYTES = 1024  # for the record of a segment, per warp
_SUM_PITCH = STRIP_ROWS + 1


@dataclass(frozen=True)
class Variant:
    """One build of the kernel: tokens at most, streaming warps, ring stages, blocks of threads per SM.

    `slice_spans`: 0 reads activations through L1; n keeps those of n spans in shared memory.
    `buffers`: 2 lets the streaming warps run a round ahead of the sums, 1 leaves room for more of them.
    """

    tokens: int
    consumers: int
    stages: int
    blocks_per_sm: int = 1
    slice_spans: int = 0
    buffers: int = 2

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * (self.consumers + -(-self.tokens // 8))

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory of a block, laid out as in window_linear.cu."""
        rings = self.consumers * (self.stages * 2 * BLOCK_BYTES + _SLOT_BYTES)
        sums = self.buffers * self.consumers * self.tokens * _SUM_PITCH * 4
        return rings + sums + self.tokens * self.slice_spans * SPAN_COLS * 2

    def program(self, geometry: Geometry) -> Program:
        """What to compile for matrices of this many columns."""
        tuning = (
            ("TOKENS", self.tokens),
            ("CONSUMERS", self.consumers),
            ("STAGES", self.stages),
            ("BLOCKS_PER_SM", self.blocks_per_sm),
            ("SLICE", self.slice_spans),
            ("BUFFERS", self.buffers),
            ("X_PITCH", geometry.padded_cols),
        )
        return Program("window_linear.cu", "window_linear", MACROS + tuning)

    def launch(self, geometry: Geometry, multiprocessors: int) -> Launch:
        """Blocks that fill the GPU once: slices of the columns, and as many blocks per slice as fit."""
        places = multiprocessors * self.blocks_per_sm
        slices = -(-geometry.spans // self.slice_spans) if self.slice_spans else 1
        blocks = max(1, min(geometry.strips, places // slices))
        return Launch((blocks, slices), self.threads, self.shared, overlap=True)


MAX_TOKENS = 32  # of one launch
FUSED_TOKENS = 64  # beyond it the matrix is decoded for cuBLAS
_FEW = 8  # tokens whose activations come through L1
# Streaming warps and blocks per multiprocessor, the best first. A block works through whole strips, so when the strips
# do not come out even (6144 rows: 384 strips on 264 blocks) another number of blocks wins.
_SHAPES = ((8, 2), (8, 3), (20, 1))
_EVEN = 0.9
# Where small blocks take one strip each of a wide matrix, all of them walk through the columns together, and a
# multiprocessor reads the activations once.
_ONE_WAVE = Variant(8, 4, 2, blocks_per_sm=5)
_WAVE_STRIPS = 0.75  # of the places, at least
_WIDE = 8192


def variant_for(tokens: int, geometry: Geometry, multiprocessors: int, shared: int) -> Variant:
    """The build that is fastest for this many tokens on an H200 (dev/BENCHMARKS.md) and fits into `shared` bytes."""
    if tokens > MAX_TOKENS:
        raise ValueError(f"{tokens} tokens: the fused product takes at most {MAX_TOKENS}")
    if tokens > _FEW:
        most = 32 if tokens > 16 else 16
        twice = Variant(16, 8, 2, blocks_per_sm=2, slice_spans=1)
        if most == 16 and twice.shared <= shared:
            return twice
        sizes = (Variant(most, consumers, 2, slice_spans=1, buffers=1) for consumers in range(16, 2, -2))
        return next(variant for variant in sizes if variant.shared <= shared)

    def busy(variant: Variant) -> float:
        """The share of time in which no block has run out of strips."""
        places = variant.blocks_per_sm * multiprocessors
        return geometry.strips / (-(-geometry.strips // places) * places)

    most = 1 << (tokens - 1).bit_length()
    one_wave = replace(_ONE_WAVE, tokens=most)
    if (
        geometry.cols >= _WIDE
        and geometry.strips <= one_wave.blocks_per_sm * multiprocessors
        and busy(one_wave) >= _WAVE_STRIPS
    ):
        return one_wave
    fitting = [
        v
        for v in (Variant(most, consumers, 2, blocks) for consumers, blocks in _SHAPES)
        if v.shared <= shared
    ]
    return next((v for v in fitting if busy(v) >= _EVEN), max(fitting, key=busy))


@cache
def kernel(variant: Variant, padded_cols: int) -> Kernel:
    """The variant's kernel for this many columns, loaded at its first launch."""
    return Kernel(variant.program(Geometry(STRIP_ROWS, padded_cols)), variant.shared)
