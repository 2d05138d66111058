"""Which build of `window_linear` multiplies how many tokens, and with how many blocks of threads."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    tokens: int
    consumers: int
    stages: int
    blocks_per_sm: int = 1
    slice_spans: int = 0

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * (self.consumers + -(-self.tokens // 8))

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory of a block, laid out as in window_linear.cu."""
        rings = self.consumers * (self.stages * 2 * BLOCK_BYTES + _SLOT_BYTES)
        sums = 2 * self.consumers * self.tokens * _SUM_PITCH * 4
        return rings + sums + self.tokens * self.slice_spans * SPAN_COLS * 2

    def program(self, geometry: Geometry) -> Program:
        """What to compile for matrices of this many columns."""
        tuning = (
            ("TOKENS", self.tokens),
            ("CONSUMERS", self.consumers),
            ("STAGES", self.stages),
            ("BLOCKS_PER_SM", self.blocks_per_sm),
            ("SLICE", self.slice_spans),
            ("X_PITCH", geometry.padded_cols),
        )
        return Program("window_linear.cu", "window_linear", MACROS + tuning)

    def launch(self, geometry: Geometry, multiprocessors: int) -> Launch:
        """Blocks that fill the GPU once: slices of the columns, and as many blocks per slice as fit."""
        places = multiprocessors * self.blocks_per_sm
        slices = -(-geometry.spans // self.slice_spans) if self.slice_spans else 1
        blocks = max(1, min(geometry.strips, places // slices))
        return Launch((blocks, slices), self.threads, self.shared, overlap=True)


MAX_TOKENS = 32  # beyond it the product is decoded for cuBLAS


def variant_for(tokens: int, geometry: Geometry) -> Variant:
    """The build that is fastest for this many tokens (measured: dev/BENCHMARKS.md)."""
    if tokens > MAX_TOKENS:
        raise ValueError(f"{tokens} tokens: the fused product takes at most {MAX_TOKENS}")
    if tokens <= 8:
        return Variant(1 << (tokens - 1).bit_length(), 8, 2, 2)
    return Variant(16, 16, 2, slice_spans=1) if tokens <= 16 else Variant(32, 12, 2, slice_spans=1)


@cache
def kernel(variant: Variant, padded_cols: int) -> Kernel:
    """The variant's kernel for this many columns, loaded at its first launch."""
    return Kernel(variant.program(Geometry(STRIP_ROWS, padded_cols)), variant.shared)
