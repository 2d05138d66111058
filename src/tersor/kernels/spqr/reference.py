"""The `spqr` layout in NumPy: the truth that packers, decoders and products are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tersor.codec.quantized import arithmetic
from tersor.codec.quantized.dequantize import statistics
from tersor.codec.quantized.matrix import SCALE_MIN, SCALE_STEP, ZERO_MIN, ZERO_STEP, Quantized
from tersor.codec.quantized.rounding import F16, F32, round_bf16
from tersor.format.constants import ALIGN
from tersor.kernels.fused.layout import ROW_SHIFT, SEGMENT_COLS, STAGE_COLS, STRIP_ROWS
from tersor.kernels.spqr.layout import RECORD_HEAD, SPREAD, Geometry, geometry_of, planes, slots

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
_Number = TypeVar("_Number", np.uint8, np.float16)


@dataclass(frozen=True)
class Packed:
    """A matrix in the `spqr` layout; the fields are described in `layout`. Columns are in stored order."""

    geometry: Geometry
    unit: int  # exponent: the weights are in units of 2^unit
    stages: U8  # (geometry.stage_total,)
    places: NDArray[np.int32]  # (records + 1,), in units of 16 bytes
    records: U8  # (16 * places[-1],)


def pack(q: Quantized) -> Packed:
    """Pack a quantised matrix; ValueError if the layout cannot hold it."""
    geometry = geometry_of(*q.shape, q.width, q.group, q.run, q.stat_bits)
    if geometry is None:
        raise ValueError(f"groups of {q.group} columns do not fit the `spqr` layout")
    strips, stages = geometry.strips, geometry.stages
    stage = np.zeros((strips, stages, geometry.stage_bytes), np.uint8)
    codes = np.zeros((strips * STRIP_ROWS, geometry.padded_cols), np.uint8)
    codes[: geometry.rows, : geometry.cols] = q.codes
    at, low = 0, 0
    for bits in planes(geometry.bits):
        words = _pack_plane(_lanes(codes >> np.uint8(low) & np.uint8((1 << bits) - 1), geometry), bits)
        stage[:, :, at : at + 256 * bits] = _pieces(words)
        at, low = at + 256 * bits, low + bits
    first, second = _pack_statistics(q, geometry)
    stage[:, :, at : at + geometry.grid_bytes] = first
    stage[:, :, at + geometry.grid_bytes :] = second
    places, records = _pack_records(q, geometry)
    unit = int(np.log2(q.unit))
    return Packed(geometry, unit, stage.reshape(-1), places, records)


def unpack(packed: Packed) -> F32:
    """The weights (rows, cols), columns in stored order: values of bfloat16, held as float32."""
    geometry = packed.geometry
    stage = packed.stages.reshape(geometry.strips, geometry.stages, geometry.stage_bytes)
    at, low = 0, 0
    codes = np.zeros((geometry.strips * STRIP_ROWS, geometry.padded_cols), np.uint8)
    for bits in planes(geometry.bits):
        words = _words(stage[:, :, at : at + 256 * bits], bits)
        codes |= _matrix(_unpack_plane(words, bits), geometry) << np.uint8(low)
        at, low = at + 256 * bits, low + bits
    grids = _unpack_statistics(stage[:, :, at:], geometry)
    a, b = (x.repeat(geometry.group, axis=1) for x in arithmetic.grid(*grids))
    weight = arithmetic.base(a, b, codes)
    for k in range(geometry.records):
        strip, segment = divmod(k, geometry.segments)
        record = packed.records[ALIGN * packed.places[k] : ALIGN * packed.places[k + 1]]
        row, column, values = _exceptions(record)
        weight[strip * STRIP_ROWS + row, segment * SEGMENT_COLS + column] += values.astype(np.float32)
    weight = weight[: geometry.rows, : geometry.cols] * np.float32(2.0**packed.unit)
    return round_bf16(weight)


def _lanes(matrix: U8, geometry: Geometry) -> U8:
    """(rows, cols) -> (strip, stage, h, lane, rho, n, pair)."""
    #                                     rho g                  t  h  n  pair
    axes = matrix.reshape(geometry.strips, 2, 8, geometry.stages, 4, 2, 8, 2)
    lanes: U8 = axes.transpose(0, 3, 5, 2, 4, 1, 6, 7)
    return lanes.reshape(geometry.strips, geometry.stages, 2, 32, 2, 8, 2)


def _matrix(lanes: U8, geometry: Geometry) -> U8:
    """The inverse of `_lanes`."""
    axes = lanes.reshape(geometry.strips, geometry.stages, 2, 8, 4, 2, 8, 2)
    return axes.transpose(0, 5, 3, 1, 4, 2, 6, 7).reshape(-1, geometry.padded_cols)


def _pack_plane(codes: U8, bits: int) -> U32:
    """Codes (strip, stage, h, lane, rho, n, pair) below 2^bits as words (strip, stage, h, lane, word)."""
    words = np.zeros((*codes.shape[:4], bits), np.uint32)
    for pair in range(2):
        for s in slots(bits):
            words[..., s.word] |= codes[..., s.rho, s.n, pair].astype(np.uint32) << (s.bit + 16 * pair)
        if bits == 3:
            for k in range(3):
                bit = codes[..., *SPREAD, pair].astype(np.uint32) >> k & 1
                words[..., k] |= bit << (15 + 16 * pair)
    return words


def _unpack_plane(words: U32, bits: int) -> U8:
    """The inverse of `_pack_plane`."""
    codes = np.zeros((*words.shape[:4], 2, 8, 2), np.uint8)
    for pair in range(2):
        for s in slots(bits):
            codes[..., s.rho, s.n, pair] = words[..., s.word] >> (s.bit + 16 * pair) & (1 << bits) - 1
        if bits == 3:
            for k in range(3):
                bit = words[..., k] >> (15 + 16 * pair) & 1
                codes[..., *SPREAD, pair] |= (bit << k).astype(np.uint8)
    return codes


def _pieces(words: U32) -> U8:
    """Words (strip, stage, h, lane, word) as bytes (strip, stage, n): four words per lane, then what is left."""
    strips, stages, _, lanes, bits = words.shape
    own = words.transpose(0, 1, 3, 2, 4).reshape(strips, stages, lanes, 2 * bits).astype("<u4")
    pieces = [own[..., i : i + 4].reshape(strips, stages, -1) for i in range(0, 2 * bits, 4)]
    return np.ascontiguousarray(np.concatenate(pieces, axis=2)).view(np.uint8)


def _words(stage: U8, bits: int) -> U32:
    """The inverse of `_pieces`."""
    strips, stages, _ = stage.shape
    flat = np.ascontiguousarray(stage).view("<u4")
    own = np.empty((strips, stages, 32, 2 * bits), np.uint32)
    for i in range(0, 2 * bits, 4):
        n = min(4, 2 * bits - i)
        own[..., i : i + n] = flat[..., 32 * i : 32 * (i + n)].reshape(strips, stages, 32, n)
    return own.reshape(strips, stages, 32, 2, bits).transpose(0, 1, 3, 2, 4)


def _pack_statistics(q: Quantized, geometry: Geometry) -> tuple[U8, U8]:
    """The bytes (strip, stage, n) of the rows' statistics and of the strips'."""
    rows, cols = q.shape
    groups = geometry.stages * geometry.groups
    source = np.arange(-(-cols // geometry.group)) * geometry.group // q.group  # each held group's stored one
    if geometry.levels == 1:
        both = np.stack([x[:, source] for x in statistics(q, 0, rows)], axis=2)
        padded = np.zeros((geometry.strips * STRIP_ROWS, groups, 2), "<f2")
        padded[:rows, : len(source)] = both
        return _by_lane(padded, geometry), np.zeros((geometry.strips, geometry.stages, 0), np.uint8)
    code = np.zeros((geometry.strips * STRIP_ROWS, groups, 1), np.uint8)
    code[:rows, : len(source), 0] = q.scale_codes[:, source] | q.zero_codes[:, source] << 4
    grids = np.zeros((geometry.strips, groups, 4), "<f2")
    run = np.arange(geometry.strips) * STRIP_ROWS // q.run
    grids[:, : len(source)] = q.stats[run][:, source][..., [SCALE_MIN, ZERO_MIN, SCALE_STEP, ZERO_STEP]]
    return _by_lane(code, geometry), grids.view(np.uint8).reshape(geometry.strips, geometry.stages, -1)


def _by_lane(values: NDArray[np.generic], geometry: Geometry) -> U8:
    """(rows, groups, k) -> bytes (strip, stage, n), in the order of lanes."""
    strips, stages, k = geometry.strips, geometry.stages, values.shape[-1]
    if geometry.group == STAGE_COLS:
        ordered = values.reshape(strips, STRIP_ROWS, stages, k).transpose(0, 2, 1, 3)
    else:  # strip rho g stage t h k -> strip stage g t h rho k
        axes = values.reshape(strips, 2, 8, stages, 4, geometry.groups // 4, k)
        ordered = axes.transpose(0, 3, 2, 4, 5, 1, 6)
    return np.ascontiguousarray(ordered).view(np.uint8).reshape(strips, stages, -1)


def _unpack_statistics(stage: U8, geometry: Geometry) -> tuple[F16, F16]:
    """Scale and zero (rows, groups) of a stage's bytes (strip, stage, n) behind its codes."""
    strips, stages = geometry.strips, geometry.stages
    first = np.ascontiguousarray(stage[:, :, : geometry.grid_bytes])
    if geometry.levels == 1:
        both = _by_row(first.view(np.float16), 2, geometry)
        return both[..., 0], both[..., 1]
    code = _by_row(first, 1, geometry)[..., 0]
    second = np.ascontiguousarray(stage[:, :, geometry.grid_bytes :]).view(np.float16)
    grids = second.reshape(strips, stages * geometry.groups, 4).repeat(STRIP_ROWS, axis=0)
    scale = arithmetic.statistic(grids[..., 0], grids[..., 2], code & np.uint8(15))
    return scale, arithmetic.statistic(grids[..., 1], grids[..., 3], code >> np.uint8(4))


def _by_row(values: NDArray[_Number], k: int, geometry: Geometry) -> NDArray[_Number]:
    """The inverse of `_by_lane`, its values of k each."""
    strips, stages = geometry.strips, geometry.stages
    if geometry.group == STAGE_COLS:
        rows = values.reshape(strips, stages, STRIP_ROWS, k).transpose(0, 2, 1, 3)
    else:
        axes = values.reshape(strips, stages, 8, 4, geometry.groups // 4, 2, k)
        rows = axes.transpose(0, 5, 2, 1, 3, 4, 6)
    return rows.reshape(strips * STRIP_ROWS, -1, k)


def _pack_records(q: Quantized, geometry: Geometry) -> tuple[NDArray[np.int32], U8]:
    row, column = np.divmod(q.outlier_index, geometry.cols)
    of_record = row // STRIP_ROWS * geometry.segments + column // SEGMENT_COLS
    records = []
    for k in range(geometry.records):
        own = np.flatnonzero(of_record == k)  # rising by row and column, as outliers are
        r, c, value = row[own] % STRIP_ROWS, column[own] % SEGMENT_COLS, q.outlier_value[own].view(np.uint16)
        entries = value.astype("<u4") << np.uint32(16) | (r << ROW_SHIFT | c).astype("<u4")
        running = np.bincount(r, minlength=STRIP_ROWS).cumsum().astype("<u2")
        record = running.tobytes() + entries.astype("<u4").tobytes()
        records.append(record + bytes(-len(record) % ALIGN))
    places = np.zeros(len(records) + 1, np.int32)
    places[1:] = np.cumsum([len(record) // ALIGN for record in records])
    return places, np.frombuffer(b"".join(records), np.uint8)


def _exceptions(record: U8) -> tuple[NDArray[np.int64], NDArray[np.int64], F16]:
    """Row and column within the segment, and value, of each outlier of a record."""
    number = int(record[RECORD_HEAD - 2 : RECORD_HEAD].view("<u2")[0])
    entries = record[RECORD_HEAD : RECORD_HEAD + 4 * number].view("<u4")
    row, column = entries >> ROW_SHIFT & (STRIP_ROWS - 1), entries & (SEGMENT_COLS - 1)
    values = (entries >> 16).astype("<u2").view("<f2").astype(np.float16)
    return row.astype(np.int64), column.astype(np.int64), values
