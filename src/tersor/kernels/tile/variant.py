"""Which build of `tile_linear` multiplies how many tokens."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.kernels.compiler import Program
from tersor.kernels.fused.layout import STRIP_ROWS, Geometry
from tersor.kernels.tile.split import TILE_ROWS

_STEP_COLS = 64
_STRIPS = TILE_ROWS // STRIP_ROWS
_STRIP_ALIGN = STRIP_ROWS * _STEP_COLS * 2  # bytes; where operand tiles begin
_CROWD = 512  # threads
_SETMAXNREG_FROM = 256  # tokens whose sums leave a warpgroup too few registers otherwise


@dataclass(frozen=True)
class Variant:
    """One build: `tokens` of a tile, consumer warpgroups, decoding warps, depth of the three rings.

    `stages`: compressed stages per decoding warp; `a_slots` <= `x_slots`: operand tiles of 64 columns,
    at least 5 where 16 warps decode.
    `kept`: exceptions of a segment that a lane holds in registers; more are slow.
    """

    tokens: int
    groups: int
    decoders: int
    stages: int
    a_slots: int
    x_slots: int
    blocks_per_sm: int = 1
    kept: int = 4

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * (4 * self.groups + self.decoders)

    @property
    def crowded(self) -> bool:
        """Whether a multiprocessor holds so many threads that each has at most 80 registers."""
        return self.threads * self.blocks_per_sm > _CROWD

    def shared(self, geometry: Geometry) -> int:
        """Bytes of dynamic shared memory of a block, laid out as in tile_linear.cu."""
        operands = (self.a_slots * TILE_ROWS + self.x_slots * self.tokens) * _STEP_COLS * 2
        warp = self.stages * geometry.stage_bytes + dict(geometry.macros)["RECORD_HEAD"] + 4 * 32 * self.kept
        barriers = 8 * (2 * self.a_slots + self.x_slots)
        return _STRIP_ALIGN + operands + self.decoders * warp + barriers

    def macros(self, geometry: Geometry) -> tuple[tuple[str, int], ...]:
        """What the kernels of this build are compiled with."""
        registers = (0, 0)
        if self.tokens >= _SETMAXNREG_FROM:
            registers = (168, 88)  # of 2 x 128, what 512 threads are launched with
        return (
            *geometry.macros,
            ("TOKENS", self.tokens),
            ("GROUPS", self.groups),
            ("DECODERS", self.decoders),
            ("STAGES", self.stages),
            ("A_SLOTS", self.a_slots),
            ("X_SLOTS", self.x_slots),
            ("KEPT", self.kept),
            ("BLOCKS_PER_SM", self.blocks_per_sm),
            ("CONSUMER_REGISTERS", registers[0]),
            ("DECODER_REGISTERS", registers[1]),
        )

    def program(self, geometry: Geometry) -> Program:
        """The product."""
        return Program("tile_linear.cu", "tile_linear", self.macros(geometry), hopper_only=True)

    def combine_program(self, geometry: Geometry) -> Program:
        """What adds up the tiles that are cut."""
        few = tuple(
            (k, v) for k, v in self.macros(geometry) if k in ("TOKENS", "GROUPS", "SEGMENT_COLS", "LAYOUT")
        )
        return Program("tile_combine.cu", "tile_combine", few, hopper_only=True)

    def arrange_program(self, geometry: Geometry) -> Program:
        """What lays out the activations."""
        return Program(
            "tile_arrange.cu", "tile_arrange", (*geometry.macros, ("TOKENS", self.tokens)), hopper_only=True
        )


# The first of each size that leaves a thread registers enough is used; the others are for bench/sweep_tile.py.
VARIANTS = {
    16: (Variant(16, 1, 8, 2, 2, 4, 2), Variant(16, 1, 16, 2, 5, 6), Variant(16, 1, 8, 3, 4, 8)),
    32: (Variant(32, 1, 8, 2, 2, 4, 2), Variant(32, 1, 16, 2, 5, 6), Variant(32, 1, 8, 3, 4, 6)),
    64: (Variant(64, 2, 16, 2, 5, 5), Variant(64, 1, 8, 3, 4, 6), Variant(64, 2, 8, 3, 4, 6)),
    128: (Variant(128, 2, 8, 3, 4, 4), Variant(128, 2, 8, 2, 5, 5), Variant(128, 2, 8, 2, 4, 6)),
    256: (Variant(256, 2, 8, 2, 3, 4), Variant(256, 2, 8, 3, 3, 3)),
}
_PLANE = 4  # bits; wider codes are put together from two planes
_LIGHT = 32  # tokens, beyond which a crowded build has no registers to spare
_DECODING = 64  # tokens' worth of time that a step costs whatever its tokens


def variant_for(tokens: int, geometry: Geometry) -> Variant:
    """The build whose tiles waste least for this many tokens of a layout."""
    size = next((n for n in VARIANTS if tokens <= n), None)
    if size is None:
        size = min((256, 128), key=lambda n: -(-tokens // n) * (n + _DECODING))
    macros = dict(geometry.macros)
    heavy = macros["LAYOUT"] and (macros["BITS"] > _PLANE or size > _LIGHT)  # decoders that hold much
    return next(b for b in VARIANTS[size] if not (heavy and b.crowded))
