"""The `fast` layout on the GPU: pack, decode, multiply."""

from __future__ import annotations

from functools import cache

import torch

from tersor.format.constants import ALIGN
from tersor.kernels.compiler import Program
from tersor.kernels.fused import device as fused
from tersor.kernels.fused.device import Matrix
from tersor.kernels.fused.layout import STRIP_ROWS
from tersor.kernels.launcher import Kernel, Launch
from tersor.kernels.multiply import Ways
from tersor.kernels.tile import device as tile
from tersor.kernels.window.layout import MACROS, Geometry
from tersor.kernels.window.linear import FUSED_TOKENS, MAX_TOKENS, TILE_TOKENS, TILED_TOKENS, variant_for

_ROW_THREADS = 256
_WARPS = 8

decode = fused.decode


@cache
def _pack_kernel(entry: str) -> Kernel:
    return Kernel(Program("window_pack.cu", entry, MACROS))


def pack(weight: torch.Tensor) -> Matrix[Geometry]:
    """Pack a bfloat16 matrix (rows, cols) on the GPU. Waits for it: the number of exceptions decides sizes."""
    weight = weight.detach().contiguous()
    rows, cols = weight.shape
    geometry, device = Geometry(rows, cols), weight.device
    base = weight.new_empty((rows, geometry.segments), dtype=torch.uint8)
    counts = weight.new_empty((rows, geometry.segments), dtype=torch.int32)
    places = weight.new_zeros(geometry.records + 1, dtype=torch.int32)
    _pack_kernel("window_rows")(
        Launch((rows * geometry.segments, 1), _ROW_THREADS),
        device, weight, base, counts, places, cols, geometry.segments,
    )  # fmt: skip
    _pack_kernel("window_places")(Launch((1, 1), _ROW_THREADS), device, places, geometry.records)
    blocks = weight.new_empty(geometry.stage_total, dtype=torch.uint8)
    number = geometry.strips * geometry.blocks
    _pack_kernel("window_blocks")(
        Launch((-(-number // _WARPS), 1), 32 * _WARPS),
        device, weight, base, blocks, rows, cols, geometry.segments, geometry.blocks, number,
    )  # fmt: skip
    records = torch.zeros(int(places[-1]) * ALIGN, dtype=torch.uint8, device=device)
    _pack_kernel("window_records")(
        Launch((geometry.records, 1), 32 * STRIP_ROWS),
        device, weight, base, counts, places, records, rows, cols, geometry.segments,
    )  # fmt: skip
    torch.cuda.current_stream(
        device
    ).synchronize()  # before a kernel that overlaps its predecessor may read it
    return Matrix(geometry, blocks, places, records)


def fuses(tokens: int, device: torch.device) -> bool:
    """Whether `linear` is the fastest way to multiply this many tokens on this device."""
    return 0 < tokens <= FUSED_TOKENS or tile.fastest(tokens, device, TILED_TOKENS)


_ways = Ways(MAX_TOKENS, TILE_TOKENS, fuses, variant_for)
linear, multiply = _ways.linear, _ways.multiply
