"""Which build of the product multiplies how many tokens in the `spqr` layout."""

from __future__ import annotations

from tersor.kernels.fused.variant import Variant, evenest
from tersor.kernels.spqr.layout import Geometry

MAX_TOKENS = 8  # of one launch
FUSED_TOKENS = 32  # up to here in turns; beyond it decoding the matrix for cuBLAS takes less time
# Streaming warps, ring stages and blocks per multiprocessor, the best first. A stage is a third of one of the `fast`
# layout, so rings are deeper for as many bytes under way.
_SHAPES = ((8, 4, 2), (8, 4, 3), (20, 4, 1))


def variant_for(tokens: int, geometry: Geometry, multiprocessors: int, shared: int) -> Variant:
    """The build for this many tokens that keeps the GPU busy and fits into `shared` bytes."""
    if tokens > MAX_TOKENS:
        raise ValueError(f"{tokens} tokens: the fused product takes at most {MAX_TOKENS}")
    most = 1 << (tokens - 1).bit_length()
    variants = [Variant(most, *shape) for shape in _SHAPES]
    fitting = [v for v in variants if v.shared(geometry.stage_bytes) * v.blocks_per_sm <= shared]
    small = Variant(most, 8, 2)
    return evenest(fitting or [small], geometry.strips, multiprocessors)
