"""Builds of `linear.cu`, the product for few tokens: what they are compiled with and how they are launched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from tersor.kernels.compiler import Program
from tersor.kernels.fused.layout import QUAD_SPANS, SEGMENT_COLS, SPAN_COLS, STRIP_ROWS, Geometry
from tersor.kernels.launcher import BLOCK_SHARED, Kernel, Launch, multiprocessors

SLOT_BYTES = 1024  # of a segment's record that are kept at hand, per warp: 244 exceptions, 3 %
COMBINE = Program("combine.cu", "combine", (("QUAD_SPANS", QUAD_SPANS),))  # sums that blocks left in memory
_EVEN = 0.9
_SPAN_WARPS = SPAN_COLS // SEGMENT_COLS
_WARPGROUP = 4  # warps that multiply together
_WARPGROUP_TOKENS = 16  # of one of their instructions
_UNIT_BYTES = STRIP_ROWS * 8 * 4  # sums of a strip and eight tokens
_BARRIERS = 2 * 8  # bytes of those beside half an inbox


@dataclass(frozen=True)
class Variant:
    """One build of the kernel: tokens at most, streaming warps, ring stages (2 or 4), blocks of threads per SM.

    `slice_spans`: 0 reads activations through L1; n keeps those of n spans in shared memory (8 tokens or more).
    `buffers`: 2 lets the streaming warps run a round ahead of the sums, 1 leaves room for more of them.
    `slot_bytes`: for the record of a segment, a multiple of 16; of a longer one the exceptions are read late.
    `band`: strips that a warp multiplies at a time, so that operands of activations are read once for all of them.
    `adders`: warps that add the segments' sums up, 1 for all tokens; 0 for one per eight.
    `cluster`: blocks that add the spans of a quad up among themselves, one for each (but maybe of the last quad); 1
    leaves all to another kernel.
    `warpgroups`: four warps multiply together, the same columns of four strips; 16 tokens, sm_90 only.
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
    cluster: int = 1
    warpgroups: bool = False

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
        activations = self.tokens * self.slice_spans * SPAN_COLS * 2
        return self.consumers * self.band * (rings + sums) + activations + self._inboxes

    @property
    def _inboxes(self) -> int:
        """Bytes of what a block of a cluster gets from the others, laid out as in exchange.cuh."""
        if self.cluster == 1:
            return 0
        units = -(-(self.consumers // _SPAN_WARPS) // self.cluster)
        return self.adding * 2 * (units * self.cluster * _UNIT_BYTES + _BARRIERS)

    def in_cluster(self, geometry: Geometry, shared: int) -> Variant:
        """The same with the blocks of a quad's spans in a cluster, if they can be one and still fit.

        The last quad's blocks may have nothing to do.

        shared: bytes of shared memory that a block may have; a multiprocessor has what the driver takes of it besides.
        """
        quad = min(geometry.spans, QUAD_SPANS)
        if self.slice_spans != 1 or quad == 1 or self.band > 1 or self.adding * 8 != self.tokens:
            return self
        build = replace(self, cluster=quad)
        block = build.shared(geometry.stage_bytes) + BLOCK_SHARED
        return build if self.blocks_per_sm * block <= shared + BLOCK_SHARED else self

    def in_warpgroups(self) -> Variant:
        """The same with warps that multiply four at a time, if their work comes out even."""
        same_columns = self.slice_spans == 1 and self.consumers % (_WARPGROUP * _SPAN_WARPS) == 0
        fits = self.tokens == _WARPGROUP_TOKENS and same_columns and self.band == 1
        return replace(self, warpgroups=fits)

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
            ("CLUSTER", self.cluster),
            ("WARPGROUPS", int(self.warpgroups)),
            ("X_PITCH", geometry.padded_cols),
        )
        return Program("linear.cu", "linear", geometry.macros + tuning, hopper_only=self.warpgroups)

    def launch(self, geometry: Geometry, multiprocessors: int, clusters: int | None = None) -> Launch:
        """Blocks that fill the GPU once: slices of the columns, and as many blocks per slice as fit.

        clusters: how many the GPU holds, where blocks of slices are one; it may be fewer than it has room for.
        """
        places = multiprocessors * self.blocks_per_sm
        slices = -(-geometry.spans // self.slice_spans) if self.slice_spans else 1
        slices = -(-slices // self.cluster) * self.cluster
        room = places // slices
        if clusters is not None:
            room = min(room, clusters * self.cluster // slices)
        blocks = max(1, min(-(-geometry.strips // self.band), room))
        return Launch((blocks, slices), self.threads, self.shared(geometry.stage_bytes), overlap=True)

    def rounds(self, geometry: Geometry, blocks: int) -> int:
        """In which so many blocks, of the same span each, multiply all strips."""
        of_block = -(-geometry.strips // blocks)
        return -(-of_block // (self.consumers // _SPAN_WARPS))

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
def planned(variant: Variant, geometry: Geometry, device: torch.device) -> tuple[Kernel, Launch] | None:
    """The variant's kernel for matrices of this size, loaded at its first launch, and how to launch it.

    None if its blocks are a cluster and the device, part of a GPU, does not hold one.
    """
    places = multiprocessors(device)
    launch = variant.launch(geometry, places)
    kernel = _kernel(variant.program(geometry), launch.shared, variant.cluster > 1)
    if variant.cluster == 1:
        return kernel, launch
    clusters = kernel.clusters(replace(launch, blocks=(1, variant.cluster)), device)
    return (kernel, variant.launch(geometry, places, clusters)) if clusters else None


@cache
def _kernel(program: Program, shared: int, dense: bool) -> Kernel:
    return Kernel(program, shared, dense)
