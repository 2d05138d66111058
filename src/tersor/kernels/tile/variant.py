"""Which build of which kernel multiplies how many tokens: `tile_linear`, `strip_linear` or `cluster_linear`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from tersor.kernels.compiler import Program
from tersor.kernels.fused.layout import STRIP_ROWS, Geometry
from tersor.kernels.tile.split import TILE_ROWS, choose

_HALF_BYTES = 64 * 2  # of a row
_STRIPS = TILE_ROWS // STRIP_ROWS
# Bytes: operand tiles begin at multiples of a strip's, and dynamic shared memory where a swizzle may begin.
_STRIP_ALIGN = STRIP_ROWS * 2 * _HALF_BYTES
_MOST_GAP = _STRIP_ALIGN - 8 * _HALF_BYTES
_NOTE_BYTES = 16
_EIGHT = 8  # tokens; operand tiles begin at multiples of so many rows
_AT_ONCE = 256  # tokens of an instruction, and of a copy by a tensor map, at most
_REGISTERS = 1 << 16  # of a multiprocessor
_SM_SHARED = 228 << 10  # bytes of its shared memory
# What a block has of it beside its rings: the driver's, and what is laid out by the compiler.
_BLOCK_SHARED = 2 << 10
_BESIDE_SUMS = 26  # registers that a consuming thread needs at launch, or no instruction can be compiled
_STAGE_HALVES = 2  # halves, of 64 columns, of a stage
_FEEDERS = 2  # warps: one for weights, one for activations


class Build(ABC):
    """What a launch must know of a build, of any kernel."""

    tokens: int  # of a tile
    groups: int  # warpgroups that multiply
    blocks_per_sm: int
    kept: int  # exceptions of a segment that a lane holds in registers; more are slow
    cluster: int  # blocks that work together, neighbouring tiles of tokens

    @property
    @abstractmethod
    def threads(self) -> int:
        """Threads of a block."""

    @abstractmethod
    def keeping(self, kept: int) -> Self:
        """The same, but for `kept`."""

    @abstractmethod
    def shared(self, geometry: Geometry) -> int:
        """Bytes of dynamic shared memory of a block."""

    @abstractmethod
    def program(self, geometry: Geometry) -> Program:
        """The product."""

    def fits(self, geometry: Geometry) -> bool:
        """Whether it is for matrices in this layout: has room for their stages."""
        return self.blocks_per_sm * (self.shared(geometry) + _BLOCK_SHARED) <= _SM_SHARED

    def common(self, geometry: Geometry) -> tuple[tuple[str, int], ...]:
        """What all kernels are compiled with."""
        return (
            *geometry.macros,
            ("TOKENS", self.tokens),
            ("GROUPS", self.groups),
            ("CLUSTER", self.cluster),
            ("COPY_TOKENS", self.copy_tokens),
            ("STORED_TOKENS", self.stored_tokens),
            ("INSTRUCTION_TOKENS", self.instruction_tokens),
            ("LAST_TOKENS", (self.tokens - 1) % self.instruction_tokens + 1),
        )

    @property
    def consumers(self) -> int:
        """Warps that multiply."""
        return 4 * self.groups

    @property
    def copy_tokens(self) -> int:
        """Tokens that one copy brings; two may overlap."""
        return _even(self.tokens, _AT_ONCE)

    @property
    def stored_tokens(self) -> int:
        """Tokens that one copy takes away; two may overlap."""
        return self.tokens

    @property
    def instruction_tokens(self) -> int:
        """Tokens that are multiplied by one instruction, as registers allow."""
        tokens = self.copy_tokens
        while self.threads * (tokens // 2 + _BESIDE_SUMS) > _REGISTERS:
            tokens //= 2
        return tokens


def _even(tokens: int, most: int) -> int:
    """The fewest tokens, whole eights, of as few parts as possible of `most` at most."""
    parts = -(-tokens // most)
    return -(-tokens // (parts * _EIGHT)) * _EIGHT


def _record_bytes(geometry: Geometry, kept: int) -> int:
    """What an area in shared memory has for a record and a note."""
    return dict(geometry.macros)["RECORD_HEAD"] + 4 * 32 * kept + _NOTE_BYTES


@dataclass(frozen=True)
class Variant(Build):
    """One build of `tile_linear`: `tokens` of a tile, consumer warpgroups, decoding warps, depth of the three rings.

    `stages`: compressed stages of each strip; `a_slots`, `x_slots`: operands of 128 columns, of a stage.
    """

    tokens: int
    groups: int
    decoders: int
    stages: int
    a_slots: int
    x_slots: int
    blocks_per_sm: int = 1
    kept: int = 4
    cluster: int = field(default=1, init=False, repr=False)  # every block for itself

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * (4 * self.groups + self.decoders + _FEEDERS)

    def shared(self, geometry: Geometry) -> int:
        """Bytes of dynamic shared memory of a block, laid out as in tile_rings.cuh."""
        operands = (self.a_slots * TILE_ROWS + self.x_slots * self.tokens) * 2 * _HALF_BYTES
        areas = self.stages * _STRIPS * (geometry.stage_bytes + _record_bytes(geometry, self.kept))
        barriers = 8 * (2 * (self.stages + self.a_slots + self.x_slots) + self.consumers)
        return _MOST_GAP + operands + areas + barriers

    def keeping(self, kept: int) -> Variant:
        """The same, but for `kept`."""
        return replace(self, kept=kept)

    def program(self, geometry: Geometry) -> Program:
        """The product."""
        own = (
            ("DECODERS", self.decoders),
            ("STAGES", self.stages),
            ("A_SLOTS", self.a_slots),
            ("X_SLOTS", self.x_slots),
            ("KEPT", self.kept),
            ("BLOCKS_PER_SM", self.blocks_per_sm),
        )
        return Program("tile_linear.cu", "tile_linear", (*self.common(geometry), *own), hopper_only=True)


@dataclass(frozen=True)
class StripVariant(Build):
    """One build of `strip_linear`: `tokens` of a tile, depth of the rings.

    `stages`: compressed ones of each strip; `x_slots`: operand tiles of 64 columns.
    """

    tokens: int
    stages: int
    x_slots: int
    kept: int = 4
    groups: int = field(default=2, init=False, repr=False)
    blocks_per_sm: int = field(default=1, init=False, repr=False)
    cluster: int = field(default=1, init=False, repr=False)
    registers: ClassVar[tuple[int, int]] = (232, 40)  # of a consumer, and of a feeder

    @property
    def threads(self) -> int:
        """Threads of a block: registers are given out to warpgroups, so feeders are one too."""
        return 32 * (4 * self.groups + 4)

    def shared(self, geometry: Geometry) -> int:
        """Bytes of dynamic shared memory of a block, laid out as in tile_rings.cuh."""
        operands = (2 * TILE_ROWS + self.x_slots * self.tokens) * _HALF_BYTES
        areas = self.stages * _STRIPS * (geometry.stage_bytes + _record_bytes(geometry, self.kept))
        return _MOST_GAP + operands + areas + 8 * (2 * (self.stages + 1 + self.x_slots) + self.consumers)

    def keeping(self, kept: int) -> StripVariant:
        """The same, but for `kept`."""
        return replace(self, kept=kept)

    def program(self, geometry: Geometry) -> Program:
        """The product."""
        own = (
            ("DECODERS", _STRIPS),
            ("STAGES", self.stages),
            ("A_SLOTS", 1),
            ("X_SLOTS", self.x_slots),
            ("KEPT", self.kept),
            ("CONSUMER_REGISTERS", self.registers[0]),
            ("FEEDER_REGISTERS", self.registers[1]),
        )
        return Program("strip_linear.cu", "strip_linear", (*self.common(geometry), *own), hopper_only=True)


@dataclass(frozen=True)
class ClusterVariant(Build):
    """One build of `cluster_linear`: `tokens` of a tile, blocks in a cluster, depth of the rings.

    `a_slots`: stages of weights; `x_slots`: operand tiles of 64 columns of activations. `turns`: decoders of a strip.
    `registers`: of a consumer and of a decoder, where sums leave too little of an even share; else zeros.
    `apart`: decoded stages are copied to the other block by halves, the second one later.
    """

    tokens: int
    cluster: int
    a_slots: int
    x_slots: int
    turns: int = 1
    registers: tuple[int, int] = (0, 0)
    apart: bool = False
    kept: int = 4
    groups: int = field(default=2, init=False, repr=False)
    blocks_per_sm: int = field(default=1, init=False, repr=False)

    @property
    def decoders(self) -> int:
        """Warps, `turns` for each strip that is not decoded by another block."""
        return _STRIPS // self.cluster * self.turns

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * (4 * self.groups + self.decoders)

    @property
    def stored_tokens(self) -> int:
        """Tokens that one copy takes away, from where half a stage of weights was; two may overlap."""
        return _even(self.tokens, TILE_ROWS)

    def shared(self, geometry: Geometry) -> int:
        """Bytes of dynamic shared memory of a block, laid out as in cluster_rings.cuh."""
        return self._rings + self._staging

    @property
    def _rings(self) -> int:
        slot = self.tokens
        if self.stored_tokens < self.tokens:  # two pieces of the sums leave by way of it
            slot = max(slot, 2 * self.stored_tokens)
        operands = (self.a_slots * 2 * TILE_ROWS + self.x_slots * slot) * _HALF_BYTES
        return _MOST_GAP + operands + 8 * (2 * (self.a_slots + self.x_slots) + self.consumers + 1)

    @property
    def _staging(self) -> int:
        """Bytes for sums on their way out that find no room where operands were, if there are so many."""
        third = self.groups * self.stored_tokens * _HALF_BYTES
        return third if self.tokens > _AT_ONCE and self._rings + third + _BLOCK_SHARED <= _SM_SHARED else 0

    def fits(self, geometry: Geometry) -> bool:
        """Whether there is room, and a row is long enough for sums to leave by way of its last stages.

        Where it is not, blocks of a cluster could be further apart than the barrier between them can tell.
        """
        return super().fits(geometry) and -(-geometry.halves // _STAGE_HALVES) >= self.a_slots

    def keeping(self, kept: int) -> ClusterVariant:
        """The same, but for `kept`."""
        return replace(self, kept=kept)

    def program(self, geometry: Geometry) -> Program:
        """The product."""
        own = (
            ("DECODERS", self.decoders),
            ("A_SLOTS", self.a_slots),
            ("X_SLOTS", self.x_slots),
            ("STAGING_BYTES", self._staging),
            ("SHARED_BYTES", self.shared(geometry)),
            ("KEPT", self.kept),
            ("CONSUMER_REGISTERS", self.registers[0]),
            ("DECODER_REGISTERS", self.registers[1]),
            ("APART", int(self.apart)),
        )
        return Program(
            "cluster_linear.cu", "cluster_linear", (*self.common(geometry), *own), hopper_only=True
        )


# By tokens. The first that fits a layout is used, but for LARGE; the others are for bench/sweep_tile.py.
VARIANTS: dict[int, tuple[Build, ...]] = {
    32: (Variant(32, 1, 16, 4, 2, 4), Variant(32, 1, 8, 2, 1, 2, 2), Variant(32, 1, 8, 4, 2, 4)),
    64: (Variant(64, 2, 16, 4, 2, 3), Variant(64, 2, 8, 3, 2, 4)),
    128: (Variant(128, 2, 8, 2, 2, 4), ClusterVariant(128, 1, 4, 4), Variant(128, 2, 8, 2, 2, 3)),
}
# Two blocks per multiprocessor wait less, but the units of a smaller matrix do not come out even on so many.
LARGE = {32: VARIANTS[32][1]}
_LARGE_FROM = 1 << 26  # weights
# For more. Tiles of so many widths leave little empty whatever the number of tokens is; those of more than 256 tokens a
# block are for a few more than 512, which would be two narrow ones; more than 336 have no room. Rings are as deep as
# helps and has room: with copies apart, a fourth stage of weights rather than more activations, but 184 and 192 tokens
# have no room for four of both. Registers where an even share spills: what is dealt out is all that the launch has.
WIDE = (
    ClusterVariant(336, 2, 3, 3, registers=(200, 104), apart=True),
    *(
        ClusterVariant(tokens, 2, 3, 3, registers=(192, 120), apart=True)
        for tokens in (320, 304, 288, 272, 264)
    ),
    ClusterVariant(256, 2, 3, 3),
    *(ClusterVariant(tokens, 2, 4, 3, apart=True) for tokens in (240, 232, 224, 216, 208, 200)),
    *(ClusterVariant(tokens, 2, 3, 5, turns=2, registers=(144, 112)) for tokens in (192, 184)),
    ClusterVariant(176, 2, 4, 4, turns=2, registers=(144, 112), apart=True),
    *(ClusterVariant(tokens, 2, 3, 6, turns=2) for tokens in (160, 144)),
    *(ClusterVariant(tokens, 2, 4, 5, turns=2) for tokens in (128, 112, 96, 80)),
)
# A block for itself, whose warps decode what they multiply: for as many tokens as one such tile has, and where clusters
# find no room.
ALONE = StripVariant(256, 2, 4)
_HEAVY_FROM = 1536  # bytes of a stage; where fewer are decoded, it is always better to share them
# Nanoseconds of a step of 64 columns, measured on an H200: beside, and per token. In turns; by one instruction; by two.
# Alone, only one width is used.
_IN_TURNS, _AT_A_TIME, _IN_TWO, _ALONE = (335, 1.72), (255, 2.3), (435, 1.85), (985, 0.0)
# A build is compiled when it is first used, which takes seconds: tiles are of whole 32 tokens unless others gain more.
_USUAL, _SELDOM = 32, 1.02


def fitting(size: int, geometry: Geometry) -> tuple[Build, ...]:
    """The builds of a size for a layout, the one that is used first."""
    return tuple(build for build in VARIANTS[size] if build.fits(geometry))


def variant_for(tokens: int, geometry: Geometry, multiprocessors: int) -> Build:
    """The build for this many tokens and a matrix of this size."""
    size = next((n for n in VARIANTS if tokens <= n), None)
    if size is None:
        return fastest_first(tokens, geometry, multiprocessors)[0]
    if size in LARGE and geometry.rows * geometry.cols >= _LARGE_FROM:
        return LARGE[size]
    return fitting(size, geometry)[0]


def fastest_first(tokens: int, geometry: Geometry, multiprocessors: int) -> list[Build]:
    """The builds for many tokens that fit a layout, in the order of what they would take."""
    builds: list[Build] = [build for build in WIDE if build.fits(geometry)]
    if not builds or (tokens <= ALONE.tokens and geometry.stage_bytes >= _HEAVY_FROM):
        builds.append(ALONE)

    def time(build: Build) -> float:
        places = max(1, multiprocessors // build.cluster)
        split = choose(geometry.rows, tokens, -(-geometry.halves // 2), build.tokens, places, build.cluster)
        usual = build.tokens % _USUAL == 0
        return split.cost(tokens, build.tokens) * _step(build) * (1.0 if usual else _SELDOM)

    return sorted(builds, key=time)


def _step(build: Build) -> float:
    """Nanoseconds of 64 columns, on one multiprocessor or a cluster's."""
    if not isinstance(build, ClusterVariant):
        beside, of_token = _ALONE
    elif build.tokens > _AT_ONCE:
        beside, of_token = _IN_TWO
    else:
        beside, of_token = _IN_TURNS if build.turns > 1 else _AT_A_TIME
    return beside + of_token * build.tokens
