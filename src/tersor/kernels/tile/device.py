"""The product for many tokens, launched: x W^T + bias for any layout that can be decoded by stages.

Three kernels, each chained to the one before by programmatic dependent launch: the activations are laid out
as operands, the tiles are multiplied, tiles that were cut between blocks are added up. Nothing waits for the
GPU, nothing is allocated but torch's tensors.
"""

from __future__ import annotations

from functools import cache

import torch

from tersor.kernels.compiler import Program
from tersor.kernels.fused.device import Matrix
from tersor.kernels.fused.layout import Geometry
from tersor.kernels.launcher import Kernel, Launch, architecture, multiprocessors
from tersor.kernels.tile.split import TILE_ROWS, Split, choose
from tersor.kernels.tile.variant import Variant, variant_for

_THREADS = 256
_STEP_COLS = 64


# Beyond, decoding for cuBLAS is faster: at 2048 tokens 0.87 of cuBLAS's speed on the plain matrix against 0.66,
# at 256 0.48 against 0.69 (28672 x 4096, `fast` layout, one H200).
MOST_TOKENS = 512


def supported(device: torch.device) -> bool:
    """Whether the device has the tensor cores that this product is written for."""
    return device.type == "cuda" and architecture(device) == "sm_90"


def fastest(tokens: int, device: torch.device) -> bool:
    """Whether this many tokens, more than the product for few takes, are multiplied fastest here."""
    return 0 < tokens <= MOST_TOKENS and supported(device)


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
    variant = variant or variant_for(tokens, matrix.geometry)
    shared, exponent = variant.shared(geometry), matrix.unit + dict(geometry.macros).get("WEIGHT_SHIFT", 0)
    places = multiprocessors(device) * variant.blocks_per_sm
    split = choose(geometry.rows, tokens, geometry.segments, variant.tokens, places)
    arranged = _arrange(x, geometry, variant, split)
    y = x.new_empty((tokens, geometry.rows))
    sums = 2 * split.blocks * TILE_ROWS * variant.tokens if split.cuts else 0
    partial = x.new_empty(sums, dtype=torch.float32)
    _kernel(variant.program(geometry), shared)(
        Launch((split.blocks, 1), variant.threads, shared, overlap=True), device,
        matrix.stages, matrix.places, matrix.records, arranged, bias, y, partial,
        geometry.rows, tokens, geometry.halves, split.chunk, exponent,
    )  # fmt: skip
    if split.cuts and split.blocks > 1:
        quads = TILE_ROWS * variant.tokens // 4
        _kernel(variant.combine_program(geometry))(
            Launch((split.blocks - 1, quads // _THREADS), _THREADS, overlap=True), device,
            partial, bias, y, geometry.rows, tokens,
            split.segments, split.token_tiles, split.units, split.chunk, split.blocks, exponent,
        )  # fmt: skip
    return y


def _arrange(x: torch.Tensor, geometry: Geometry, variant: Variant, split: Split) -> torch.Tensor:
    """The activations as operand tiles [token tiles][halves][variant.tokens][64], swizzled."""
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty(split.token_tiles * geometry.halves * variant.tokens * _STEP_COLS)
    pieces = out.numel() // 8
    _kernel(variant.arrange_program(geometry))(
        Launch((-(-pieces // _THREADS), 1), _THREADS, overlap=True), x.device,
        x, out, x.shape[0], geometry.cols, x.stride(0), geometry.halves, pieces,
    )  # fmt: skip
    return out
