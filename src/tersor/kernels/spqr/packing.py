"""From the stored arrays of codec `spqr` to the layout, in torch: where the arrays are, some strips at a time.

The same bytes as `reference.pack`, on any device. The host waits once, for the size of the records.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from tersor.codec.quantized import arithmetic_torch as arithmetic
from tersor.codec.quantized.matrix import SCALE_MIN, SCALE_STEP, ZERO_MIN, ZERO_STEP
from tersor.codec.quantized.packing_torch import unpack, widened
from tersor.format.constants import ALIGN
from tersor.format.errors import KernelError
from tersor.kernels.fused.layout import EXCEPTION_BYTES, ROW_SHIFT, SEGMENT_COLS, STAGE_COLS, STRIP_ROWS
from tersor.kernels.quantized_ops import outlier_index
from tersor.kernels.spqr.layout import RECORD_HEAD, SPREAD, Geometry, geometry_of, planes, slots

_CHUNK_WEIGHTS = 1 << 23  # packed at a time: some 100 MB of scratch
_WORD = 4  # bytes


def geometry_for(shape: Sequence[int], bits: int, group: int, run: int, stat_bits: int) -> Geometry:
    """How the matrix is held; KernelError if the layout cannot (ask `layout.can_hold` before)."""
    rows, cols = shape
    geometry = geometry_of(rows, cols, bits, group, run, stat_bits)
    if geometry is None:
        raise KernelError(
            f"a matrix with groups of {group} columns cannot be held in the `spqr` layout; "
            "leave it as stored and dequantise it"
        )
    return geometry


def pack(
    codes: Tensor,
    levels: Tensor | None,
    stats: Tensor,
    counts: Tensor | None,
    places: Tensor | None,
    deltas: Tensor | None,
    shape: Sequence[int],
    bits: int,
    group: int,
    rows: int,
    stat_bits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The layout's stages (uint8), places (int32) and records (uint8); arrays and parameters as stored."""
    geometry = geometry_for(shape, bits, group, rows, stat_bits)
    source = torch.arange(-(-geometry.cols // geometry.group), device=codes.device) * geometry.group // group
    stages = torch.empty(
        (geometry.strips, geometry.stages, geometry.stage_bytes), dtype=torch.uint8, device=codes.device
    )
    step = max(1, _CHUNK_WEIGHTS // (STRIP_ROWS * geometry.padded_cols))
    for first in range(0, geometry.strips, step):
        part = stages[first : first + step]
        own = slice(first * STRIP_ROWS, min((first + step) * STRIP_ROWS, geometry.rows))
        _pack_codes(part, unpack(codes[own], bits, geometry.cols), geometry)
        own_levels = None if levels is None else unpack(levels[own], stat_bits, 2 * stats.shape[1])
        run = torch.arange(own.start, own.stop, device=codes.device) // rows
        grids = part[:, :, geometry.code_bytes :]
        _pack_statistics(grids, own_levels, stats.view(torch.float16), run, source, geometry)
    index = torch.empty(0, dtype=torch.int64, device=codes.device)
    value = index.to(torch.int16)
    if counts is not None and places is not None and deltas is not None:
        index = outlier_index(widened(counts), widened(places), geometry.rows, geometry.cols)
        value = deltas.view(torch.int16)
    return stages.view(-1), *_pack_records(index, value, geometry)


def _pack_codes(stage: Tensor, codes: Tensor, geometry: Geometry) -> None:
    """Codes (rows, cols) of some strips, to the beginnings of their stages (strips, stages, bytes)."""
    strips, stages, _ = stage.shape
    codes = pad(codes, (0, geometry.padded_cols - geometry.cols, 0, strips * STRIP_ROWS - len(codes)))
    #                  strip rho g  stage   t  h  n  pair
    axes = codes.view(strips, 2, 8, stages, 4, 2, 8, 2).permute(0, 3, 5, 2, 4, 1, 6, 7)
    lanes = axes.reshape(strips, stages, 2, 32, 32)  # strip, stage, h, lane, (rho, n, pair)
    at, low = 0, 0
    for bits in planes(geometry.bits):
        words = _plane(lanes >> low & (1 << bits) - 1, bits).permute(0, 1, 3, 2, 4)
        own = words.reshape(strips, stages, 32, 2 * bits)
        for i in range(0, 2 * bits, 4):
            piece = own[..., i : i + 4].reshape(strips, stages, -1).view(torch.uint8)
            stage[:, :, at : at + piece.shape[2]] = piece
            at += piece.shape[2]
        low += bits


def _plane(codes: Tensor, bits: int) -> Tensor:
    """Codes (strip, stage, h, lane, 32) below 2^bits as words (strip, stage, h, lane, bits) int32."""
    pairs = [(16 * s.rho + 2 * s.n + pair, s.bit + 16 * pair) for s in slots(bits) for pair in range(2)]
    element, shift = torch.tensor(pairs, device=codes.device).unbind(1)
    placed = codes[..., element].int() << shift.int()
    words = placed.view(*codes.shape[:4], bits, -1).sum(-1, dtype=torch.int32)
    if bits == 3:
        rho, n = SPREAD
        last = codes[..., 16 * rho + 2 * n :][..., :2].int()
        for k in range(3):
            bit = last >> k & 1
            words[..., k] |= bit[..., 0] << 15 | bit[..., 1] << 31
    return words


def _pack_statistics(
    stage: Tensor, levels: Tensor | None, stats: Tensor, run: Tensor, source: Tensor, geometry: Geometry
) -> None:
    """What a stage holds behind its codes, for the rows whose runs are `run`; `source`: held groups' stored ones."""
    strips, stages, _ = stage.shape
    beyond = (
        strips * STRIP_ROWS - len(run),
        stages * geometry.groups - len(source),
    )  # rows and groups of zeros
    if geometry.levels == 1:
        grids = stats[run][:, source]
        if levels is not None:
            wide = grids.float()
            scale = arithmetic.statistic(
                wide[..., SCALE_MIN], wide[..., SCALE_STEP], levels[:, 0::2][:, source]
            )
            zero = arithmetic.statistic(wide[..., ZERO_MIN], wide[..., ZERO_STEP], levels[:, 1::2][:, source])
            grids = torch.stack((scale, zero), dim=2).half()
        stage.copy_(_by_lane(pad(grids, (0, 0, 0, beyond[1], 0, beyond[0])), strips, geometry))
        return
    assert levels is not None
    code = (levels[:, 0::2] | levels[:, 1::2] << 4)[:, source]
    first = _by_lane(pad(code, (0, beyond[1], 0, beyond[0])).unsqueeze(2), strips, geometry)
    second = stats[run[::STRIP_ROWS]][:, source][..., [SCALE_MIN, ZERO_MIN, SCALE_STEP, ZERO_STEP]]
    stage[:, :, : geometry.grid_bytes] = first
    stage[:, :, geometry.grid_bytes :] = (
        pad(second, (0, 0, 0, beyond[1])).view(torch.uint8).view(strips, stages, -1)
    )


def _by_lane(values: Tensor, strips: int, geometry: Geometry) -> Tensor:
    """(rows, groups, k) -> bytes (strip, stage, n), in the order of lanes."""
    stages, k = geometry.stages, values.shape[2]
    if geometry.group == STAGE_COLS:
        ordered = values.view(strips, STRIP_ROWS, stages, k).transpose(1, 2)
    else:
        axes = values.view(strips, 2, 8, stages, 4, geometry.groups // 4, k)
        ordered = axes.permute(0, 3, 2, 4, 5, 1, 6)
    return ordered.contiguous().view(torch.uint8).view(strips, stages, -1)


def _pack_records(index: Tensor, value: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Places and records of outliers at row * cols + column, of 16 bits each."""
    row, column = index // geometry.cols, index % geometry.cols
    record = row // STRIP_ROWS * geometry.segments + column // SEGMENT_COLS
    within = 1 << ROW_SHIFT + 4
    key, rising = (record * within + (row % STRIP_ROWS << ROW_SHIFT) + column % SEGMENT_COLS).sort()
    record, number = key // within, geometry.records
    of_row = torch.bincount(key >> ROW_SHIFT, minlength=number * STRIP_ROWS).view(number, STRIP_ROWS)
    running = of_row.cumsum(1)
    total = running[:, -1]
    units = (RECORD_HEAD + EXCEPTION_BYTES * total + ALIGN - 1) // ALIGN
    places = pad(units.cumsum(0), (1, 0))
    records = torch.zeros(int(places[-1]) * ALIGN // _WORD, dtype=torch.int32, device=index.device)
    begin = places[:-1] * (ALIGN // _WORD)
    head = RECORD_HEAD // _WORD
    words = torch.arange(head, device=index.device)
    records[begin[:, None] + words] = running.to(torch.int16).view(torch.int32)
    rank = torch.arange(len(key), device=index.device) - (total.cumsum(0) - total)[record]
    records[begin[record] + head + rank] = value[rising].int() << 16 | (key % within).int()
    return places.int(), records.view(torch.uint8)
