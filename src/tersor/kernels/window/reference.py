"""The `fast` layout in NumPy: the truth that the CUDA packer, unpacker and product are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tersor.format.constants import ALIGN
from tersor.kernels.fused.layout import ROW_SHIFT, SEGMENT_COLS, STRIP_ROWS
from tersor.kernels.window.layout import (
    BASES_AT,
    BLOCK_BYTES,
    BLOCK_COLS,
    LAST_AT,
    MAX_BASE,
    MIN_BASE,
    PAIR_AT,
    PIECE_AT,
    PIECE_BITS,
    QUADS_AT,
    RECORD_HEAD,
    WINDOW,
    WORDS,
    Geometry,
)

U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
_PAIRS = 16  # of a lane
_PIECE = (1 << PIECE_BITS) - 1
_LOADS = ((0, 4), (4, 8), (8, 10), (10, 11))  # words that a lane loads at a time


@dataclass(frozen=True)
class Window:
    """A matrix (rows, cols) of bfloat16 in the `fast` layout; the fields are described in `layout`."""

    rows: int
    cols: int
    blocks: NDArray[np.uint8]  # (strips * blocks * 1408,): the stages
    places: NDArray[np.int32]  # (records + 1,), in units of 16 bytes
    records: NDArray[np.uint8]  # (16 * places[-1],)


def choose_base(exponents: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The base (rows,) of each row of a segment's `exponents` (rows, cols): the smallest that covers most."""
    rows = len(exponents)
    counts = np.zeros((rows, 257), np.int64)
    np.add.at(counts, (np.arange(rows)[:, None], exponents.astype(np.int64) + 1), 1)
    below = counts.cumsum(axis=1)  # below[r, e]: weights of row r with an exponent under e
    covered = below[:, MIN_BASE + WINDOW : MAX_BASE + WINDOW + 1] - below[:, MIN_BASE : MAX_BASE + 1]
    base: NDArray[np.uint8] = (covered.argmax(axis=1) + MIN_BASE).astype(np.uint8)
    return base


def pack(weight: U16) -> Window:
    """Pack a matrix (rows, cols) of bfloat16 bit patterns."""
    rows, cols = weight.shape
    geometry = Geometry(rows, cols)
    exponents = (weight >> 7 & 0xFF).astype(np.uint8)
    base = np.empty((rows, geometry.segments), np.uint8)
    for k in range(geometry.segments):
        base[:, k] = choose_base(exponents[:, k * SEGMENT_COLS : (k + 1) * SEGMENT_COLS])
    code = exponents.astype(np.int16) - base.repeat(SEGMENT_COLS, axis=1)[:, :cols]
    outside = (code < 0) | (code >= WINDOW)
    padded = np.zeros((geometry.strips * STRIP_ROWS, geometry.padded_cols), np.uint16)
    bits = weight >> 5 & 0x400 | code.astype(np.uint16) << 7 | weight & 0x7F  # sign, code, mantissa: 11
    padded[:rows, :cols] = np.where(outside, 0, bits)
    blocks = _pack_blocks(_to_fragments(padded))
    records = [_pack_record(weight[r, c], outside[r, c], base[r, k]) for r, c, k in _segments(geometry)]
    places = np.zeros(len(records) + 1, np.int32)
    places[1:] = np.cumsum([len(record) // ALIGN for record in records])
    return Window(rows, cols, blocks, places, np.frombuffer(b"".join(records), np.uint8))


def unpack(window: Window) -> U16:
    """The bit patterns (rows, cols) of the matrix."""
    geometry = Geometry(window.rows, window.cols)
    bits = _from_fragments(_unpack_blocks(window.blocks), geometry)[: window.rows, : window.cols]
    weight: U16 = ((bits & 0x400) << 5 | bits & 0x3FF).astype(np.uint16)
    for k, (r, c, _) in enumerate(_segments(geometry)):
        part = weight[r, c]
        record = window.records[ALIGN * window.places[k] : ALIGN * window.places[k + 1]]
        part += record[BASES_AT : BASES_AT + len(part), None].astype(np.uint16) << np.uint16(7)
        row, column, values = _exceptions(record)
        part[row, column] = values
    return weight


def _segments(geometry: Geometry) -> Iterator[tuple[slice, slice, int]]:
    """Rows, columns and number within its strip of each segment."""
    for row in range(0, geometry.rows, STRIP_ROWS):
        for k in range(geometry.segments):
            yield slice(row, row + STRIP_ROWS), slice(k * SEGMENT_COLS, (k + 1) * SEGMENT_COLS), k


def _pack_record(weight: U16, outside: NDArray[np.bool_], base: NDArray[np.uint8]) -> bytes:
    """The record of a segment `weight` (up to 16, up to 512): its exceptions, its rows' bases (up to 16,)."""
    counts, bases = np.zeros(STRIP_ROWS, np.uint16), np.full(STRIP_ROWS, MIN_BASE, np.uint8)
    counts[: len(weight)], bases[: len(weight)] = outside.sum(axis=1), base
    row, column = np.nonzero(outside)
    places = (row << ROW_SHIFT | column).astype(np.uint32)
    entries = weight[row, column].astype(np.uint32) << np.uint32(16) | places
    record = counts.cumsum().astype("<u2").tobytes() + bases.tobytes() + entries.astype("<u4").tobytes()
    return record + bytes(-len(record) % ALIGN)


def _exceptions(record: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64], U16]:
    """Row and column within the segment, and value, of each exception of a record."""
    running = record[:BASES_AT].view("<u2").astype(np.int64)
    entries = record[RECORD_HEAD : RECORD_HEAD + 4 * running[-1]].view("<u4")
    row = np.repeat(np.arange(STRIP_ROWS), np.diff(running, prepend=0))
    return row, (entries & (SEGMENT_COLS - 1)).astype(np.int64), (entries >> 16).astype(np.uint16)


def _to_fragments(matrix: U16) -> U16:
    """(rows, cols) -> (strip * block, lane, 16 pairs j = 4 i + r, 2)."""
    strips, blocks = matrix.shape[0] // STRIP_ROWS, matrix.shape[1] // BLOCK_COLS
    #                        strip  r%2 g   block  t  i  r/2 pair
    axes = matrix.reshape(strips, 2, 8, blocks, 4, 4, 2, 2)
    return axes.transpose(0, 3, 2, 4, 5, 6, 1, 7).reshape(strips * blocks, 32, 16, 2)


def _from_fragments(fragments: U16, geometry: Geometry) -> U16:
    """The inverse of `_to_fragments`."""
    axes = fragments.reshape(geometry.strips, geometry.blocks, 8, 4, 4, 2, 2, 2)
    return axes.transpose(0, 6, 2, 1, 3, 4, 5, 7).reshape(-1, geometry.padded_cols)


def _pack_blocks(bits: U16) -> NDArray[np.uint8]:
    """Fragments of 11 bits each -> bytes."""
    words = np.zeros((len(bits), 32, WORDS, 2), np.uint16)  # their halves
    for j in range(_PAIRS):
        pair = bits[:, :, j]
        if j < WORDS:
            words[:, :, j] |= (pair & 0x400) << 5 | pair & 0x3FF
            continue
        k = j - WORDS
        words[:, :, 2 * k] |= (pair >> PIECE_BITS & _PIECE) << PIECE_AT
        words[:, :, 2 * k + 1] |= (pair & _PIECE) << PIECE_AT
        words[:, :, WORDS - 1] |= pair >> 10 << (14 - k)
    return _rows_of_lanes(words.astype("<u2").view("<u4")[..., 0])


def _rows_of_lanes(words: U32) -> NDArray[np.uint8]:
    """(blocks, 32 lanes, 11 words) -> bytes, in rows of what the lanes load together."""
    rows = [words[:, :, first:last].reshape(len(words), -1) for first, last in _LOADS]
    return np.concatenate(rows, axis=1).view(np.uint8).reshape(-1)


def _unpack_blocks(blocks: NDArray[np.uint8]) -> U16:
    """The inverse of `_pack_blocks`."""
    block = blocks.reshape(-1, BLOCK_BYTES).view("<u4")
    rows = np.split(block, [at // 4 for at in (*QUADS_AT[1:], PAIR_AT, LAST_AT)], axis=1)
    words = np.concatenate([row.reshape(len(block), 32, -1) for row in rows], axis=2)
    halves = np.ascontiguousarray(words).view("<u2").reshape(len(block), 32, WORDS, 2)
    bits = np.empty((len(block), 32, _PAIRS, 2), np.uint16)
    for j in range(_PAIRS):
        if j < WORDS:
            half = halves[:, :, j]
            bits[:, :, j] = half >> 5 & 0x400 | half & 0x3FF
            continue
        k = j - WORDS
        upper, lower = (halves[:, :, 2 * k + i] >> PIECE_AT & _PIECE for i in (0, 1))
        sign = halves[:, :, WORDS - 1] >> (14 - k) & 1
        bits[:, :, j] = sign << 10 | upper << PIECE_BITS | lower
    return bits
