"""Builds of `linear.cu`, the product for few tokens: what they are compiled with and how they are launched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from tersor.kernels.compiler import Program
from tersor.kernels.fused.layout import SPAN_COLS, STRIP_ROWS, Geometry
from tersor.kernels.launcher import Kernel, Launch

SLOT_BYTES = 1024  # of a segment's record that are kept at hand, per warp: 244 exceptions, 3 %
_EVEN = 0.9


@dataclass(frozen=True)
class Variant:
    """One build of the kernel: tokens at most, streaming warps, ring stages (2 or 4), blocks of threads per SM.

    `slice_spans`: 0 reads activations through L1; n keeps those of n spans in shared memory (8 tokens or more).
    `buffers`: 2 lets the streaming warps run a round ahead of the sums, 1 leaves room for more of them.
    `slot_bytes`: for the record of a segment, a multiple of 16; of a longer one the exceptions are read late.
    `band`: strips that a warp multiplies at a time, so that operands of activations are read once for all of them.
    `adders`: warps that add the segments' sums up, 1 for all tokens; 0 for one per eight.
    """

    tokens: int
    consumers: int
    stages: int
    blocks_per_sm: int = 1
    slice_spans: int = 0
    buffers: int = 2
    slot_bytes: int = SLOT_BYTES
    band: int = 1
    adders: int = 0

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * (self.consumers + self.adding)

    @property
    def adding(self) -> int:
        """Warps that add sums up."""
        return self.adders or -(-self.tokens // 8)

    def shared(self, stage_bytes: int) -> int:
        """Bytes of dynamic shared memory of a block, laid out as in linear.cu."""
        rings = self.stages * stage_bytes + self.slot_bytes
        sums = self.buffers * self.tokens * STRIP_ROWS * 4
        return self.consumers * self.band * (rings + sums) + self.tokens * self.slice_spans * SPAN_COLS * 2

    def program(self, geometry: Geometry) -> Program:
        """What to compile for matrices of this kind and number of columns."""
        tuning = (
            ("TOKENS", self.tokens),
            ("CONSUMERS", self.consumers),
            ("STAGES", self.stages),
            ("BLOCKS_PER_SM", self.blocks_per_sm),
            ("SLICE", self.slice_spans),
            ("BUFFERS", self.buffers),
            ("SLOT_BYTES", self.slot_bytes),
            ("BAND", self.band),
            ("ADDERS", self.adding),
            ("X_PITCH", geometry.padded_cols),
        )
        return Program("linear.cu", "linear", geometry.macros + tuning)

    def launch(self, geometry: Geometry, multiprocessors: int) -> Launch:
        """Blocks that fill the GPU once: slices of the columns, and as many blocks per slice as fit."""
        places = multiprocessors * self.blocks_per_sm
        slices = -(-geometry.spans // self.slice_spans) if self.slice_spans else 1
        blocks = max(1, min(-(-geometry.strips // self.band), places // slices))
        return Launch((blocks, slices), self.threads, self.shared(geometry.stage_bytes), overlap=True)

    def busy(self, strips: int, multiprocessors: int) -> float:
        """The share of time in which no block has run out of strips."""
        places = self.blocks_per_sm * multiprocessors
        return strips / (-(-strips // places) * places)


def evenest(variants: Sequence[Variant], strips: int, multiprocessors: int) -> Variant:
    """The first that keeps its blocks busy most of the time, otherwise the one that does so longest.

    A block works through whole strips, so when these do not come out even (6144 rows: 384 strips on 264
    blocks) another number of blocks wins.
    """

    def busy(variant: Variant) -> float:
        return variant.busy(strips, multiprocessors)

    return next((v for v in variants if busy(v) >= _EVEN), max(variants, key=busy))


@cache
def planned(variant: Variant, geometry: Geometry, multiprocessors: int) -> tuple[Kernel, Launch]:
    """The variant's kernel for matrices of this size, loaded at its first launch, and how to launch it."""
    launch = variant.launch(geometry, multiprocessors)
    return _kernel(variant.program(geometry), launch.shared), launch


@cache
def _kernel(program: Program, shared: int) -> Kernel:
    return Kernel(program, shared)
