"""The huffman codec compiled by numba, on all cores: same functions, same bytes as the reference.

Work is cut into runs of consecutive tiles and given to a thread pool; the compiled code holds
no lock (`nogil`). numba's own `parallel=True` was rejected: its default thread pool may not be
entered by two Python threads at once, and the compress pipeline does just that.

Bounds: compiled code reads and writes without checks, so everything it touches is proven first.
Offsets are checked to grow and to end at the buffer's end (`check_offsets`); each tile's parts
are checked to fill its extent before its streams are read (`decode_tiles` returns the first
tile that lies); a stream read past its end is clamped to the buffer, whose last 16 bytes are
spare; an output is allocated here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.codec.elements import ELEMENT
from tersor.codec.huffman import check_book, code_lengths
from tersor.codec.packed import Packed, check_offsets, tile_offsets
from tersor.codec.streams import encode_table, multi_table
from tersor.codec.threads import each, threads
from tersor.codec.tiles import count_symbols, decode_row, decode_tiles, encode_tiles
from tersor.format.constants import ALIGN, MAX_CODE_BITS, STREAM, SYMBOLS, TAIL, TILE_COLS, TILE_ROWS
from tersor.format.dtypes import KINDS, RAW_BYTES, itemsize
from tersor.format.errors import BadTile, UnknownDtype
from tersor.format.layout import Grid, aligned

U8 = NDArray[np.uint8]

# Tiles in one piece of work. Long pieces, because at each piece's end a thread waits for the GIL
# (256 tiles scaled 1.75 times on two cores, 1024 scale 1.92), but a few for each thread.
_LONGEST_RUN, _SHORTEST_RUN, _RUNS_PER_THREAD = 1024, 32, 4
_TILE_STREAMS = TILE_ROWS * TILE_COLS // STREAM


def histogram(data: U8, dtype: str) -> NDArray[np.int64]:
    """How often each symbol (256,) occurs in the elements whose bytes are `data`."""
    kind, elements = _kind(dtype), _elements(data, dtype)
    piece = _LONGEST_RUN * TILE_ROWS * TILE_COLS

    def count(i: int) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = count_symbols(
            kind, elements, i * piece, min((i + 1) * piece, elements.size)
        )
        return counts

    counts = each(count, range(-(-elements.size // piece)))
    total: NDArray[np.int64] = np.array(counts, np.int64).reshape(-1, SYMBOLS).sum(axis=0)
    return total


def encode(data: U8, dtype: str, shape: tuple[int, ...], book: U8 | None = None) -> Packed:
    """Compress the tensor of this dtype and shape whose bytes are `data` (1-D uint8), row-major.

    `book` gives the code lengths to use; without it the optimal ones are made.
    """
    kind, raw, grid = _kind(dtype), RAW_BYTES[dtype], Grid.of(shape)
    if not grid.tiles:
        raise ValueError(f"a tensor of shape {shape} has no elements to code; it is stored raw")
    elements = _elements(data, dtype)
    counts = histogram(data, dtype)
    if book is None:
        book = code_lengths(counts)
    check_book(book)
    if counts[book == 0].any():
        raise ValueError("the book has no code for a symbol of the data")
    table = encode_table(book)
    units = np.zeros(grid.tiles, np.uint32)
    tiles = np.empty(_size_bound(counts, book, grid, raw), np.uint8)
    room = (
        aligned(raw * TILE_ROWS * TILE_COLS) + aligned(_TILE_STREAMS * (1 + STREAM * MAX_CODE_BITS // 8)) + 8
    )
    run = _run(grid)
    runs = -(-grid.tiles // run)
    wave = min(threads(), runs)  # one run per thread between two barriers: bounds the scratch memory
    scratch = np.empty((wave, min(run, grid.tiles) * room), np.uint8)  # used again by every wave

    def encode_run(i: int) -> U8:
        first, stop = i * run, min((i + 1) * run, grid.tiles)
        out: U8 = scratch[i % wave]
        used: int = encode_tiles(
            kind, raw, elements, grid.rows, grid.cols, first, stop, table, out, units[first:stop]
        )
        coded: U8 = out[:used]
        return coded

    end = 0
    for start in range(0, runs, wave):
        pieces = each(encode_run, range(start, min(start + wave, runs)))
        places = np.cumsum([end] + [p.size for p in pieces])

        def place(i: int, pieces: list[U8] = pieces, places: NDArray[np.int64] = places) -> None:
            tiles[places[i] : places[i + 1]] = pieces[i]

        each(place, range(len(pieces)))
        end = int(places[-1])
    tiles[end : end + TAIL] = 0
    return Packed(dtype, tuple(shape), book, tile_offsets(units, shape), tiles[: end + TAIL])


def decode(packed: Packed, where: str = "tensor", out: U8 | None = None) -> U8:
    """The original bytes (1-D uint8), in `out` if given; raises a FormatError where a rule is broken."""
    check_offsets(packed, where)
    check_book(packed.book, where)
    if out is None:
        out = np.empty(packed.original_nbytes, np.uint8)
    if out.nbytes != packed.original_nbytes:
        raise ValueError(f"{where}: decodes to {packed.original_nbytes} bytes, `out` has {out.nbytes}")
    _refuse_bad(_decode_grid(packed, packed.offsets, packed.grid, out.view(ELEMENT[packed.dtype])), where)
    return out


def decode_strips(packed: Packed, first: int, stop: int, where: str = "tensor") -> U8:
    """The bytes of the rows of strips `first` to `stop` (16 rows each, the last maybe fewer), 1-D uint8."""
    check_offsets(packed, where)
    check_book(packed.book, where)
    grid, tile_cols = packed.grid, packed.grid.tile_cols
    top = first * TILE_ROWS
    rows = min(stop * TILE_ROWS, grid.rows) - top
    elements = np.empty(rows * grid.cols, ELEMENT[packed.dtype])
    offsets = packed.offsets[first * tile_cols : stop * tile_cols + 1]
    bad = _decode_grid(packed, offsets, Grid(rows, grid.cols), elements)
    _refuse_bad([first * tile_cols + tile for tile in bad if tile >= 0], where)
    return elements.view(np.uint8)


def decode_rows(packed: Packed, rows: NDArray[np.int64], where: str = "tensor") -> U8:
    """The bytes (n, columns * itemsize) of these rows (n,) of the matrix; only their streams are decoded."""
    check_offsets(packed, where)
    check_book(packed.book, where)
    kind, raw, grid = _kind(packed.dtype), RAW_BYTES[packed.dtype], packed.grid
    if rows.size and not (rows.min() >= 0 and rows.max() < grid.rows):
        raise IndexError(f"{where}: rows must lie in 0..{grid.rows - 1}")
    table, meta = _tables(packed.book.tobytes())
    out = np.empty(rows.size * grid.cols, ELEMENT[packed.dtype])

    def decode_one(i: int) -> int:
        bad: int = decode_row(
            kind, raw, packed.tiles, packed.offsets, grid.rows, grid.cols, int(rows[i]), table, meta, out, i
        )
        return bad

    _refuse_bad(each(decode_one, range(rows.size)), where)
    return out.view(np.uint8).reshape(rows.size, grid.cols * itemsize(packed.dtype))


def _run(grid: Grid) -> int:
    """Tiles in one piece of work on this grid."""
    return min(_LONGEST_RUN, max(_SHORTEST_RUN, -(-grid.tiles // (_RUNS_PER_THREAD * threads()))))


def _kind(dtype: str) -> int:
    if dtype not in KINDS:
        raise UnknownDtype(f"codec 'huffman' cannot hold dtype {dtype!r}; it holds {', '.join(KINDS)}")
    return KINDS[dtype]


def _decode_grid(
    packed: Packed, offsets: NDArray[np.uint32], grid: Grid, elements: NDArray[np.unsignedinteger[Any]]
) -> list[int]:
    """Decode the tiles of `grid` that `offsets` point to; for each run a tile that lies, or -1."""
    kind, raw, tiles = _kind(packed.dtype), RAW_BYTES[packed.dtype], packed.tiles
    table, meta = _tables(packed.book.tobytes())
    run = _run(grid)

    def decode_run(i: int) -> int:
        first, stop = i * run, min((i + 1) * run, grid.tiles)
        bad: int = decode_tiles(
            kind, raw, tiles, offsets, grid.rows, grid.cols, first, stop, table, meta, elements
        )
        return bad

    return each(decode_run, range(-(-grid.tiles // run)))


@lru_cache(maxsize=512)
def _tables(book: bytes) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """`multi_table` of a checked book, kept: a running model decodes its layers again and again."""
    return multi_table(np.frombuffer(book, np.uint8))


def _elements(data: U8, dtype: str) -> NDArray[np.unsignedinteger[Any]]:
    """`data` as integers of the elements' width; copied only if it lies at an odd address."""
    elements = data.view(ELEMENT[dtype])
    return elements if elements.flags.aligned else elements.copy()


def _refuse_bad(results: list[int], where: str) -> None:
    bad = [tile for tile in results if tile >= 0]
    if bad:
        raise BadTile(f"{where}: the stream lengths of tile {min(bad)} do not fill its extent; it is damaged")


def _size_bound(counts: NDArray[np.int64], book: U8, grid: Grid, raw: int) -> int:
    """At least as many bytes as the tiles will take: all code bits, and every padding at its largest."""
    bits = int((counts * book).sum())
    streams = grid.rows * -(-grid.cols // STREAM)
    return bits // 8 + 2 * streams + raw * grid.rows * grid.cols + 3 * ALIGN * grid.tiles + TAIL
