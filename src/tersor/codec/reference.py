"""The huffman codec in plain NumPy: the truth that numba and CUDA are compared with.

FORMAT.md section 3, read aloud: split into symbols and raw bytes, cut into tiles, tiles into
streams of at most 128 symbols, code each stream, note its length in bytes. It works on a
few hundred tiles at a time, all their streams side by side as rows of an array, because a loop
per symbol in Python would take hours on a real model; there is no other cleverness.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tersor.codec.huffman import canonical_codes, check_book, code_lengths, decode_table
from tersor.codec.packed import Packed, check_offsets, tile_offsets
from tersor.codec.split import join, split
from tersor.format.constants import ALIGN, MAX_CODE_BITS, STREAM, SYMBOLS, TAIL, TILE_ROWS
from tersor.format.dtypes import RAW_BYTES, itemsize
from tersor.format.errors import BadTile
from tersor.format.layout import Grid, Tile, aligned, raw_bytes_per_tile

U8 = NDArray[np.uint8]

_CHUNK = 256  # tiles handled at once: about 8000 streams


def histogram(data: U8, dtype: str) -> NDArray[np.int64]:
    """How often each symbol (256,) occurs in the elements whose bytes are `data`."""
    return np.bincount(split(data, dtype)[0], minlength=SYMBOLS).astype(np.int64)


def encode(data: U8, dtype: str, shape: tuple[int, ...], book: U8 | None = None) -> Packed:
    """Compress the tensor of this dtype and shape whose bytes are `data` (1-D uint8), row-major.

    `book` gives the code lengths to use; without it the optimal ones are made.
    """
    grid = Grid.of(shape)
    if not grid.tiles:
        raise ValueError(f"a tensor of shape {shape} has no elements to code; it is stored raw")
    if book is None:
        book = code_lengths(histogram(data, dtype))
    check_book(book)
    elements = data.reshape(grid.rows, grid.cols * itemsize(dtype))
    blocks: list[bytes] = []
    for start in range(0, grid.tiles, _CHUNK):
        for block in _encode_tiles(elements, dtype, book, [grid.tile(t) for t in _chunk(start, grid)]):
            blocks.append(block)
    offsets = tile_offsets(np.array([len(block) // ALIGN for block in blocks], np.uint32), shape)
    tiles = np.frombuffer(b"".join(blocks) + bytes(TAIL), np.uint8)
    return Packed(dtype, tuple(shape), book, offsets, tiles)


def decode(packed: Packed, where: str = "tensor", out: U8 | None = None) -> U8:
    """The original bytes (1-D uint8), in `out` if given; raises a FormatError where a rule is broken."""
    check_offsets(packed, where)
    check_book(packed.book, where)
    grid, size = packed.grid, itemsize(packed.dtype)
    if out is None:
        out = np.empty(packed.original_nbytes, np.uint8)
    matrix = out.reshape(grid.rows, grid.cols * size)
    for start in range(0, grid.tiles, _CHUNK):
        tiles = [grid.tile(t) for t in _chunk(start, grid)]
        for tile, values in zip(tiles, _decode_tiles(packed, tiles, where), strict=True):
            matrix[tile.row : tile.row + tile.height, tile.col * size : (tile.col + tile.width) * size] = (
                values
            )
    return out


def decode_strips(packed: Packed, first: int, stop: int, where: str = "tensor") -> U8:
    """The bytes of the rows of strips `first` to `stop` (16 rows each, the last maybe fewer), 1-D uint8."""
    rows = np.arange(first * TILE_ROWS, min(stop * TILE_ROWS, packed.grid.rows))
    return decode_rows(packed, rows, where).reshape(-1)


def decode_rows(packed: Packed, rows: NDArray[np.int64], where: str = "tensor") -> U8:
    """The bytes (n, columns * itemsize) of these rows (n,) of the matrix; only their strips are decoded."""
    check_offsets(packed, where)
    check_book(packed.book, where)
    grid, size = packed.grid, itemsize(packed.dtype)
    if rows.size and not (rows.min() >= 0 and rows.max() < grid.rows):
        raise IndexError(f"{where}: rows must lie in 0..{grid.rows - 1}")
    out = np.empty((rows.size, grid.cols * size), np.uint8)
    strip_of = rows // TILE_ROWS
    for strip in np.unique(strip_of):
        wanted = np.flatnonzero(strip_of == strip)
        tiles = [grid.tile(int(strip) * grid.tile_cols + c) for c in range(grid.tile_cols)]
        for tile, values in zip(tiles, _decode_tiles(packed, tiles, where), strict=True):
            out[wanted, tile.col * size : (tile.col + tile.width) * size] = values[rows[wanted] - tile.row]
    return out


def _chunk(start: int, grid: Grid) -> range:
    return range(start, min(start + _CHUNK, grid.tiles))


def _encode_tiles(elements: U8, dtype: str, book: U8, tiles: list[Tile]) -> list[bytes]:
    """The bytes of each of these tiles of `elements` (rows, columns * itemsize)."""
    size = itemsize(dtype)
    symbols = np.zeros((sum(t.streams for t in tiles), STREAM), np.uint8)
    widths = np.concatenate([_stream_widths(t) for t in tiles])
    planes: list[U8] = []
    first = 0
    for t in tiles:
        part = np.ascontiguousarray(
            elements[t.row : t.row + t.height, t.col * size : (t.col + t.width) * size]
        )
        tile_symbols, raw = split(part.reshape(-1), dtype)
        padded = np.zeros((t.height, t.streams_per_row * STREAM), np.uint8)
        padded[:, : t.width] = tile_symbols.reshape(t.height, t.width)
        symbols[first : first + t.streams] = padded.reshape(t.streams, STREAM)
        planes.append(raw)
        first += t.streams
    streams = _encode_streams(symbols, widths, book)
    blocks = []
    first = 0
    for t, raw in zip(tiles, planes, strict=True):
        own = streams[first : first + t.streams]
        lengths = bytes(len(s) for s in own)
        blocks.append(_pad(raw.tobytes()) + _pad(lengths) + _pad(b"".join(own)))
        first += t.streams
    return blocks


def _encode_streams(symbols: U8, widths: NDArray[np.int64], book: U8) -> list[bytes]:
    """Code each row of `symbols` (streams, 128), of which the first `widths` (streams,) entries count."""
    lengths = np.where(np.arange(STREAM) < widths[:, None], book[symbols], 0).astype(np.int64)
    codes = canonical_codes(book)[symbols]
    ends = np.cumsum(lengths, axis=1)
    bits = np.zeros((len(symbols), STREAM * MAX_CODE_BITS), np.uint8)
    for bit in range(MAX_CODE_BITS):
        stream, position = np.nonzero(lengths > bit)
        at = ends[stream, position] - lengths[stream, position] + bit
        bits[stream, at] = codes[stream, position] >> bit & 1
    packed = np.packbits(bits, axis=1, bitorder="little")
    sizes = -(-ends[:, -1] // 8)
    return [row[:size].tobytes() for row, size in zip(packed, sizes, strict=True)]


def _decode_tiles(packed: Packed, tiles: list[Tile], where: str) -> list[U8]:
    """The original bytes (height, width * itemsize) of each of these tiles."""
    starts = np.concatenate([_stream_starts(packed, t, where) for t in tiles])
    symbols = _decode_streams(packed.tiles, starts, packed.book)
    values = []
    first = 0
    for t in tiles:
        own = symbols[first : first + t.streams].reshape(t.height, t.streams_per_row * STREAM)[:, : t.width]
        begin = int(packed.offsets[t.index]) * ALIGN
        planes = packed.tiles[begin : begin + RAW_BYTES[packed.dtype] * t.height * t.width]
        joined = join(
            own.reshape(-1), planes.reshape(RAW_BYTES[packed.dtype], t.height * t.width), packed.dtype
        )
        values.append(joined.reshape(t.height, -1))
        first += t.streams
    return values


def _stream_starts(packed: Packed, tile: Tile, where: str) -> NDArray[np.int64]:
    """The byte at which each stream of the tile begins, its lengths checked."""
    begin, end = (int(o) * ALIGN for o in packed.offsets[tile.index : tile.index + 2])
    first = begin + raw_bytes_per_tile(packed.dtype, tile)
    body = first + aligned(tile.streams)
    lengths = packed.tiles[first : first + tile.streams].astype(np.int64)
    if body > end or body + aligned(int(lengths.sum())) != end:
        raise BadTile(
            f"{where}: the stream lengths of tile {tile.index} do not fill its {end - begin} bytes; it is damaged"
        )
    return body + np.cumsum(lengths) - lengths


def _decode_streams(buffer: U8, starts: NDArray[np.int64], book: U8) -> U8:
    """Decode 128 symbols from each byte position in `starts`; what lies behind a stream's end is noise."""
    table = decode_table(book)
    mask = (1 << MAX_CODE_BITS) - 1
    last = buffer.size - 3
    bit = starts * 8
    out = np.empty((len(starts), STREAM), np.uint8)
    for i in range(STREAM):
        byte = np.minimum(bit >> 3, last)
        window = (
            buffer[byte].astype(np.int64)
            | buffer[byte + 1].astype(np.int64) << 8
            | buffer[byte + 2].astype(np.int64) << 16
        )
        out[:, i] = table[window >> (bit & 7) & mask]
        bit += book[out[:, i]]
    return out


def _stream_widths(tile: Tile) -> NDArray[np.int64]:
    """How many symbols each stream of the tile holds."""
    row = np.full(tile.streams_per_row, STREAM, np.int64)
    row[-1] = tile.width - STREAM * (tile.streams_per_row - 1)
    return np.tile(row, tile.height)


def _pad(data: bytes) -> bytes:
    return data + bytes(aligned(len(data)) - len(data))
