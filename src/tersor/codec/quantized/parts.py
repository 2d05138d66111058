"""A quantised matrix as the arrays that FORMAT.md section 6 stores, and back, every rule checked.

Arrays are named by their suffix ("_codes"). For `spqr` the two kinds of statistic codes lie side by
side, scale and zero of one group after the other, so that a range of columns takes both along; outliers
are grouped by tile of 16 x 256, so that whoever works on a tile finds its own:

    _counts  how many each tile has        _places  16 bits each: row * 256 + column in the tile, rising
    _deltas  their values, in the same order
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from tersor.codec import Packed, decode
from tersor.codec.packed import check_offsets
from tersor.codec.quantized.dequantize import weight_sha256
from tersor.codec.quantized.integers import SYMBOL_DTYPE, Integers
from tersor.codec.quantized.matrix import SCALE_MIN, SCALE_STEP, ZERO_MIN, ZERO_STEP, Quantized
from tersor.codec.quantized.packing import pack, unpack
from tersor.format.constants import CODEC_INTEGERS, CODEC_SPQR, TILE_COLS, TILE_ROWS
from tersor.format.errors import BadOrder, BadOutliers, BadStats, BadSteps, HashMismatch, NotCanonical
from tersor.format.layout import (
    BOOK,
    CODES,
    COUNTS,
    DELTAS,
    LEVELS,
    OFFSETS,
    ORDER,
    PLACES,
    STATS,
    STEPS,
    TILES,
    Grid,
)
from tersor.format.manifest import TensorEntry
from tersor.format.parameters import IntegersParameters, SpqrParameters

Array = npt.NDArray[Any]
Parts = dict[str, Array]
Matrix = Quantized | Integers

_TILE = TILE_ROWS * TILE_COLS
_OVERFLOW = 65520  # where binary16 rounds to infinity


def to_parts(q: Matrix, book: npt.NDArray[np.uint8] | None = None) -> Parts:
    """The stored arrays, by suffix, in the order of their declaration; `book` as in `encode`."""
    if isinstance(q, Integers):
        packed = q.packed(book)
        steps = (np.ascontiguousarray(q.steps).view(np.uint32) >> np.uint32(16)).astype("<u2")
        return {
            BOOK: packed.book,
            OFFSETS: packed.offsets.astype("<u4"),
            TILES: packed.tiles,
            STEPS: steps,
        }
    parts: Parts = {CODES: pack(q.codes, q.width)}
    stats = q.stats.astype("<f2").view("<u2")
    if q.stat_bits:
        levels = np.stack([q.scale_codes, q.zero_codes], axis=2).reshape(q.shape[0], -1)
        parts[LEVELS] = pack(levels, q.stat_bits)
    else:
        stats = np.ascontiguousarray(stats[..., [SCALE_MIN, ZERO_MIN]])
    parts[STATS] = stats
    if q.order is not None:
        parts[ORDER] = q.order.astype("<u2" if q.shape[1] <= 1 << 16 else "<u4")
    if q.outliers:
        parts |= _outlier_parts(q)
    return parts


def _outlier_parts(q: Quantized) -> Parts:
    grid = Grid(*q.shape)
    row, column = np.divmod(q.outlier_index, q.shape[1])
    tile = row // TILE_ROWS * grid.tile_cols + column // TILE_COLS
    place = row % TILE_ROWS * TILE_COLS + column % TILE_COLS
    by_tile = np.argsort(tile * _TILE + place)
    return {
        COUNTS: np.bincount(tile, minlength=grid.tiles).astype("<u2"),
        PLACES: place[by_tile].astype("<u2"),
        DELTAS: q.outlier_value[by_tile].astype("<f2").view("<u2"),
    }


def entry_of(q: Matrix, parts: Parts) -> TensorEntry:
    """The manifest's entry of a matrix with these parts."""
    stored = parts_sha256(parts)
    if isinstance(q, Integers):
        return TensorEntry(
            CODEC_INTEGERS, q.dtype, q.shape, weight_sha256(q), IntegersParameters(stored=stored)
        )
    parameters = SpqrParameters(
        bits=q.width,
        group=q.group,
        rows=q.run,
        stat_bits=q.stat_bits,
        unit=math.frexp(q.unit)[1] - 1,
        order=q.order is not None,
        outliers=q.outliers,
        stored=stored,
    )
    return TensorEntry(CODEC_SPQR, q.dtype, q.shape, weight_sha256(q), parameters)


def parts_sha256(parts: Parts) -> str:
    """SHA-256 of the stored arrays, one after the other in the order of their declaration."""
    digest = hashlib.sha256()
    for array in parts.values():
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def from_parts(entry: TensorEntry, parts: Mapping[str, Array], where: str = "tensor") -> Matrix:
    """The matrix that `entry` describes, out of its arrays (of the declared dtypes and shapes)."""
    rows, columns = entry.shape
    p = entry.parameters
    if not isinstance(p, SpqrParameters):
        return _integers(entry, parts, where)
    groups = p.groups(columns)
    _check_stats(p, parts[STATS], where)
    stats = parts[STATS].view("<f2").astype(np.float16, copy=False)
    if p.stat_bits:
        levels = unpack(parts[LEVELS], p.stat_bits, 2 * groups)
    else:
        levels = np.zeros((rows, 2 * groups), np.uint8)
        direct, stats = stats, np.zeros((*stats.shape[:2], 4), np.float16)
        stats[..., [SCALE_MIN, ZERO_MIN]] = direct
    index, value = _outliers(p, parts, rows, columns, where)
    return Quantized(
        p.bits,
        p.group,
        p.rows,
        p.stat_bits,
        entry.dtype,
        math.ldexp(1.0, p.unit),
        unpack(parts[CODES], p.bits, columns),
        levels[:, 0::2],
        levels[:, 1::2],
        stats,
        index,
        value,
        _order(parts[ORDER], columns, where) if p.order else None,
    )


def _check_stats(p: SpqrParameters, stored: Array, where: str) -> None:
    reach = np.abs(stored.view("<f2").astype(np.float64))
    if p.stat_bits:
        top = (1 << p.stat_bits) - 1
        reach = reach[..., [SCALE_MIN, ZERO_MIN]] + reach[..., [SCALE_STEP, ZERO_STEP]] * top
    if not (reach < _OVERFLOW).all():  # not a number is not less either
        raise BadStats(
            f"{where}: its scales or zeros are not finite; the data is damaged, copy or download it again"
        )


def check_places(entry: TensorEntry, parts: Mapping[str, Array], where: str = "tensor") -> None:
    """Raise unless every column and place of an `spqr` matrix lies inside it, and all its numbers are finite."""
    rows, columns = entry.shape
    p = entry.parameters
    if isinstance(p, SpqrParameters):
        _check_stats(p, parts[STATS], where)
        _outliers(p, parts, rows, columns, where)
        if p.order:
            _order(parts[ORDER], columns, where)


def _order(stored: Array, columns: int, where: str) -> npt.NDArray[np.int32]:
    order = stored.astype(np.int64)
    if order.size and (order.max() >= columns or (np.bincount(order, minlength=columns) != 1).any()):
        raise BadOrder(
            f"{where}: its column order does not name every column once; the data is damaged, copy or download it again"
        )
    return order.astype(np.int32)


def _outliers(
    p: SpqrParameters, parts: Mapping[str, Array], rows: int, columns: int, where: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]:
    """Index, rising, and value of every outlier."""
    if not p.outliers:
        return np.empty(0, np.int64), np.empty(0, np.float16)
    grid = Grid(rows, columns)
    counts, place = parts[COUNTS].astype(np.int64), parts[PLACES].astype(np.int64)
    if counts.sum() != p.outliers or place.max() >= _TILE:
        raise BadOutliers(
            f"{where}: its tiles count {counts.sum()} outliers, the manifest says {p.outliers}, the last place is "
            f"{place.max()} of {_TILE}; the data is damaged, copy or download it again"
        )
    tile = np.repeat(np.arange(grid.tiles), counts)
    row = tile // grid.tile_cols * TILE_ROWS + place // TILE_COLS
    column = tile % grid.tile_cols * TILE_COLS + place % TILE_COLS
    if (np.diff(tile * _TILE + place) <= 0).any() or row.max() >= rows or column.max() >= columns:
        raise BadOutliers(
            f"{where}: its outliers are unsorted or outside the matrix; the data is damaged, copy or download it again"
        )
    value = parts[DELTAS].view("<f2").astype(np.float16, copy=False)
    if not np.isfinite(value).all():
        raise BadOutliers(
            f"{where}: an outlier is not finite; the data is damaged, copy or download it again"
        )
    index = row * columns + column
    rising = np.argsort(index)
    return index[rising], value[rising]


def _integers(entry: TensorEntry, parts: Mapping[str, Array], where: str) -> Integers:
    rows, columns = entry.shape
    packed = Packed(SYMBOL_DTYPE, entry.shape, parts[BOOK], parts[OFFSETS], parts[TILES])
    check_offsets(packed, where)
    steps = (parts[STEPS].astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise BadSteps(
            f"{where}: a column's step is not positive and finite; the data is damaged, copy or download it again"
        )
    return Integers(entry.dtype, decode(packed, where).view(np.int8).reshape(rows, columns), steps)


def same_matrix(a: Matrix, b: Matrix) -> bool:
    """Whether two matrices are equal in every number, and so in every weight."""
    if type(a) is not type(b):
        return False
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(a)]
    return all(np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y for x, y in pairs)


def proven_matrix(entry: TensorEntry, parts: Parts, where: str = "tensor") -> Matrix:
    """The matrix, every byte of its arrays accounted for.

    Two different stored forms may stand for the same weights (a code in a group whose scale is zero, a
    bit of a statistic that rounding loses), so equal weights do not prove equal bytes. The arrays' own
    hash does; and that they are what a writer makes of this matrix shows bits beyond the last code.
    """
    found = parts_sha256(parts)
    assert entry.parameters is not None
    if found != entry.parameters.stored:
        raise HashMismatch(
            f"{where}: the stored arrays have SHA-256 {found[:16]}…, the manifest says "
            f"{entry.parameters.stored[:16]}…; the file is damaged, copy or download it again"
        )
    q = from_parts(entry, parts, where)
    again = to_parts(q, parts.get(BOOK))
    if again.keys() != parts.keys() or any(not np.array_equal(again[name], parts[name]) for name in parts):
        raise NotCanonical(f"{where}: its arrays are not as a writer makes them; the data is damaged")
    return q
