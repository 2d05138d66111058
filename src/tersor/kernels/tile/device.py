"""The product for many tokens, launched: x W^T + bias for any layout that can be decoded by stages.

Up to three kernels, each chained to the one before by programmatic dependent launch: for large tiles the
activations are laid out as operands, the tiles are multiplied, tiles that were cut between blocks are added
up. Nothing waits for the GPU, nothing is allocated but torch's tensors.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from tersor.kernels.compiler import Program
from tersor.kernels.fused.device import Matrix
from tersor.kernels.fused.layout import EXCEPTION_BYTES, Geometry
from tersor.kernels.launcher import Kernel, Launch, architecture, multiprocessors
from tersor.kernels.tile.split import TILE_ROWS, Split, choose
from tersor.kernels.tile.variant import Variant, variant_for

MOST_TOKENS = 1024  # beyond it decoding the matrix for cuBLAS is faster (bench/sweep_tile.py)
_THREADS = 256
_HALF_COLS = 64
_PIECE = 8  # elements of the 16 bytes that are read at a time


def supported(device: torch.device) -> bool:
    """Whether the device has the tensor cores that this product is written for."""
    return device.type == "cuda" and architecture(device) == "sm_90"


def fastest(tokens: int, device: torch.device) -> bool:
    """Whether this product multiplies so many tokens faster than cuBLAS does after decoding."""
    return supported(device) and 0 < tokens <= MOST_TOKENS


@cache
def _kernel(program: Program, shared: int = 0) -> Kernel:
    return Kernel(program, shared)


def tile_linear(
    x: torch.Tensor,
    matrix: Matrix[Geometry],
    bias: torch.Tensor | None = None,
    variant: Variant | None = None,
) -> torch.Tensor:
    """x (tokens, cols) bfloat16, any row stride, times the matrix transposed, plus bias (rows,): (tokens, rows).

    The result does not depend on when blocks run; it does depend on `variant` and on how many tokens there are.
    """
    geometry, tokens, device = matrix.geometry, x.shape[0], x.device
    variant = variant or variant_for(tokens)
    variant = replace(variant, kept=min(variant.kept, kept_for(matrix)))
    shared, exponent = variant.shared(geometry), matrix.unit + dict(geometry.macros).get("WEIGHT_SHIFT", 0)
    places = multiprocessors(device) * variant.blocks_per_sm
    split = choose(geometry.rows, tokens, geometry.segments, variant.tokens, places)
    operands = _arrange(x, geometry, variant, split) if variant.arranged else in_pieces(x)
    y = x.new_empty((tokens, geometry.rows))
    sums = 2 * split.blocks * TILE_ROWS * variant.tokens if split.cuts else 0
    partial = x.new_empty(sums, dtype=torch.float32)
    _kernel(variant.program(geometry), shared)(
        Launch((split.blocks, 1), variant.threads, shared, overlap=True), device,
        matrix.stages, matrix.places, matrix.records, operands, bias, y, partial,
        geometry.rows, tokens, operands.shape[1], operands.stride(0), geometry.halves, split.chunk, exponent,
    )  # fmt: skip
    if split.cuts and split.blocks > 1:
        quads = TILE_ROWS * variant.tokens // 4
        _kernel(variant.combine_program(geometry))(
            Launch((split.blocks - 1, quads // _THREADS), _THREADS, overlap=True), device,
            partial, bias, y, geometry.rows, tokens,
            split.segments, split.token_tiles, split.units, split.chunk, split.blocks, exponent,
        )  # fmt: skip
    return y


def kept_for(matrix: Matrix[Geometry]) -> int:
    """Exceptions that a lane must hold (1, 2 or 4) for nearly all segments, if they are spread evenly."""
    geometry = matrix.geometry
    bytes_of_one = matrix.records.numel() / (geometry.strips * geometry.segments)
    mean = max(0.0, bytes_of_one - dict(geometry.macros)["RECORD_HEAD"]) / EXCEPTION_BYTES
    return next((kept for kept in (1, 2) if mean + 3 * mean**0.5 <= 32 * kept), 4)


def in_pieces(x: torch.Tensor) -> torch.Tensor:
    """x in rows of whole pieces of 16 bytes, each at a multiple of 16: itself nearly always, else a copy."""
    if over := x.shape[1] % _PIECE:
        return torch.nn.functional.pad(x, (0, _PIECE - over))
    if x.stride(1) != 1 or x.stride(0) % _PIECE or x.data_ptr() % 16:
        return x.clone(memory_format=torch.contiguous_format)
    return x


def _arrange(x: torch.Tensor, geometry: Geometry, variant: Variant, split: Split) -> torch.Tensor:
    """The activations as operand tiles [token tiles * halves, an even number][variant.tokens * 64], swizzled."""
    if x.stride(1) != 1:
        x = x.contiguous()
    halves = geometry.halves + geometry.halves % 2
    out = x.new_empty((split.token_tiles * halves, variant.tokens * _HALF_COLS))
    pieces = out.numel() // 8
    _kernel(variant.arrange_program(geometry))(
        Launch((-(-pieces // _THREADS), 1), _THREADS, overlap=True), x.device,
        x, out, x.shape[0], geometry.cols, x.stride(0), halves, pieces,
    )  # fmt: skip
    return out
