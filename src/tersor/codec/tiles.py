"""Whole tiles for numba: FORMAT.md section 3 around the stream loops.

`elements` is a row-major matrix of `cols` columns as integers of the elements' width, `tiles` the
stored tiles, `kind` and `raw` the dtype's number and its raw bytes per element. Every function works on the
tiles `first` to `stop` and may run in many threads at once.
"""

from __future__ import annotations

import numpy as np

from tersor.codec.compiled import compiled
from tersor.codec.elements import join, split_raw, split_symbols
from tersor.codec.streams import GROUP, ROW, decode_four, encode_stream
from tersor.codec.unaligned import load_u8, store_u8
from tersor.format.constants import ALIGN, STREAM, SYMBOLS, TILE_COLS, TILE_ROWS

_COUNTERS = 4  # histograms filled in turn, so that equal neighbours do not wait for each other


@compiled
def _align(n):  # type: ignore[no-untyped-def]
    return (n + ALIGN - 1) // ALIGN * ALIGN


@compiled
def _zero_to(out, at, end):  # type: ignore[no-untyped-def]
    for i in range(at, end):
        store_u8(out, i, 0)


@compiled
def count_symbols(kind, elements, first, stop):  # type: ignore[no-untyped-def]
    """Counts (256,) of the symbols of elements `first` to `stop`."""
    counts = np.zeros(_COUNTERS * SYMBOLS, np.int64)
    symbols = np.zeros(STREAM, np.uint8)
    for at in range(first, stop, STREAM):
        n = min(STREAM, stop - at)
        split_symbols(kind, elements, at, symbols, n)
        i = 0
        while i + 4 <= n:
            counts[symbols[i]] += 1
            counts[SYMBOLS + np.int64(symbols[i + 1])] += 1
            counts[2 * SYMBOLS + np.int64(symbols[i + 2])] += 1
            counts[3 * SYMBOLS + np.int64(symbols[i + 3])] += 1
            i += 4
        while i < n:
            counts[symbols[i]] += 1
            i += 1
    return counts.reshape(_COUNTERS, SYMBOLS).sum(axis=0)


@compiled
def encode_tiles(kind, raw, elements, rows, cols, first, stop, table, out, units):  # type: ignore[no-untyped-def]
    """Encode tiles to `out`; their sizes in units of 16 bytes go to `units`. Returns the bytes used."""
    symbols = np.zeros(STREAM, np.uint8)
    tile_cols = (cols + TILE_COLS - 1) // TILE_COLS
    at = 0
    for t in range(first, stop):
        row, col = t // tile_cols * TILE_ROWS, t % tile_cols * TILE_COLS
        height, width = min(TILE_ROWS, rows - row), min(TILE_COLS, cols - col)
        begin, plane = at, height * width
        if raw:
            for r in range(height):
                split_raw(kind, elements, (row + r) * cols + col, out, begin + r * width, plane, width)
        length_at = begin + _align(raw * plane)
        _zero_to(out, begin + raw * plane, length_at)
        streams = height * ((width + STREAM - 1) // STREAM)
        at = length_at + _align(streams)
        _zero_to(out, length_at + streams, at)
        for r in range(height):
            for k in range(0, width, STREAM):
                n = min(STREAM, width - k)
                split_symbols(kind, elements, (row + r) * cols + col + k, symbols, n)
                size = encode_stream(symbols, n, table, out, at)
                store_u8(out, length_at, size)
                length_at += 1
                at += size
        end = begin + _align(at - begin)
        _zero_to(out, at, end)
        at = end
        units[t - first] = (at - begin) // ALIGN
    return at


@compiled
def _streams_begin(raw, tiles, begin, end, height, width):  # type: ignore[no-untyped-def]
    """Bytes at which a tile's lengths and streams begin; -1 if its parts do not fill its extent."""
    length_at = begin + _align(raw * height * width)
    streams = height * ((width + STREAM - 1) // STREAM)
    body = length_at + _align(streams)
    if body > end:
        return -1, -1
    total = 0
    lengths = tiles[length_at : length_at + streams]
    for i in range(streams):
        total += np.int64(lengths[i])
    if body + _align(total) != end:
        return -1, -1
    return length_at, body


@compiled
def decode_tiles(kind, raw, tiles, offsets, rows, cols, first, stop, table, meta, elements):  # type: ignore[no-untyped-def]
    """Decode tiles to `elements`. Returns the first tile whose stream lengths lie, or -1."""
    scratch = np.zeros(GROUP * ROW, np.uint8)
    at = np.zeros(GROUP, np.int64)
    tile_cols = (cols + TILE_COLS - 1) // TILE_COLS
    last = tiles.size - 8
    for t in range(first, stop):
        row, col = t // tile_cols * TILE_ROWS, t % tile_cols * TILE_COLS
        height, width = min(TILE_ROWS, rows - row), min(TILE_COLS, cols - col)
        begin, end = np.int64(offsets[t]) * ALIGN, np.int64(offsets[t + 1]) * ALIGN
        length_at, body = _streams_begin(raw, tiles, begin, end, height, width)
        if length_at < 0:
            return t
        shift = 0 if width <= STREAM else 1  # log2 of the streams per row
        streams = height << shift
        longest = min(width, STREAM)
        for s in range(0, streams, GROUP):
            group = min(GROUP, streams - s)
            for i in range(GROUP):
                at[i] = body
                if i < group:
                    body += np.int64(load_u8(tiles, length_at + s + i))
            decode_four(tiles, at[0], at[1], at[2], at[3], last, longest, table, meta, scratch)
            for i in range(group):
                r, k = (s + i) >> shift, ((s + i) & shift) * STREAM
                n = min(STREAM, width - k)
                element = (row + r) * cols + col + k
                join(
                    kind, scratch, i * ROW, tiles, begin + r * width + k, height * width, elements, element, n
                )
    return -1


@compiled
def decode_row(kind, raw, tiles, offsets, rows, cols, row, table, meta, elements, out_row):  # type: ignore[no-untyped-def]
    """Decode row `row` of the matrix to row `out_row` of `elements`. Returns a lying tile, or -1."""
    scratch = np.zeros(GROUP * ROW, np.uint8)
    tile_cols = (cols + TILE_COLS - 1) // TILE_COLS
    last = tiles.size - 8
    strip, r = row // TILE_ROWS, row % TILE_ROWS
    height = min(TILE_ROWS, rows - strip * TILE_ROWS)
    for c in range(tile_cols):
        t, col = strip * tile_cols + c, c * TILE_COLS
        width = min(TILE_COLS, cols - col)
        begin, end = np.int64(offsets[t]) * ALIGN, np.int64(offsets[t + 1]) * ALIGN
        length_at, body = _streams_begin(raw, tiles, begin, end, height, width)
        if length_at < 0:
            return t
        per_row = (width + STREAM - 1) // STREAM
        for i in range(r * per_row):
            body += np.int64(load_u8(tiles, length_at + i))
        second = body + np.int64(load_u8(tiles, length_at + r * per_row)) if per_row > 1 else body
        decode_four(tiles, body, second, body, body, last, min(width, STREAM), table, meta, scratch)
        for k in range(per_row):
            n = min(STREAM, width - k * STREAM)
            element = out_row * cols + col + k * STREAM
            source = begin + r * width + k * STREAM
            join(kind, scratch, k * ROW, tiles, source, height * width, elements, element, n)
    return -1
