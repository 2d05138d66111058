"""Which build of the product multiplies how many tokens in the `spqr` layout."""

from __future__ import annotations

from tersor.kernels.fused.variant import Variant, evenest
from tersor.kernels.spqr.layout import PLANE_BITS, Geometry

MAX_TOKENS = 8  # of one launch
# Beyond, `kernels.tile` multiplies on Hopper. Elsewhere it takes turns, until decoding for cuBLAS takes less time:
FUSED_TOKENS = 32
# Streaming warps, ring stages and blocks per multiprocessor, the best first. A stage is a third of one of the `fast`
# layout, so rings are deeper for as many bytes under way.
_TIGHT = 3  # blocks that leave a thread too few registers for codes of two planes
_SHAPES = ((8, 4, 2), (6, 4, 3), (16, 4, 1))


def variant_for(tokens: int, geometry: Geometry, multiprocessors: int, shared: int) -> Variant:
    """The build for this many tokens that keeps the GPU busy and fits into `shared` bytes."""
    if tokens > MAX_TOKENS:
        raise ValueError(f"{tokens} tokens: the fused product takes at most {MAX_TOKENS}")
    most = 1 << (tokens - 1).bit_length()
    variants = [
        Variant(most, *shape) for shape in _SHAPES if geometry.bits <= PLANE_BITS or shape[2] < _TIGHT
    ]
    fitting = [v for v in variants if v.shared(geometry.stage_bytes) * v.blocks_per_sm <= shared]
    small = Variant(most, 8, 2)
    return evenest(fitting or [small], geometry.strips, multiprocessors)
