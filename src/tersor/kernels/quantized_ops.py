"""The torch operators of the codecs for quantised tensors (FORMAT.md section 6).

They take the stored arrays and give the weight, bit for bit what `tersor.codec.quantized.dequantize`
gives, on every device by the same torch operations: scratch of a few times the weight's size, no
synchronisation. A device may replace them by a kernel of its own, as for the operators in `ops`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tersor.codec.quantized import arithmetic_torch as arithmetic
from tersor.codec.quantized.dequantize_torch import grid_weights, integer_weights, rounded
from tersor.codec.quantized.integers import SYMBOL_DTYPE
from tersor.codec.quantized.matrix import SCALE_MIN, SCALE_STEP, ZERO_MIN, ZERO_STEP
from tersor.codec.quantized.packing_torch import unpack, widened
from tersor.format.constants import TILE_COLS, TILE_ROWS
from tersor.format.layout import Grid
from tersor.kernels.ops import library, torch_dtype

for _schema in (
    "spqr_dequantize(Tensor codes, Tensor? levels, Tensor stats, Tensor? order, Tensor? counts, Tensor? places, "
    "Tensor? deltas, str dtype, int[] shape, int bits, int group, int rows, int stat_bits, int unit) -> Tensor",
    "integers_dequantize(Tensor tiles, Tensor offsets, Tensor book, Tensor steps, str dtype, int[] shape) -> Tensor",
):
    library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]


def spqr_dequantize(
    codes: Tensor,
    levels: Tensor | None,
    stats: Tensor,
    order: Tensor | None,
    counts: Tensor | None,
    places: Tensor | None,
    deltas: Tensor | None,
    dtype: str,
    shape: Sequence[int],
    bits: int,
    group: int,
    rows: int,
    stat_bits: int,
    unit: int,
) -> Tensor:
    """The weight (R, C) of `dtype`; arrays and parameters as stored, None for arrays that are not."""
    height, columns = shape
    second = stats.view(torch.float16).float()
    if levels is None:
        scale, zero = second[..., 0], second[..., 1]
    else:
        second = second.repeat_interleave(rows, dim=0, output_size=len(second) * rows)[:height]
        first = unpack(levels, stat_bits, 2 * second.shape[1]).float()
        scale = arithmetic.statistic(second[..., SCALE_MIN], second[..., SCALE_STEP], first[:, 0::2])
        zero = arithmetic.statistic(second[..., ZERO_MIN], second[..., ZERO_STEP], first[:, 1::2])
    weight = grid_weights(unpack(codes, bits, columns), scale, zero, group)
    if counts is not None and places is not None and deltas is not None:
        index = outlier_index(widened(counts), widened(places), height, columns)
        weight.view(-1)[index] += deltas.view(torch.float16).float()
    weight = rounded(weight.mul_(2.0**unit), torch_dtype(dtype))
    return weight if order is None else torch.empty_like(weight).index_copy_(1, widened(order), weight)


def outlier_index(counts: Tensor, places: Tensor, height: int, columns: int) -> Tensor:
    """row * C + column of every outlier, in stored order."""
    tile_cols = Grid(height, columns).tile_cols
    tile = torch.arange(len(counts), device=counts.device)
    tile = tile.repeat_interleave(counts, output_size=len(places))
    row = tile // tile_cols * TILE_ROWS + places // TILE_COLS
    return row * columns + tile % tile_cols * TILE_COLS + places % TILE_COLS


def integers_dequantize(
    tiles: Tensor, offsets: Tensor, book: Tensor, steps: Tensor, dtype: str, shape: Sequence[int]
) -> Tensor:
    """The weight (R, C) of `dtype` from the stored arrays."""
    codes = torch.ops.tersor.huffman_decode(tiles, offsets, book, SYMBOL_DTYPE, shape).view(torch.int8)
    return integer_weights(codes, steps.view(torch.bfloat16).float(), torch_dtype(dtype))


def _spqr_fake(codes: Tensor, *rest: object) -> Tensor:
    dtype, shape = rest[6], rest[7]
    assert isinstance(dtype, str)
    assert isinstance(shape, Sequence)
    return codes.new_empty(tuple(shape), dtype=torch_dtype(dtype))


def _integers_fake(
    tiles: Tensor, offsets: Tensor, book: Tensor, steps: Tensor, dtype: str, shape: Sequence[int]
) -> Tensor:
    return tiles.new_empty(tuple(shape), dtype=torch_dtype(dtype))


for _name, _implementation, _fake in (
    ("spqr_dequantize", spqr_dequantize, _spqr_fake),
    ("integers_dequantize", integers_dequantize, _integers_fake),
):
    for _device in ("CPU", "CUDA"):
        library.impl(_name, _implementation, _device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{library.ns}::{_name}", _fake, lib=library)
