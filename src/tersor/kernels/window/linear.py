"""Which build of the product multiplies how many tokens in the `fast` layout."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from tersor.kernels.fused.variant import Variant, evenest
from tersor.kernels.window.layout import STAGE_BYTES, Geometry

MAX_TOKENS = 32  # of one launch
FUSED_TOKENS = 64  # beyond it the matrix is decoded for cuBLAS, except on Hopper:
TILE_TOKENS = 8  # beyond it `kernels.tile` multiplies there,
TILED_TOKENS = 4096  # up to so many
_FEW = 8  # tokens whose activations come through L1
_SHAPES = ((8, 2), (8, 3), (20, 1))  # streaming warps and blocks per multiprocessor, the best first
_SMALL = 12  # streaming warps where a multiprocessor has 99 KB
# Where small blocks take one strip each of a wide matrix, all of them walk through the columns together, and a
# multiprocessor reads the activations once.
_ONE_WAVE = Variant(8, 4, 2, blocks_per_sm=5)
_WAVE_STRIPS = 0.75  # of the places, at least
_WIDE = 8192


@lru_cache(maxsize=1024)  # asked at every product
def variant_for(tokens: int, geometry: Geometry, multiprocessors: int, shared: int) -> Variant:
    """The build that is fastest for this many tokens on an H200 (dev/BENCHMARKS.md) and fits into `shared` bytes."""
    if tokens > MAX_TOKENS:
        raise ValueError(f"{tokens} tokens: the fused product takes at most {MAX_TOKENS}")

    def fits(variant: Variant) -> bool:
        """All of its blocks at once; a block may have nearly all of a multiprocessor's shared memory."""
        return variant.shared(STAGE_BYTES) * variant.blocks_per_sm <= shared

    if tokens > _FEW:
        most = 32 if tokens > 16 else 16
        twice = Variant(16, 8, 2, blocks_per_sm=2, slice_spans=1)
        if most == 16 and fits(twice):
            return twice
        widest = 16 if most == 16 else 12  # 32 tokens take more registers
        sizes = (Variant(most, warps, 2, slice_spans=1, buffers=1) for warps in range(widest, 2, -2))
        return next(variant for variant in sizes if fits(variant))
    most = 1 << (tokens - 1).bit_length()
    one_wave = replace(_ONE_WAVE, tokens=most)
    if (
        geometry.cols >= _WIDE
        and fits(one_wave)
        and geometry.strips <= one_wave.blocks_per_sm * multiprocessors
        and one_wave.busy(geometry.strips, multiprocessors) >= _WAVE_STRIPS
    ):
        return one_wave
    variants = [Variant(most, consumers, 2, blocks) for consumers, blocks in _SHAPES]
    fitting = [v for v in variants if fits(v)] or [Variant(most, _SMALL, 2)]
    return evenest(fitting, geometry.strips, multiprocessors)
