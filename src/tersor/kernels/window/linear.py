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
        return 32 * (self.consumers + self.tokens // 8)

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory of a block, laid out as in window_linear.cu."""
        rings = self.consumers * (self.stages * 2 * BLOCK_BYTES + _SLOT_BYTES)
        sums = 2 * self.consumers * self.tokens * _SUM_PITCH * 4
        activations = self.tokens * (self.slice_spans * SPAN_COLS + 8) * 2 if self.slice_spans else 0
        return rings + sums + activations

    @property
    def program(self) -> Program:
        """What to compile."""
        tuning = (
            ("TOKENS", self.tokens),
            ("CONSUMERS", self.consumers),
            ("STAGES", self.stages),
            ("BLOCKS_PER_SM", self.blocks_per_sm),
            ("SLICE", self.slice_spans),
        )
        return Program("window_linear.cu", "window_linear", MACROS + tuning)

    def launch(self, geometry: Geometry, multiprocessors: int) -> Launch:
        """Blocks that fill the GPU once: slices of the columns, and as many blocks per slice as fit."""
        places = multiprocessors * self.blocks_per_sm
        slices = -(-geometry.spans // self.slice_spans) if self.slice_spans else 1
        return Launch((max(1, min(geometry.strips, places // slices)), slices), self.threads, self.shared)


@cache
def kernel(variant: Variant) -> Kernel:
    """The variant's kernel, loaded at its first launch."""
    return Kernel(variant.program, variant.shared)


MAX_TOKENS = 32  # beyond it the product is decoded for cuBLAS
_FEW = Variant(8, 16, 3)
_SOME = Variant(16, 16, 2, slice_spans=2)
_MANY = Variant(32, 8, 4, slice_spans=1)


def variant_for(tokens: int, geometry: Geometry) -> Variant:
    """The build that is fastest for this many tokens (measured: dev/BENCHMARKS.md)."""
    if tokens > MAX_TOKENS:
        raise ValueError(f"{tokens} tokens: the fused product takes at most {MAX_TOKENS}")
    return _FEW if tokens <= 8 else _SOME if tokens <= 16 else _MANY
