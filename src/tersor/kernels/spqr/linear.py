"""Which build of the product multiplies how many tokens in the `spqr` layout (bench/spqr.py --sweep)."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from tersor.kernels.fused.variant import SLOT_BYTES, Variant, evenest
from tersor.kernels.spqr.layout import PLANE_BITS, Geometry

MAX_TOKENS = 16  # of one launch
# Beyond, `kernels.tile` multiplies on Hopper. Elsewhere it takes turns, until decoding for cuBLAS takes less time:
FUSED_TOKENS = 32
TILED_TOKENS = 4096  # and on Hopper decoding takes less time beyond (measured at 4 bits)
# Streaming warps, ring stages and blocks per multiprocessor, the best first. A stage is a third of one of the `fast`
# layout, so rings are deeper for as many bytes under way.
_SHAPES = ((8, 4, 2), (8, 4, 3), (16, 4, 1))
_SLICED = ((8, 4, 2), (8, 4, 1), (8, 2, 1), (4, 2, 1))  # of more than _FEW tokens
_WIDE_SHAPES = ((6, 4, 2), (12, 4, 1))  # of codes of two planes, which take more registers
_FEW = 8  # tokens whose activations may come through L1
# Of a record, the first that fits: 628 exceptions, so a whole row and some in the others; or as few as need be.
_SLOTS = (2560, SLOT_BYTES)
# Rounds of strips, from which on more than _FEW tokens are multiplied by warpgroups. Where there are fewer, what counts
# is how soon activations are there, and theirs are there later.
_WARPGROUPS_FROM = 3
_LARGE = 2048  # spans of a matrix, from which on eight tokens do better in shared memory


@lru_cache(maxsize=1024)  # asked at every product
def variant_for(tokens: int, geometry: Geometry, multiprocessors: int, shared: int) -> Variant:
    """The build for this many tokens that keeps the GPU busy and fits into `shared` bytes."""
    if tokens > MAX_TOKENS:
        raise ValueError(f"{tokens} tokens: the fused product takes at most {MAX_TOKENS}")

    def longest(
        shape: tuple[int, int, int], slice_spans: int = 0, slots: tuple[int, ...] = _SLOTS
    ) -> list[Variant]:
        """The build of this shape with the longest slots that fit, if any, all of its blocks at once.

        A block may have nearly all of a multiprocessor's shared memory.
        """
        build = Variant(most, *shape, slice_spans=slice_spans)
        builds = (replace(build, slot_bytes=slot) for slot in slots)
        return [v for v in builds if v.shared(geometry.stage_bytes) * v.blocks_per_sm <= shared][:1]

    most = 1 << (tokens - 1).bit_length()
    if most > _FEW:  # activations take the room of long records
        sliced = next(v for shape in _SLICED for v in longest(shape, 1, _SLOTS[1:]))
        rounds = sliced.rounds(geometry, sliced.launch(geometry, multiprocessors).blocks[0])
        # Where the GPU has them: fused.device.chosen.
        return sliced.in_warpgroups() if rounds >= _WARPGROUPS_FROM else sliced
    halved = longest((8, 4, 2), slice_spans=2)
    if most == _FEW and geometry.strips * geometry.spans >= _LARGE and halved:
        return halved[0]
    shapes = _SHAPES if geometry.bits <= PLANE_BITS else _WIDE_SHAPES
    variants = [v for shape in shapes for v in longest(shape)]
    return evenest(variants or [Variant(most, 8, 2)], geometry.strips, multiprocessors)
